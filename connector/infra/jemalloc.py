"""Reads and purges the memory that DuckDB's allocator (jemalloc) holds after it was freed.

Runs inside a worker process. The pool gives workers a single arena, so that a thread can reuse what another freed.
"""

from __future__ import annotations

import ctypes
import importlib.util
from functools import cache
from typing import Any

REUSED_MB = 192  # held between two jobs at most
_ALL = 4096  # stands for every arena (jemalloc, MALLCTL_ARENAS_ALL)


def count_unused_bytes() -> int:
    """Bytes that were freed and that DuckDB reuses first; 0 if jemalloc's figures are not available.

    The figure includes pages that were reserved and never touched, so less than this may be resident.
    """
    control, epoch = _control(), ctypes.c_uint64(1)
    if control is None:
        return 0
    control(b"epoch", None, None, ctypes.byref(epoch), ctypes.sizeof(epoch))  # figures are of the last epoch
    return _read_figure(b"stats.arenas.%d.pdirty" % _ALL) * _page_bytes()


def purge() -> None:
    """Return unused memory to the kernel."""
    control = _control()
    if control is not None:
        control(b"arena.%d.purge" % _ALL, None, None, None, 0)


@cache
def _control() -> Any:
    """jemalloc's `mallctl` in DuckDB's library; None if it was built without jemalloc."""
    found = importlib.util.find_spec("_duckdb")
    if found is None or found.origin is None:
        return None
    control = getattr(ctypes.CDLL(found.origin), "duckdb_je_mallctl", None)
    if control is not None:
        control.argtypes = [ctypes.c_char_p, *[ctypes.c_void_p] * 3, ctypes.c_size_t]
    return control


@cache
def _page_bytes() -> int:
    """The size of a jemalloc page, which may differ from the kernel's."""
    return _read_figure(b"arenas.page")


def _read_figure(name: bytes) -> int:
    """One of jemalloc's sizes; 0 if it is not counted."""
    figure = ctypes.c_size_t()
    length = ctypes.c_size_t(ctypes.sizeof(figure))
    failed = _control()(name, ctypes.byref(figure), ctypes.byref(length), None, 0)
    return 0 if failed else figure.value
