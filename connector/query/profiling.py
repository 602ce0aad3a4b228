"""What an owner learns about a version when it is registered. Runs in a worker.

Every row is read once, so a corrupt page is found here and not by a consumer. Least and greatest values are the
owner's: whoever publishes the profile leaves them out.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq

from connector.datasets.sources import SOURCES, hive, parquet
from connector.datasets.sources.arrow_ipc import size_of
from connector.datasets.sources.arrow_types import is_of_engine
from connector.datasets.sources.convert import check_names
from connector.datasets.sources.files import alike, quote_name, quote_text
from connector.errors import SourceUnreadable
from connector.query import exact, flatbuffers
from connector.query.cutting import plain, plain_schema
from connector.query.engine import Files

_COLUMNS_AT_ONCE, _COLUMNS_MAX = 16, 256  # of a pass, and where they are small: each pass binds all columns of a file
_READER = 2**16  # bytes that the engine holds for a column beside its values
_UNKNOWN = 2**40
_DELTA_TEXTS = frozenset({"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"})
_END = b"ARROW1"  # of an Arrow file, after the size of its footer
_FOOTER_MAX = 32 * 2**20  # bytes: whoever reads the file has several times as many in memory, whatever he asks for
_METADATA_MAX = 2**26  # bytes: of a hundred thousand columns it is a tenth of that
_VERSION_4, _RECORD_BATCHES = 3, 3  # of MetadataVersion in Arrow's Schema.fbs; the field of a footer in File.fbs
_TEXT_MAX = 128
_SIGNATURE = 28  # bytes: a nonce and a tag (Parquet Modular Encryption, 5.4)
_LOOKED_AT = 512  # bytes of a file that is no Parquet
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_SAMPLES, _SAMPLE_ROWS = 8, 1024
_TOLD_MAX = 5
_NO_TEXT = ("Invalid Input Error: Invalid string encoding", "Invalid Input Error: Invalid JSON")  # the engine's words
_STRANGE = {  # values that a type of the engine may have, as it is written: what they should be and are, and what to do
    r"\bTIME\b(?! ZONE)": ("times before 24:00, came 24:00", "write another time, or text"),
    "TIMESTAMP": (
        "timestamps of milliseconds within 64 bits of microseconds, came others",
        "write them as whole numbers, or leave them out",
    ),
    "DECIMAL": ("decimals of no more digits than their type has, came others", "write them as a wider type, or text"),
}
_FAMILIES: Mapping[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "integer": (pa.types.is_integer,),
    "float": (pa.types.is_floating,),
    "time": (pa.types.is_time,),
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "binary": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary),
    "list": (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    "map": (pa.types.is_map,),
    "struct": (pa.types.is_struct,),
}
_OF_FOLDERS = ("text", "integer", "date32[day]", "timestamp")  # what folders' values may become, as `_family` has it
Reached = Callable[[str, int], None]
"""Hears the stage and how many files are done in it; raises where nobody wants the answer any more."""
Ask = Callable[[str, Callable[[float], None]], Sequence[Any]]
"""Gives the one row of an answer; tells meanwhile how much of it is done, from 0 to 1."""
_ORDERED = ("INT", "DECIMAL", "FLOAT", "DOUBLE", "DATE", "TIME", "VARCHAR", "BOOLEAN")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Of top-level columns, where they are known: average bytes of a value, and what a pass over one holds at most."""

    widths: Mapping[str, float] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    behind: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Of the files' own columns behind folders that stand for them, by `alike`: their types."""
    coarse: frozenset[str] = frozenset()
    """Columns with timestamps of milliseconds, by `alike`."""


def profile(
    con: Any, name: str, files: Files, *, sizes: Sizes, room: int, reached: Reached, ask: Ask, guessed: bool = False
) -> dict[str, Any]:
    """Columns with types and figures, row count, bytes, and the digest of each file. `room`: bytes for a pass.
    `guessed`: folders' texts may have become numbers and dates."""
    described = con.sql(f"DESCRIBE SELECT * FROM {quote_name(name)}").fetchall()  # noqa: S608  quoted
    columns = [(str(row[0]), str(row[1])) for row in described]
    check_names(column for column, _ in columns)  # of all files and their folders: the engine joins what is alike to it
    parquet.check_types(dict(columns))
    if guessed:
        hive.check_guesses([ref.name for ref in files.refs], dict(columns))
    there = con.sql(f"SELECT * FROM {quote_name(name)}")  # noqa: S608  quoted
    if sizes.behind:
        _check_behind(there.limit(0).to_arrow_table().schema, sizes.behind)
    strange = {
        column: _Strange(coarse=alike(column) in sizes.coarse).sql(quote_name(column), kind)
        for column, kind in zip(there.columns, there.types, strict=True)
    }
    rows, refused = 0, dict[str, str]()
    figures: list[dict[str, Any]] = []
    for some in _passes(columns, sizes.held, room):
        counted = partial(_counted, reached, len(files.refs), len(figures) / len(columns), len(some) / len(columns))
        counted(0.0)
        try:
            *answer, rows = ask(_question(name, some, strange), counted)
        except Exception as error:
            if str(error).startswith(_NO_TEXT):
                files.check_unchanged()  # where one did change, that is why
                _check_text(ask, name, some)
            raise
        figures += _figures(some, answer, rows)
        refused |= dict(column for column, told in zip(some, answer[4::5], strict=True) if told)
    _check_strange(refused)
    for figure in figures:
        figure["bytes"] = round(sizes.widths.get(figure["name"], 0.0) * rows) or None
    found = digests(files, reached=reached)
    files.check_unchanged()
    return {"rows": rows, "columns": figures, "files": found, "bytes": sum(file["size"] for file in found)}


def _check_text(ask: Ask, name: str, columns: Sequence[tuple[str, str]]) -> None:
    """SourceUnreadable with those of these columns in which the engine finds text that is none."""
    if found := [column for column, _ in columns if not _is_text(ask, name, column)]:
        raise SourceUnreadable(
            f"expected text in utf-8 (and JSON where a type says so), came others in {', '.join(found[:_TOLD_MAX])}; "
            "write them so, or as binary",
            code="value_unmappable",
            columns=found,
        )


def _is_text(ask: Ask, name: str, column: str) -> bool:
    """Whether the engine finds nothing in a column that it takes for no text."""
    try:
        ask(f"SELECT count({quote_name(column)}) FROM {quote_name(name)}", lambda _: None)  # noqa: S608  quoted
    except Exception as error:
        if not str(error).startswith(_NO_TEXT):
            raise
        return False
    return True


def _check_behind(schema: pa.Schema, behind: Mapping[str, pa.DataType]) -> None:
    """SourceUnreadable where a folder's text became another kind of value than its files have in that column."""
    for column in schema:
        kind = behind.get(alike(column.name), column.type)
        if _family(kind) != _family(column.type):
            raise SourceUnreadable(
                f"expected folders whose values are of the type that the files' own column has, came {column.name} of "
                f"{column.type} in folders and {kind} in files; {_in_folders(kind)}rename the folders",
                code="columns_repeated",
                columns=[column.name],
            )


def _in_folders(kind: pa.DataType) -> str:
    """The advice that makes folders' values of the type of a column, if there is one."""
    if _family(kind) in _OF_FOLDERS:
        return (
            "set the option guess_types (false keeps folders' values texts, true makes whole numbers, dates and "
            "moments of them), or "
        )
    return ""


def _passes(
    columns: Sequence[tuple[str, str]], held: Mapping[str, int], room: int
) -> Iterator[Sequence[tuple[str, str]]]:
    """The columns of each pass: a few, or as many as there is room for."""
    start = 0
    while start < len(columns):
        stop, left = start, room
        while stop < len(columns) and stop - start < _COLUMNS_MAX:
            left -= held.get(columns[stop][0], room)
            if left < 0 and stop - start >= _COLUMNS_AT_ONCE:
                break
            stop += 1
        yield columns[start:stop]
        start = stop


def _check_strange(refused: Mapping[str, str]) -> None:
    """SourceUnreadable for columns, with their types, that have values which no reader could take as what they are."""
    for kind, told in _STRANGE.items():
        if columns := [column for column, of in refused.items() if re.search(kind, of)]:
            expected, todo = told
            raise SourceUnreadable(
                f"expected {expected} in {', '.join(columns[:_TOLD_MAX])}; {todo}",
                code="value_unmappable",
                columns=columns,
            )


@dataclass(frozen=True, slots=True)
class _Strange:
    """SQL for whether a value has one in it that Arrow's readers do not take, or that the engine takes for another.
    `coarse`: its timestamps are of milliseconds, of which the engine takes the largest and the least for infinite."""

    coarse: bool

    def sql(self, value: str, kind: Any, depth: int = 0) -> str:
        """By a type as the engine has it; empty where no value of it is such."""
        if kind.id in ("list", "array"):
            return self._within(value, kind.children[0][1], depth)
        if kind.id == "map":
            (_, key), (_, held) = kind.children
            parts = [self._within(f"map_{of}({value})", part, depth) for of, part in (("keys", key), ("values", held))]
        elif kind.id == "struct":
            fields = [(f"struct_extract({value}, {quote_text(name)})", part) for name, part in kind.children]
            parts = [self.sql(field, part, depth) for field, part in fields]
        else:
            return self._leaf(value, kind)
        return " OR ".join(filter(None, parts)) and f"({' OR '.join(filter(None, parts))})"

    def _leaf(self, value: str, kind: Any) -> str:
        if kind.id == "decimal":
            (_, digits), (_, scale) = kind.children
            most = f"CAST('{'9' * (digits - scale)}.{'9' * scale}' AS {kind})"
            return f"({value} NOT BETWEEN -{most} AND {most})"
        if kind.id.startswith("timestamp"):
            return f"isinf({value})" if self.coarse else ""
        return f"({value} >= CAST('24:00:00' AS {kind}))" if kind.id.startswith("time") else ""

    def _within(self, values: str, kind: Any, depth: int) -> str:
        one = f"v{depth}"
        inner = self.sql(one, kind, depth + 1)
        return inner and f"coalesce(list_bool_or(list_transform({values}, lambda {one}: {inner})), false)"


def _counted(reached: Reached, files: int, before: float, share: float, part: float) -> None:
    """Tell `part` of a pass, which is `share` of all passes, as files."""
    reached("counting", min(files - 1, int(files * (before + share * part))))  # the stage is not over


def digests(files: Files, *, reached: Reached) -> list[dict[str, Any]]:
    """Every file with its SHA-256, in order."""
    found = []
    for number, ref in enumerate(files.refs):
        reached("digesting", number)
        found.append(ref.to_json() | {"sha256": files.digest(number)})
    return found


def parquet_sizes(files: Files, *, union: bool = False, folders: bool = False, reached: Reached) -> Sizes:
    """What the footers say; SourceUnreadable for what we do not read. `folders`: the files' folders carry columns.

    The files must be of one schema, unless `union` joins them by name: where the engine makes one type of two, both
    must be such that no value becomes another one.
    The codec is looked at before anything is decoded: Brotli makes a bomb of a small file.
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
        _check_types(schema, ref.name, _unread_parquet)
        _check_schema(schema, ref.name, like=None if union else first)
        if union:
            _check_union(schema, ref.name, parts)
        if folders:
            behind |= _behind(footer, schema, ref.name)
        coarse |= {
            alike(field.name) for field in schema if pa.timestamp("ms") in map(_unzoned, exact.parts(field.type))
        }
        rows += footer.num_rows
        for group in map(footer.row_group, range(footer.num_row_groups)):
            here = _group_sizes(group, ref.name)
            sizes.update({top: size for top, (size, _) in here.items()})
            held |= {top: max(held.get(top, 0), most) for top, (_, most) in here.items()}
    return Sizes({name: size / max(rows, 1) for name, size in sizes.items()}, held, behind, frozenset(coarse))


def _behind(footer: pq.FileMetaData, schema: pa.Schema, name: str) -> dict[str, pa.DataType]:
    """The types of the file's own columns behind folders, by `alike`; SourceUnreadable unless they have the folder's
    value only."""
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
    """Whether the footer tells that each row of a column has the value with this text."""
    groups = map(footer.row_group, range(footer.num_row_groups))
    chunks = (chunk for group in groups for chunk in map(group.column, range(group.num_columns)))
    told = [chunk.statistics for chunk in chunks if alike(chunk.path_in_schema) == alike(column)]
    whole = all(one is not None and one.has_min_max and one.has_null_count and not one.null_count for one in told)
    return whole and {str(end) for one in told for end in (one.min, one.max)} == {text}


def _group_sizes(group: pq.RowGroupMetaData, name: str) -> dict[str, tuple[int, int]]:
    """Of the top-level columns of a row group of this file: bytes, and those that are held while it is read."""
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
        # Texts that begin alike are longer than their pages, and their lengths may take no room there: nobody knows by
        # how much. Of a dictionary of texts each has 16 bytes in memory beside the 4 or more that it has there.
        looked_up = chunk.has_dictionary_page and chunk.physical_type == "BYTE_ARRAY"
        read = _UNKNOWN if not _DELTA_TEXTS.isdisjoint(chunk.encodings) else size * (5 if looked_up else 1)
        most = read + chunk.total_compressed_size + _READER
        before, held = found.get(top, (0, 0))
        found[top] = before + size, held + most
    return found


def check_arrow(files: Files, *, reached: Reached) -> None:
    """SourceUnreadable for Arrow files that are not of one schema, or that are not read as they are meant."""
    first: tuple[str, pa.Schema] | None = None
    for number, ref in enumerate(files.refs):
        reached("checking", number)
        with pa.OSFile(files.open(number)) as file:
            there = _schema_of(file, ref.name)
            try:
                _check_version(file, ref.name)
            except (struct.error, ValueError, OSError) as error:
                raise SourceUnreadable(
                    f"expected an Arrow file, came a damaged one: {ref.name!r}; write it again", file=ref.name
                ) from error
        schema = plain_schema(there)
        first = first or (ref.name, schema)
        _check_types(there, ref.name, _unread_arrow)
        _check_schema(schema, ref.name, like=first)


def _schema_of(file: pa.OSFile, name: str) -> pa.Schema:
    try:
        return pa.ipc.open_file(file).schema.remove_metadata()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise SourceUnreadable(
            f"expected an Arrow file whose schema Arrow's reader takes, came another or a damaged one: {name!r}; write "
            "it again, and values of an extension type (such as uuid) without a dictionary",
            file=name,
        ) from error


def check_arrow_values(files: Files, *, reached: Reached) -> None:
    """SourceUnreadable for Arrow files whose batches are not what they say, or have values that would not stay so."""
    try:
        for number, ref in enumerate(files.refs):
            with pa.OSFile(files.open(number)) as file:
                exact.check_batches(file, ref.name, partial(reached, "checking", number))
    except SourceUnreadable:
        files.check_unchanged()  # where it did change, that is why
        raise


def arrow_sizes(files: Files) -> Sizes:
    """Of columns whose values vary, by a few batches over all files: no file says more than its own size. Nothing
    where such a batch does not fit into memory, or Arrow knows no way to write it out (words that are views)."""
    sizes: Counter[str] = Counter()
    rows = 0
    try:
        for batch in _some_batches(files):
            some = batch.slice(0, _SAMPLE_ROWS)
            there = plain(some, plain_schema(some.schema))  # as they leave
            rows += there.num_rows
            sizes.update({name: size_of(column) for name, column in zip(there.schema.names, there, strict=True)})
    except (MemoryError, pa.ArrowNotImplementedError):
        return Sizes()
    return Sizes({name: size / rows for name, size in sizes.items()} if rows else {})


def _some_batches(files: Files) -> Iterator[pa.RecordBatch]:
    """Their columns whose values vary."""
    chosen = _spread(len(files.refs), _SAMPLES)
    for number in chosen:
        with pa.OSFile(files.open(number)) as file:
            types = pa.ipc.open_file(file).schema.types
            if varying := [place for place, kind in enumerate(types) if not pa.types.is_primitive(kind)]:
                reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=varying))
                yield from map(reader.get_batch, _spread(reader.num_record_batches, -(-_SAMPLES // len(chosen))))


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below `count`, evenly apart."""
    return sorted({number * count // most for number in range(most)}) if count else []


def _check_version(file: pa.OSFile, name: str) -> None:
    """SourceUnreadable for an Arrow file of format version 4 that is compressed as only version 5 knows: Arrow's reader
    takes the compressed bytes for the values."""
    metadata = _first_batch(file)
    message = flatbuffers.root(metadata) if metadata else 0
    if (
        metadata
        and flatbuffers.number(metadata, message, 0, "<h") == _VERSION_4
        and _says_compressed(metadata, message)
    ):
        raise SourceUnreadable(
            f"expected an Arrow file of format version 5 where it is compressed, came version 4: {name!r}; write it "
            "again without `metadata_version`, or without compression",
            code="codec_refused",
            file=name,
        )


def _first_batch(file: pa.OSFile) -> memoryview:
    """What the message of the first record batch says of itself, found by the file's footer (Arrow columnar format,
    "IPC File Format"; File.fbs): where messages lie is the writer's to choose. Empty where there is none. No byte of a
    body is read, which may be larger than memory."""
    end = file.size() - len(_END) - 4
    size = _size_at(file, end)
    footer = memoryview(file.read_at(max(0, size), end - size))
    table = flatbuffers.root(footer)
    if not flatbuffers.field(footer, table, _RECORD_BATCHES):
        return footer[:0]
    listed = flatbuffers.below(footer, table, _RECORD_BATCHES)
    (count,) = struct.unpack_from("<I", footer, listed)
    if not count:
        return footer[:0]
    (at,) = struct.unpack_from("<q", footer, listed + 4)
    size = _size_at(file, at)
    if size == -1:  # files of old have no mark before it
        at += 4
        size = _size_at(file, at)
    return memoryview(file.read_at(max(0, size), at + 4))


def _size_at(file: pa.OSFile, at: int) -> int:
    """How long what follows is; -1 for a mark. ValueError for what is longer than any writer makes it."""
    (found,) = struct.unpack("<i", file.read_at(4, at))
    if not -1 <= found <= _METADATA_MAX:
        raise ValueError(f"metadata of {found} bytes")
    return int(found)


def _says_compressed(metadata: memoryview, message: int) -> bool:
    """Whether the message of a record batch names a compression (Arrow's Message.fbs, in flatbuffers): field 3 of its
    header, which is field 2 of the message."""
    return flatbuffers.field(metadata, flatbuffers.below(metadata, message, 2), 3) > 0


def _check_types(schema: pa.Schema, name: str, unread: Callable[[pa.DataType], bool]) -> None:
    if strange := [f"{field.name} ({field.type})" for field in schema if any(map(unread, exact.parts(field.type)))]:
        raise SourceUnreadable(
            f"expected columns of types that can be given on as they are, came {', '.join(strange[:_TOLD_MAX])} in "
            f"{name!r}; write them as another type, such as float, a decimal of at most 38 digits, or text",
            code="type_unread",
            file=name,
        )


def _check_schema(schema: pa.Schema, name: str, *, like: tuple[str, pa.Schema] | None) -> None:
    """Columns, of one name each, whatever its case; those of the first file, if that is asked."""
    if not schema.names:
        raise SourceUnreadable(f"expected columns, came none in {name!r}; write it with at least one", file=name)
    if "" in schema.names:  # the engine calls it by its place, and no SQL can name it
        raise SourceUnreadable(f"expected columns with names, came one without in {name!r}; name it", file=name)
    check_names(schema.names, file=name)
    for column in schema:
        _check_fields(column, name)
    if like is None or schema.equals(like[1]):
        return
    before = {field.name: field.type for field in like[1]}
    after = {field.name: field.type for field in schema}
    told = [f"{column} is {after[column]} and not {kind}" for column, kind in before.items()
            if after.get(column, kind) != kind]  # fmt: skip
    told += [f"{column} is missing" for column in before if column not in after]
    told += [f"{column} is there beside" for column in after if column not in before]
    if told:
        others = any(not _alike_types(kind, after.get(column, kind)) for column, kind in before.items())
        raise SourceUnreadable(
            f"expected files of one schema; compared with {like[0]!r}, in {name!r} {'; '.join(told[:_TOLD_MAX])}; "
            f"write it again{'' if others else ', or register a directory of Parquet with the option union_by_name'}",
            code="schemas_differ",
            file=name,
        )


def _alike_types(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether the engine makes one type of both, which has every value of each."""
    parts = dict(_named_parts((), one))
    return all(_family(kind) == _family(parts.get(path, kind)) for path, kind in _named_parts((), other))


def _check_fields(column: pa.Field, name: str) -> None:
    """SourceUnreadable for a struct or a union in this column, however deep, with fields of one name, or a struct's
    without one: of Parquet the engine renames them, of Arrow the name of one gives another."""
    for kind in filter(_has_fields, exact.parts(column.type)):
        names = [part.name for part in kind]
        if "" in names and pa.types.is_struct(kind):
            raise SourceUnreadable(
                f"expected fields with names, came one without in {column.name} of {name!r}; name it", file=name
            )
        check_names(filter(None, names), file=name, column=column.name)


def _has_fields(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) or pa.types.is_union(kind))


def _check_union(schema: pa.Schema, name: str, before: dict[tuple[str, ...], tuple[str, pa.DataType]]) -> None:
    """SourceUnreadable for parts of columns that are of another family than `before`: the file and the type of each
    part where it came first. Those of this file are added."""
    told = []
    for column in schema:
        for path, kind in _named_parts((column.name.casefold(),), column.type):
            file, was = before.setdefault(path, (name, kind))
            if was != kind and _family(was) != _family(kind):
                told.append(f"{'.'.join((column.name, *path[1:]))} is {kind} and not {was} as in {file!r}")
    if told:
        raise SourceUnreadable(
            "expected columns of one name to be of one type, or of such as become one without altering a value (whole "
            f"numbers, floats, decimals of one scale), in {name!r} {'; '.join(told[:_TOLD_MAX])}; write it again with "
            "that type",
            code="schemas_differ",
            file=name,
        )


def _named_parts(path: tuple[str, ...], kind: pa.DataType) -> Iterator[tuple[tuple[str, ...], pa.DataType]]:
    """A type and all those that it is made of, each with its place, whatever the case; nulls are of any type."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not pa.types.is_null(plain):
        yield path, plain
    for part in map(plain.field, range(plain.num_fields)):
        yield from _named_parts((*path, part.name.casefold() if pa.types.is_struct(plain) else "[]"), part.type)


def _unzoned(kind: pa.DataType) -> pa.DataType:
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def _family(kind: pa.DataType) -> str:
    """What those types have in common of which the engine makes one that has every value of each."""
    if pa.types.is_decimal(kind):
        return f"decimal of scale {kind.scale}"
    if pa.types.is_timestamp(kind):
        return "moment" if kind.tz else "timestamp"
    return next((name for name, checks in _FAMILIES.items() if any(check(kind) for check in checks)), str(kind))


def _unread_parquet(kind: pa.DataType) -> bool:
    """The engine makes DOUBLE of such a decimal, and rounds it."""
    return bool(pa.types.is_decimal(kind)) and kind.precision > 38


def _unread_arrow(kind: pa.DataType) -> bool:
    dense = pa.types.is_union(kind) and kind.mode == "dense"
    strange = pa.types.is_decimal256(kind) or (pa.types.is_decimal(kind) and kind.scale < 0)
    return bool(dense or strange or pa.types.is_float16(kind)) or is_of_engine(kind) or _unread_coded(kind)


def _unread_coded(kind: pa.DataType) -> bool:
    """Whether it has runs or words of values that have parts or words themselves, or are of an extension: of some of
    these the engine gives numbers of the words for the words, and others end it."""
    runs = pa.types.is_run_end_encoded(kind)
    if not (runs or pa.types.is_dictionary(kind)):
        return False
    value = kind.value_type
    strange = isinstance(value, pa.BaseExtensionType) or pa.types.is_dictionary(value)
    return bool(strange or value.num_fields or (runs and pa.types.is_null(value)))


def _footer(files: Files, number: int) -> tuple[pq.FileMetaData, pa.Schema]:
    """A file's footer, and its schema as the engine reads it: with encodings written out, and of microseconds where it
    has INT96."""
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
    """Whether a footer is signed, as it is where columns are encrypted and it is not: Arrow's reader says nothing of
    that, and ends the process when it is asked about such a column."""
    with _bytes_of(opened) as file:
        file.seek(-8, os.SEEK_END)
        (size,) = struct.unpack("<I", file.read(4))
    return bool(size == footer.serialized_size + _SIGNATURE)


def _bytes_of(opened: Any) -> Any:
    """What Arrow reads a file from, to be read by us."""
    return open(opened, "rb") if isinstance(opened, str) else nullcontext(opened)


def _other_than_parquet(opened: Any) -> tuple[str, str]:
    """What a file that is no Parquet looks like, and what its owner may do."""
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


def _question(name: str, columns: Sequence[tuple[str, str]], strange: Mapping[str, str]) -> str:
    """Four figures of each column, whether it has a strange value, and the number of rows: in one pass, because each
    opens every file."""
    asked = []
    for column, kind in columns:
        quoted = quote_name(column)
        asked += [f"count({quoted})", f"approx_count_distinct({quoted})" if _distinct(kind) else "NULL"]
        ends = ("min", "max") if _ordered(kind) else ()
        asked += [f"left(CAST({end}({quoted}) AS VARCHAR), {_TEXT_MAX})" for end in ends] or ["NULL", "NULL"]
        asked.append(f"bool_or({strange[column]})" if strange[column] else "NULL")
    return f"SELECT {', '.join(asked)}, count(*) FROM {quote_name(name)}"  # noqa: S608  quoted


def _figures(columns: Sequence[tuple[str, str]], answer: Sequence[Any], rows: int) -> list[dict[str, Any]]:
    figures = []
    for number, (column, kind) in enumerate(columns):
        count, distinct, least, greatest = answer[5 * number : 5 * number + 4]
        figures.append(
            {
                "name": column,
                "type": kind,
                "null_share": round(1 - count / rows, 6) if rows else 0.0,
                "distinct": None if distinct is None else min(distinct, count),  # estimated: never more than values
                "min": least,
                "max": greatest,
            }
        )
    return figures


def _ordered(kind: str) -> bool:
    return "[" not in kind and kind.removeprefix("U").startswith((*_ORDERED, "BIG", "SMALL", "TINY", "HUGE"))


def _distinct(kind: str) -> bool:
    return "[" not in kind and not kind.startswith(("STRUCT", "MAP", "UNION", "INTERVAL"))
