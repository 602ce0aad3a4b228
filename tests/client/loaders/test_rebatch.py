"""Rows in even pieces: the same tables, to the byte, whatever batches the rows came in."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
import pytest
from hanse.errors import Broken
from hanse.loaders import rebatch
from hanse.loaders.rebatch import _widths
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


@given(CUTS, CUTS, st.integers(1, 4000), st.integers(1, ROWS + 3))
def test_pieces_are_the_same_to_the_byte(one: list[int], other: list[int], nbytes: int, rows: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rebatch, "_BYTES", nbytes)
        patch.setattr(rebatch, "_ROWS_MAX", rows)
        first, second = list(rebatch.split_evenly(cut(one))), list(rebatch.split_evenly(cut(other)))
    assert pa.concat_tables(first).to_pylist() == TABLE.to_pylist()
    plain = TABLE.column_names[:-1]  # words may be numbered in the order in which they came
    assert [piece.select(plain).nbytes for piece in first] == [piece.select(plain).nbytes for piece in second]
    assert [piece.to_pylist() for piece in first] == [piece.to_pylist() for piece in second]
    assert all(piece.num_rows <= rows for piece in first)
    assert all(piece.slice(0, piece.num_rows - 1).drop("word").nbytes < nbytes for piece in first)


CODES = pa.array([row % 2 for row in range(ROWS)], pa.int8())
KINDS = {
    "lists of texts": pa.array([["a" * row] * 3 if row % 2 else None for row in range(ROWS)]),
    "maps": pa.array([[(str(row), "a" * row)] for row in range(ROWS)], pa.map_(pa.string(), pa.string())),
    "lists of one length": pa.array([["a" * row] * 2 for row in range(ROWS)], pa.list_(pa.string(), 2)),
    "a union": pa.UnionArray.from_sparse(CODES, [TABLE["id"].chunk(0), pa.array(["a" * 50] * ROWS)]),
    "nothing": pa.nulls(ROWS),
}


@pytest.mark.parametrize("column", KINDS.values(), ids=KINDS)
def test_rows_of_every_kind_are_measured_as_they_are(column: pa.Array, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebatch, "_BYTES", 400)
    whole = pa.record_batch([column], ["c"])
    pieces = list(rebatch.split_evenly([whole]))
    assert [row for piece in pieces for row in piece["c"].to_pylist()] == column.to_pylist()
    assert len(pieces) > 1 or pa.types.is_null(column.type)
    for size in (1, 7, 33):
        cuts = (whole.slice(start, size) for start in range(0, ROWS, size))
        assert [piece.num_rows for piece in rebatch.split_evenly(cuts)] == [piece.num_rows for piece in pieces]


def test_what_lies_where_a_value_is_missing_does_not_count() -> None:
    """Whoever put the rows together may have left anything there."""
    texts = pa.array(["a" * 100, "b"])
    empty = pa.StringArray.from_buffers(2, texts.buffers()[1], texts.buffers()[2], pa.py_buffer(b"\x02"))
    assert _widths(empty).tolist() == _widths(pa.array([None, "b"])).tolist()


def test_a_piece_is_of_eight_mebibytes_whatever_was_planned() -> None:
    image = pa.record_batch({"image": pa.array([bytes(100_000)] * 50)})
    before = pa.total_allocated_bytes()
    for piece in rebatch.split_evenly(image for _ in range(20)):
        assert piece.nbytes < rebatch._BYTES + 200_000
        assert pa.total_allocated_bytes() - before < 4 * rebatch._BYTES


def test_what_is_far_more_than_its_rows_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebatch, "_KEPT_MAX", 5_000)
    words = pa.array([str(number) for number in range(200)])
    one = pa.array([0], pa.int32())
    same = pa.record_batch([pa.DictionaryArray.from_arrays(one, words)], ["c"])
    assert len(list(rebatch.split_evenly([same] * 50))) == 1
    others = [pa.array([f"{number}" for number in range(200)]) for _ in range(50)]
    with pytest.raises(Broken, match="at most 5000 bytes for"):
        list(
            rebatch.split_evenly(
                pa.record_batch([pa.DictionaryArray.from_arrays(one, words)], ["c"]) for words in others
            )
        )
