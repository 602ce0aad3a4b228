"""When the answers of owners are read: a large one as it comes; small ones together, as a job costs more than they do.

Those whose values narrow other fragments are read once all shares of their table are there; the rest is left to the job
that joins them. None waits long for the others: then it is read alone, and what is wrong with it ends the question.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from connector.errors import HanseError
from connector.federation.owner_client import Answered
from connector.federation.planner.model import FederatedPlan

_PATIENCE = 0.5


@dataclass(slots=True)
class _Company:
    """Answers that may be read together, of which so many are still to come."""

    awaited: int
    complete: asyncio.Event = field(default_factory=asyncio.Event)
    unread: dict[str, Answered] = field(default_factory=dict)
    reading: asyncio.Future[dict[str, Answered]] | None = None

    def came(self) -> None:
        self.awaited -= 1
        if not self.awaited:
            self.complete.set()

    async def gathers(self) -> bool:
        """Whether all of them come soon."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self.complete.wait()
        return self.complete.is_set()


class Reading:
    """The answers of one question. `together` reads several, and fails where one is not whole; `apart` each alone."""

    def __init__(
        self,
        plan: FederatedPlan,
        *,
        sources: Collection[str],
        together: Callable[[Sequence[Answered]], Awaitable[list[Answered]]],
        apart: Callable[[Sequence[Answered]], Awaitable[list[Answered]]],
    ) -> None:
        """`sources`: the tables whose values narrow other fragments."""
        self._all = _Company(len(plan.fragments))
        self._shares = {table: _Company(len(plan.tables[table])) for table in sources}
        self._together, self._apart = together, apart

    async def read(self, answered: Answered) -> Answered:
        """The answer, read, or left unread: then every answer of the question is there."""
        company = self._shares.get(answered.fragment.table)
        for one in (self._all, company):
            if one is not None:
                one.came()
        if not answered.unread:
            return answered
        if company is None:
            return answered if await self._all.gathers() else (await self._apart([answered]))[0]
        return await self._with(company, answered)

    async def _with(self, company: _Company, answered: Answered) -> Answered:
        name = answered.fragment.id
        company.unread[name] = answered
        if not await company.gathers():
            del company.unread[name]
            return (await self._apart([answered]))[0]
        if company.reading is None:
            company.reading = asyncio.ensure_future(self._read(list(company.unread.values())))
        return (await asyncio.shield(company.reading))[name]

    async def _read(self, unread: Sequence[Answered]) -> dict[str, Answered]:
        try:
            found = await self._together(unread)
        except HanseError:  # of one of them, and nobody knows which
            found = await self._apart(unread)
        return {one.fragment.id: one for one in found}

    def cancel(self) -> None:
        """Nobody waits for them any more."""
        for company in self._shares.values():
            if company.reading is not None:
                company.reading.cancel()
