"""A worker's reports about its own errors, written to standard error; `crash_log` reads them in the main process.

A worker's standard error is a pipe. Until the worker is ready, everything that the interpreter and libraries write
there is passed on: no data has come yet. Afterwards their output is dropped, as their errors quote values of rows. Only
our own reports and the interpreter's fault handler still reach the pipe: kinds of errors, and where in the code they
were raised.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import traceback
from contextlib import suppress
from types import TracebackType

LINES = 24  # of a report
_ours: int | None = None  # the descriptor that still leads to the pipe, once the worker is ready


def begin() -> None:
    """In a worker, before anything else: report where a fatal signal struck."""
    faulthandler.enable(all_threads=False)


def only_ours(null: int) -> None:
    """In a ready worker, before data comes: drop everything on standard error except `tell` and faults.

    `null` is a descriptor of the null device.
    """
    global _ours
    _ours = os.dup(2)
    faulthandler.enable(_ours, all_threads=False)
    os.dup2(null, 2)
    sys.excepthook = _hook
    threading.excepthook = lambda hooked: _hook(hooked.exc_type, hooked.exc_value, hooked.exc_traceback)


def say(words: str) -> None:
    """Write a line to the report. It must hold no values of rows."""
    with suppress(OSError):  # the reader may have gone
        os.write(2 if _ours is None else _ours, f"{words}\n".encode())


def tell(error: BaseException) -> None:
    """Report an error's kind and place; its message only while it cannot hold values of rows."""
    with suppress(Exception):  # there may be no memory
        if _ours is None:
            traceback.print_exception(error)
        else:
            _hook(type(error), error, error.__traceback__)


def _hook(kind: type[BaseException], _: BaseException | None, found: TracebackType | None) -> None:
    places = [f"  {frame.f_code.co_filename}:{line} {frame.f_code.co_name}" for frame, line in traceback.walk_tb(found)]
    say("\n".join((*places[-LINES:], kind.__qualname__)))
