"""The worker that delivers what is due in the outbox: protocol messages, webhooks, pushes.

A message that this process inserts is leased to it in the same transaction and handed over right after the commit, so
nothing waits for a tick. What stays behind (a crash, a peer that does not answer) is found in the outbox when its time
or its lease has come, by this process or another one on the same database. Order holds within a process: only its
oldest message is ever taken up. Delivery is at least once; receivers recognise repeats.

Places, and what waits for them here, are counted by counterparty (its proven id: addresses it may have as many as it
likes), within circles that take nothing from each other: our own and members', partners', strangers', and lasting ones
(`circles`). What one has no room for stays in the outbox, and keeps nobody else's from being taken up.

What a message means, and what follows from its delivery, is the courier's business.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol

from connector.errors import INWARD, AddressRefused, Busy, HanseError
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.net import resolver
from connector.outbox import delivery_classes
from connector.outbox.acknowledgements import Settling
from connector.store import Store, Transaction
from connector.store.tables import Outbox
from connector.telemetry import Metrics, logger

_SHORTEST = 0.05  # seconds between two attempts
_LOOK_AGAIN = 5.0  # longest sleep: other processes may have left something behind
_CLAIMED_AT_ONCE = 64
_PARTNERS_MAX = 4_096  # whom we remember to be partners, and need not look up
_REMEMBER = 30 * 86_400.0  # seconds that a message taken in is remembered: repeats come within days
_FORGET_EVERY = 3_600.0
_FEW = 6  # attempts for replies that usually mean "not yet"


class Result(Enum):
    DELIVERED = "delivered"
    REFUSED = "refused"  # an answer that another attempt would not change
    AGAIN = "again"  # no answer, or one that may change
    SOON = "soon"  # as AGAIN, for a few attempts only: then it is REFUSED
    EXPIRED = "expired"  # given up: the deadline has passed


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a delivery went, why, and what the reply held."""

    result: Result
    why: str = ""
    document: Any = None
    code: str = ""
    private: bool = False  # `why` tells of names and addresses as they are from here: not for the other side


class Courier(Protocol):
    """Knows what to do with one kind of outbox row."""

    async def carry(self, row: Outbox) -> Outcome:
        """Deliver it once. A HanseError of ours or the peer's server counts as AGAIN, any other as REFUSED."""

    def hold(self, tx: Transaction, row: Outbox) -> Any:
        """Lock what the row is about. Everybody locks that first and the row after it, so nobody waits in a circle."""

    def put_off(self, tx: Transaction, row: Outbox, outcome: Outcome, held: Any) -> None:
        """Note that it is tried again, and why, where somebody waits for it."""

    def settle(self, tx: Transaction, row: Outbox, outcome: Outcome, held: Any) -> list[Outbox]:
        """Record that it was delivered, refused or given up; what is to be sent next. The row itself is gone."""


class Sender:
    """One per process. `start` it once the couriers are known, `stop` it before the store closes."""

    def __init__(
        self,
        *,
        store: Store,
        send_delay: float = 0.0,
        retry_first: float = 0.5,
        retry_cap: float = 300.0,
        retry_deadline: float = 72 * 3600.0,
        lease: float = 6.0,
        metrics: Metrics | None = None,
        instance: str = "",
        is_member: Callable[[str], bool] = lambda _: False,
        is_partner: Callable[[Transaction, str], bool] = lambda _tx, _who: False,
        makes_partner: Callable[[Outbox], bool] = lambda _row: False,
    ) -> None:
        self._instance = instance  # this process, the same at every start
        self.owner = f"{instance}.{uuid.uuid4().hex}"
        self._store = store
        self._delay = send_delay
        self._first, self._cap, self._deadline = retry_first, retry_cap, retry_deadline
        self._lease = lease  # seconds that a message is ours; renewed while a delivery takes longer
        self._metrics = metrics
        self._is_member = is_member  # of the data space, as far as is known now
        self._is_partner, self._makes_partner = is_partner, makes_partner
        self._partners: OrderedDict[str, None] = OrderedDict()
        self._couriers: dict[str, Courier] = {}
        self._answered: set[str] = set()
        self._lasting: set[str] = set()
        self.settling = Settling(store, record=self._settle, again=self._again, hand_over=self.hand_over)
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._here: set[int] = set()  # ids of the rows that they deliver
        self._circles = delivery_classes.Circles()
        self._loop: asyncio.Task[None] | None = None
        self._closing = False
        self._forgot = float("-inf")
        self._ahead = 0.0  # seconds that the database's clock is ahead of ours: processes share its leases
        self._log = logger("sender")

    def register(self, kind: str, courier: Courier, *, answered: bool = False, lasting: bool = False) -> None:
        """Name who carries rows of this kind. `answered`: the receiver's next message mostly follows at once.
        `lasting`: one delivery may take hours, so these have places of their own."""
        self._couriers[kind] = courier
        if answered:
            self._answered.add(kind)
        if lasting:
            self._lasting.add(kind)

    async def start(self) -> None:
        """Begin to deliver. What an earlier life of this process had leased is free at once; on SQLite, everything."""
        if self._store.is_sqlite:
            await self._store.write(lambda tx: tx.messages.release_all())
        elif self._instance:
            await self._store.write(lambda tx: tx.messages.release_of(self._instance))
        self._compare(time.time(), await self._store.read(lambda tx: tx.messages.clock()))
        self._loop = asyncio.create_task(self._look())

    async def stop(self) -> None:
        """End what is under way and leave the rest in the outbox, free for whoever comes next."""
        self._closing = True
        tasks = [*self._tasks, *([self._loop] if self._loop else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.settling.close()
        with suppress(HanseError):
            await self._store.write(lambda tx: tx.messages.release(owner=self.owner))

    def queue(self, tx: Transaction, row: Outbox) -> Outbox:
        """Put a row into the outbox, leased to us: it is handed over right after the commit."""
        row.circle, row.host = self._circle(tx, row), delivery_classes.host_of(row.address)
        row.due_at = row.created_at = self._at(tx.now)
        row.lease_owner, row.lease_until = self.owner, self._at(tx.now) + self._lease
        tx.messages.send(row)
        return row

    def hand_over(self, rows: Iterable[Outbox]) -> None:
        """Deliver rows that are committed and leased to us, each in a task of its own."""
        for row in rows:
            if self._closing or self._loop is None or row.id in self._here or not self._circles.enter(row):
                continue  # its lease ends, and it is found in the outbox
            self._here.add(row.id)
            task = asyncio.create_task(self._deliver(row))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _circle(self, tx: Transaction, row: Outbox) -> str:
        """With whom a delivery shares its places: who is known now. The row says it from then on."""
        known = not row.audience or self._is_member(row.audience)
        if row.kind in self._lasting:
            return delivery_classes.LASTING if known else delivery_classes.LASTING_OTHERS
        if known:
            return delivery_classes.KNOWN
        return self.circle_of(tx, row.audience, asked=self._makes_partner(row))

    def circle_of(self, tx: Transaction, who: str, *, asked: bool = False) -> str:
        """The circle of a counterparty; `asked`: it is about to be a partner."""
        if self._is_member(who):
            return delivery_classes.KNOWN
        if not (asked or who in self._partners or self._is_partner(tx, who)):
            return delivery_classes.STRANGERS
        put_recent(self._partners, who, None, most=_PARTNERS_MAX)
        return delivery_classes.PARTNERS

    def _ended(self, row: Outbox) -> None:
        self._here.discard(row.id)
        if self._circles.leave(row):
            self._wake.set()

    def wake(self) -> None:
        """Look into the outbox now: something that nobody hands over is there."""
        self._wake.set()

    async def _look(self) -> None:
        """Take up what is due and not leased, whoever inserted it."""
        while True:
            try:
                pause = await self._take_up()
            except HanseError as error:
                self._log.warning("outbox_unreadable", reason=error.message)
                pause = 1.0
            with suppress(TimeoutError):  # not wait_for: Python 3.11's swallows a cancellation that meets a wake
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()

    async def _take_up(self) -> float:
        """Claim what is due; how long to sleep."""
        if time.monotonic() - self._forgot > _FORGET_EVERY:
            self._forgot = time.monotonic()
            await self._store.write(self._tidy)
        full, asked = self._circles.full(), time.time()
        due, waiting, clock = await self._store.read(
            lambda tx: (tx.messages.next_due(but=full), tx.messages.waiting(), tx.messages.clock())
        )
        self._compare(asked, clock)
        if self._metrics is not None:
            self._metrics.outbox.set(waiting)
        now = self._at(time.time())
        if due is None or due > now:
            return min(_LOOK_AGAIN, self._lease, _LOOK_AGAIN if due is None else due - now)
        rows = await self._store.write(
            lambda tx: tx.messages.claim(
                owner=self.owner, now=self._at(tx.now), lease=self._lease, limit=_CLAIMED_AT_ONCE, but=full
            )
        )
        self.hand_over(rows)
        return 0.0 if rows else 0.2

    def _tidy(self, tx: Transaction) -> None:
        """Remove what nobody will ask for any more, and take up what waits longer than anything does: the clock was set
        back since it was put off."""
        tx.messages.forget_older(tx.now - _REMEMBER)
        tx.admissions.forget_idle(tx.now)
        now = self._at(tx.now)
        tx.messages.bring_forward(now, beyond=now + self._cap + _FORGET_EVERY)

    def _compare(self, asked: float, clock: float) -> None:
        """How far the database's clock is ahead, where it answered soon enough to tell."""
        if not self._store.is_sqlite and time.time() - asked < self._lease / 10:
            self._ahead = clock - asked

    def _at(self, now: float) -> float:
        """A moment of our clock by the database's."""
        return now + self._ahead

    async def _deliver(self, row: Outbox) -> None:
        try:
            async with self._circles.place(row):
                outcome = await self._carry(row)
                if outcome.result is Result.DELIVERED and row.kind in self._answered:
                    self.settling.add(row, outcome)
                    return
                await self._record(row, outcome)
        except Busy as error:  # the database is not there: the lease ends and it is tried again
            self._log.warning("delivery_not_recorded", process=row.process, reason=error.message)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not end the worker; the row stays
            await self._again(row, error)
        finally:
            self._ended(row)

    async def _carry(self, row: Outbox) -> Outcome:
        if not await self._still_ours(row):
            return Outcome(Result.AGAIN, "the lease had ended")
        if self._delay:
            await asyncio.sleep(self._delay)
        keeping = asyncio.create_task(self._keep(row))
        with resolver.use_group(row.circle, row.audience):
            carrying = asyncio.create_task(self._couriers[row.kind].carry(row))
        try:
            await asyncio.wait((keeping, carrying), return_when=asyncio.FIRST_COMPLETED)
            if not carrying.done():
                keeping.result()
                return Outcome(Result.AGAIN, "the lease had ended")  # somebody else may be at it already
            return carrying.result()
        except HanseError as error:
            final = error.status < 500 or isinstance(error, AddressRefused)
            private = isinstance(error, INWARD)
            return Outcome(Result.REFUSED if final else Result.AGAIN, error.message, private=private)
        finally:
            keeping.cancel()
            carrying.cancel()
            await asyncio.wait((keeping, carrying))

    async def _still_ours(self, row: Outbox) -> bool:
        """Whether the lease has enough time left; renewed where we waited long for a slot."""
        if self._at(time.time()) < row.lease_until - self._lease / 2:
            return True
        return await self._store.write(lambda tx: self._renew(tx, row.id))

    async def _keep(self, row: Outbox) -> None:
        """Renew the lease of a delivery that takes long; back when it is lost."""
        kept = True
        while kept:
            await asyncio.sleep(self._lease / 3)
            with suppress(Busy):  # nobody can take it either while the database is away
                kept = await self._store.write(lambda tx: self._renew(tx, row.id))

    async def _record(self, row: Outbox, outcome: Outcome) -> None:
        follow = await self._store.write(lambda tx: self._settle(tx, row, outcome))
        if follow is None:
            self._wake.set()
        else:
            self.hand_over(follow)

    async def _again(self, row: Outbox, error: Exception) -> None:
        """Nobody could record how a delivery went, or it failed by a fault of ours: one more attempt, like others."""
        self._log.error("delivery_failed", process=row.process, exc_info=error)
        outcome = Outcome(Result.AGAIN, f"what came of it cannot be recorded ({type(error).__name__})")
        try:
            await self._record(row, outcome)
        except Exception as second:  # noqa: BLE001  # then its lease ends, and it is found in the outbox
            self._log.error("delivery_not_recorded", process=row.process, exc_info=second)

    def _renew(self, tx: Transaction, row_id: int) -> bool:
        row = tx.messages.leased(row_id, owner=self.owner)
        if row is not None:
            row.lease_until = self._at(tx.now) + self._lease
        return row is not None

    def _settle(self, tx: Transaction, row: Outbox, outcome: Outcome) -> list[Outbox] | None:
        """Record an outcome, unless somebody else has dealt with the row meanwhile. None: to be tried again."""
        courier = self._couriers[row.kind]
        held = courier.hold(tx, row)
        if outcome.result in (Result.AGAIN, Result.SOON):
            kept = tx.messages.leased(row.id, owner=self.owner)
            if kept is None:
                return []
            kept.attempts += 1
            kept.not_yet += outcome.result is Result.SOON
            if kept.not_yet < _FEW and self._at(tx.now) - kept.created_at < self._deadline:
                self._put_back(tx, kept, outcome)
                courier.put_off(tx, kept, outcome, held)
                return None
            outcome = replace(outcome, result=Result.REFUSED if kept.not_yet >= _FEW else Result.EXPIRED)
        if not tx.messages.done(row.id, owner=self.owner):
            return []
        return courier.settle(tx, row, outcome, held)

    def _put_back(self, tx: Transaction, row: Outbox, outcome: Outcome) -> None:
        longest = min(self._cap, self._first * 2 ** min(row.attempts - 1, 30))
        row.due_at = self._at(tx.now) + max(_SHORTEST, random.uniform(0, longest))  # noqa: S311  # jitter, not a secret
        row.lease_owner, row.lease_until = "", 0.0
        self._log.info("delivery_later", process=row.process, attempts=row.attempts, reason=outcome.why)
