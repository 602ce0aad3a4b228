"""Flight from the owner's own Arrow files: the same rows, records and refusals as from the engine, without it."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.flight as fl
import pytest
import pytest_asyncio

from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.flight import flight_queries
from connector.dataplane.flight.listener import FlightServer
from connector.dataplane.http import file_sender, file_spans, send_threads, vectored_body
from connector.datasets import file_access
from connector.datasets.sources import source_files
from connector.usage import grants
from policies.contracts import batch_gate
from policies.model import Policy, Rule
from policies.vocabulary import expand
from tests.support import data, flying, gate, provider
from tests.support.flying import flyer
from tests.support.gate import atom, mask
from tests.support.own_name import changed
from tests.support.provider import Provider, settled
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = 140_000  # two blocks


def narrow() -> list[pa.RecordBatch]:
    """Two blocks of several batches each."""
    return data.table(ROWS).to_batches(max_chunksize=20_000)


def uneven() -> list[pa.RecordBatch]:
    """A batch of two blocks: no message is one block's alone."""
    count = 1_200_000
    return [pa.record_batch({"id": pa.array(range(count), pa.int32())})]


def wide() -> list[pa.RecordBatch]:
    """One block of 40 batches of a megabyte: more than is ever under way."""
    return [pa.record_batch({"id": [number], "c": [bytes([number]) * 2**20]}) for number in range(40)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> PreparedStreams:
    """No room for copies: what is sent from files is the owner's."""
    return PreparedStreams(tmp_path_factory.mktemp("streams"), quota=0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory, prepared: PreparedStreams) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), prepared=prepared) as started:
        yield started


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def _small_parts(running: Provider, monkeypatch: pytest.MonkeyPatch, prepared: PreparedStreams) -> None:
    """Datasets of these few megabytes have several endpoints, too; nothing is prepared yet, or being prepared."""
    monkeypatch.setattr(flight_queries, "_PART_BYTES", 1)
    await settled(running)
    prepared.drop(lambda _: True)


async def agreed(
    running: Provider, folder: Path, batches: list[pa.RecordBatch], policy: Policy = provider.OPEN
) -> tuple[str, str, Path]:
    """The agreement on a file of these batches, its dataset's name, the file."""
    path, name = folder / "t.arrow", f"t{os.urandom(4).hex()}"
    with pa.ipc.new_file(path, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return await running.agree(policy, name=name, path=path, kind="arrow_ipc"), name, path


async def flown(
    running: Provider, front: FlightServer, agreement: str, name: str
) -> list[tuple[pa.Table, dict[str, Any]]]:
    """What each endpoint gives."""

    def go() -> list[tuple[pa.Table, dict[str, Any]]]:
        with flyer(front, running.ticket(agreement)) as client:
            endpoints = client.info(provider.OWNER, name).endpoints
            return [flying.whole(client.get(endpoint.ticket)) for endpoint in endpoints]

    found = await asyncio.to_thread(go)
    await settled(running)
    return found


async def test_later_passes_come_from_the_files_without_a_worker(
    running: Provider, prepared: PreparedStreams, front: FlightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, name, _ = await agreed(running, tmp_path, narrow())
    first = await flown(running, front, agreement, name)
    recorded = [event.detail for event in running.of_kind("ReadEnded")[-2:]]
    assert len(first) == len(prepared) == 2
    for way in ("run", "ask"):
        monkeypatch.setattr(running.pool, way, None)
    second = await flown(running, front, agreement, name)
    expected = pa.Table.from_batches(narrow())
    for found in (first, second):
        assert pa.concat_tables([table for table, _ in found]).equals(expected)
        assert [end["status"] for _, end in found] == ["complete", "complete"]
    assert [event.detail["rows"] for event in running.of_kind("ReadEnded")[-2:]] == [one["rows"] for one in recorded]
    prepared.drop(lambda _: True)


async def test_owners_files_are_read_by_threads_of_their_device(
    running: Provider, front: FlightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, name, path = await agreed(running, tmp_path, narrow())
    await flown(running, front, agreement, name)
    devices, threads_of = set(), file_access._threads

    def asked(device: int) -> ThreadPoolExecutor:
        devices.add(device)
        return threads_of(device)

    monkeypatch.setattr(file_access, "_threads", asked)
    await flown(running, front, agreement, name)
    assert devices == {path.stat().st_dev}


async def test_four_endpoints_may_be_read_side_by_side(running: Provider, front: FlightServer, tmp_path: Path) -> None:
    batches = [pa.record_batch({"id": range(number * 10**6, (number + 1) * 10**6)}) for number in range(5)]
    agreement, name, _ = await agreed(running, tmp_path, batches)

    def go() -> tuple[Any, list[tuple[pa.Table, dict[str, Any]]]]:
        with flyer(front, running.ticket(agreement)) as client, ThreadPoolExecutor(4) as pool:
            info = client.info(provider.OWNER, name)
            return info, list(pool.map(lambda one: flying.whole(client.get(one.ticket)), info.endpoints))

    info, parts = await asyncio.to_thread(go)
    assert (len(info.endpoints), info.ordered) == (4, True)
    assert all(part.num_rows for part, _ in parts)
    assert [end["rows"] for _, end in parts] == [part.num_rows for part, _ in parts]
    assert pa.concat_tables([part for part, _ in parts]).equals(pa.Table.from_batches(batches))


TURNING = replace(
    provider.OPEN,
    permissions=(
        Rule(expand("odrl:use"), (atom("odrl:dateTime", "lt", "2099-01-01T00:00:00Z"),)),
        Rule(expand("odrl:use"), (atom("ds:row/gap", "eq", "2"),), (mask("null", "name"),)),
    ),
)


async def test_endpoints_of_one_info_show_the_same_or_are_refused(
    running: Provider, front: FlightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, name, _ = await agreed(running, tmp_path, narrow(), TURNING)
    ticket = running.ticket(agreement)

    def read(endpoint: fl.FlightEndpoint) -> pa.Table:
        with flyer(front, ticket) as client:
            return flying.whole(client.get(endpoint.ticket))[0]

    with flyer(front, ticket) as client:
        first, second = (await asyncio.to_thread(client.info, provider.OWNER, name)).endpoints
    assert (await asyncio.to_thread(read, first)).num_rows == 80_000
    later = SimpleNamespace(time=lambda: time.time() + 100 * 366 * 86_400, monotonic=time.monotonic)
    monkeypatch.setattr(grants, "time", later)
    with pytest.raises(fl.FlightError, match="shown_changed: the agreement shows other columns, masks or rows"):
        await asyncio.to_thread(read, second)
    await settled(running)
    assert running.of_kind("ReadRefused")[-1].code == "shown_changed"
    shown = [table for table, _ in await flown(running, front, agreement, name)]
    assert {gap for table in shown for gap in table["gap"].to_pylist()} == {2}


async def test_a_part_of_the_last_release_that_says_not_what_it_shows_is_refused(
    running: Provider, front: FlightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, name, _ = await agreed(running, tmp_path, narrow())
    parted = flight_queries._split_blocks

    def untold(wanted: dict[str, Any], plan: dict[str, Any] | None) -> list[dict[str, Any]]:
        return [{key: value for key, value in part.items() if key != "shown"} for part in parted(wanted, plan)]

    monkeypatch.setattr(flight_queries, "_split_blocks", untold)
    with pytest.raises(fl.FlightUnauthorizedError, match=r"flight_ticket_invalid: .* ask for the flight info again"):
        await flown(running, front, agreement, name)
    await settled(running)


async def test_small_datasets_have_one_endpoint(
    running: Provider, front: FlightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, name, path = await agreed(running, tmp_path, narrow())
    size = path.stat().st_size
    for least, endpoints in ((size * 2 // 3, 1), (size // 3, 2)):
        monkeypatch.setattr(flight_queries, "_PART_BYTES", least)
        assert len(await flown(running, front, agreement, name)) == endpoints


async def test_a_batch_of_two_blocks_is_cut_by_the_engine(
    running: Provider, prepared: PreparedStreams, front: FlightServer, tmp_path: Path
) -> None:
    agreement, name, _ = await agreed(running, tmp_path, uneven())
    for _ in range(2):
        found = await flown(running, front, agreement, name)
        assert [table["id"].to_pylist()[::600_000] for table, _ in found] == [[0], [600_000]]
        assert len(prepared) == 0


def revoke(running: Provider, agreement: str, path: Path) -> None:
    running.grants.stop(agreement_id=agreement, reason="consent withdrawn")


def cut_short(running: Provider, agreement: str, path: Path) -> None:
    os.truncate(path, 4096)


def write_over(running: Provider, agreement: str, path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size - 100_000)
        file.write(b"x" * 1000)


@pytest.mark.parametrize(
    ("happens", "error", "code"),
    [
        (revoke, fl.FlightUnauthorizedError, "revoked"),
        (cut_short, fl.FlightInternalError, "version_changed"),
        (write_over, fl.FlightInternalError, "version_changed"),
    ],
    ids=["revoked", "cut short", "written over"],
)
async def test_what_happens_in_mid_stream_ends_it_with_its_reason(
    running: Provider,
    prepared: PreparedStreams,
    front: FlightServer,
    tmp_path: Path,
    happens: Callable[[Provider, str, Path], None],
    error: type[Exception],
    code: str,
) -> None:
    agreement, name, path = await agreed(running, tmp_path, wide())
    await flown(running, front, agreement, name)
    assert len(prepared) == 1
    loop, rows = asyncio.get_running_loop(), []

    async def now() -> None:
        happens(running, agreement, path)

    def go() -> None:
        with flyer(front, running.ticket(agreement)) as client:
            reader = client.get(client.info(provider.OWNER, name).endpoints[0].ticket)
            rows.append(reader.read_chunk().data.num_rows)
            asyncio.run_coroutine_threadsafe(now(), loop).result()
            rows.extend(chunk.data.num_rows for chunk in reader)

    with pytest.raises(error, match=code):
        await asyncio.to_thread(go)
    assert 1 <= sum(rows) < 40
    await settled(running)
    assert running.of_kind("ReadEnded")[-1].code == code
    prepared.drop(lambda _: True)


@pytest.fixture
def hung(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], threading.Event]]:
    """Makes threads of a kind wait that look at the named file, or read from it, until the event that comes back is
    set."""
    over = threading.Event()
    names: set[tuple[str, str]] = set()

    def wait(number: int) -> None:
        thread = threading.current_thread().name.partition("_")[0]
        if (thread, os.readlink(f"/proc/self/fd/{number}")) in names:
            over.wait()

    def looked(number: int) -> os.stat_result:
        wait(number)
        return os.fstat(number)

    def read(number: int, *given: Any) -> int:
        wait(number)
        return os.preadv(number, *given)

    def hang(thread: str, path: str) -> threading.Event:
        names.add((thread, path))
        return over

    for module in (file_spans, vectored_body, file_sender, source_files):
        monkeypatch.setattr(module, "os", changed(os, preadv=read, fstat=looked))
    yield hang
    over.set()


async def over_http(running: Provider, agreement: str, name: str) -> Any:
    headers = {"authorization": f"Bearer {running.ticket(agreement)}"}
    async with httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=30) as session:
        return await session.get(f"/data/v1/datasets/{name}/rows")


def held(path: Path) -> bool:
    """Whether this process has the file open."""
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.add(os.readlink(f"/proc/self/fd/{number}"))
    return str(path) in found


@pytest.mark.parametrize("way", ["http", "flight"])
async def test_a_read_whose_sender_hangs_ends_and_gives_back_its_place(
    running: Provider,
    prepared: PreparedStreams,
    front: FlightServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    hung: Callable[[str, str], threading.Event],
    way: str,
) -> None:
    once = gate.agreement(gate.atom("ds:concurrency", "lteq", "1"), action="odrl:use")
    agreement, name, path = await agreed(running, tmp_path, wide(), once)
    await flown(running, front, agreement, name)
    assert len(prepared) == 1
    over = hung("sender" if way == "http" else "files", str(path))
    for module in (send_threads, file_access):
        monkeypatch.setattr(module, "_SECONDS", 0.3)
    async with asyncio.timeout(60):
        if way == "http":
            with pytest.raises(httpx2.RemoteProtocolError):
                await over_http(running, agreement, name)
        else:
            with pytest.raises(fl.FlightUnavailableError, match="file_unavailable: the disk"):
                await flown(running, front, agreement, name)
        await settled(running)
    prepared.drop(lambda _: True)
    assert [running.of_kind("ReadEnded")[-1].code, len(running.reads._running)] == ["file_unavailable", 0]
    assert held(path)  # a number that the thread may still use is nobody else's
    over.set()
    await until(lambda: gc.collect() >= 0 and not held(path))  # what was raised and its frames refer to each other
    assert (await over_http(running, agreement, name)).status_code == 200  # there is one place at once
    await settled(running)
    prepared.drop(lambda _: True)


async def test_a_gate_that_fails_in_mid_stream_is_no_reader_that_stalls(
    running: Provider, prepared: PreparedStreams, front: FlightServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement, name, _ = await agreed(running, tmp_path, wide())
    await flown(running, front, agreement, name)
    assert len(prepared) == 1
    check, seen = batch_gate.check, [0]

    def fails(*given: Any) -> str | None:
        seen[0] += 1
        if seen[0] > 2:
            raise TimeoutError
        return check(*given)

    monkeypatch.setattr(batch_gate, "check", fails)
    with pytest.raises(fl.FlightInternalError, match="internal"):
        await flown(running, front, agreement, name)
    seen[0] = 0
    answer = await over_http(running, agreement, name)
    assert b'"code":"internal"' in answer.content[-4096:]  # in the end record
    await settled(running)
    assert [(one.outcome, one.code) for one in running.of_kind("ReadEnded")[-2:]] == [("broken", "internal")] * 2
    prepared.drop(lambda _: True)
