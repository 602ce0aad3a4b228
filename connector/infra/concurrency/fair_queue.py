"""Round-robin queue: one FIFO per key, keys served in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class FairQueue(Generic[T]):
    """A queue without a limit of its own: callers check its length before they add."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def waiting(self, key: str) -> int:
        """The number of items queued under a key."""
        return len(self._lines.get(key, ()))

    def add(self, key: str, item: T) -> None:
        """Append an item to the queue of its key."""
        self._lines.setdefault(key, deque()).append(item)

    def remove(self, key: str, item: T) -> bool:
        """Remove an item; False if it is no longer queued."""
        line = self._lines.get(key)
        if line is None or item not in line:
            return False
        line.remove(item)
        if not line:
            del self._lines[key]
        return True

    def pop_next(self, may: Callable[[str, T], bool] = lambda *_: True) -> tuple[str, T] | None:
        """Remove and return the first item that `may` accepts; its key moves to the end of the turn.

        None if `may` accepts no item.
        """
        for key, line in self._lines.items():
            for item in line:
                if may(key, item):
                    self.move_to_end(key)
                    self.remove(key, item)
                    return key, item
        return None

    def move_to_end(self, key: str) -> None:
        """Let all other keys have their turn before this one."""
        if key in self._lines:
            self._lines.move_to_end(key)
