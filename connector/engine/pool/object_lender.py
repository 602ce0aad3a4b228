"""Lends blocks of stored objects to a worker, which has no network: it sends requests and gets open descriptors.

Runs in the main process. A job that reads objects gets a second socket. Requests (`protocol.LOAN`) come over it. For
each block one message goes back: `b"b"` with a descriptor, or `b"e"` and an error code. A worker gets only blocks of
its own job's objects. At the start and at the end it has all of them checked for changes.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol

from connector.datasets.object_cache import BLOCK
from connector.datasets.sources.source_files import FileRef
from connector.engine.pool import protocol as wire
from connector.engine.pool.protocol import Job
from connector.errors import ConnectorError
from connector.telemetry import logger

_log = logger("query")
Loans = Mapping[int, tuple[str, Sequence[FileRef]]]  # by the relation's place in the job: its store, its objects


class Library(Protocol):
    """A source of blocks: the object store with its cache on disk."""

    def read(self, ref: FileRef, *, store: str, first: int, count: int) -> Any:
        """Yield a descriptor for each block."""

    async def check(self, refs: Sequence[FileRef], *, store: str) -> None:
        """Raises: VersionChanged unless every object still has its registered version."""


def loans_of(job: Job) -> Loans:
    """Return the objects that a job reads; empty for a job that reads files."""
    found: dict[int, tuple[str, Sequence[FileRef]]] = {}
    for number, relation in enumerate(job.relations.values()):
        if any(file.get("etag") for file in relation.files):
            refs = tuple(FileRef.from_json(dict(file)) for file in relation.files)
            found[number] = (str(relation.options.get("store", "")), refs)
    return found


async def lend(desk: socket.socket, loans: Loans, library: Library) -> None:
    """Answer a worker's requests until it closes its end."""
    loop = asyncio.get_running_loop()
    desk.setblocking(False)
    with desk:
        while True:
            try:
                asked = await loop.sock_recv(desk, wire.LOAN.size)
                if len(asked) < wire.LOAN.size:
                    return
                await _answer(desk, loans, library, *wire.LOAN.unpack(asked))
            except OSError:
                return


async def _answer(
    desk: socket.socket, loans: Loans, library: Library, what: bytes, relation: int, file: int, first: int, count: int
) -> None:
    try:
        store, refs = loans[relation]
        if what == wire.CHECK:
            await library.check(refs, store=store)
            await _send(desk, b"k")
            return
        ref = refs[file]
        if not 0 < count <= -(-ref.size // BLOCK) - first:
            raise IndexError
        async with aclosing(library.read(ref, store=store, first=first, count=count)) as blocks:
            async for descriptor in blocks:
                try:
                    await _send(desk, b"b", descriptor)
                finally:
                    os.close(descriptor)
    except ConnectorError as error:
        await _send(desk, b"e" + error.code.encode())
    except (KeyError, IndexError):
        await _send(desk, b"ejob_invalid")
    except ConnectionError:
        raise  # the worker has gone
    except OSError as error:  # no room for blocks, or no descriptors
        _log.error("blocks cannot be lent", reason=error.strerror)
        await _send(desk, b"eblocks_not_kept")


async def _send(desk: socket.socket, message: bytes, descriptor: int | None = None) -> None:
    """Send one message; waits while the worker has not read the earlier ones."""
    while True:
        with suppress(BlockingIOError):
            if descriptor is None:
                desk.send(message)
            else:
                socket.send_fds(desk, [message], [descriptor])
            return
        await _writable(desk)


async def _writable(desk: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = loop.create_future()
    loop.add_writer(desk, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_writer(desk)
