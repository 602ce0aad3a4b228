"""A case of several passes of one read: before one of them, or while its rows come, something changes.

The agreement is revoked or its time ends, here or in another process; the dataset has a new version; a file of it is
touched, written over, replaced, cut, made longer or removed. What is prepared by then must not be served any more, and
a new version's rows are the only ones that are.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow as pa
import pyarrow.flight as fl

from connector.dataplane.flight import flight_queries
from connector.usage import grants
from policies.model import Atom, Literal
from policies.vocabulary import expand
from tests.support import gate, provider
from tests.support.random_breaks import at_check
from tests.support.random_ends import REFUSED, Came, as_file, at_endpoint, endpoints, over_http, recorded
from tests.support.random_http import OverHttp
from tests.support.random_reads import Read
from tests.support.random_space import Different, World

_DAY = 86_400
_ENDS, _LATER = 3 * _DAY, 8 * _DAY  # when the time of an agreement is over, and when it surely was
_FILE = {"version_changed"}  # as a read is refused where a file has changed
_BROKEN = _FILE | {"engine_failed", "computation_failed", "source_unreadable"}


@dataclass(slots=True)
class Change:
    """What happens. `refused` and `stopped`: the codes of what is asked for after it, and of what is under way."""

    name: str
    do: Callable[[], None]  # in any thread
    refused: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)


class Between(OverHttp):
    """Two to four passes, each whole or rightly none."""

    met = way = ended_as = ""
    copy: World
    newer: OverHttp | None = None

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        blocks = "" if world.reserved else rng.choice(("", "all", "some", "some"))
        whole = replace(asked, columns=(), where="") if rng.random() < 0.5 else asked
        return replace(whole, most=None, blocks=blocks, twice=rng.random() < 0.8, readers=1)

    def words(self) -> Iterator[str]:
        yield from super().words()
        yield f"{self.met} between passes" if self.met else "nothing between passes"
        yield f"passes {self.way}"
        yield from [f"a pass in which it is {self.met} ends as {self.ended_as}"] if self.ended_as else []

    async def run(self) -> str:
        number = f"b{random.getrandbits(64):016x}"
        what = self.rng.choice(
            ["nothing", "revoked", "expired", "version", *(["file"] * (self.world.files.kind != "s3"))]
        )
        if what == "expired" or self.rng.random() < 0.2:
            self.limit(_end(self.rng))
        async with AsyncExitStack() as self._stack:
            self.copy = self.world = await self._stack.enter_async_context(self.over.another(self.world, number))
            if what == "version":
                change = self.rng.choice(("same", "more", "fewer", "order"))
                self._other = await self._stack.enter_async_context(self.over.another(self.copy, number, change))
            if self.asked.blocks:
                self.copy.blocks  # noqa: B018  of the files as they are now
            self._change = getattr(self, f"_{what}")()
            return await super().run()

    async def ask(self) -> str:
        self._loop = asyncio.get_running_loop()
        self.way, self._snapshot = self._way(), ""
        passes, at, change = self.rng.randint(2, 4), self.rng.randint(1, 3), self._change
        happened: Change | None = None
        self._endpoints: list[fl.Ticket] = []
        with mock.patch.object(flight_queries, "_PARTS", self.rng.choice((1, 4))):
            for number in range(passes):
                if number == min(at, passes - 1) and change is not None:
                    self.met = change.name
                    if self.rng.random() < 0.5:
                        await self._during(change)
                    await asyncio.to_thread(change.do)
                    await provider.settled(self.over.running)
                    happened = change
                await self._after(happened)
                if self.rng.random() < 0.7:  # else what is prepared of it may still be under way
                    await provider.settled(self.over.running)
        return "equal"

    async def _during(self, change: Change) -> None:
        """It happens while a pass runs, if that has so many batches."""
        changed = _once(change)
        with at_check(self.rng.randint(1, 4), changed):
            came = await self._pass(self)
        change.do, self.ended_as = changed, (came.end or {}).get("code", came.status)
        self._check(came, self, change.stopped | change.refused)

    async def _after(self, happened: Change | None) -> None:
        """A pass, once that has happened."""
        case = self.newer or self
        came = await self._pass(case)
        if happened is None or not happened.refused:
            self._check(came, case, set())
        elif came.status != REFUSED or (came.end or {})["code"] not in happened.refused:
            raise Different(f"after {happened.name} came {came.rows} rows, ended as {came.end}")

    def _check(self, came: Came, case: OverHttp, stopped: set[str]) -> None:
        told = came.end or {}
        if self._expected is None:  # the old plan of a new version
            if told.get("code") != "snapshot_changed":
                raise Different(f"by the plan of an older version came {came.rows} rows, ended as {told}")
            return
        if came.status != "complete" and told.get("code", came.status) not in stopped:
            raise Different(f"ended as {told or came.status}")
        written_over = bool(stopped & _BROKEN)  # perhaps what was being sent
        if came.status == "complete" or not (written_over or came.status == REFUSED):
            came.check_first_of(self._expected)

    async def _pass(self, case: OverHttp) -> Came:
        """One pass, and what is expected of it."""
        self._expected = case.expected
        if self.way == "flight":
            return await self._flown(case)
        given = dict(self.asked.parameters)
        if self.asked.blocks:
            refused = await self._given(case, given)
            if refused is not None:
                return refused
        if self.way == "http":
            return await over_http(self.over.door.client, self.ticket, given)
        given.pop("codec", "")
        return await recorded(self.over.running, await as_file(self.over.door.url, self.ticket, given, self.way))

    async def _flown(self, case: OverHttp) -> Came:
        """The rows of all endpoints, new ones or those that are known."""
        if not self._endpoints or self.rng.random() < 0.5:
            found = await endpoints(self.over.door.front, self.ticket, self.world.name)
            if isinstance(found, Came):
                return found
            self._endpoints, self._of = found, case
        if len(self._endpoints) > 1 and self._of is not case:
            self._expected = None
        batches: list[pa.RecordBatch] = []
        for one in self._endpoints:
            came = await at_endpoint(self.over.door.front, self.ticket, one)
            batches += came.batches
            if came.status != "complete":
                break
        return Came(tuple(batches), (), {**(came.end or {}), "rows": sum(one.num_rows for one in batches)})

    async def _given(self, case: OverHttp, given: dict[str, str]) -> Came | None:
        """Blocks in a new order, by a new plan or the one that is known; the refusal of a plan."""
        if not self._snapshot or self.rng.random() < 0.5:
            form = {"columns": list(self.asked.columns), "where": self.asked.where}
            answer = await self.over.door.client.post("/data/v1/streams", json=form, headers=self._headers)
            if answer.status_code != 200:
                return Came(end={**answer.json(), "status": REFUSED})
            self._snapshot, self._of = answer.json()["snapshot"], case
        order = list(range(len(self._of.world.blocks)))
        if self.asked.blocks == "some" and order:
            order = self.rng.sample(order, self.rng.randint(1, len(order)))
        some = self.asked.blocks == "some" and bool(order)
        given |= {"snapshot": self._snapshot, "blocks": ",".join(map(str, order)) if some else "all"}
        self._expected = self._of._of_blocks(order) if self._of is case else None
        return None

    def _way(self) -> str:
        plain = not (self.asked.blocks or self.asked.columns or self.asked.where)
        return self.rng.choice(("http", "http", *(["flight"] * 3 if plain else ["http"]), "csv", "parquet"))

    def _nothing(self) -> None:
        return None

    def _revoked(self) -> Change:
        told = self.rng.random() < 0.6
        do = self._wait(lambda: self.over.end(self.agreement, told=told))
        name = "revoked" if told else "revoked elsewhere"
        return Change(name, do, {"agreement_ended", "revoked"}, {"revoked"})

    def _version(self) -> Change:
        told = self.rng.random() < 0.6
        name = "version" if told else "version elsewhere"
        return Change(name, self._wait(lambda: self._renew(told=told)), stopped={"snapshot_changed"})

    def _expired(self) -> Change:
        return Change("expired", self._expire, {"not_in_force", "not_permitted"})

    def _file(self) -> Change:
        name, path = self.rng.choice(list(_HOW)), Path(self.rng.choice(self.copy.files.paths))
        return Change(f"file {name}", lambda: _HOW[name](path, self.rng), _FILE, _BROKEN | {"cut"})

    def _wait(self, work: Callable[[], Any]) -> Callable[[], None]:
        """The work on our loop, from a thread that waits for it, or begun from the loop itself."""

        def do() -> None:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                asyncio.run_coroutine_threadsafe(work(), self._loop).result()
            else:
                self._begun = self._loop.create_task(work())

        return do

    async def _renew(self, *, told: bool) -> None:
        await self.over.renew(self._other, "v2", told=told)
        self.newer = OverHttp(self.over, self._other, self.found, self.asked, self.rng)

    def _expire(self) -> None:
        """It is a week later, for what runs and what comes."""
        later: Any = mock.Mock(wraps=time)
        later.time = lambda: time.time() + _LATER
        for where, name, value in ((grants, "time", later), (self.over.prepared, "_clock", later.time)):
            self._stack.enter_context(mock.patch.object(where, name, value))
        self.over.running.later(_LATER)


def _once(change: Change) -> Callable[[], None]:
    """It happens, however often it is asked for, once."""
    left = iter([change.do])
    return lambda: next(left, lambda: None)()


def _end(rng: random.Random) -> Atom:
    """A word about time that is true now and is not in a week."""
    ends = time.time() + _ENDS
    how, operator = rng.choice(("day", "moment", "elapsed")), rng.choice(("lt", "lteq"))
    if how == "elapsed":
        begun = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
        return gate.atom("odrl:elapsedTime", operator, f"P{int(ends - begun) // _DAY}D")
    moment = datetime.fromtimestamp(ends, UTC)
    if how == "day":
        date = Literal(moment.date().isoformat(), "http://www.w3.org/2001/XMLSchema#date")
        return Atom(expand("odrl:dateTime"), operator, (date,))
    return gate.atom("odrl:dateTime", operator, moment.isoformat())


def _touched(path: Path, rng: random.Random) -> None:
    os.utime(path, ns=(0, rng.randrange(2**60)))


def _over(path: Path, rng: random.Random) -> None:
    """Some other bytes in the middle; the time of change is put back."""
    found = path.stat()
    with path.open("r+b") as file:
        file.seek(rng.randrange(max(1, found.st_size)))
        file.write(rng.randbytes(rng.choice((1, 100))))
    os.truncate(path, found.st_size)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def _replaced(path: Path, rng: random.Random) -> None:
    """The same bytes, as another file."""
    other = path.with_name("other.tmp")
    other.write_bytes(path.read_bytes())
    found = path.stat()
    os.utime(other, ns=(found.st_atime_ns, found.st_mtime_ns))
    other.replace(path)


def _cut(path: Path, rng: random.Random) -> None:
    os.truncate(path, rng.randrange(max(1, path.stat().st_size)))


def _longer(path: Path, rng: random.Random) -> None:
    with path.open("ab") as file:
        file.write(b"\x00" * rng.choice((1, 5_000)))


def _removed(path: Path, rng: random.Random) -> None:
    path.unlink()


_HOW: Mapping[str, Callable[[Path, random.Random], None]] = {
    "touched": _touched, "written over": _over, "replaced": _replaced, "cut": _cut, "longer": _longer,
    "removed": _removed,
}  # fmt: skip
