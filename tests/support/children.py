"""Processes that need not import anything: forked from one that has done it, and killed as any other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from multiprocessing import context, forkserver, get_context
from typing import Any

_server: Any = forkserver._forkserver  # type: ignore[attr-defined]  # of this process: there is one
_imported: tuple[int, tuple[str, ...]] = 0, ()  # the server that was started here, and what it has


def forked(*modules: str) -> context.ForkServerContext:
    """A way to start processes that have these modules.

    A server that runs imports nothing more, so that whoever had other modules before would leave it to each child:
    that one ends, when all whom it has started have.
    """
    global _imported
    found = get_context("forkserver")
    if _server._forkserver_pid is not None and _imported != (_server._forkserver_pid, modules):
        _server._stop()
    found.set_forkserver_preload([*modules])
    forkserver.ensure_running()
    _imported = _server._forkserver_pid, modules
    return found


async def ran(what: Callable[..., None], *arguments: Any) -> tuple[int | None, Any]:
    """The exit code of a process that does this, and what it said if it did: its last argument is the way back."""
    started = forked(what.__module__)
    heard, said = started.Pipe(duplex=False)
    child = started.Process(target=what, args=(*arguments, said))
    with heard:
        with said:
            child.start()
        await _end(child.sentinel)
        child.join()
        try:
            return child.exitcode, heard.recv()
        except EOFError:
            return child.exitcode, None


async def _end(sentinel: int) -> None:
    """In this thread: a start looks after those that were started before, and an exit code is told once."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(sentinel)
