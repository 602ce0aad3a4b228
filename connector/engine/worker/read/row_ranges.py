"""Reads row ranges of one relation; each batch carries the cursor after its last row. Runs in a worker.

The SQL runs once for each range over a view of only its rows, so the policy in it applies as to the whole, and row
groups outside the range are never decoded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from connector.datasets.block_layout import Place, seal
from connector.datasets.sources import RowRange, divisible_source
from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Job, Range, Ranges, Relation
from connector.engine.worker.read import duckdb_engine, parquet_scan, wide_tables
from connector.engine.worker.read.parallel_ranges import run_in_turns

_NumberedBatch = tuple[pa.RecordBatch, int]  # and the number of its last row
_Between = Callable[[Any, Range], Iterator[pa.RecordBatch]]  # the batches of a range, over a connection


class RangeBatch(NamedTuple):
    """A batch, the metadata with its place, and its block."""

    batch: pa.RecordBatch
    at: str = ""
    block: int = -1


def read(
    cons: Sequence[Any],
    job: Job,
    only: Ranges,
    paths: Sequence[str],
    left: list[Range] | None = None,
    *,
    folder: Path | None = None,
    crowded: bool = False,
) -> tuple[pa.Schema, Generator[RangeBatch]]:
    """Return the schema of the answer without the column of positions, and its batches.

    Several connections to the engine read as many ranges at once, each in its own thread. Close the generator before
    the connections: its threads work in them.
    `left`: the ranges of `only` still to read. What was read is removed, so that another call can continue there.
    `folder`: for temporary files. `crowded`: as in `parquet_scan.is_faster`.
    """
    left = list(only.ranges) if left is None else left
    reader = _RangeReader(cons, job, only, paths, tuple(left), folder=folder)
    answer = reader.first
    rows = duckdb_engine.rows_of(answer, reader.relation.row_bytes, target=job.batch_bytes)
    rows = rows if job.batch_rows is None else max(1, min(rows, job.batch_rows))
    if (fast := _find_fast_schema(job, reader.relation, answer, paths, crowded=crowded)) is not None:
        schema, coming = fast, reader.read_with_arrow(fast, rows)
    else:
        schema, coming = reader.read_with_engine(rows)
    shown = schema.remove(len(schema) - 1) if only.position else schema
    return shown, _add_cursors(coming, left, only)


class _RangeReader:
    """Runs a job's SQL over each range of its only relation in files."""

    def __init__(
        self,
        cons: Sequence[Any],
        job: Job,
        only: Ranges,
        paths: Sequence[str],
        todo: Sequence[Range],
        *,
        folder: Path | None,
    ) -> None:
        self._name, self.relation = next((name, one) for name, one in job.relations.items() if one.blob is None)
        self._cons, self._job, self._only, self._paths, self._todo = cons, job, only, paths, todo
        self._folder = folder
        self._binding = threading.Lock()  # all connections share one view, of the range attached last
        self.first = self._bind_range(cons[0], todo[0])  # bound, not started

    def read_with_arrow(self, schema: pa.Schema, rows: int) -> Generator[Iterator[_NumberedBatch]]:
        """Yield the batches of each range, read by pyarrow."""
        if parquet_scan.is_numeric(schema):
            return self._read_numbers(schema, rows)

        def between(_: Any, one: Range) -> Iterator[pa.RecordBatch]:
            path, target = self._paths[one.file], self._job.batch_bytes
            return parquet_scan.rows_between(path, schema, one.first, one.stop, rows=rows, target=target)

        return self._read_ranges(between)

    def read_with_engine(self, rows: int) -> tuple[pa.Schema, Generator[Iterator[_NumberedBatch]]]:
        """Return the schema, and the batches of each range from the engine."""
        schema, first = self._read_answer(self.first, rows)

        def between(con: Any, one: Range) -> Iterator[pa.RecordBatch]:
            if one is self._todo[0]:
                return first
            with self._binding:
                return self._read_answer(self._bind_range(con, one), rows)[1]

        return schema, self._read_ranges(between)

    def _bind_range(self, con: Any, one: Range) -> Any:
        rows = RowRange(one.file, one.first, one.stop, self._only.position)
        divisible_source(self.relation.kind).attach_rows(con, self._name, self._paths, self.relation.options, rows)
        return duckdb_engine.query(con, self._job.sql, self._job.params)

    def _read_answer(self, answer: Any, rows: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        job, target = self._job, self._job.batch_bytes
        aside, exact = wide_tables.aside(job, self._folder, answer.columns), job.batch_rows is not None
        return duckdb_engine.batches(answer, rows=rows, target=target, exact=exact, even=job.even, aside=aside)

    def _read_ranges(self, between: _Between) -> Generator[Iterator[_NumberedBatch]]:
        """Yield the batches of each range; several connections work in a thread each."""

        def every(number: int) -> Generator[Iterator[_NumberedBatch]]:
            for one in self._todo[number :: len(self._cons)]:
                yield _number_batches(one, between(self._cons[number], one), self._only)

        if len(self._cons) == 1:
            return every(0)
        makers = [partial(every, number) for number in range(len(self._cons))]
        return run_in_turns(makers, stop=partial(duckdb_engine.interrupt, self._cons))

    def _read_numbers(self, schema: pa.Schema, rows: int) -> Generator[Iterator[_NumberedBatch]]:
        """Yield the batches of each range of numbers. Row groups are decoded ahead, across ranges."""
        wanted = ((self._paths[one.file], one.first, one.stop) for one in self._todo)
        job = self._job
        found = parquet_scan.spans(wanted, schema, rows=rows, target=job.batch_bytes, threads=job.limits.threads > 1)
        with closing(found):
            for one, batches in zip(self._todo, found, strict=True):
                yield _number_batches(one, batches, self._only)


def _find_fast_schema(
    job: Job, relation: Relation, answer: Any, paths: Sequence[str], *, crowded: bool
) -> pa.Schema | None:
    """Return the schema of an answer that pyarrow reads faster, the same for all ranges, else None."""
    if not job.scan or job.batch_rows is not None or relation.kind != "parquet":
        return None
    schema = duckdb_engine.schema_of(answer)
    return schema if parquet_scan.is_faster(schema, paths, relation.kind, crowded=crowded) else None


def _add_cursors(coming: Generator[Iterator[_NumberedBatch]], left: list[Range], only: Ranges) -> Generator[RangeBatch]:
    key = bytes.fromhex(only.key)
    with closing(coming):
        for batches in coming:
            one = left[0]
            for batch, row in batches:
                left[0] = replace(one, first=row + 1)
                at = json.dumps({"block": one.block, "cursor": seal(Place(one.file, row), key)}) if key else ""
                yield RangeBatch(batch, at, one.block)
            left.pop(0)


def _number_batches(one: Range, batches: Iterator[pa.RecordBatch], only: Ranges) -> Iterator[_NumberedBatch]:
    """Yield batches with the numbers of their last rows, counted or from the column of positions, which is removed."""
    row = one.first - 1
    for batch in batches:
        if not batch.num_rows:
            continue
        if only.position:
            last = batch.num_columns - 1
            row = _last_row(batch.column(last), after=row, stop=one.stop)
            batch = batch.remove_column(last)
        else:
            row += batch.num_rows
        yield batch, row


def _last_row(numbers: pa.Array, *, after: int, stop: int) -> int:
    """Return the last row number of a batch.

    A cursor stands for all rows before it: in another order, reading on after it would lose rows and double others.
    Raises: Coded where the numbers do not rise.
    """
    first, last = numbers[0].as_py(), numbers[-1].as_py()
    if not after < first <= last < stop or not pc.all(pc.greater(numbers[1:], numbers[:-1]), min_count=0).as_py():
        raise Coded("engine_failed")
    return int(last)
