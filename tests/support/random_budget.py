"""A case of an agreement whose rows or bytes end in the middle of what is read under it, by one reader or several."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from unittest import mock

from connector.usage import counting
from policies.model import Atom
from tests.support import gate
from tests.support.random_case import Case
from tests.support.random_ends import Came, check_records, over_flight, over_http
from tests.support.random_reads import Read
from tests.support.random_space import Different, World


class Budget(Case):
    """What came is the first of the rows, together no more than the budget, and as much as its batches allow."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        rows, nbytes = len(self.expected), self.expected.nbytes
        kind = self.rng.choice(("rows", "rows", "bytes", "both"))
        self.rows = self.rng.randint(1, 2 * rows + 1) if kind != "bytes" else None
        self.bytes = self.rng.randint(1, 2 * nbytes + 10_000) if kind != "rows" else None
        self.chunk = self.rng.choice((1_000_000, 1_000_000, 512, 7))
        self.answers: list[Came] = []
        self.flights = 0
        limits = {"ds:rowQuota": self.rows, "ds:byteQuota": self.bytes}
        self._limit([gate.atom(name, "lteq", str(most)) for name, most in limits.items() if most])

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        blocks = "all" if asked.blocks else ""
        batch_rows = rng.choice((None, 1, 7, 64))
        return replace(asked, columns=(), where="", most=None, blocks=blocks, batch_rows=batch_rows, twice=False)

    def words(self) -> Iterator[str]:
        yield from super().words()
        yield from ["a budget of rows"] if self.rows else []
        yield from ["a budget of bytes"] if self.bytes else []
        yield from {f"ended as {came.status}" for came in self.answers}

    async def ask(self) -> str:
        running, before = self.over.running, len(self.over.running.events)
        with (
            mock.patch.object(counting, "_CHUNK_ROWS", self.chunk),
            mock.patch.object(counting, "_CHUNK_BYTES", self.chunk * 256),
        ):
            if at_once := self.rng.random() < 0.5:
                self.answers = list(await asyncio.gather(*(self._read() for _ in range(self.asked.readers + 1))))
            else:
                for _ in range(self.asked.readers + 1):
                    self.answers.append(await self._read())
                    await check_records(running, before, self.answers)  # and what it has not used goes back
        nbytes = await check_records(running, before, self.answers)
        self._check(nbytes, exact=not at_once)
        counted = await running.store.read(lambda tx: tx.agreements.grant(self.agreement))
        assert counted is not None
        rows = sum(came.rows for came in self.answers)
        if (counted.rows, counted.bytes) != (rows if self.rows else 0, nbytes if self.bytes else 0):
            raise Different(f"{rows} rows and {nbytes} bytes have left, counted: {counted.rows} and {counted.bytes}")
        return "equal"

    def _check(self, nbytes: int, *, exact: bool) -> None:
        for came in self.answers:
            came.check_first_of(self.expected)
            if came.status not in ("complete", "quota") and (came.end or {}).get("code") != "quota_spent":
                raise Different(f"ended as {came.end}")
        rows = sum(came.rows for came in self.answers)
        if rows > (self.rows or rows) or nbytes > (self.bytes or nbytes):
            raise Different(f"{rows} rows, {nbytes} bytes for {self.rows}, {self.bytes}")
        spent = exact and not self.bytes and any(came.status == "quota" for came in self.answers)
        if spent and self.rows and rows + self._batch <= self.rows:
            raise Different(f"{rows} rows in batches of {self._batch} for {self.rows}")

    @property
    def _batch(self) -> int:
        """The most rows of a batch that the budget may have been short of: it is given out in parts, where it suffices
        for the smallest of them."""
        assert self.rows is not None
        asked = self.rows if self.flights else self.asked.batch_rows or self.rows
        return asked if self.rows >= self.chunk // 512 else 1

    async def _read(self) -> Came:
        if self.rng.random() < 0.3:
            self.flights += 1
            return await over_flight(self.over.front, self.ticket, self.world.name)
        given = self.asked.parameters | ({"blocks": "all"} if self.asked.blocks else {})
        return await over_http(self.over.client, self.ticket, given)

    def _limit(self, more: Sequence[Atom]) -> None:
        (rule,) = self.found.policy.permissions
        kept = [one for one in rule.constraints if not (isinstance(one, Atom) and one.left.endswith("rowQuota"))]
        limited = replace(rule, constraints=(*kept, *more))
        self.found = replace(self.found, policy=replace(self.found.policy, permissions=(limited,)))
