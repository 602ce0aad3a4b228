"""What a message takes of memory is bounded before Arrow takes it, whatever an owner sends."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hanse import errors
from hanse._arrow import message_limits
from hanse._transport import http_stream
from hanse._transport.http_stream import HttpRequest
from hanse.plan import Plan
from hanse.stream import Stream

from tests.client.support import chunked, complete, connector, ipc, recut, redigested

MOST = 1_000_000
NUMBERS = pa.schema([("n", pa.int64())])
TEXTS = pa.schema([("t", pa.dictionary(pa.int32(), pa.string()))])


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_limits, "_DECOMPRESSED_MAX", MOST)


def read(pieces: list[bytes]) -> pa.Table:
    with connector({("GET", "/"): chunked(pieces)}) as served:
        return Stream(http_stream.open_stream(HttpRequest("GET", served.url))).to_arrow()


def zeros(nbytes: int, codec: str | None) -> list[bytes]:
    column = pa.array([0] * (nbytes // 8), pa.int64())
    return ipc([pa.record_batch([column], NUMBERS)], complete(len(column)), schema=NUMBERS, codec=codec)


def texts(*sizes: int, codec: str | None, deltas: bool) -> list[bytes]:
    """Batches of one text each, of so many bytes, by a dictionary that grows or is replaced."""
    values = [f"{number}".ljust(size, ".") for number, size in enumerate(sizes)]
    batches = []
    for number in range(len(values)):
        known = values[: number + 1] if deltas else [values[number]]
        column = pa.DictionaryArray.from_arrays(pa.array([len(known) - 1], pa.int32()), known)
        batches.append(pa.record_batch([column], TEXTS))
    return ipc(batches, complete(len(values)), schema=TEXTS, codec=codec, deltas=deltas)


@pytest.mark.parametrize("codec", [None, "lz4", "zstd"])
@pytest.mark.parametrize("size", [0, 1000])
def test_what_stays_within_the_bound_is_read(codec: str | None, size: int) -> None:
    pieces = zeros(MOST - 64, codec)
    assert read(recut(pieces, size) if size else pieces).num_rows == MOST // 8 - 8
    assert read(zeros(0, codec)).num_rows == 0
    assert read(texts(*[MOST // 2] * 5, codec=codec, deltas=False)).num_rows == 5
    assert read(texts(*[MOST // 10] * 5, codec=codec, deltas=True)).num_rows == 5


def changed(old: bytes, new: bytes) -> Callable[[list[bytes]], list[bytes]]:
    def change(pieces: list[bytes]) -> list[bytes]:
        assert sum(piece.count(old) for piece in pieces) == 1
        return [piece.replace(old, new) for piece in pieces]

    return change


SAID, LESS = struct.pack("<q", 8 * 1000), struct.pack("<q", -(2**50))  # as a compressed buffer says it
TWO = pa.schema([("less", pa.int32()), ("more", pa.int64())])
both = ipc([pa.record_batch([[0] * (3 * MOST // 4)] * 2, TWO)], complete(1), schema=TWO, codec="zstd")
BOMBS: dict[str, tuple[list[bytes], str]] = {
    "lz4": (zeros(2 * MOST, "lz4"), f"got {2 * MOST} bytes after"),
    "zstd": (zeros(2 * MOST, "zstd"), f"got {2 * MOST} bytes after"),
    "a dictionary": (texts(2 * MOST, codec="zstd", deltas=False), "dictionaries of at most"),
    "a dictionary that grows": (texts(*[MOST // 5] * 9, codec="zstd", deltas=True), "dictionaries of at most"),
    "one that is not compressed": (texts(*[MOST // 5] * 9, codec=None, deltas=True), "dictionaries of at most"),
    "it says more than it has": (
        changed(SAID, struct.pack("<q", 2**50))(zeros(8000, "zstd")), f"got {2**50} bytes after"
    ),
    "it says less than nothing": (changed(SAID, LESS)(zeros(8000, "zstd")), "expected an Arrow stream"),
    "so that another may say more": (changed(struct.pack("<q", 3 * MOST), LESS)(both), f"got {6 * MOST} bytes after"),
    "much metadata": ([struct.pack("<Ii", 0xFFFFFFFF, 5 * 2**20)], "metadata of at most"),
    "less than no metadata": ([struct.pack("<Ii", 0xFFFFFFFF, -2)], "metadata of at most"),
    "metadata without sense": ([struct.pack("<Ii", 0xFFFFFFFF, 8), b"\x80" * 8], "metadata that cannot be read"),
    "a message without its mark": ([struct.pack("<i", 100), bytes(100)], "without its marker"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_unfold_to_more_is_refused_before_it_does(name: str) -> None:
    pieces, text = BOMBS[name]
    before = pa.total_allocated_bytes()
    with pytest.raises(errors.Broken, match=text):
        read(pieces)
    assert pa.total_allocated_bytes() - before < MOST


MANY = {f"{number}": "" for number in range(5000)}
LONG = 4096


def rows_of_nothing(column: pa.Array) -> list[bytes]:
    batch = pa.record_batch([column], ["x"])
    return ipc([batch], complete(batch.num_rows), schema=batch.schema)


def test_rows_that_take_nothing_on_the_way_are_counted_before_they_are_values() -> None:
    """A few hundred bytes say as many rows as they like, and whoever makes values of them runs out of memory."""
    assert read(rows_of_nothing(pa.nulls(MOST // 20))).num_rows == MOST // 20
    with pytest.raises(errors.Broken, match="values"):
        read(rows_of_nothing(pa.nulls(MOST)))


def test_rows_of_a_bit_each_are_read_however_many() -> None:
    assert read(rows_of_nothing(pa.array([True, None] * MOST))).num_rows == 2 * MOST


def repeated(message: bytes, table: Callable[[bytes], int], field: int) -> bytes:
    """A message that names the first of the things that a field of a table lists in place of each of them."""
    data = bytearray(message[8:])
    listed = message_limits._follow(data, message_limits._field_place(data, table(data), field))
    first = message_limits._follow(data, listed + 4)
    for one in range(struct.unpack_from("<I", data, listed)[0]):
        struct.pack_into("<I", data, listed + 4 + 4 * one, first - (listed + 4 + 4 * one))
    return message[:8] + bytes(data)


def outer(data: bytes) -> int:
    return message_limits._follow(data, 0)


def header(data: bytes) -> int:
    return message_limits._follow(data, message_limits._field_place(data, outer(data), 2))


def batch_with_metadata() -> list[bytes]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, NUMBERS) as writer:
        writer.write_batch(pa.record_batch([[1]], NUMBERS), custom_metadata={"a": "x" * LONG, **MANY})
    schema = NUMBERS.serialize().to_pybytes()
    return [schema, sink.getvalue().to_pybytes()[len(schema) :]]


def schemas_that_repeat() -> dict[str, bytes]:
    long, names = "x" * LONG, list(MANY)
    described = NUMBERS.with_metadata({"a": long, **MANY})
    column = pa.schema([NUMBERS.field(0).with_metadata({"a": long, **MANY})])
    structs = pa.schema([("s", pa.struct([(name, pa.int64()) for name in [long, *names]]))])
    zones = pa.schema([("t", pa.timestamp("us", long)), *[(name, pa.int64()) for name in names]])

    def field(data: bytes) -> int:
        return message_limits._follow(
            data, message_limits._follow(data, message_limits._field_place(data, header(data), 1)) + 4
        )

    return {
        "pairs of a schema": repeated(described.serialize().to_pybytes(), header, 2),
        "pairs of a column": repeated(column.serialize().to_pybytes(), field, 6),
        "columns": repeated(
            pa.schema([(name, pa.int64()) for name in [long, *names]]).serialize().to_pybytes(), header, 1
        ),
        "columns of a column": repeated(structs.serialize().to_pybytes(), field, 5),
        "columns with a zone": repeated(zones.serialize().to_pybytes(), header, 1),
    }


@pytest.mark.parametrize("name", schemas_that_repeat())
def test_metadata_that_says_one_thing_many_times_is_refused_before_arrow_takes_it(name: str) -> None:
    message = schemas_that_repeat()[name]
    assert pa.ipc.read_schema(pa.py_buffer(message)), "Arrow takes it"
    with pytest.raises(errors.Broken, match="referred to many times"):
        read([message])
    with pytest.raises(errors.Broken, match="referred to many times"):
        Plan.read(planned(message), columns=(), where="")


def test_metadata_of_a_batch_that_says_one_thing_many_times_is_refused() -> None:
    schema, batch = batch_with_metadata()
    with pytest.raises(errors.StreamIncomplete):  # it is taken as far as it goes
        read([schema, batch])
    with pytest.raises(errors.Broken, match="referred to many times"):
        read([schema, repeated(batch, outer, 4)])


def test_names_that_are_no_text_are_refused() -> None:
    message = pa.schema([("nnnn", pa.int64())]).serialize().to_pybytes().replace(b"nnnn", b"n\xff\xfen")
    with pytest.raises(errors.Broken, match="metadata that cannot be read"):
        read([message])
    with pytest.raises(errors.Broken, match="metadata that cannot be read"):
        Plan.read(planned(message), columns=(), where="")


def one_buffer(columns: int, room: int) -> list[bytes]:
    """A row of texts, each of which is all of what came."""
    schema = pa.schema([(f"{number}", pa.binary()) for number in range(columns)])
    first, *rest = ipc([pa.record_batch([[b"x"]] * columns, schema)], complete(1), schema=schema)
    begins, message = first[: schema.serialize().size], first[schema.serialize().size :]
    (length,) = struct.unpack_from("<i", message, 4)
    data = bytearray(message[8 : 8 + length])
    buffers = message_limits._follow(data, message_limits._field_place(data, header(data), 2)) + 4
    for number in range(columns):
        struct.pack_into("<6q", data, buffers + 48 * number, 0, 0, 0, 8, 64, room)
    struct.pack_into("<q", data, message_limits._field_place(data, outer(data), 3), 64 + room)
    return redigested([begins, message[:8] + data, struct.pack("<ii", 0, room).ljust(64, b"\0") + b"a" * room, *rest])


def test_columns_do_not_lie_in_the_same_bytes() -> None:
    """Whoever puts rows together copies them for each: a megabyte becomes as many as there are columns."""
    assert read(one_buffer(1, MOST // 2)).nbytes > MOST // 2
    with pytest.raises(errors.Broken, match="refer to the same bytes repeatedly"):
        read(one_buffer(2, MOST // 2))


def test_columns_do_not_share_a_dictionary() -> None:
    schema = pa.schema([(name, pa.dictionary(pa.int8(), pa.string())) for name in "ab"])
    column = pa.array(["x"]).dictionary_encode().cast(schema.field(0).type)
    pieces = ipc([pa.record_batch([column, column], schema)], complete(1), schema=schema)
    assert read(pieces)["b"].to_pylist() == ["x"]
    data = bytearray(pieces[0])
    second = message_limits._follow(data, 8 + message_limits._field_place(data[8:], header(data[8:]), 1)) + 8
    coded = message_limits._field_place(data, message_limits._follow(data, second), 4)
    number = message_limits._field_place(data, message_limits._follow(data, coded), 0)
    assert struct.unpack_from("<q", data, number) == (1,)
    struct.pack_into("<q", data, number, 0)
    with pytest.raises(errors.Broken, match="a separate dictionary for each column"):
        read([bytes(data), *pieces[1:]])


NUMBER = pa.opaque(pa.binary(1), "hugeint", "DuckDB")  # DuckDB takes 16 bytes for each
NOTE = {"ARROW:extension:name": "geoarrow.wkb", "why": "x"}
NOTED: dict[str, tuple[pa.DataType, pa.DataType, list[Any]]] = {
    "a number": (NUMBER, pa.binary(1), [b"a", None]),
    "a list": (pa.list_(NUMBER), pa.list_(pa.binary(1)), [[b"a"], None]),
    "a part": (pa.struct([("a", pa.list_(NUMBER))]), pa.struct([("a", pa.list_(pa.binary(1)))]), [{"a": [b"a"]}]),
    "a word": (pa.dictionary(pa.int8(), pa.string()), pa.dictionary(pa.int8(), pa.string()), ["a", "a"]),
    "notes in a list": (pa.list_(pa.field("item", pa.binary(), metadata=NOTE)), pa.list_(pa.binary()), [[b"a"]]),
    "what Arrow knows": (pa.uuid(), pa.binary(16), [b"a" * 16]),
    "JSON": (pa.json_(), pa.string(), ["{}", None]),
}


@pytest.mark.parametrize("name", NOTED)
def test_what_is_noted_beside_columns_goes_no_further(name: str) -> None:
    """Libraries believe it: they read memory, open files or make an index by it."""
    kind, expected, values = NOTED[name]
    noted = pa.schema([("n", pa.int64()), pa.field("c", kind, metadata=NOTE)], {"pandas": "{", "huggingface": "{"})
    plain = pa.schema([("n", pa.int64()), ("c", expected)])
    columns = [pa.array([7] * len(values)), pa.array(values, expected).cast(kind)]
    pieces = ipc([pa.record_batch(columns, noted)], complete(len(values)), schema=noted)
    found = read(pieces)
    assert found.schema.equals(plain, check_metadata=True)
    assert found["c"].to_pylist() == values
    assert b"geoarrow" not in found.schema.serialize().to_pybytes()
    told = Plan.read(planned(noted.serialize().to_pybytes()), columns=(), where="")
    assert told.schema.equals(plain, check_metadata=True)
    assert b"geoarrow" not in told.schema.serialize().to_pybytes()


def test_notes_that_show_when_others_are_left_out_are_refused() -> None:
    """Where it stands that a schema has notes, it also stands where its field says what it has: once there are none,
    the field has some."""
    data = bytearray(70_000)
    field = 108  # where it stands that the schema's notes lie 8 bytes on, and what the field has 65528: without, 65536
    for place, form, values in [
        (0, "<I", (16,)),
        (4, "<5H", (10, 12, 0, 8, 4)),  # what the message has: a kind and a header
        (16, "<iIB", (12, 32 - 20, 1)),  # the message
        (32, "<iII", (32 - 100, 48 - 36, 64 - 40)),  # the schema
        (48, "<II", (1, field - 52)),  # its fields
        (100, "<5H", (10, 12, 0, 4, 8)),  # what the schema has: fields and notes
        (field + 2, "<HI", (0xFFFF, 8)),
        (field + 65528, "<HH", (4, 4)),  # what the field has: nothing
        (field + 65536, "<9H", (18, 8, 0, 0, 0, 0, 0, 0, 4)),  # and notes
    ]:
        struct.pack_into(form, data, place, *values)
    with pytest.raises(errors.Broken, match="metadata that cannot be read"):
        message_limits._strip_notes(bytes(data))


def planned(schema: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = {"snapshot": "s", "plan": "p", "shown": "m", "blocks": [], "rows": 0, "exact": True}
    return answer | {"schema": base64.b64encode(schema).decode()}


def test_an_older_format_is_refused_as_it_hides_that_it_is_compressed() -> None:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    with pa.ipc.new_stream(sink, NUMBERS, options=options) as writer:
        writer.write_batch(pa.record_batch([pa.array([1])], NUMBERS))
    with pytest.raises(errors.Broken, match="version 5"):
        read([sink.getvalue().to_pybytes()])


def test_the_schema_of_a_plan_is_no_larger_than_metadata_may_be() -> None:
    schema = pa.schema([pa.field("n", pa.int64(), metadata={"why": "x" * message_limits.METADATA_MAX})])
    with pytest.raises(errors.Broken, match="a schema of"):
        Plan.read(planned(schema.serialize().to_pybytes()), columns=(), where="")
