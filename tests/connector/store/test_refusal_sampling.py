"""Of a flood of refusals some are recorded one by one and all are counted; nobody's flood hides another's refusals."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest

from connector.errors import Unavailable
from connector.events import Event, ReadRefused, RefusalsCounted, RequestRefused
from connector.store import Store, Transaction, engine, refusal_sampling
from connector.store.refusal_sampling import OTHERS, RefusalSampler
from tests.support.ports import free_range
from tests.support.processes import Client, Failed, Process


def read(actor: str, *, agreement: str = "urn:a", code: str = "refused") -> Event:
    return ReadRefused(actor=actor, agreement=agreement, outcome="refused", code=code)


def stranger(actor: str) -> Event:
    return RequestRefused(actor=actor, outcome="refused", code="unauthenticated")


def test_who_floods_is_recorded_as_fast_as_the_pace_says_and_counted_beyond() -> None:
    counting = RefusalSampler()
    taken = [counting.admit(read("did:web:b"), 1_000 + second / 100) for second in range(60_000)]  # ten minutes
    assert sum(taken[:500]) == 500
    assert sum(taken) == pytest.approx(refusal_sampling.ACTOR_BURST * 2, abs=2)  # at once, and in ten minutes
    assert sum(taken) + sum(event.detail["count"] for event in counting.list_counts(1_700)) == 60_000


def test_nobody_else_is_counted_instead_of_recorded() -> None:
    counting = RefusalSampler()
    for number in range(20_000):
        counting.admit(stranger(f"did:web:{number}"), 1_000)
        counting.admit(read("did:web:b"), 1_000)
    assert counting.admit(read("did:web:c"), 1_000)
    assert not counting.admit(stranger("did:web:c"), 1_000)  # who has no agreement shares with all others who have none
    assert counting.admit(stranger("did:web:c"), 1_000 + 600 / refusal_sampling.UNKNOWN_BURST)


def test_every_refusal_is_recorded_or_counted_and_what_is_kept_meanwhile_is_bounded() -> None:
    luck, counting, recorded, counted = random.Random(5), RefusalSampler(), Counter[str](), Counter[str]()
    now, told = 0.0, 0
    for _ in range(50_000):
        now += luck.random() / 100
        event = read(f"did:web:{luck.randrange(6_000)}", agreement=f"urn:{luck.randrange(3)}", code=luck.choice("abc"))
        event = stranger(event.actor) if luck.random() < 0.5 else event
        recorded[event.code] += counting.admit(event, now)
        if luck.random() < 1e-4:
            events = counting.list_counts(now)
            told += len(events)
            assert len(events) <= 2 * refusal_sampling.COUNTED_MAX + 1
            for one in events:
                counted.update(one.detail["codes"])
            counting.forget_recorded(events)
    rest = counting.list_counts(now)
    for one in rest:
        assert one.detail["count"] == sum(one.detail["codes"].values())
        counted.update(one.detail["codes"])
    assert sum(recorded.values()) + sum(counted.values()) == 50_000
    assert counted["unauthenticated"] > 1_000


def test_more_who_flood_than_are_kept_apart_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusal_sampling, "COUNTED_MAX", 2)
    monkeypatch.setattr(refusal_sampling, "ACTOR_BURST", 1)
    counting = RefusalSampler()
    for actor in "abcd":
        for _ in range(3):
            counting.admit(read(actor), 5.0)
    found = {event.actor: event.detail["count"] for event in counting.list_counts(65.5)}
    assert found == {"a": 2, "b": 2, OTHERS: 4}
    for number in range(9):
        counting.admit(read("e", agreement=f"urn:{number}"), 5.0)
        counting.admit(stranger("e"), 5.0)
    assert len(counting.list_counts(65.5)) == 4  # strangers are kept apart beside the others
    assert {event.detail["seconds"] for event in counting.list_counts(65.5)} == {61}


async def test_what_was_counted_is_kept_until_it_is_in_the_log(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_sampling, "ACTOR_BURST", 1)
    told: list[Event] = []
    sqlite_store.bus.subscribe(told.append)
    for _ in range(3):
        await sqlite_store.record_refusal(read("did:web:b"))
    assert [event.kind for event in told] == ["ReadRefused"]
    with monkeypatch.context() as away:
        away.setattr(sqlite_store, "write", _away)
        with pytest.raises(Unavailable):
            await sqlite_store.record_refusal_counts()
    await asyncio.gather(sqlite_store.record_refusal_counts(), sqlite_store.record_refusal(read("did:web:b")))
    await sqlite_store.record_refusal_counts()
    counted = [event for event in told if isinstance(event, RefusalsCounted)]
    assert sum(event.detail["count"] for event in counted) == 3
    assert {(event.actor, event.agreement, event.outcome) for event in counted} == {("did:web:b", "urn:a", "refused")}


async def test_counts_that_are_being_recorded_as_the_connector_stops_are_recorded_once(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusal_sampling, "ACTOR_BURST", 1)
    monkeypatch.setattr(engine, "_COUNT_SECONDS", 0.01)
    begun, goes_on = threading.Event(), threading.Event()

    def slow(_: Transaction, event: Event) -> None:
        if isinstance(event, RefusalsCounted):
            begun.set()
            goes_on.wait(20)

    sqlite_store.event_hooks.append(slow)
    told: list[Event] = []
    sqlite_store.bus.subscribe(told.append)
    for _ in range(3):
        await sqlite_store.record_refusal(read("did:web:b"))
    counting = asyncio.create_task(sqlite_store.run_refusal_counter())
    assert await asyncio.to_thread(begun.wait, 20)
    counting.cancel()
    last = asyncio.create_task(sqlite_store.record_refusal_counts())
    await asyncio.sleep(0.05)
    goes_on.set()
    await asyncio.gather(counting, last, return_exceptions=True)
    await sqlite_store.record_refusal_counts()
    assert [event.detail["count"] for event in told if isinstance(event, RefusalsCounted)] == [2]


async def _away(_: object) -> None:
    raise Unavailable("the database does not answer")


@pytest.mark.e2e
def test_nobody_fills_the_log_of_a_connector(tmp_path: Path) -> None:
    first, sent = free_range(2), 1_000
    north = Process("north", tmp_path / "north", first, first + 1, forked=True)
    north.start()

    def flood() -> None:
        nobody = Client(north.management_port)
        for _ in range(sent // 4):
            with pytest.raises(Failed, match="401"):
                nobody.get("/api/v1/datasets")

    try:
        threads = [threading.Thread(target=flood) for _ in range(4)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert north.running is not None
        north.running.send_signal(signal.SIGTERM)
        north.running.wait(60)
        north.start()
        found = Counter[str]()
        for kind in ("RequestRefused", "RefusalsCounted"):
            for row in north.api().get(f"/audit/events?limit=1000&kind={kind}")["records"]:
                found[kind] += row["body"].get("detail", {}).get("count", 1)
        assert found["RequestRefused"] + found["RefusalsCounted"] == sent
        assert refusal_sampling.ACTOR_BURST <= found["RequestRefused"] < sent
        assert found["RefusalsCounted"] > 0
    finally:
        north.kill()
