"""The main process's end of a worker's standard error: keeps the last lines for the log.

Separate from `crash_report`, because a worker needs no asyncio: its import takes a fifteenth of a worker's start.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

from connector.engine.pool.crash_report import LINES

_LINE_MAX = 200
_TAIL_BYTES = 4096  # bytes
_PATIENCE = 1.0


class LastWords(asyncio.Protocol):
    """Reads a worker's standard error and keeps only its last bytes, whatever the worker writes."""

    def __init__(self) -> None:
        self._tail = b""
        self._over = asyncio.Event()
        self._pipe: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe = transport

    def data_received(self, data: bytes) -> None:
        self._tail = (self._tail + data[-_TAIL_BYTES:])[-_TAIL_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._over.set()

    async def end(self) -> None:
        """Read what is left in the pipe after the process has ended, then close it."""
        if self._pipe is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._over.wait()
            self._pipe.close()

    def lines(self) -> list[str]:
        """Return the last lines, shortened, without control characters."""
        lines = self._tail.decode("utf-8", "replace").splitlines()
        plain = ("".join(letter if letter.isprintable() else " " for letter in line).rstrip() for line in lines)
        return [line[:_LINE_MAX] for line in plain if line][-LINES:]


def how_ended(code: int | None) -> str:
    """Describe a return code of `subprocess` in words."""
    if code is None:
        return "still there"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
