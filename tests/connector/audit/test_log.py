"""The sequencer on both databases: no gap, nothing lost, one log however many number it, nothing signed over damage."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hanse.audit.verify import verify_consistency, verify_proof

from connector.audit import merkle, signed_note
from connector.audit.log import ROUND_MAX, LogBroken, Sequencer, check_key
from connector.errors import Absent
from connector.store import Store, Transaction
from connector.store.tables import AuditCheckpoint, AuditEvent, AuditTile
from tests.connector.audit.support import SIGNER, log_over, story


async def stored(store: Store) -> tuple[list[int], int, int]:
    """Indexes in the log, pending records, and the size of the newest head."""

    def work(tx: Transaction) -> tuple[list[int], int, int]:
        newest = tx.audit.read_checkpoint()
        rows = tx.audit.list_events(limit=100_000)
        return [row.idx for row in rows], len(tx.audit.list_pending(100_000)), newest.size if newest else 0

    return await store.read(work)


async def until_settled(store: Store) -> None:
    async with asyncio.timeout(60):
        while (await stored(store))[1]:  # the other side is a database
            await asyncio.sleep(0.01)


async def test_committed_events_are_numbered_without_a_gap_and_signed(store: Store) -> None:
    log = log_over(store)
    for count in (1, 5, 300):
        await store.write(story(count))
        await log.sequencer.settle()
    assert await stored(store) == (list(range(306)), 0, 306)
    _, size, root = signed_note.read_head(await log.head())
    assert root == await store.read(lambda tx: merkle.root(tx.audit.read_tile, size))


async def test_more_than_a_round_is_numbered_in_several(store: Store) -> None:
    log = log_over(store)
    await store.write(story(ROUND_MAX + 7))
    await log.sequencer.settle()
    assert await stored(store) == (list(range(ROUND_MAX + 7)), 0, ROUND_MAX + 7)


async def test_a_running_sequencer_catches_up_at_start_and_is_woken_by_commits(store: Store) -> None:
    await store.write(story(3))
    running = asyncio.create_task(log_over(store).sequencer.run())
    try:
        await until_settled(store)
        await store.write(story(4))
        await until_settled(store)
        assert await stored(store) == (list(range(7)), 0, 7)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_a_sequencer_outlives_what_fails_and_says_what_it_is(store: Store) -> None:
    log = log_over(store)
    await store.write(story(3))
    await log.sequencer.settle()
    tile = await store.read(lambda tx: tx.audit.read_tile(0, 0))
    assert tile is not None
    await store.write(lambda tx: tx.audit.put_tile(0, 0, bytes(32) + tile[32:]))
    again = log_over(store).sequencer
    running = asyncio.create_task(again.run())
    try:
        await _until(lambda: "expected the stored audit log to match" in again.problem)
        await store.write(lambda tx: tx.audit.put_tile(0, 0, tile))  # restored from a copy
        await store.write(story(1))
        await until_settled(store)
        await _until(lambda: again.problem == "")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not true():  # the other side tells nobody
            await asyncio.sleep(0.01)


async def test_a_crash_between_commit_and_round_loses_nothing(store: Store) -> None:
    log = log_over(store)
    await store.write(story(10))
    await log.sequencer.settle()
    await store.write(story(5))  # the process dies here: its sequencer never ran again

    def dies(tx: Transaction) -> None:
        log.sequencer._round(tx)
        raise KeyboardInterrupt  # and once more in the middle of a round, after all of its writes

    with pytest.raises(BaseException):  # noqa: B017, PT011  # whichever way the store reports it
        await asyncio.wait_for(store.write(_as_error(dies)), 60)
    assert (await stored(store))[1:] == (5, 10)
    await log_over(store).sequencer.settle()
    assert await stored(store) == (list(range(15)), 0, 15)


def _as_error(work: Any) -> Any:
    def run(tx: Transaction) -> None:
        try:
            work(tx)
        except KeyboardInterrupt:
            raise RuntimeError("killed") from None

    return run


async def test_two_sequencers_on_one_database_make_one_log(store: Store) -> None:
    logs = [log_over(store), log_over(store)]
    running = [asyncio.create_task(log.sequencer.run()) for log in logs]
    try:
        for _ in range(20):
            await asyncio.gather(*(store.write(story(3)) for _ in range(4)))
        await until_settled(store)
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    assert await stored(store) == (list(range(240)), 0, 240)
    _, size, root = signed_note.read_head(await logs[0].head())
    assert root == await store.read(lambda tx: merkle.root(tx.audit.read_tile, size))


async def test_every_record_is_what_was_published_and_is_proven(store: Store) -> None:
    log = log_over(store)
    await store.write(story(9))
    await log.sequencer.settle()
    for idx in range(9):
        proven = await log.prove(idx)
        assert json.loads(proven.record.text)["detail"]["rows"] == idx * 1000
        assert verify_proof(proven.proof, proven.record.leaf, SIGNER.vkey) == idx
    with pytest.raises(Absent, match="below its size, 9"):
        await log.prove(9)


async def test_every_head_continues_the_one_before(store: Store) -> None:
    log, heads = log_over(store), []
    for count in (1, 255, 1, 3):
        await store.write(story(count))
        await log.sequencer.settle()
        heads.append(await log.head())
    for old, new in itertools.pairwise(heads):
        path = await log.consistency(signed_note.read_head(old)[1], signed_note.read_head(new)[1])
        verify_consistency(old, new, path, SIGNER.vkey)


def flipped(tile: bytes) -> bytes:
    """A tile with one bit changed, whatever it held."""
    return bytes([tile[0] ^ 1]) + tile[1:]


DAMAGE = {
    "a record that was deleted at the end": lambda tx: tx.session.delete(tx.audit.get_event(11)),
    "a tile with one bit changed": lambda tx: tx.audit.put_tile(0, 0, flipped(tx.audit.read_tile(0, 0))),
    "a tile that is gone": lambda tx: tx.session.delete(tx.session.get(AuditTile, (0, 0))),
    "a head that is gone": lambda tx: tx.session.delete(tx.session.get(AuditCheckpoint, 12)),
    "records without any head": lambda tx: tx.session.query(AuditCheckpoint).delete(),
    "an inserted record": lambda tx: tx.session.add(
        AuditEvent(idx=12, ts=0.0, kind="X", actor="", agreement="", dataset="", outcome="ok", body="{}", salt=b"")
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
async def test_nothing_is_signed_over_a_damaged_log(store: Store, damage: Any) -> None:
    log = log_over(store)
    await store.write(story(5))
    await log.sequencer.settle()
    await store.write(story(7))
    await log.sequencer.settle()
    await store.write(lambda tx: damage(tx) and None)
    await store.write(story(1))
    heads = await store.read(lambda tx: tx.session.query(AuditCheckpoint).count())
    with pytest.raises(LogBroken):
        await Sequencer(store, signer=SIGNER).settle()
    assert await store.read(lambda tx: tx.session.query(AuditCheckpoint).count()) == heads


async def test_a_log_is_gone_on_with_by_its_own_key_alone(sqlite_store: Store) -> None:
    log = log_over(sqlite_store)
    await sqlite_store.read(partial(check_key, signer=SIGNER))  # nothing is signed yet
    await sqlite_store.write(story(5))
    await log.sequencer.settle()
    await sqlite_store.read(partial(check_key, signer=replace(SIGNER, name="a new address/audit/north")))
    with pytest.raises(LogBroken, match="copy keys/"):
        await sqlite_store.read(partial(check_key, signer=replace(SIGNER, key=Ed25519PrivateKey.generate())))
