"""Rows in even pieces: the same tables, to the byte, whatever batches the rows came in."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest
from hanse.errors import Broken
from hanse.loaders.even import even, rows_of
from hanse.plan import Block, Plan
from hypothesis import given
from hypothesis import strategies as st

ROWS = 50
TABLE = pa.table(
    {
        "id": pa.array(range(ROWS)),
        "some": pa.array([None if 11 < row < 17 else row / 2 for row in range(ROWS)]),
        "text": pa.array(["" if row % 7 else "æ" * row for row in range(ROWS)]),
        "list": pa.array([[None, row] * (row % 3) if row % 5 else None for row in range(ROWS)], pa.list_(pa.int8())),
        "pair": pa.array([{"at": None if row == 40 else row, "no": None} for row in range(ROWS)]),
        "word": pa.array([f"w{row % 3}" for row in range(ROWS)]).dictionary_encode(),
    }
)
CUTS = st.lists(st.integers(0, ROWS), max_size=12)


def cut(at: list[int]) -> list[pa.RecordBatch]:
    """The rows in batches that end there, some of none, each in memory of its own and as a slice by turns."""
    ends = [0, *sorted(at), ROWS]
    parts = [TABLE.slice(start, end - start) for start, end in pairwise(ends)]
    whole = TABLE.combine_chunks().to_batches()[0]
    return [
        whole.slice(start, part.num_rows) if number % 2 else pa.Table.from_pylist(part.to_pylist(), TABLE.schema)
        .combine_chunks().to_batches()[0] if part.num_rows else whole.slice(start, 0)
        for number, (start, part) in enumerate(zip(ends, parts, strict=False))
    ]  # fmt: skip


@given(CUTS, CUTS, st.integers(1, ROWS + 3))
def test_pieces_are_the_same_to_the_byte(one: list[int], other: list[int], rows: int) -> None:
    first, second = list(even(cut(one), rows)), list(even(cut(other), rows))
    assert [piece.num_rows for piece in first] == [min(rows, ROWS - start) for start in range(0, ROWS, rows)]
    assert pa.concat_tables(first).to_pylist() == TABLE.to_pylist()
    plain = TABLE.column_names[:-1]  # words may be numbered in the order in which they came
    assert [piece.select(plain).nbytes for piece in first] == [piece.select(plain).nbytes for piece in second]
    assert [piece.to_pylist() for piece in first] == [piece.to_pylist() for piece in second]


PLANS = [([Block(1000, 16 * 2**20)], 500), ([Block(0, 0)], 1), ([], 1), ([Block(1, 2**30)], 1), ([Block(9, 1)], 32768)]


@pytest.mark.parametrize(("blocks", "rows"), PLANS, ids=["even", "none", "no block", "a large one", "tiny"])
def test_a_piece_is_of_eight_mebibytes_before_conditions(blocks: list[Block], rows: int) -> None:
    plan = Plan("s", "d", TABLE.schema, tuple(blocks), rows=sum(block.rows for block in blocks), exact=True)
    assert rows_of(plan, range(len(blocks))) == rows


def test_a_piece_that_is_far_larger_than_planned_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hanse.loaders.even._BYTES_MAX", 500)
    with pytest.raises(Broken, match="at most 500 bytes in 1000 rows"):
        list(even(TABLE.to_batches(), 1000))
