"""What was seen of late, and of how much at most: whoever fills such a memory makes it forget and never grow."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")
_MINUTE = 60.0


def keep(kept: OrderedDict[K, V], key: K, value: V, *, most: int) -> None:
    """Put a value where the newest stands; of more than `most` the oldest goes."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


class Rate:
    """How much each may do a minute, and `burst` at once; remembered of `most` of them."""

    def __init__(self, per_minute: int, *, burst: int, most: int) -> None:
        self._step = _MINUTE / per_minute
        self._burst = burst * self._step
        self._most = most
        self._used: OrderedDict[str, float] = OrderedDict()  # until when the time of each is used

    def wait(self, who: str, now: float, number: int = 1) -> float:
        """Count so many more. Seconds until there is room for them, where nothing was counted for want of it; else 0
        or less."""
        used = max(self._used.get(who, now), now) + number * self._step
        if (wait := used - now - self._burst) <= 0:
            keep(self._used, who, used, most=self._most)
        return wait
