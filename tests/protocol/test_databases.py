"""The same on SQLite and on PostgreSQL, many at once; and several processes of one connector on one database."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from connector.infra.net.http_client import Reply
from connector.store import Transaction
from tests.conftest import DATABASES
from tests.support.counterparty import DATASET, OFFER_ID
from tests.support.pair import Call, Pair, emptied, pair, settled, side

MANY = 20
DEADLOCKS = text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")


async def whole_story(two: Pair) -> Any:
    """An agreement and, the very moment that its consumer has it, a transfer under it."""
    row = await two.ask(OFFER_ID, dataset=DATASET)
    done = await settled(two.south, "negotiation", row.id, "FINALIZED")
    transfer = await two.south.transfers.request(agreement_id=done.agreement_id, by="test")
    return await settled(two.south, "transfer", transfer.id, "STARTED")


def once_each(two: Pair) -> None:
    """Every message left once: nothing was sent by two workers, and nothing had to be said again."""
    ids = Counter(call.message["@id"] for call in two.cable.calls if "@id" in call.message)
    assert [key for key, count in ids.items() if count > 1] == []


async def test_many_conversations_at_once_all_come_to_their_end(tmp_path: Path, urls: tuple[str, str]) -> None:
    async with pair(tmp_path, urls=urls, lease=60.0) as two:  # however long one is held up, it keeps its messages
        await two.north.publish(DATASET, offer=OFFER_ID)
        started = await asyncio.gather(*(whole_story(two) for _ in range(MANY)))
        await emptied(two)
        for one in started:
            await settled(two.north, "transfer", one.peer_pid, "STARTED")
        told = [(e.kind, e.process, e.detail.get("state")) for s in (two.north, two.south) for e in s.events]
        counted = [one for one in told if one[0] in ("NegotiationAdvanced", "TransferAdvanced", "AgreementConcluded")]
        assert len(counted) == len(set(counted)) == MANY * (4 + 1 + 2) * 2
        once_each(two)


# One SQLite file belongs to one process: what its death leaves behind is in test_crash.
SHARED = pytest.mark.parametrize("urls", DATABASES[1:], indirect=True)


@SHARED
async def test_several_processes_of_one_connector_share_the_work(tmp_path: Path, urls: tuple[str, str]) -> None:
    """Requests reach either process, messages leave either, and nothing leaves twice."""
    async with pair(tmp_path, urls=urls, lease=60.0) as two:  # however long one is held up, it keeps its messages
        await two.north.publish(DATASET, offer=OFFER_ID)
        second = side("north", two.north.host, two.cable, urls[0], lease=60.0)
        apps, turn = [two.north.app, second.app], iter(range(10**6))
        await second.sender.start()

        async def either(call: Call) -> Reply | None:
            two.cable.apps[two.north.host] = apps[next(turn) % 2]
            return None

        two.cable.tamper = either
        started = await asyncio.gather(*(whole_story(two) for _ in range(MANY)))
        await emptied(two)
        assert len(started) == MANY
        once_each(two)
        await second.sender.stop()
        second.store.close()


@SHARED
async def test_what_a_dead_process_had_leased_is_delivered_by_another_one(
    tmp_path: Path, urls: tuple[str, str]
) -> None:
    async with pair(tmp_path, urls=urls, lease=60.0) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        row = await two.ask("offer:none-yet")
        await settled(two.south, "negotiation", row.id, "TERMINATED")
        dying = side("south", two.south.host, two.cable, urls[1], lease=0.1)
        await dying.negotiations.request(  # its sender was never started: the message stays leased to it
            counterparty=two.north.participant,
            address=two.north.base,
            dataset_id=DATASET,
            offer={"@id": OFFER_ID, "permission": [{"action": "use"}]},
            by="test",
        )
        dying.store.close()
        two.cable.apps[two.south.host] = two.south.app
        two.south.sender.wake()  # by itself it looks every five seconds
        (pending,) = [one for one in await two.south.store.read(lambda tx: tx.negotiations.page()) if one.id != row.id]
        await settled(two.south, "negotiation", pending.id, "FINALIZED")
        once_each(two)


@SHARED
async def test_a_revocation_is_told_whoever_has_locked_a_transfer_meanwhile(
    tmp_path: Path, urls: tuple[str, str]
) -> None:
    """Whoever resumes a transfer locks that and then the grant, and keeps the owner from nothing but the transfer."""
    async with pair(tmp_path, urls=urls, lease=60.0) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        here = await whole_story(two)
        agreement, locked, told = here.agreement_id, asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def resume(tx: Transaction) -> str:
            tx.transfers.get(here.peer_pid)
            loop.call_soon_threadsafe(locked.set)
            assert told.wait(60)
            tx.agreements.lock_grant(agreement)
            return "done"

        other = side("north", two.north.host, two.cable, urls[0])
        resuming = asyncio.ensure_future(other.store.write(resume))
        await locked.wait()
        revoking = asyncio.ensure_future(two.north.agreements.revoke(agreement, reason="misused", by="owner"))
        async with asyncio.timeout(60):
            while agreement not in await other.store.read(lambda tx: tx.agreements.read_end_reasons([agreement])):
                assert not revoking.done()
                await asyncio.sleep(0.01)
        told.set()
        assert await resuming == "done"
        assert (await revoking).end_reason == "misused"
        assert (await two.north.transfer(here.peer_pid)).state == "TERMINATED"
        deadlocks = await other.store.read(lambda tx: tx.session.scalar(DEADLOCKS))
        assert deadlocks == 0
        other.store.close()
