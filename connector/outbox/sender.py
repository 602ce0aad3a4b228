"""Delivers due messages of the outbox: protocol messages, webhooks, pushes.

A message that this process inserts is leased to it in the same transaction and handed over right after the commit, so
it does not wait for a poll. Messages left behind (by a crash, or a peer that does not answer) are claimed when they are
due or their lease ends, by this process or another on the same database. Order holds within a protocol process: only
its oldest message is ever claimed. Delivery is at least once; receivers recognise repeats.

Running and waiting deliveries are limited per counterparty, by its proven id, within separate classes
(`delivery_classes`). What exceeds a limit stays in the outbox and does not block others.

A `Courier` knows what a message means and what follows from its delivery.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Protocol, cast

from connector.errors import INWARD, AddressRefused, ConnectorError, Unavailable
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.net import resolver
from connector.outbox import delivery_classes
from connector.store import Store, Transaction
from connector.store.tables import Outbox
from connector.telemetry import Metrics, logger

_SHORTEST = 0.05  # seconds between two attempts
_LOOK_AGAIN = 5.0  # longest sleep: other processes may have left messages behind
_CLAIMED_AT_ONCE = 64
_PARTNERS_MAX = 4_096  # known partners, cached
_REMEMBER = 30 * 86_400.0  # seconds that a received message id is kept: repeats come within days
_FORGET_EVERY = 3_600.0
_FEW = 6  # attempts after replies that usually mean "not yet"


class DeliveryResult(Enum):
    """How an attempt to deliver ended."""

    DELIVERED = "delivered"
    REFUSED = "refused"  # a reply that another attempt would not change
    AGAIN = "again"  # no reply, or a reply that may change
    SOON = "soon"  # as AGAIN, but REFUSED after a few attempts
    EXPIRED = "expired"  # given up: the deadline has passed


@dataclass(frozen=True, slots=True)
class DeliveryOutcome:
    """The result of a delivery, its reason, and the document of the reply."""

    result: DeliveryResult
    why: str = ""
    document: Any = None
    code: str = ""
    private: bool = False  # `why` reveals our view of names and addresses: not for the other side


class Courier(Protocol):
    """Delivers a kind of outbox rows and records what follows."""

    async def carry(self, row: Outbox) -> DeliveryOutcome:
        """Try to deliver a row once. A ConnectorError with status 500 or above counts as AGAIN, any other as
        REFUSED."""

    def hold(self, tx: Transaction, row: Outbox) -> Any:
        """Lock the object that the row is about. It is always locked before the row, to prevent deadlocks."""

    def put_off(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Any) -> None:
        """Note that delivery is retried, and why, for those that wait for it."""

    def settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome, held: Any) -> list[Outbox]:
        """Record that the row was delivered, refused or given up; return the rows to send next. The row is deleted."""


class Sender:
    """The delivery worker of a process. `start` it after registering couriers, `stop` it before the store."""

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
        self._instance = instance  # the name of this process, the same at every start
        self.owner = f"{instance}.{uuid.uuid4().hex}"
        self._store = store
        self._delay = send_delay
        self._first, self._cap, self._deadline = retry_first, retry_cap, retry_deadline
        self._lease = lease  # seconds that a message is leased; renewed during longer deliveries
        self._metrics = metrics
        self._is_member = is_member  # of the data space, as far as is known
        self._is_partner, self._makes_partner = is_partner, makes_partner
        self._partners: OrderedDict[str, None] = OrderedDict()
        self._couriers: dict[str, Courier] = {}
        self._lasting: set[str] = set()
        self._recording: dict[str, set[asyncio.Task[None]]] = {}  # by process: deliveries that ended
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._here: set[int] = set()  # ids of the rows in `_tasks`
        self._circles = delivery_classes.DeliveryClasses()
        self._loop: asyncio.Task[None] | None = None
        self._closing = False
        self._forgot = float("-inf")
        self._ahead = 0.0  # seconds that the database's clock is ahead of ours: processes share its leases
        self._log = logger("sender")

    def register(self, kind: str, courier: Courier, *, lasting: bool = False) -> None:
        """Name the courier for rows of this kind. `lasting`: one delivery may take hours, so these have places of
        their own."""
        self._couriers[kind] = courier
        if lasting:
            self._lasting.add(kind)

    async def start(self) -> None:
        """Begin to deliver. Leases of an earlier run of this process are released; on SQLite, all leases."""
        if self._store.is_sqlite:
            await self._store.write(lambda tx: tx.outbox.release_all())
        elif self._instance:
            await self._store.write(lambda tx: tx.outbox.release_instance(self._instance))
        self._compare_clocks(time.time(), await self._store.read(lambda tx: tx.outbox.read_clock()))
        self._loop = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Cancel running deliveries and release all leases, so that another process can continue."""
        self._closing = True
        tasks = [*self._tasks, *([self._loop] if self._loop else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        with suppress(ConnectorError):
            await self._store.write(lambda tx: tx.outbox.release(owner=self.owner))

    def queue(self, tx: Transaction, row: Outbox) -> Outbox:
        """Insert a row into the outbox leased to this process. The caller hands it over right after the commit."""
        row.circle, row.host = self._circle(tx, row), delivery_classes.host_of(row.address)
        row.due_at = row.created_at = self._to_database_time(tx.now)
        row.lease_owner, row.lease_until = self.owner, self._to_database_time(tx.now) + self._lease
        tx.outbox.send(row)
        return row

    def hand_over(self, rows: Iterable[Outbox]) -> None:
        """Deliver rows that are committed and leased to us, each in its own task."""
        for row in rows:
            if self._closing or self._loop is None or row.id in self._here or not self._circles.enter(row):
                continue  # its lease ends, and it is claimed later
            self._here.add(row.id)
            task = asyncio.create_task(self._deliver(row))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _circle(self, tx: Transaction, row: Outbox) -> str:
        """The delivery class of a new row, by what is known of its counterparty now."""
        known = not row.audience or self._is_member(row.audience)
        if row.kind in self._lasting:
            return delivery_classes.LASTING if known else delivery_classes.LASTING_OTHERS
        if known:
            return delivery_classes.KNOWN
        return self.circle_of(tx, row.audience, asked=self._makes_partner(row))

    def circle_of(self, tx: Transaction, who: str, *, asked: bool = False) -> str:
        """The delivery class of a counterparty; `asked`: it is about to become a partner."""
        if self._is_member(who):
            return delivery_classes.KNOWN
        if not (asked or who in self._partners or self._is_partner(tx, who)):
            return delivery_classes.STRANGERS
        put_recent(self._partners, who, None, most=_PARTNERS_MAX)
        return delivery_classes.PARTNERS

    def _finish(self, row: Outbox) -> None:
        self._here.discard(row.id)
        if self._circles.leave(row):
            self._wake.set()

    def wake(self) -> None:
        """Check the outbox now, for rows that were not handed over."""
        self._wake.set()

    async def _run(self) -> None:
        """Claim due rows without a lease, also those of other processes, until cancelled."""
        while True:
            try:
                pause = await self._take_up()
            except ConnectorError as error:
                self._log.warning("outbox_unreadable", reason=error.message)
                pause = 1.0
            with suppress(TimeoutError):  # not wait_for: Python 3.11's swallows a cancellation that meets a wake
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()

    async def _take_up(self) -> float:
        """Claim due rows; return the seconds to sleep."""
        if time.monotonic() - self._forgot > _FORGET_EVERY:
            self._forgot = time.monotonic()
            await self._store.write(self._tidy)
        full, asked = self._circles.full(), time.time()
        due, waiting, clock = await self._store.read(
            lambda tx: (tx.outbox.read_next_due(but=full), tx.outbox.count_waiting(), tx.outbox.read_clock())
        )
        self._compare_clocks(asked, clock)
        if self._metrics is not None:
            self._metrics.outbox.set(waiting)
        now = self._to_database_time(time.time())
        if due is None or due > now:
            return min(_LOOK_AGAIN, self._lease, _LOOK_AGAIN if due is None else due - now)
        rows = await self._store.write(
            lambda tx: tx.outbox.claim(
                owner=self.owner,
                now=self._to_database_time(tx.now),
                lease=self._lease,
                limit=_CLAIMED_AT_ONCE,
                but=full,
            )
        )
        self.hand_over(rows)
        return 0.0 if rows else 0.2

    def _tidy(self, tx: Transaction) -> None:
        """Delete old records of messages and callers, and bring forward rows that are due too far in the future.

        The latter were rescheduled before the clock was set back.
        """
        tx.outbox.forget_older(tx.now - _REMEMBER)
        tx.process_counters.forget_idle(tx.now)
        tx.callers.forget_expired(tx.now)
        now = self._to_database_time(tx.now)
        tx.outbox.bring_forward(now, beyond=now + self._cap + _FORGET_EVERY)

    def _compare_clocks(self, asked: float, clock: float) -> None:
        """Note how far the database's clock is ahead, if it answered fast enough to tell."""
        if not self._store.is_sqlite and time.time() - asked < self._lease / 10:
            self._ahead = clock - asked

    def _to_database_time(self, now: float) -> float:
        """Our time as time of the database's clock (UTC seconds)."""
        return now + self._ahead

    async def _deliver(self, row: Outbox) -> None:
        try:
            async with self._circles.place(row):
                outcome = await self._carry(row)
                with self._announce_recording(row.process):
                    await self._record(row, outcome)
        except Unavailable as error:  # the database is down: the lease ends and the row is retried
            self._log.warning("delivery_not_recorded", process=row.process, reason=error.message)
        except Exception as error:  # noqa: BLE001  # a fault of ours must not end the worker; the row stays
            await self._retry_later(row, error)
        finally:
            self._finish(row)

    @contextmanager
    def _announce_recording(self, process: str) -> Iterator[None]:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        tasks = self._recording.setdefault(process, set())
        tasks.add(task)
        try:
            yield
        finally:
            tasks.discard(task)
            if not tasks:
                self._recording.pop(process, None)

    async def wait_recorded(self, process: str) -> None:
        """Wait until the deliveries of a process that have ended are recorded, before a command acts on its state."""
        if tasks := self._recording.get(process):
            await asyncio.wait(tuple(tasks))

    async def _carry(self, row: Outbox) -> DeliveryOutcome:
        if not await self._has_lease(row):
            return DeliveryOutcome(DeliveryResult.AGAIN, "the lease had ended")
        if self._delay:
            await asyncio.sleep(self._delay)
        keeping = asyncio.create_task(self._keep_lease(row))
        with resolver.use_group(row.circle, row.audience):
            carrying = asyncio.create_task(self._couriers[row.kind].carry(row))
        try:
            await asyncio.wait((keeping, carrying), return_when=asyncio.FIRST_COMPLETED)
            if not carrying.done():
                keeping.result()
                return DeliveryOutcome(
                    DeliveryResult.AGAIN, "the lease had ended"
                )  # another process may deliver it already
            return carrying.result()
        except ConnectorError as error:
            final = error.status < 500 or isinstance(error, AddressRefused)
            private = isinstance(error, INWARD)
            return DeliveryOutcome(
                DeliveryResult.REFUSED if final else DeliveryResult.AGAIN, error.message, private=private
            )
        finally:
            keeping.cancel()
            carrying.cancel()
            await asyncio.wait((keeping, carrying))

    async def _has_lease(self, row: Outbox) -> bool:
        """Whether the row is still leased to us; renews a lease that ends soon."""
        if self._to_database_time(time.time()) < row.lease_until - self._lease / 2:
            return True
        return await self._store.write(lambda tx: self._renew(tx, row.id))

    async def _keep_lease(self, row: Outbox) -> None:
        """Renew the lease of a running delivery; return when it is lost."""
        kept = True
        while kept:
            await asyncio.sleep(self._lease / 3)
            with suppress(Unavailable):  # no other process can claim it either while the database is down
                kept = await self._store.write(lambda tx: self._renew(tx, row.id))

    async def _record(self, row: Outbox, outcome: DeliveryOutcome) -> None:
        follow = await self._store.write(lambda tx: self._settle(tx, row, outcome))
        if follow is None:
            self._wake.set()
        else:
            self.hand_over(follow)

    async def _retry_later(self, row: Outbox, error: Exception) -> None:
        """Reschedule a delivery that failed through our own fault, or whose outcome could not be recorded."""
        self._log.error("delivery_failed", process=row.process, exc_info=error)
        outcome = DeliveryOutcome(DeliveryResult.AGAIN, f"the outcome cannot be recorded ({type(error).__name__})")
        try:
            await self._record(row, outcome)
        except Exception as second:  # noqa: BLE001  # its lease ends, and it is claimed again
            self._log.error("delivery_not_recorded", process=row.process, exc_info=second)

    def _renew(self, tx: Transaction, row_id: int) -> bool:
        row = tx.outbox.lock_leased(row_id, owner=self.owner)
        if row is not None:
            row.lease_until = self._to_database_time(tx.now) + self._lease
        return row is not None

    def _settle(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome) -> list[Outbox] | None:
        """Record an outcome unless another process has done so; return the rows to send next, None for a retry."""
        courier = self._couriers[row.kind]
        held = courier.hold(tx, row)
        if outcome.result in (DeliveryResult.AGAIN, DeliveryResult.SOON):
            kept = tx.outbox.lock_leased(row.id, owner=self.owner)
            if kept is None:
                return []
            kept.attempts += 1
            kept.not_yet += outcome.result is DeliveryResult.SOON
            if kept.not_yet < _FEW and self._to_database_time(tx.now) - kept.created_at < self._deadline:
                self._put_back(tx, kept, outcome)
                courier.put_off(tx, kept, outcome, held)
                return None
            outcome = replace(
                outcome, result=DeliveryResult.REFUSED if kept.not_yet >= _FEW else DeliveryResult.EXPIRED
            )
        if not tx.outbox.remove_delivered(row.id, owner=self.owner):
            return []
        return courier.settle(tx, row, outcome, held)

    def _put_back(self, tx: Transaction, row: Outbox, outcome: DeliveryOutcome) -> None:
        longest = min(self._cap, self._first * 2 ** min(row.attempts - 1, 30))
        row.due_at = self._to_database_time(tx.now) + max(_SHORTEST, random.uniform(0, longest))  # noqa: S311  # jitter, not a secret
        row.lease_owner, row.lease_until = "", 0.0
        self._log.info("delivery_later", process=row.process, attempts=row.attempts, reason=outcome.why)
