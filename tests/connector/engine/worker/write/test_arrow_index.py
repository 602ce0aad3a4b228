"""Streams sent from the owner's own Arrow files: the same rows under the same rules, and only where nothing else is in
the files."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest
import pytest_asyncio

from connector.dataplane.cache import cached_stream
from connector.dataplane.cache import stream_cache as prepared_streams
from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.http.file_spans import Span
from connector.dataplane.read_request import STREAM, ReadRequest
from connector.engine.pool.protocol import Job
from connector.events import AgreementRevoked
from tests.support import data, gate, provider
from tests.support.gate import atom, mask
from tests.support.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = 100_000
LIMITED = gate.agreement(atom("ds:rowQuota", "lteq", "9000000"), action="odrl:use")
FILTERED = gate.agreement(atom("ds:row/id", "lt", "150000"), action="odrl:use")
MASKED = gate.agreement(duties=(mask("null", "name"),), action="odrl:use")


def batches(rows: int = ROWS, each: int = 20_000) -> list[pa.RecordBatch]:
    return data.table(rows).to_batches(max_chunksize=each)


def write(path: Path, parts: list[pa.RecordBatch], **options: Any) -> Path:
    with pa.ipc.new_file(path, parts[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for part in parts:
            writer.write_batch(part)
    return path


def ordinary(path: Path) -> Path:
    return write(path, batches())


def compressed(path: Path) -> Path:
    return write(path, batches(), compression="lz4")


def with_metadata(path: Path) -> Path:
    parts = batches()
    with pa.ipc.new_file(path, parts[0].schema) as writer:
        for part in parts:
            writer.write_batch(part, custom_metadata={"patient": "SECRET"})
    return path


def with_values_under_nulls(path: Path) -> Path:
    hidden = pa.array([b"SECRET"] * 40_000, pa.binary(6)).buffers()[1]
    valid = pa.array([False] * 40_000).buffers()[1]
    column = pa.Array.from_buffers(pa.binary(6), 40_000, [valid, hidden])
    return write(path, [pa.record_batch({"id": pa.array(range(40_000)), "c": column})])


def with_text_views(path: Path) -> Path:
    return write(
        path, [pa.record_batch({"id": pa.array(range(40_000)), "s": pa.array(["x"] * 40_000, pa.string_view())})]
    )


def with_words_listed(path: Path) -> Path:
    words = pa.array(["x", "y"] * 20_000).dictionary_encode()
    return write(path, [pa.record_batch({"id": pa.array(range(40_000)), "s": words})])


def with_huge_batches(path: Path) -> Path:
    return write(path, batches(600_000, 600_000))


def with_tiny_batches(path: Path) -> Path:
    return write(path, batches(20_000, 100))


def with_rows_cut_off(path: Path) -> Path:
    """The writer pads a buffer with what stands behind it: the first bytes of a row that the owner took out."""
    names = pa.array([f"{number:03}"[-3:] for number in range(40_001)] + ["SECRET"])
    part = pa.record_batch({"id": pa.array(range(40_002)), "s": names}).slice(0, 40_001)
    write(path, [part])
    assert b"SECRE" in path.read_bytes()
    return path


UNLIKE: list[Callable[[Path], Path]] = [
    compressed, with_metadata, with_values_under_nulls, with_text_views, with_words_listed, with_huge_batches,
    with_tiny_batches, with_rows_cut_off,
]  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedStreams:
    """No room for copies: what is sent from files is the owner's."""
    return PreparedStreams(tmp_path_factory.mktemp("streams"), quota=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory, prepared: PreparedStreams) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), prepared=prepared) as started:
        yield started


async def agreed(running: Provider, make: Callable[[Path], Path], folder: Path, **policy: Any) -> tuple[str, Path]:
    """An agreement on a file of its own."""
    path = make(folder / "t.arrow")
    name = f"t{os.urandom(4).hex()}"
    return await running.agree(name=name, path=path, kind="arrow_ipc", **policy), path


async def indexed(running: Provider, prepared: PreparedStreams, agreement: str) -> ReadRequest:
    """A question whose next pass is sent from the file."""
    held = await running.grants.load(agreement, consumer=provider.CONSUMER)
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    sql = f'SELECT * FROM "clinic".{held.dataset.name}'
    asked = ReadRequest(tickets=(ticket,), sql=sql, action=STREAM, plain_scan=True, unfiltered=True)
    async with running.reads.open(asked) as stream:
        assert [part async for part in stream.frames()]
    await settled(running, prepared)
    return asked


async def read(running: Provider, agreement: str, **parameters: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {running.ticket(agreement)}"}
    async with httpx2.AsyncClient(base_url=running.url, timeout=60, headers=headers) as client:
        return await client.get("/data/v1", params=parameters)


async def settled(running: Provider, prepared: PreparedStreams) -> None:
    """Until nothing is being looked at any more."""
    while running.reads._tasks or prepared._made:
        await asyncio.sleep(0.01)


async def test_later_passes_are_sent_from_the_file_without_a_worker(
    running: Provider, prepared: PreparedStreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, path = await agreed(running, ordinary, tmp_path)
    first = await read(running, agreement)
    await settled(running, prepared)
    monkeypatch.setattr(running.pool, "run", None)
    second, third = [await read(running, agreement) for _ in range(2)]
    with pa.ipc.open_file(path) as file:
        expected = file.read_all()
    for answer in (first, second, third):
        assert answer.status_code == 200
        assert pa.ipc.open_stream(answer.content).read_all().equals(expected)
    before, after, again = (event.detail for event in running.of_kind("ReadEnded")[-3:])
    assert (before["rows"], after["rows"]) == (ROWS, ROWS)
    assert after == again  # bytes and digest, too, which are those of the file's own batches
    assert after["digest"].startswith("xxh3:")
    assert path.read_bytes().find(second.content[2000:50_000]) > 0


async def test_memory_and_spans_are_the_same_bytes(
    running: Provider, prepared: PreparedStreams, tmp_path: Path
) -> None:
    agreement, path = await agreed(running, ordinary, tmp_path)
    asked = await indexed(running, prepared, agreement)
    whole = path.read_bytes()
    found: list[list[bytes]] = []
    for spans in (False, True):
        async with running.reads.open(asked, spans=spans) as stream:
            parts = [part async for part in stream.parts()]
        assert any(isinstance(part, Span) for part in parts) is spans
        found.append(
            [whole[p.at : p.at + p.nbytes] if isinstance(p, Span) else bytes(p) for p in parts[:-1]]
        )  # the last is the end record, with the id of the read
    assert found[0] == found[1]  # all were held until here: none was filled again


async def test_memory_that_was_sent_is_filled_again_and_no_other() -> None:
    pieces = cached_stream._BufferPool(100)
    first = pieces.take()
    first[:3] = b"one"
    sent = first[:3].toreadonly()
    del first
    assert bytes(pieces.take()[:3]) != b"one"  # a part of it is held
    del sent
    assert b"one" in [bytes(one[:3]) for one in [pieces.take(), pieces.take()]]


@pytest.mark.parametrize("make", UNLIKE, ids=lambda make: make.__name__)
async def test_other_files_go_through_the_engine(
    running: Provider, prepared: PreparedStreams, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    agreement, _ = await agreed(running, make, tmp_path)
    before = len(prepared)
    for _ in range(2):
        answer = await read(running, agreement)
        assert answer.status_code == 200
        assert b"SECRET" not in answer.content
        await settled(running, prepared)
    assert len(prepared) == before


@pytest.mark.parametrize("policy", [LIMITED, FILTERED, MASKED], ids=["a quota", "a row filter", "a mask"])
async def test_nothing_is_sent_from_files_under(
    running: Provider, prepared: PreparedStreams, tmp_path: Path, policy: Any
) -> None:
    agreement, _ = await agreed(running, ordinary, tmp_path, policy=policy)
    before = len(prepared)
    assert (await read(running, agreement)).status_code == 200
    await settled(running, prepared)
    assert len(prepared) == before


@pytest.mark.parametrize(
    "parameters",
    [{"columns": "id,x"}, {"where": "id > 7"}, {"codec": "lz4"}, {"batch_rows": "7000"}, {"blocks": "all"}],
    ids=lambda parameters: "-".join(parameters),
)
async def test_other_questions_go_through_the_engine(
    running: Provider, prepared: PreparedStreams, tmp_path: Path, parameters: dict[str, str]
) -> None:
    agreement, _ = await agreed(running, ordinary, tmp_path)
    before = len(prepared)
    assert (await read(running, agreement, **parameters)).status_code == 200
    await settled(running, prepared)
    assert len(prepared) == before


async def test_a_file_that_changes_between_passes_is_refused(
    running: Provider, prepared: PreparedStreams, tmp_path: Path
) -> None:
    agreement, path = await agreed(running, ordinary, tmp_path)
    await read(running, agreement)
    await settled(running, prepared)
    os.utime(path, ns=(1, 1))
    answer = await read(running, agreement)
    assert (answer.status_code, answer.json()["code"]) == (409, "version_changed")


@pytest.mark.parametrize("spans", [False, True])
@pytest.mark.parametrize("change", ["cut short", "written over"])
async def test_a_file_that_changes_in_a_pass_ends_it_as_failed(
    running: Provider, prepared: PreparedStreams, tmp_path: Path, spans: bool, change: str
) -> None:
    agreement, path = await agreed(running, ordinary, tmp_path)
    asked = await indexed(running, prepared, agreement)
    async with running.reads.open(asked, spans=spans) as stream:
        parts = stream.parts()
        await anext(parts)
        if change == "cut short":
            os.truncate(path, 4096)
        else:
            with path.open("r+b") as file:
                file.seek(path.stat().st_size - 100_000)
                file.write(b"x" * 1000)
        rest = [part async for part in parts]
        assert len(rest) < len(batches())
        assert stream.end is not None
        assert (stream.end.status, stream.end.code) == ("error", "version_changed")


async def test_revocation_stops_it_at_the_next_batch(
    running: Provider, prepared: PreparedStreams, tmp_path: Path
) -> None:
    agreement, _ = await agreed(running, ordinary, tmp_path)
    asked = await indexed(running, prepared, agreement)
    async with running.reads.open(asked, spans=True) as stream:
        parts = stream.parts()
        await anext(parts)
        await running.revoke(agreement, "enough")
        assert len([part async for part in parts]) == 1  # the end record
        assert stream.end is not None
        assert (stream.end.status, stream.end.reason) == ("revoked", "enough")


async def test_what_ends_while_the_files_are_looked_at_leaves_no_index(
    running: Provider, prepared: PreparedStreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, _ = await agreed(running, ordinary, tmp_path)
    ask, before = running.reads._pool.ask, len(prepared)

    async def slow(job: Job) -> Any:
        found = await ask(job)
        if job.kind == "verbatim":
            event = AgreementRevoked(actor="owner", agreement=agreement, reason="enough")
            await running.store.write(lambda tx: tx.publish(event))
        return found

    monkeypatch.setattr(running.reads._pool, "ask", slow)
    await indexed(running, prepared, agreement)
    assert len(prepared) == before
    assert all(entry.agreement != agreement for entry in prepared._entries.values())
    assert not prepared._under_way


async def test_many_files_are_held_open_for_few_streams_only(
    running: Provider, prepared: PreparedStreams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A consumer can ask for the same rows in any number of ways; each holds descriptors that connections need."""
    monkeypatch.setattr(prepared_streams, "_FILES_MAX", 3)
    agreement, _ = await agreed(running, ordinary, tmp_path)
    asked = await indexed(running, prepared, agreement)
    for number in range(5):
        async with running.reads.open(replace(asked, application=f"job {number}", query_id="")) as stream:
            assert [part async for part in stream.frames()]
        await settled(running, prepared)
    assert sum(len(entry.files) for entry in prepared._entries.values()) == 3
