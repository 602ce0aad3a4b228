"""An Arrow stream as it came, read with nothing of ours: batches, places, the end record, what lies under nulls."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

_END = b"hanse.end"
_PADDING = 64  # bytes: Arrow's writer pads a buffer, also with what stands behind a slice of it
_HASHES: dict[str, Callable[[bytes], Any]] = {"xxh3": xxhash.xxh3_128, "sha256": hashlib.sha256}


@dataclass(frozen=True, slots=True)
class Streamed:
    """A whole answer. `places` are what the batches' metadata says of them, empty where it says nothing."""

    schema: pa.Schema
    batches: tuple[pa.RecordBatch, ...]
    places: tuple[dict[str, Any], ...]
    end: dict[str, Any]
    head: int
    size: int
    digest: str

    @property
    def rows(self) -> pa.Table:
        return pa.Table.from_batches(self.batches, self.schema)

    def untrue(self) -> str:
        """What of the end record is not what came; empty where all is."""
        came = {
            "rows": sum(one.num_rows for one in self.batches),
            "batches": len(self.batches),
            "bytes": self.size - self.head,
            "digest": self.digest,
        }
        wrong = [f"{name} {self.end[name]} for {value}" for name, value in came.items() if self.end[name] != value]
        return ", ".join(wrong)


def parse(body: bytes) -> Streamed:
    """Read a body. AssertionError where it has no end record, or goes on behind it."""
    source = pa.BufferReader(body)
    reader = pa.ipc.open_stream(source)
    head, found, places = source.tell(), [], []
    while True:
        start = source.tell()
        batch, metadata = reader.read_next_batch_with_custom_metadata()
        if metadata is not None and _END in metadata:
            break
        found.append(batch)
        places.append(json.loads(metadata[b"hanse.at"]) if metadata is not None else {})
    end = json.loads(metadata[_END])
    assert body[source.tell() :] == b"\xff\xff\xff\xff\x00\x00\x00\x00", "expected the end of the stream"
    name = end["digest"].partition(":")[0]
    digest = f"{name}:{_HASHES[name](body[:start]).hexdigest()}"
    return Streamed(reader.schema, tuple(found), tuple(places), end, head, start, digest)


def without_id(body: bytes, read: str) -> bytes:
    """A body without the id of its read, and without the digest that the end record has of itself."""
    return re.sub(rb'"record_digest":"xxh3:[0-9a-f]{32}"', b"", body.replace(read.encode(), b""))


def partly(body: bytes) -> tuple[list[pa.RecordBatch], list[dict[str, Any]], dict[str, Any] | None]:
    """What can be read of a body that may be cut off anywhere: batches, their places, and the end record if it came."""
    found: list[pa.RecordBatch] = []
    places: list[dict[str, Any]] = []
    with suppress(pa.ArrowException, EOFError, OSError, StopIteration):
        reader = pa.ipc.open_stream(body)
        while True:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            if metadata is not None and _END in metadata:
                return found, places, json.loads(metadata[_END])
            found.append(batch)
            places.append(json.loads(metadata[b"hanse.at"]) if metadata is not None else {})
    return found, places, None


def hides(batch: pa.RecordBatch) -> str:
    """The name of a column that has more in its bytes than its values; empty where none has."""
    for field, column in zip(batch.schema, batch.columns, strict=True):
        if _holds(column, np.zeros(len(column), bool)):
            return f"{field.name} ({field.type})"
    return ""


def _holds(array: pa.Array, out: np.ndarray[Any, Any]) -> bool:
    """Whether anything lies where an array is null, or where what is around it is (`out`)."""
    assert array.offset == 0, "expected an array as it came"
    kind = array.type
    if pa.types.is_null(kind):
        return False
    out = out | ~np.asarray(array.is_valid())
    if pa.types.is_struct(kind):
        return any(_holds(array.field(number), out) for number in range(kind.num_fields))
    if pa.types.is_fixed_size_list(kind):
        return _holds(array.values, np.repeat(out, kind.list_size))
    if pa.types.is_boolean(kind):
        bits = np.unpackbits(_bytes(array.buffers()[1]), bitorder="little")
        return bool(bits[: len(out)][out].any()) or len(bits) >= len(out) + 8 * _PADDING
    if pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind):
        width = kind.bit_width // 8
        values = _bytes(array.buffers()[1])
        inside = values[: len(out) * width].reshape(len(out), width)
        return bool(inside[out].any()) or len(values) >= len(out) * width + _PADDING
    return _holds_in_parts(array, out)


def _holds_in_parts(array: pa.Array, out: np.ndarray[Any, Any]) -> bool:
    """Of lists, maps, texts and bytes: offsets into something."""
    kind = array.type
    wide = any(test(kind) for test in (pa.types.is_large_string, pa.types.is_large_binary, pa.types.is_large_list))
    offsets = np.frombuffer(array.buffers()[1] or bytes(8), np.int64 if wide else np.int32)[: len(array) + 1]
    sizes = np.diff(offsets)
    if sizes[out].any() or (len(offsets) and offsets[0]):
        return True
    last = int(offsets[-1]) if len(offsets) else 0
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return len(array.values) > last or _holds(array.values, np.zeros(len(array.values), bool))
    if pa.types.is_map(kind):
        return len(array.keys) > last or any(_holds(one, np.zeros(len(one), bool)) for one in (array.keys, array.items))
    return len(_bytes(array.buffers()[2])) >= last + _PADDING


def _bytes(buffer: pa.Buffer | None) -> np.ndarray[Any, Any]:
    return np.frombuffer(buffer if buffer is not None else b"", np.uint8)


def unlike(found: pa.Table, expected: pa.Table) -> str:
    """Where two tables differ in names, types, values or the order of rows; empty where they do not."""
    types = [(one.name.casefold(), one.type) for one in found.schema]
    wanted = [(one.name.casefold(), one.type) for one in expected.schema]
    if types != wanted:
        return f"columns {types} for {wanted}"
    if len(found) != len(expected):
        return f"{len(found)} rows for {len(expected)}"
    for field, one, other in zip(expected.schema, found.columns, expected.columns, strict=True):
        if not _same(one.combine_chunks(), other.combine_chunks()):
            return f"column {field.name} ({field.type}): {_first(one.to_pylist(), other.to_pylist())}"
    return ""


def _same(one: pa.Array, other: pa.Array) -> bool:
    if pa.types.is_nested(one.type) and any(word in str(one.type) for word in ("float", "double")):
        return repr(one.to_pylist()) == repr(other.to_pylist())
    if pa.types.is_floating(one.type):  # NaN is like NaN, and -0.0 not like 0.0
        whole = pa.int64() if one.type == pa.float64() else pa.int32()
        one, other = one.view(whole), other.view(whole)
    return bool(one.equals(other))


def _first(found: Sequence[Any], expected: Sequence[Any]) -> str:
    pairs = enumerate(zip(found, expected, strict=True))
    return next((f"row {n}: {str(a)[:60]!r} for {str(b)[:60]!r}" for n, (a, b) in pairs if a != b), "in its bits")
