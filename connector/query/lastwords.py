"""What a worker says before it ends, and how the main process hears it. Standard library only: both ends load it.

A worker's standard error is a pipe. Until it is ready, all that the interpreter and libraries write there is heard:
there are no data yet. From then on theirs goes nowhere, as their errors quote values of rows; heard is what we say
ourselves, and the interpreter as it is killed by a fault: kinds of errors, and where in the code they came up.
"""

from __future__ import annotations

import asyncio
import faulthandler
import os
import signal
import sys
import threading
import traceback
from contextlib import suppress
from types import TracebackType

_LINES = 24
_LINE_MAX = 200
_HEARD_MAX = 4096  # bytes
_PATIENCE = 1.0
_ours: int | None = None  # the descriptor that still leads to the pipe, once the worker is ready


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
        return [line[:_LINE_MAX] for line in plain if line][-_LINES:]


def how_ended(code: int | None) -> str:
    """A process's end in words, as `subprocess` gives its return code."""
    if code is None:
        return "still there"
    if code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return f"signal {signal.Signals(-code).name}"
    return f"signal {-code}"


def begin() -> None:
    """In a worker, first of all: what kills it says where."""
    faulthandler.enable(all_threads=False)


def only_ours(null: int) -> None:
    """In a worker that is ready, before data come: of standard error nothing is heard but `tell` and faults. `null`: a
    descriptor that leads nowhere."""
    global _ours
    _ours = os.dup(2)
    faulthandler.enable(_ours, all_threads=False)
    os.dup2(null, 2)
    sys.excepthook = _hook
    threading.excepthook = lambda hooked: _hook(hooked.exc_type, hooked.exc_value, hooked.exc_traceback)


def say(words: str) -> None:
    """Words of ours, with no value of anybody's rows in them."""
    with suppress(OSError):  # nobody may hear us
        os.write(2 if _ours is None else _ours, f"{words}\n".encode())


def tell(error: BaseException) -> None:
    """Say what was raised and where; also in which words, as long as these cannot be values of rows."""
    with suppress(Exception):  # there may be no memory
        if _ours is None:
            traceback.print_exception(error)
        else:
            _hook(type(error), error, error.__traceback__)


def _hook(kind: type[BaseException], _: BaseException | None, found: TracebackType | None) -> None:
    places = [f"  {frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in traceback.walk_tb(found)]
    say("\n".join((*places[-_LINES:], kind.__qualname__)))
