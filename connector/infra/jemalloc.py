"""What the engine's allocator (jemalloc) has been given back and still holds, and giving it back to the kernel.

Runs in a worker, whose settings (`pool`) let it have one arena: what one thread has freed, every other can take.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from typing import Any

REUSED_MB = 192  # no more is held from one job to the next
_ALL = 4096  # stands for every arena (jemalloc, MALLCTL_ARENAS_ALL)


def unused() -> int:
    """Bytes that were freed, and that the engine takes first when it wants some; 0 where nobody can say.

    Pages that were set aside and never touched are among them: as much as that may not be in memory.
    """
    control, epoch = _control(), ctypes.c_uint64(1)
    if control is None:
        return 0
    control(b"epoch", None, None, ctypes.byref(epoch), ctypes.sizeof(epoch))  # figures are of the last one
    return _figure(b"stats.arenas.%d.pdirty" % _ALL) * _page()


def give_back() -> None:
    """Let go of it."""
    control = _control()
    if control is not None:
        control(b"arena.%d.purge" % _ALL, None, None, None, 0)


@cache
def _control() -> Any:
    """jemalloc's `mallctl` in the engine's library; None where it was built without."""
    found = importlib.util.find_spec("_duckdb")
    if found is None or found.origin is None:
        return None
    control = getattr(ctypes.CDLL(found.origin), "duckdb_je_mallctl", None)
    if control is not None:
        control.argtypes = [ctypes.c_char_p, *[ctypes.c_void_p] * 3, ctypes.c_size_t]
    return control


@cache
def _page() -> int:
    """jemalloc's own page, in bytes."""
    return _figure(b"arenas.page")


def _figure(name: bytes) -> int:
    """One of jemalloc's sizes; 0 where it is not counted."""
    found = ctypes.c_size_t()
    length = ctypes.c_size_t(ctypes.sizeof(found))
    failed = _control()(name, ctypes.byref(found), ctypes.byref(length), None, 0)
    return 0 if failed else found.value
