"""How many reads an agreement allows at once, where several connectors serve it from one database."""

from __future__ import annotations

import asyncio
import itertools
import time
from types import SimpleNamespace
from typing import Any

import pytest

from connector.engine.pool.protocol import Relation
from connector.errors import Denied, Limited, Unavailable
from connector.store import Store
from connector.usage import grants as module
from connector.usage import quotas
from connector.usage.grants import Grants
from connector.usage.held_agreement import GrantRequest, ReadGrant, ended_by
from policies.evaluation.evaluate import Facts
from tests.support import gate, provider
from tests.support.gate import atom

PROFILE = {"rows": 10, "columns": [{"name": "id", "type": "BIGINT"}]}


async def agreed(store: Store, most: str) -> GrantRequest:
    """A read under an agreement that allows so many at once."""
    policy = gate.agreement(atom("ds:concurrency", "lteq", most), action="odrl:use")
    relation = Relation("parquet")
    await store.write(lambda tx: provider.insert(tx, policy, "1", name="n", relation=relation, profile=PROFILE))
    return provider.wanted(1)


async def begun(grants: Grants, wanted: GrantRequest, read_id: str) -> ReadGrant | None:
    """The grant; None where there was no place."""
    grant: list[ReadGrant] = []
    try:
        grant = await grants.examine(wanted)
        await grants.begin(grant, lambda _: None, read_id=read_id)
    except Limited as refused:
        grants.forget(grant)
        if refused.code != "concurrency":
            raise
        return None
    return grant[0]


def why(grant: ReadGrant) -> tuple[str, str]:
    """What it was stopped with: sentence and code."""
    assert grant.ended is not None
    return str(grant.ended), grant.ended.code


async def ended(store: Store, grants: Grants, grant: ReadGrant) -> None:
    await store.write(lambda tx: grants.end(tx, [grant]))
    grants.forget([grant])


async def test_connectors_on_one_database_share_the_places_of_an_agreement(store: Store) -> None:
    wanted = await agreed(store, "2")
    connectors = [Grants(store, facts_of=provider.member) for _ in range(6)]
    for round_ in range(3):
        names = [(grants, f"{round_}-{number}-{turn}") for number, grants in enumerate(connectors) for turn in range(2)]
        found = await asyncio.gather(*(begun(grants, wanted, name) for grants, name in names))
        reads = [(grants, grant) for (grants, _), grant in zip(names, found, strict=True) if grant is not None]
        assert len(reads) == 2
        for grants, grant in reads:
            await ended(store, grants, grant)
    row = await store.read(lambda tx: tx.agreements.get_grant(wanted.agreement_id))
    assert row is not None
    assert row.queries == 6  # what found no place took no use


async def test_the_place_of_a_connector_that_is_gone_is_free_after_a_while_and_its_read_ends_if_it_comes_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await agreed(store, "1")
    gone, here = Grants(store, facts_of=provider.member), Grants(store, facts_of=provider.member)
    monkeypatch.setattr(quotas, "_PLACE_SECONDS", -1.0)
    left = await begun(gone, wanted, "left")
    assert left is not None
    await gone._keep_places()
    assert not left.lease.revoked  # nobody has taken it
    monkeypatch.setattr(quotas, "_PLACE_SECONDS", 60.0)
    read = await begun(here, wanted, "mine")
    assert read is not None
    await gone._keep_places()
    assert left.lease.revoked
    sentence, code = why(left)
    assert "took this read's place" in sentence
    assert code == "busy"
    await here._keep_places()
    assert not read.lease.revoked
    await ended(store, gone, left)
    assert await begun(gone, wanted, "again") is None
    await ended(store, here, read)


async def test_a_process_whose_clock_is_wrong_takes_no_place_of_another(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, here, wrong = await agreed(store, "1"), *(Grants(store, facts_of=provider.member) for _ in range(2))
    read = await begun(here, wanted, "mine")
    assert read is not None
    for seconds in (90.0, -90.0):
        clock = SimpleNamespace(time=lambda off=seconds: time.time() + off, monotonic=time.monotonic)
        monkeypatch.setattr(module, "time", clock)
        assert await begun(wrong, wanted, f"other {seconds}") is None
    await ended(store, here, read)
    late = await begun(wrong, wanted, "late")
    assert late is not None
    monkeypatch.undo()
    assert await begun(here, wanted, "next") is None
    await ended(store, wrong, late)


async def test_reads_end_where_the_database_does_not_say_whether_they_may_go_on(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await agreed(sqlite_store, "2")
    grants = Grants(sqlite_store, facts_of=provider.member)
    passed, told, answers, looks = 0.0, sqlite_store.read, True, 0
    clock = SimpleNamespace(time=time.time, monotonic=lambda: time.monotonic() + passed)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "_BLIND_SECONDS", 1_000.0)

    async def sometimes(work: Any) -> Any:
        nonlocal looks
        looks += 1
        if not answers:
            raise ConnectionError("no such host")
        return await told(work)

    async def looked() -> None:
        """It looks, sees how late it is, and looks again."""
        before = looks
        async with asyncio.timeout(60):
            while looks < before + 3:
                await asyncio.sleep(0.01)

    grant = await begun(grants, wanted, "r")
    assert grant is not None
    monkeypatch.setattr(sqlite_store, "read", sometimes)
    for there in (False, True, False):  # it is away for a while, twice
        answers = there
        await looked()
        passed += 0 if there else 600
        await looked()
        assert not grant.lease.revoked
    passed += 600
    async with asyncio.timeout(60):
        await grant.stopped.wait()
    sentence, code = why(grant)
    assert "cannot check in its database" in sentence
    assert code == "busy"
    grants.forget([grant])


@pytest.mark.parametrize("answers", [0, 1], ids=["looking for ends", "asking for facts"])
async def test_reads_end_where_the_database_hangs(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch, answers: int
) -> None:
    """It takes what it is asked and says nothing, no error either."""
    grants = Grants(sqlite_store, facts_of=provider.member)
    grant = await begun(grants, await agreed(sqlite_store, "2"), "r")
    assert grant is not None
    _hanging(sqlite_store, monkeypatch, "read", answers=answers)
    async with asyncio.timeout(60):
        await grant.stopped.wait()
    sentence, code = why(grant)
    assert "cannot check in its database" in sentence
    assert code == "busy"
    grants.forget([grant])


async def test_a_right_that_is_taken_away_outweighs_what_passes(sqlite_store: Store) -> None:
    wanted, grants = await agreed(sqlite_store, "2"), Grants(sqlite_store, facts_of=provider.member)
    reads = [grant for name in ("r", "s") if (grant := await begun(grants, wanted, name)) is not None]
    grants.stop_all("the database is away", code="busy")
    first, second = reads
    assert ended_by(reads) is first.ended
    second.revoke("the study was closed")
    grants.stop_all("the connector is shutting down", code="shutting_down")
    assert why(first) == ("the database is away", "busy")
    assert why(second) == ("the study was closed", "revoked")
    assert ended_by(reads) is second.ended
    grants.forget(reads)


REASONS = {  # the weightiest last
    "busy": Unavailable("the database is away"),
    "lease_expired": Denied("another permission goes on", code="lease_expired"),
    "not_permitted": Denied("the party is no member", code="not_permitted"),
    "revoked": Denied("the study was closed", code="revoked"),
}


@pytest.mark.parametrize("order", list(itertools.permutations(REASONS, 2)), ids="-".join)
@pytest.mark.parametrize("many", [1, 2], ids=["one agreement", "two"])
async def test_of_two_reasons_the_weightier_one_is_told(sqlite_store: Store, order: tuple[str, str], many: int) -> None:
    wanted, grants = await agreed(sqlite_store, "2"), Grants(sqlite_store, facts_of=provider.member)
    reads = [grant for name in ("r", "s")[:many] if (grant := await begun(grants, wanted, name)) is not None]
    for reason, grant in zip(order, itertools.cycle(reads), strict=False):
        grant.stop(REASONS[reason])
    assert ended_by(reads) is REASONS[max(order, key=list(REASONS).index)]
    grants.forget(reads)


async def test_ended_reads_are_asked_about_at_once(sqlite_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One after the other, the first would wait for the second in vain."""
    monkeypatch.setattr(module, "_RECHECK_SECONDS", 600.0)  # nobody else asks meanwhile
    both, gone = asyncio.Barrier(2), False

    async def facts_of(who: str) -> Facts:
        if not gone:
            return await provider.member(who)
        await both.wait()
        return Facts()

    policy = gate.agreement(atom("ds:membership", "eq", "active"), action="odrl:use")
    relation, wanted = Relation("parquet"), []
    for number in ("1", "2"):
        await sqlite_store.write(
            lambda tx, number=number: provider.insert(tx, policy, number, name="n", relation=relation, profile=PROFILE)
        )
        wanted.append(provider.wanted(number))
    grants = Grants(sqlite_store, facts_of=facts_of)
    reads = await grants.examine(*wanted)
    gone = True
    for grant in reads:
        grant.lease.deadline = 0.0
    async with asyncio.timeout(30):
        await grants.recheck_ended(reads)
    assert [why(grant)[1] for grant in reads] == ["not_permitted"] * 2
    grants.forget(reads)


async def test_a_place_that_cannot_be_kept_hides_no_revocation(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    grants, write = Grants(sqlite_store, facts_of=provider.member), sqlite_store.write
    grant = await begun(grants, await agreed(sqlite_store, "2"), "r")
    assert grant is not None
    asked = _hanging(sqlite_store, monkeypatch, "write", answers=0)
    async with asyncio.timeout(60):
        await asked.wait()

    def revoke(tx: Any) -> None:
        row = tx.agreements.get_grant(grant.agreement_id)
        row.revoked_at, row.reason = tx.now, "enough"

    await write(revoke)
    async with asyncio.timeout(60):
        await grant.stopped.wait()
    assert why(grant) == ("enough", "revoked")
    grants.forget([grant])


def _hanging(store: Store, monkeypatch: pytest.MonkeyPatch, name: str, *, answers: int) -> asyncio.Event:
    """A database that hangs after so many answers. Set when it does."""
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(module, "_RECHECK_SECONDS", 0.0)
    monkeypatch.setattr(module, "_BLIND_SECONDS", 2.0)
    told, left, hangs = getattr(store, name), [None] * answers, asyncio.Event()

    async def asked(work: Any) -> Any:
        if left:
            left.pop()
            return await told(work)
        hangs.set()
        return await asyncio.Event().wait()

    monkeypatch.setattr(store, name, asked)
    return hangs


async def test_sources_of_facts_that_are_slow_hold_up_the_watch_over_reads_once_and_not_once_for_each(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = await agreed(sqlite_store, "8")
    asking = most = 0

    async def slow(participant: str) -> Any:
        nonlocal asking, most
        asking += 1
        most = max(most, asking)
        await asyncio.sleep(0.05)
        asking -= 1
        return await provider.member(participant)

    grants = Grants(sqlite_store, facts_of=provider.member)
    reads = [await begun(grants, wanted, f"r{number}") for number in range(6)]
    monkeypatch.setattr(grants, "_facts_of", slow)
    await grants._recheck_all()
    assert most == len(reads)
    grants.forget([grant for grant in reads if grant is not None])
