"""An error of ours on its way from a DataLoader's worker to the loop. Loads no PyTorch, which a worker has already."""

from __future__ import annotations

import copyreg
import pickle
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hanse.errors import HanseError


@contextmanager
def told_whole() -> Iterator[None]:
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
                error.__class__ = _knowing(type(error), error.args, known)
        raise


def _in_worker() -> bool:
    data = sys.modules.get("torch.utils.data")
    return data is not None and data.get_worker_info() is not None


class _Knowing(type):
    """The class of one error, which is pickled by what it knows."""

    known: tuple[type[HanseError], tuple[Any, ...], dict[str, Any]]


def _knowing(kind: type[HanseError], args: tuple[Any, ...], known: dict[str, Any]) -> Any:
    def begin(self: Any, text: str) -> None:  # not as its kind does, which may want other words
        self.args = args
        vars(self).update(known)
        self.add_note(text)

    own = {"__init__": begin, "__module__": kind.__module__, "known": (kind, args, known)}
    return _Knowing(kind.__name__, (kind,), own)


copyreg.pickle(_Knowing, lambda own: (_knowing, own.known))
