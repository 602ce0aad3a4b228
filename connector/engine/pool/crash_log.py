"""How the main process hears a worker's last words (`lastwords`): apart from them, as a worker needs no asyncio, which
would take a fifteenth of the time that it takes to start.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress

from connector.engine.pool.crash_report import LINES

_LINE_MAX = 200
_HEARD_MAX = 4096  # bytes
_PATIENCE = 1.0


class LastWords(asyncio.Protocol):
    """The reading end: of all that comes the last is held, and no more, whatever the worker writes."""

    def __init__(self) -> None:
        self._heard = b""
        self._over = asyncio.Event()
        self._pipe: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._pipe = transport

    def data_received(self, data: bytes) -> None:
        self._heard = (self._heard + data[-_HEARD_MAX:])[-_HEARD_MAX:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._over.set()

    async def end(self) -> None:
        """The process has ended: what it had written is heard yet."""
        if self._pipe is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._over.wait()
            self._pipe.close()

    def lines(self) -> list[str]:
        """The last lines, each cut where it is long, without what a terminal would obey."""
        lines = self._heard.decode("utf-8", "replace").splitlines()
        plain = ("".join(one if one.isprintable() else " " for one in line).rstrip() for line in lines)
        return [line[:_LINE_MAX] for line in plain if line][-LINES:]


def how_ended(code: int | None) -> str:
    """A process's end in words, as `subprocess` gives its return code."""
    if code is None:
        return "still there"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"
