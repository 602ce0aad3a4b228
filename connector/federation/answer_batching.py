"""Batching of small owner answers: one worker job reads several, because a job costs more than a small answer.

Large answers are read as they arrive. Answers whose values narrow other fragments are read once all shares of their
table have arrived; the other small answers are read by the job that merges them. An answer that waits longer than
`_PATIENCE_S` is read alone, and its error ends the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from connector.errors import ConnectorError
from connector.federation.owner_client import OwnerAnswer
from connector.federation.planner.model import FederatedPlan

_PATIENCE_S = 0.5


@dataclass(slots=True)
class _Batch:
    """Answers that may be read together; `awaited` counts those that have not arrived."""

    awaited: int
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    unread: dict[str, OwnerAnswer] = field(default_factory=dict)
    reading: asyncio.Future[dict[str, OwnerAnswer]] | None = None

    def count_arrival(self) -> None:
        self.awaited -= 1
        if not self.awaited:
            self.complete.set()

    async def wait_for_all(self) -> bool:
        """Wait a short time for the rest of the batch; return whether all arrived."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self.complete.wait()
        return self.complete.is_set()


class AnswerBatches:
    """Batches the answers of one question. `together` fails if any answer is invalid; `apart` reads each alone."""

    def __init__(
        self,
        plan: FederatedPlan,
        *,
        sources: Collection[str],
        together: Callable[[Sequence[OwnerAnswer]], Awaitable[list[OwnerAnswer]]],
        apart: Callable[[Sequence[OwnerAnswer]], Awaitable[list[OwnerAnswer]]],
    ) -> None:
        """`sources`: the tables whose values narrow other fragments; each has a batch of its own."""
        self._all = _Batch(len(plan.fragments))
        self._shares = {table: _Batch(len(plan.tables[table])) for table in sources}
        self._together, self._apart = together, apart

    async def read(self, answered: OwnerAnswer) -> OwnerAnswer:
        """Return the answer, read; or still unread once every answer of the question has arrived."""
        batch = self._shares.get(answered.fragment.table)
        for one in (self._all, batch):
            if one is not None:
                one.count_arrival()
        if not answered.unread:
            return answered
        if batch is None:
            return answered if await self._all.wait_for_all() else (await self._apart([answered]))[0]
        return await self._read_with(batch, answered)

    async def _read_with(self, batch: _Batch, answered: OwnerAnswer) -> OwnerAnswer:
        name = answered.fragment.id
        batch.unread[name] = answered
        if not await batch.wait_for_all():
            del batch.unread[name]
            return (await self._apart([answered]))[0]
        if batch.reading is None:
            batch.reading = asyncio.ensure_future(self._read(list(batch.unread.values())))
        return (await asyncio.shield(batch.reading))[name]

    async def _read(self, unread: Sequence[OwnerAnswer]) -> dict[str, OwnerAnswer]:
        try:
            found = await self._together(unread)
        except ConnectorError:  # one of them failed, and the error does not say which
            found = await self._apart(unread)
        return {one.fragment.id: one for one in found}

    def cancel(self) -> None:
        """Stop reading: the question has ended."""
        for batch in self._shares.values():
            if batch.reading is not None:
                batch.reading.cancel()
