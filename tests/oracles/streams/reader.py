"""A reader: an agreement on a dataset, a request under it, and what must come, whichever way it is asked.

A read is `begun`, of the whole or of blocks in an order, and gone on with in steps: each gives the first of the rows
that are left, and after a break one goes on from the last cursor.
"""

from __future__ import annotations

import collections
import hmac
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from connector.dataplane import job_builder
from policies.model import Atom
from tests.oracles.streams import answers, terms
from tests.oracles.streams.answers import REFUSED, Came, Different, Pause
from tests.oracles.streams.columns import BLOB
from tests.oracles.streams.space import Space, World
from tests.oracles.streams.terms import PLACE, Read, Terms, quoted
from tests.support import provider
from tests.support.provider import CONSUMER

_SECRET = b"m" * 32  # the provider's, of masks
FILES = ("csv", "parquet")


class Reader:
    """A policy, a request, and what must come."""

    consumer = CONSUMER

    def __init__(self, over: Space, world: World, found: Terms, asked: Read, rng: random.Random) -> None:
        self.over, self.world, self.found, self.asked, self.rng = over, world, found, asked, rng
        whole = world.con.sql(terms.select(found, asked, limited=not asked.blocks)).to_arrow_table()
        self.places = whole.column(PLACE).to_numpy()
        self.expected = whole.drop_columns([PLACE])
        self.agreement = self.ticket = ""
        self.met: collections.Counter[str] = collections.Counter()

    @classmethod
    def drawn(cls, over: Space, world: World, rng: random.Random, consumer: str = CONSUMER) -> Self:
        """A reader of this dataset; few that let nothing through."""
        key = hmac.digest(_SECRET, consumer.encode(), "sha256")
        for _ in range(4):
            found = terms.terms(rng, world.columns, rows=world.files.rows, key=key)
            asked = cls.fitting(terms.read(rng, found, world.columns, rows=world.files.rows), world, rng)
            one = cls(over, world, found, asked, rng)
            if len(one.expected) or rng.random() < 0.1:
                break
        one.consumer = consumer
        return one

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        """The request, without what cannot be asked for this way."""
        return asked

    @property
    def told(self) -> str:
        """The case in words, and how its last reads ended."""
        ended = [
            f"    {one.kind} {one.outcome} {one.code} {one.reason} {one.detail}"
            for one in self.over.running.events
            if one.agreement == self.agreement and one.kind != "ReadStarted"
        ]
        return "\n".join((
            f"    {self.world.files.how}", f"    {[(one.name, one.type) for one in self.world.columns]}",
            f"    {self.asked}", f"    {terms.select(self.found, self.asked, limited=True)[:1500]}", *ended[-4:],
        ))  # fmt: skip

    def words(self) -> Iterator[str]:
        """What there is to it."""
        found, asked, files = self.found, self.asked, self.world.files
        shown = [one for one in self.world.columns if one.name in found.shown]
        met = {
            "row filters": found.filters,
            "alternatives in filters": any("OR" in one or "coalesce" in one for one in found.filters),
            "a condition": asked.where,
            "hidden columns": len(shown) < len(self.world.columns),
            "blobs": any(one.of.family == BLOB for one in shown),
            "limit_rows": asked.most,
            f"codec {asked.codec}": asked.codec in ("lz4", "zstd"),
            f"files: {files.kind}": files.kind != "parquet",
            f"made as {files.made}": True,
            "several files": len(files.paths) > 1,
            **{f"option {name}": True for name in files.options},
            f"blocks: {asked.blocks}": asked.blocks,
            "several readers": asked.readers > 1,
            "no rows": not len(self.expected),
            "names of places": self.world.reserved,
        }
        yield from (word for word, there in met.items() if there)
        yield from (f"mask {method}" for method in set(found.masks.values()))
        yield from self.met

    async def run(self) -> str:
        """Whether it was answered, or rightly refused. Different where anything is not as it must be."""
        await self.agree()
        self.over.running.reads.origin.prepared = self.over.prepared if self.asked.twice else None
        with mock.patch.object(job_builder, "_choose_batch_bytes", return_value=self.asked.batch_bytes):
            return await self.ask()

    async def ask(self) -> str:
        """Ask, and compare."""
        raise NotImplementedError

    async def agree(self) -> None:
        """Sign its agreement."""
        self.agreement = await self.over.agree(self.world, self.found, self.consumer)
        self.ticket = self.over.running.ticket(self.agreement, consumer=self.consumer)

    def limit(self, *more: Atom) -> None:
        """These words, too, and no other quota."""
        (rule,) = self.found.policy.permissions
        kept = [one for one in rule.constraints if not (isinstance(one, Atom) and one.left.endswith("rowQuota"))]
        limited = replace(rule, constraints=(*kept, *more))
        self.found = replace(self.found, policy=replace(self.found.policy, permissions=(limited,)))

    # what can be asked for

    async def plan(self) -> dict[str, Any] | Came:
        """The blocks as the owner has them, which are ours; or the refusal."""
        form = {"columns": list(self.asked.columns), "where": self.asked.where}
        headers = {"authorization": f"Bearer {self.ticket}"}
        answer = await self.over.door.client.post("/data/v1/streams", json=form, headers=headers)
        if answer.status_code != 200:
            return Came(end={**answer.json(), "status": REFUSED})
        plan: dict[str, Any] = answer.json()
        ours = [len(one) for one in self.world.blocks]
        if len(plan["blocks"]) != len(ours) or (plan["exact"] and [one["rows"] for one in plan["blocks"]] != ours):
            raise Different(f"blocks {plan['blocks']} for {ours}")
        return plan

    def order(self) -> list[int]:
        """Blocks to ask for, all of them or some."""
        order = list(range(len(self.world.blocks)))
        return self.rng.sample(order, self.rng.randint(1, len(order))) if self._some and order else order

    @property
    def _some(self) -> bool:
        return self.asked.blocks == "some"

    def of_blocks(self, chosen: Sequence[int]) -> pa.Table:
        """What must come of some blocks, in their order."""
        bounds = [self._bounds(number) for number in chosen]
        return pa.concat_tables([self.expected.slice(0, 0), *(self.expected.slice(a, b - a) for a, b in bounds)])

    def _bounds(self, number: int) -> tuple[int, int]:
        block = self.world.blocks[number]
        first, stop = np.searchsorted(self.places, [block.start, block.stop]).tolist()
        return first, stop

    @property
    def sql(self) -> str:
        names = ", ".join(map(quoted, self.asked.columns)) or "*"
        sql = f"SELECT {names} FROM {quoted(provider.OWNER)}.{quoted(self.world.name)}"
        return f"{sql} WHERE {self.asked.where}" if self.asked.where else sql

    # a read

    def begin(self, given: Mapping[str, str] | None = None, order: Sequence[int] | None = None) -> None:
        """Nothing has come yet: of the whole, or of these blocks by the snapshot that is given."""
        self.given, self.chosen, self.done = dict(given or {}), order, False
        self.rest = self.expected if order is None else self.of_blocks(order)
        if order is not None:
            self.given["blocks"] = ",".join(map(str, order)) if self._some and order else "all"
            parts = [self.places[slice(*self._bounds(one))] for one in order]
            self.coming = np.concatenate([np.zeros(0, np.int64), *parts])

    async def step(
        self, way: str = "arrow", *, cut: int | None = None, pause: Pause | None = None, parts: Sequence[fl.Ticket] = ()
    ) -> Came:
        """Read on, until the connection is closed or all is there."""
        came = await self.read(way, cut=cut, pause=pause, parts=parts)
        came.check_first_of(self.rest, batch_rows=self.asked.batch_rows)
        self.take(came)
        return came

    async def read(
        self, way: str, *, cut: int | None = None, pause: Pause | None = None, parts: Sequence[fl.Ticket] = ()
    ) -> Came:
        """What comes one way. `parts`: the endpoints over Flight."""
        door, given = self.over.door, self.asked.parameters | self.given
        if way == "flight":
            return await answers.over_flight(door.front, self.ticket, parts, cut=cut and 1 + cut % 4)
        if way in FILES:
            given.pop("codec", "")
            accept = self.rng.random() < 0.5
            came = await answers.as_file(door.url, self.ticket, given, way, accept=accept)
            return await answers.recorded(self.over.running, came)
        return await answers.over_http(door.client, self.ticket, given, cut=cut, pause=pause)

    def take(self, came: Came) -> None:
        """What is left is less by what came, each batch of it from where it must be."""
        if came.places and self.chosen is not None:
            self._check_places(came)
        self.before, self.rest, self.done = self.rest, self.rest.slice(came.rows), came.status == "complete"
        if came.places:
            self.given["after"] = came.places[-1]["cursor"]

    def _check_places(self, came: Came) -> None:
        """Each batch is of one block, and says so; they come in the order of the list. Of all of them it says none."""
        told = [place["block"] for place in came.places]
        if not self._some:
            wrong = any(block != -1 for block in told)
        else:
            at = len(self.coming) - len(self.rest)
            blocks = self._blocks(self.coming[at : at + came.rows])
            wrong = not np.array_equal(blocks, np.repeat(told, [batch.num_rows for batch in came.batches]))
        if wrong:
            raise Different(f"batches of blocks {told}")

    def back(self, came: Came, number: int) -> None:
        """Go on from behind a batch of what came last."""
        self.rest, self.done = self.before.slice(sum(one.num_rows for one in came.batches[: number + 1])), False
        self.given["after"] = came.places[number]["cursor"]

    def _blocks(self, places: Any) -> Any:
        """The blocks in which these places are."""
        return np.searchsorted([block.stop for block in self.world.blocks], places, "right")

    @property
    def place(self) -> int:
        """Of the last row that has come."""
        return int(self.coming[len(self.coming) - len(self.rest) - 1])

    def after(self, place: int) -> pa.Table:
        """The rows that come after a place."""
        assert self.chosen is not None
        at = self.chosen.index(int(self._blocks(place)))
        first, stop = self._bounds(self.chosen[at])
        seen = int(np.searchsorted(self.places[first:stop], place, "right"))
        return self.of_blocks(self.chosen[at:]).slice(seen)
