"""Reads that wait for a place at their owner: bounds in number and time, order, and readers that leave."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import httpx2
import pytest

from connector.dataplane.admission import _subtract_wait
from connector.dataplane.read_request import QUERY, ReadRequest
from connector.errors import Limited, Unavailable
from connector.infra.concurrency.turn_queue import TurnQueue
from tests.support import provider
from tests.support.provider import Provider, settled
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

OTHER = "did:web:other.example"
SQL = f"SELECT count(*) AS n FROM {provider.DATASET}"


def limit(running: Provider, monkeypatch: pytest.MonkeyPatch, *, places: int, waiting: int) -> TurnQueue:
    turns = TurnQueue(places, each=1, waiting=waiting, wait_seconds=60)
    monkeypatch.setattr(running.reads, "_queue_seconds", 60.0)
    monkeypatch.setattr(running.reads, "_turns", turns)
    return turns


async def asked(running: Provider) -> ReadRequest:
    ticket = running.addresses.read(f"Bearer {running.ticket(await running.agree())}")
    return ReadRequest(tickets=(ticket,), sql=SQL, action=QUERY)


async def rows(running: Provider, read: ReadRequest) -> int:
    async with running.reads.open(read) as stream:
        async for _ in stream.frames():
            pass
        return stream.rows


async def test_a_read_waits_for_a_place_and_gives_it_back(running: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = limit(running, monkeypatch, places=1, waiting=1)
    await turns.take(OTHER)
    reading = asyncio.ensure_future(rows(running, await asked(running)))
    await until(lambda: turns.waiting == 1)
    assert len(running.reads._running) == 0
    turns.give_back(OTHER)
    assert await reading == 1
    await settled(running)
    assert (turns.places.free, turns.places._held) == (1, {})


async def test_a_read_whose_line_is_full_is_refused_recorded_and_told_when_to_come_back(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(running, monkeypatch, places=0, waiting=0)
    before = len(running.of_kind("ReadRefused"))
    with pytest.raises(Limited, match="expected one of 16 places for reads to become free, got none") as full:
        await rows(running, await asked(running))
    assert (full.value.code, full.value.headers) == ("streams_max", {"retry-after": "60"})
    assert [event.code for event in running.of_kind("ReadRefused")[before:]] == ["streams_max"]


async def test_the_refusal_over_http_has_retry_after(running: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(running, monkeypatch, places=0, waiting=0)
    headers = {"authorization": f"Bearer {running.ticket(await running.agree())}"}
    async with httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=60) as session:
        answer = await session.get("/data/v1/datasets/numbers/rows")
    assert (answer.status_code, answer.headers["retry-after"], answer.json()["retry_after"]) == (429, "60", 60)


async def test_a_read_waits_no_longer_than_its_own_time(running: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = limit(running, monkeypatch, places=0, waiting=2)
    with pytest.raises(Limited) as late:
        await rows(running, replace(await asked(running), seconds=0.02))
    assert (late.value.code, turns.waiting) == ("streams_max", 0)


@pytest.mark.parametrize(("given", "left"), [(None, None), (10.0, 6.0), (4.01, 0.05), (1.0, 0.05)])
async def test_what_a_read_has_waited_is_taken_from_its_time(
    running: Provider, given: float | None, left: float | None
) -> None:
    assert _subtract_wait(replace(await asked(running), seconds=given), 4.0).seconds == left


async def test_a_reader_that_leaves_while_it_waits_waits_no_more(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = limit(running, monkeypatch, places=0, waiting=2)
    reading = asyncio.ensure_future(rows(running, await asked(running)))
    await until(lambda: turns.waiting == 1)
    reading.cancel()
    await asyncio.wait([reading])
    assert (reading.cancelled(), turns.waiting, len(running.reads._ids)) == (True, 0, 0)


async def test_a_read_that_waited_until_the_connector_stops_does_not_begin(
    running: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = limit(running, monkeypatch, places=1, waiting=2)
    await turns.take(OTHER)
    reading = asyncio.ensure_future(rows(running, await asked(running)))
    await until(lambda: turns.waiting == 1)
    monkeypatch.setattr(running.reads, "draining", "the connector stops")
    turns.give_back(OTHER)
    with pytest.raises(Unavailable) as stopping:
        await reading
    assert (stopping.value.code, turns.places.free) == ("shutting_down", 1)
