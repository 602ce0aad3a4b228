"""Additions to a DataLoader's worker: errors reach the loop with all facts, a lost batch is an error, and the worker
ends with the loop.

Loads no PyTorch; a worker has loaded it already.
"""

from __future__ import annotations

import copyreg
import os
import pickle
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

from hanse.errors import BadInput, HanseError

_WATCH_SECONDS = 5.0
_WATCHING: set[int] = set()  # processes that watch already


def end_with_loop() -> None:
    """In a worker: end when the loop's process has ended, also while waiting for rows.

    PyTorch's worker checks that between batches only. A remaining worker keeps the sockets of its rank's group open, as
    it was forked with them: the other ranks would notice the end of that rank only when the patience with the owner
    ends.
    """
    if _in_worker() and os.getpid() not in _WATCHING:
        _WATCHING.add(os.getpid())
        threading.Thread(target=_watch_parent, args=(os.getppid(),), daemon=True, name="hanse-loop-there").start()


def _watch_parent(loop: int) -> None:
    while os.getppid() == loop:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


@contextmanager
def keep_error_facts() -> Iterator[None]:
    """In a worker: send an error to the loop with all its facts.

    PyTorch sends the class of an error and a text with its traceback, and creates it again from these. So the class
    that is sent carries the facts; the text, which has causes and notes, becomes a note.
    """
    try:
        yield
    except Exception as error:  # not HanseError: at interpreter exit its name may be gone before a generator
        if isinstance(error, HanseError) and _in_worker():
            known = {name: value for name, value in vars(error).items() if name != "__notes__"}
            with suppress(Exception):  # an error that cannot be pickled would leave the loop waiting
                pickle.dumps((error.args, known))
                error.__class__ = _with_facts(type(error), error.args, known)
        raise


def raise_unpicklable() -> None:
    """In a worker, before its first batch: make a batch that cannot be pickled an error in the loop.

    The queue pickles in a thread of its own, prints errors there, and continues with the next batch: the loop would end
    with fewer rows, or wait forever.
    """
    if _in_worker() and (queue := _queue_to_the_loop()) is not None:
        queue._on_queue_feeder_error = partial(_send_error, queue)  # a private hook of multiprocessing for this purpose


def _queue_to_the_loop() -> Any:
    """Return the queue by its name in the worker loop of PyTorch or torchdata, which calls this; None for other
    callers."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_worker_loop":
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("data_queue")


def _send_error(queue: Any, error: Exception, batch: object) -> None:
    queue.put(_UnpicklableBatch(f"{type(error).__name__}: {error}"))


class _UnpicklableBatch:
    """Raises an error when it is unpickled."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise_unpicklable, (self._why,)


def _raise_unpicklable(why: str) -> Any:
    raise BadInput(
        f"expected a batch that can be pickled, from the worker to the loop; got one that cannot ({why}). Let form "
        "and collate_fn return tensors and plain values, or read with num_workers=0"
    )


def _in_worker() -> bool:
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


class _FactsClass(type):
    """The class of one error, which is pickled with its facts."""

    known: tuple[type[HanseError], tuple[Any, ...], dict[str, Any]]


def _with_facts(kind: type[HanseError], args: tuple[Any, ...], known: dict[str, Any]) -> Any:
    def begin(self: Any, text: str) -> None:  # not the kind's own `__init__`, which may have other parameters
        self.args = args
        vars(self).update(known)
        self.add_note(text)

    own = {"__init__": begin, "__module__": kind.__module__, "known": (kind, args, known)}
    return _FactsClass(kind.__name__, (kind,), own)


copyreg.pickle(_FactsClass, lambda own: (_with_facts, own.known))
