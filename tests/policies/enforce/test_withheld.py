"""The statements about withheld groups: three values, and one sentence for each kind of group."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from policies.enforce.withheld import (
    Withheld,
    WithheldCounts,
    WithheldShare,
    describe_left_out,
    parse_withheld,
    publishable_share,
    sentences,
    strongest,
)

SAID: list[tuple[Any, str]] = [
    (None, "nothing"), (False, "nothing"), (True, "some"),  # earlier versions
    ("nothing", "nothing"), ("possibly", "possibly"), ("some", "some"),
    ("never", "possibly"), ("", "possibly"), (0, "possibly"), ([], "possibly"), ({}, "possibly"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "meant"), SAID, ids=str)
def test_a_peers_word_has_three_meanings_and_what_is_unknown_is_possibly(said: Any, meant: str) -> None:
    assert parse_withheld(said) == meant


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
    assert describe_left_out(min_group, entity, noise=noise) == kind


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


def _tables(most: int, largest: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """How many rows the groups that are shown have, twenty each, and the sizes of those that are left out."""
    for shown in (3, 10, 40):
        for count in range(most):
            for sizes in itertools.combinations_with_replacement(range(1, largest), count):
                yield shown, sizes


def _found(shown: int, sizes: tuple[int, ...]) -> WithheldCounts:
    lost = sum(sizes)
    return WithheldCounts(shown * 20 + lost, lost, shown + len(sizes), len(sizes), max(sizes, default=0))


def test_a_published_share_is_the_same_with_any_one_group_and_without_it() -> None:
    """The attack: who knows all groups but one, and what is shown, tells by the share whether that one is there."""
    published = 0
    for shown, sizes in _tables(7, 6):
        if (share := publishable_share(_found(shown, sizes), min_group=5)) is None:
            continue
        published += 1
        for gone in range(len(sizes)):
            less = publishable_share(_found(shown, sizes[:gone] + sizes[gone + 1 :]), min_group=5)
            assert less in (None, share), (shown, sizes)
        for size in range(1, 5):
            assert publishable_share(_found(shown, (*sizes, size)), min_group=5) in (None, share), (shown, sizes, size)
    assert published > 100


def test_a_published_share_leaves_at_least_three_numbers_of_groups_open() -> None:
    """The attack: who has the table of all groups that are shown counts by the share how many there are beside them."""
    shares: dict[tuple[int, WithheldShare], set[int]] = {}
    for shown, sizes in _tables(7, 3):
        found = _found(shown, sizes)
        if (share := publishable_share(found, min_group=5)) is None:
            continue
        shares.setdefault((shown, share), set())
        for beside in range(len(sizes) + 2):
            other = _found(shown, (1,) * beside)
            if other.groups_lost * 100 // max(1, other.groups) // 10 * 10 == share.groups:
                shares[shown, share].add(beside)
    assert shares
    assert all(len(open_) >= (2 if share.groups == 0 else 3) for (_, share), open_ in shares.items())


def test_a_share_that_one_group_decides_is_not_published() -> None:
    assert publishable_share(_found(40, ()), min_group=5) == WithheldShare(0, 0)  # as where one or two are left out
    assert publishable_share(_found(40, (4, 4)), min_group=5) == WithheldShare(0, 0)
    # One large group makes the share of rows.
    assert publishable_share(WithheldCounts(1000, 400, 50, 7, 350), min_group=5) is None
    assert publishable_share(WithheldCounts(1000, 60, 20, 2, 4), min_group=5) is None  # one fewer is below a tenth
    assert publishable_share(WithheldCounts(1000, 150, 100, 35, 4), min_group=5) == WithheldShare(10, 30)
    assert publishable_share(WithheldCounts(0, 0, 0, 0, 0), min_group=5) is None


def test_a_share_is_said_in_words() -> None:
    assert WithheldShare(10, 0).sentence("north") == (
        "north reports that its groups leave out 10 to 20 per cent of all its rows "
        "and 0 to 10 per cent of all its groups"
    )
