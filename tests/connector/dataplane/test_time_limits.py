"""What a read is told that the time ends in the middle: the same, however fast its reader is, and as the next read."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest import mock

import httpx2
import pyarrow.flight as fl
import pytest

from connector.dataplane import admission as reads
from connector.dataplane.flight.listener import FlightServer
from connector.dataplane.read_request import QUERY, ReadRequest
from connector.engine.pool.protocol import Job
from connector.errors import Unavailable
from connector.usage import grants
from connector.usage.fact_collector import party_facts
from policies.evaluation.evaluate import Facts
from policies.evaluation.facts import Fact
from policies.model import Policy, Rule
from policies.vocabulary import expand
from tests.support import flying, gate, streamed
from tests.support.flying import flyer
from tests.support.gate import atom
from tests.support.provider import Provider, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = 'SELECT a.id, b.x FROM "clinic".numbers a CROSS JOIN "clinic".numbers b'
SLOW = 'SELECT count(*) AS n FROM "clinic".numbers a JOIN "clinic".numbers b ON a.x < b.x'
_SOON = 60.0  # seconds until something ends: tests set the clock forward, and do not wait for it
Ending = tuple[str, str, str]  # status of the end record, code, rule


def _from_now(seconds: float) -> str:
    moment = datetime.fromtimestamp(time.time() + seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _until(seconds: float) -> Policy:
    return gate.agreement(atom("odrl:dateTime", "lt", _from_now(seconds)), action="odrl:use")


def _forbidden_from(seconds: float) -> Policy:
    forbidden = Rule(expand("odrl:use"), (atom("odrl:dateTime", "gteq", _from_now(seconds)),))
    return gate.agreement(action="odrl:use", prohibitions=[forbidden])


def _with_permit(_: float) -> Policy:
    return gate.agreement(atom("ds:permit", "eq", "P-1"), action="odrl:use")


def _another_goes_on(seconds: float) -> Policy:
    first = _until(seconds)
    return replace(first, permissions=(*first.permissions, Rule(expand("odrl:use"))))


ENDINGS: dict[str, tuple[Callable[[float], Policy], Ending]] = {
    "the agreement": (_until, ("refused", "not_in_force", "/permission/0/constraint/0")),
    "its leave": (_forbidden_from, ("refused", "not_permitted", "/permission/0")),
    "a fact": (_with_permit, ("refused", "not_permitted", "/permission/0")),
    "one of two permissions": (_another_goes_on, ("lease_expired", "lease_expired", "/permission/0")),
}


@pytest.fixture
def later(running: Provider, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Set the clock forward. The party has a permit for as long as everything here lasts."""
    ends, clock = time.time() + _SOON, mock.Mock(wraps=time)

    async def facts_of(who: str) -> Facts:
        permit = {"ds:permit": Fact(("P-1",), "owner", ends)} if clock.time() < ends else {}
        return party_facts(who, {"status": "active"}).adding(permit)

    monkeypatch.setattr(running.grants, "_facts_of", facts_of)
    monkeypatch.setattr(grants, "time", clock)

    def go() -> None:
        clock.time = lambda: time.time() + _SOON

    clock.time = time.time
    return go


async def _next(running: Provider, agreement: str) -> str:
    """The code with which the next read is refused; empty where it is not."""
    async with httpx2.AsyncClient(base_url=running.url, timeout=60) as session:
        headers = {"authorization": f"Bearer {running.ticket(agreement)}"}
        answer = await session.post("/data/v1/query", json={"sql": 'SELECT 1 FROM "clinic".numbers'}, headers=headers)
    return "" if answer.status_code == 200 else str(answer.json()["code"])


async def _recorded(running: Provider, agreement: str) -> tuple[str, str, str]:
    await settled(running)
    (ended,) = [one for one in running.of_kind("ReadEnded") if one.agreement == agreement][:1]
    return ended.outcome, ended.code, ended.rule


@pytest.mark.parametrize("paused", [False, True], ids=["reads on", "pauses"])
@pytest.mark.parametrize(("made", "ending"), ENDINGS.values(), ids=list(ENDINGS))
async def test_an_end_is_told_as_the_next_read_is(
    running: Provider, later: Callable[[], None], made: Callable[[float], Policy], ending: Ending, paused: bool
) -> None:
    agreement = await running.agree(made(_SOON))
    headers, body = {"authorization": f"Bearer {running.ticket(agreement)}"}, b""
    async with (
        httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=60) as session,
        session.stream("POST", "/data/v1/query", json={"sql": ENDLESS}) as answer,
    ):
        async for part in answer.aiter_raw():
            if not body:
                later()
                if paused:  # who runs is asked about while no batch waits for the gate
                    await running.grants._recheck_all()
                else:
                    running.later(_SOON)
            body += part
    end = streamed.parse(body).end
    assert (end["status"], end["code"], end.get("rule", "")) == ending
    assert await _recorded(running, agreement) == ("refused", *ending[1:])
    assert await _next(running, agreement) == ("" if ending[0] == "lease_expired" else ending[1])


async def test_what_the_owner_did_outweighs_an_end_after_which_a_read_goes_on(
    running: Provider, later: Callable[[], None]
) -> None:
    """The first of two permissions ends while the reader pauses, then the owner revokes."""
    agreement = await running.agree(_another_goes_on(_SOON))
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    async with running.reads.open(ReadRequest(tickets=(ticket,), sql=ENDLESS, action=QUERY)) as stream:
        later()
        await running.grants._recheck_all()
        await running.revoke(agreement, "the study was closed")
        async for _ in stream.frames():
            pass
    assert stream.end is not None
    assert (stream.end.status, stream.end.reason) == ("revoked", "the study was closed")
    assert await _recorded(running, agreement) == ("refused", "revoked", "/permission/0")


async def _hang() -> None:
    await asyncio.sleep(600)


async def _away() -> None:
    raise Unavailable("the database does not answer now; try again in a moment")


async def _broken() -> None:
    raise OSError("no such register")


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("goes", [_hang, _away, _broken], ids=["hang", "away", "broken"])
async def test_where_facts_do_not_come_an_end_is_no_end_of_a_ticket(
    running: Provider, monkeypatch: pytest.MonkeyPatch, goes: Callable[[], Any]
) -> None:
    """And their worker is not held for them."""
    agreement = await running.agree(_with_permit(_SOON))
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    async with running.reads.open(ReadRequest(tickets=(ticket,), sql=ENDLESS, action=QUERY)) as stream:
        monkeypatch.setattr(running.grants, "_facts_of", lambda _: goes())
        monkeypatch.setattr(grants, "_BLIND_SECONDS", 1.0)
        running.later(_SOON)
        async with asyncio.timeout(30):
            async for _ in stream.frames():
                pass
    assert stream.end is not None
    assert (stream.end.status, stream.end.code) == ("error", "busy")


async def test_a_ticket_that_ends_is_told_as_one_that_a_new_one_goes_on_from(
    running: Provider, later: Callable[[], None]
) -> None:
    agreement = await running.agree(_until(10 * _SOON))
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement, seconds=_SOON)}")
    asked = ReadRequest(tickets=(ticket,), sql=ENDLESS, action=QUERY)
    async with running.reads.open(asked) as stream:
        later()
        running.later(_SOON)
        async for _ in stream.frames():
            pass
    assert stream.end is not None
    assert (stream.end.status, stream.end.code, stream.end.rule) == ("lease_expired", "lease_expired", "")


async def test_a_question_that_gives_nothing_yet_is_refused_as_the_next_one(running: Provider) -> None:
    agreement = await running.agree(_until(1.5))
    async with httpx2.AsyncClient(base_url=running.url, timeout=60) as session:
        headers = {"authorization": f"Bearer {running.ticket(agreement)}"}
        refused = await session.post("/data/v1/query", json={"sql": SLOW}, headers=headers)
    told = refused.json()
    assert (refused.status_code, told["code"], told["rule"]) == (403, "not_in_force", "/permission/0/constraint/0")


@pytest.mark.parametrize("form", ["csv", "parquet"])
async def test_a_file_is_cut_off_and_the_log_says_why(running: Provider, later: Callable[[], None], form: str) -> None:
    agreement = await running.agree(_until(_SOON))
    headers = {"authorization": f"Bearer {running.ticket(agreement)}"}
    with pytest.raises(httpx2.RemoteProtocolError):  # noqa: PT012  in mid-answer
        async with (
            httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=60) as session,
            session.stream("GET", "/data/v1/datasets/numbers/rows", params={"format": form, "batch_rows": 1}) as answer,
        ):
            async for _ in answer.aiter_raw():
                later()
                running.later(_SOON)
    assert await _recorded(running, agreement) == ("refused", "not_in_force", "/permission/0/constraint/0")


async def test_over_flight_it_is_no_end_of_a_ticket(
    running: Provider, front: FlightServer, later: Callable[[], None]
) -> None:
    agreement = await running.agree(_until(_SOON))

    def go() -> None:
        with flyer(front, running.ticket(agreement)) as client:
            reader = client.get(client.info(sql=ENDLESS).endpoints[0].ticket)
            reader.read_chunk()
            later()
            running.later(_SOON)
            flying.whole(reader)

    with pytest.raises(fl.FlightUnauthorizedError, match="not_in_force: the agreement ended") as caught:
        await asyncio.to_thread(go)
    told: dict[str, Any] = json.loads(caught.value.extra_info)
    assert (told["status"], told["rule"]) == ("refused", "/permission/0/constraint/0")
    assert await _recorded(running, agreement) == ("refused", "not_in_force", "/permission/0/constraint/0")


@pytest.mark.parametrize("notices", ["the lease", "the worker"])
async def test_the_deadline_of_a_question_that_gives_nothing_is_a_limit(
    running: Provider, monkeypatch: pytest.MonkeyPatch, notices: str
) -> None:
    """Each notices alone here. Otherwise it depends on the statement which of the two is first."""
    run = running.pool.run

    def unlimited(job: Job, **more: Any) -> Any:
        return run(replace(job, limits=replace(job.limits, seconds=600.0)), **more)

    if notices == "the lease":
        monkeypatch.setattr(running.pool, "run", unlimited)
    else:
        monkeypatch.setattr(reads, "watch_grants", lambda *_: _hang())
    agreement = await running.agree()
    async with httpx2.AsyncClient(base_url=running.url, timeout=60) as session:
        headers = {"authorization": f"Bearer {running.ticket(agreement)}"}
        body = {"sql": SLOW, "limits": {"deadline_ms": 300}}
        answer = await session.post("/data/v1/query", json=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (429, "time_limit")
    assert (await _recorded(running, agreement))[1] == "time_limit"


async def test_the_deadline_of_a_question_that_gives_rows_is_a_limit(running: Provider) -> None:
    agreement = await running.agree()
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    asked = ReadRequest(tickets=(ticket,), sql=ENDLESS, action=QUERY, seconds=_SOON)
    async with running.reads.open(asked) as stream:
        running.later(_SOON)
        async for _ in stream.frames():
            pass
    assert stream.end is not None
    assert (stream.end.status, stream.end.code) == ("error", "time_limit")
    assert (await _recorded(running, agreement))[:2] == ("broken", "time_limit")


async def test_a_renewed_ticket_moves_no_deadline_of_a_question(running: Provider) -> None:
    agreement = await running.agree()
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
    asked = ReadRequest(tickets=(ticket,), sql=ENDLESS, action=QUERY, seconds=_SOON)
    async with running.reads.open(asked) as stream:
        await running.reads.renew(stream.id, ticket)
        running.later(_SOON)
        async for _ in stream.frames():
            pass
    assert stream.end is not None
    assert stream.end.code == "time_limit"


async def test_a_ticket_that_ends_before_the_deadline_of_a_question_is_renewed(running: Provider) -> None:
    agreement = await running.agree()
    ticket = running.addresses.read(f"Bearer {running.ticket(agreement, seconds=_SOON)}")
    asked = ReadRequest(tickets=(ticket,), sql=ENDLESS, action=QUERY, seconds=2 * _SOON)
    async with running.reads.open(asked) as stream:
        running.later(_SOON)
        async for _ in stream.frames():
            pass
    assert stream.end is not None
    assert stream.end.code == "lease_expired"
