"""Reads that a process leaves open end with it, and those of a process that is alive are nobody else's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from connector.dataplane import running_reads
from connector.dataplane.running_reads import Leases, close_left_over
from connector.events import ReadStarted
from connector.store import Store

HERE, DEAD, ALIVE, OLDER = "here.1", "dead.1", "alive.1", "older.1"  # the last of a program that knew no leases


class Clock:
    """A monotonic clock that goes on when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_000.0
        monkeypatch.setattr(running_reads, "time", SimpleNamespace(monotonic=lambda: self.now))


async def reading(store: Store, *runs: str) -> None:
    """A read under way in each of these runs, with a place under its agreement."""
    for run in runs:
        event = ReadStarted(actor="did:web:lab", agreement="urn:agreement:1", process=f"read of {run}")
        await store.write(lambda tx, event=event, run=run: running_reads.begin(tx, event, instance=run))  # type: ignore[misc]  # both are told
        await store.write(lambda tx, run=run: tx.reads.take_place(f"read of {run}", "urn:agreement:1", seconds=60))  # type: ignore[misc]


async def lease(store: Store, run: str, seconds: float) -> None:
    await store.write(lambda tx: tx.reads.keep_lease(run, seconds=seconds))


async def left(store: Store) -> set[str]:
    rows = await store.read(lambda tx: [(row.instance, row.rows) for row in tx.reads.list_open()])
    return {run for run, _ in rows}


async def test_a_process_that_is_gone_for_good_has_its_reads_ended_by_another_one(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, here = Clock(monkeypatch), Leases(store, run=HERE)
    await reading(store, HERE, DEAD, ALIVE, OLDER)
    await store.write(lambda tx: tx.reads.update_totals(f"read of {DEAD}", instance=DEAD, rows=7, nbytes=70))
    await lease(store, DEAD, -1)
    await lease(store, ALIVE, 60)
    ended = [await here.look()]
    for _ in range(4):
        clock.now += 15
        ended.append(await here.look())
    assert ended == [0, 0, 0, 0, 1]
    assert await left(store) == {HERE, ALIVE, OLDER}
    kept = await store.write(lambda tx: tx.reads.keep_places([f"read of {DEAD}", f"read of {ALIVE}"], seconds=60))
    assert kept == {f"read of {ALIVE}"}
    bodies = await store.read(lambda tx: [row.body for row in tx.audit.list_pending(100)])
    (end,) = [body for body in bodies if body["kind"] == "ReadEnded"]
    assert (end["code"], end["process"], end["detail"]["rows"]) == ("interrupted", f"read of {DEAD}", 7)


async def test_after_an_outage_nobody_is_judged_before_those_who_are_alive_could_say_so(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, here = Clock(monkeypatch), Leases(store, run=HERE)
    for _ in range(5):
        await here.look()
        clock.now += 15
    await reading(store, ALIVE)
    await lease(store, ALIVE, -1)  # the database was away for longer than leases last
    clock.now += 45
    assert await here.look() == 0
    await lease(store, ALIVE, 60)
    for _ in range(5):
        clock.now += 15
        assert await here.look() == 0
    await reading(store, DEAD)
    await lease(store, DEAD, -1)
    await lease(store, HERE, -1)  # and where we were away ourselves, and do not know it
    clock.now += 15
    assert await here.look() == 0
    assert await left(store) == {ALIVE, DEAD}


async def test_a_start_ends_what_runs_before_it_left_and_nothing_of_one_that_is_alive(store: Store) -> None:
    """Whoever has copied our name with our keys runs on; who had our directory before us does not."""
    await reading(store, "n.before", "n.copied", "n.older", "other.1")
    await lease(store, "n.before", 60)
    await lease(store, "n.copied", 60)
    assert await close_left_over(store, instance="n", before="n.before") == 2
    assert await left(store) == {"n.copied", "other.1"}


async def test_who_ends_with_nothing_open_leaves_no_lease_and_who_owes_an_end_does(store: Store) -> None:
    if store.is_sqlite:
        return
    here, there = Leases(store, run=HERE), Leases(store, run=ALIVE)
    await reading(store, ALIVE)
    for one in (here, there):
        await one.start()
    assert await store.read(lambda tx: tx.reads.list_live_runs()) == {HERE, ALIVE}
    for one in (here, there):
        await one.stop()
    assert await store.read(lambda tx: tx.reads.list_live_runs()) == {ALIVE}
