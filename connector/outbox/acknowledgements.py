"""Group commit for acknowledged deliveries.

The counterparty's next message mostly follows within milliseconds, proves our delivery, and is recorded in the same
transaction (`states.receive`, rule 3). So an acknowledgement waits a moment for it; the remaining ones are recorded
together. A crash meanwhile only causes a repeated delivery, which the receiver recognises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, TypeAlias

from connector.errors import Busy
from connector.store import Store, Transaction
from connector.store.tables import Outbox
from connector.telemetry import logger

if TYPE_CHECKING:
    from connector.outbox.sender import DeliveryOutcome

_WAIT = 0.05  # seconds
_TOGETHER = 64  # deliveries recorded in a transaction

Delivered: TypeAlias = "tuple[Outbox, DeliveryOutcome]"
Record = Callable[[Transaction, Outbox, "DeliveryOutcome"], list[Outbox] | None]
Again = Callable[[Outbox, Exception], Awaitable[None]]


class Acknowledgements:
    """Acknowledged deliveries that are not recorded yet.

    `record` stores a delivery and returns the messages that follow, which go to `hand_over`; `again` reschedules a
    delivery that cannot be recorded.
    """

    def __init__(
        self, store: Store, *, record: Record, again: Again, hand_over: Callable[[Iterable[Outbox]], None]
    ) -> None:
        self._store = store
        self._record = record
        self._again = again
        self._hand_over = hand_over
        self._waiting: dict[str, list[Delivered]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._log = logger("sender")

    def add(self, row: Outbox, outcome: DeliveryOutcome) -> None:
        """Record a delivery after a short wait."""
        self._waiting.setdefault(row.process, []).append((row, outcome))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WAIT, self._due)

    def mark_recorded(self, process: str) -> None:
        """Note that the acknowledgements of a process were recorded with its counterparty's next message."""
        self._waiting.pop(process, None)

    async def record_now(self, process: str) -> None:
        """Record the acknowledgements of a process now, before a command acts on its state."""
        await self._store_all(self._waiting.pop(process, []))

    async def close(self) -> None:
        """Record everything that waits and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*self._tasks, self._store_all(self._take_all()))

    def _due(self) -> None:
        self._timer = None
        task = asyncio.get_running_loop().create_task(self._store_all(self._take_all()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take_all(self) -> list[Delivered]:
        # Ordered by process id, so that two instances that record the same processes do not deadlock.
        waiting = [delivery for _, deliveries in sorted(self._waiting.items()) for delivery in deliveries]
        self._waiting.clear()
        return waiting

    async def _store_all(self, delivered: list[Delivered]) -> None:
        for at in range(0, len(delivered), _TOGETHER):
            await self._store_together(delivered[at : at + _TOGETHER])

    async def _store_together(self, delivered: list[Delivered]) -> None:
        """Record deliveries in a single transaction; if that fails, each in a transaction of its own."""

        def work(tx: Transaction) -> list[Outbox]:
            return [follow for row, outcome in delivered for follow in self._record(tx, row, outcome) or ()]

        try:
            self._hand_over(await self._store.write(work))
        except Busy as error:  # the database is down: the leases end and the messages are sent again
            self._log.warning("delivery_not_recorded", count=len(delivered), reason=error.message)
        except Exception as error:  # noqa: BLE001  # a delivery that cannot be recorded must not affect others
            if len(delivered) > 1:
                for delivery in delivered:
                    await self._store_together([delivery])
                return
            await self._again(delivered[0][0], error)
