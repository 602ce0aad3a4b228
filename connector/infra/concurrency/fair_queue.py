"""Those who wait, each in the line of its name. The lines take turns: nobody's length holds up another's."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lines(Generic[T]):
    """They have no bound here; whoever adds to them looks at their length first."""

    def __init__(self) -> None:
        self._lines: OrderedDict[str, deque[T]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def waiting(self, who: str) -> int:
        """How many wait in this one's line."""
        return len(self._lines.get(who, ()))

    def add(self, who: str, one: T) -> None:
        self._lines.setdefault(who, deque()).append(one)

    def remove(self, who: str, one: T) -> bool:
        """Whether it was there still."""
        line = self._lines.get(who)
        if line is None or one not in line:
            return False
        line.remove(one)
        if not line:
            del self._lines[who]
        return True

    def next(self, may: Callable[[str, T], bool] = lambda *_: True) -> tuple[str, T] | None:
        """Take out the first that may go on, of the first line that has one; that line stands behind the others."""
        for who, line in self._lines.items():
            for one in line:
                if may(who, one):
                    self.pass_over(who)
                    self.remove(who, one)
                    return who, one
        return None

    def pass_over(self, who: str) -> None:
        """Have this one's line stand behind the others."""
        if who in self._lines:
            self._lines.move_to_end(who)
