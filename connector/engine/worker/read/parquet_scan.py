"""Reads unchanged rows from Parquet with pyarrow, without the engine, where that is faster. Runs in a worker.

pyarrow takes less processor time than the engine for blobs, and for numbers if it decodes a whole row group at once,
in a thread while the previous one is sent. For texts and decimals it takes more. So it reads
rows with blobs and rows of numbers only, and only where the files have exactly the answer's types: the rows are equal
either way.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import accumulate, chain, groupby, pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from connector.datasets.block_layout import ROWS_MAX
from connector.engine.pool.error_codes import Coded
from connector.engine.worker.read.batching import cut, fixed_width, gather, plain, plain_schema

_Span = tuple[str, int, int]  # a file, and its rows from one to another
_ALL = 2**62
FILES_MAX = 256
GROUP_MAX = 128 * 2**20  # a row group is read whole
_AT_ONCE = 16  # columns
_COLUMN = 2**13  # bytes that Arrow takes for a column in addition to its values
_LEAST = 4  # bytes of a whole number in Parquet
_MADE_MAX = 32 * 2**20  # bytes of the numbers of a row group: one is sent while another is decoded
_KNOWN: dict[tuple[Any, ...], bool] = {}  # the last results of `_fits`
_KNOWN_MAX = 256


def is_faster(schema: pa.Schema, paths: Sequence[str], kind: str, *, crowded: bool = False) -> bool:
    """Whether pyarrow may read these files for `schema` and is faster.

    `crowded`: more scans run than can work at once, so each would drop row groups that it has decoded.
    """
    if kind != "parquet" or not 0 < len(paths) <= FILES_MAX or any("." in name for name in schema.names):
        return False
    if len(set(schema.names)) < len(schema.names):
        return False
    at_once = is_numeric(schema)
    if (at_once and crowded) or not (at_once or any(pa.types.is_binary(field.type) for field in schema)):
        return False
    return all(_is_known_to_fit(schema, path, at_once=at_once) for path in paths)


def is_numeric(schema: pa.Schema) -> bool:
    """Whether all columns are numbers: then whole row groups are decoded, one while another is sent."""
    return bool(schema.names) and all(_is_number(kind) for kind in schema.types)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_date(kind))


def batches(
    paths: Sequence[str], schema: pa.Schema, *, rows: int, target: int, threads: bool = False
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of the files in order, in batches of at most `rows` rows and near `target` bytes."""
    every = [(path, 0, _ALL) for path in paths]
    if is_numeric(schema):
        return chain.from_iterable(spans(every, schema, rows=rows, target=target, threads=threads))
    found = (piece for span in every for piece in _cut(span, schema, rows, target, threads=threads))
    return gather(found, at_least=target // 4)


def rows_between(
    path: str, schema: pa.Schema, first: int, stop: int, *, rows: int, target: int
) -> Iterator[pa.RecordBatch]:
    """Yield rows `first` to `stop` of one file. Row groups without any of them are not decoded."""
    return gather(_cut((path, first, stop), schema, rows, target), at_least=target // 4)


def spans(
    wanted: Iterable[_Span], schema: pa.Schema, *, rows: int, target: int, threads: bool
) -> Generator[Iterator[pa.RecordBatch]]:
    """Yield for each span its rows in batches of at most `rows` rows and near `target` bytes; for `is_numeric` schemas.

    Read each span to its end before asking for the next. Takes the memory of two decoded row groups and an encoded one.
    """
    made, width = _make_tables(_pieces(wanted), schema.names, threads=threads), fixed_width(schema)
    with closing(made):
        for _, tables in groupby(made, key=itemgetter(0)):
            found = (batch for _, table in tables for batch in _to_schema(table, schema).to_batches(rows))
            pieces = (piece for batch in found for piece in cut(batch, target, width=width))
            yield gather(pieces, at_least=target // 4, width=width)


def _to_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table in the order and with the exact types of `schema`."""
    ordered = table.select(schema.names)
    return ordered if ordered.schema == schema else ordered.cast(schema)


class _Piece(NamedTuple):
    """Rows of a row group that belong to a span. A span without rows has one piece, with group -1."""

    span: int
    file: pq.ParquetFile
    group: int
    first: int
    stop: int


def _pieces(wanted: Iterable[_Span]) -> Iterator[_Piece]:
    opened = ""
    for number, (path, first, stop) in enumerate(wanted):
        if path != opened:
            file, opened = pq.ParquetFile(path, pre_buffer=False), path
            groups = _groups(file)
        found = _groups_with(groups, first, stop)
        for group, start, end in found:
            yield _Piece(number, file, group, max(0, first - start), min(end, stop) - start)
        if not found:
            yield _Piece(number, file, -1, 0, 0)


def _groups(file: pq.ParquetFile) -> list[tuple[int, int]]:
    """Return where in the file the rows of each row group begin and end."""
    sizes = (file.metadata.row_group(group).num_rows for group in range(file.num_row_groups))
    return list(pairwise([0, *accumulate(sizes)]))


def _groups_with(groups: Sequence[tuple[int, int]], first: int, stop: int) -> list[tuple[int, int, int]]:
    """Return the row groups with any of these rows: number, first row and end."""
    return [(group, start, end) for group, (start, end) in enumerate(groups) if start < stop and first < end]


def _make_tables(pieces: Iterator[_Piece], columns: Sequence[str], *, threads: bool) -> Generator[tuple[int, pa.Table]]:
    """Yield each piece as a table, with its span. The next one is decoded meanwhile."""

    def make(one: _Piece) -> pa.Table:
        if one.group < 0:
            return one.file.schema_arrow.empty_table().select(columns)
        return _read_group(one.file, one.group, columns, threads=threads).slice(one.first, one.stop - one.first)

    coming: deque[tuple[int, Future[pa.Table]]] = deque()
    thread = ThreadPoolExecutor(1)
    try:
        for one in pieces:
            coming.append((one.span, thread.submit(make, one)))
            if len(coming) > 1:
                yield _take_result(coming)
        while coming:
            yield _take_result(coming)
    finally:
        thread.shutdown(cancel_futures=True)


def _read_group(file: pq.ParquetFile, group: int, columns: Sequence[str], *, threads: bool) -> pa.Table:
    """Return a row group. One thread decodes a few columns at a time: encoded pages are held until a call ends."""
    at_once = len(columns) if threads else _AT_ONCE
    some = [list(columns[at : at + at_once]) for at in range(0, len(columns), at_once)]
    tables = [file.read_row_group(group, columns=names, use_threads=threads) for names in some]
    rows = file.metadata.row_group(group).num_rows
    if any(table.num_rows != rows for table in tables):  # cursors count on it
        raise Coded("engine_failed")
    fields = [one for table in tables for one in table.schema]
    return pa.table([column for table in tables for column in table.columns], schema=pa.schema(fields))


def _take_result(coming: deque[tuple[int, Future[pa.Table]]]) -> tuple[int, pa.Table]:
    """Return the first result, and keep no reference to it."""
    span, table = coming.popleft()
    return span, table.result()


def _cut(span: _Span, schema: pa.Schema, rows: int, target: int, *, threads: bool = False) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a span in batches that are not too large.

    Each row group has an iterator of its own: one over all of them would hold all.
    """
    path, first, stop = span
    with pq.ParquetFile(path) as file:
        for group, start, _ in _groups_with(_groups(file), first, stop):
            at = start
            for batch in file.iter_batches(rows, row_groups=[group], columns=schema.names, use_threads=threads):
                skip, most = max(0, first - at), min(batch.num_rows, stop - at)
                if skip < most:
                    yield from cut(plain(batch.select(schema.names), schema).slice(skip, most - skip), target)
                at += batch.num_rows


def _is_known_to_fit(schema: pa.Schema, path: str, *, at_once: bool) -> bool:
    """Return `_fits`, computed once for each file: it takes milliseconds for many columns and row groups."""
    try:
        found = os.stat(path)
    except OSError:  # the engine reports what is wrong with it
        return False
    key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, schema.serialize().to_pybytes(), at_once
    if (fits := _KNOWN.get(key)) is None:
        fits = _KNOWN[key] = _fits(schema, path, at_once=at_once)
        for oldest in tuple(_KNOWN)[:-_KNOWN_MAX]:
            _KNOWN.pop(oldest, None)
    return fits


def _fits(schema: pa.Schema, path: str, *, at_once: bool) -> bool:
    """Whether a file has exactly these types, in small row groups and encodings that Arrow and engine read alike."""
    try:
        footer = pq.read_metadata(path)
        found = plain_schema(footer.schema.to_arrow_schema())
    except (ValueError, NotImplementedError, OSError):  # what Arrow does not know, such as types of other columns
        return False
    if not all(found.get_field_index(one.name) >= 0 and found.field(one.name).type == one.type for one in schema):
        return False
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    if max((group.total_byte_size for group in groups), default=0) > GROUP_MAX:
        return False
    paths = [footer.schema.column(number).path for number in range(footer.num_columns)]
    if at_once and not (_is_decoded_whole(schema, groups) and _has_no_prefix_clash(schema.names, paths)):
        return False
    wanted = set(schema.names)
    leaves = [number for number, one in enumerate(paths) if one.split(".", 1)[0] in wanted]
    repeats = {number: footer.schema.column(number).max_repetition_level for number in leaves}
    padded = footer.created_by.startswith("DuckDB")
    return all(
        _is_read_alike(group.column(number), group.num_rows, repeats[number], padded=padded)
        for group in groups
        for number in leaves
    )


def _is_decoded_whole(schema: pa.Schema, groups: Sequence[Any]) -> bool:
    """Whether row groups are small enough to be decoded whole. A block must not be a part of one."""
    rows = max((group.num_rows for group in groups), default=0)
    size = rows * sum(map(_decoding_bytes, schema.types)) + len(schema.names) * _COLUMN
    return rows <= ROWS_MAX and size <= _MADE_MAX


def _decoding_bytes(kind: pa.DataType) -> int:
    """Return the bytes for decoding a value: Parquet stores small whole numbers as 32 bits, which Arrow narrows."""
    width = int(kind.bit_width) // 8
    return width if width >= _LEAST else width + _LEAST


def _has_no_prefix_clash(names: Sequence[str], paths: Sequence[str]) -> bool:
    """Whether no other column's name begins with one of these and a dot: Arrow would read it too."""
    wanted = set(names)
    return not any(one not in wanted and one.split(".", 1)[0] in wanted for one in paths)


def _is_read_alike(chunk: Any, rows: int, repeats: int, *, padded: bool) -> bool:
    """Whether Arrow and the engine read a column chunk alike.

    1. A flat column has a value for each row: otherwise the engine reports corruption, and Arrow returns what is there.
    2. No delta encoding of whole numbers, which the engine writes wider than Arrow reads.
    3. No NULL in place of a fixed-size array if those are `padded`: the engine writes a NULL for each of its values,
       Arrow expects a single one.
    """
    if (not repeats and chunk.num_values != rows) or "DELTA_BINARY_PACKED" in chunk.encodings:  # 1, 2
        return False
    return not (padded and repeats and _may_have_null_arrays(chunk, rows, repeats))  # 3


def _may_have_null_arrays(chunk: Any, rows: int, repeats: int) -> bool:
    """Whether there may be nulls in fixed-size arrays. In a file these are lists, one a row or nested in lists."""
    found = chunk.statistics
    if found is not None and found.has_null_count and not found.null_count:
        return False
    return repeats > 1 or not rows or chunk.num_values % rows == 0
