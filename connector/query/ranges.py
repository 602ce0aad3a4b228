"""Some rows of one relation, range after range, each batch with the cursor after its last row. Runs in a worker.

The SQL is run anew for each range over a view of nothing but its rows, so the policy in it holds as it does for the
whole, and row groups outside the range are never decoded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from connector.datasets.sources import Rows, divisible
from connector.datasets.splits import Place, seal
from connector.query import engine, scan
from connector.query.job import Job, Range, Ranges, Relation

Part = tuple[pa.RecordBatch, str]  # and what its metadata says of its place


def read(con: Any, job: Job, only: Ranges, paths: Sequence[str]) -> tuple[pa.Schema, Iterator[Part]]:
    """The schema of the answer without the column of positions, and its batches as they come."""
    name, relation = next((name, one) for name, one in job.relations.items() if one.blob is None)
    target = job.batch_bytes

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

    first, *others = only.ranges
    schema, batches = attached(first)
    shown = schema.remove(len(schema) - 1) if only.position else schema
    return shown, _parts(first, batches, others, attached, only)


def _fast(job: Job, relation: Relation) -> bool:
    return bool(job.scan) and job.batch_rows is None and relation.kind == "parquet"


def _parts(
    first: Range,
    batches: Iterator[pa.RecordBatch],
    others: Sequence[Range],
    attached: Callable[[Range], tuple[pa.Schema, Iterator[pa.RecordBatch]]],
    only: Ranges,
) -> Iterator[Part]:
    yield from _placed(first, batches, only)
    for one in others:
        yield from _placed(one, attached(one)[1], only)


def _placed(one: Range, batches: Iterator[pa.RecordBatch], only: Ranges) -> Iterator[Part]:
    """Batches with the places of their last rows: counted, or by the column of positions, which goes."""
    key, row = bytes.fromhex(only.key), one.first - 1
    for batch in batches:
        if not batch.num_rows:
            continue
        if only.position:
            last = batch.num_columns - 1
            row = batch.column(last)[-1].as_py()
            batch = batch.remove_column(last)
        else:
            row += batch.num_rows
        yield batch, json.dumps({"block": one.block, "cursor": seal(Place(one.file, row), key)})
