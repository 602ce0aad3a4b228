"""A case of an agreement whose rows, bytes or uses end in the middle of what is read under it, by one or several.

What may leave is worked out here from the words of the policy; of a share of rows of which some are hidden, two digits
of their number count, and no unit.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from typing import Any
from unittest import mock

from connector.usage import quotas
from policies.model import Atom
from tests.support import gate
from tests.support.random_case import Case
from tests.support.random_ends import REFUSED, Came, as_file, check_records, over_flight, over_http, recorded
from tests.support.random_reads import Read
from tests.support.random_space import Different, World

_USED_UP = {"count_spent"}


class Budget(Case):
    """What came is the first of the rows, together no more than the budget, and as much as its batches allow."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        rows, nbytes = len(self.expected), self.expected.nbytes
        kinds = self.rng.choice((["rows"], ["rows"], ["bytes"], ["rows", "bytes"], ["share"], ["share", "rows"], []))
        quota = self.rng.randint(1, 2 * rows + 1) if "rows" in kinds else None
        self.share = Decimal(self.rng.randint(1, 10_000)).scaleb(-2) if "share" in kinds else None
        self.rows = min((one for one in (quota, self._part()) if one is not None), default=None)
        self.bytes = self.rng.randint(1, 2 * nbytes + 10_000) if "bytes" in kinds else None
        self.uses = None if kinds and self.rng.random() < 0.8 else self.rng.randint(1, 3)
        self.daily = self.uses is not None and self.rng.random() < 0.4
        self.alone = self.rng.random() < 0.15
        self.chunk = self.rng.choice((1_000_000, 1_000_000, 512, 7))
        self.answers: list[Came] = []
        self.flights = 0
        uses = "ds:queriesPerDay" if self.daily else "odrl:count"
        limits = {
            "ds:rowQuota": quota, "ds:byteQuota": self.bytes, "odrl:percentage": self.share, uses: self.uses,
            "ds:concurrency": 1 if self.alone else None,
        }  # fmt: skip
        self.limit(*(self._most(name, most) for name, most in limits.items() if most is not None))

    def _most(self, name: str, most: int | Decimal) -> Atom:
        less = name != "odrl:percentage" and self.rng.random() < 0.2
        return gate.atom(name, "lt" if less else "lteq", str(most + 1 if less else most))

    def _part(self) -> int | None:
        """The rows of the share."""
        rows = self.world.files.rows
        if self.found.filters:
            rows -= rows % max(10, 10 ** (len(str(rows)) - 2))
        return None if self.share is None else int(rows * self.share / 100)

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        blocks = "all" if asked.blocks else ""
        batch_rows = rng.choice((None, 1, 7, 64))
        return replace(asked, columns=(), where="", most=None, blocks=blocks, batch_rows=batch_rows, twice=False)

    def words(self) -> Iterator[str]:
        yield from super().words()
        met = {
            "rows": self.rows is not None, "bytes": self.bytes, "a share": self.share,
            "uses": self.uses and not self.daily, "uses a day": self.daily,
        }  # fmt: skip
        yield from (f"a budget of {word}" for word, there in met.items() if there)
        yield from {f"{came.form} ended as {came.status}".strip() for came in self.answers}

    async def ask(self) -> str:
        running = self.over.running
        with (
            mock.patch.object(quotas, "_CHUNK_ROWS", self.chunk),
            mock.patch.object(quotas, "_CHUNK_BYTES", self.chunk * 256),
        ):
            if at_once := self.rng.random() < 0.5:
                self.answers = list(await asyncio.gather(*(self._read() for _ in range(self.asked.readers + 1))))
            else:
                for _ in range(self.asked.readers + 1):
                    self.answers.append(await self._read())
                    await check_records(running, self.agreement, self.answers)  # and what it has not used goes back
        nbytes = await check_records(running, self.agreement, self.answers)
        self._check(nbytes, at_once=at_once)
        counted = await running.store.read(lambda tx: tx.agreements.get_grant(self.agreement))
        assert counted is not None
        rows = sum(came.rows for came in self.answers)
        if (counted.rows, counted.bytes) != (0 if self.rows is None else rows, nbytes if self.bytes else 0):
            raise Different(f"{rows} rows and {nbytes} bytes have left, counted: {counted.rows} and {counted.bytes}")
        return "equal"

    def _check(self, nbytes: int, *, at_once: bool) -> None:
        refusals = {"quota_spent"} | (_USED_UP if self.uses else set())
        refusals |= {"concurrency"} if self.alone and at_once else set()
        for came in self.answers:
            came.check_first_of(self.expected)
            if came.status not in ("complete", "quota") and (came.end or {}).get("code") not in refusals:
                raise Different(f"ended as {came.end}")
        rows, uses = sum(came.rows for came in self.answers), sum(came.status != REFUSED for came in self.answers)
        over = [self.rows is not None and rows > self.rows, self.bytes and nbytes > self.bytes]
        if any(over) or (self.uses and uses > self.uses):
            raise Different(f"{uses} uses, {rows} rows, {nbytes} bytes for {self.uses}, {self.rows}, {self.bytes}")
        if uses != (self.uses or uses) and any((came.end or {}).get("code") in _USED_UP for came in self.answers):
            raise Different(f"{uses} uses of {self.uses}, and they are spent")
        spent = not at_once and not self.bytes and any(came.status == "quota" for came in self.answers)
        if spent and self.rows is not None and rows + self._batch <= self.rows:
            raise Different(f"{rows} rows in batches of {self._batch} for {self.rows}")

    @property
    def _batch(self) -> int:
        """The most rows of a batch that the budget may have been short of: an eighth of it is a reader's at once."""
        assert self.rows is not None
        asked = self.rows if self.flights else self.asked.batch_rows or self.rows
        return min(asked, max(1, self.rows // 8))

    async def _read(self) -> Came:
        way = self.rng.choices(("flight", "csv", "parquet", "arrow"), (3, 1, 1, 5))[0]
        if way == "flight":
            self.flights += 1
            return await over_flight(self.over.door.front, self.ticket, self.world.name)
        given = self.asked.parameters | ({"blocks": "all"} if self.asked.blocks else {})
        if way == "arrow":
            return await over_http(self.over.door.client, self.ticket, given)
        given.pop("codec", "")
        came = await as_file(self.over.door.url, self.ticket, given, way)
        return await recorded(self.over.running, came)
