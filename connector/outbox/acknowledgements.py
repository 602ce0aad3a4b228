"""Deliveries that the counterparty has acknowledged and that are not recorded yet.

Its next message mostly follows within milliseconds, proves the delivery of ours, and is recorded together with it in
one transaction (`states.receive`, rule 3). So an acknowledgement waits a moment for that; those that wait in vain are
recorded together. A crash meanwhile costs nothing but a repeated delivery, which the receiver recognises.
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
    from connector.outbox.sender import Outcome

_WAIT = 0.05  # seconds
_TOGETHER = 64  # recorded in one transaction

Delivered: TypeAlias = "tuple[Outbox, Outcome]"
Record = Callable[[Transaction, Outbox, "Outcome"], list[Outbox] | None]
Again = Callable[[Outbox, Exception], Awaitable[None]]


class Settling:
    """`record` stores one delivery and says what follows from it; `hand_over` takes what follows; `again` puts off one
    that nobody can record."""

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

    def add(self, row: Outbox, outcome: Outcome) -> None:
        """Record this delivery in a moment."""
        self._waiting.setdefault(row.process, []).append((row, outcome))
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_WAIT, self._due)

    def proven(self, process: str) -> None:
        """What was acknowledged in this process is recorded: its counterparty went on."""
        self._waiting.pop(process, None)

    async def now(self, process: str) -> None:
        """Record at once what was acknowledged in this process: somebody acts on its state."""
        await self._store_all(self._waiting.pop(process, []))

    async def close(self) -> None:
        """Record everything, and nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*self._tasks, self._store_all(self._taken()))

    def _due(self) -> None:
        self._timer = None
        task = asyncio.get_running_loop().create_task(self._store_all(self._taken()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _taken(self) -> list[Delivered]:
        # In the order of the processes' ids: two instances that record the same ones do not wait in a circle.
        taken = [one for _, each in sorted(self._waiting.items()) for one in each]
        self._waiting.clear()
        return taken

    async def _store_all(self, delivered: list[Delivered]) -> None:
        for at in range(0, len(delivered), _TOGETHER):
            await self._store_together(delivered[at : at + _TOGETHER])

    async def _store_together(self, delivered: list[Delivered]) -> None:
        """All in one transaction; one by one where one of them makes trouble, so that it is alone with it."""

        def work(tx: Transaction) -> list[Outbox]:
            return [follow for row, outcome in delivered for follow in self._record(tx, row, outcome) or ()]

        try:
            self._hand_over(await self._store.write(work))
        except Busy as error:  # the database is not there: the leases end and the messages are sent again
            self._log.warning("delivery_not_recorded", count=len(delivered), reason=error.message)
        except Exception as error:  # noqa: BLE001  # one that cannot be recorded must not take others along
            if len(delivered) > 1:
                for one in delivered:
                    await self._store_together([one])
                return
            await self._again(delivered[0][0], error)
