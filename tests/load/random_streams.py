"""Random streams over real HTTP against plain DuckDB: values, types, order, totals and cursors, none may differ.

    python -m tests.load.random_streams [--count 2000] [--first 0]

Ten seeds in a row share a dataset of random Parquet files (`random_files`); each has a policy and a request of its own
(`random_reads`). Blocks and batches are made small, so that small files have many. A product that refused much would
prove nothing, nor would one that never took the way that is to be looked at: what was met is counted, and the exit
status is 0 if no answer differed and fewer than a tenth were refused.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import hmac
import logging
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from connector.dataplane import blocks, jobs, stream
from connector.dataplane.prepared import PreparedStreams
from connector.datasets import splits
from connector.errors import HanseError
from connector.query.job import Job
from connector.query.placed import Placed
from connector.query.spans import Scattered
from connector.query.stored import Stored
from tests.support import data, provider, random_files, random_reads, streamed
from tests.support.provider import CONSUMER, Provider
from tests.support.random_files import BLOB, Files
from tests.support.random_reads import PLACE, Read, Seen, Terms
from tests.support.streamed import Streamed

EACH = 10  # seeds that share a dataset
_SECRET = b"m" * 32  # the provider's, of masks
_ROWS = (40, 200)  # of a block
_BYTES = 2**20


class Different(Exception):
    """What differs."""


@dataclass
class World:
    """A dataset that is registered, and the same rows in plain DuckDB, each with its place."""

    files: Files
    name: str
    columns: tuple[Seen, ...]
    con: duckdb.DuckDBPyConnection
    profile: dict[str, Any]

    @property
    def reserved(self) -> bool:
        """Whether a column has a name that the engine has for a row's place."""
        return any(one.name.lower() in ("file_row_number", "file_index", "filename") for one in self.columns)

    @property
    def blocks(self) -> list[range]:
        """The places of the rows of each block: rows of one file, of whole row groups unless these are large."""
        groups = [pq.read_metadata(path) for path in self.files.paths]
        sizes = [[(one.row_group(n).num_rows, one.row_group(n).total_byte_size) for n in range(one.num_row_groups)]
                 for one in groups]  # fmt: skip
        before = np.cumsum([0, *(one.num_rows for one in groups)]).tolist()
        found = ((before[one.file] + one.first, one.rows) for one in splits.cut(sizes))
        return [range(first, first + rows) for first, rows in found]


@dataclass
class Ways:
    """Which ways through the product reads have taken."""

    jobs: list[Job] = field(default_factory=list)
    scattered: int = 0
    served: int = 0

    @contextmanager
    def seen(self, running: Provider, prepared: PreparedStreams) -> Iterator[None]:
        """While the block runs."""
        run, serve = running.pool.run, prepared.serve

        def asked(job: Job, **more: Any) -> Any:
            self.jobs.append(job)
            return run(job, **more)

        def served(*given: Any, **more: Any) -> Any:
            self.served += 1
            return serve(*given, **more)

        def scattered(*given: Any) -> Scattered:
            self.scattered += 1
            return Scattered(*given)

        with (
            mock.patch.object(running.pool, "run", asked),
            mock.patch.object(prepared, "serve", served),
            mock.patch.object(blocks, "Scattered", scattered),
        ):
            yield

    def words(self, world: World) -> Iterator[str]:
        """What the reads of the last seed were."""
        for job in self.jobs:
            yield "rows as they are" if job.scan else "rows by the engine"
            whole = job.given_on and job.batch_rows is None and job.codec == "none"
            if whole and (names := Placed(world.files.paths, job.given_on, Stored()).names):
                yield f"places, {'by blocks' if job.only else 'whole'}"
                yield from ["places of several columns"] if len(names) > 1 else []
        if self.scattered:
            yield "values left in files, " + ("rows as they are" if self.jobs[0].scan else "after the engine")
        yield from ["prepared"] if self.served else []
        self.jobs, self.scattered, self.served = [], 0, 0


class Space:
    """A provider that is served, and its datasets one after the other."""

    def __init__(self, running: Provider, prepared: PreparedStreams, client: httpx2.AsyncClient, folder: Path) -> None:
        self.running, self.prepared, self.client, self.folder = running, prepared, client, folder
        self.ways = Ways()
        self._last: tuple[int, World | None] = (-1, None)

    async def world(self, number: int) -> World | None:
        """The dataset of some seeds; None where there is none, because its files are refused."""
        if self._last[0] != number:
            self.close()
            self._last = number, await self._made(number)
        return self._last[1]

    def close(self) -> None:
        """Remove the dataset's files."""
        number, world = self._last
        if world is not None:
            world.con.close()
        shutil.rmtree(self.folder / str(number), ignore_errors=True)

    async def _made(self, number: int) -> World | None:
        folder = self.folder / str(number)
        folder.mkdir()
        files = random_files.write(random.Random(f"files {number}"), folder)
        con = duckdb.connect(config={"threads": 1})
        con.execute("SET TimeZone = 'UTC'")
        place = random_reads.quoted(PLACE)
        try:
            con.execute(f"CREATE TABLE raw AS SELECT row_number() OVER () - 1 AS {place}, * FROM read_parquet($1)",
                        [list(files.paths)])  # fmt: skip
        except duckdb.Error:
            return None
        types = con.execute("SELECT column_name, column_type FROM (DESCRIBE raw)").fetchall()[1:]
        columns = tuple(Seen(name, kind, one) for (name, kind), one in zip(types, files.columns, strict=True))
        try:
            profile = await self.running.profile(data.relation("parquet", folder, folder))
        except HanseError:
            if not files.refused:
                raise
            return None
        if files.refused:
            raise Different("names that differ in case only were registered")
        return World(files, f"d{number}", columns, con, profile)

    async def agree(self, world: World, found: Terms) -> str:
        """Sign an agreement; the header that its reader sends."""
        number = f"{random.getrandbits(64):016x}"
        relation = data.relation("parquet", world.files.folder, world.files.folder)
        await self.running.store.write(
            lambda tx: provider.insert(
                tx, found.policy, number, name=world.name, relation=relation, profile=world.profile
            )
        )
        return f"Bearer {self.running.ticket(f'urn:agreement:{number}')}"


@asynccontextmanager
async def space(folder: Path) -> AsyncIterator[Space]:
    """A provider with small blocks."""
    prepared = PreparedStreams(folder / "streams", quota=256 * 2**20, sensitive=True)
    (folder / "data").mkdir()
    with (
        mock.patch.object(splits, "ROWS_MIN", _ROWS[0]),
        mock.patch.object(splits, "ROWS_MAX", _ROWS[1]),
        mock.patch.object(splits, "BYTES_MIN", _BYTES),
        mock.patch.object(stream, "BATCH_BYTES", 2**16),
    ):
        async with (
            provider.running(folder, rows=10, prepared=prepared) as running,
            httpx2.AsyncClient(base_url=running.url, timeout=60) as client,
        ):
            found = Space(running, prepared, client, folder / "data")
            with found.ways.seen(running, prepared):
                yield found
            found.close()


async def check(over: Space, seed: int) -> list[str]:
    """What became of one seed, and what was met on the way. Different where an answer is not as it must be."""
    world = await over.world(seed // EACH)
    if world is None:
        return ["no dataset"]
    case = drawn(over, world, random.Random(f"read {seed}"))
    try:
        outcome = await case.run()
    except Different as error:
        raise Different(f"{error}\n{case.told}") from error
    return [outcome, *sorted({*case.words(), *over.ways.words(world)})]


def drawn(over: Space, world: World, rng: random.Random) -> Case:
    """A case of this dataset; few that let nothing through."""
    key = hmac.digest(_SECRET, CONSUMER.encode(), "sha256")
    for _ in range(4):
        found = random_reads.terms(rng, world.columns, rows=world.files.rows, key=key)
        asked = random_reads.read(rng, found, world.columns, rows=world.files.rows)
        case = Case(over, world, found, asked, rng)
        if len(case.expected) or rng.random() < 0.1:
            break
    return case


class Case:
    """A policy, a request, and what must come."""

    def __init__(self, over: Space, world: World, found: Terms, asked: Read, rng: random.Random) -> None:
        self.over, self.world, self.found, self.asked, self.rng = over, world, found, asked, rng
        whole = world.con.sql(random_reads.select(found, asked, limited=not asked.blocks)).to_arrow_table()
        self.places = whole.column(PLACE).to_numpy()
        self.expected = whole.drop_columns([PLACE])
        self.headers: dict[str, str] = {}
        self.went_on = False

    @property
    def told(self) -> str:
        """The case in words."""
        return (
            f"    {self.world.files.how}\n    {[(one.name, one.type) for one in self.world.columns]}\n"
            f"    {self.asked}\n    {random_reads.select(self.found, self.asked, limited=True)[:1500]}"
        )

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
            "several files": len(self.world.files.paths) > 1,
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
        """Ask, and compare; whether it was answered, or rightly refused."""
        self.headers = {"authorization": await self.over.agree(self.world, self.found)}
        self.over.running.reads._prepared = self.over.prepared if self.asked.twice else None
        with mock.patch.object(jobs, "_batch_bytes", return_value=self.asked.batch_bytes):
            if self.asked.blocks and self.world.reserved:
                return await self._without_places()
            return await (self._by_blocks() if self.asked.blocks else self._whole())

    async def _whole(self) -> str:
        await self._read(self.expected)
        return "equal"

    async def _without_places(self) -> str:
        """A dataset whose rows have no places: no plan; all blocks are one stream."""
        answer = await self.over.client.post("/data/v1/streams", json={}, headers=self.headers)
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
        return "equal"

    async def _planned(self) -> dict[str, Any]:
        form = {"columns": list(self.asked.columns), "where": self.asked.where}
        answer = await self.over.client.post("/data/v1/streams", json=form, headers=self.headers)
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
        if hidden := next(filter(None, map(streamed.hides, found.batches)), ""):
            raise Different(f"more than its values is in {hidden}")
        most = self.asked.batch_rows
        if most and any(one.num_rows > most for one in found.batches):
            raise Different(f"batches of {[one.num_rows for one in found.batches]} rows for {most}")

    async def _get(self, given: dict[str, str]) -> httpx2.Response:
        return await self.over.client.get("/data/v1", params=self.asked.parameters | given, headers=self.headers)

    def _expect_refused(self, answer: httpx2.Response, code: str) -> None:
        if answer.status_code == 200 or answer.json()["code"] != code:
            raise Different(f"expected {code}, came {answer.status_code}: {answer.text[:200]}")


async def run(numbers: Sequence[int]) -> collections.Counter[str]:
    """Carry out these seeds; what became of them, and what was met."""
    counted: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        async with space(Path(folder)) as over:
            for number, seed in enumerate(numbers, 1):
                try:
                    counted.update(await check(over, seed))
                except Exception as error:  # noqa: BLE001  whatever breaks is a wrong answer, too
                    counted["different"] += 1
                    print(f"seed {seed}: {type(error).__name__}: {error}", flush=True)
                if number % 200 == 0:
                    print(
                        f"{number} reads, {time.monotonic() - begun:.0f} s, {counted['different']} different",
                        flush=True,
                    )
    return counted


def main() -> int:
    """Run them all and show what was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    counted = asyncio.run(run(range(asked.first, asked.first + asked.count)))
    for word, times in sorted(counted.items(), key=lambda one: -one[1]):
        print(f"  {times:6d}  {word}")
    refused = sum(times for word, times in counted.items() if word.startswith(("refused", "no dataset")))
    return 1 if counted["different"] or refused * 10 > counted["equal"] else 0


if __name__ == "__main__":
    sys.exit(main())
