"""A case of training jobs: the loader's order by seed, epoch and window, shared by readers that stop, go on and change.

What must come is `tests.load.resume.sequence`'s, over the rows that plain DuckDB lets through of each block.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import hanse
import numpy as np
import pyarrow as pa
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset
from hanse.errors import BadInput
from hanse.loaders import Loader, merge

from tests.client.support import connector
from tests.load.resume.sequence import Epoch, Share, ordered
from tests.oracles.streams.answers import Different
from tests.oracles.streams.reader import Reader
from tests.oracles.streams.space import World
from tests.oracles.streams.terms import Read
from tests.support import provider, streamed


class Loaded(Reader):
    """Each reader gives the rows of its share, in their order, from where it or others were."""

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        once = {name.casefold(): name for name in asked.columns}
        twice = asked.twice or asked.readers > 1
        return replace(asked, columns=tuple(once.values()), most=None, blocks="", batch_rows=None, twice=twice)

    async def ask(self) -> str:
        return await asyncio.to_thread(self._loaded)

    def _loaded(self) -> str:
        rng = self.rng
        seed = rng.choice((None, rng.randrange(2**32), rng.randrange(2**32)))
        self.options: dict[str, Any] = {
            "columns": list(self.asked.columns), "where": self.asked.where, "codec": self.asked.codec, "seed": seed,
            "epoch": rng.randrange(3), "window": 0 if seed is None else rng.choice((0, 0, 1, 7, 100, 5_000)),
            "batch_size": rng.choice((None, 1 + len(self.expected) // 20, 7 + len(self.expected) // 50, 4_096)),
            "prefetch_bytes": rng.choice((1, 2**18, 2**25)),
        }  # fmt: skip
        with self._dataset() as dataset:
            self.datasets = [dataset] * rng.choice((1, 1, 2))
            if self.world.reserved:
                return self._refused()
            self._epoch()
        return "equal"

    def _epoch(self) -> None:
        """An epoch that some readers begin, and the same or others end."""
        epoch, state, parts = Epoch(self._places(self.options["epoch"])), "", self.rng.randint(1, 4)
        for left in range(self.rng.choice((0, 1, 1, 2)), -1, -1):
            shares = epoch.dealt(parts)
            states = [self._stopping(number, shares, state, whole=not left) for number in range(parts)]
            if left and self.rng.random() < 0.5:  # each goes on from its own
                states = [self._stopping(number, shares, states[number], whole=False) for number in range(parts)]
            epoch.collect(shares)
            if left:
                self.met["other readers go on"] += 1
                state, parts = json.dumps(merge(list(map(json.loads, states)))), self.rng.randint(1, 5)

    def _stopping(self, part: int, shares: list[Share], state: str, *, whole: bool) -> str:
        """A reader that stops after some batches, or reads all; its state then."""
        loader = Loader(self.datasets, part=part, parts=len(shares), **self.options)
        if state:
            loader.load_state_dict(json.loads(state))
        most = None if whole else self.rng.choice((0, 1, 2, 5, 20))
        self._read(loader, shares[part], most)
        told = json.dumps(loader.state_dict())
        if whole and self.rng.random() < (0.7 if self.asked.twice else 0.2):
            epoch = self.options["epoch"] + 1
            loader.set_epoch(epoch)
            self._read(loader, Epoch(self._places(epoch)).dealt(len(shares))[part], None)
        return told

    def _read(self, loader: Loader, share: Share, most: int | None) -> None:
        found: list[pa.RecordBatch] = []
        with closing(iter(loader)) as batches:
            while most is None or len(found) < most:
                if (batch := next(batches, None)) is None:
                    break
                found.append(batch)
        self._check(pa.Table.from_batches(found, loader.schema), share, whole=most is None)
        size = self.options["batch_size"]
        if size and any(one.num_rows != size for one in found[:-1]):
            raise Different(f"batches of {[one.num_rows for one in found]} rows for {size}")

    def _check(self, found: pa.Table, share: Share, *, whole: bool) -> None:
        coming = share.coming
        if len(found) > len(coming) or (whole and len(found) < len(coming)):
            raise Different(f"{len(found)} rows for {len(coming)} with {self.options}")
        if wrong := streamed.unlike(found, self.expected.take(pa.array(coming[: len(found)], pa.int64()))):
            raise Different(f"{wrong} with {self.options}")
        share.given += len(found)

    def _places(self, epoch: int) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
        """The numbers of the rows at each place of an epoch."""
        bounds = [np.searchsorted(self.places, (one.start, one.stop)) for one in self.world.blocks]
        blocks = [np.arange(first, stop, dtype=np.int64) for first, stop in bounds] * len(self.datasets)
        return ordered(blocks, seed=self.options["seed"], epoch=epoch, window=self.options["window"])

    def _refused(self) -> str:
        try:
            Loader(self.datasets, **self.options)
        except BadInput as error:
            if error.code == "not_divisible":
                return "refused (not_divisible)"
            raise
        raise Different("a loader of rows that have no places")

    @contextmanager
    def _dataset(self) -> Iterator[Dataset]:
        """The dataset as the SDK sees it: the consumer's connector only hands out tickets."""
        number = self.agreement.rsplit(":", 1)[-1]
        address = {
            "endpoint": f"{self.over.door.url}/data/v1", "ticket": self.ticket, "expires": time.time() + 600,
        }  # fmt: skip
        name = Name(provider.OWNER, self.world.name)
        access = TransferAccess(name, f"urn:hanse:{provider.OWNER}:{self.world.name}", self.agreement, number, "")
        routes = {("GET", f"/transfers/{number}/address"): address}
        with connector(routes) as scripted, hanse.connect(scripted.url, "secret") as space:
            yield Dataset(space, access)
