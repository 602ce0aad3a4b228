"""A value that is loaded when it is needed and kept for some seconds, for what notebooks ask for at each key."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class ShortCache(Generic[T]):
    """One value. It is loaded again once it is older than `seconds`; a failed load is not kept."""

    def __init__(self, *, seconds: float, now: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._now = seconds, now
        self._kept: tuple[float, T] | None = None

    def get(self, load: Callable[[], T]) -> T:
        """Return the value; `load` returns a new one. Raises: what `load` raises."""
        if self._kept is None or self._now() - self._kept[0] > self._seconds:
            self._kept = None
            self._kept = self._now(), load()
        return self._kept[1]

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle it empty: another machine has another clock."""
        return partial(ShortCache, seconds=self._seconds, now=self._now), ()
