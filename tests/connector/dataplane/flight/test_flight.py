"""Arrow Flight as a plain pyarrow.flight client meets it: real files, real workers, a real server over loopback."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.flight as fl
import pytest
import pytest_asyncio
from fastapi import FastAPI

from connector.dataplane import admission, contract_routes
from connector.dataplane.flight import flightsql, grpc_call, protobuf
from connector.dataplane.flight.listener import FlightServer
from connector.engine.pool import error_codes, pool
from connector.errors import Denied
from connector.infra.concurrency.turn_queue import TurnQueue
from tests.support import data, flying, gate, provider
from tests.support.beats import beats
from tests.support.flying import flyer, whole
from tests.support.gate import atom
from tests.support.grpc_client import connected
from tests.support.provider import Provider, settled
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = ("clinic", "numbers")
ENDLESS = 'SELECT a.id, b.x FROM "clinic".numbers a CROSS JOIN "clinic".numbers b'


async def test_a_dataset_is_listed_described_and_read_with_its_end_record(
    running: Provider, front: FlightServer
) -> None:
    agreement = await running.agree()

    def go() -> tuple[Any, Any, pa.Table, dict[str, Any]]:
        with flyer(front, running.ticket(agreement)) as client:
            (listed,) = client.client.list_flights(options=client.options)
            return listed, client.info(*PATH), *client.read(*PATH)

    listed, info, table, end = await asyncio.to_thread(go)
    assert listed.descriptor.path == [b"clinic", b"numbers"]
    assert listed.schema == info.schema == table.schema
    assert all(one.expiration_time.as_py().timestamp() > time.time() for one in info.endpoints)
    assert table.equals(data.table().cast(table.schema))
    assert (end["status"], end["rows"]) == ("complete", end["rows"])
    await settled(running)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.actor, ended.agreement) == ("ok", provider.CONSUMER, agreement)


async def test_a_ticket_whose_transfer_is_over_tells_nothing(running: Provider, front: FlightServer) -> None:
    agreement = await running.agree()
    ticket = running.ticket(agreement)

    def go() -> list[Any]:
        with flyer(front, ticket) as client:
            return list(client.client.list_flights(options=client.options))

    nobody: Any = None
    app = FastAPI(routes=contract_routes.router(running.addresses, running.reads, nobody, owner="clinic").routes)
    shown = httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://here")
    headers = {"authorization": f"Bearer {ticket}"}
    assert len(await asyncio.to_thread(go)) == 1
    assert (await shown.get("/data/v1/contract", headers=headers)).json()["name"] == "numbers"

    def suspend(tx: Any) -> None:
        tx.transfers.get(agreement.replace("agreement", "transfer")).generation += 1

    await running.store.write(suspend)
    with pytest.raises(fl.FlightUnauthorizedError, match="ticket_replaced"):
        await asyncio.to_thread(go)
    with pytest.raises(Denied, match="replaced by a newer one"):
        await shown.get("/data/v1/contract", headers=headers)


async def test_several_agreements_are_read_together(running: Provider, front: FlightServer, tmp_path: Path) -> None:
    first = running.ticket(await running.agree())
    second = running.ticket(await running.agree(name="others", path=data.parquet(tmp_path / "others.parquet", 50)))
    sql = 'SELECT count(*) AS n FROM "clinic".numbers n JOIN "clinic".others o ON n.id = o.id'

    def go() -> tuple[list[bytes], pa.Table, pa.Table]:
        with flyer(front, first, headers=[(b"hanse-ticket", second.encode())]) as client:
            listed = [one.descriptor.path[-1] for one in client.client.list_flights(options=client.options)]
            together = client.read(sql=sql)[0]
        with flyer(front, first) as client:
            return listed, together, client.read(sql=sql, tickets=[second])[0]

    listed, *tables = await asyncio.to_thread(go)
    assert sorted(listed) == [b"numbers", b"others"]
    assert [table["n"].to_pylist() for table in tables] == [[50], [50]]


async def test_a_purpose_that_is_not_agreed_is_refused_with_its_rule(running: Provider, front: FlightServer) -> None:
    research, ads = "https://w3id.org/dpv#ScientificResearch", "https://w3id.org/dpv#Advertising"
    policy = gate.agreement(atom("odrl:purpose", "eq", research), action="odrl:use")
    agreement = await running.agree(policy)

    def go(purpose: str) -> int:
        with flyer(front, running.ticket(agreement), headers=[(b"hanse-purpose", purpose.encode())]) as client:
            return int(client.read(*PATH)[0].num_rows)

    assert await asyncio.to_thread(go, research) == data.ROWS
    with pytest.raises(fl.FlightUnauthorizedError) as caught:
        await asyncio.to_thread(go, ads)
    assert json.loads(caught.value.extra_info)["rule"].startswith("/permission/0")
    assert "[rule /permission/0" in str(caught.value)


async def test_the_job_that_a_consumer_names_is_in_each_record_of_its_read(
    running: Provider, front: FlightServer
) -> None:
    agreement = await running.agree()

    def go() -> int:
        with flyer(front, running.ticket(agreement), headers=[(b"hanse-job", b"run-17")]) as client:
            return int(client.read(*PATH)[0].num_rows)

    assert await asyncio.to_thread(go) == data.ROWS
    await settled(running)
    assert [running.of_kind(kind)[-1].job for kind in ("ReadStarted", "ReadEnded")] == ["run-17", "run-17"]


async def test_a_renewed_endpoint_lets_its_stream_go_on(running: Provider, front: FlightServer) -> None:
    agreement = await running.agree()

    def go() -> int:
        with flyer(front, running.ticket(agreement, seconds=60)) as client:
            endpoint = client.info(*PATH).endpoints[0]
            reader = client.get(endpoint.ticket)
            rows = reader.read_chunk().data.num_rows
            with flyer(front, running.ticket(agreement)) as fresh:
                (answer,) = fresh.act("RenewFlightEndpoint", protobuf.write([(1, endpoint.serialize())]))
            renewed = fl.FlightEndpoint.deserialize(answer)
            assert renewed.expiration_time.as_py() > endpoint.expiration_time.as_py()
            running.later(60)
            return int(rows + whole(reader)[0].num_rows)

    assert await asyncio.to_thread(go) > 0


@pytest.mark.parametrize("renewed", [False, True])
@pytest.mark.parametrize("last", [False, True])
async def test_of_two_agreements_on_one_dataset_a_read_is_under_that_which_it_was_described_under(
    running: Provider, front: FlightServer, *, renewed: bool, last: bool
) -> None:
    """Whichever ticket comes first, and however often its endpoint is renewed."""
    policy = gate.agreement(atom("ds:row/gap", "eq", "2"), atom("ds:rowQuota", "lteq", "100000"), action="odrl:use")
    under, other = await running.agree(policy), await running.agree()
    first, second = (other, under) if last else (under, other)
    shown = running.ticket(second).encode()

    def go() -> tuple[pa.Table, pa.Table]:
        with flyer(front, running.ticket(under)) as client:
            (endpoint,) = client.info(*PATH).endpoints
            alone = client.read(*PATH)[0]
        with flyer(front, running.ticket(first), headers=[(b"hanse-ticket", shown)]) as both:
            if renewed:
                (answer,) = both.act("RenewFlightEndpoint", protobuf.write([(1, endpoint.serialize())]))
                endpoint = fl.FlightEndpoint.deserialize(answer)
            return whole(both.get(endpoint.ticket))[0], alone

    found, alone = await asyncio.to_thread(go)
    assert found.equals(alone)
    await settled(running)
    assert [event.agreement for event in running.of_kind("ReadStarted")[-2:]] == [under, under]


@pytest.mark.parametrize("later", [0, 1000], ids=["at once", "after its Flight ticket has ended"])
async def test_cancelling_ends_the_running_read(
    running: Provider, front: FlightServer, monkeypatch: pytest.MonkeyPatch, later: int
) -> None:
    agreement = await running.agree()

    def go() -> list[bytes]:
        with flyer(front, running.ticket(agreement, seconds=3600)) as client:
            info = client.info(sql=ENDLESS)
            reader = client.get(info.endpoints[0].ticket)
            reader.read_chunk()
            monkeypatch.setattr(running.addresses, "clock", lambda: time.time() + later)
            answer = client.act("CancelFlightInfo", protobuf.write([(1, info.serialize())]))
            with pytest.raises(fl.FlightCancelledError, match="cancelled"):
                for _ in reader:
                    pass
            return answer + client.act("CancelFlightInfo", protobuf.write([(1, info.serialize())]))

    assert await asyncio.to_thread(go) == [b"\x08\x01", b"\x08\x03"]  # cancelled; nothing left to cancel
    await settled(running)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.code, ended.reason) == (
        "broken", "cancelled", "the read was cancelled by its reader",
    )  # fmt: skip


LONG = "SELECT count(*) AS n FROM clinic.numbers a, clinic.numbers b, clinic.numbers c WHERE a.x < b.x * c.x"


@pytest.mark.parametrize("sql", [ENDLESS, LONG], ids=["after the first batch", "before it"])
@pytest.mark.parametrize("how", ["cancelled", "deadline_exceeded", "shutting_down"])
async def test_the_record_of_a_read_that_is_ended_says_who_did_it(
    running: Provider, front: FlightServer, how: str, sql: str
) -> None:
    started, ends = len(running.of_kind("ReadStarted")), len(running.of_kind("ReadEnded"))
    ticket = running.ticket(await running.agree())
    with flyer(front, ticket) as client:
        info = await asyncio.to_thread(client.info, sql=sql)
        if how == "deadline_exceeded":
            client.options = fl.FlightCallOptions(
                timeout=2.0, headers=[(b"authorization", f"Bearer {ticket}".encode())]
            )

        def go() -> None:
            with pytest.raises(fl.FlightError):
                for _ in client.get(info.endpoints[0].ticket):
                    pass

        reading = asyncio.ensure_future(asyncio.to_thread(go))
        await until(lambda: len(running.of_kind("ReadStarted")) > started)
        if sql == ENDLESS:
            await until(lambda: any(one.batches for one in running.reads.live.values()))
        if how == "cancelled":
            await asyncio.to_thread(client.act, "CancelFlightInfo", protobuf.write([(1, info.serialize())]))
        if how == "shutting_down":
            running.grants.stop_all("the connector is stopping", code=how)
        await reading
    await until(lambda: len(running.of_kind("ReadEnded")) > ends)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.code) == ("broken", how)


@pytest_asyncio.fixture(loop_scope="module")
async def strict(running: Provider) -> AsyncIterator[FlightServer]:
    """One that waits for its clients a second."""
    async with flying.flying(running, stall_seconds=1.0) as started:
        yield started


async def test_a_client_that_does_not_read_is_cut_off_and_holds_little_memory(
    running: Provider, strict: FlightServer
) -> None:
    front, agreement = strict, await running.agree()
    before = _own_mb(os.getpid())

    def go() -> tuple[int, str]:
        with flyer(front, running.ticket(agreement)) as client:
            reader = client.get(client.info(sql=ENDLESS).endpoints[0].ticket)
            reader.read_chunk()
            while running.reads.live:
                time.sleep(0.05)
            held = _own_mb(os.getpid()) - before
            with pytest.raises(fl.FlightError) as caught:
                for _ in reader:
                    pass
            return held, str(caught.value)

    held, said = await asyncio.to_thread(go)
    assert held < 48
    assert "client_stalled" in said
    await settled(running)
    assert running.of_kind("ReadEnded")[-1].code == "client_stalled"


async def test_reads_at_once_of_one_consumer_are_bounded(
    running: Provider, front: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.reads, "_streams_max", 2)
    monkeypatch.setattr(running.reads, "_queue_seconds", 0.0)
    monkeypatch.setattr(running.reads, "_turns", TurnQueue(2, each=1, waiting=2, wait_seconds=0.0))
    ticket = running.ticket(await running.agree())

    def go() -> None:
        with flyer(front, ticket) as client:
            first, second = (client.info(sql=ENDLESS).endpoints[0].ticket for _ in range(2))
            reader = client.get(first)
            reader.read_chunk()
            client.get(second)

    with pytest.raises(fl.FlightUnavailableError, match="streams_of_consumer"):
        await asyncio.to_thread(go)
    await settled(running)


async def test_what_is_only_prepared_waits_for_its_turn_and_takes_no_place_of_reads(
    running: Provider, front: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.reads, "_turns", TurnQueue(2, each=1, waiting=0, wait_seconds=60))
    monkeypatch.setattr(running.reads, "_looks", TurnQueue(1, waiting=256, wait_seconds=60))
    ticket = running.ticket(await running.agree())
    names: list[Any] = []

    def prepare(number: int) -> None:
        with flyer(front, ticket) as client:
            names.append(client.info(sql=f"SELECT gap, count(*) AS n{number} FROM clinic.numbers GROUP BY gap").schema)

    def go() -> None:
        with flyer(front, ticket) as client:
            reader = client.get(client.info(sql=ENDLESS).endpoints[0].ticket)
            reader.read_chunk()
            with ThreadPoolExecutor(6) as pool:
                list(pool.map(prepare, range(6)))
            reader.cancel()

    await asyncio.to_thread(go)
    assert len(names) == 6
    await settled(running)


async def test_who_describes_much_while_he_has_all_workers_keeps_nobody_from_one(
    running: Provider, front: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_PATIENCE", 0.5)
    greedy, bee = running.ticket(await running.agree()), "did:web:bee.example"
    relation = provider.data.relation("parquet", running.path, running.path.parent)
    theirs = replace(provider.OPEN, assignee=bee)
    await running.store.write(
        lambda tx: provider.insert(tx, theirs, "bee", name="numbers", relation=relation, profile={}, consumer=bee)
    )
    other = running.ticket("urn:agreement:bee", consumer=bee)

    def describe(ticket: str, number: int) -> None:
        with flyer(front, ticket) as client:
            client.info(sql=f"SELECT gap, count(*) AS n{number} FROM clinic.numbers GROUP BY gap")

    def begun(client: flying.Flyer) -> Any:
        reader = client.get(client.info(sql=ENDLESS).endpoints[0].ticket)
        reader.read_chunk()
        return reader

    with flyer(front, greedy) as client, ThreadPoolExecutor(16) as threads:
        readers = [await asyncio.to_thread(begun, client) for _ in range(2)]
        loop = asyncio.get_running_loop()
        waiting = [loop.run_in_executor(threads, describe, greedy, number) for number in range(12)]
        await until(lambda: running.reads._looks.waiting > 0)
        async with asyncio.timeout(15):
            await asyncio.to_thread(describe, other, 99)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*waiting)
    await settled(running)


async def test_who_describes_waits_for_his_turn_and_for_a_worker_within_one_limit(
    running: Provider, front: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await until(lambda: not running.pool._busy)  # else the workers of other tests come back here
    monkeypatch.setattr(admission, "_LOOK_SECONDS", 1.0)
    monkeypatch.setattr(running.pool, "_turns", TurnQueue(0, waiting=9, wait_seconds=60))
    with flyer(front, running.ticket(await running.agree())) as client:
        begun = time.monotonic()
        with pytest.raises(fl.FlightUnavailableError, match="queue_timeout: no worker became free"):
            await asyncio.to_thread(client.info, sql="SELECT count(*) AS n FROM clinic.numbers")
    assert time.monotonic() - begun < 20


async def test_shutting_down_ends_streams_with_that_reason(tmp_path: Path) -> None:
    async with provider.running(tmp_path, rows=20_000) as leaving, flying.flying(leaving) as front:
        agreement = await leaving.agree()

        def go() -> None:
            with flyer(front, leaving.ticket(agreement)) as client:
                client.read(sql=ENDLESS)

        asking = asyncio.ensure_future(asyncio.to_thread(go))
        while not leaving.reads.live:
            await asyncio.sleep(0.01)
        await leaving.reads.drain("the connector is shutting down")
        async with beats() as clock:
            await front.stop()
            assert clock() < 10  # it waits three seconds for the process, and kills it then
        with pytest.raises(fl.FlightUnavailableError):
            await asking
        await settled(leaving)
        assert leaving.of_kind("ReadEnded")[-1].code == "shutting_down"


@pytest.mark.parametrize(
    "code", [*error_codes._ERRORS, "busy", "revoked", "refused", "quota", "lease_expired", "count_spent"]
)
async def test_an_end_in_mid_stream_takes_its_record_along_whatever_its_code(code: str) -> None:
    record = {"status": code if code in grpc_call._END_STATUS else "error", "code": code, "reason": "it", "rows": 1}
    status, _, trailers = grpc_call.error_to_status(grpc_call.StreamEndedEarly(record), details=True)
    assert json.loads(dict(trailers)["grpc-status-details-bin"]) == record
    assert dict(trailers)["x-arrow-status-detail-bin"]  # pyarrow makes a FlightError of it
    if code in error_codes._ERRORS:
        before, _, _ = grpc_call.error_to_status(error_codes.error_of(code, {}), details=False)
        assert status == (13 if before == 3 else before)


async def test_a_quota_is_exhausted_in_the_middle_and_at_the_next_read(running: Provider, front: FlightServer) -> None:
    policy = gate.agreement(atom("ds:rowQuota", "lteq", "5000"), action="odrl:use")
    ticket = running.ticket(await running.agree(policy))

    sql = "SELECT id FROM clinic.numbers"
    with flyer(front, ticket) as client:
        for _ in range(2):
            with pytest.raises(fl.FlightInternalError, match=r"^quota"):
                await asyncio.to_thread(client.read, sql=sql)
    handle = flightsql.pack("ActionCreatePreparedStatementRequest", [(1, sql)])
    body = protobuf.write([(1, "CreatePreparedStatement"), (2, handle)])
    async with connected(front) as asking:
        assert (await asking.ask("DoAction", body, ticket=ticket)).status == 8
    await settled(running)


def _own_mb(pid: int) -> int:
    """What it has in memory of its own and of what it shares: not the pages of libraries that it has come to use."""
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        sizes = dict(line.split(":", 1) for line in status)
    return sum(int(sizes[name].split()[0]) for name in ("RssAnon", "RssShmem")) // 2**10


async def test_a_read_that_is_over_holds_nothing(running: Provider, front: FlightServer) -> None:
    ticket = running.ticket(await running.agree())

    def read() -> None:
        for _ in range(3):
            with flyer(front, ticket) as client:
                client.read(provider.OWNER, provider.DATASET)

    def held() -> int:
        return len(os.listdir("/proc/self/fd"))

    await asyncio.to_thread(read)
    await settled(running)
    before = held()
    await asyncio.to_thread(read)
    await until(lambda: held() <= before)
