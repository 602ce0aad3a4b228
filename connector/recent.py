"""What was seen of late, and of how much at most: whoever fills such a memory makes it forget and never grow."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def keep(kept: OrderedDict[K, V], key: K, value: V, *, most: int) -> None:
    """Put a value where the newest stands; of more than `most` the oldest goes."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
