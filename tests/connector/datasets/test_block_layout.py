"""Blocks of a version, and cursors: pure, so by tables and properties."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.datasets import block_layout
from connector.datasets.block_layout import Place, RowBlock
from connector.errors import Invalid

KEY = block_layout.cursor_key(b"s" * 32, consumer="did:web:lab.example", snapshot="sha256:aa/1", shown="[]")
MB = 2**20
GROUPS = st.lists(st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(0, 10**9)), max_size=8), max_size=6)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ([], []),
        ([[(10, 100)]], [RowBlock(0, 0, 10, 100)]),
        ([[(50_000, 5), (50_000, 5), (50_000, 5)]], [RowBlock(0, 0, 100_000, 10), RowBlock(0, 100_000, 50_000, 5)]),
        ([[(122_880, 9)], [(122_880, 9)]], [RowBlock(0, 0, 122_880, 9), RowBlock(1, 0, 122_880, 9)]),
        ([[(1_500_000, 30)]], [RowBlock(0, 0, 750_000, 15), RowBlock(0, 750_000, 750_000, 15)]),
        ([[], [(7, 7)]], [RowBlock(1, 0, 7, 7)]),
        ([[(200, 40 * MB)] * 3], [RowBlock(0, 0, 400, 80 * MB), RowBlock(0, 400, 200, 40 * MB)]),
        ([[(0, 70 * MB), (9, 1), (9, 1)]], [RowBlock(0, 0, 9, 70 * MB + 1), RowBlock(0, 9, 9, 1)]),
    ],
    ids=[
        "nothing",
        "one small",
        "small groups are joined",
        "files stay apart",
        "a huge group is cut",
        "an empty file",
        "large values",
        "bytes without rows",
    ],
)
def test_row_groups_become_blocks(files: list[list[tuple[int, int]]], expected: list[RowBlock]) -> None:
    assert list(block_layout.cut(files)) == expected


@given(GROUPS)
def test_blocks_hold_every_row_once_and_are_never_huge(files: list[list[tuple[int, int]]]) -> None:
    blocks = block_layout.cut(files)
    for number, groups in enumerate(files):
        own = [block for block in blocks if block.file == number]
        at = 0
        for block in own:
            assert block.first == at
            assert 0 < block.rows <= block_layout.ROWS_MAX
            at += block.rows
        assert at == sum(rows for rows, _ in groups)
        assert all(one.rows >= block_layout.ROWS_MIN or one.nbytes >= block_layout.BYTES_MIN for one in own[:-1])


@given(st.integers(0, 4095), st.integers(0, 2**48))
def test_a_cursor_gives_its_place_back_and_never_looks_the_same_twice(file: int, row: int) -> None:
    text = block_layout.seal(Place(file, row), KEY)
    assert block_layout.unseal(text, KEY) == Place(file, row)
    assert block_layout.seal(Place(file, row), KEY) != text


@pytest.mark.parametrize("changed", [0, 25, 60, -1])
def test_a_changed_cursor_is_refused(changed: int) -> None:
    text = block_layout.seal(Place(3, 77), KEY)
    letters = list(text)
    letters[changed] = "0" if letters[changed] != "0" else "1"
    with pytest.raises(Invalid):
        block_layout.unseal("".join(letters), KEY)


@pytest.mark.parametrize("text", ["", "00", "zz" * 40, "0" * 80, "é" * 80])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        block_layout.unseal(text, KEY)


@pytest.mark.parametrize(
    ("consumer", "snapshot", "shown"),
    [
        ("did:web:other", "sha256:aa/1", "[]"),
        ("did:web:lab.example", "b/1", "[]"),
        ("did:web:lab.example", "sha256:aa/1", "[1]"),
    ],
)
def test_a_cursor_is_good_for_its_consumer_snapshot_and_view_only(consumer: str, snapshot: str, shown: str) -> None:
    other = block_layout.cursor_key(b"s" * 32, consumer=consumer, snapshot=snapshot, shown=shown)
    with pytest.raises(Invalid):
        block_layout.unseal(block_layout.seal(Place(1, 2), KEY), other)
