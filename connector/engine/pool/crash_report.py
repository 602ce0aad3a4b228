"""What a worker says before it ends; `hearing` is the other end, in the main process.

A worker's standard error is a pipe. Until it is ready, all that the interpreter and libraries write there is heard:
there are no data yet. From then on theirs goes nowhere, as their errors quote values of rows; heard is what we say
ourselves, and the interpreter as it is killed by a fault: kinds of errors, and where in the code they came up.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import traceback
from contextlib import suppress
from types import TracebackType

LINES = 24  # that are told, and heard
_ours: int | None = None  # the descriptor that still leads to the pipe, once the worker is ready


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
    say("\n".join((*places[-LINES:], kind.__qualname__)))
