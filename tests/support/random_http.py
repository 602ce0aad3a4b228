"""A case over HTTP: whole, by blocks, gone on with after a cursor, cut off at so many rows."""

from __future__ import annotations

import asyncio
import collections
from collections.abc import Iterator, Sequence
from typing import Any

import httpx2
import numpy as np
import pyarrow as pa

from tests.support import streamed
from tests.support.random_case import Case
from tests.support.random_space import Different
from tests.support.streamed import Streamed


class OverHttp(Case):
    """Asks as the documentation has it, and compares."""

    other_forms = False

    def words(self) -> Iterator[str]:
        yield from super().words()
        yield from ["other forms"] if self.other_forms else []

    async def ask(self) -> str:
        if self.asked.blocks and self.world.reserved:
            return await self._without_places()
        return await (self._by_blocks() if self.asked.blocks else self._whole())

    async def _whole(self) -> str:
        await self._read(self.expected)
        if self.asked.twice and not self.asked.most:
            await self._in_other_forms()
            await self._read(self.expected)
        return "equal"

    async def _in_other_forms(self) -> None:
        """What is kept of one form is not given for another, whose columns come in another order, say."""
        for _ in range(2):
            order = self.rng.sample(range(len(self.asked.columns)), len(self.asked.columns))
            expected = self.expected.select(order) if order else self.expected
            columns = ",".join(self.asked.columns[number] for number in order)
            form = {"codec": self.rng.choice(("none", "lz4", "zstd")), "digest": self.rng.choice(("xxh3", "sha256"))}
            await self._read(expected, **form, columns=columns)
            self.other_forms = True

    async def _without_places(self) -> str:
        """A dataset whose rows have no places: no plan; all blocks are one stream."""
        answer = await self.over.door.client.post("/data/v1/streams", json={}, headers=self._headers)
        self._expect_refused(answer, "not_divisible")
        if self.asked.blocks == "some" or self.asked.most:
            return "refused (not_divisible)"
        await self._read(self.expected, blocks="all")
        return "equal"

    async def _by_blocks(self) -> str:
        plan = await self._planned()
        count = len(plan["blocks"])
        if not count:
            return "no blocks"
        chosen = self.rng.sample(range(count), self.rng.randint(1, count))
        given = {"blocks": "all", "snapshot": plan["snapshot"]}
        if self.asked.blocks == "some":
            given["blocks"] = ",".join(map(str, chosen))
        order = range(count) if self.asked.blocks == "all" else chosen
        expected = self._of_blocks(order)
        if self.asked.most is not None and self.asked.most < len(expected):
            await self._limited(expected, given)
            return "equal"
        found = await self._read(expected, **given)
        self._check_places(found, list(order))
        if self.asked.cut is not None and found.batches:
            await self._go_on(found, expected, given)
        if self.asked.twice and self.asked.blocks == "some":
            await self._in_other_orders(count, given)
        return "equal"

    async def _in_other_orders(self, count: int, given: dict[str, str]) -> None:
        """As later epochs ask for blocks: for some that were read before, and for others."""
        for _ in range(2):
            order = self.rng.sample(range(count), self.rng.randint(1, count))
            expected = self._of_blocks(order)
            if self.asked.most is not None and self.asked.most < len(expected):
                continue
            found = await self._read(expected, **given | {"blocks": ",".join(map(str, order))})
            self._check_places(found, order)
            if self.asked.cut is not None and found.batches:
                await self._go_on(found, expected, given | {"blocks": ",".join(map(str, order))})

    async def _planned(self) -> dict[str, Any]:
        form = {"columns": list(self.asked.columns), "where": self.asked.where}
        answer = await self.over.door.client.post("/data/v1/streams", json=form, headers=self._headers)
        if answer.status_code != 200:
            raise Different(f"no plan: {answer.text}")
        plan: dict[str, Any] = answer.json()
        if len(plan["blocks"]) != len(self.world.blocks):
            raise Different(f"{len(plan['blocks'])} blocks for {len(self.world.blocks)}")
        if plan["exact"] and [one["rows"] for one in plan["blocks"]] != [len(one) for one in self.world.blocks]:
            raise Different("a plan with other rows than there are")
        return plan

    def _of_blocks(self, chosen: Sequence[int]) -> pa.Table:
        """What must come of some blocks, in their order."""
        bounds = [self._bounds(number) for number in chosen]
        return pa.concat_tables([self.expected.slice(0, 0), *(self.expected.slice(a, b - a) for a, b in bounds)])

    def _bounds(self, number: int) -> tuple[int, int]:
        block = self.world.blocks[number]
        first, stop = np.searchsorted(self.places, [block.start, block.stop]).tolist()
        return first, stop

    def _check_places(self, found: Streamed, order: Sequence[int]) -> None:
        """Each batch is of one block, and says so; they come in the order of the list. Of all of them it says none."""
        if self.asked.blocks == "all":
            if any(place["block"] != -1 for place in found.places):
                raise Different("a batch of all blocks is of one")
            return
        counted: collections.Counter[int] = collections.Counter()
        for batch, place in zip(found.batches, found.places, strict=True):
            counted[place["block"]] += batch.num_rows
        wanted = {one: stop - first for one in order for first, stop in [self._bounds(one)] if stop > first}
        if list(counted.items()) != list(wanted.items()):
            raise Different(f"rows of blocks {dict(counted)} for {wanted}")

    async def _go_on(self, found: Streamed, expected: pa.Table, given: dict[str, str]) -> None:
        """After a batch: exactly the rows that are left, and once more from there."""
        assert self.asked.cut is not None
        at = int(self.asked.cut * len(found.batches))
        rest = expected.slice(sum(one.num_rows for one in found.batches[: at + 1]))
        after = await self._read(rest, **given, after=found.places[at]["cursor"])
        self.went_on = True
        if after.batches:
            last = rest.slice(after.batches[0].num_rows)
            await self._read(last, **given, after=after.places[0]["cursor"])

    async def _limited(self, expected: pa.Table, given: dict[str, str]) -> None:
        """More than was asked for at most: what comes is the first of it, and the end says so."""
        answer = await self._get(given)
        if answer.status_code != 200:
            self._expect_refused(answer, "rows_limit")
            return
        found = streamed.parse(answer.content)
        assert self.asked.most is not None
        if found.end["status"] != "error" or found.end["code"] != "rows_limit" or len(found.rows) > self.asked.most:
            raise Different(f"ended as {found.end} where at most {self.asked.most} rows were asked for")
        self._compare(found, expected.slice(0, len(found.rows)))

    async def _read(self, expected: pa.Table, **given: str) -> Streamed:
        """The answer, once it is as it must be: for each of its readers, and once more where it is asked for twice."""
        answers = list(await asyncio.gather(*(self._get(given) for _ in range(self.asked.readers))))
        if self.asked.twice:
            answers.append(await self._get(given))
        for answer in answers:
            if answer.status_code != 200:
                raise Different(f"refused: {answer.text}")
            found = streamed.parse(answer.content)
            if found.end["status"] != "complete":
                raise Different(f"ended as {found.end}")
            self._compare(found, expected)
        return found

    def _compare(self, found: Streamed, expected: pa.Table) -> None:
        if wrong := found.untrue() or streamed.unlike(found.rows, expected):
            raise Different(wrong)
        self.check_batches(found.batches)

    async def _get(self, given: dict[str, str]) -> httpx2.Response:
        return await self.over.door.client.get("/data/v1", params=self.asked.parameters | given, headers=self._headers)

    @property
    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.ticket}"}

    def _expect_refused(self, answer: httpx2.Response, code: str) -> None:
        if answer.status_code == 200 or answer.json()["code"] != code:
            raise Different(f"expected {code}, came {answer.status_code}: {answer.text[:200]}")
