"""What is ours in a DataLoader's worker: errors that reach the loop whole, batches that do or are an error, and an end
with the loop.

Loads no PyTorch, which a worker has already.
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
_WATCHING: set[int] = set()  # processes that do


def end_with_loop() -> None:
    """In a worker: end when the process of the loop has, also while we wait for rows.

    PyTorch's worker looks for it between batches only. One that is left has the sockets of its rank's group, as it was
    forked with them: the other ranks would learn of the end of that rank when the patience with our owner ends.
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
    """In a worker: an error of ours reaches the loop with all that it knows.

    PyTorch sends the class of an error and a text with where it happened, and makes it anew of these. So the class that
    it sends knows the rest; the text, which has causes and notes, becomes a note.
    """
    try:
        yield
    except Exception as error:  # of ours alone; when the interpreter ends, their class may be gone before a generator
        if isinstance(error, HanseError) and _in_worker():
            known = {name: value for name, value in vars(error).items() if name != "__notes__"}
            with suppress(Exception):  # of what cannot be pickled: the loop would wait for it without end
                pickle.dumps((error.args, known))
                error.__class__ = _with_facts(type(error), error.args, known)
        raise


def raise_unpicklable() -> None:
    """In a worker, before its first batch: one that cannot be pickled is an error in the loop.

    The queue pickles in a thread of its own, prints what goes wrong there, and goes on with the next: the loop would
    end with fewer rows, or wait without end.
    """
    if _in_worker() and (queue := _queue_to_the_loop()) is not None:
        queue._on_queue_feeder_error = partial(_send_error, queue)  # which Python has for this, for itself


def _queue_to_the_loop() -> Any:
    """By its name in PyTorch's and torchdata's loop of a worker, which calls us; None where somebody else does."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_name != "_worker_loop":
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get("data_queue")


def _send_error(queue: Any, error: Exception, batch: object) -> None:
    queue.put(_UnpicklableBatch(f"{type(error).__name__}: {error}"))


class _UnpicklableBatch:
    """Is an error where it is unpickled."""

    def __init__(self, why: str) -> None:
        self._why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise_unpicklable, (self._why,)


def _raise_unpicklable(why: str) -> Any:
    raise BadInput(
        f"expected a batch that can be pickled, from the worker to the loop; got one that cannot ({why}). Let form "
        "and collate_fn give tensors and plain values, or read with num_workers=0"
    )


def _in_worker() -> bool:
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


class _FactsClass(type):
    """The class of one error, which is pickled by what it knows."""

    known: tuple[type[HanseError], tuple[Any, ...], dict[str, Any]]


def _with_facts(kind: type[HanseError], args: tuple[Any, ...], known: dict[str, Any]) -> Any:
    def begin(self: Any, text: str) -> None:  # not as its kind does, which may want other words
        self.args = args
        vars(self).update(known)
        self.add_note(text)

    own = {"__init__": begin, "__module__": kind.__module__, "known": (kind, args, known)}
    return _FactsClass(kind.__name__, (kind,), own)


copyreg.pickle(_FactsClass, lambda own: (_with_facts, own.known))
