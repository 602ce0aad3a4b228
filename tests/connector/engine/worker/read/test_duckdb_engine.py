"""What the engine is asked for, and what is made of its answers."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from connector.engine.worker.read import batching, duckdb_engine

TABLE = pa.table({"id": range(1000), "name": [f"name-{number:03}" for number in range(1000)]})


class Answer:
    """A relation with these rows."""

    asked = 0

    def to_arrow_reader(self, rows: int) -> Any:
        self.asked = rows
        return TABLE.to_reader(max_chunksize=rows)


@pytest.mark.parametrize("rows", [1, 7, 256, 600])
def test_batches_of_few_rows_are_cut_from_larger_ones(rows: int) -> None:
    """The engine works ahead by the bytes of values: batches of one number each would take gigabytes."""
    answer = Answer()
    _, batches = duckdb_engine.batches(answer, rows=rows, target=2**20, exact=True)
    found = list(batches)
    assert pa.Table.from_batches(found).equals(TABLE)
    assert [one.num_rows for one in found] == [min(rows, 1000 - start) for start in range(0, 1000, rows)]
    assert answer.asked >= 256


@pytest.mark.parametrize(
    ("width", "expected"), [(8, 262_144), (1000, 2048), (60_000, 256), (800_000, 20), (5_000_000, 3), (10**9, 1)]
)
def test_a_batch_has_few_rows_where_their_values_are_large(width: float, expected: int) -> None:
    """Some hundreds of scans of five megabytes each are more than a job may have."""
    assert batching.rows_for(width, 3 * 2**20) == expected


def test_nothing_of_the_next_rows_lies_behind_a_batch() -> None:
    """A writer would pad it with them, and a quota may keep them from leaving."""
    _, batches = duckdb_engine.batches(Answer(), rows=7, target=2**20, exact=True)
    assert [one.column("name").buffers()[2].size for one in batches] == [7 * 8] * 142 + [6 * 8]


def test_arrow_that_finds_no_memory_is_a_limit_and_no_failure() -> None:
    """As it reads a batch for the engine, or maps one: whoever asks for less has an answer."""

    def batches() -> Iterator[pa.RecordBatch]:
        yield from TABLE.to_batches()
        raise pa.ArrowMemoryError("malloc of size 120018752 failed")

    con = duckdb_engine.connect()
    con.register("r_0", pa.RecordBatchReader.from_batches(TABLE.schema, batches()))
    with pytest.raises(OSError, match="Out of memory") as raised:
        con.sql("SELECT * FROM r_0").to_arrow_reader(100).read_all()
    con.register("t", pa.RecordBatchReader.from_batches(TABLE.schema, batches()))
    with pytest.raises(duckdb.InvalidInputException, match="Out of memory") as by_the_engine:
        con.sql("SELECT count(id) FROM t").fetchall()
    for error in (raised.value, by_the_engine.value, OSError(errno.ENOMEM, "Cannot allocate memory")):
        assert duckdb_engine.code_of(error, asked=True) == "memory_limit"
