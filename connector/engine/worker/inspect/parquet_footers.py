"""Checks the footers of Parquet files at registration, before anything is decoded, and reads column sizes.

Runs in a worker.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from contextlib import nullcontext
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from connector.datasets.sources import SOURCES, hive
from connector.datasets.sources.source_files import alike
from connector.engine.worker.inspect import arrow_values, file_schemas
from connector.engine.worker.inspect.profile import Reached, Sizes
from connector.engine.worker.read.batching import plain_schema
from connector.engine.worker.read.duckdb_engine import Files
from connector.errors import SourceUnreadable

_READER = 2**16  # bytes that the engine holds for a column beside its values
_UNKNOWN = 2**40
_DELTA_TEXTS = frozenset({"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"})
_FOOTER_MAX = 32 * 2**20  # bytes: each read of the file needs several times as much memory
_SIGNATURE = 28  # bytes: a nonce and a tag (Parquet Modular Encryption, 5.4)
_LOOKED_AT = 512  # bytes of a file that is no Parquet
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def sizes_of(files: Files, *, union: bool = False, folders: bool = False, reached: Reached) -> Sizes:
    """Return the sizes of columns by the footers. `folders`: the files' folders carry columns.

    The files must have one schema, unless `union` joins them by name: then two types are united only where no value
    changes. The codec is checked before anything is decoded, because a small file in Brotli can be a bomb.
    Raises: SourceUnreadable for files that are not read.
    """
    sizes: Counter[str] = Counter()
    held: dict[str, int] = {}
    rows = 0
    first: tuple[str, pa.Schema] | None = None
    parts: dict[tuple[str, ...], tuple[str, pa.DataType]] = {}
    behind: dict[str, pa.DataType] = {}
    coarse: set[str] = set()
    for number, ref in enumerate(files.refs):
        reached("checking", number)
        footer, schema = _footer(files, number)
        first = first or (ref.name, schema)
        _check_footer(footer, ref.name)
        file_schemas.check_types(schema, ref.name, _unread_parquet)
        file_schemas.check_schema(schema, ref.name, like=None if union else first)
        if union:
            file_schemas.check_union(schema, ref.name, parts)
        if folders:
            behind |= _behind(footer, schema, ref.name)
        coarse |= {
            alike(field.name)
            for field in schema
            if pa.timestamp("ms") in map(file_schemas.unzoned, arrow_values.parts(field.type))
        }
        rows += footer.num_rows
        for group in map(footer.row_group, range(footer.num_row_groups)):
            here = _group_sizes(group, ref.name)
            sizes.update({top: size for top, (size, _) in here.items()})
            held |= {top: max(held.get(top, 0), most) for top, (_, most) in here.items()}
    return Sizes({name: size / max(rows, 1) for name, size in sizes.items()}, held, behind, frozenset(coarse))


def _behind(footer: pq.FileMetaData, schema: pa.Schema, name: str) -> dict[str, pa.DataType]:
    """Return the types of the file's own columns that a folder replaces, by `alike`.

    Raises: SourceUnreadable unless such a column has only the folder's value.
    """
    there = {alike(field.name): field.type for field in schema}
    folders = {column: text for column, text in hive.partitions(name).items() if alike(column) in there}
    for column, text in folders.items():
        if footer.num_rows and not _has_only(footer, column, unquote(text)):
            raise SourceUnreadable(
                "expected folders of columns that the files do not have, or have with the folder's value only, came "
                f"{column}={text} beside a column of that name in {name!r}; rename one of them",
                code="columns_repeated",
                file=name,
            )
    return {alike(column): there[alike(column)] for column in folders}


def _has_only(footer: pq.FileMetaData, column: str, text: str) -> bool:
    """Whether every row of a column has the value with this text, by the footer."""
    groups = map(footer.row_group, range(footer.num_row_groups))
    chunks = (chunk for group in groups for chunk in map(group.column, range(group.num_columns)))
    told = [chunk.statistics for chunk in chunks if alike(chunk.path_in_schema) == alike(column)]
    whole = all(one is not None and one.has_min_max and one.has_null_count and not one.null_count for one in told)
    return whole and {str(end) for one in told for end in (one.min, one.max)} == {text}


def _group_sizes(group: pq.RowGroupMetaData, name: str) -> dict[str, tuple[int, int]]:
    """Return for each top-level column of a row group its bytes, and the bytes held while it is read."""
    found: dict[str, tuple[int, int]] = {}
    for chunk in map(group.column, range(group.num_columns)):
        if chunk.compression.upper() not in ("UNCOMPRESSED", "SNAPPY", "ZSTD", "LZ4", "LZ4_RAW", "GZIP"):
            raise SourceUnreadable(
                f"expected Parquet with zstd, snappy, lz4, gzip or no compression, came {chunk.compression} "
                f"in {name!r}; write the file again with zstd",
                code="codec_refused",
                file=name,
            )
        if chunk.physical_type == "FIXED_LEN_BYTE_ARRAY" and "BYTE_STREAM_SPLIT" in chunk.encodings:
            raise SourceUnreadable(
                "expected binary values, decimals and halves of fixed length in another encoding than "
                f"BYTE_STREAM_SPLIT, came {chunk.path_in_schema} in {name!r}; write it again without that encoding",
                code="codec_refused",
                file=name,
            )
        top, size = chunk.path_in_schema.split(".", 1)[0], chunk.total_uncompressed_size
        # Texts that begin alike are longer than their pages, and their lengths may take no room there: the
        # factor is unknown. Each text of a dictionary takes 16 bytes in memory, and 4 or more in the page.
        looked_up = chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"
        read = _UNKNOWN if not _DELTA_TEXTS.isdisjoint(chunk.encodings) else size * (5 if looked_up else 1)
        most = read + chunk.total_compressed_size + _READER
        before, held = found.get(top, (0, 0))
        found[top] = before + size, held + most
    return found


def _unread_parquet(kind: pa.DataType) -> bool:
    """Whether a type is a decimal that the engine would round to DOUBLE."""
    return bool(pa.types.is_decimal(kind)) and kind.precision > 38


def _footer(files: Files, number: int) -> tuple[pq.FileMetaData, pa.Schema]:
    """Return a file's footer, and its schema as the engine reads it: encodings written out, INT96 as microseconds."""
    opened, name = files.open(number), files.refs[number].name
    try:
        with pq.ParquetFile(opened, coerce_int96_timestamp_unit="us") as file:
            footer, schema = file.metadata, plain_schema(file.schema_arrow).remove_metadata()
        signed = _is_signed(opened, footer)
    except (pa.ArrowException, OSError) as error:
        files.check_unchanged()  # where it did change, or its store does not give it, that is why
        came, todo = _other_than_parquet(opened)
        if files.refs[number].etag:
            todo = "write it as Parquet, as which alone objects in a store are read"
        raise _not_parquet(name, came, todo) from error
    if signed:
        raise _not_parquet(name, "one with encrypted columns", "write it again without encryption")
    return footer, schema


def _not_parquet(name: str, came: str, todo: str) -> SourceUnreadable:
    return SourceUnreadable(
        "expected a Parquet file that is not encrypted and has no whole numbers of more than 64 bits, came "
        f"{came}: {name!r}; {todo}",
        code="not_parquet",
        file=name,
    )


def _is_signed(opened: Any, footer: pq.FileMetaData) -> bool:
    """Whether a footer is signed: then some columns are encrypted.

    Arrow's reader does not report that, and ends the process when such a column is read.
    """
    with _bytes_of(opened) as file:
        file.seek(-8, os.SEEK_END)
        (size,) = struct.unpack("<I", file.read(4))
    return bool(size == footer.serialized_size + _SIGNATURE)


def _bytes_of(opened: Any) -> Any:
    """Return an opened file as a Python file."""
    return open(opened, "rb") if isinstance(opened, str) else nullcontext(opened)


def _other_than_parquet(opened: Any) -> tuple[str, str]:
    """Return what a file that is no Parquet looks like, and what its owner can do."""
    again = "write it again, or name the kind that it is of"
    try:
        with _bytes_of(opened) as file:
            file.seek(0)
            start = bytes(file.read(_LOOKED_AT))
    except (pa.ArrowException, OSError, ValueError):
        return "something else or a damaged one", again
    if not start:
        return "an empty file", "write it again"
    if start.startswith(b"PK\x03\x04"):
        return "an Excel workbook (.xlsx) or another archive", "save its table as CSV and register that"
    if start.startswith(b"ARROW1"):
        return "an Arrow file", "name its kind, as by --kind arrow_ipc"
    if start.startswith(b"\x1f\x8b"):
        return "a compressed file", "unpack it, or name its kind where that is text (--kind csv or jsonl, named .gz)"
    if start.startswith(b"PAR"):
        return "a damaged or encrypted one, or one with such numbers", "write it again"
    if not _BINARY.search(start):
        return "text", f"{again} (--kind csv or jsonl)"
    return "something else or a damaged one", f"{again} ({', '.join(SOURCES)})"


def _check_footer(footer: pq.FileMetaData, name: str) -> None:
    if footer.serialized_size > _FOOTER_MAX:
        raise SourceUnreadable(
            f"expected a Parquet file whose footer has at most {_FOOTER_MAX >> 20} MB, came one of "
            f"{footer.serialized_size >> 20} MB: {name!r}; every read would take several times as much memory: write "
            "it with larger row groups, or without what was added to its schema",
            code="footer_too_large",
            file=name,
        )
