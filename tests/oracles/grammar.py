"""What the grammars of random SQL share: choices from one seed, columns that can be named, the order of an answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


class Grammar:
    """Choices from one seed."""

    def __init__(self, seed: int | str) -> None:
        self.rng = random.Random(seed)

    def pick(self, values: Sequence[T]) -> T:
        return self.rng.choice(values)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share


@dataclass(frozen=True, slots=True)
class Out:
    """A column that can be named, and its kind."""

    sql: str
    kind: str


def is_ordered(sql: str) -> bool:
    """Whether the whole answer has an order: the last ORDER BY is in no parentheses."""
    _, found, after = sql.rpartition(" ORDER BY ")
    return bool(found) and after.count("(") == after.count(")")
