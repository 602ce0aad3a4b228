"""Flight before many calls that bring nothing: who makes them is sent away, and others have their turn meanwhile."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from connector.dataplane.flight import flight_queries
from connector.dataplane.flight.http2 import fair_reader, http2_connection
from connector.dataplane.flight.http2.fair_reader import Helpings
from connector.dataplane.flight.http2.http2_connection import Call
from connector.dataplane.flight.listener import Front
from tests.support import frames
from tests.support.frames import Place, Wire, wired
from tests.support.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

CALM, REFUSED = 11, 7  # codes of HTTP/2
AT_ONCE = 30  # calls of a BI tool that opens its dashboard
IN_ONE_TURN = 6  # calls, of all connections


@pytest_asyncio.fixture(loop_scope="module")
async def tickets(running: Provider) -> dict[str, str]:
    agreement = await running.agree()
    good = running.ticket(agreement)
    return {"": "", "good": good, "changed": good[:-4] + "AAAA", "ended": running.ticket(agreement, seconds=-1)}


async def answered(wire: Wire, method: str, ticket: str, *, times: int) -> Counter[str]:
    """So many calls at once again and again; how they ended, as far as they were answered."""
    found = Counter[str]()
    for _ in range(times):
        numbers = [wire.ask(method, b"", ticket=ticket) for _ in range(AT_ONCE)]
        try:
            await wire.whole(*numbers)
        except EOFError:
            return found
        ends = map(wire.answers.pop, numbers)
        found.update(one.status for one in ends if one.reset != REFUSED)
    return found


@pytest.mark.parametrize(
    ("shown", "method", "status"),
    [
        ("", "GetFlightInfo", "16"),
        ("changed", "GetFlightInfo", "16"),
        ("ended", "GetFlightInfo", "16"),
        ("good", "GetFlightInfo", "3"),
        ("good", "DoAction", "12"),
        ("good", "DoExchange", "12"),
    ],
)
async def test_whoever_asks_for_nothing_again_and_again_is_sent_away(
    front: Front, tickets: dict[str, str], monkeypatch: pytest.MonkeyPatch, shown: str, method: str, status: str
) -> None:
    monkeypatch.setattr(
        http2_connection, "_CALM_AGAIN", 0.0
    )  # on a slow machine the allowance grows for as long as this takes
    async with wired(front) as wire, asyncio.timeout(60):
        found = await answered(wire, method, tickets[shown], times=100)
        assert set(found) == {status}
        assert 5 * AT_ONCE <= found.total() < 50 * AT_ONCE
        assert wire.goaway is not None
        assert wire.goaway.error_code == CALM


async def test_whoever_is_answered_may_ask_on_and_a_ticket_that_has_ended_may_be_tried_a_few_times(
    front: Front, tickets: dict[str, str]
) -> None:
    async with wired(front) as wire:
        assert await answered(wire, "ListActions", tickets["good"], times=30) == {"0": 30 * AT_ONCE}
        assert await answered(wire, "ListActions", tickets["ended"], times=4) == {"16": 4 * AT_ONCE}
        assert await answered(wire, "ListActions", tickets["good"], times=30) == {"0": 30 * AT_ONCE}


async def test_what_a_policy_refuses_sends_nobody_away(running: Provider, front: Front) -> None:
    """A dashboard that is wrong in all it asks: each refusal has its record (decision 35)."""
    agreement = await running.agree()
    ticket = running.ticket(agreement)
    await running.revoke(agreement, "over")
    async with wired(front) as wire:
        assert await answered(wire, "ListFlights", ticket, times=20) == {"7": 20 * AT_ONCE}


async def test_too_many_calls_at_once_send_nobody_away(
    front: Front, tickets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has as many open as may be, and tries one more until there is room for it."""
    monkeypatch.setattr(http2_connection, "_BODY_SECONDS", 300.0)  # a slow machine makes no room
    async with wired(front) as wire:
        for _ in range(flight_queries._CALLS_OF_ONE):
            wire.say(wire.head("GetFlightInfo", headers=[("authorization", f"Bearer {tickets['good']}")]))
        found = await answered(wire, "ListActions", tickets["good"], times=20)
    assert found == {"14": 20 * AT_ONCE}


@pytest.mark.parametrize("goes_on", [False, True], ids=["a few more", "very many more"])
async def test_who_is_sent_away_has_its_answers_first(front: Front, tickets: dict[str, str], goes_on: bool) -> None:
    async with wired(front, INITIAL_WINDOW=0) as wire, asyncio.timeout(60):
        good = wire.ask("ListActions", b"", ticket=tickets["good"])
        await wire.until(lambda: wire.answers[good].heads)
        while wire.goaway is None:
            await wire.whole(*(wire.ask("DoExchange", b"", ticket=tickets["good"]) for _ in range(AT_ONCE)))
        assert (wire.goaway.error_code, wire.goaway.last_stream_id >= good) == (CALM, True)
        if goes_on:
            assert (await answered(wire, "ListActions", tickets["good"], times=50)).total() < 50 * AT_ONCE
            assert not wire.answers[good].ended
            return
        late = wire.ask("ListActions", b"", ticket=tickets["good"])
        await wire.until(lambda: wire.answers[late].over)
        assert wire.answers[late].reset == REFUSED
        wire.grant(2**16, good)
        await wire.until(lambda: wire.answers[good].over)
        assert wire.answers[good].status == "0"
        assert (await wire.end()) is wire.goaway


@pytest_asyncio.fixture(loop_scope="module")
async def started() -> list[int]:
    """Of each call that has begun the turn of the loop."""
    return []


@pytest_asyncio.fixture(loop_scope="module")
async def place(started: list[int]) -> AsyncIterator[Place]:
    """Answers each call at once with its path."""
    turn, ended = 0, False
    loop = asyncio.get_running_loop()

    def tick() -> None:
        nonlocal turn
        turn += 1
        if not ended:
            loop.call_soon(tick)

    async def answer(call: Call) -> None:
        started.append(turn)
        call.finish([(":status", "200"), ("grpc-status", "0"), ("after", str(len(started)))])

    tick()
    async with frames.answering(answer) as made:
        yield made
    ended = True


async def test_few_calls_begin_in_one_turn_of_the_loop_and_nobody_waits_for_all_of_anothers(
    place: Place, started: list[int]
) -> None:
    async with AsyncExitStack() as stack:
        many = [await stack.enter_async_context(wired(place)) for _ in range(8)]
        one = await stack.enter_async_context(wired(place))
        asked = [(wire, [wire.ask("x", b"") for _ in range(60)]) for wire in many]
        number = one.ask("x", b"")
        await one.whole(number)
        assert int(one.answers[number].trailers["after"]) < 8 * 60 / 4
        for wire, numbers in asked:
            await wire.whole(*numbers)
    assert len(started) == 8 * 60 + 1
    assert max(Counter(started).values()) <= IN_ONE_TURN


async def test_a_connection_that_fails_ends_and_the_others_have_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(fair_reader._log, "exception", lambda text, **_: told.append(text))
    waiting, seen = Helpings(), list[str]()

    class Guest:
        def __init__(self, name: str) -> None:
            self.name = name

        def look(self, most: int) -> int:
            if self.name == "fails":
                raise RuntimeError("unforeseen")
            seen.append(self.name)
            return most

        def hang_up(self) -> None:
            seen.append(f"{self.name}, ended")

    for name in ("a", "fails", "b", "c"):
        waiting.ask(Guest(name))
    while len(seen) < 4:
        await asyncio.sleep(0)
    assert seen == ["a", "fails, ended", "b", "c"]
    assert told == ["unforeseen"]
