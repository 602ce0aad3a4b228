"""Checks Arrow IPC files at registration and measures their columns. Runs in a worker."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from connector.datasets.sources.arrow_ipc import size_of
from connector.datasets.sources.extension_types import is_of_engine
from connector.engine.worker.inspect import arrow_values, file_schemas
from connector.engine.worker.inspect.profile import Reached, Sizes
from connector.engine.worker.read.batching import plain, plain_schema
from connector.engine.worker.read.duckdb_engine import Files
from connector.errors import SourceUnreadable
from connector.infra.formats import flatbuffers

_END = b"ARROW1"  # of an Arrow file, after the size of its footer
_METADATA_MAX = 2**26  # bytes: of a hundred thousand columns it is a tenth of that
_VERSION_4, _RECORD_BATCHES = 3, 3  # of MetadataVersion in Arrow's Schema.fbs; the field of a footer in File.fbs
_SAMPLES, _SAMPLE_ROWS = 8, 1024


def check(files: Files, *, reached: Reached) -> None:
    """Check that the files have one schema, of types and in a format that are read unchanged.

    Raises: SourceUnreadable.
    """
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
        file_schemas.check_types(there, ref.name, _unread_arrow)
        file_schemas.check_schema(schema, ref.name, like=first)


def _schema_of(file: pa.OSFile, name: str) -> pa.Schema:
    try:
        return pa.ipc.open_file(file).schema.remove_metadata()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise SourceUnreadable(
            f"expected an Arrow file whose schema Arrow's reader takes, came another or a damaged one: {name!r}; write "
            "it again, and values of an extension type (such as uuid) without a dictionary",
            file=name,
        ) from error


def check_values(files: Files, *, reached: Reached) -> None:
    """Check every batch. Raises: SourceUnreadable for invalid batches, and values that the engine would change."""
    try:
        for number, ref in enumerate(files.refs):
            with pa.OSFile(files.open(number)) as file:
                arrow_values.check_batches(file, ref.name, partial(reached, "checking", number))
    except SourceUnreadable:
        files.check_unchanged()  # where it did change, that is why
        raise


def sizes_of(files: Files) -> Sizes:
    """Return the widths of columns whose values vary in size, from a few batches over all files.

    Empty where such a batch does not fit into memory, or Arrow cannot write it out (dictionaries of views).
    """
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
    """Yield a few batches of the columns whose values vary in size."""
    chosen = _spread(len(files.refs), _SAMPLES)
    for number in chosen:
        with pa.OSFile(files.open(number)) as file:
            types = pa.ipc.open_file(file).schema.types
            if varying := [place for place, kind in enumerate(types) if not pa.types.is_primitive(kind)]:
                reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=varying))
                yield from map(reader.get_batch, _spread(reader.num_record_batches, -(-_SAMPLES // len(chosen))))


def _spread(count: int, most: int) -> list[int]:
    """Return at most `most` of the numbers below `count`, evenly spaced."""
    return sorted({number * count // most for number in range(most)}) if count else []


def _check_version(file: pa.OSFile, name: str) -> None:
    """Refuse a file of format version 4 with the compression of version 5: Arrow would read compressed bytes as values.

    Raises: SourceUnreadable.
    """
    metadata = _first_batch(file)
    message = flatbuffers.read_root(metadata) if metadata else 0
    if (
        metadata
        and flatbuffers.read_number(metadata, message, 0, "<h") == _VERSION_4
        and _says_compressed(metadata, message)
    ):
        raise SourceUnreadable(
            f"expected an Arrow file of format version 5 where it is compressed, came version 4: {name!r}; write it "
            "again without `metadata_version`, or without compression",
            code="codec_refused",
            file=name,
        )


def _first_batch(file: pa.OSFile) -> memoryview:
    """Return the metadata of the first record batch's message, found by the footer; empty without a batch.

    Writers may place messages anywhere (Arrow columnar format, "IPC File Format"; File.fbs). Bodies are not read: they
    may be larger than memory.
    """
    end = file.size() - len(_END) - 4
    size = _size_at(file, end)
    footer = memoryview(file.read_at(max(0, size), end - size))
    table = flatbuffers.read_root(footer)
    if not flatbuffers.find_field(footer, table, _RECORD_BATCHES):
        return footer[:0]
    listed = flatbuffers.follow_offset(footer, table, _RECORD_BATCHES)
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
    """Return the length of the metadata that follows, or -1 for a mark.

    Raises: ValueError where it is longer than any writer makes it.
    """
    (found,) = struct.unpack("<i", file.read_at(4, at))
    if not -1 <= found <= _METADATA_MAX:
        raise ValueError(f"metadata of {found} bytes")
    return int(found)


def _says_compressed(metadata: memoryview, message: int) -> bool:
    """Whether a record batch's message names a compression: field 3 of its header, which is field 2 of the message
    (Arrow's Message.fbs)."""
    return flatbuffers.find_field(metadata, flatbuffers.follow_offset(metadata, message, 2), 3) > 0


def _unread_arrow(kind: pa.DataType) -> bool:
    dense = pa.types.is_union(kind) and kind.mode == "dense"
    strange = pa.types.is_decimal256(kind) or (pa.types.is_decimal(kind) and kind.scale < 0)
    return bool(dense or strange or pa.types.is_float16(kind)) or is_of_engine(kind) or _unread_coded(kind)


def _unread_coded(kind: pa.DataType) -> bool:
    """Whether a type is a dictionary or run-end encoding of nested, dictionary or extension values.

    For some of these the engine returns dictionary positions instead of values; others end its process.
    """
    runs = pa.types.is_run_end_encoded(kind)
    if not (runs or pa.types.is_dictionary(kind)):
        return False
    value = kind.value_type
    strange = isinstance(value, pa.BaseExtensionType) or pa.types.is_dictionary(value)
    return bool(strange or value.num_fields or (runs and pa.types.is_null(value)))
