"""A case of several agreements on one dataset, read side by side by one consumer or two: each gives its own view only.

Some have the very same terms and requests, of which one consumer's masks are not the other's; one may be revoked while
all are read.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

from tests.support.provider import CONSUMER
from tests.support.random_budget import Budget
from tests.support.random_case import Case
from tests.support.random_ends import REFUSED, over_http
from tests.support.random_flight import OverFlight
from tests.support.random_formats import Written
from tests.support.random_http import OverHttp
from tests.support.random_space import Different, Space, World

OTHER = "did:web:hospital.example"
_KINDS: tuple[type[Case], ...] = (OverHttp, OverHttp, OverFlight, Written)
_READERS = 2  # of each: a consumer may have eight reads at once


class Several(Case):
    """The first case, and those that are read beside it."""

    beside: tuple[Case, ...] = ()
    met = ""

    @classmethod
    def drawn(cls, over: Space, world: World, rng: random.Random, consumer: str = CONSUMER) -> Self:
        one = super().drawn(over, world, rng, consumer)
        kinds = [*rng.choices(_KINDS, k=rng.choice((1, 2, 3))), *([Budget] if rng.random() < 0.3 else [])]
        seed, same = f"{rng.random()}", rng.random() < 0.5
        found = []
        for number, kind in enumerate(kinds):
            of = random.Random(seed if same else f"{seed} {number}")
            case = kind.drawn(over, world, of, rng.choice((CONSUMER, OTHER)))
            case.asked = replace(case.asked, readers=min(_READERS, case.asked.readers))
            found.append(case)
        one.beside = tuple(found)
        return one

    @property
    def told(self) -> str:
        return "\n".join(f"{type(one).__name__} of {one.consumer}\n{one.told}" for one in self.beside)

    @property
    def ended(self) -> str:
        return "\n".join(one.ended for one in self.beside)

    def words(self) -> Iterator[str]:
        yield f"{len(self.beside)} agreements beside one"
        yield from ["two consumers"] if len({one.consumer for one in self.beside}) > 1 else []
        yield from [self.met] if self.met else []
        for one in self.beside:
            yield from one.words()

    async def ask(self) -> str:
        for one in self.beside:
            await one.agree()
        twice = any(one.asked.twice for one in self.beside)
        self.over.running.reads.origin.prepared = self.over.prepared if twice else None
        ending = self._ending() if self.rng.random() < 0.4 else asyncio.sleep(0)
        for error in await asyncio.gather(*(one.ask() for one in self.beside), ending, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
        return "equal"

    async def _ending(self) -> None:
        """The first is revoked while it and the others are read."""
        read = asyncio.ensure_future(over_http(self.over.door.client, self.ticket, self.asked.parameters))
        await asyncio.sleep(self.rng.random() * 0.05)
        await self.over.running.revoke(self.agreement, "enough")
        came = await read
        self.met = f"one revoked beside others: {came.status}"
        if came.status != REFUSED:
            came.check_first_of(self.expected)
        if came.status not in ("complete", "revoked") and (came.end or {}).get("code") not in _ENDED:
            raise Different(f"ended as {came.end}")


_ENDED = ("revoked", "agreement_ended")
