"""Pushes to us: who may, how much, for how long, and that only what is whole and valid is ever there."""

from __future__ import annotations

import asyncio
import errno
import gzip
import hashlib
import os
import random
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pytest
import pytest_asyncio

from connector.dataplane.push import push_receiver as service
from connector.dataplane.push import received_files
from connector.engine.pool.error_codes import error_of
from connector.engine.pool.protocol import TRAILER_KEY, Job
from connector.errors import Absent, Invalid, Unavailable
from connector.infra.http.media_type import ARROW_STREAM
from connector.store import UNKNOWN
from tests.support import data
from tests.support.own_name import changed
from tests.support.receiver import Receiver, running, stream
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
WHOLE = stream()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Receiver]:
    async with running(tmp_path_factory.mktemp("receiver")) as made:
        yield made


@pytest.fixture
def pid() -> str:
    return f"urn:uuid:{os.urandom(8).hex()}"


class Sender:
    """A push by hand, over a socket of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, here: Receiver, pid: str, *, media: str = ARROW_STREAM) -> Sender:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(here.url).port)
        made = cls(reader, writer)
        head = [f"POST /data/v1/received/{pid} HTTP/1.1", "host: x", "transfer-encoding: chunked"]
        head += [f"{name}: {value}" for name, value in {**here.shown(pid), "content-type": media}.items()]
        writer.write("\r\n".join([*head, "", ""]).encode())
        return made

    async def send(self, piece: bytes) -> None:
        self.writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        await self.writer.drain()

    async def answer(self) -> bytes:
        return await asyncio.wait_for(self.reader.read(2**16), 60)


async def test_a_whole_stream_is_kept_for_nobody_elses_eyes(here: Receiver, pid: str) -> None:
    await here.transfer(pid)
    answer = await here.push(pid, WHOLE)
    assert (answer.status_code, answer.json()["rows"]) == (200, 2000)
    known = await here.known(pid)
    assert known is not None
    assert (known.rows, known.batches, known.bytes, known.whole) == (2000, 4, len(WHOLE), True)
    path, _ = await here.receiving.file(pid)
    assert path.read_bytes() == WHOLE
    assert path.stat().st_mode & 0o777 == 0o600
    (event,) = here.told(pid)
    assert (event.kind, event.outcome, event.detail["digest"]) == ("DataReceived", "ok", known.digest)


async def test_what_is_sent_in_pieces_is_the_same(here: Receiver, pid: str) -> None:
    await here.transfer(pid)

    async def pieces() -> AsyncIterator[bytes]:
        for at in range(0, len(WHOLE), 1000):
            yield WHOLE[at : at + 1000]

    assert (await here.push(pid, pieces())).status_code == 200
    assert (await here.receiving.file(pid))[0].read_bytes() == WHOLE


async def test_a_stream_of_others_has_no_end_record_and_is_marked_so(here: Receiver, pid: str) -> None:
    await here.transfer(pid)
    assert (await here.push(pid, stream(ended=False))).status_code == 200
    known = await here.known(pid)
    assert known is not None
    assert (known.rows, known.whole, known.digest) == (2000, False, "")


REFUSED: dict[str, dict[str, Any]] = {
    "no token": {"authorization": ""},
    "a wrong token": {"authorization": "Bearer " + "0" * 64},
    "nobody's token": {"authorization": "Bearer é".encode()},
}


async def test_refusals_of_who_may_not_push_are_alike(here: Receiver, pid: str) -> None:
    await here.transfer(pid)
    other = await here.transfer(f"{pid}-other")
    seen = [await here.push(pid, WHOLE, **headers) for headers in REFUSED.values()]
    seen.append(await here.push(pid, WHOLE, authorization=here.shown(other)["authorization"]))
    seen.append(await here.push("urn:uuid:nobody", WHOLE))
    for state in ("", "SUSPENDED", "COMPLETED", "TERMINATED"):
        seen.append(await here.push(await here.transfer(f"{pid}-{state}", state=state), WHOLE))
    seen.append(await here.push(await here.transfer(f"{pid}-theirs", role="provider"), WHOLE))
    assert {answer.status_code for answer in seen} == {401}
    assert len({answer.content for answer in seen}) == 1
    assert not here.told(pid)
    assert (await here.push(pid, WHOLE)).status_code == 200  # the right one was not used up


async def test_a_repeat_of_what_was_received_changes_nothing(here: Receiver, pid: str) -> None:
    await here.transfer(pid)
    first = await here.push(pid, WHOLE)
    await here.moved(pid, "COMPLETED")
    again = await here.push(pid, stream(10))
    assert (again.status_code, again.json()) == (200, first.json())
    assert (await here.receiving.file(pid))[0].read_bytes() == WHOLE
    assert len(here.told(pid)) == 1


async def dribbled(here: Receiver, pid: str) -> bytes:
    """What a push is answered that comes a byte now and then."""
    sender = await Sender.to(here, pid)
    answering = asyncio.ensure_future(sender.answer())
    async with asyncio.timeout(30):
        while not answering.done():
            await sender.send(b"x")
            await asyncio.sleep(0.1)
    return answering.result()


async def test_a_repeat_that_dribbles_has_an_end_too(here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await here.transfer(pid)
    assert (await here.push(pid, WHOLE)).status_code == 200
    monkeypatch.setattr(here.receiving, "room", replace(here.receiving.room, seconds=1.0))
    assert b'"too_slow"' in await dribbled(here, pid)
    assert [event.kind for event in here.told(pid)] == ["DataReceived"]  # nothing of it has changed
    assert (await here.row(pid)).code == ""
    assert (await here.receiving.file(pid))[0].read_bytes() == WHOLE


async def test_repeats_take_no_place_of_what_has_not_come_yet(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor more of their own than there are; each leaves its place to the next of its transfer."""
    first, second, new = [await here.transfer(f"{pid}-{name}") for name in ("first", "second", "new")]
    for one in (first, second):
        assert (await here.push(one, WHOLE)).status_code == 200
        await here.moved(one, "COMPLETED")
    monkeypatch.setattr(service, "_AT_ONCE", 1)
    hanging = await Sender.to(here, first)
    await until(lambda: here.receiving.progress(first) is not None)
    assert (await here.push(second, WHOLE)).json()["code"] == "pushes_max"
    assert (await here.push(new, WHOLE)).status_code == 200
    assert (await here.push(first, WHOLE)).status_code == 200
    assert b'"replaced"' in await hanging.answer()
    assert (await here.push(second, WHOLE)).status_code == 200
    assert [(await here.row(one)).code for one in (first, second)] == ["", ""]


async def test_one_provider_has_not_all_places_and_whoever_waits_for_one_says_so(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_EACH", 1)
    held, waits = await here.transfer(f"{pid}-held"), await here.transfer(f"{pid}-waits")
    another = await here.transfer(f"{pid}-another", of="did:web:another.example")
    hanging = await Sender.to(here, held)
    await until(lambda: here.receiving.progress(held) is not None)
    assert (await here.push(waits, WHOLE)).json()["code"] == "pushes_max"
    row = await here.row(waits)
    assert (row.code, "1 pushes of did:web:clinic.example are under way" in row.reason) == ("pushes_max", True)
    assert (await here.push(another, WHOLE)).status_code == 200
    hanging.writer.close()
    await until(lambda: here.receiving.progress(held) is None)
    coming = await Sender.to(here, waits)
    await coming.send(WHOLE)
    await until(lambda: here.receiving.progress(waits) == len(WHOLE))
    row = await here.row(waits)
    assert (row.code, row.reason) == ("", "")
    coming.writer.write(b"0\r\n\r\n")
    assert b" 200 " in await coming.answer()


@pytest.mark.parametrize("repeat", [False, True], ids=["what comes first", "a repeat"])
async def test_a_byte_now_and_then_is_silence(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch, repeat: bool
) -> None:
    await here.transfer(pid)
    if repeat:
        assert (await here.push(pid, WHOLE)).status_code == 200
    monkeypatch.setattr(here.receiving, "room", replace(here.receiving.room, stall=1.0))
    assert b'"sender_stalled"' in await dribbled(here, pid)


async def test_a_few_rows_now_and_then_are_no_silence(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await here.transfer(pid)
    monkeypatch.setattr(here.receiving, "room", replace(here.receiving.room, stall=1.5))
    sender = await Sender.to(here, pid)
    for at in range(0, 1_300, 130):
        await sender.send(WHOLE[at : at + 130])
        await asyncio.sleep(0.3)
    await sender.send(WHOLE[1_300:])
    sender.writer.write(b"0\r\n\r\n")
    assert b" 200 " in await sender.answer()


async def test_a_repeat_does_not_outlive_its_connector(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here.receiving, "_draining", "")  # and again after this
    await here.transfer(pid)
    assert (await here.push(pid, WHOLE)).status_code == 200
    hanging = await Sender.to(here, pid)
    await until(lambda: here.receiving.progress(pid) is not None)
    here.receiving.drain("the connector is shutting down")
    assert b'"shutting_down"' in await hanging.answer()
    assert (await here.push(pid, WHOLE)).json()["code"] == "shutting_down"


LIES: dict[str, tuple[dict[str, Any], str]] = {
    "rows": ({"rows": 1999}, "totals_differ"),
    "batches": ({"batches": 5}, "totals_differ"),
    "digest": ({"digest": "xxh3:" + "0" * 32}, "digest_mismatch"),
    "a digest of another kind": ({"digest": "crc:00"}, "digest_mismatch"),
    "no digest": ({"digest": None}, "digest_mismatch"),
    "a digest that is no text": ({"digest": {"a": 1}}, "digest_mismatch"),
    "revoked": ({"status": "revoked", "reason": "the study was closed"}, "incomplete"),
    "no status": ({"status": None}, "incomplete"),
}


@pytest.mark.parametrize(("end", "code"), LIES.values(), ids=LIES.keys())
async def test_an_end_record_that_does_not_fit_leaves_nothing(
    here: Receiver, pid: str, end: dict[str, Any], code: str
) -> None:
    before = here.files()
    await here.transfer(pid)
    answer = await here.push(pid, stream(end=end))
    assert (answer.status_code, answer.json()["code"]) == (400, code)
    await nothing_left(here, pid, before, code)


async def test_a_push_in_which_one_byte_changed_is_never_whole(here: Receiver) -> None:
    """Where the name of the end record changed there is none: then it is taken for a stream of others."""
    draw, digests = random.Random(31), 0
    before_end = WHOLE.rindex(b"\xff\xff\xff\xff", 0, WHOLE.index(TRAILER_KEY.encode()))
    for number in range(60):
        at = draw.randrange(before_end if number < 40 else len(WHOLE))
        body = WHOLE[:at] + bytes([WHOLE[at] ^ 1 << draw.randrange(8)]) + WHOLE[at + 1 :]
        pid = await here.transfer(f"urn:uuid:flipped{number}")
        answer = await here.push(pid, body)
        known = await here.known(pid)
        assert known is None or at >= before_end
        assert (known is None) == (answer.status_code == 400)
        digests += known is None and answer.json()["code"] == "digest_mismatch"
    assert digests > 20


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "text": b"not arrow",
    "cut in a batch": WHOLE[:-9000],
    "bytes after the end": WHOLE + b"more",
    "two streams": WHOLE + WHOLE,
    "ones": b"\xff" * 4096,
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
async def test_what_is_not_valid_arrow_leaves_nothing(here: Receiver, pid: str, body: bytes) -> None:
    before = here.files()
    await here.transfer(pid)
    answer = await here.push(pid, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "arrow_invalid")
    await nothing_left(here, pid, before, "arrow_invalid")


@pytest.mark.parametrize("batches", [1, 3])
async def test_more_rows_than_anybody_writes_into_a_batch_are_refused(here: Receiver, pid: str, batches: int) -> None:
    """Rows without bytes may be any number, and three batches of these are more than the database counts."""
    before = here.files()
    await here.transfer(pid)
    answer = await here.push(pid, data.rows_without_bytes(2**62, batches=batches))
    assert (answer.status_code, answer.json()["code"]) == (400, "batch_too_long")
    await nothing_left(here, pid, before, "batch_too_long")


async def nothing_left(here: Receiver, pid: str, before: list[Path], code: str) -> None:
    assert here.files() == before
    assert await here.known(pid) is None
    assert (await here.row(pid)).code == code
    (event,) = here.told(pid)
    assert (event.kind, event.outcome, event.code) == ("DataRefused", "refused", code)
    with pytest.raises(Absent):
        await here.receiving.file(pid)


async def test_mutated_streams_are_refused_whatever_they_do_to_a_parser(here: Receiver, pid: str) -> None:
    """The digest of the end record tells any change; where the record itself is hit, so does the form."""
    chance, before = random.Random(11), here.files()
    for number in range(40):
        body = bytearray(WHOLE)
        at = chance.randrange(len(body) - 3000)  # padding after the end record may change
        body[at] ^= 1 + chance.randrange(255)
        one = await here.transfer(f"{pid}-{number}")
        assert (await here.push(one, bytes(body))).status_code in (400, 429, 500)
        assert await here.known(one) is None
    assert here.files() == before


async def test_a_push_that_was_cut_leaves_nothing_and_can_begin_anew(here: Receiver, pid: str) -> None:
    before = here.files()
    await here.transfer(pid)
    sender = await Sender.to(here, pid)
    await sender.send(WHOLE)  # all of it, but not its last chunk
    await until(lambda: here.receiving.progress(pid) == len(WHOLE))
    sender.writer.close()
    await until(lambda: here.told(pid))
    await nothing_left(here, pid, before, "cut")
    assert (await here.push(pid, WHOLE)).status_code == 200
    assert ((await here.row(pid)).code, (await here.row(pid)).reason) == ("", "")


async def test_a_repeat_takes_the_place_of_one_that_hangs(here: Receiver, pid: str) -> None:
    await here.transfer(pid)
    hanging = await Sender.to(here, pid)
    await hanging.send(WHOLE[:5000])
    await until(lambda: here.receiving.progress(pid) == 5000)
    assert (await here.push(pid, WHOLE)).status_code == 200
    assert b'"replaced"' in await hanging.answer()
    assert (await here.receiving.file(pid))[0].read_bytes() == WHOLE
    assert [path for path in here.files() if path.parent.name == "arriving"] == []


@pytest.mark.parametrize(
    ("header", "media"),
    [("text/csv", "text/csv"), ("Text/CSV; charset=utf-8", "text/csv"), ("", "application/octet-stream")],
)
async def test_a_file_of_another_kind_of_connector_is_kept_as_it_is(
    here: Receiver, pid: str, header: str, media: str
) -> None:
    await here.transfer(pid)

    async def pieces() -> AsyncIterator[bytes]:
        yield b"id,value\n"
        yield b"1,\xff\n"

    answer = await here.push(pid, pieces(), **{"content-type": header})
    assert (answer.status_code, answer.json()["rows"]) == (200, 0)
    path, found = await here.receiving.file(pid)
    assert (path.read_bytes(), found) == (b"id,value\n1,\xff\n", media)
    known = await here.known(pid)
    assert known is not None
    digest = f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    assert (known.bytes, known.media, known.whole, known.digest) == (path.stat().st_size, media, False, digest)
    (event,) = here.told(pid)
    assert (event.detail["media"], event.detail["digest"]) == (media, digest)


@pytest.mark.parametrize("header", ["text", "text/a b", f"text/{'x' * 61}"])
async def test_a_media_type_that_is_none_is_refused(here: Receiver, pid: str, header: str) -> None:
    await here.transfer(pid)
    answer = await here.push(pid, b"a,b\n", **{"content-type": header})
    assert (answer.status_code, answer.json()["code"]) == (400, "media_type")


async def test_a_compressed_body_is_refused_before_it_is_read(here: Receiver, pid: str) -> None:
    answer = await here.push(pid, gzip.compress(b"a,b\n"), **{"content-type": "text/csv", "content-encoding": "gzip"})
    assert (answer.status_code, answer.json()["code"]) == (415, "encoding_unknown")
    assert await here.known(pid) is None


async def test_a_file_that_is_too_large_or_cut_is_not_kept(here: Receiver, pid: str) -> None:
    before, other = here.files(), await here.transfer(f"{pid}-other")
    await here.transfer(pid)
    answer = await here.push(other, b"x" * (here.receiving.room.each + 1), **{"content-type": "text/csv"})
    assert (answer.status_code, answer.json()["code"]) == (400, "push_too_large")
    await nothing_left(here, other, before, "push_too_large")
    sender = await Sender.to(here, pid, media="text/csv")
    await sender.send(b"id,value\n")
    await until(lambda: here.receiving.progress(pid) == 9)
    sender.writer.close()
    await until(lambda: here.told(pid))
    await nothing_left(here, pid, before, "cut")


@pytest.mark.parametrize("state", ["SUSPENDED", "TERMINATED", "COMPLETED"])
async def test_a_transfer_that_stops_ends_its_push(here: Receiver, pid: str, state: str) -> None:
    before = here.files()
    await here.transfer(pid)
    sender = await Sender.to(here, pid)
    await sender.send(WHOLE[:5000])
    await until(lambda: here.receiving.progress(pid) == 5000)
    await here.moved(pid, state)
    assert b'"transfer_not_started"' in await sender.answer()
    await until(lambda: here.told(pid))
    assert here.files() == before
    assert (await here.row(pid)).code == ""  # its own reason is not written over


async def test_what_ends_while_it_is_checked_does_not_count(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an event: another process on the database may have ended it, and we hear of that later."""
    before, ask = here.files(), here.pool.ask

    async def ended_meanwhile(job: Job) -> Any:
        found = await ask(job)
        await here.store.write(lambda tx: setattr(tx.transfers.get(pid), "state", "TERMINATED"))
        return found

    await here.transfer(pid)
    with monkeypatch.context() as patched:
        patched.setattr(here.pool, "ask", ended_meanwhile)
        answer = await here.push(pid, WHOLE)
    assert (answer.status_code, answer.json()["code"]) == (403, "transfer_not_started")
    assert here.files() == before
    assert await here.known(pid) is None


async def test_a_repeat_while_it_is_checked_has_to_wait(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    go, ask = asyncio.Event(), here.pool.ask

    async def slowly(job: Job) -> Any:
        await go.wait()
        return await ask(job)

    await here.transfer(pid)
    with monkeypatch.context() as patched:
        patched.setattr(here.pool, "ask", slowly)
        first = await Sender.to(here, pid)
        await first.send(WHOLE)
        first.writer.write(b"0\r\n\r\n")
        await until(lambda: pid in here.receiving._coming and here.receiving._coming[pid].checking)
        again = await here.push(pid, WHOLE)
        assert (again.status_code, again.json()["code"]) == (503, "being_checked")
        first.writer.close()  # it counts, whether its sender waits for that or not
        go.set()
        await until(lambda: here.told(pid))
    assert here.told(pid)[0].kind == "DataReceived"
    assert (await here.push(pid, WHOLE)).status_code == 200


async def test_of_all_that_came_one_is_checked_at_a_time_in_turn_between_senders(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, checking, order, all_came = here.pool.ask, 0, list[str](), asyncio.Event()

    async def alone(job: Any) -> Any:
        nonlocal checking
        order.append(job.consumer)
        checking += 1
        await all_came.wait()
        try:
            assert checking == 1
            return await ask(job)
        finally:
            checking -= 1

    monkeypatch.setattr(here.pool, "ask", alone)
    senders = ["did:web:a", "did:web:a", "did:web:a", "did:web:b"]
    pids = [await here.transfer(f"{pid}{number}", of=who) for number, who in enumerate(senders)]
    pushing = []
    for number, one in enumerate(pids):
        pushing.append(asyncio.ensure_future(here.push(one, WHOLE)))
        await until(lambda number=number: len(order) + here.receiving._checks.waiting == number + 1)  # type: ignore[misc]  # bound for this round
    all_came.set()
    assert [(await one).status_code for one in pushing] == [200] * 4
    assert order == ["did:web:a", "did:web:a", "did:web:b", "did:web:a"]


@pytest.mark.parametrize("code", ["time_limit", "worker_wanted"])
async def test_a_check_that_takes_too_long_is_told_as_that(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    async def fails(_: Any) -> Any:
        raise error_of(code, {})

    await here.transfer(pid)
    monkeypatch.setattr(here.pool, "ask", fails)
    told = (await here.push(pid, WHOLE)).json()
    assert (told["code"], "less compressed" in told["detail"]) == (code, True)


async def test_what_was_received_goes_when_its_transfer_is_terminated(here: Receiver, pid: str) -> None:
    before = here.files()
    await here.transfer(pid)
    await here.push(pid, WHOLE)
    await here.moved(pid, "TERMINATED")
    await until(lambda: len(here.told(pid)) == 2)
    assert here.files() == before
    with pytest.raises(Absent, match="removed"):
        await here.receiving.file(pid)
    assert [event.kind for event in here.told(pid)] == ["DataReceived", "DataRemoved"]


async def test_what_is_removed_stays_known(here: Receiver, pid: str) -> None:
    before = here.files()
    await here.transfer(pid)
    await here.push(pid, WHOLE)
    await here.receiving.remove(pid, by="anna")
    assert here.files() == before
    known = await here.known(pid)
    assert known is not None
    assert known.removed_at
    assert here.told(pid)[-1].actor == "anna"
    with pytest.raises(Absent):
        await here.receiving.remove(pid, by="anna")


FULL = (errno.ENOSPC, "disk_full", "free space on")
OTHERWISE = (errno.EMFILE, "not_written", "Too many open files")


@pytest.mark.parametrize(("call", "why"), [("write", FULL), ("fsync", FULL), ("open", FULL), ("open", OTHERWISE)])
async def test_a_push_that_cannot_be_written_is_told_why_and_leaves_nothing(
    here: Receiver, pid: str, call: str, why: tuple[int, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told from a system that fails otherwise."""
    number, code, told = why

    def fails(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    before = here.files()
    await here.transfer(pid)
    with monkeypatch.context() as patched:
        patched.setattr(received_files, "os", changed(os, **{call: fails}))
        answer = await here.push(pid, WHOLE)
    assert (answer.status_code, answer.json()["code"]) == (503, code)
    assert told in answer.json()["detail"]
    await nothing_left(here, pid, before, code)


@contextmanager
def read_only(here: Receiver, call: str = "open") -> Iterator[list[Path]]:
    """The disk lets nothing go, and makes no `call`, until this ends; what somebody wanted to remove meanwhile."""
    wanted: list[Path] = []

    def refused(*_: Any) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    def kept(path: Path) -> None:
        wanted.append(path)
        refused()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(received_files, "os", changed(os, **{call: refused, "unlink": kept}))
        yield wanted


async def test_a_read_only_disk_is_told_too(here: Receiver, pid: str) -> None:
    before = here.files()
    await here.transfer(pid)
    with read_only(here):
        answer = await here.push(pid, WHOLE)
    assert (answer.status_code, answer.json()["code"]) == (503, "disk_full")
    assert "Read-only" in answer.json()["detail"]
    await nothing_left(here, pid, before, "disk_full")


async def test_what_a_disk_does_not_let_go_of_is_not_said_to_be_removed(here: Receiver, pid: str) -> None:
    before = here.files()
    await here.transfer(pid)
    await here.push(pid, WHOLE)
    with read_only(here):
        with pytest.raises(Unavailable, match="Read-only file system") as raised:
            await here.receiving.remove(pid, by="anna")
        assert raised.value.code == "not_removed"
        assert (await here.receiving.file(pid))[0].read_bytes() == WHOLE
        assert [event.kind for event in here.told(pid)] == ["DataReceived"]
    await here.receiving.remove(pid, by="anna")
    assert here.files() == before
    assert [event.kind for event in here.told(pid)] == ["DataReceived", "DataRemoved"]


async def test_what_a_terminated_transfer_left_goes_once_the_disk_lets_it_go(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = here.files()
    await here.transfer(pid)
    await here.push(pid, WHOLE)
    monkeypatch.setattr(service, "_REMOVE_AGAIN", 0.01)
    with read_only(here) as wanted:
        await here.moved(pid, "TERMINATED")
        await until(lambda: len(wanted) > 1)
        assert [event.kind for event in here.told(pid)] == ["DataReceived"]
    await until(lambda: here.told(pid)[-1].kind == "DataRemoved")
    assert here.files() == before


async def test_a_removal_that_was_not_recorded_is_asked_for_again(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a crash between the two."""

    async def away(_: Any) -> Any:
        raise Unavailable("the database does not answer now")

    await here.transfer(pid)
    await here.push(pid, WHOLE)
    with monkeypatch.context() as patched:
        patched.setattr(here.store, "write", away)
        with pytest.raises(Unavailable, match="the database"):
            await here.receiving.remove(pid, by="anna")
    with pytest.raises(Absent, match="remove it again"):
        await here.receiving.file(pid)
    await here.receiving.remove(pid, by="anna")
    told = here.told(pid)[-1]
    assert (told.kind, told.detail["file"]) == ("DataRemoved", "not_here")  # for all that this process knows
    with pytest.raises(Absent, match="was removed"):
        await here.receiving.file(pid)


async def test_a_file_that_was_said_to_be_removed_and_is_there_can_be(here: Receiver, pid: str) -> None:
    """Another process on the database may have said so."""
    before = here.files()
    await here.transfer(pid)
    await here.push(pid, WHOLE)
    await here.store.write(lambda tx: setattr(tx.pushed_data.get(pid), "removed_at", tx.now))
    await here.receiving.remove(pid, by="anna")
    assert here.files() == before
    with pytest.raises(Absent):
        await here.receiving.remove(pid, by="anna")


async def test_what_nobody_foresaw_is_told_without_its_words_and_leaves_nothing(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any) -> None:
        raise KeyError("a secret")

    before = here.files()
    await here.transfer(pid)
    with monkeypatch.context() as patched:
        patched.setattr(service, "check_complete", wrong)
        answer = await here.push(pid, WHOLE)
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert "secret" not in answer.text
    await nothing_left(here, pid, before, "internal")


@pytest_asyncio.fixture(loop_scope="module")
async def small(here: Receiver, tmp_path: Path) -> AsyncIterator[Receiver]:
    """One with little room; its worker may not read here, so nothing can be checked."""
    async with running(tmp_path, here.pool, each=4_000_000, total=5_000_000) as made:
        yield made


async def test_what_stays_of_a_refused_push_takes_room_until_the_next_start(small: Receiver, pid: str) -> None:
    await small.transfer(pid)
    with read_only(small, call=""):
        answer = await small.push(pid, b"x" * 6_000_000)
    assert (answer.status_code, answer.json()["code"]) == (400, "push_too_large")
    assert len(small.files()) == 1
    assert (await small.push(pid, b"x" * 1_000_000)).json()["code"] == "received_full"
    await small.receiving.start()
    assert not small.files()
    assert (await small.push(pid, b"x" * 1_000_000)).json()["code"] != "received_full"


async def test_more_than_one_push_may_bring_is_refused_and_heard_of(small: Receiver, pid: str) -> None:
    await small.transfer(pid)
    answer = await small.push(pid, b"x" * 6_000_000)
    assert (answer.status_code, answer.json()["code"]) == (400, "push_too_large")
    await nothing_left(small, pid, [], "push_too_large")
    properties = {one["name"]: one["value"] for one in small.receiving.address(pid)["endpointProperties"]}
    assert properties["maxBytes"] == "4000000"


async def test_the_address_of_a_push_has_the_names_of_edc_too(small: Receiver, pid: str) -> None:
    address = small.receiving.address(pid)
    properties = {one["name"]: one["value"] for one in address["endpointProperties"]}
    assert address["endpointType"] == "HttpData"
    assert properties["baseUrl"] == address["endpoint"]
    assert (properties["authKey"], properties["authCode"]) == ("Authorization", properties["authorization"])


async def test_all_pushes_together_have_a_room_that_comes_free_again(small: Receiver, pid: str) -> None:
    first, second = await small.transfer(f"{pid}-1"), await small.transfer(f"{pid}-2")
    sender = await Sender.to(small, first)
    await sender.send(b"x" * 3_000_000)
    await until(lambda: small.receiving.progress(first) == 3_000_000)
    answer = await small.push(second, b"y" * 3_000_000)
    assert (answer.status_code, answer.json()["code"]) == (503, "received_full")
    sender.writer.close()
    await until(lambda: not small.files())
    answer = await small.push(second, b"y" * 3_000_000)
    assert answer.json()["code"] != "received_full"


async def test_a_sender_that_stalls_is_cut_off(here: Receiver, tmp_path: Path, pid: str) -> None:
    async with running(tmp_path, here.pool, stall=0.5) as small:
        await small.transfer(pid)
        sender = await Sender.to(small, pid)
        await sender.send(WHOLE[:5000])
        assert b'"sender_stalled"' in await sender.answer()
        await until(lambda: small.told(pid))
        await nothing_left(small, pid, [], "sender_stalled")


async def test_a_sender_that_dribbles_has_an_end_too(here: Receiver, tmp_path: Path, pid: str) -> None:
    async with running(tmp_path, here.pool, seconds=1.0) as small:
        await small.transfer(pid)
        sender = await Sender.to(small, pid)
        answering = asyncio.ensure_future(sender.answer())
        while not answering.done():
            await sender.send(b"x")
            await asyncio.sleep(0.1)
        assert b'"too_slow"' in answering.result()
        await nothing_left(small, pid, [], "too_slow")


async def test_stopping_ends_what_comes_and_takes_nothing_new(small: Receiver, pid: str) -> None:
    await small.transfer(pid)
    sender = await Sender.to(small, pid)
    await sender.send(WHOLE[:5000])
    await until(lambda: small.receiving.progress(pid) == 5000)
    small.receiving.drain("the connector is shutting down")
    assert b"shutting_down" in await sender.answer()
    assert (await small.push(pid, WHOLE)).json()["code"] == "shutting_down"


async def test_without_room_nothing_is_ordered_or_taken(here: Receiver, tmp_path: Path, pid: str) -> None:
    async with running(tmp_path, here.pool, total=0) as none:
        with pytest.raises(Invalid, match="HANSE_RECEIVED_MB"):
            none.receiving.address(pid)
        await none.transfer(pid)
        async with asyncio.timeout(60):
            assert (await none.push(pid, WHOLE, shown=here)).status_code == 401


async def test_a_start_removes_what_an_earlier_run_left(tmp_path: Path, pid: str) -> None:
    kept, ended = f"{pid}-kept", f"{pid}-ended"
    async with running(tmp_path) as before:
        for one in (kept, ended):
            await before.transfer(one)
            assert (await before.push(one, WHOLE)).status_code == 200
        await before.store.write(lambda tx: setattr(tx.transfers.get(ended), "state", "TERMINATED"))
        for folder in ("arriving", "kept"):
            (before.folder / folder / "left").write_bytes(b"half of it")
        good, _ = await before.receiving.file(kept)
    async with running(tmp_path) as after:
        assert after.files() == [good]
        assert (await after.receiving.file(kept))[0].read_bytes() == WHOLE
        gone = await after.known(ended)
        assert gone is not None
        assert gone.removed_at


async def test_the_workers_see_what_arrives_and_nothing_that_was_received(here: Receiver, pid: str) -> None:
    await here.transfer(pid)
    await here.push(pid, WHOLE)
    path, _ = await here.receiving.file(pid)
    with pytest.raises(Invalid):
        await here.pool.ask(Job(kind="check_arrow", arguments={"path": str(path)}))


async def test_the_test_stream_is_what_it_says() -> None:
    with pa.ipc.open_stream(WHOLE) as reader:
        assert reader.read_all().equals(data.table(2000))


async def test_what_comes_while_a_file_is_removed_is_counted(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, come, may = f"{pid}-gone", f"{pid}-come", threading.Event()
    for one in (gone, come):
        await here.transfer(one)
    await here.push(gone, WHOLE)
    unlinked = received_files.remove_file
    monkeypatch.setattr(received_files, "remove_file", lambda path: (may.wait(60), unlinked(path))[1])
    removing = asyncio.ensure_future(here.receiving.remove(gone, by="somebody"))
    try:
        await asyncio.sleep(0.1)  # the disk takes its time
        assert (await here.push(come, WHOLE)).status_code == 200
    finally:
        may.set()
    await removing
    await until(lambda: not here.receiving._tasks)
    assert here.receiving._held == sum(path.stat().st_size for path in here.files())


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "not kept"])
async def test_a_push_of_whose_record_nobody_knows_whether_it_was_kept_is_not_removed(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    """Its provider asks again: where it counts, it is there."""
    await here.transfer(pid)
    told = here.store.write

    async def lost(work: Any) -> Any:
        monkeypatch.undo()
        if kept:
            await told(work)
        raise Unavailable("the database went away as it kept this", code=UNKNOWN)

    monkeypatch.setattr(here.store, "write", lost)
    first = await here.push(pid, WHOLE)
    assert (first.status_code, first.json()["code"]) == (503, UNKNOWN)
    again = await here.push(pid, WHOLE)
    assert again.status_code == 200
    assert (await here.receiving.file(pid))[0].read_bytes() == WHOLE
    assert [event.kind for event in here.told(pid)] == ["DataReceived"]


async def test_a_push_whose_record_comes_to_be_kept_while_its_repeat_is_checked_keeps_its_file(
    here: Receiver, pid: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a database goes on with a commit that it has not answered."""
    await here.transfer(pid)
    told = here.store.write
    under_way: list[Any] = []

    async def late(work: Any) -> Any:
        under_way.append(work)
        if len(under_way) == 1:
            raise Unavailable("the database went away as it kept this", code=UNKNOWN)
        monkeypatch.undo()
        await told(under_way[0])
        return await told(work)

    monkeypatch.setattr(here.store, "write", late)
    held = here.receiving._held
    assert (await here.push(pid, WHOLE)).json()["code"] == UNKNOWN
    assert (await here.push(pid, stream(1_000))).json()["code"] == "being_checked"
    assert (await here.row(pid)).code == ""
    assert (await here.push(pid, WHOLE)).status_code == 200
    assert (await here.receiving.file(pid))[0].read_bytes() == WHOLE
    assert here.receiving._held - held == len(WHOLE)


async def test_what_came_whole_stays_where_its_provider_gave_up_sending_it(tmp_path: Path, pid: str) -> None:
    """As where no acknowledgement reached it; also after a restart."""
    async with running(tmp_path) as before:
        await before.transfer(pid)
        assert (await before.push(pid, WHOLE)).status_code == 200
        await before.moved(pid, "TERMINATED", code="push_failed")
        await until(lambda: not before.receiving._tasks)
        assert (await before.receiving.file(pid))[0].read_bytes() == WHOLE
    async with running(tmp_path) as after:
        assert (await after.receiving.file(pid))[0].read_bytes() == WHOLE


async def test_what_is_counted_is_what_is_there(here: Receiver, pid: str) -> None:
    """After everything above: no refusal, cut or removal has taken room for good, or given back what it had not."""
    await here.transfer(pid)
    assert (await here.push(pid, WHOLE)).status_code == 200
    assert here.receiving._held == sum(path.stat().st_size for path in here.files())
    assert not here.receiving._coming
    assert not [path for path in here.files() if path.parent.name == "arriving"]
