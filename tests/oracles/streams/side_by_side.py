"""Cases of several agreements on one dataset, read side by side: each gives its own view only.

In the one, some have the very same terms and requests, of which one consumer's masks are not the other's; one may be
revoked while all are read. In the other, two readers' reads of the same blocks break off and go on by turns: a cursor
of one stands for the same place where the other has the same consumer and shows the same, and for nothing elsewhere.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Self

from tests.oracles.streams.answers import Came, Different, Pause, over_http
from tests.oracles.streams.reader import Reader
from tests.oracles.streams.session import Budget, Flight, Formats, Http
from tests.oracles.streams.space import Space, World
from tests.oracles.streams.terms import Read
from tests.support import provider
from tests.support.provider import CONSUMER

OTHER = "did:web:hospital.example"
_READERS = 2  # of each: a consumer may have eight reads at once
_STEPS = 8


class Beside(Reader):
    """A reader, and those that read beside it."""

    beside: tuple[Reader, ...] = ()

    @property
    def told(self) -> str:
        each = (f"{type(one).__name__} of {one.consumer}\n{one.told}" for one in self.beside)
        return "\n".join((super().told, *each))

    def words(self) -> Iterator[str]:
        yield from super().words()
        yield from ["two consumers"] if len({one.consumer for one in (self, *self.beside)}) > 1 else []
        for one in self.beside:
            yield from one.words()


class Several(Beside):
    """Each reads as if it were alone; the first only until it is revoked."""

    @classmethod
    def drawn(cls, over: Space, world: World, rng: random.Random, consumer: str = CONSUMER) -> Self:
        one = super().drawn(over, world, rng, consumer)
        kinds = rng.choices((Http, Http, Flight, Formats), k=rng.choice((1, 2, 3)))
        seed, same, found = f"{rng.random()}", rng.random() < 0.5, []
        for number, kind in enumerate([*kinds, *([Budget] if rng.random() < 0.3 else [])]):
            of = random.Random(seed if same else f"{seed} {number}")
            other = kind.drawn(over, world, of, rng.choice((CONSUMER, OTHER)))
            other.asked = replace(other.asked, readers=min(_READERS, other.asked.readers))
            found.append(other)
        one.beside = tuple(found)
        return one

    async def run(self) -> str:
        self._stop = self.rng.random() < 0.4
        return await super().run()

    async def ask(self) -> str:
        for one in self.beside:
            await one.agree()
        self.over.running.reads.origin.prepared = (
            self.over.prepared if any(one.asked.twice for one in self.beside) else None
        )
        asked = [one.ask() for one in self.beside] + ([self._revoked()] if self._stop else [])
        for error in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
        return "equal"

    async def _revoked(self) -> str:
        """It is revoked while it and the others are read."""
        self.begin()
        read = asyncio.ensure_future(over_http(self.over.door.client, self.ticket, self.asked.parameters))
        await asyncio.sleep(self.rng.random() * 0.05)
        await self.over.end(self.agreement, told=True)
        came = await read
        self.met[f"one revoked beside others: {came.status}"] += 1
        came.check_first_of(self.expected)
        if came.code not in ("complete", "revoked", "agreement_ended"):
            raise Different(f"ended as {came.end}")
        return "equal"


class Goes(Reader):
    """A reader whose reads break off."""

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        codec, blocks = rng.choice(("lz4", "zstd", "none", "")), rng.choice(("all", "some", "some"))
        rows = rng.choice((None, 1 + world.files.rows // 40, 7, 64))
        return replace(asked, most=None, blocks=blocks, codec=codec, batch_rows=rows, readers=1)

    async def go(self, cut: int | None = None, pause: Pause | None = None) -> None:
        """Read on, until the connection is closed or all is there."""
        came = await self.step(cut=cut, pause=pause)
        if came.status not in ("complete", "cut"):
            raise Different(f"ended as {came.end}")


class Woven(Beside, Goes):
    """It, and another by turns."""

    @classmethod
    def drawn(cls, over: Space, world: World, rng: random.Random, consumer: str = CONSUMER) -> Self:
        one = super().drawn(over, world, rng, consumer)
        one.other = Goes.drawn(over, world, rng, rng.choice((CONSUMER, OTHER)))
        one.other.asked = replace(one.other.asked, blocks=one.asked.blocks)
        one.beside = (one.other,)
        return one

    other: Goes

    async def ask(self) -> str:
        if self.world.reserved:
            return "no blocks"
        await self.other.agree()
        plan = await self.plan()
        if isinstance(plan, Came):
            raise Different(f"no plan: {plan.end}")
        order = self.order()
        for _ in range(1 + self.asked.twice):
            for one in (self, self.other):
                one.begin({"snapshot": plan["snapshot"]}, order)
            await self._by_turns()
            await provider.settled(self.over.running)
        return "equal"

    async def _by_turns(self) -> None:
        pairs: list[tuple[Goes, Goes]] = [(self, self.other), (self.other, self)]
        for number in range(_STEPS):
            left = [pair for pair in pairs if not pair[0].done]
            if not left:
                break
            one, other = self.rng.choice(left)
            await self._step(one, other, last=number >= _STEPS - 2)
            if self.rng.random() < 0.3 and "after" in one.given:
                await self._exchanged(one, other)
        if len(self.rest) or len(self.other.rest):
            raise Different(f"{len(self.rest)} and {len(self.other.rest)} rows are left")

    async def _step(self, one: Goes, other: Goes, *, last: bool) -> None:
        size = one.rest.nbytes + 3_000
        cut = None if last or self.rng.random() < 0.2 else self.rng.randint(1, size)

        async def beside() -> None:
            await other.go(None if last else self.rng.randint(1, other.rest.nbytes + 3_000))

        between = self.rng.random() < 0.5 and not other.done
        await one.go(cut, (self.rng.randint(1, size // 2), beside) if between else None)
        if last and not other.done:
            await other.go()

    async def _exchanged(self, one: Goes, other: Goes) -> None:
        """The other goes on from where the one is, once."""
        given = other.asked.parameters | other.given | {"after": one.given["after"]}
        came = await over_http(self.over.door.client, other.ticket, given)
        shown = [(each.found.shown, each.found.filters) for each in (one, other)]
        if one.consumer != other.consumer or shown[0] != shown[1]:
            if not came.refused or came.code != "cursor_invalid":
                raise Different(f"by the cursor of another reader came {came.rows} rows, ended as {came.end}")
            self.met[f"a cursor of another {'view' if one.consumer == other.consumer else 'consumer'}"] += 1
            return
        if came.status != "complete":
            raise Different(f"ended as {came.end}")
        came.check_first_of(other.after(one.place))
        self.met["a cursor of another agreement"] += 1
