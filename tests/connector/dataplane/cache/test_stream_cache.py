"""Prepared streams: the same bytes under the same rules as the first pass, and nothing where there is any doubt."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from connector.dataplane.cache import cache_writer
from connector.dataplane.cache import stream_cache as prepared_streams
from connector.dataplane.cache.cache_writer import CopyingSource, StreamCopy, open_nameless
from connector.dataplane.cache.cached_stream import CachedReader, CacheEntry
from connector.dataplane.cache.stream_cache import PreparedStreams, is_keepable
from connector.dataplane.read_request import STREAM, ReadRequest
from connector.datasets import file_access
from connector.engine.pool.worker_process import Frame
from connector.events import AgreementRevoked, DatasetVersioned
from policies.contracts import compile as compiler
from policies.contracts.contract import DataContract
from tests.support import data, gate, provider
from tests.support.gate import atom, mask
from tests.support.own_name import changed
from tests.support.provider import Provider, settled
from tests.support.streamed import without_id
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MASKED = gate.agreement(duties=(mask("null", "name"),), action="odrl:use")
LIMITED = gate.agreement(atom("ds:rowQuota", "lteq", "9000000"), action="odrl:use")
SHARED = gate.agreement(atom("odrl:percentage", "lteq", "100"), action="odrl:use")
FILTERED = gate.agreement(atom("ds:row/id", "lt", "150000"), action="odrl:use")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedStreams:
    return PreparedStreams(tmp_path_factory.mktemp("streams"), quota=64 * 2**20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory, prepared: PreparedStreams) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), prepared=prepared) as started:
        yield started


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _empty(running: Provider, prepared: PreparedStreams) -> None:
    await settled(running)  # what is read may still be kept
    prepared.drop(lambda _: True)


async def read(running: Provider, ticket: str, **parameters: Any) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=running.url, timeout=60) as client:
        headers = {"authorization": f"Bearer {ticket}"}
        return await client.get("/data/v1/datasets/numbers/rows", params=parameters, headers=headers)


def rows_of(answer: httpx2.Response) -> bytes:
    """The body without the id of the read, which its end record holds."""
    return without_id(answer.content, answer.headers["hanse-read"])


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"columns": "id,x"},
        {"where": "id > 7 AND x < 99"},
        {"codec": "lz4"},
        {"batch_rows": "5000"},
        {"blocks": "all"},
        {"blocks": "1,0", "columns": "id,x", "where": "x < 99"},
    ],
    ids=str,
)
async def test_later_passes_are_the_first_byte_for_byte_without_a_worker(
    running: Provider, prepared: PreparedStreams, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str]
) -> None:
    ticket = running.ticket(await running.agree(FILTERED))
    first = await read(running, ticket, **parameters)
    assert len(prepared) == (2 if parameters.get("blocks") == "1,0" else 1)
    for entry in prepared._entries.values():
        assert os.fstat(entry.files[0].fileno()).st_size == entry.nbytes
    monkeypatch.setattr(running.pool, "run", None)
    second = await read(running, ticket, **parameters)
    assert second.status_code == 200
    assert rows_of(first) == rows_of(second)
    before, after = running.of_kind("ReadEnded")[-2:]
    assert before.detail == after.detail
    assert after.outcome == "ok"


HUGE = 2 * 2**20


@pytest.mark.parametrize(
    "sizes",
    [[1, 2], [HUGE], [HUGE - 1, 2, HUGE, 1], [3 * HUGE + 5, 7, 5 * HUGE], [700_001] * 9],
    ids=["small", "a page", "borders", "large", "many"],
)
async def test_payloads_lie_one_behind_the_other_whatever_pages_they_begin(tmp_path: Path, sizes: list[int]) -> None:
    payloads = [os.urandom(size) for size in sizes]
    with open_nameless(tmp_path) as file:
        for number, payload in enumerate(payloads):
            cache_writer._write(file, memoryview(payload), sum(sizes[:number]), 2**40)
        file.seek(0)
        assert file.read(sum(sizes)) == b"".join(payloads)


@pytest.mark.parametrize(
    ("size", "most", "length"),
    [(1000, 2**40, 1000), (HUGE + 1, 2**40, 2 * HUGE), (HUGE + 1, HUGE + 9, HUGE + 9), (3 * HUGE, 3 * HUGE, 3 * HUGE)],
    ids=["small", "whole pages", "no further than it may", "nothing behind"],
)
async def test_pages_are_written_whole(tmp_path: Path, size: int, most: int, length: int) -> None:
    with open_nameless(tmp_path) as file:
        cache_writer._write(file, memoryview(bytes(size)), 0, most)
        assert os.fstat(file.fileno()).st_size == length


@pytest.mark.parametrize(
    ("policy", "parameters"),
    [(MASKED, {}), (LIMITED, {}), (SHARED, {}), (provider.OPEN, {"format": "csv"})],
    ids=["masks", "a quota", "a share", "another format than Arrow"],
)
async def test_nothing_is_kept_of(
    running: Provider, prepared: PreparedStreams, policy: Any, parameters: dict[str, str]
) -> None:
    answer = await read(running, running.ticket(await running.agree(policy)), **parameters)
    assert answer.status_code == 200
    assert len(prepared) == 0


async def test_each_agreement_and_each_request_has_its_own(running: Provider, prepared: PreparedStreams) -> None:
    for policy in (provider.OPEN, FILTERED):
        ticket = running.ticket(await running.agree(policy))
        for columns in ("id", "id,x"):
            await read(running, ticket, columns=columns)
    assert len(prepared) == 4


async def test_a_pass_that_is_broken_off_leaves_nothing(running: Provider, prepared: PreparedStreams) -> None:
    asked = ReadRequest(
        tickets=(running.addresses.read(f"Bearer {running.ticket(await running.agree())}"),),
        sql='SELECT * FROM "clinic".numbers', action=STREAM, plain_scan=True, unfiltered=True,
    )  # fmt: skip
    async with running.reads.open(asked) as stream:
        async for _ in stream.frames():
            break
    assert len(prepared) == 0


async def test_revocation_drops_it_and_stops_whoever_reads_it(running: Provider, prepared: PreparedStreams) -> None:
    agreement = await running.agree()
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    asked = ReadRequest(
        tickets=(ticket,), sql='SELECT * FROM "clinic".numbers', action=STREAM, plain_scan=True, unfiltered=True
    )
    async with running.reads.open(asked) as stream:
        first = [bytes(part) async for part in stream.frames()]
    assert len(prepared) == 1
    async with running.reads.open(asked) as stream:
        frames = stream.frames()
        assert bytes(await anext(frames)) == first[0]
        event = AgreementRevoked(actor="owner", agreement=agreement, reason="enough")
        await running.store.write(lambda tx: tx.publish(event))
        assert len([part async for part in frames]) == 1  # the end record
        assert stream.end is not None
        assert (stream.end.status, stream.end.reason, stream.end.batches) == ("revoked", "enough", 1)
    assert len(prepared) == 0
    assert not prepared._under_way


@pytest.mark.parametrize("own", [True, False], ids=["its own", "another"])
async def test_a_version_that_comes_while_a_stream_is_written_down_leaves_nothing(
    running: Provider, prepared: PreparedStreams, own: bool
) -> None:
    ticket = running.addresses.read(f"Bearer {running.ticket(await running.agree())}")
    asked = ReadRequest(
        tickets=(ticket,), sql='SELECT * FROM "clinic".numbers', action=STREAM, plain_scan=True, unfiltered=True
    )
    async with running.reads.open(asked) as stream:
        frames, (grant,) = stream.frames(), stream.grants
        await anext(frames)
        event = DatasetVersioned(actor="owner", dataset=grant.held.dataset.id if own else "another")
        await running.store.write(lambda tx: tx.publish(event))
        assert [part async for part in frames]
    assert len(prepared) == (0 if own else 1)
    assert not prepared._under_way
    prepared.drop(lambda _: True)


async def test_a_changed_file_is_refused_and_its_stream_forgotten(running: Provider, prepared: PreparedStreams) -> None:
    path = data.parquet(running.path.with_name("other.parquet"), 1000)
    ticket = running.ticket(await running.agree(name="other", path=path))
    async with httpx2.AsyncClient(
        base_url=running.url, headers={"authorization": f"Bearer {ticket}"}, timeout=60
    ) as client:
        assert (await client.get("/data/v1")).status_code == 200
        assert len(prepared) == 1
        os.utime(path, ns=(1, 1))
        answer = await client.get("/data/v1")
    assert (answer.status_code, answer.json()["code"]) == (409, "version_changed")
    assert len(prepared) == 0


async def test_what_goes_while_its_files_are_looked_at_is_read_anew(
    running: Provider, prepared: PreparedStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = running.ticket(await running.agree())
    first = await read(running, ticket)

    def goes(files: Any) -> bool:
        prepared.drop(lambda _: True)  # as where another reader's stream needs the room
        return True

    with monkeypatch.context() as patched:
        patched.setattr(file_access, "are_unchanged", goes)
        second = await read(running, ticket)
    assert (second.status_code, rows_of(second)) == (200, rows_of(first))


@pytest.mark.parametrize("parameters", [{}, {"blocks": "1,0"}], ids=["whole", "blocks"])
async def test_what_goes_while_the_beginning_of_its_read_is_recorded_counts_as_read(
    running: Provider, prepared: PreparedStreams, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, str]
) -> None:
    ticket = running.ticket(await running.agree())
    first = await read(running, ticket, **parameters)
    await settled(running)
    kept, write, recorded = set(prepared._entries.values()), running.store.write, asyncio.Event()

    async def late(work: Any) -> Any:
        await recorded.wait()
        return await write(work)

    with monkeypatch.context() as patched:
        patched.setattr(running.store, "write", late)
        reading = asyncio.ensure_future(read(running, ticket, **parameters))
        try:
            await until(lambda: all(entry.readers for entry in kept))
            prepared.drop(lambda _: True)
            assert set(prepared._dropped) == kept
        finally:
            recorded.set()
            second = await reading
    assert rows_of(second) == rows_of(first)


@pytest.mark.parametrize("good", [0, 1])
async def test_a_disk_that_fails_is_not_a_client_that_left(
    running: Provider, monkeypatch: pytest.MonkeyPatch, good: int
) -> None:
    ticket = running.ticket(await running.agree())
    await read(running, ticket)
    part, left = CachedReader._take_part, [None] * good

    def fails(self: CachedReader) -> Any:
        if not left:
            raise OSError(5, "Input/output error")
        left.pop()
        return part(self)

    with monkeypatch.context() as patched:
        patched.setattr(CachedReader, "_take_part", fails)
        answer = await read(running, ticket)
    await settled(running)
    ended = running.of_kind("ReadEnded")[-1]
    assert b'"status":"error"' in answer.content
    assert b'"code":"internal"' in answer.content
    assert (ended.outcome, ended.code, ended.detail["batches"]) == ("broken", "internal", good)


async def test_the_quota_holds_and_the_least_used_goes_first(running: Provider, tmp_path: Path) -> None:
    ticket = running.ticket(await running.agree())
    small = PreparedStreams(tmp_path, quota=7 * 2**19)
    running.reads.origin.prepared, before = small, running.reads.origin.prepared
    try:
        for columns in ("id", "x", "id", "day,gap"):
            await read(running, ticket, columns=columns)
            assert small.nbytes <= small.quota
        names = [entry.schema for entry in small._entries.values()]
        assert [b"id" in schema for schema in names] == [True, False]
        await read(running, ticket)  # larger than the quota
        assert len(small) == 2
        assert os.listdir(tmp_path) == []  # no file has a name
    finally:
        running.reads.origin.prepared = before


# Streams in the order in which they come, as consumer and bytes (a * after those that are being read by then; a `-`
# is an hour in which nothing comes), and what is kept of them in the end, of a quota of 12 bytes.
SHARES: dict[str, tuple[str, str]] = {
    "one alone has all of it": ("a4 a4 a4", "a4 a4 a4"),
    "and loses the least used": ("a1 a4 a4 a4", "a4 a4 a4"),
    "of who has most the least used goes": ("a4 a4 a4 b4", "a4 a4 b4"),
    "until all have the same": ("a4 a2 a3 a3 b3 b3", "a3 a3 b3 b3"),
    "many little ones push out none of another": ("b6 " + "a1 " * 40, "b6" + " a1" * 6),
    "what others leave is had": ("b2 a4 a4 a4", "b2 a4 a4"),
    "what is read stays, as its room would": ("a5* a5 a5", "a5* a5"),
    "and what comes goes before it": ("a7* a6", "a7*"),
    "unless others have less than their share": ("a6* a6* b4", "a6* b4"),
    "who is away keeps none of what another needs": ("a4 a4 a4 - b5 b5", "b5 b5"),
    "and all of what nobody needs": ("a4 a4 - b4", "a4 a4 b4"),
    "nor has a share beside those who are there": ("a2 c4 c4 - b6 d6 b6", "d6 b6"),
    "what is read is not left": ("a6* a1 - b6", "a6* b6"),
    "of one alone the least used goes, however long ago": ("a4 a4 - a8", "a4 a8"),
}


@pytest.mark.parametrize(("come", "kept"), SHARES.values(), ids=SHARES.keys())
async def test_each_consumer_has_an_equal_share_and_what_others_leave(tmp_path: Path, come: str, kept: str) -> None:
    now = 1e9
    streams = PreparedStreams(tmp_path, quota=12, clock=lambda: now)
    names = {}
    for number, text in enumerate(come.split()):
        if text == "-":
            now += 3601.0
            continue
        one = CacheEntry(str(number), text[0], "", "", "", None, (), nbytes=int(text[1]), readers=int(text[2:] == "*"))
        names[one] = text
        streams._add(one)
    assert [names[one] for one in streams._entries.values()] == kept.split()


async def test_what_somebody_reads_again_within_the_hour_is_not_left(tmp_path: Path) -> None:
    now = 1e9
    streams = PreparedStreams(tmp_path, quota=12, clock=lambda: now)
    read, unread = (CacheEntry(name, "a", "", "", "", None, (), nbytes=4) for name in ("read", "unread"))
    for one in (read, unread):
        streams._add(one)
    now += 3000.0
    async with streams.serve(read, spans=True):
        pass
    now += 3000.0
    for name in ("first", "second"):
        streams._add(CacheEntry(name, "b", "", "", "", None, (), nbytes=4))
    assert list(streams._entries) == ["read", "first", "second"]


async def test_files_that_readers_hold_on_to_count_until_they_let_go(running: Provider, tmp_path: Path) -> None:
    ticket = running.ticket(await running.agree())
    small = PreparedStreams(tmp_path, quota=7 * 2**19)
    running.reads.origin.prepared, before = small, running.reads.origin.prepared
    try:
        await read(running, ticket, columns="id")
        (first,) = small._entries.values()
        async with small.serve(first, spans=True):
            small.drop(lambda _: True)
            for columns in ("x", "day,gap", "id", "x"):
                await read(running, ticket, columns=columns)
                assert first.nbytes + small.nbytes <= small.quota
        del first
        assert not small._dropped
        for columns in ("x", "day,gap"):
            await read(running, ticket, columns=columns)
        assert len(small) == 2
    finally:
        running.reads.origin.prepared = before


@pytest.mark.parametrize("parameters", [{}, {"blocks": "1,0"}], ids=["whole", "blocks"])
@pytest.mark.parametrize("lacking", ["file", "room"])
async def test_a_read_is_not_disturbed_where_nothing_can_be_written(
    running: Provider,
    prepared: PreparedStreams,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    parameters: dict[str, str],
    lacking: str,
) -> None:
    ticket = running.ticket(await running.agree())
    if lacking == "file":
        monkeypatch.setattr(prepared, "_folder", tmp_path / "gone")
    else:  # it went in between
        gone = changed(shutil, disk_usage=lambda _: os.statvfs(tmp_path / "gone"))
        monkeypatch.setattr(prepared_streams, "shutil", gone)
    with capture_logs() as logs:
        answers = [await read(running, ticket, **parameters) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200]
    await settled(running)
    assert [event.outcome for event in running.of_kind("ReadEnded")[-2:]] == ["ok", "ok"]
    assert len(prepared) == 0
    assert [line["reason"] for line in logs if "not kept" in line["event"]] == ["No such file or directory"]
    monkeypatch.undo()
    await read(running, ticket, **parameters)
    assert len(prepared) > 0


class Source:
    """So many batches of so many bytes, of one row each."""

    schema = trailer = digest = b""

    def __init__(self, count: int, size: int) -> None:
        self._left = iter([Frame(1, size, memoryview(bytes(size)), b"")] * count)

    def __aiter__(self) -> Source:
        return self

    async def __anext__(self) -> Frame:
        for frame in self._left:
            return frame
        raise StopAsyncIteration


def _keeping(
    folder: Path, coming: list[CacheEntry], *, count: int, room: int, most: int = 10**6, consumer: str = ""
) -> CopyingSource:
    entry = CacheEntry("", consumer, "", "", "", None, (open_nameless(folder),))
    coming.append(entry)
    source = cast("Any", Source(count, 1000))
    return CopyingSource(source, StreamCopy(source, entry, coming, room=room, most=most))


async def test_streams_that_are_written_at_once_share_their_room(tmp_path: Path) -> None:
    coming: list[CacheEntry] = []
    small, large = (_keeping(tmp_path, coming, count=count, room=10_000) for count in (4, 9))
    for keeping in (small, large, large) * 9:
        await anext(keeping, None)
        assert sum(entry.nbytes for entry in coming) <= 10_000
    assert (small.is_whole, large.is_whole) == (True, False)
    assert (coming[1].files, coming[1].blocks) == ((), [])


async def test_what_others_write_at_once_takes_nothing_of_ones_share_but_of_the_whole_room(tmp_path: Path) -> None:
    for most, whole in ((9000, [True, True]), (7000, [False, True])):
        coming: list[CacheEntry] = []
        both = [_keeping(tmp_path, coming, count=4, room=5000, most=most, consumer=name) for name in ("a", "b")]
        for keeping in (*both[::-1] * 4, *both):
            await anext(keeping, None)
        assert [keeping.is_whole for keeping in both] == whole


async def test_a_stream_of_very_many_batches_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each takes memory in the index, also where it has one row."""
    monkeypatch.setattr(cache_writer, "BLOCKS_MAX", 10)
    coming: list[CacheEntry] = []
    for count in (10, 11):
        keeping = _keeping(tmp_path, coming, count=count, room=10**6)
        assert len([frame async for frame in keeping]) == count
        assert keeping.is_whole is (count == 10)
        coming.clear()


def _contract() -> DataContract:
    (found,) = compiler.compile_contracts(provider.OPEN, gate.schema(id="BIGINT", name="VARCHAR"))
    return found


def _masked() -> DataContract:
    (found,) = compiler.compile_contracts(MASKED, gate.schema(id="BIGINT", name="VARCHAR"))
    return found


@pytest.mark.parametrize(
    ("contract", "by_default", "if_allowed"),
    [
        (_contract(), True, True),
        (_masked(), False, True),
        (replace(_contract(), limits=replace(_contract().limits, rows=5)), False, False),
        (replace(_contract(), limits=replace(_contract().limits, bytes=5)), False, False),
    ],
    ids=["open", "masked", "rows", "bytes"],
)
async def test_what_may_be_kept(contract: DataContract, by_default: bool, if_allowed: bool) -> None:
    assert is_keepable(contract, sensitive=False) is by_default
    assert is_keepable(contract, sensitive=True) is if_allowed


async def test_the_end_of_a_contract_is_the_end_of_its_stream(running: Provider, prepared: PreparedStreams) -> None:
    ending = gate.agreement(atom("odrl:dateTime", "lteq", "2099-01-01T00:00:00Z"), action="odrl:use")
    await read(running, running.ticket(await running.agree(ending)))
    assert len(prepared) == 1
    prepared._clock, before = (lambda: 5e9), prepared._clock
    try:
        prepared.sweep()
    finally:
        prepared._clock = before
    assert len(prepared) == 0


async def test_the_end_of_a_contract_far_from_now_is_met_without_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared_streams, "_DAY", 0.05)
    streams = PreparedStreams(tmp_path, quota=1)
    for number, seconds in enumerate((0.4, 0.2, None)):
        ends = None if seconds is None else time.time() + seconds
        streams._add(CacheEntry(str(number), "", "", "", "", ends, ()))
    loop: Any = asyncio.get_running_loop()
    timers = [one for one in loop._scheduled if one._callback == streams._sweep_on_time and not one.cancelled()]
    assert len(timers) == 1  # not one for each that was ever kept
    await until(lambda: len(streams) == 1)
