"""What a message takes of memory is bounded before Arrow takes it, whatever an owner sends."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hanse import _messages, _wire, errors
from hanse._wire import Request
from hanse.plan import Plan
from hanse.stream import Stream

from tests.client.support import chunked, complete, connector, ipc, recut

MOST = 1_000_000
NUMBERS = pa.schema([("n", pa.int64())])
TEXTS = pa.schema([("t", pa.dictionary(pa.int32(), pa.string()))])


@pytest.fixture(autouse=True)
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_messages, "_UNFOLDED_MAX", MOST)


def read(pieces: list[bytes]) -> pa.Table:
    with connector({("GET", "/"): chunked(pieces)}) as served:
        return Stream(_wire.ask(Request("GET", served.url))).to_arrow()


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
    "lz4": (zeros(2 * MOST, "lz4"), f"unfold to {2 * MOST}"),
    "zstd": (zeros(2 * MOST, "zstd"), f"unfold to {2 * MOST}"),
    "a dictionary": (texts(2 * MOST, codec="zstd", deltas=False), "dictionaries of at most"),
    "a dictionary that grows": (texts(*[MOST // 5] * 9, codec="zstd", deltas=True), "dictionaries of at most"),
    "one that is not compressed": (texts(*[MOST // 5] * 9, codec=None, deltas=True), "dictionaries of at most"),
    "it says more than it has": (
        changed(SAID, struct.pack("<q", 2**50))(zeros(8000, "zstd")), f"unfold to {2**50}"
    ),
    "it says less than nothing": (changed(SAID, LESS)(zeros(8000, "zstd")), "not Arrow"),
    "so that another may say more": (changed(struct.pack("<q", 3 * MOST), LESS)(both), f"unfold to {6 * MOST}"),
    "much metadata": ([struct.pack("<Ii", 0xFFFFFFFF, 5 * 2**20)], "message of"),
    "less than no metadata": ([struct.pack("<Ii", 0xFFFFFFFF, -2)], "message of"),
    "metadata without sense": ([struct.pack("<Ii", 0xFFFFFFFF, 8), b"\x80" * 8], "metadata cannot be read"),
    "a message without its mark": ([struct.pack("<i", 100), bytes(100)], "no message begins"),
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_what_would_unfold_to_more_is_refused_before_it_does(name: str) -> None:
    pieces, text = BOMBS[name]
    before = pa.total_allocated_bytes()
    with pytest.raises(errors.Broken, match=text):
        read(pieces)
    assert pa.total_allocated_bytes() - before < MOST


def test_an_older_format_is_refused_as_it_hides_that_it_is_compressed() -> None:
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    with pa.ipc.new_stream(sink, NUMBERS, options=options) as writer:
        writer.write_batch(pa.record_batch([pa.array([1])], NUMBERS))
    with pytest.raises(errors.Broken, match="version 5"):
        read([sink.getvalue().to_pybytes()])


def test_the_schema_of_a_plan_is_no_larger_than_metadata_may_be() -> None:
    schema = pa.schema([pa.field("n", pa.int64(), metadata={"why": "x" * _messages.METADATA_MAX})])
    answer: dict[str, Any] = {"snapshot": "s", "plan": "p", "blocks": [], "rows": 0, "exact": True}
    with pytest.raises(errors.Broken, match="a schema of"):
        Plan.read(answer | {"schema": base64.b64encode(schema.serialize()).decode()}, columns=(), where="")
