"""The fast way for rows that are sent as they are: Parquet pages straight to Arrow, without the engine.

pyarrow takes less processor time than the engine for blobs, and more for all else (data-plane, section 1.3, found
otherwise for floats: there the engine had not been let work ahead). So this way is for rows with blobs, and only where
the files' types are the very types of the answer: nobody can tell which way it came. Runs in a worker.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import pyarrow as pa
import pyarrow.parquet as pq

from connector.query.engine import cut, gather, plain, plain_schema
from connector.query.stored import File, Stored

_Part = tuple[bool, pa.RecordBatch]
_ALL = 2**62
FILES_MAX = 256
GROUP_MAX = 128 * 2**20  # a row group is read whole


def faster(schema: pa.Schema, paths: Sequence[str], kind: str) -> bool:
    """Whether these files may and should be read the fast way to give `schema`."""
    if kind != "parquet" or not 0 < len(paths) <= FILES_MAX or any("." in name for name in schema.names):
        return False
    if len(set(schema.names)) < len(schema.names):
        return False
    return any(pa.types.is_binary(field.type) for field in schema) and all(_fits(schema, path) for path in paths)


def batches(
    paths: Sequence[str],
    schema: pa.Schema,
    *,
    rows: int,
    target: int,
    threads: bool = False,
    stored: Stored | None = None,
) -> Iterator[pa.RecordBatch]:
    """The rows of the files in order, in batches of at most `rows`, near `target` bytes. Where `stored` is given,
    values may be left in the files: such batches are for `Frames` alone."""
    how = _How(schema, rows, target, threads=threads, stored=stored)
    return _joined((part for path in paths for part in _cut(path, 0, _ALL, how)), at_least=target // 4)


def rows_between(
    path: str, schema: pa.Schema, first: int, stop: int, *, rows: int, target: int, stored: Stored | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows `first` to `stop` of one file; groups that hold none of them are passed over."""
    how = _How(schema, rows, target, stored=stored)
    return _joined(_cut(path, first, stop, how), at_least=target // 4)


@dataclass(frozen=True, slots=True)
class _How:
    schema: pa.Schema
    rows: int
    target: int
    threads: bool = field(default=False, kw_only=True)
    stored: Stored | None = field(default=None, kw_only=True)


def _joined(found: Iterator[_Part], *, at_least: int) -> Iterator[pa.RecordBatch]:
    """The batches; those that are too small joined, where their values are in memory."""
    for left, parts in groupby(found, key=itemgetter(0)):
        together = (batch for _, batch in parts)
        yield from together if left else gather(together, at_least=at_least)


def _cut(path: str, first: int, stop: int, how: _How) -> Iterator[_Part]:
    """Rows `first` to `stop` in batches that are not too large, each with whether it has values that were left in the
    file."""
    with pq.ParquetFile(path) as file:
        source, start = None if how.stored is None else File(path), 0
        for group in range(file.num_row_groups):  # all at once would keep all of them
            end = start + file.metadata.row_group(group).num_rows
            if start < stop and first < end:
                left = _left(file, group, source, how)
                for batch in _decoded(file, group, left, how):
                    skip, most = max(0, first - start), min(batch.num_rows, stop - start)
                    if skip < most:
                        for piece in cut(batch.slice(skip, most - skip), how.target):
                            yield bool(left), piece
                    start += batch.num_rows
            start = end


def _left(file: pq.ParquetFile, group: int, source: File | None, how: _How) -> Mapping[str, pa.Array]:
    """What stands for the columns of a row group whose values stay in the file."""
    if how.stored is None or source is None:
        return {}
    blobs = [one.name for one in how.schema if one.type == pa.binary()]
    return how.stored.columns(source, file.metadata, group, blobs, at_least=how.target // 4)


def _decoded(file: pq.ParquetFile, group: int, left: Mapping[str, pa.Array], how: _How) -> Iterator[pa.RecordBatch]:
    """A row group, all of it but what was left in the file."""
    schema = pa.schema([one for one in how.schema if one.name not in left])
    start = 0
    for batch in file.iter_batches(how.rows, row_groups=[group], columns=schema.names, use_threads=how.threads):
        there = plain(batch.select(schema.names), schema)
        if left:
            stop = start + batch.num_rows
            columns = [left[one][start:stop] if one in left else there.column(one) for one in how.schema.names]
            there, start = pa.RecordBatch.from_arrays(columns, schema=how.schema), stop
        yield there


def _fits(schema: pa.Schema, path: str) -> bool:
    """The very types, in row groups that may be held."""
    footer = pq.read_metadata(path)
    found = plain_schema(footer.schema.to_arrow_schema())
    same = all(found.get_field_index(one.name) >= 0 and found.field(one.name).type == one.type for one in schema)
    sizes = (footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    return same and max(sizes, default=0) <= GROUP_MAX
