"""Streams of images over HTTP: their digest, their progress, and their end when a file changes."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pytest
import pytest_asyncio
import xxhash

from connector.dataplane.read_request import STREAM, ReadRequest
from tests.support import gate, provider
from tests.support.gate import atom
from tests.support.images import images, write
from tests.support.provider import Provider, settled
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


async def test_what_has_left_is_noted_by_time(
    running: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the record that a crash leaves behind, whether anything follows or not."""

    async def noted() -> list[tuple[int, int]]:
        return await running.store.read(lambda tx: [(one.rows, one.bytes) for one in tx.reads.list_of_instance("")])

    monkeypatch.setattr("connector.dataplane.admission.PROGRESS_SECONDS", 0.05)
    await settled(running)
    asked, _, _ = await agreed(running, tmp_path)
    async with running.reads.open(asked) as stream:
        parts = stream.parts()
        for batches in (1, 2, 3):
            async with asyncio.timeout(60):
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
