"""How a question's answers are given to the engine that merges them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connector.query.job import Relation
from connector.query.remote import Answered
from connector.query.work import Work

MB = 2**20


@pytest.mark.parametrize(
    ("sizes", "loaded"),
    [((20, 44), True), ((20, 45), False), ((65,), False)],
    ids=["a quarter", "more together", "more in one"],
)
def test_answers_are_taken_in_up_to_a_quarter_of_the_room_by_their_size_in_memory(
    sizes: tuple[int, ...], loaded: bool
) -> None:
    nobody: Any = None
    answers = [Answered(nobody, Path("f"), nbytes=1, size=size * MB) for size in sizes]  # however small they came
    relations = {f"f{number}": Relation("") for number in range(len(sizes))}
    work: Any = SimpleNamespace(means=SimpleNamespace(memory_mb=128, temp_mb=256))
    found = Work._loaded(work, relations, answers)
    assert [one.loaded for one in found.values()] == [loaded] * len(sizes)
