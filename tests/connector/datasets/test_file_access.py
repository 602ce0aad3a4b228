"""A disk that hangs takes the threads of its own device, and nobody else's, and no read waits for it for ever."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import pytest
import pytest_asyncio

from connector.dataplane.cache.cached_stream import open_owner_file
from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.read_request import STREAM, ReadRequest
from connector.datasets import file_access
from connector.datasets.file_access import check_files_unchanged, run_at_files
from connector.datasets.sources import source_files
from connector.errors import Unavailable
from tests.support import data, provider
from tests.support.own_name import changed
from tests.support.provider import Provider
from tests.support.waiting import until

OWN = 4  # threads of the loop's, as on a small machine
MORE = 12  # than there are for one device


@pytest_asyncio.fixture(autouse=True)
async def few() -> None:
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(OWN))


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Have whoever opens the file that is named wait from then on."""
    over = threading.Event()
    hung: set[str] = set()

    def opened(path: Any, *given: Any, **named: Any) -> int:
        if str(path) in hung:
            over.wait()
        return os.open(path, *given, **named)

    monkeypatch.setattr(source_files, "os", changed(os, open=opened))
    yield hung.add
    over.set()


@pytest_asyncio.fixture
async def running(tmp_path: Path) -> AsyncIterator[Provider]:
    kept = PreparedStreams(tmp_path / "streams", quota=64 * 2**20)
    async with provider.running(tmp_path, rows=1000, prepared=kept) as started:
        yield started


async def test_files_of_one_device_that_hang_leave_others_their_threads(
    tmp_path: Path, hanging: Callable[[str], None]
) -> None:
    ref = source_files.file_ref(str(data.parquet(tmp_path / "t.parquet", 10)), roots=[tmp_path])
    elsewhere = replace(ref, dev=ref.dev + 1)
    waiting = partial(source_files.open_pinned, ref)
    hanging(ref.path)
    hung = [asyncio.ensure_future(run_at_files([ref], waiting)) for _ in range(MORE)]
    hung += [asyncio.ensure_future(check_files_unchanged([ref.to_json()])) for _ in range(MORE)]
    hung += [asyncio.ensure_future(run_at_files((), waiting)) for _ in range(MORE)]
    async with asyncio.timeout(20):
        await asyncio.sleep(0.1)
        assert await run_at_files([elsewhere], lambda: 7) == 7
        assert await asyncio.to_thread(lambda: 7) == 7
    for one in hung:
        one.cancel()


async def test_a_dataset_on_a_disk_that_hangs_holds_up_no_question_over_another(
    running: Provider, tmp_path: Path, hanging: Callable[[str], None]
) -> None:
    slow = data.parquet(tmp_path / "slow.parquet", 1000)
    asked = ReadRequest(
        tickets=(await ticket(running, "slow", slow),), sql='SELECT * FROM "clinic".slow', action=STREAM
    )
    asked = replace(asked, plain_scan=True, unfiltered=True)
    assert await rows(running, asked) == 1000  # from now on it lies in a copy, if its file is what it was
    hanging(str(slow))
    hung = [asyncio.ensure_future(rows(running, asked)) for _ in range(OWN + 2)]
    await until(lambda: len(running.of_kind("ReadStarted")) == 1 + OWN + 2)
    async with asyncio.timeout(20):
        others = ReadRequest(
            tickets=(await ticket(running, "numbers", running.path),),
            sql='SELECT id FROM "clinic".numbers',
            action=STREAM,
        )
        assert await rows(running, others) == 1000
    assert not any(one.done() for one in hung)
    for one in hung:
        one.cancel()
    await asyncio.gather(*hung, return_exceptions=True)


async def test_a_read_of_a_disk_that_hangs_is_refused_and_keeps_no_place(
    running: Provider, tmp_path: Path, hanging: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = data.parquet(tmp_path / "slow.parquet", 1000)
    asked = ReadRequest(
        tickets=(await ticket(running, "slow", slow),), sql='SELECT * FROM "clinic".slow', action=STREAM
    )
    asked = replace(asked, plain_scan=True, unfiltered=True)
    assert await rows(running, asked) == 1000
    monkeypatch.setattr(file_access, "_SECONDS", 0.1)
    hanging(str(slow))
    async with asyncio.timeout(20):
        with pytest.raises(Unavailable) as raised:
            await rows(running, asked)
        await running.reads.drain("the connector is stopping", seconds=60)  # back when no place is taken
    assert raised.value.code == running.of_kind("ReadEnded")[-1].code == "file_unavailable"


async def test_what_a_disk_opens_too_late_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_access, "_SECONDS", 0.1)
    ref = source_files.file_ref(str(data.parquet(tmp_path / "t.parquet", 10)), roots=[tmp_path])
    over, opened = threading.Event(), threading.Event()

    def late() -> IO[bytes]:
        over.wait()
        opened.set()
        return open_owner_file(ref)

    with pytest.raises(Unavailable):
        await run_at_files([ref], late)
    over.set()
    assert await asyncio.to_thread(opened.wait, 20)
    await until(lambda: ref.path not in descriptors())


def descriptors() -> list[str]:
    return [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]


async def ticket(running: Provider, name: str, path: Path) -> Any:
    return running.addresses.read(f"Bearer {running.ticket(await running.agree(name=name, path=path))}")


async def rows(running: Provider, asked: ReadRequest) -> int:
    async with running.reads.open(asked) as stream:
        async for _ in stream.frames():
            pass
        return stream.rows
