"""A stream with a codec: what gets smaller is compressed, the rest goes as it is, and every reader reads both."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pytest

from connector.engine.worker.write.arrow_stream import ArrowStreamWriter

RANDOM = np.random.default_rng(5)
NOISE = pa.record_batch({"image": [RANDOM.bytes(4000) for _ in range(20)], "label": list(range(20))})
CALM = pa.record_batch({"image": [bytes(4000)] * 20, "label": list(range(20))})


def _sent(batches: Sequence[pa.RecordBatch], codec: str, digest: str = "none") -> tuple[list[bytes], bytes, bytes]:
    """Each batch's message, the whole stream, and its digest."""
    messages = ArrowStreamWriter(NOISE.schema, codec=codec, digest=digest, trailer_room=8)
    parts = []
    for batch in batches:
        found, size = messages.message(batch)
        parts.append(b"".join(memoryview(one) for one in found))
        assert size == len(parts[-1])
        messages.digest.update(parts[-1])
    return parts, b"".join((messages.head, *parts, messages.trailer)), messages.digest.digest()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize(
    ("batches", "smaller"),
    [
        ([NOISE] * 20, []),
        ([CALM] * 20, range(20)),
        ([CALM, NOISE, *[CALM] * 18], [0, 17, 18, 19]),  # noise is met at 1: tried again 16 later
        ([NOISE, *[CALM] * 18], [16, 17, 18]),
    ],
    ids=["noise", "calm", "noise in between", "noise first"],
)
def test_only_what_gets_smaller_is_compressed(
    codec: str, batches: Sequence[pa.RecordBatch], smaller: Sequence[int]
) -> None:
    plain, _, _ = _sent(batches, "none")
    parts, whole, _ = _sent(batches, codec)
    assert [number for number, part in enumerate(parts) if len(part) < 0.5 * len(plain[number])] == list(smaller)
    with pa.ipc.open_stream(whole) as reader:
        assert reader.read_all().equals(pa.Table.from_batches(batches))


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_noise_is_sent_as_without_a_codec_but_for_what_is_tried(codec: str) -> None:
    plain, _, _ = _sent([NOISE] * 40, "none")
    parts, _, _ = _sent([NOISE] * 40, codec)
    assert [n for n, (one, other) in enumerate(zip(parts, plain, strict=True)) if one != other] == [0, 16, 32]


def test_the_same_rows_are_the_same_bytes_and_the_same_digest() -> None:
    batches = [NOISE, CALM, NOISE, CALM] * 10
    assert _sent(batches, "zstd", "xxh3") == _sent(batches, "zstd", "xxh3")
