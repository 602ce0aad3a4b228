"""What became of the cases of some seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Outcome:
    """How many cases ended how, and of each that is wrong its seed and what it is. `tell` hears of those at once."""

    ended: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)
    tell: Callable[[str], None] = lambda _: None

    def count(self, *words: str) -> None:
        self.ended.update(words)

    def find(self, seed: int, what: str) -> None:
        """This seed is wrong."""
        self.found.append(f"seed {seed}: {what}")
        self.tell(self.found[-1])

    @property
    def refused(self) -> int:
        return sum(times for word, times in self.ended.items() if word.startswith(("refused", "no dataset")))
