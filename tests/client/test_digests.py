"""One byte that changes between an owner and its reader: what came is never taken for what left."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest
from hanse import errors
from hanse.client import Dataset

from tests.client.support import Asked, Raw, batch, chunked, complete, ipc, owned, redigested

BATCHES = [batch(*range(100)), batch(*range(100, 150))]
END = complete(150, bytes=4096, policy=["Groups below 5 patients are left out"], query="r1")
WHOLE = ipc(BATCHES, END, seal=True)
PLACED = [{"block": 0, "cursor": f"c{number}"} for number in range(2)]
ROWS = pa.Table.from_batches(BATCHES)
SEED, FLIPS = 31, 600


def flipped(answer: Raw, at: int, bit: int) -> Raw:
    """As a proxy sends it that damages one byte."""
    data = bytearray(answer.data)
    data[at] ^= 1 << bit
    return Raw(bytes(data))


def read(dataset: Dataset) -> tuple[pa.Table, Mapping[str, Any]]:
    stream = dataset.stream(patience=0, idle_seconds=10)
    return stream.to_arrow(), stream.end


def test_no_byte_changes_unnoticed() -> None:
    answer, draw = chunked(WHOLE), random.Random(SEED)
    body, record = answer.data.index(b"\r\n\r\n") + 4, answer.data.index(b"hanse.end")
    last = answer.data.rindex(b"\xff\xff\xff\xff", 0, record)  # where the message of the end record begins
    found = 0
    with owned(lambda _: coming.pop()) as dataset:
        coming = [answer]
        whole, end = read(dataset)
        assert whole.equals(ROWS)
        for _ in range(FLIPS):
            at = draw.randrange(body, len(answer.data))
            coming = [flipped(answer, at, draw.randrange(8))]
            try:
                came = read(dataset)
            except errors.HanseError:
                found += 1
                continue
            assert at >= last, f"byte {at} before the end record"  # of padding there, which says nothing
            assert came == (whole, end)
    assert found > FLIPS / 2


@pytest.mark.parametrize("at", [b"n7", b"hanse.end", b"name", b"Groups", b"4096", b"xxh3:", b'"digest"'])
def test_a_changed_byte_of_rows_names_and_the_end_record_is_found(at: bytes) -> None:
    answer = chunked(WHOLE)
    with (
        owned(flipped(answer, answer.data.index(at) + 1, 0)) as dataset,
        pytest.raises((errors.DigestMismatch, errors.Broken)),
    ):
        read(dataset)


def test_rows_that_changed_have_a_code_of_their_own_and_both_digests() -> None:
    answer = chunked(WHOLE)
    with owned(flipped(answer, answer.data.index(b"n7"), 0)) as dataset:
        stream = dataset.stream(patience=5)
        with pytest.raises(errors.DigestMismatch) as raised:
            stream.to_arrow()
    assert raised.value.code == "digest_mismatch"
    assert raised.value.facts["expected"] == stream.end["digest"] != raised.value.facts["computed"] == stream.digest
    assert isinstance(raised.value, errors.Broken)


@pytest.mark.parametrize("status", ["complete", "lease_expired", "error"])
def test_reading_does_not_go_on_after_rows_that_changed(status: str) -> None:
    """The rows before another part are as damaged as those of the last one."""
    end = {"status": status, "rows": 100, "code": "shutting_down" if status == "error" else status}
    first = chunked(ipc(BATCHES[:1], end, places=PLACED[:1], seal=True))
    calls: list[Asked] = []

    def answer(asked: Asked) -> Raw:
        calls.append(asked)
        return flipped(first, first.data.index(b"n7"), 0)

    with owned(answer) as dataset, pytest.raises(errors.DigestMismatch):
        dataset.stream(patience=5).to_arrow()
    assert len(calls) == 1


def test_each_part_of_a_resumed_read_has_a_digest_of_its_own() -> None:
    cut = chunked(ipc(BATCHES, END, places=PLACED)[:1], last=False)
    rest = chunked(ipc(BATCHES[1:], complete(50), places=PLACED[1:], seal=True))
    for last, good in ((rest, True), (flipped(rest, rest.data.index(b"n107"), 0), False)):
        answers = [last, cut]
        with owned(lambda _, answers=answers: answers.pop()) as dataset:
            stream = dataset.stream(patience=5)
            if good:
                assert stream.to_arrow().equals(ROWS)
                assert stream.reopened == 1
                continue
            with pytest.raises(errors.DigestMismatch):
                stream.to_arrow()


@pytest.mark.parametrize("named", [None, "", "xxh3:", "sha256:" + "0" * 64, 7])
def test_an_end_without_the_digest_that_was_asked_for_is_no_end(named: Any) -> None:
    with owned(chunked(ipc(BATCHES, {**END, "digest": named}))) as dataset, pytest.raises(errors.DigestMismatch):
        read(dataset)


def test_an_end_record_of_an_older_owner_has_no_digest_of_itself() -> None:
    with owned(chunked(ipc(BATCHES, END))) as dataset:
        assert read(dataset)[0].equals(ROWS)


def test_a_loader_gives_no_batch_after_rows_that_changed() -> None:
    answer = chunked(ipc(BATCHES, complete(150), places=PLACED[:1] * 2, seal=True))
    with (
        owned(flipped(answer, answer.data.index(b"n107"), 0), rows=[150]) as dataset,
        pytest.raises(errors.DigestMismatch),
    ):
        list(dataset.loader(batch_size=10))


def test_a_record_that_is_changed_together_with_its_digest_does_not_vouch_for_rows() -> None:
    changed = [piece.replace(b"n7", b"n8") for piece in ipc(BATCHES, END)]
    with owned(chunked(changed)) as dataset, pytest.raises(errors.DigestMismatch):
        read(dataset)
    with owned(chunked(redigested(changed))) as dataset:  # XXH3 finds damage, not an adversary
        assert read(dataset)[0].num_rows == 150
