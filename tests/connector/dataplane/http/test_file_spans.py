"""Messages that are sent from the owner's files in part: the same bytes, and an end when something ends."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pyarrow as pa
import pytest
import pytest_asyncio
import xxhash

from connector.dataplane.cache.cached_stream import ScatteredResult
from connector.dataplane.governed_stream import GovernedStream
from connector.dataplane.http.file_spans import ScatteredMessage
from connector.dataplane.read_request import STREAM, ReadRequest
from connector.engine.pool import protocol as wire
from connector.engine.pool.protocol import Job, Relation
from connector.engine.pool.shared_memory import Ring
from connector.engine.pool.worker_process import Result
from connector.errors import EngineFailed, VersionChanged
from tests.support import data, gate, provider
from tests.support.gate import atom
from tests.support.images import images, write
from tests.support.provider import Provider, bytes_of, settled
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = 400
FEW = gate.agreement(atom("ds:row/id", "gteq", "7"), action="odrl:use")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("images"), rows=1000) as started:
        yield started


async def agreed(
    running: Provider, folder: Path, *parts: pa.Table, **policy: Any
) -> tuple[ReadRequest, str, list[Path]]:
    """A question for images under an agreement, the address and its ticket, and the files."""
    (folder / "files").mkdir()
    made = parts or (images(ROWS),)
    paths = [Path(write(folder / "files" / f"{number}.parquet", one)) for number, one in enumerate(made)]
    name = f"t{os.urandom(4).hex()}"
    agreement = await running.agree(name=name, path=folder / "files", **policy)
    ticket = running.ticket(agreement)
    read = running.addresses.read(f"Bearer {ticket}")
    sql = f'SELECT * FROM "clinic".{name}'
    return ReadRequest(tickets=(read,), sql=sql, action=STREAM, plain_scan=True, unfiltered=True), ticket, paths


async def taken(running: Provider, asked: ReadRequest, *, ahead: bool) -> tuple[list[bytes], int, GovernedStream]:
    """The parts of a read that a transport sends from files; `ahead`: those that are there already in a thread."""
    found: list[bytes] = []
    scattered = 0
    async with running.reads.open(asked, spans=True) as stream:
        async for part in stream.parts():
            following: Any = part
            while following is not None:
                scattered += isinstance(following, ScatteredMessage)
                found.append(bytes_of(following))
                following = await asyncio.to_thread(stream.following) if ahead and stream.end is None else None
    return found, scattered, stream


def rows(stream: GovernedStream, parts: list[bytes]) -> pa.Table:
    with pa.ipc.open_stream(b"".join((stream.schema, *parts))) as reader:
        return reader.read_all()


@pytest.mark.parametrize("ahead", [False, True], ids=["by the loop", "in a thread"])
@pytest.mark.parametrize("policy", [provider.OPEN, FEW], ids=["open", "filtered"])
async def test_the_bytes_are_those_that_are_sent_from_memory(
    running: Provider, tmp_path: Path, policy: Any, ahead: bool
) -> None:
    asked, _, _ = await agreed(running, tmp_path, images(ROWS), images(61), images(0), images(90), policy=policy)
    async with running.reads.open(asked) as stream:
        expected = [bytes(part) async for part in stream.frames()]
    found, scattered, stream = await taken(running, asked, ahead=ahead)
    assert rows(stream, found).equals(rows(stream, expected))
    if policy is not FEW:  # where rows are left out, the engine's threads decide where one batch ends
        assert found[:-1] == expected[:-1]  # the end has the id of its read
    assert scattered > 5
    assert stream.end is not None
    assert (stream.end.status, stream.end.rows) == ("complete", ROWS + 151 - (21 if policy is FEW else 0))
    digest = xxhash.xxh3_128(b"".join((stream.schema, *found[:-1])))
    assert stream.end.digest == f"xxh3:{digest.hexdigest()}"


async def test_the_digest_is_that_of_what_a_reader_gets(running: Provider, tmp_path: Path) -> None:
    _, ticket, _ = await agreed(running, tmp_path)
    async with httpx2.AsyncClient(base_url=running.url, headers={"authorization": f"Bearer {ticket}"}) as client:
        body = (await client.get("/data/v1")).content
    with pa.ipc.open_stream(body) as reader:
        *batches, end = reader.iter_batches_with_custom_metadata()
    told = json.loads(end.custom_metadata["hanse.end"])
    start = body.rindex(b"\xff\xff\xff\xff", 0, body.rindex(b'"status"'))
    assert told["digest"] == f"xxh3:{xxhash.xxh3_128(body[:start]).hexdigest()}"
    assert sum(one.batch.num_rows for one in batches) == told["rows"] == ROWS


def cut_short(path: Path) -> None:
    os.truncate(path, 3_000_000)


def write_over(path: Path, at: int = 15_000_000) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes(1000))


def replace(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    other.rename(path)


@pytest.mark.parametrize("change", [cut_short, write_over, replace])
async def test_a_file_that_changes_before_its_bytes_leave_ends_the_read(
    running: Provider, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Over HTTP, to a reader who has not taken all yet."""
    _, ticket, paths = await agreed(running, tmp_path, images(ROWS), images(1200))
    headers = {"authorization": f"Bearer {ticket}"}
    got = 0

    async def read() -> None:
        nonlocal got
        async with (
            httpx2.AsyncClient(base_url=running.url, headers=headers) as client,
            client.stream("GET", "/data/v1") as answer,
        ):
            async for piece in answer.aiter_raw():
                if not got:
                    change(paths[1])
                got += len(piece)

    whole = sum(path.stat().st_size for path in paths)
    with suppress(httpx2.RemoteProtocolError):  # cut; or the end record tells
        await read()
    await settled(running)
    assert got < whole
    (*_, end) = running.of_kind("ReadEnded")
    assert (end.outcome, end.code) == ("broken", "version_changed")


async def test_a_change_is_seen_before_the_bytes_are_sent(running: Provider, tmp_path: Path) -> None:
    asked, _, (path,) = await agreed(running, tmp_path)
    async with running.reads.open(asked, spans=True) as stream:
        parts = stream.parts()
        first = await anext(parts)
        assert isinstance(first, ScatteredMessage)
        first.check()
        cut_short(path)
        with pytest.raises(VersionChanged, match="changed"):
            first.check()
        await parts.aclose()


@pytest.mark.parametrize("ahead", [False, True], ids=["by the loop", "in a thread"])
@pytest.mark.parametrize(
    ("sent", "files"), [(100, 1), (240, 1), (240, 2)], ids=["in mid-read", "the last batch", "before the next file"]
)
async def test_a_change_that_the_worker_did_not_see_ends_the_read(
    running: Provider, tmp_path: Path, sent: int, files: int, ahead: bool
) -> None:
    """A worker is some batches ahead, and has ended while its reader takes them."""
    asked, _, paths = await agreed(running, tmp_path, *[images(240), images(120)][:files])
    async with running.reads.open(asked, spans=True) as stream:
        async for part in stream.parts():
            following: Any = part
            while following is not None:
                if stream.end is None and stream.rows >= sent:
                    await asyncio.sleep(0.2)  # the worker ends
                    write_over(paths[0], at=5_000_000)
                following = await asyncio.to_thread(stream.following) if ahead and stream.end is None else None
    assert stream.end is not None
    assert (stream.end.status, stream.end.code) == ("error", "version_changed")


@pytest.mark.parametrize("ahead", [False, True], ids=["by the loop", "in a thread"])
async def test_revocation_stops_it_at_the_next_batch(running: Provider, tmp_path: Path, ahead: bool) -> None:
    asked, ticket, _ = await agreed(running, tmp_path)
    async with running.reads.open(asked, spans=True) as stream:
        parts = stream.parts()
        await anext(parts)
        await running.revoke(running.addresses.read(f"Bearer {ticket}").agreement, "enough")
        if ahead:
            assert await asyncio.to_thread(stream.following) is None
        assert len([part async for part in parts]) == 1  # the end record
        assert stream.end is not None
        assert (stream.end.status, stream.end.reason) == ("revoked", "enough")


async def test_what_has_left_is_noted_by_time(
    running: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the record that a crash leaves behind: whoever sends it, and whether anything follows or not."""

    async def noted() -> list[tuple[int, int]]:
        return await running.store.read(lambda tx: [(one.rows, one.bytes) for one in tx.reads.list_of_instance("")])

    monkeypatch.setattr("connector.dataplane.admission.PROGRESS_SECONDS", 0.05)
    await settled(running)
    asked, _, _ = await agreed(running, tmp_path)
    async with running.reads.open(asked, spans=True) as stream:
        parts = stream.parts()
        for batches in (1, 2, 3):
            async with asyncio.timeout(60):
                if batches == 2:  # in a thread, when it has come
                    while await asyncio.to_thread(stream.following) is None:
                        await asyncio.sleep(0.01)
                else:
                    await anext(parts)
                assert stream.batches == batches
                while await noted() != [(stream.rows, stream.bytes)]:
                    await asyncio.sleep(0.01)
        await parts.aclose()


async def test_only_what_has_gone_on_is_written(
    running: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = list[set[str]]()

    async def note(left: Mapping[str, tuple[int, int]]) -> list[str]:
        told.append(set(left))
        return []

    monkeypatch.setattr("connector.dataplane.admission.PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(running.reads, "note", note)
    asked, _, _ = await agreed(running, tmp_path)
    one, other = (dataclasses.replace(asked, query_id=name) for name in "ab")
    async with running.reads.open(one) as first, running.reads.open(other) as second:
        for number, stream in enumerate((first, second), 1):
            parts = stream.parts()
            await anext(parts)
            await until(lambda wanted=number: len(told) == wanted)
            await asyncio.sleep(0.1)  # and no more comes
            await parts.aclose()
    assert told == [{"a"}, {"b"}]


# A worker that is not itself any more.


class Worker:
    """One end of a job's socket; what it sends is what somebody has written."""

    killed = ""

    def __init__(self, relation: Relation, *, spans: bool = True) -> None:
        ours, self.channel = socket.socketpair()
        ours.setblocking(False)
        job = Job(relations={"t": relation}, sql="SELECT 1", batch_bytes=2**16, spans=spans)
        self.result = Result(self, job, ours)  # type: ignore[arg-type]  # of a worker it needs the ring and the end

    def lend_ring(self, slots: int, size: int) -> Ring:
        return Ring(slots, size, released=lambda _: None)

    def take_ring(self, ring: Ring) -> None:
        ring.close()

    def kill(self, code: str) -> None:
        self.killed = code

    @property
    def process(self) -> Any:
        return SimpleNamespace(returncode=None)

    def send(self, *pieces: tuple[int, int, int], slot: int = 1, kind: int = wire.SCATTERED, more: bytes = b"") -> None:
        told = b"".join(wire.PIECE.pack(*piece) for piece in pieces) + more
        self.channel.sendall(wire.HEADER.pack(kind, 0, slot, 1, len(told), -1, b"") + told)


@pytest.fixture
def relation(tmp_path: Path) -> Relation:
    (tmp_path / "files").mkdir()
    for name in "ab":
        (tmp_path / "files" / f"{name}.parquet").write_bytes(name.encode() * 1000)
    return data.relation("parquet", tmp_path / "files", tmp_path)


@pytest.mark.parametrize("ahead", [False, True], ids=["by the loop", "in a thread"])
async def test_pieces_are_those_of_the_files_that_are_registered(relation: Relation, ahead: bool) -> None:
    worker = Worker(relation)
    worker.send((1, 990, 10), (-1, 5, 3), (0, 0, 1000), (-1, 0, 8))
    worker.send((0, 0, 1), slot=2)
    spread = ScatteredResult(worker.result)
    part = await asyncio.to_thread(spread.at_once) if ahead else await anext(spread)
    assert part is not None
    assert isinstance(part.payload, ScatteredMessage)
    assert bytes_of(part.payload) == b"b" * 10 + bytes(3) + b"a" * 1000 + bytes(8)
    assert worker.result.ring is not None
    assert worker.result.ring.in_use == 1
    del part
    await until(lambda: worker.result.ring is not None and not worker.result.ring.in_use)
    worker.result.close()
    assert spread.at_once() is None  # although it came with the first


HOSTILE: dict[str, tuple[dict[str, Any], list[tuple[int, int, int]]]] = {
    "a file that is not there": ({}, [(2, 0, 1)]),
    "beyond the end of a file": ({}, [(0, 990, 11)]),
    "far beyond": ({}, [(0, 2**63, 2**63)]),
    "beyond the slot": ({}, [(-1, 2**20, 1)]),
    "more than a message may have": ({}, [(0, 0, 1000)] * 2_200_000),
    "no slot": ({"slot": 0}, [(-1, 0, 1)]),
    "a slot that is not there": ({"slot": 9}, [(-1, 0, 1)]),
    "half a piece": ({"more": b"x"}, [(0, 0, 1)]),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_worker_that_says_anything_else_is_ended(relation: Relation, name: str) -> None:
    how, pieces = HOSTILE[name]
    worker = Worker(relation)
    sending = asyncio.ensure_future(asyncio.to_thread(worker.send, *pieces, **how))
    with pytest.raises(EngineFailed) as raised:
        await anext(ScatteredResult(worker.result))
    assert (raised.value.code, worker.killed) == ("worker_crashed", "worker_crashed")
    worker.result.close()
    worker.channel.close()
    await asyncio.wait((sending,))


async def test_a_job_without_spans_gets_none(relation: Relation) -> None:
    worker = Worker(relation, spans=False)
    worker.send((0, 0, 10))
    with pytest.raises(EngineFailed):
        await anext(worker.result)


async def test_a_batch_that_has_not_come_whole_is_not_there_yet(relation: Relation) -> None:
    worker = Worker(relation)
    frame = wire.HEADER.pack(wire.SCATTERED, 0, 1, 7, wire.PIECE.size, -1, b"") + wire.PIECE.pack(0, 0, 5)
    spread = ScatteredResult(worker.result)
    for at in range(len(frame)):
        assert spread.at_once() is None
        worker.channel.sendall(frame[at : at + 1])
    found = spread.at_once()
    assert found is not None
    assert (found.rows, found.nbytes) == (7, 5)
    worker.send(slot=2, kind=wire.END)
    assert spread.at_once() is None  # whoever waits for it hears of it
    with pytest.raises(json.JSONDecodeError):
        await anext(spread)
