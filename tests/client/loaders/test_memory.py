"""What a loader holds is bounded by what it was told, whatever an owner sends around the rows."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hanse._arrow import message_limits
from hanse.errors import BadInput, Broken
from hanse.loaders import prefetch, row_slices

from tests.client.support import Raw, chunked, complete, ipc, owned, redigested

NUMBERS = pa.schema([("n", pa.int64())])
NOTHING = pa.schema([("n", pa.null())])
ROWS = 200
LOOSE = 2**20  # bytes around each row
SMALL = 4 * 2**20


def stream(columns: Sequence[Any], schema: pa.Schema) -> list[bytes]:
    places = [{"block": 0, "cursor": "c"}] * len(columns)
    batches = [pa.record_batch([column], schema) for column in columns]
    return ipc(batches, complete(sum(map(len, columns))), schema=schema, places=places)


def with_room(message: bytes, room: int) -> bytes:
    """A message whose body says, and has, so many bytes more than what is in it."""
    (length,) = struct.unpack_from("<i", message, 4)
    data = bytearray(message[8 : 8 + length])
    place = message_limits._field_place(data, message_limits._follow(data, 0), 3)
    (body,) = struct.unpack_from("<q", data, place)
    struct.pack_into("<q", data, place, body + room)
    return message[:8] + bytes(data) + message[8 + length :] + bytes(room)


def in_the_body() -> Iterator[bytes]:
    schema = NUMBERS.serialize().to_pybytes()
    pieces = stream([[row] for row in range(ROWS)], NUMBERS)
    pieces[0] = pieces[0].removeprefix(schema)
    yield schema
    yield from (with_room(piece, LOOSE) for piece in pieces[:ROWS])
    yield from pieces[ROWS:]


def between_batches() -> Iterator[bytes]:
    """A batch without rows and much else in the chunk of each batch with one."""
    pieces = list(in_the_body())
    some = stream([[1] * 77], NUMBERS)[0].removeprefix(pieces[0])
    empty = with_room(some.replace(struct.pack("<q", 77), bytes(8)), LOOSE)
    real = stream([[row] for row in range(ROWS)], NUMBERS)
    yield real[0] + empty
    yield from (piece + empty for piece in real[1:ROWS])
    yield from real[ROWS:]


def in_one_chunk() -> Iterator[bytes]:
    yield b"".join(redigested(list(between_batches())))


def compressed() -> Iterator[bytes]:
    """A row of a column whose buffer unfolds to much more than one value."""
    long = pa.record_batch([pa.array([0] * (LOOSE // 8), pa.int64())], NUMBERS)
    pieces = ipc(
        [long] * ROWS, complete(ROWS), schema=NUMBERS, codec="zstd", places=[{"block": 0, "cursor": "c"}] * ROWS
    )
    for piece in pieces:  # the number of rows: of the batch, and of its only column
        yield piece.replace(struct.pack("<q", LOOSE // 8), struct.pack("<q", 1))


@pytest.mark.parametrize("options", [{"batch_size": ROWS}, {"window": ROWS, "seed": 1}], ids=str)
@pytest.mark.parametrize(
    "made", [in_the_body, between_batches, in_one_chunk, compressed], ids=lambda made: made.__name__
)
def test_rows_that_are_put_together_keep_little_of_what_came_with_them(
    monkeypatch: pytest.MonkeyPatch, made: Any, options: dict[str, Any]
) -> None:
    monkeypatch.setattr(row_slices, "_SLACK_BYTES", SMALL)
    most = 0

    def seen(batch: pa.RecordBatch, look: Any = row_slices.kept_bytes) -> int:
        nonlocal most
        most = max(most, pa.total_allocated_bytes() - before)
        return int(look(batch))

    monkeypatch.setattr(row_slices, "kept_bytes", seen)
    pieces = list(made())
    with owned(chunked(redigested(pieces) if len(pieces) > 1 else pieces), schema=NUMBERS, rows=[ROWS]) as dataset:
        before = pa.total_allocated_bytes()
        (batch,) = dataset.loader(prefetch_bytes=SMALL, **options)
    if made is not compressed:
        assert sorted(batch.column("n").to_pylist()) == list(range(ROWS))
    assert batch.num_rows == ROWS
    assert most < 8 * SMALL + 2 * 2**24, "a small part of what came"


@pytest.mark.parametrize("schema", [NUMBERS, NOTHING], ids=str)
def test_few_of_many_small_batches_wait(schema: pa.Schema) -> None:
    column = pa.array([None], schema.field(0).type)
    with owned(chunked(stream([column] * 3000, schema)), schema=schema, rows=[3000]) as dataset:
        batches = iter(dataset.loader(prefetch_bytes=100_000))
        next(batches)
        (queue,) = prefetch._RUNNING.values()
        time.sleep(0.3)  # it would go on
        assert len(queue._items) < 100
        assert sum(batch.num_rows for batch in batches) == 2999


@pytest.mark.parametrize("cursor", ["c" * 2000, "ü", "\ud800"])
def test_a_cursor_that_is_none_of_ours_is_refused(cursor: str) -> None:
    batch = pa.record_batch([[1]], NUMBERS)
    answer: Raw = chunked(ipc([batch], complete(1), schema=NUMBERS, places=[{"block": 0, "cursor": cursor}]))
    with owned(answer, schema=NUMBERS, rows=[1]) as dataset, pytest.raises(Broken, match="expected a cursor"):
        list(dataset.loader())


def test_lists_of_unions_that_are_empty_are_counted() -> None:
    """Arrow looks for what they do not have where it counts the bytes of a batch that came, and the process ends."""
    union = pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["a"])])
    batch = pa.record_batch({"l": pa.ListArray.from_arrays(pa.array([0, 0, 0], pa.int32()), union.slice(0, 0))})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as written:
        written.write_batch(batch)
    (came,) = pa.ipc.open_stream(sink.getvalue())
    assert row_slices.value_bytes(came) == row_slices.kept_bytes(came)
    numbers = pa.record_batch({"n": range(1000)})
    assert row_slices.value_bytes(numbers.slice(0, 10)) == 80


def large(kind: pa.DataType) -> pa.RecordBatch:
    """A row of 1.1 GB, into which nobody looks."""
    size = 1_100_000_000
    offsets = pa.array([0, size], pa.int32()).buffers()[1]
    buffers = [None, offsets, pa.foreign_buffer(offsets.address, size, base=offsets)]
    return pa.record_batch([pa.array([1]), pa.Array.from_buffers(kind, 1, buffers)], ["id", "image"])


@pytest.mark.parametrize("kind", [pa.binary(), pa.string()], ids=str)
def test_a_batch_of_more_bytes_than_its_type_can_hold_is_refused_by_the_name_of_its_column(kind: pa.DataType) -> None:
    batch = large(kind)
    said = f"in column image of a batch than {kind} can hold.*got 2 rows.*smaller batch_size or window"
    with pytest.raises(BadInput, match=said):
        row_slices.join_batches([batch, batch])
    with pytest.raises(BadInput, match=said):
        row_slices.join_slices([(batch, 0, 1), (batch, 0, 1)])


def test_rows_of_more_bytes_than_one_batch_can_hold_are_given_as_slices() -> None:
    batch = large(pa.binary())
    run = row_slices.Run()
    for held in (0, 10**10):  # of the second that much lies beside it
        run.add(batch, 0, 1, keeps=held)
    assert [one is batch for one, _, _ in run.slices] == [True, True]
