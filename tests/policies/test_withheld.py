"""What is said of groups that an answer may lack: three values, one sentence for each kind of group."""

from __future__ import annotations

from typing import Any

import pytest

from policies.withheld import Withheld, left_out, sentences, strongest, withheld_of

SAID: list[tuple[Any, str]] = [
    (None, "nothing"), (False, "nothing"), (True, "some"),  # earlier versions
    ("nothing", "nothing"), ("possibly", "possibly"), ("some", "some"),
    ("never", "possibly"), ("", "possibly"), (0, "possibly"), ([], "possibly"), ({}, "possibly"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), SAID, ids=str)
def test_a_peers_word_has_three_meanings_and_what_is_unknown_is_possibly(said: Any, meant: str) -> None:
    assert withheld_of(said) == meant


def test_the_strongest_statement_counts() -> None:
    assert strongest([]) is Withheld.NOTHING
    assert strongest([Withheld.POSSIBLY, Withheld.NOTHING]) is Withheld.POSSIBLY
    assert strongest([Withheld.SOME, Withheld.POSSIBLY]) is Withheld.SOME


KINDS = [
    ((5, "patient", False), "Groups below 5 patients"),
    ((10, None, False), "Groups below 10 rows"),
    ((5, "patient_id", False), "Groups below 5 different patient_id"),
    ((1, "patient", True), "Groups that are small by a noisy count"),
]


@pytest.mark.parametrize(("grid", "kind"), KINDS, ids=[kind for _, kind in KINDS])
def test_a_kind_of_group_is_named_in_words(grid: tuple[int, str | None, bool], kind: str) -> None:
    min_group, entity, noise = grid
    assert left_out(min_group, entity, noise=noise) == kind


ALL = [("north", "Groups below 5 patients"), ("south", "Groups below 5 patients")]


def test_a_sentence_says_which_groups_are_left_out_and_where() -> None:
    more = ": totals and averages may be too low"
    assert sentences(ALL, owners=["north", "south"]) == [f"Groups below 5 patients are left out at each owner{more}"]
    assert sentences(ALL[:1], owners=["north"]) == [f"Groups below 5 patients are left out at north{more}"]
    assert sentences([*ALL, ("west", "")], owners=["north", "south", "west"]) == [
        f"Groups below 5 patients are left out at north, south{more}"
    ]
    assert len(sentences([*ALL, ("west", "Groups below 9 rows")], owners=["north", "south", "west"])) == 2
    assert sentences([("west", "")], owners=["west"]) == []
