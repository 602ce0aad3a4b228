"""A bounded map that forgets its oldest entries, and a rate limit per key."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")
_MINUTE = 60.0


def put_recent(kept: OrderedDict[K, V], key: K, value: V, *, most: int) -> None:
    """Store a value as the newest entry; drop the oldest entries beyond `most`."""
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


class RateLimit:
    """A token bucket per key: `per_minute` units on average, `burst` at once, for the `most` latest keys."""

    def __init__(self, per_minute: int, *, burst: int, most: int) -> None:
        self._step = _MINUTE / per_minute
        self._burst = burst * self._step
        self._most = most
        self._used: OrderedDict[str, float] = OrderedDict()  # until when the time of each key is used up

    def wait_seconds(self, key: str, now: float, number: int = 1) -> float:
        """Count `number` more units and return 0 or less; if there is no room, count nothing and return the wait."""
        used = max(self._used.get(key, now), now) + number * self._step
        if (wait := used - now - self._burst) <= 0:
            put_recent(self._used, key, used, most=self._most)
        return wait
