"""Whoever shows a genuine ticket and is refused stands in the owner's log, once, wherever the request came to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.flight as fl
import pytest
import pytest_asyncio
from fastapi import FastAPI

from connector.dataplane import contract_routes
from connector.dataplane.flight.listener import FlightServer
from connector.infra.http import problem_json
from tests.support import provider
from tests.support.flying import Flyer, flyer
from tests.support.provider import CONSUMER, Provider, served, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

SQL = {"sql": 'SELECT id FROM "clinic".numbers'}
# Request, code. Asked under an agreement that holds.
ASKED: list[tuple[str, str, dict[str, Any], str]] = [
    ("POST", "/query", {"json": SQL | {"agreement": "urn:agreement:another"}}, "ticket_mismatch"),
    ("POST", "/query", {"json": SQL | {"tickets": ["ours"]}}, "tickets_mixed"),
    ("POST", "/query", {"json": SQL | {"tickets": ["nobody's"]}}, "unauthenticated"),
    ("POST", "/query", {"json": {"sql": 'SELECT nope FROM "clinic".numbers'}}, "column_unknown"),
    ("POST", "/query", {"content": b"{"}, "envelope_invalid"),
    ("GET", "/datasets/secret/rows", {}, "not_found"),
    ("GET", "", {"params": {"where": "id IN (SELECT 1)"}}, "query_invalid"),
    ("GET", "", {"params": {"show": "all"}}, "parameter_unknown"),
    ("GET", "", {"params": {"blocks": "all", "after": "AAAA"}}, "cursor_invalid"),
    ("POST", "/streams", {"json": {"columns": ["nope"]}}, "column_unknown"),
    ("POST", "/reads/another/renew", {}, "not_found"),
    ("PUT", "/streams", {}, "method_not_allowed"),
    ("POST", "/query", {"json": SQL, "headers": {"content-encoding": "gzip"}}, "encoding_unknown"),
]
# What is asked after the agreement has ended.
ENDED: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "", {}),
    ("GET", "", {"params": {"blocks": "all"}}),
    ("POST", "/query", {"json": SQL}),
    ("POST", "/streams", {"json": {}}),
    ("POST", "/reads/another/renew", {}),
    ("GET", "/contract", {}),
]
FLOWN: dict[str, tuple[Callable[[Flyer], Any], str]] = {
    "a path": (lambda client: client.info("clinic", "numbers"), "agreement_ended"),
    "an envelope": (lambda client: client.info(**SQL), "agreement_ended"),
    "a list": (lambda client: list(client.client.list_flights(b"", client.options)), "agreement_ended"),
    "a ticket of nobody": (lambda client: client.act("RenewFlightEndpoint", b""), "flight_ticket_invalid"),
    "a long path": (lambda client: client.info("clinic", "numbers", "x"), "request_invalid"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def contracts(running: Provider) -> AsyncIterator[str]:
    """Where the contract of a ticket is told."""
    nobody: Any = None  # a ticket is all that it looks at
    app = FastAPI(routes=contract_routes.router(running.addresses, running.reads, nobody, owner="clinic").routes)
    problem_json.install(app)
    async with served(app, provider.Protocol) as address:
        yield address


@pytest.mark.parametrize(("method", "path", "request_", "code"), ASKED, ids=[f"{one[1]} {one[3]}" for one in ASKED])
async def test_a_refused_request_is_recorded_once(
    running: Provider, method: str, path: str, request_: dict[str, Any], code: str
) -> None:
    agreement = await running.agree()
    if request_.get("json", {}).get("tickets") == ["ours"]:  # another participant's
        request_ = {"json": SQL | {"tickets": [running.ticket(agreement, consumer="did:web:other.example")]}}
    before = len(running.events)
    assert await _asked(running.url, running.ticket(agreement), method, path, request_) == code
    assert await _recorded(running, before) == [("ReadRefused", CONSUMER, agreement, code)]


@pytest.mark.parametrize(("method", "path", "request_"), ENDED)
async def test_whoever_asks_after_the_end_is_recorded_once(
    running: Provider, contracts: str, method: str, path: str, request_: dict[str, Any]
) -> None:
    agreement = await running.agree()
    await running.revoke(agreement, "it is over")
    before = len(running.events)
    url = contracts if path == "/contract" else running.url
    assert await _asked(url, running.ticket(agreement), method, path, request_) == "agreement_ended"
    assert await _recorded(running, before) == [("ReadRefused", CONSUMER, agreement, "agreement_ended")]


async def test_whoever_shows_no_ticket_of_ours_is_not_recorded(running: Provider) -> None:
    agreement = await running.agree()
    before = len(running.events)
    for ticket, code in (("x", "unauthenticated"), (running.ticket(agreement, seconds=-5), "ticket_expired")):
        assert await _asked(running.url, ticket, "GET", "", {}) == code
    assert await _recorded(running, before) == []


async def test_a_flood_of_them_is_counted(running: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    agreement, taken = await running.agree(), iter([True])
    monkeypatch.setattr(running.store.refusals, "admit", lambda event, now: next(taken, False))
    before = len(running.events)
    for _ in range(3):
        await _asked(running.url, running.ticket(agreement), "GET", "/datasets/secret/rows", {})
    assert await _recorded(running, before) == [("ReadRefused", CONSUMER, agreement, "not_found")]


@pytest.mark.parametrize(("call", "code"), FLOWN.values(), ids=FLOWN)
async def test_a_refused_call_is_recorded_once(
    running: Provider, front: FlightServer, call: Callable[[Flyer], Any], code: str
) -> None:
    agreement = await running.agree()
    await running.revoke(agreement, "it is over")
    before = len(running.events)
    assert await _flown(front, running.ticket(agreement), call) == code
    assert await _recorded(running, before) == [("ReadRefused", CONSUMER, agreement, code)]


async def test_anothers_flight_ticket_is_recorded_once(running: Provider, front: FlightServer) -> None:
    theirs, own = await running.agree(), await running.agree()

    def given() -> fl.Ticket:
        with flyer(front, running.ticket(theirs)) as client:
            return client.info("clinic", "numbers").endpoints[0].ticket

    ticket = await asyncio.to_thread(given)
    before = len(running.events)
    assert await _flown(front, running.ticket(own), lambda client: client.get(ticket).read_all()) == "ticket_mismatch"
    assert await _recorded(running, before) == [("ReadRefused", CONSUMER, own, "ticket_mismatch")]


async def test_tickets_of_several_are_recorded_once_over_flight(running: Provider, front: FlightServer) -> None:
    own, other = await running.agree(), running.ticket(await running.agree(), consumer="did:web:other.example")
    before = len(running.events)
    further = [(b"hanse-ticket", other.encode())]
    assert await _flown(front, running.ticket(own), FLOWN["a list"][0], headers=further) == "tickets_mixed"
    assert await _recorded(running, before) == [("ReadRefused", CONSUMER, own, "tickets_mixed")]


async def test_of_several_agreements_the_one_that_has_ended_is_named(running: Provider, front: FlightServer) -> None:
    good, over = await running.agree(), await running.agree()
    await running.revoke(over, "it is over")
    before = len(running.events)
    for further, first in ((good, over), (over, good)):
        headers = [(b"hanse-ticket", running.ticket(further).encode())]
        assert await _flown(front, running.ticket(first), FLOWN["a list"][0], headers=headers) == "agreement_ended"
    assert await _recorded(running, before) == [("ReadRefused", CONSUMER, over, "agreement_ended")] * 2


async def test_what_is_not_there_is_refused_to_nobody(running: Provider, front: FlightServer) -> None:
    ticket = running.ticket(await running.agree())
    before = len(running.events)
    assert await _flown(front, ticket, lambda client: client.act("NoSuchAction", b"")) == "unimplemented"
    assert await _recorded(running, before) == []


async def _asked(url: str, ticket: str, method: str, path: str, request_: dict[str, Any]) -> str:
    async with httpx2.AsyncClient(base_url=url, timeout=30) as client:
        headers = {"authorization": f"Bearer {ticket}"} | request_.get("headers", {})
        answer = await client.request(method, f"/data/v1{path}", **request_ | {"headers": headers})
    return str(answer.json()["code"])


async def _flown(front: FlightServer, ticket: str, call: Callable[[Flyer], Any], **more: Any) -> str:
    def go() -> str:
        with flyer(front, ticket, **more) as client, pytest.raises((fl.FlightError, pa.ArrowException)) as refused:
            call(client)
        return str(refused.value).partition(":")[0]

    return await asyncio.to_thread(go)


async def _recorded(running: Provider, before: int) -> list[tuple[str, str, str, str]]:
    await settled(running)
    told = running.events[before:]
    assert {event.dataset for event in told} <= {"urn:hanse:clinic:numbers"}
    return [(event.kind, event.actor, event.agreement, event.code) for event in told]
