"""One case of random streams: a policy, a request, and what must come of it, whichever way it is asked."""

from __future__ import annotations

import hmac
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Self
from unittest import mock

import pyarrow as pa

from connector.dataplane import job_builder
from policies.model import Atom
from tests.support import random_reads, streamed
from tests.support.provider import CONSUMER
from tests.support.random_files import BLOB
from tests.support.random_reads import PLACE, Read, Terms
from tests.support.random_space import Different, Space, World

_SECRET = b"m" * 32  # the provider's, of masks


class Case(ABC):
    """A policy, a request, and what must come."""

    consumer = CONSUMER

    def __init__(self, over: Space, world: World, found: Terms, asked: Read, rng: random.Random) -> None:
        self.over, self.world, self.found, self.asked, self.rng = over, world, found, asked, rng
        whole = world.con.sql(random_reads.select(found, asked, limited=not asked.blocks)).to_arrow_table()
        self.places = whole.column(PLACE).to_numpy()
        self.expected = whole.drop_columns([PLACE])
        self.agreement = self.ticket = ""
        self.went_on = False

    @classmethod
    def drawn(cls, over: Space, world: World, rng: random.Random, consumer: str = CONSUMER) -> Self:
        """A case of this dataset; few that let nothing through."""
        key = hmac.digest(_SECRET, consumer.encode(), "sha256")
        for _ in range(4):
            found = random_reads.terms(rng, world.columns, rows=world.files.rows, key=key)
            asked = cls.fitting(random_reads.read(rng, found, world.columns, rows=world.files.rows), world, rng)
            case = cls(over, world, found, asked, rng)
            if len(case.expected) or rng.random() < 0.1:
                break
        case.consumer = consumer
        return case

    @property
    def told(self) -> str:
        """The case in words."""
        return (
            f"    {self.world.files.how}\n    {[(one.name, one.type) for one in self.world.columns]}\n"
            f"    {self.asked}\n    {random_reads.select(self.found, self.asked, limited=True)[:1500]}"
        )

    @property
    def ended(self) -> str:
        """How its reads ended, the last of them."""
        told = [
            one for one in self.over.running.events if one.agreement == self.agreement and one.kind != "ReadStarted"
        ]
        return "\n".join(f"    {one.kind} {one.outcome} {one.code} {one.reason} {one.detail}" for one in told[-4:])

    def words(self) -> Iterator[str]:
        """What there is to it."""
        found, asked = self.found, self.asked
        shown = [one for one in self.world.columns if one.name in found.shown]
        met = {
            "row filters": found.filters,
            "alternatives in filters": any("OR" in one or "coalesce" in one for one in found.filters),
            "a condition": asked.where,
            "hidden columns": len(shown) < len(self.world.columns),
            "blobs": any(one.of.family == BLOB for one in shown),
            "a quota": found.quota,
            "limit_rows": asked.most,
            "batch_rows": asked.batch_rows,
            f"codec {asked.codec}": asked.codec in ("lz4", "zstd"),
            f"files: {self.world.files.kind}": self.world.files.kind != "parquet",
            f"made as {self.world.files.made}": True,
            "several files": len(self.world.files.paths) > 1,
            **{f"option {name}": True for name in self.world.files.options},
            "many columns": len(self.world.columns) > 20,
            f"blocks: {asked.blocks}": asked.blocks,
            "a cursor": self.went_on,
            "a second pass": asked.twice,
            "several readers": asked.readers > 1,
            "no rows": not len(self.expected),
            "names of places": self.world.reserved,
        }
        yield from (word for word, there in met.items() if there)
        yield from (f"mask {method}" for method in set(found.masks.values()))

    async def run(self) -> str:
        """Whether it was answered, or rightly refused. Different where anything is not as it must be."""
        await self.agree()
        self.over.running.reads.origin.prepared = self.over.prepared if self.asked.twice else None
        with mock.patch.object(job_builder, "_choose_batch_bytes", return_value=self.asked.batch_bytes):
            return await self.ask()

    async def agree(self) -> None:
        """Sign its agreement."""
        self.agreement = await self.over.agree(self.world, self.found, self.consumer)
        self.ticket = self.over.running.ticket(self.agreement, consumer=self.consumer)

    def limit(self, *more: Atom) -> None:
        """These words, too, and no other quota."""
        (rule,) = self.found.policy.permissions
        kept = [one for one in rule.constraints if not (isinstance(one, Atom) and one.left.endswith("rowQuota"))]
        limited = replace(rule, constraints=(*kept, *more))
        self.found = replace(self.found, policy=replace(self.found.policy, permissions=(limited,)), quota=False)

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        """The request, without what cannot be asked for this way."""
        return asked

    @abstractmethod
    async def ask(self) -> str:
        """Ask, and compare."""

    def check_batches(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Different where they have more in their bytes than values, or too many rows."""
        if hidden := next(filter(None, map(streamed.hides, batches)), ""):
            raise Different(f"more than its values is in {hidden}")
        most = self.asked.batch_rows
        if most and any(one.num_rows > most for one in batches):
            raise Different(f"batches of {[one.num_rows for one in batches]} rows for {most}")
