"""Some rows of one relation, range after range, each batch with the cursor after its last row. Runs in a worker.

The SQL is run anew for each range over a view of nothing but its rows, so the policy in it holds as it does for the
whole, and row groups outside the range are never decoded.
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

_Placed = tuple[pa.RecordBatch, int]  # and the number of its last row
_Between = Callable[[Any, Range], Iterator[pa.RecordBatch]]  # the batches of a range, over a connection


class RangeBatch(NamedTuple):
    """A batch, the metadata that gives its place, and the block that it belongs to."""

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
    """The schema of the answer without the column of positions, and its batches as they come.

    With several connections to the engine as many ranges are read at once, each in a thread of its own.
    Close what gives the batches before the connections: its threads work in them.
    `left`: the ranges to read, of those in `only`; what is read goes from it, so that another call can go on there.
    `folder`: for what lies on the disk meanwhile. `crowded`: as in `parquet_scan.faster`.
    """
    left = list(only.ranges) if left is None else left
    asking = _Asking(cons, job, only, paths, tuple(left), folder=folder)
    answer = asking.first
    rows = duckdb_engine.rows_of(answer, asking.relation.row_bytes, target=job.batch_bytes)
    rows = rows if job.batch_rows is None else max(1, min(rows, job.batch_rows))
    if (fast := _fast(job, asking.relation, answer, paths, crowded=crowded)) is not None:
        schema, coming = fast, asking.straight(fast, rows)
    else:
        schema, coming = asking.answers(rows)
    shown = schema.remove(len(schema) - 1) if only.position else schema
    return shown, _parts(coming, left, only)


class _Asking:
    """Ranges of the one relation of a job that is in files, and the engine's answers to its SQL over each of them."""

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
        self._binding = threading.Lock()  # the connections have one view, of the range that was attached last
        self.first = self._answered(cons[0], todo[0])  # bound, and not begun

    def straight(self, schema: pa.Schema, rows: int) -> Generator[Iterator[_Placed]]:
        """The batches of each range, from the pages of its file."""
        if parquet_scan.numbers(schema):
            return self._numbers(schema, rows)

        def between(_: Any, one: Range) -> Iterator[pa.RecordBatch]:
            path, target = self._paths[one.file], self._job.batch_bytes
            return parquet_scan.rows_between(path, schema, one.first, one.stop, rows=rows, target=target)

        return self._at_once(between)

    def answers(self, rows: int) -> tuple[pa.Schema, Generator[Iterator[_Placed]]]:
        """The schema, and the batches of each range as the engine gives them."""
        schema, first = self._decoded(self.first, rows)

        def between(con: Any, one: Range) -> Iterator[pa.RecordBatch]:
            if one is self._todo[0]:
                return first
            with self._binding:
                return self._decoded(self._answered(con, one), rows)[1]

        return schema, self._at_once(between)

    def _answered(self, con: Any, one: Range) -> Any:
        rows = RowRange(one.file, one.first, one.stop, self._only.position)
        divisible_source(self.relation.kind).attach_rows(con, self._name, self._paths, self.relation.options, rows)
        return duckdb_engine.query(con, self._job.sql, self._job.params)

    def _decoded(self, answer: Any, rows: int) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        job, target = self._job, self._job.batch_bytes
        aside, exact = wide_tables.aside(job, self._folder, answer.columns), job.batch_rows is not None
        return duckdb_engine.batches(answer, rows=rows, target=target, exact=exact, even=job.even, aside=aside)

    def _at_once(self, between: _Between) -> Generator[Iterator[_Placed]]:
        """With a thread for each of several connections."""

        def every(number: int) -> Generator[Iterator[_Placed]]:
            for one in self._todo[number :: len(self._cons)]:
                yield _placed(one, between(self._cons[number], one), self._only)

        if len(self._cons) == 1:
            return every(0)
        makers = [partial(every, number) for number in range(len(self._cons))]
        return run_in_turns(makers, stop=partial(duckdb_engine.interrupt, self._cons))

    def _numbers(self, schema: pa.Schema, rows: int) -> Generator[Iterator[_Placed]]:
        """Of numbers alone the row groups are made ahead, across ranges."""
        wanted = ((self._paths[one.file], one.first, one.stop) for one in self._todo)
        job = self._job
        found = parquet_scan.spans(wanted, schema, rows=rows, target=job.batch_bytes, threads=job.limits.threads > 1)
        with closing(found):
            for one, batches in zip(self._todo, found, strict=True):
                yield _placed(one, batches, self._only)


def _fast(job: Job, relation: Relation, answer: Any, paths: Sequence[str], *, crowded: bool) -> pa.Schema | None:
    """The schema of an answer that is read faster without the engine, the same for all ranges; None for others."""
    if not job.scan or job.batch_rows is not None or relation.kind != "parquet":
        return None
    schema = duckdb_engine.schema_of(answer)
    return schema if parquet_scan.faster(schema, paths, relation.kind, crowded=crowded) else None


def _parts(coming: Generator[Iterator[_Placed]], left: list[Range], only: Ranges) -> Generator[RangeBatch]:
    key = bytes.fromhex(only.key)
    with closing(coming):
        for batches in coming:
            one = left[0]
            for batch, row in batches:
                left[0] = replace(one, first=row + 1)
                at = json.dumps({"block": one.block, "cursor": seal(Place(one.file, row), key)}) if key else ""
                yield RangeBatch(batch, at, one.block)
            left.pop(0)


def _placed(one: Range, batches: Iterator[pa.RecordBatch], only: Ranges) -> Iterator[_Placed]:
    """Batches with the numbers of their last rows: counted, or by the column of positions, which goes."""
    row = one.first - 1
    for batch in batches:
        if not batch.num_rows:
            continue
        if only.position:
            last = batch.num_columns - 1
            row = _last(batch.column(last), after=row, stop=one.stop)
            batch = batch.remove_column(last)
        else:
            row += batch.num_rows
        yield batch, row


def _last(numbers: pa.Array, *, after: int, stop: int) -> int:
    """The last of the numbers of a batch's rows. A cursor stands for all rows before it: were the engine to give them
    in another order, reading on after it would lose some and double others, so the read ends here."""
    first, last = numbers[0].as_py(), numbers[-1].as_py()
    if not after < first <= last < stop or not pc.all(pc.greater(numbers[1:], numbers[:-1]), min_count=0).as_py():
        raise Coded("engine_failed")
    return int(last)
