"""A case of two readers under contracts of their own, whose reads of the same blocks break off and go on by turns.

Each goes on from its own cursor, now and then while a read of the other is under way; all its rows come, each once.
A cursor of one stands for the same place where the other has the same consumer and shows the same, and is nothing to
anybody else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import pyarrow as pa

from tests.support import provider
from tests.support.provider import CONSUMER
from tests.support.random_ends import REFUSED, Came, Pause, over_http
from tests.support.random_http import OverHttp
from tests.support.random_reads import Read
from tests.support.random_several import OTHER
from tests.support.random_space import Different, Space, World

_STEPS = 8


class Goes(OverHttp):
    """One of them: a read that goes on from where it was."""

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        codec, blocks = rng.choice(("lz4", "zstd", "none", "")), rng.choice(("all", "some", "some"))
        rows = rng.choice((None, 1 + world.files.rows // 40, 7, 64))
        return replace(asked, most=None, blocks=blocks, codec=codec, batch_rows=rows, readers=1)

    def begin(self, given: dict[str, str], order: Sequence[int]) -> None:
        """Nothing has come yet of these blocks."""
        self.given, self.order, self.rest, self.done = dict(given), order, self._of_blocks(order), False
        parts = [self.places[slice(*self._bounds(one))] for one in order]
        self.coming = np.concatenate([np.zeros(0, np.int64), *parts])

    async def step(self, cut: int | None = None, pause: Pause | None = None) -> None:
        """Read on, until the connection is closed or all is there."""
        given = self.asked.parameters | self.given
        came = await over_http(self.over.door.client, self.ticket, given, cut=cut, pause=pause)
        if came.status not in ("complete", "cut"):
            raise Different(f"ended as {came.end}")
        came.check_first_of(self.rest)
        self.check_batches(came.batches)
        self.rest, self.done = self.rest.slice(came.rows), came.status == "complete"
        if came.places:
            self.given["after"] = came.places[-1]["cursor"]

    @property
    def view(self) -> object:
        """What the terms show."""
        return self.found.shown, self.found.filters

    @property
    def place(self) -> int:
        """Of the last row that has come."""
        return int(self.coming[len(self.coming) - len(self.rest) - 1])

    def after(self, place: int) -> pa.Table:
        """The rows that come after a place."""
        at = next(n for n, one in enumerate(self.order) if place in self.world.blocks[one])
        first, stop = self._bounds(self.order[at])
        seen = int(np.searchsorted(self.places[first:stop], place, "right"))
        return self._of_blocks(self.order[at:]).slice(seen)


class Woven(Goes):
    """The first, and the other beside it."""

    other: Goes
    met = ""

    @classmethod
    def drawn(cls, over: Space, world: World, rng: random.Random, consumer: str = CONSUMER) -> Self:
        one = super().drawn(over, world, rng, consumer)
        one.other = Goes.drawn(over, world, rng, rng.choice((CONSUMER, OTHER)))
        return one

    @property
    def told(self) -> str:
        return f"{super().told}\n  beside, of {self.other.consumer}\n{self.other.told}"

    def words(self) -> Iterator[str]:
        yield from super().words()
        yield from self.other.words()
        yield from [self.met] if self.met else []

    async def ask(self) -> str:
        if self.world.reserved:
            return "no blocks"
        await self.other.agree()
        plan = await self._planned()
        order = list(range(len(plan["blocks"])))
        given = {"snapshot": plan["snapshot"], "blocks": "all"}
        if self.asked.blocks == "some" and order:
            order = self.rng.sample(order, self.rng.randint(1, len(order)))
            given["blocks"] = ",".join(map(str, order))
        for _ in range(1 + self.asked.twice):
            self.begin(given, order)
            self.other.begin(given, order)
            await self._by_turns()
            await provider.settled(self.over.running)
        return "equal"

    async def _by_turns(self) -> None:
        for number in range(_STEPS):
            left = [one for one in (self, self.other) if not one.done]
            if not left:
                break
            one = self.rng.choice(left)
            await self._step(one, self.other if one is self else self, last=number >= _STEPS - 2)
            if self.rng.random() < 0.3 and "after" in one.given:
                await self._exchanged(one, self.other if one is self else self)
        if len(self.rest) or len(self.other.rest):
            raise Different(f"{len(self.rest)} and {len(self.other.rest)} rows are left")

    async def _step(self, one: Goes, other: Goes, *, last: bool) -> None:
        size = one.rest.nbytes + 3_000
        cut = None if last or self.rng.random() < 0.2 else self.rng.randint(1, size)
        pause = None
        if self.rng.random() < 0.5 and not other.done:

            async def beside() -> None:
                await other.step(None if last else self.rng.randint(1, other.rest.nbytes + 3_000))

            pause = (self.rng.randint(1, size // 2), beside)
        await one.step(cut, pause)
        if last and not other.done:
            await other.step()

    async def _exchanged(self, one: Goes, other: Goes) -> None:
        """The other goes on from where the one is, once."""
        given = other.asked.parameters | other.given | {"after": one.given["after"]}
        came: Came = await over_http(self.over.door.client, other.ticket, given)
        if one.consumer != other.consumer or one.view != other.view:
            if came.status != REFUSED or (came.end or {})["code"] != "cursor_invalid":
                raise Different(f"by the cursor of another reader came {came.rows} rows, ended as {came.end}")
            self.met = f"a cursor of another {'view' if one.consumer == other.consumer else 'consumer'}"
            return
        if came.status != "complete":
            raise Different(f"ended as {came.end}")
        came.check_first_of(other.after(one.place))
        self.met = "a cursor of another agreement"
