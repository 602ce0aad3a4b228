"""Some rows of one relation, range after range, each batch with the cursor after its last row. Runs in a worker.

The SQL is run anew for each range over a view of nothing but its rows, so the policy in it holds as it does for the
whole, and row groups outside the range are never decoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from connector.datasets.sources import Rows, divisible
from connector.datasets.splits import Place, seal
from connector.query import engine, scan
from connector.query.job import Job, Range, Ranges, Relation

Part = tuple[pa.RecordBatch, str]  # and what its metadata says of its place


def read(
    con: Any, job: Job, only: Ranges, paths: Sequence[str], left: list[Range] | None = None
) -> tuple[pa.Schema, Iterator[Part]]:
    """The schema of the answer without the column of positions, and its batches as they come.

    `left`: the ranges to read, of those in `only`; what is read goes from it, so that another call can go on there.
    """
    name, relation = next((name, one) for name, one in job.relations.items() if one.blob is None)
    target, left = job.batch_bytes, list(only.ranges) if left is None else left

    def attached(one: Range) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        rows = Rows(one.file, one.first, one.stop, only.position)
        divisible(relation.kind).attach_rows(con, name, paths, relation.options, rows)
        answer = engine.query(con, job.sql, job.params)
        size = engine.rows_of(answer, relation.row_bytes, target=target)
        size = size if job.batch_rows is None else max(1, min(size, job.batch_rows))
        if _fast(job, relation):
            schema = engine.schema_of(answer)
            if scan.faster(schema, paths, relation.kind):
                return schema, scan.rows_between(paths[one.file], schema, one.first, one.stop, rows=size, target=target)
        return engine.batches(answer, rows=size, target=target, exact=job.batch_rows is not None)

    schema, batches = attached(left[0])
    shown = schema.remove(len(schema) - 1) if only.position else schema
    return shown, _parts(batches, left, attached, only)


def _fast(job: Job, relation: Relation) -> bool:
    return bool(job.scan) and job.batch_rows is None and relation.kind == "parquet"


def _parts(
    batches: Iterator[pa.RecordBatch],
    left: list[Range],
    attached: Callable[[Range], tuple[pa.Schema, Iterator[pa.RecordBatch]]],
    only: Ranges,
) -> Iterator[Part]:
    key = bytes.fromhex(only.key)
    while left:
        one = left[0]
        for batch, row in _placed(one, batches, only):
            left[0] = replace(one, first=row + 1)
            at = json.dumps({"block": one.block, "cursor": seal(Place(one.file, row), key)}) if key else ""
            yield batch, at
        left.pop(0)
        batches = attached(left[0])[1] if left else batches


def _placed(one: Range, batches: Iterator[pa.RecordBatch], only: Ranges) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Batches with the numbers of their last rows: counted, or by the column of positions, which goes."""
    row = one.first - 1
    for batch in batches:
        if not batch.num_rows:
            continue
        if only.position:
            last = batch.num_columns - 1
            row = batch.column(last)[-1].as_py()
            batch = batch.remove_column(last)
        else:
            row += batch.num_rows
        yield batch, row
