"""Blocks that are prepared: each epoch asks for them in another order, and only what is not kept is decoded."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pyarrow as pa
import pytest
import pytest_asyncio
import xxhash

from connector.dataplane.block_plan import RowSelection
from connector.dataplane.cache.cache_writer import open_nameless
from connector.dataplane.cache.cached_stream import CachedBlock, CacheEntry, StreamPart
from connector.dataplane.cache.mixed_stream import MixedStream
from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.http.file_spans import Span
from connector.dataplane.read_request import STREAM, ReadRequest
from connector.engine.pool.protocol import Job, Range
from connector.engine.pool.worker_process import Frame
from connector.errors import EngineFailed
from connector.events import AgreementRevoked, DatasetVersioned, Event
from tests.support import data, gate, provider
from tests.support.gate import atom, mask
from tests.support.provider import Provider, bytes_of, settled
from tests.support.streamed import without_id

pytestmark = pytest.mark.asyncio(loop_scope="module")

BLOCKS, ROWS = 4, 100_000  # and rows of each
FILTERED = gate.agreement(atom("ds:row/id", "gteq", "110000"), action="odrl:use")  # all of the first block is left out
MASKED = gate.agreement(duties=(mask("null", "name"),), action="odrl:use")
LIMITED = gate.agreement(atom("ds:rowQuota", "lteq", "9000000"), action="odrl:use")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedStreams:
    return PreparedStreams(tmp_path_factory.mktemp("streams"), quota=64 * 2**20)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory, prepared: PreparedStreams) -> AsyncIterator[Provider]:
    rows = BLOCKS * ROWS
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=rows, prepared=prepared) as started:
        yield started


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def asked_of_workers(
    running: Provider, prepared: PreparedStreams, monkeypatch: pytest.MonkeyPatch
) -> list[list[int]]:
    """The blocks that each job was for; nothing is kept at first, or being kept."""
    await settled(running)
    prepared.drop(lambda _: True)
    seen: list[list[int]] = []
    run = running.pool.run

    def noted(job: Job, **more: Any) -> Any:
        assert job.only is not None
        seen.append([one.block for one in job.only.ranges])
        return run(job, **more)

    monkeypatch.setattr(running.pool, "run", noted)
    return seen


async def read(running: Provider, ticket: str, blocks: Sequence[int], **more: str) -> httpx2.Response:
    async with httpx2.AsyncClient(base_url=running.url, timeout=60) as client:
        given = {"blocks": ",".join(map(str, blocks)), **more}
        headers = {"authorization": f"Bearer {ticket}"}
        return await client.get("/data/v1/datasets/numbers/rows", params=given, headers=headers)


def batches_of(answer: httpx2.Response) -> list[tuple[dict[str, Any], pa.RecordBatch]]:
    """Each batch with its place. The end has been looked at: its digest is that of the bytes before it."""
    assert answer.status_code == 200, answer.text
    with pa.ipc.open_stream(answer.content) as reader:
        *found, end = reader.iter_batches_with_custom_metadata()
    told = json.loads(end.custom_metadata["hanse.end"])
    assert told["status"] == "complete", told
    start = answer.content.rindex(b"\xff\xff\xff\xff", 0, answer.content.rindex(b'"status"'))
    assert told["digest"] == f"xxh3:{xxhash.xxh3_128(answer.content[:start]).hexdigest()}"
    assert told["rows"] == sum(one.batch.num_rows for one in found)
    return [(json.loads(one.custom_metadata["hanse.at"]), one.batch) for one in found]


def ids_of(answer: httpx2.Response) -> list[int]:
    return [one for _, batch in batches_of(answer) for one in batch["id"].to_pylist()]


def expected(blocks: Sequence[int], *, first: int = 0) -> list[int]:
    return [row for block in blocks for row in range(block * ROWS, (block + 1) * ROWS) if row >= first]


@pytest.mark.parametrize(
    "more", [{}, {"columns": "id,x"}, {"codec": "zstd"}, {"batch_rows": "9999"}, {"digest": "sha256"}], ids=str
)
async def test_a_later_epoch_in_another_order_has_no_worker(
    running: Provider, asked_of_workers: list[list[int]], more: dict[str, str]
) -> None:
    ticket = running.ticket(await running.agree())
    first = await read(running, ticket, [2, 0, 3, 1], **more)
    found = {}
    for order in ([0, 1, 2, 3], [3, 1], [1, 3, 0, 2]):
        answer = await read(running, ticket, order, **more)
        if "digest" not in more:
            assert ids_of(answer) == expected(order)
        found[tuple(order)] = answer.content
    assert asked_of_workers == [[2, 0, 3, 1]]
    again = await read(running, ticket, [2, 0, 3, 1], **more)
    bodies = [without_id(one.content, one.headers["hanse-read"]) for one in (first, again)]
    assert bodies[0] == bodies[1]
    assert [one.outcome for one in running.of_kind("ReadEnded")[-5:]] == ["ok"] * 5


@pytest.mark.parametrize("policy", [provider.OPEN, FILTERED], ids=["open", "filtered"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 2, 3], [3, 2, 0, 1]], ids=str)
async def test_a_worker_is_asked_for_those_that_are_not_kept(
    running: Provider, prepared: PreparedStreams, asked_of_workers: list[list[int]], order: list[int], policy: Any
) -> None:
    ticket, first = running.ticket(await running.agree(policy)), 110_000 if policy is FILTERED else 0
    await read(running, ticket, [1, 2])
    assert ids_of(await read(running, ticket, order)) == expected(order, first=first)
    assert asked_of_workers == [[1, 2], [one for one in order if one not in (1, 2)]]
    assert len(prepared) == (3 if policy is FILTERED else 4)  # a block without rows has nothing to be kept
    assert ids_of(await read(running, ticket, order[::-1])) == expected(order[::-1], first=first)


async def test_a_read_goes_on_after_any_cursor(
    running: Provider, prepared: PreparedStreams, asked_of_workers: list[list[int]]
) -> None:
    """In a block that is kept, too: who has lost the connection there asks for the rest of it."""
    ticket, order = running.ticket(await running.agree()), [3, 0, 2]
    await read(running, ticket, order)
    whole = batches_of(await read(running, ticket, order, batch_rows="30000"))
    for number, (place, _) in enumerate(whole):
        left = order[order.index(place["block"]) :]
        answer = await read(running, ticket, left, after=place["cursor"])
        rest = [one for _, batch in whole[number + 1 :] for one in batch["id"].to_pylist()]
        assert ids_of(answer) == rest
        assert asked_of_workers[-1] == left[:1]
    assert len(prepared) == 3 + 3  # those of batches of 30,000 rows are others; of what was resumed nothing is kept


async def test_a_block_of_which_only_a_part_is_read_is_not_kept(running: Provider, prepared: PreparedStreams) -> None:
    ticket = running.ticket(await running.agree())
    (place, _), *_ = batches_of(await read(running, ticket, [0], columns="id", batch_rows="5000"))
    prepared.drop(lambda _: True)
    await read(running, ticket, [0, 1], columns="id,x", after=place["cursor"])
    assert len(prepared) == 1
    assert ids_of(await read(running, ticket, [1, 0], columns="id,x")) == expected([1, 0])


async def test_what_is_broken_off_is_not_kept(running: Provider, prepared: PreparedStreams) -> None:
    async with running.reads.open(await question(running, [0, 1, 2])) as stream:
        async for _ in stream.frames():
            if stream.batches == 3:
                break
    assert (len(prepared), prepared._coming, prepared._made) == (0, [], set())


@pytest.mark.parametrize("policy", [MASKED, LIMITED], ids=["masks", "a quota"])
async def test_nothing_is_kept_of(running: Provider, prepared: PreparedStreams, policy: Any) -> None:
    await read(running, running.ticket(await running.agree(policy)), [1, 0])
    assert len(prepared) == 0


async def test_each_agreement_and_each_form_has_its_own(running: Provider, prepared: PreparedStreams) -> None:
    for policy in (provider.OPEN, FILTERED):
        ticket = running.ticket(await running.agree(policy))
        for columns in ("id", "id,x"):
            await read(running, ticket, [3, 2], columns=columns)
    assert len(prepared) == 8


@pytest.mark.parametrize("spans", [True, False], ids=["from files", "from memory"])
async def test_revocation_drops_them_and_stops_whoever_reads_them(
    running: Provider, prepared: PreparedStreams, spans: bool
) -> None:
    asked = await question(running, [0, 1, 2])
    async with running.reads.open(asked) as stream:
        whole = [bytes(part) async for part in stream.frames()]
    assert len(prepared) == 3
    async with running.reads.open(asked, spans=spans) as stream:
        parts = stream.parts()
        assert bytes_of(await anext(parts)) == whole[0]
        event = AgreementRevoked(actor="owner", agreement=asked.tickets[0].agreement, reason="enough")
        await running.store.write(lambda tx: tx.publish(event))
        assert stream.following() is None
        assert len([part async for part in parts]) == 1  # the end record
        assert stream.end is not None
        assert (stream.end.status, stream.end.batches) == ("revoked", 1)
        assert stream.end.digest == f"xxh3:{xxhash.xxh3_128(stream.schema + whole[0]).hexdigest()}"
    assert len(prepared) == 0


@pytest.mark.parametrize("own", [True, False], ids=["its own", "another"])
@pytest.mark.parametrize("kind", [AgreementRevoked, DatasetVersioned])
async def test_what_ends_meanwhile_is_not_kept_and_all_else_is(
    running: Provider, prepared: PreparedStreams, kind: type[Event], own: bool
) -> None:
    """An epoch may take hours: others end in each."""
    async with running.reads.open(await question(running, [0, 1, 2])) as stream:
        frames, (grant,) = stream.frames(), stream.grants
        await anext(frames)
        ids = {
            AgreementRevoked: ("agreement", grant.agreement_id),
            DatasetVersioned: ("dataset", grant.held.dataset.id),
        }
        name, its = ids[kind]
        given: dict[str, Any] = {name: its if own else "another"}
        event = kind(actor="owner", **given)
        await running.store.write(lambda tx: tx.publish(event))
        async for _ in frames:
            pass
    assert len(prepared) == (0 if own else 3)
    assert not prepared._under_way


async def test_a_changed_file_is_refused_and_its_blocks_forgotten(
    running: Provider, prepared: PreparedStreams, tmp_path: Path
) -> None:
    path = data.parquet(tmp_path / "other.parquet", 2 * ROWS)
    ticket = running.ticket(await running.agree(name="other", path=path))
    async with httpx2.AsyncClient(base_url=running.url, headers={"authorization": f"Bearer {ticket}"}) as client:
        assert (await client.get("/data/v1", params={"blocks": "1,0"})).status_code == 200
        assert len(prepared) == 2
        path.touch()
        answer = await client.get("/data/v1", params={"blocks": "0,1"})
    assert (answer.status_code, answer.json()["code"]) == (409, "version_changed")
    assert len(prepared) == 0


async def test_blocks_that_go_while_their_files_are_looked_at_are_read_anew(
    running: Provider, prepared: PreparedStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticket = running.ticket(await running.agree())
    await read(running, ticket, [1, 0])

    def goes(files: object) -> bool:
        prepared.drop(lambda _: True)  # as where another reader's stream needs the room
        return True

    with monkeypatch.context() as patched:
        patched.setattr("connector.datasets.file_access.are_unchanged", goes)
        assert ids_of(await read(running, ticket, [0, 1])) == expected([0, 1])
    assert len(prepared) == 2


async def test_what_has_no_room_does_not_go_round(running: Provider, tmp_path: Path) -> None:
    """Blocks of a dataset that is larger than the quota stay where they are: each epoch finds the same part of it."""
    ticket = running.ticket(await running.agree())
    small = PreparedStreams(tmp_path, quota=3 * 2**20)
    running.reads.origin.prepared, before = small, running.reads.origin.prepared
    try:
        await read(running, ticket, [0, 1, 2, 3], columns="id,x")
        kept = list(small._entries)
        assert 0 < len(kept) < BLOCKS
        for order in ([3, 2, 1, 0], [2, 0, 3, 1]):
            assert ids_of(await read(running, ticket, order, columns="id,x")) == expected(order)
            assert sorted(small._entries) == sorted(kept)
            assert small.nbytes <= small.quota
    finally:
        running.reads.origin.prepared = before


async def test_readers_of_one_dataset_do_not_push_out_what_others_have_left(running: Provider, tmp_path: Path) -> None:
    """Also where one has begun before another was done: all of them share the room."""
    slow = await question(running, [0, 1])
    split = await running.reads.split(slow.tickets[0], RowSelection(), snapshot="", blocks="2,3")
    small = PreparedStreams(tmp_path, quota=9 * 2**20)
    running.reads.origin.prepared, before = small, running.reads.origin.prepared
    try:
        async with running.reads.open(slow) as stream:
            frames = stream.frames()
            await anext(frames)
            async with running.reads.open(replace(slow, split=split)) as other:
                assert len([part async for part in other.frames()]) > 2
            kept = list(small._entries)
            assert kept
            async for _ in frames:
                pass
        assert set(kept) <= set(small._entries)
    finally:
        running.reads.origin.prepared = before


async def test_blocks_that_another_writes_take_no_place_of_ones_own(
    running: Provider, prepared: PreparedStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.dataplane.cache.stream_cache._FILES_MAX", BLOCKS)
    ticket = running.ticket(await running.agree())
    await read(running, ticket, [0, 1])
    with monkeypatch.context() as writing:
        others = [CacheEntry(str(number), "another", "", "", "", None, ()) for number in range(2)]
        writing.setattr(prepared, "_coming", others)
        await read(running, ticket, [2, 3])
    assert len(prepared) == BLOCKS


async def test_what_is_kept_of_another_form_makes_room(
    running: Provider, prepared: PreparedStreams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where descriptors are all taken as where the disk is full; blocks of one form do not take turns."""
    for name in ("_FILES_MAX", "_ENTRIES_MAX"):
        monkeypatch.setattr(f"connector.dataplane.cache.stream_cache.{name}", BLOCKS - 1)
    ticket = running.ticket(await running.agree())
    for columns in ("id", "id,x"):
        before = set(prepared._entries)
        await read(running, ticket, [0, 1, 2, 3], columns=columns)
        kept = set(prepared._entries)
        assert (len(kept), kept & before) == (BLOCKS - 1, set())
        await read(running, ticket, [3, 2, 1, 0], columns=columns)
        assert set(prepared._entries) == kept


# Of what the two sources give.


class Result:
    """A worker's, of so many messages of these blocks."""

    schema, trailer, digest = b"head", b"trailer", b""

    def __init__(self, *blocks: int) -> None:
        self._left = iter([Frame(1, 2, memoryview(b"%02d" % block), b"", block) for block in blocks])

    def __aiter__(self) -> Result:
        return self

    async def __anext__(self) -> Frame:
        for frame in self._left:
            return frame
        raise StopAsyncIteration


def kept(folder: Path, *blocks: int, each: int = 2) -> dict[int, CacheEntry]:
    """Files of such messages."""
    found = {}
    for block in blocks:
        file = open_nameless(folder)
        file.write(b"%02d" % block * each)
        file.flush()
        held = [CachedBlock(at=2 * number, nbytes=2, rows=1, digest=b"") for number in range(each)]
        found[block] = CacheEntry("", "", "", "", "", None, (file,), (), b"head", b"trailer", b"", held)
    return found


def mixed(order: Sequence[int], known: dict[int, CacheEntry], *of_worker: int, spans: bool = False) -> MixedStream:
    result = cast("Any", Result(*of_worker)) if of_worker or not known else None
    return MixedStream([Range(one, 0, 0, 1) for one in order], known, result, None, digest="xxh3", spans=spans)


async def taken(source: MixedStream) -> bytes:
    return b"".join([bytes_of(part.payload) async for part in source])


@pytest.mark.parametrize("spans", [False, True], ids=["memory", "files"])
@pytest.mark.parametrize("order", [[5], [1, 5], [5, 1], [1, 5, 2, 6], [6, 2, 5, 1], [9, 5, 8, 1, 7]], ids=str)
async def test_blocks_come_in_the_order_asked_for(tmp_path: Path, order: list[int], spans: bool) -> None:
    known = kept(tmp_path, 5, 6) | kept(tmp_path, 7, each=0)
    of_worker = [block for block in order if block in (1, 2) for _ in range(3)]  # 8 and 9 have no rows
    source = mixed(order, known, *of_worker, spans=spans)
    came = await taken(source)
    assert came == b"".join(b"%02d" % one * (2 if one in (5, 6) else 3) for one in order if one in (1, 2, 5, 6))


async def test_a_thread_takes_those_in_files_and_no_others(tmp_path: Path) -> None:
    source = mixed([5, 6, 1, 5], kept(tmp_path, 5, 6), 1, 1, spans=True)
    for _ in range(4):
        assert source.at_once() is not None
    assert source.at_once() is None
    assert [bytes_of(part.payload) async for part in source][:3] == [b"01", b"01", b"05"]


@pytest.mark.parametrize("of_worker", [(3,), (2, 1), (1, 2, 1), (1, 2, 3)], ids=str)
async def test_rows_that_do_not_belong_there_end_the_read(tmp_path: Path, of_worker: tuple[int, ...]) -> None:
    source = mixed([1, 5, 2], kept(tmp_path, 5), *of_worker)
    with pytest.raises(EngineFailed):
        await taken(source)


async def test_what_goes_is_in_the_digest_and_nothing_else(tmp_path: Path) -> None:
    source = mixed([1, 5], kept(tmp_path, 5), 1, 1, spans=True)
    went = b"head"
    async for part in source:
        assert isinstance(part, StreamPart)
        if isinstance(part.payload, Span):
            went += bytes_of(part.payload)
        assert source.digest.hex() == xxhash.xxh3_128(went).hexdigest()  # whoever sends memory shows it itself


async def question(running: Provider, blocks: Sequence[int]) -> ReadRequest:
    ticket = running.addresses.read(f"Bearer {running.ticket(await running.agree())}")
    asked = ReadRequest(
        tickets=(ticket,), sql='SELECT * FROM "clinic".numbers', action=STREAM, plain_scan=True, unfiltered=True
    )
    split = await running.reads.split(ticket, RowSelection(), snapshot="", blocks=",".join(map(str, blocks)))
    return replace(asked, split=split)
