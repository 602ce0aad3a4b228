"""Several processes on one PostgreSQL hear of each other's events: each once, in order, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from connector.audit.log import Sequencer
from connector.audit.signed_note import Signer
from connector.events import Event, NegotiationAdvanced, body_to_event, kinds
from connector.store import EventRelay, Store
from tests.conftest import DATABASES
from tests.support import migrated

KEY = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
pytestmark = pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")


@dataclass
class Instance:
    """One process's store, its log and its relay, and what its subscribers heard."""

    store: Store
    sequencer: Sequencer
    relay: EventRelay
    heard: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)

    async def tell(self, process: str) -> None:
        await self.store.write(lambda tx: tx.publish(NegotiationAdvanced(actor="us", process=process)))

    async def until(self, there: Callable[[list[str]], bool]) -> None:
        try:
            async with asyncio.timeout(60):
                while not there(self.heard):
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"heard only {self.heard[-20:]} ({len(self.heard)})") from None


@pytest.fixture
def url(postgres_cluster: Any) -> Iterator[str]:
    with migrated.postgresql(postgres_cluster) as made:
        yield made


@asynccontextmanager
async def instance(url: str, *, numbers: bool = True) -> AsyncIterator[Instance]:
    """One process; with `numbers` False it dies before it has numbered anything."""
    store = Store(url, pool_size=2)
    sequencer = Sequencer(store, signer=Signer("test", KEY), round_seconds=0.01)
    made = Instance(store, sequencer, EventRelay(store, number=sequencer.wake))
    store.bus.subscribe(lambda event: made.heard.append(event.process))
    store.bus.subscribe(lambda event: made.own.append(event.process), own=True)
    task = asyncio.create_task(sequencer.run()) if numbers else None
    await made.relay.start()
    try:
        yield made
    finally:
        await made.relay.stop()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        store.close()


async def test_what_one_commits_everybody_hears_once_in_its_order(url: str) -> None:
    async with instance(url) as a, instance(url) as b:
        for i in range(30):
            await a.tell(f"a{i}")
            await b.tell(f"b{i}")
        for one in (a, b):
            await one.until(lambda heard: len(heard) >= 60)
            for name in ("a", "b"):
                assert [p for p in one.heard if p.startswith(name)] == [f"{name}{i}" for i in range(30)]
        assert (a.own, b.own) == ([f"a{i}" for i in range(30)], [f"b{i}" for i in range(30)])


async def test_nothing_is_lost_with_the_connection_that_hears_of_it(url: str) -> None:
    """The listening connections are cut again and again while events are committed."""
    async with instance(url) as a, instance(url) as b:
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as admin:
            for i in range(40):
                await a.tell(f"a{i}")
                if i % 8 == 3:
                    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
                    await asyncio.to_thread(admin.execute, cut)
        await b.until(lambda heard: len(heard) >= 40)
        assert b.heard == [f"a{i}" for i in range(40)]


async def test_a_connection_that_stays_mute_is_given_up(
    url: str, postgres_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever only listens to it hears the same as from one that has no news."""
    monkeypatch.setattr("connector.store.event_relay._POLL_SECONDS", 0.05)
    monkeypatch.setattr("connector.infra.database.postgres_options.ANSWER_SECONDS", 0.5)

    async def nothing() -> None:
        """No look: it has connections of its own."""

    with postgres_cluster.linked(url) as (linked, link):
        async with instance(linked, numbers=False) as one, asyncio.timeout(60):
            monkeypatch.setattr(one.relay, "deliver_new", nothing)
            await asyncio.sleep(0.2)
            link.hang()
            link.renew()
            before = link.connections
            while link.connections == before:
                await asyncio.sleep(0.01)


async def test_notices_that_nobody_sends_cost_time_and_no_event(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector.store.queries.audit.CHANNEL", "nobody_listens_here")
    monkeypatch.setattr("connector.store.event_relay._POLL_SECONDS", 0.05)
    async with instance(url) as a, instance(url) as b:
        await a.tell("quietly")
        await b.until(lambda heard: heard == ["quietly"])


async def test_what_a_dead_process_committed_is_numbered_and_told_by_another_one(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.store.event_relay._POLL_SECONDS", 0.05)
    monkeypatch.setattr("connector.store.event_relay._ABANDONED_SECONDS", 0.1)
    async with instance(url) as b:
        async with instance(url, numbers=False) as dying:
            await dying.tell("last words")
        await b.until(lambda heard: heard == ["last words"])


async def test_more_than_a_page_arrives_whole(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector.store.event_relay._PAGE", 7)
    async with instance(url) as a, instance(url) as b:
        events = [NegotiationAdvanced(actor="us", process=f"{i}") for i in range(100)]
        await a.store.write(lambda tx: [tx.publish(event) for event in events])
        await b.until(lambda heard: len(heard) >= 100)
        assert b.heard == [f"{i}" for i in range(100)]


async def test_what_was_before_is_not_told(url: str) -> None:
    async with instance(url) as a:
        await a.tell("before")
        await a.sequencer.settle()
        async with instance(url) as b:
            await a.tell("after")
            await b.until(lambda heard: "after" in heard)
            assert b.heard == ["after"]


@pytest.mark.parametrize("kind", kinds().values(), ids=lambda kind: kind.__name__)
def test_every_event_comes_back_from_the_log_as_it_was(kind: type[Event]) -> None:
    event = kind(actor="a", process="p", reason="r", detail={"state": "AGREED", "n": 1})
    assert body_to_event(event.body()) == event


def test_an_event_that_a_newer_program_wrote_is_passed_over() -> None:
    assert body_to_event({"kind": "NobodyKnowsThis", "actor": "a"}) is None
    assert body_to_event({"kind": "NegotiationAdvanced", "actor": "a", "more": 1}) == NegotiationAdvanced(actor="a")


async def test_a_process_that_is_alone_does_not_look_for_its_own_events(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.store.event_relay._POLL_SECONDS", 3_600.0)
    async with instance(url) as alone:
        await asyncio.sleep(0.05)
        looks: list[int] = []
        page = alone.relay._read_page

        def counted(tx: Any) -> Any:
            looks.append(1)
            return page(tx)

        alone.relay._read_page = counted  # type: ignore[method-assign]  # counts
        for i in range(10):
            await alone.tell(f"{i}")
            await alone.sequencer.settle()
        assert len(looks) < 3  # at most one that was under way, and one that has found something to do
