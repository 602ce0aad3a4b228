"""Some rows of one relation, range after range, each batch with the cursor after its last row. Runs in a worker.

The SQL is run anew for each range over a view of nothing but its rows, so the policy in it holds as it does for the
whole, and row groups outside the range are never decoded.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from connector.datasets.sources import Rows, divisible
from connector.datasets.splits import Place, seal
from connector.query import engine, scan, wide
from connector.query.abreast import abreast
from connector.query.codes import Coded
from connector.query.job import Job, Range, Ranges, Relation
from connector.query.placed import Placed
from connector.query.stored import Stored

_Placed = tuple[pa.RecordBatch, int]  # and the number of its last row


class Part(NamedTuple):
    """A batch, what its metadata says of its place, and the block that it is of."""

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
    stored: Stored | None = None,
    placed: Placed | None = None,
    folder: Path | None = None,
    crowded: bool = False,
) -> tuple[pa.Schema, Generator[Part]]:
    """The schema of the answer without the column of positions, and its batches as they come.

    With several connections to the engine as many ranges are read at once, each in a thread of its own.
    Close what gives the batches before the connections: its threads work in them.
    `left`: the ranges to read, of those in `only`; what is read goes from it, so that another call can go on there.
    `stored`: as in `scan.batches`. `placed`: columns that are read after the engine. `folder`: for what lies on the
    disk meanwhile. `crowded`: as in `scan.faster`.
    """
    name, relation = next((name, one) for name, one in job.relations.items() if one.blob is None)
    target, left, binding = job.batch_bytes, list(only.ranges) if left is None else left, threading.Lock()
    todo = tuple(left)

    def answered(con: Any, one: Range) -> Any:
        rows = Rows(one.file, one.first, one.stop, only.position, () if placed is None else placed.names)
        divisible(relation.kind).attach_rows(con, name, paths, relation.options, rows)
        return engine.query(con, job.sql, job.params)

    def decoded(answer: Any) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        if placed is not None:
            return placed.batches(answer, rows=size, target=target)
        aside = wide.aside(job, folder, answer.columns)
        return engine.batches(answer, rows=size, target=target, exact=job.batch_rows is not None, aside=aside)

    answer = answered(cons[0], todo[0])
    size = engine.rows_of(answer, relation.row_bytes, target=target)
    size = size if job.batch_rows is None else max(1, min(size, job.batch_rows))
    fast = _fast(job, relation, answer, paths, crowded=crowded)
    schema, first = (fast, iter(())) if fast else decoded(answer)

    def between(con: Any, one: Range) -> Iterator[pa.RecordBatch]:
        if fast:
            return scan.rows_between(
                paths[one.file], fast, one.first, one.stop, rows=size, target=target, stored=stored
            )
        if one is todo[0]:
            return first
        with binding:  # the connections have one view, whose rows are those of the range that was attached last
            return decoded(answered(con, one))[1]

    def every(number: int) -> Generator[Iterator[_Placed]]:
        """Those that one of the connections reads."""
        for one in todo[number :: len(cons)]:
            yield _placed(one, between(cons[number], one), only)

    def made() -> Generator[Iterator[_Placed]]:
        """All of them, of numbers alone."""
        wanted = ((paths[one.file], one.first, one.stop) for one in todo)
        with closing(scan.spans(wanted, schema, rows=size, target=target, threads=job.limits.threads > 1)) as found:
            for one, batches in zip(todo, found, strict=True):
                yield _placed(one, batches, only)

    if fast and scan.numbers(fast):
        coming = made()
    elif len(cons) == 1:
        coming = every(0)
    else:
        coming = abreast([partial(every, number) for number in range(len(cons))], stop=partial(engine.interrupt, cons))
    shown = schema.remove(len(schema) - 1) if only.position else schema
    return shown, _parts(coming, left, only)


def _fast(job: Job, relation: Relation, answer: Any, paths: Sequence[str], *, crowded: bool) -> pa.Schema | None:
    """The schema of an answer that is read faster without the engine, the same for all ranges; None for others."""
    if not job.scan or job.batch_rows is not None or relation.kind != "parquet":
        return None
    schema = engine.schema_of(answer)
    return schema if scan.faster(schema, paths, relation.kind, crowded=crowded) else None


def _parts(coming: Generator[Iterator[_Placed]], left: list[Range], only: Ranges) -> Generator[Part]:
    key = bytes.fromhex(only.key)
    with closing(coming):
        for batches in coming:
            one = left[0]
            for batch, row in batches:
                left[0] = replace(one, first=row + 1)
                at = json.dumps({"block": one.block, "cursor": seal(Place(one.file, row), key)}) if key else ""
                yield Part(batch, at, one.block)
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
