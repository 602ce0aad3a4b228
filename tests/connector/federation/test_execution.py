"""How a question's answers are given to the engine that merges them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connector.engine.pool.protocol import Relation
from connector.federation.execution import Work
from connector.federation.owner_client import OwnerAnswer

MB = 2**20


@pytest.mark.parametrize(
    ("sizes", "once", "taken"),
    [
        ((20, 44), "", "loaded loaded"),  # a quarter of the room
        ((20, 45), "", " "),  # more, together
        ((65,), "f0", ""),
        ((20, 24), "f0 f1", "loaded held"),  # the largest
        ((20, 25), "f0 f1", "loaded loaded"),  # more than may be held
        ((24, 20), "f1", "loaded loaded"),  # the largest meets itself
        ((9, 0, 15), "f0 f1 f2", "loaded loaded held"),
    ],
)
def test_answers_are_taken_in_by_their_size_in_memory(sizes: tuple[int, ...], once: str, taken: str) -> None:
    answers = [
        OwnerAnswer(_of(number), Path("f"), nbytes=1, size=size * MB)  # however small they came
        for number, size in enumerate(sizes)
    ]
    assert _taken(answers, once) == taken.split(" ")


def test_all_shares_of_a_table_are_taken_in_alike() -> None:
    shares = [_of(0, table="f0"), _of(1, table="f1"), _of(2, table="f1")]
    answers = [OwnerAnswer(one, Path("f"), size=size * MB) for one, size in zip(shares, (10, 9, 9), strict=True)]
    assert _taken(answers, "f0 f1") == ["loaded", "held", "held"]
    answers[2] = OwnerAnswer(shares[2], None)  # its owner gave nothing
    assert _taken(answers, "f0 f1") == ["held", "loaded"]


def test_an_answer_that_nobody_has_read_counts_as_what_came() -> None:
    answers = [
        OwnerAnswer(_of(0), Path("f"), nbytes=3),
        OwnerAnswer(_of(1), Path("f"), nbytes=4),
        OwnerAnswer(_of(2), Path("f")),
    ]
    assert _taken(answers, "f0 f1 f2") == ["loaded", "held", "loaded"]


def _of(number: int, table: str = "") -> Any:
    return SimpleNamespace(id=f"s{number}", table=table or f"f{number}")


def _taken(answers: list[OwnerAnswer], once: str) -> list[str]:
    relations = {answer.fragment.id: Relation("") for answer in answers if answer.file is not None}
    plan: Any = SimpleNamespace(once=frozenset(once.split()), fragments=[answer.fragment for answer in answers])
    work: Any = SimpleNamespace(means=SimpleNamespace(memory_mb=128, temp_mb=256), answers=answers)
    return [one.taken for one in Work._load_relations(work, relations, plan).values()]
