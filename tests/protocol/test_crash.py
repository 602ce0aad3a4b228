"""Either connector dies right before or right after any of its commits, and starts again: nothing is lost or doubled.

Dying is sudden: whatever was under way never goes on, no lease is given back, the other side sees a broken connection.
What counts afterwards is read from the databases.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from connector.errors import ConnectorError, PeerUnreachable, Unavailable
from connector.infra.net.http_client import Reply
from connector.store.tables import Negotiation, Transfer
from tests.support.counterparty import DATASET, OFFER_ID
from tests.support.pair import Call, Pair, Side, pair, side

COUNTED = ("NegotiationAdvanced", "TransferAdvanced", "AgreementConcluded")
ONCE = Counter(
    [
        *(("NegotiationAdvanced", state) for state in ("REQUESTED", "AGREED", "VERIFIED", "FINALIZED")),
        ("AgreementConcluded", ""),
        *(("TransferAdvanced", state) for state in ("REQUESTED", "STARTED", "COMPLETED")),
    ]
)
LEASE = 6.0  # as in the product: whoever dies, or leaves, in the middle may have leased what the story goes on with
MOST = 60  # commits of one side in the whole story are fewer


class Fuse:
    """Kills a side at its n-th commit from now: `before` it, or right after it."""

    def __init__(self, victim: Side, n: int, *, before: bool) -> None:
        self.victim = victim
        self.blown = asyncio.Event()
        self.count = 0
        self._over = asyncio.Event()
        self._n, self._before = n, before
        self._write, self._read = victim.store.write, victim.store.read
        victim.store.write = self.write  # type: ignore[method-assign]
        victim.store.read = self.read  # type: ignore[method-assign]

    async def write(self, work: Callable[[Any], Any]) -> Any:
        self.count += 1
        this = self.count
        if self.blown.is_set() or (this == self._n and self._before):
            await self._die()
        result = await self._write(work)
        if self.blown.is_set() or this == self._n:
            await self._die()
        return result

    async def read(self, work: Callable[[Any], Any]) -> Any:
        if self.blown.is_set():
            await self._die()
        return await self._read(work)

    def out(self) -> None:
        """The story is over, well or not: nothing is to die any more, and who is dead can be closed."""
        self._n = 0
        self.blown.clear()
        self._over.set()

    async def _die(self) -> None:
        self.blown.set()
        await self._over.wait()
        raise Unavailable("died")


def connect(two: Pair, fuse: Fuse) -> None:
    """Requests to the victim break when it dies, and fail while it is gone."""

    async def broken(call: Call) -> Reply | None:
        if f"//{fuse.victim.host}/" not in call.url:
            return None
        going = asyncio.ensure_future(call.go())
        dying = asyncio.ensure_future(fuse.blown.wait())
        done, _ = await asyncio.wait({going, dying}, return_when=asyncio.FIRST_COMPLETED)
        dying.cancel()
        if going in done:
            return going.result()
        going.cancel()
        raise PeerUnreachable("the connection broke")

    two.cable.tamper = broken


async def restart(two: Pair, fuse: Fuse) -> Side:
    """The victim again, on its database as it was left."""
    old = fuse.victim
    del two.cable.apps[old.host]
    tasks = [*old.sender._tasks, *([old.sender._loop] if old.sender._loop else [])]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    url = old.store.engine.url.render_as_string(hide_password=False)
    old.store.close()
    two.cable.tamper = None
    fresh = side(old.name, old.host, two.cable, url, retry_cap=0.05, lease=LEASE)
    await fresh.sender.start()
    return fresh


async def operate(south: Side, north: Side) -> None:
    """What the consumer's operator wants: an agreement, a transfer, its completion. Goes on from whatever is there."""
    while True:
        negotiations = await south.store.read(lambda tx: tx.negotiations.page())
        transfers = await south.store.read(lambda tx: tx.transfers.page())
        with suppress(ConnectorError):
            await _next(south, north, negotiations, transfers)
        if transfers and transfers[0].state == "COMPLETED":
            return
        await asyncio.sleep(0.003)


async def _next(south: Side, north: Side, negotiations: list[Negotiation], transfers: list[Transfer]) -> None:
    if not negotiations:
        await south.negotiations.request(
            counterparty=north.participant,
            address=north.base,
            dataset_id=DATASET,
            offer={"@id": OFFER_ID, "permission": [{"action": "use"}]},
            by="test",
        )
    elif negotiations[0].state == "FINALIZED" and not transfers:
        await south.transfers.request(agreement_id=negotiations[0].agreement_id, by="test")
    elif transfers and transfers[0].state == "STARTED" and not transfers[0].pending:
        await south.transfers.command(transfers[0].id, "complete", by="test")


async def story(directory: Path, victim: str, n: int, *, before: bool) -> int:
    """The whole story with one death in it. How often the victim committed in it, with or without dying."""
    async with pair(directory, lease=LEASE) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        fuse = Fuse(getattr(two, victim), n, before=before)
        connect(two, fuse)
        try:
            await _live_through(two, victim, fuse)
        finally:
            fuse.out()
        await _check(two)
        return fuse.count


async def _live_through(two: Pair, victim: str, fuse: Fuse) -> None:
    """To the end of the story, with a new victim in place of one that died."""
    operator = asyncio.ensure_future(_to_the_end(two))
    dying = asyncio.ensure_future(fuse.blown.wait())
    done, _ = await asyncio.wait({operator, dying}, return_when=asyncio.FIRST_COMPLETED, timeout=60)
    assert done, "neither done nor dead"
    dying.cancel()
    if fuse.blown.is_set():  # with the last commit, the others may have seen the end before it is known who died
        operator.cancel()
        setattr(two, victim, await restart(two, fuse))
        await asyncio.wait_for(_to_the_end(two), 60)
    else:
        await operator


async def _to_the_end(two: Pair) -> None:
    await operate(two.south, two.north)
    await _quiet(two)


async def _quiet(two: Pair) -> None:
    async with asyncio.timeout(60):
        while await two.north.outbox() or await two.south.outbox():
            await asyncio.sleep(0.005)


async def _check(two: Pair) -> None:
    """Both sides hold one negotiation, agreement and transfer, at their ends, and said each change once."""
    for one in (two.north, two.south):
        rows = await one.store.read(
            lambda tx: [*tx.negotiations.page(), *tx.transfers.page()],
        )
        assert sorted((row.state, row.pending) for row in rows) == [("COMPLETED", ""), ("FINALIZED", "")]
        agreements = await one.store.read(lambda tx: tx.agreements.page())
        assert [row.finalized for row in agreements] == [True]
        bodies = await one.store.read(lambda tx: [row.body for row in tx.audit.list_pending(1_000)])
        told = Counter((body["kind"], body["detail"].get("state", "")) for body in bodies if body["kind"] in COUNTED)
        assert told == ONCE, f"an effect is missing or came twice at {one.name}"


@pytest.mark.parametrize("before", [True, False], ids=["before a commit", "after a commit"])
@pytest.mark.parametrize("victim", ["north", "south"])
async def test_a_connector_that_dies_at_any_commit_goes_on_where_it_was(
    tmp_path: Path, victim: str, before: bool
) -> None:
    whole = await story(tmp_path_of(tmp_path, 0), victim, MOST, before=before)
    assert 4 <= whole < MOST  # request, verification, transfer, completion: one commit each is the least
    for n in range(1, whole + 1):
        try:
            await story(tmp_path_of(tmp_path, n), victim, n, before=before)
        except AssertionError as error:
            raise AssertionError(f"{victim} died {'before' if before else 'after'} commit {n}: {error}") from error


def tmp_path_of(directory: Path, n: int) -> Path:
    made = directory / str(n)
    made.mkdir()
    return made
