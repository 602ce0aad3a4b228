"""Processes that need not import anything: forked from one that has done it, and killed as any other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any


async def ran(what: Callable[..., None], *arguments: Any) -> tuple[int | None, Any]:
    """The exit code of a process that does this, and what it said if it did: its last argument is the way back."""
    context = get_context("forkserver")
    context.set_forkserver_preload([what.__module__])
    heard, said = context.Pipe(duplex=False)
    child = context.Process(target=what, args=(*arguments, said))
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
