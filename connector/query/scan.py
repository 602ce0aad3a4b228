"""The fast way for rows that are sent as they are: Parquet pages straight to Arrow, without the engine.

pyarrow takes less processor time than the engine for blobs, and more for all else (data-plane, section 1.3, found
otherwise for floats: there the engine had not been let work ahead). So this way is for rows with blobs, and only where
the files' types are the very types of the answer: nobody can tell which way it came. Runs in a worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack

import pyarrow as pa
import pyarrow.parquet as pq

from connector.query.engine import cut, gather, plain, plain_schema

_FILES_MAX = 256
_GROUP_MAX = 128 * 2**20  # a row group is read whole


def faster(schema: pa.Schema, paths: Sequence[str], kind: str) -> bool:
    """Whether these files may and should be read the fast way to give `schema`."""
    if kind != "parquet" or not 0 < len(paths) <= _FILES_MAX or any("." in name for name in schema.names):
        return False
    if len(set(schema.names)) < len(schema.names):
        return False
    return any(pa.types.is_binary(field.type) for field in schema) and all(_fits(schema, path) for path in paths)


def batches(
    paths: Sequence[str], schema: pa.Schema, *, rows: int, target: int, threads: bool = False
) -> Iterator[pa.RecordBatch]:
    """The rows of the files in order, in batches of at most `rows`, near `target` bytes."""
    return gather(_cut_all(paths, schema, rows, target, threads), at_least=target // 4)


def rows_between(
    path: str, schema: pa.Schema, first: int, stop: int, *, rows: int, target: int
) -> Iterator[pa.RecordBatch]:
    """Rows `first` to `stop` of one file; groups that hold none of them are passed over."""
    return gather(_cut_between(path, schema, first, stop, rows, target), at_least=target // 4)


def _cut_between(
    path: str, schema: pa.Schema, first: int, stop: int, rows: int, target: int
) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if start < stop and first < end:
                for batch in file.iter_batches(rows, row_groups=[group], columns=schema.names, use_threads=False):
                    skip, most = max(0, first - start), min(batch.num_rows, stop - start)
                    if skip < most:
                        part = batch.slice(skip, most - skip).select(schema.names)
                        yield from cut(plain(part, schema), target)
                    start += batch.num_rows
            start = end


def _cut_all(
    paths: Sequence[str], schema: pa.Schema, rows: int, target: int, threads: bool
) -> Iterator[pa.RecordBatch]:
    for path in paths:
        with ExitStack() as stack:
            file = stack.enter_context(pq.ParquetFile(path))
            for group in range(file.num_row_groups):  # all at once would keep all of them
                for batch in file.iter_batches(rows, row_groups=[group], columns=schema.names, use_threads=threads):
                    yield from cut(plain(batch.select(schema.names), schema), target)


def _fits(schema: pa.Schema, path: str) -> bool:
    """The very types, in row groups that may be held."""
    footer = pq.read_metadata(path)
    found = plain_schema(footer.schema.to_arrow_schema())
    same = all(found.get_field_index(one.name) >= 0 and found.field(one.name).type == one.type for one in schema)
    sizes = (footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    return same and max(sizes, default=0) <= _GROUP_MAX
