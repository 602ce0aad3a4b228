"""Order, shares and states: pure, so by tables and properties."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
from hanse.errors import BadInput
from hanse.loaders.epoch_order import EpochProgress, Mark, Order, ReaderShare, from_state, merge, merge_shares, to_state
from hypothesis import given
from hypothesis import strategies as st

ROWS = 5  # of a block, in the model below


def test_the_permutation_of_a_seed_is_the_same_for_ever() -> None:
    # Another result here would make every checkpoint that exists worthless: raise the version of states instead.
    assert Order("i", 8, 7, 0).permutation() == [0, 5, 3, 7, 4, 6, 1, 2]
    assert Order("i", 8, 7, 1).permutation() == [1, 3, 7, 6, 5, 4, 0, 2]
    assert Order("i", 8).permutation() == list(range(8))
    assert Order("i", 8, 7, 0, 4).within(3, 0, 4) == [2, 3, 1, 0]
    assert Order("i", 8, 7, 0).within(3, 0, 4) is None


@given(st.integers(0, 300), st.integers(0, 2**32), st.integers(0, 100))
def test_every_block_stands_once_in_every_epoch(blocks: int, seed: int, epoch: int) -> None:
    assert sorted(Order("i", blocks, seed, epoch).permutation()) == list(range(blocks))


@given(st.integers(0, 60), st.integers(1, 12))
def test_any_number_of_readers_share_an_epoch_without_gap_or_overlap(blocks: int, parts: int) -> None:
    shares = [ReaderShare(part=part, parts=parts).places(blocks) for part in range(parts)]
    assert sorted(place for share in shares for place, _ in share) == list(range(blocks))
    assert all([place for place, _ in share] == sorted(place for place, _ in share) for share in shares)


def read(share: ReaderShare, blocks: int, rows: int) -> tuple[list[tuple[int, int]], ReaderShare]:
    """A model reader: takes `rows` rows of its share, and where it is then."""
    taken: list[tuple[int, int]] = []
    after = share
    for done, (place, mark) in enumerate(share.places(blocks)):
        for row in range(mark.row, ROWS):
            if len(taken) == rows:
                return taken, after
            taken.append((place, row))
            after = share.at(done, Mark(row + 1))
    return taken, after


@given(st.integers(0, 2**32), st.integers(1, 25), st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_changing_the_number_of_readers_again_and_again_gives_every_row_once_in_order(
    seed: int, blocks: int, phases: list[int]
) -> None:
    chance = random.Random(seed)
    order, base = Order("i", blocks, seed), EpochProgress()
    taken: list[tuple[int, int]] = []
    for number, parts in enumerate(phases):
        last = number == len(phases) - 1
        states = []
        for part in range(parts):
            found, after = read(ReaderShare(base, part, parts), blocks, 10**9 if last else chance.randrange(3 * ROWS))
            assert found == sorted(found)  # a part of the sequence, in its order
            taken += found
            states.append(json.loads(json.dumps(to_state(order, after))))
        state = merge({"ranks": states})
        base = from_state(state)[1]  # type: ignore[assignment]  # merged states are of an epoch
    assert sorted(taken) == [(place, row) for place in range(blocks) for row in range(ROWS)]


def test_a_second_resume_goes_on_where_the_first_ended() -> None:
    order, share = Order("i", 6, 1), ReaderShare(part=1, parts=2)
    taken: list[tuple[int, int]] = []
    while found := read(share, 6, 4)[0]:
        taken += found
        share = read(share, 6, 4)[1]
        restored = from_state(json.loads(json.dumps(to_state(order, share))))[1]
        assert restored == share
    assert taken == [(place, row) for place in (1, 3, 5) for row in range(ROWS)]


def test_states_that_do_not_belong_together_are_not_merged() -> None:
    order = Order("i", 6, 1)
    one, two = (to_state(order, ReaderShare(part=part, parts=2)) for part in (0, 1))
    other = to_state(Order("i", 6, 2), ReaderShare(part=1, parts=2))
    for states, said in (
        ([one], r"missing: \[1\]"),
        ([one, one], r"missing: \[1\]"),
        ([one, other], "different"),
        ([], r"found none in \[\]"),
        ([{}], r"found none in \[{}\]"),
        (None, "found none in None"),
    ):
        with pytest.raises(BadInput, match=said):
            merge(states)
    assert merge([two, one]) == merge({"a": {"deep": (one, two)}})


@pytest.mark.parametrize("name", ["seed", "epoch", "window"])
def test_a_state_of_a_number_that_is_none_is_refused(name: str) -> None:
    """7.0 is equal to 7, and of another order."""
    state = to_state(Order("i", 6, 7), ReaderShare())
    with pytest.raises(BadInput, match=f"expected {name} to be a whole number, got 7.0"):
        merge([state | {name: 7.0}])
    assert json.dumps(merge([state | {name: np.int64(7)}])) == json.dumps(merge([state | {name: 7}]))


@pytest.mark.parametrize(
    ("state", "came"),
    [
        ({}, "one without 'hanse'"),
        ({"hanse": 1, "identity": "i"}, "one without 'seed'"),
        ({"hanse": 2}, "another form: version 2"),
        (to_state(Order("i", 6), ReaderShare()) | {"base": None}, "another form: "),
        (to_state(Order("i", 6), ReaderShare()) | {"base": {"below": 0, "open": []}}, "another form: "),
        (None, "None"),
        ("x", "'x'"),
    ],
    ids=["empty", "cut", "newer", "other base", "other places", "none", "text"],
)
def test_what_is_no_state_is_refused(state: Any, came: str) -> None:
    with pytest.raises(BadInput, match=f"expected a state that state_dict.. gave, got {came}"):
        from_state(state)


TAKEN = to_state(Order("i", 6, 7, window=4), ReaderShare(part=1, parts=2, done=1, mark=Mark(8, 3, "c", 6)))
OPEN = {"row": 4, "emitted": 0, "cursor": "", "cursor_row": 0}


@pytest.mark.parametrize(
    "damage",
    [
        {"done": -1}, {"done": 3}, {"done": 1.9}, {"done": "1"}, {"done": True}, {"part": -1}, {"part": 2},
        {"parts": 0}, {"parts": 2.0}, {"ended": 1}, {"kind": "shares"}, {"identity": None}, {"shown": 5},
        {"blocks": -6}, {"window": -1}, {"window": 3},
        {"base": []}, {"base": {"below": 7, "open": {}}}, {"base": {"below": -3, "open": {}}},
        {"base": {"below": 2.0, "open": {}}}, {"base": {"below": 2, "open": {"2": OPEN}}},
        {"base": {"below": 2, "open": {"-1": OPEN}}}, {"base": {"below": 2, "open": {"01": OPEN}}},
        {"base": {"below": 2, "open": {"x": OPEN}}}, {"base": {"below": 2, "open": {"1": 4}}},
        {"base": {"below": 6, "open": {"1": OPEN}}}, {"mark": 8}, {"mark": {"row": 8}},
    ],
    ids=str,
)  # fmt: skip
def test_a_state_with_a_field_that_none_has_is_refused(damage: dict[str, Any]) -> None:
    """Rows would be left out or doubled, or it would fail in the middle."""
    assert from_state(TAKEN)[1] == ReaderShare(part=1, parts=2, done=1, mark=Mark(8, 3, "c", 6))
    with pytest.raises(BadInput, match="expected "):
        from_state(TAKEN | damage)


@pytest.mark.parametrize(
    "damage",
    [{"row": -4}, {"row": "8"}, {"row": 9}, {"row": None}, {"emitted": 5}, {"emitted": -1}, {"cursor": 5},
     {"cursor": None}, {"cursor": ""}, {"cursor": "\ud800"}, {"cursor_row": 9}, {"cursor_row": -1},
     {"cursor_row": 6.0}],
    ids=ascii,
)  # fmt: skip
def test_a_state_with_a_mark_that_none_has_is_refused(damage: dict[str, Any]) -> None:
    mark = TAKEN["mark"] | damage
    for state in (TAKEN | {"mark": mark}, TAKEN | {"base": {"below": 2, "open": {"1": mark}}}):
        with pytest.raises(BadInput, match="expected "):
            from_state(state)


def test_merging_keeps_only_what_is_open() -> None:
    order = Order("i", 1000, 3)
    shares = [ReaderShare(part=part, parts=4, done=100, mark=Mark(3, 0, "c", 2)) for part in range(4)]
    progress = merge_shares(order, shares)
    assert progress.below == 404
    assert set(progress.open) == {400, 401, 402, 403}
