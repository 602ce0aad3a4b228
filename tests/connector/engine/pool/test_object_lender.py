"""Blocks of objects as a worker asks for them: what it is told where they cannot be lent."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from connector.datasets.sources.source_files import FileRef
from connector.engine.pool import protocol as wire
from connector.engine.pool.error_codes import error_of
from connector.engine.pool.object_lender import lend
from connector.errors import Unavailable

REF = FileRef("s3://bucket/t.parquet", 0, 0, 10, 0, "t.parquet", etag="x")


class Full:
    """A library on a disk without room."""

    async def read(self, *_: Any, **__: Any) -> AsyncIterator[int]:
        await asyncio.to_thread(_written)
        yield 0


def _written() -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("times", [1, 2])
async def test_a_disk_without_room_for_blocks_is_told_as_that(times: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    lending = asyncio.ensure_future(lend(ours, {0: ("archive", [REF])}, Full()))  # type: ignore[arg-type]  # checks none
    with theirs:
        for _ in range(times):
            theirs.send(wire.LOAN.pack(wire.READ, 0, 0, 0, 1))
            told = await asyncio.wait_for(asyncio.to_thread(theirs.recv, 256), 60)
            error = error_of(told[1:].decode(), {})
            assert told[:1] == b"e"
            assert isinstance(error, Unavailable)
            assert "make room" in error.message
    await asyncio.wait_for(lending, 60)
