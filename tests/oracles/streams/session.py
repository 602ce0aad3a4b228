"""A case of several passes of one reader, by any way, while something happens.

Connections are cut and leases end: one goes on from the cursor, and all rows come, each once, in their order. Rows,
bytes or uses are used up: together no more leaves than the budget, and as much as its batches allow. The agreement is
revoked or its time ends, here or in another process; the dataset has a new version; a file of it is touched, written
over, replaced, cut, made longer or removed: what is prepared by then is not served any more, and a new version's rows
are the only ones that are.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import pyarrow.flight as fl

from connector.dataplane.flight import flight_queries
from connector.usage import grants, quotas
from policies.contracts import batch_gate
from policies.model import Atom, Literal
from policies.vocabulary import expand
from tests.oracles.streams import answers
from tests.oracles.streams.answers import Came, Different
from tests.oracles.streams.reader import FILES, Reader
from tests.oracles.streams.space import REASON, World
from tests.oracles.streams.terms import Read
from tests.support import gate, provider, streamed

_DAY = 86_400
_ENDS, _LATER = 3 * _DAY, 8 * _DAY  # when the time of an agreement is over, and when it surely was
_CHANGED = {"version_changed"}  # as a read is refused where a file has changed
_UNREADABLE = _CHANGED | {"engine_failed", "computation_failed", "source_unreadable"}
_STEPS = 6
_BREAKS = {"cut", "lease_expired"}


@dataclass(slots=True)
class Change:
    """What happens. `refused` and `stopped`: the codes of what is asked for after it, and of what is under way.
    `surely`: no batch leaves once it has happened."""

    name: str
    do: Callable[[], None]  # in any thread
    refused: set[str] = field(default_factory=set)
    stopped: set[str] = field(default_factory=set)
    surely: bool = False
    happened: bool = False

    def once(self) -> None:
        """It happens, however often it is asked for, once."""
        if not self.happened:
            self.happened = True
            self.do()


class Session(Reader):
    """Passes over the rows, each whole or rightly none."""

    ways: Sequence[str] = ("arrow",)
    changes = breaks = False
    change: Change | None = None
    happened: Change | None = None
    _spent: frozenset[str] | set[str] = frozenset()  # codes of what a budget ends

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        blocks = "" if world.reserved else asked.blocks or rng.choice(("", "all", "some"))
        whole = replace(asked, columns=(), where="") if not blocks and rng.random() < 0.7 else asked
        return replace(whole, blocks=blocks, most=None)

    async def run(self) -> str:
        what = self.rng.choice(("nothing", "revoked", "expired", "version", "file")) if self.changes else "nothing"
        if what == "expired" or (self.changes and self.rng.random() < 0.2):
            self.limit(_end(self.rng))
        async with AsyncExitStack() as self._stack:
            if self.changes:
                name = f"b{random.getrandbits(64):016x}"
                self.world = await self._stack.enter_async_context(self.over.another(self.world, name))
                if what == "version":
                    how = self.rng.choice(("same", "more", "fewer", "order"))
                    self._other = await self._stack.enter_async_context(self.over.another(self.world, name, how))
                if self.asked.blocks:
                    self.world.blocks  # noqa: B018  of the files as they are now
                self.change = getattr(self, f"_{what}")()
            parts = 1 if self.breaks else self.rng.choice((1, 4))
            self._stack.enter_context(mock.patch.object(flight_queries, "_PARTS", parts))
            return await super().run()

    async def ask(self) -> str:
        if self.asked.blocks and self.world.reserved:
            return await self._without_places()
        self._loop, self.answers, self.now = asyncio.get_running_loop(), list[Came](), self
        self._snapshot, self._parts = "", list[fl.Ticket]()
        passes = self.rng.randint(2, 4) if self.changes else 1 + 2 * self.asked.twice
        at = min(self.rng.randint(1, 3), passes - 1)
        for number in range(passes):
            if number == at and self.change is not None:
                await self._happen(self.change)
            await self._pass()
            if self.rng.random() < 0.7:  # else what is prepared of it may still be under way
                await provider.settled(self.over.running)
            if number and not (self.changes or self.asked.blocks or self.asked.most):
                self._take_other_form()
        await answers.check_records(self.over.running, self.agreement, self.answers)
        return "equal"

    async def _happen(self, change: Change) -> None:
        """It happens between passes, or while one runs if that has so many batches."""
        self.met[f"{change.name} between passes"] += 1
        if self.rng.random() < 0.5:
            with at_check(self.rng.randint(1, 4), change.once) as passed:
                await self._pass(change)
            if change.surely and passed:
                raise Different(f"a batch passed the gate once it was {change.name}")
        await asyncio.to_thread(change.once)
        await provider.settled(self.over.running)
        self.happened = change

    def _take_other_form(self) -> None:
        """What is kept of one form is not given for another, whose columns come in another order, say."""
        order = self.rng.sample(range(len(self.asked.columns)), len(self.asked.columns))
        columns = tuple(self.asked.columns[number] for number in order)
        self.expected = self.expected.select(order) if order else self.expected
        codec, digest = self.rng.choice(("none", "lz4", "zstd")), self.rng.choice(("xxh3", "sha256"))
        self.asked = replace(self.asked, columns=columns, codec=codec, digest=digest)
        self.met["other forms"] += 1

    # one pass

    async def _pass(self, during: Change | None = None) -> None:
        way = self._way()
        self.met[f"over {way}"] += 1
        if way == "sql":
            await self._by_sql()
        elif isinstance(one := await self._begin(way), Came):
            self._check(one, self, during)
        else:
            await self._go(one, way, during)

    async def _go(self, one: Reader, way: str, during: Change | None) -> None:
        """What has begun, step by step."""
        begun, cursors = (one.given.copy(), one.chosen), 0
        for number in range(_STEPS):
            came = await self._read(one, way, during, last=number == _STEPS - 1)
            if came.status != "complete" and came.code not in _BREAKS:
                break
            if came.status == "complete":
                if self.asked.cut is None or not came.places or not came.batches or cursors == 2:
                    break
                cursors += 1
                self.met["a cursor"] += 1
                one.back(came, int(self.asked.cut * len(came.batches)))
            elif "after" not in one.given:
                one.begin(*begun)
            else:
                self.met["gone on after breaks"] += 1

    async def _read(self, one: Reader, way: str, during: Change | None, *, last: bool) -> Came:
        """A step, which may be cut at any byte, or whose lease may end before any batch; the last of them neither."""
        cut = check = 0
        if self.breaks and not last:
            cut = self.rng.randint(1, one.rest.nbytes + 3_000) if self.rng.random() < 0.5 else 0
            check = 0 if cut else self.rng.randint(1, 6)
        with at_check(check, lambda: self.over.running.later(1e6)) if check else ExitStack():
            beside = (one.read(way, parts=self._parts) for _ in range(self.asked.readers - 1) if not (cut or check))
            came, *others = await asyncio.gather(one.read(way, cut=cut or None, parts=self._parts), *beside)
        for each in (*others, came):
            self.answers.append(each)
            self._check(each, one, during, broken=bool(cut or check))
        if came.status == "complete" or came.code in _BREAKS:
            one.take(came)
        return came

    def _check(self, came: Came, one: Reader, during: Change | None, *, broken: bool = False) -> None:
        happened = self.happened
        if happened is not None and happened.refused:
            if not came.refused or came.code not in happened.refused:
                raise Different(f"after {happened.name} came {came.rows} rows, ended as {came.end}")
            return
        if self._stale:
            if came.code != "snapshot_changed":
                raise Different(f"by the plan of an older version came {came.rows} rows, ended as {came.end}")
            return
        allowed = (during.stopped | during.refused) if during is not None else set()
        allowed |= _BREAKS if broken else set()
        over_limit = self.asked.blocks and self.asked.most is not None and self.asked.most < len(one.rest)
        if came.code not in ({"rows_limit"} if over_limit else {"complete"} | allowed | self._spent):
            raise Different(f"ended as {came.end}")
        if over_limit and came.rows > (self.asked.most or 0):
            raise Different(f"{came.rows} rows where at most {self.asked.most} were asked for")
        if came.status == "revoked" and not came.form and REASON not in str(came.end):
            raise Different(f"no reason in {came.end}")
        if during is not None and came.status != "complete":
            self.met[f"a pass in which it is {during.name} ends as {came.code}"] += 1
            if during.stopped & _UNREADABLE:  # perhaps what was being sent
                return
        came.check_first_of(one.rest, batch_rows=self.asked.batch_rows)

    async def _begin(self, way: str) -> Reader | Came:
        """By a new plan or the one that is known; the reader whose rows come, or the refusal of a plan."""
        one, door, self._stale = self.now, self.over.door, False
        if way == "flight":
            if not self._parts or self.rng.random() < 0.5:
                found = await answers.endpoints(door.front, self.ticket, provider.OWNER, self.world.name)
                if isinstance(found, Came):
                    return found
                self._parts, self._planned = found, one
                self.met["several endpoints" if len(found) > 1 else "one endpoint"] += 1
            one = self._planned if len(self._parts) > 1 else one
            self._stale = one is not self.now
            one.begin()
            return one
        if not self.asked.blocks:
            one.begin()
            return one
        if not self._snapshot or self.rng.random() < 0.5:
            plan = await one.plan()
            if isinstance(plan, Came):
                return plan
            self._snapshot, self._planned = plan["snapshot"], one
        self._stale = self._planned is not one
        self._planned.begin({"snapshot": self._snapshot}, self._planned.order())
        return self._planned

    def _way(self) -> str:
        asked = self.asked
        whole = not (asked.blocks or asked.columns or asked.where or asked.batch_rows or asked.most)
        able = {"arrow": True, "flight": whole, "sql": not (asked.blocks or asked.most), **dict.fromkeys(FILES, True)}
        return self.rng.choice([way for way in self.ways if able[way]] or ["arrow"])

    async def _by_sql(self) -> None:
        """Rows come in any order: SQL asked for none."""
        door, action = self.over.door, self.rng.choice(("query", "stream"))
        how = self.rng.choice(("query", "envelope", "statement"))
        if how == "query":
            came = await answers.over_query(door.client, [self.ticket], self.sql)
        elif how == "statement":
            came = await answers.by_statement(door.front, self.ticket, self.sql, action)
        else:
            parts = await answers.endpoints(door.front, self.ticket, sql=self.sql, action=action)
            came = parts if isinstance(parts, Came) else await answers.over_flight(door.front, self.ticket, parts)
        wrong = came.wrong or streamed.unlike(answers.in_order(came.table), answers.in_order(self.expected))
        hidden = next(filter(None, map(streamed.hides, came.batches)), "") if how != "statement" else ""
        if came.status != "complete" or wrong or hidden:
            raise Different(f"{how}: {wrong or hidden}, ended as {came.end}")

    async def _without_places(self) -> str:
        """A dataset whose rows have no places: no plan; all blocks are one stream."""
        came = await self.plan()
        if not isinstance(came, Came) or came.code != "not_divisible":
            raise Different(f"a plan of rows that have no places: {came}")
        if self._some or self.asked.most:
            return "refused (not_divisible)"
        self.begin({"blocks": "all"})
        if (await self.step()).status != "complete":
            raise Different("not all of a stream of rows that have no places")
        return "equal"

    # what happens

    def _nothing(self) -> None:
        return None

    def _revoked(self) -> Change:
        told = self.rng.random() < 0.6
        end = self._wait(lambda: self.over.end(self.agreement, told=told))

        def do() -> None:
            if told and _is_in_loop():
                self.over.running.grants.stop(agreement_id=self.agreement, reason=REASON)
            end()

        name = "revoked" if told else "revoked elsewhere"
        return Change(name, do, {"agreement_ended", "revoked"}, {"revoked"}, surely=told)

    def _version(self) -> Change:
        told = self.rng.random() < 0.6
        do = self._wait(lambda: self._renew(told=told))
        return Change("version" if told else "version elsewhere", do, stopped={"snapshot_changed"})

    def _expired(self) -> Change:
        return Change("expired", self._expire, {"not_in_force", "not_permitted"})

    def _file(self) -> Change | None:
        if self.world.files.kind == "s3":
            return None
        name, path = self.rng.choice(list(_HOW)), Path(self.rng.choice(self.world.files.paths))
        return Change(f"file {name}", lambda: _HOW[name](path, self.rng), _CHANGED, _UNREADABLE | {"cut"})

    def _wait(self, work: Callable[[], Any]) -> Callable[[], None]:
        """The work on our loop, from a thread that waits for it, or begun from the loop itself."""

        def do() -> None:
            if _is_in_loop():
                self._task = self._loop.create_task(work())
            else:
                asyncio.run_coroutine_threadsafe(work(), self._loop).result()

        return do

    async def _renew(self, *, told: bool) -> None:
        await self.over.renew(self._other, "v2", told=told)
        self.now = Reader(self.over, self._other, self.found, self.asked, self.rng)
        self.now.ticket, self.now.agreement = self.ticket, self.agreement

    def _expire(self) -> None:
        """It is a week later, for what runs and what comes."""
        later: Any = mock.Mock(wraps=time)
        later.time = lambda: time.time() + _LATER
        for where, name, value in ((grants, "time", later), (self.over.prepared, "_clock", later.time)):
            self._stack.enter_context(mock.patch.object(where, name, value))
        self.over.running.later(_LATER)


class Http(Session):
    """Arrow over HTTP: whole, by blocks, gone on with after a cursor, cut off at so many rows."""

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        return asked


class Formats(Session):
    """People's formats: CSV and Parquet."""

    ways = ("csv", "csv", "parquet")

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        return replace(asked, blocks="" if world.reserved else asked.blocks)


class Flight(Session):
    """A path gives all that the policy shows, in its order, by one endpoint or several; SQL gives rows in any order."""

    ways = ("flight", "flight", "sql")

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        whole = replace(asked, columns=(), where="") if rng.random() < 0.5 else asked
        return replace(whole, blocks="", cut=None, most=None, batch_rows=None, codec="", readers=1)


class Broken(Session):
    """Connections are cut, and leases end."""

    ways = ("arrow", "arrow", "flight")
    breaks = True


class Between(Session):
    """Before one of the passes, or while it runs, something changes."""

    ways = ("arrow", "arrow", "flight", "flight", "csv", "parquet")
    changes = True

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        found = super().fitting(asked, world, rng)
        return replace(found, twice=rng.random() < 0.8, readers=1)


class Budget(Session):
    """Rows, bytes or uses end in the middle of what is read under an agreement, by one reader or several.

    What may leave is worked out here from the words of the policy; of a share of rows of which some are hidden, two
    digits of their number count, and no unit.
    """

    ways = (*["arrow"] * 5, *["flight"] * 3, "csv", "parquet")

    @classmethod
    def fitting(cls, asked: Read, world: World, rng: random.Random) -> Read:
        blocks = "all" if asked.blocks and not world.reserved else ""
        batch_rows = rng.choice((None, 1, 7, 64))
        return replace(
            asked, columns=(), where="", most=None, blocks=blocks, batch_rows=batch_rows, twice=False, cut=None
        )

    def words(self) -> Iterator[str]:
        yield from super().words()
        met = {"rows": self.rows is not None, "bytes": self.bytes, "a share": self.share, "uses": self.uses}
        yield from (f"a budget of {word}" for word, there in met.items() if there)
        yield from {f"{came.form} ended as {came.status}".strip() for came in self.answers}

    async def agree(self) -> None:
        rng, rows, nbytes = self.rng, len(self.expected), self.expected.nbytes
        kinds = rng.choice((["rows"], ["rows"], ["bytes"], ["rows", "bytes"], ["share"], ["share", "rows"], []))
        quota = rng.randint(1, 2 * rows + 1) if "rows" in kinds else None
        self.share = Decimal(rng.randint(1, 10_000)).scaleb(-2) if "share" in kinds else None
        self.rows = min((one for one in (quota, self._part()) if one is not None), default=None)
        self.bytes = rng.randint(1, 2 * nbytes + 10_000) if "bytes" in kinds else None
        self.uses = None if kinds and rng.random() < 0.8 else rng.randint(1, 3)
        self.alone, self.at_once = rng.random() < 0.15, rng.random() < 0.5
        limits = {
            "ds:rowQuota": quota, "ds:byteQuota": self.bytes, "odrl:percentage": self.share,
            rng.choice(("ds:queriesPerDay", "odrl:count")): self.uses, "ds:concurrency": 1 if self.alone else None,
        }  # fmt: skip
        self.limit(*(self._most(name, most) for name, most in limits.items() if most is not None))
        self._spent = {"quota", "quota_spent"} | ({"count_spent"} if self.uses else set())
        self._spent |= {"concurrency"} if self.alone and self.at_once else set()
        await super().agree()

    def _most(self, name: str, most: int | Decimal) -> Atom:
        less = name != "odrl:percentage" and self.rng.random() < 0.2
        return gate.atom(name, "lt" if less else "lteq", str(most + 1 if less else most))

    def _part(self) -> int | None:
        """The rows of the share."""
        rows = self.world.files.rows
        if self.found.filters:
            rows -= rows % max(10, 10 ** (len(str(rows)) - 2))
        return None if self.share is None else int(rows * self.share / 100)

    async def ask(self) -> str:
        running, chunk = self.over.running, self.rng.choice((1_000_000, 1_000_000, 512, 7))
        self.begin({"blocks": "all"} if self.asked.blocks else {})
        with (
            mock.patch.object(quotas, "_CHUNK_ROWS", chunk),
            mock.patch.object(quotas, "_CHUNK_BYTES", chunk * 256),
        ):
            reads = [self._spend() for _ in range(self.asked.readers + 1)]
            self.answers = list(await asyncio.gather(*reads)) if self.at_once else []
            for one in reads if not self.at_once else ():
                self.answers.append(await one)
                await answers.check_records(running, self.agreement, self.answers)  # what it has not used goes back
        nbytes = await answers.check_records(running, self.agreement, self.answers)
        self._check_budget(nbytes)
        counted = await running.store.read(lambda tx: tx.agreements.get_grant(self.agreement))
        assert counted is not None
        rows = sum(came.rows for came in self.answers)
        if (counted.rows, counted.bytes) != (0 if self.rows is None else rows, nbytes if self.bytes else 0):
            raise Different(f"{rows} rows and {nbytes} bytes have left, counted: {counted.rows} and {counted.bytes}")
        return "equal"

    async def _spend(self) -> Came:
        """A read by any of the ways."""
        way = self.rng.choice(self.ways)
        self.met[f"over {way}"] += 1
        if way != "flight":
            return await self.read(way)
        found = await answers.endpoints(self.over.door.front, self.ticket, provider.OWNER, self.world.name)
        return found if isinstance(found, Came) else await self.read(way, parts=found)

    def _check_budget(self, nbytes: int) -> None:
        for came in self.answers:
            came.check_first_of(self.expected)
            if came.code not in {"complete"} | self._spent:
                raise Different(f"ended as {came.end}")
        rows = sum(came.rows for came in self.answers)
        uses = sum(came.rows > 0 or came.status == "complete" for came in self.answers)  # else it is given back
        over = [self.rows is not None and rows > self.rows, self.bytes and nbytes > self.bytes]
        if any(over) or (self.uses and uses > self.uses):
            raise Different(f"{uses} uses, {rows} rows, {nbytes} bytes for {self.uses}, {self.rows}, {self.bytes}")
        refused = not self.at_once and any(came.code == "count_spent" for came in self.answers)
        if refused and uses != (self.uses or uses):
            raise Different(f"{uses} uses of {self.uses}, and they are spent")
        spent = not self.at_once and not self.bytes and any(came.status == "quota" for came in self.answers)
        if spent and self.rows is not None and rows + self._batch <= self.rows:
            raise Different(f"{rows} rows in batches of {self._batch} for {self.rows}")

    @property
    def _batch(self) -> int:
        """The most rows of a batch that the budget may have been short of: an eighth of it is a reader's at once."""
        assert self.rows is not None
        by_rows = self.asked.batch_rows if not self.met["over flight"] else None
        return min(by_rows or self.rows, max(1, self.rows // 8))


@contextmanager
def at_check(number: int, act: Callable[[], None]) -> Iterator[list[Any]]:
    """`act` once the gate is asked for that time; what passes the gate from then on."""
    left, check, passed = iter(range(number - 1, -1, -1)), batch_gate.check, list[Any]()

    def asked(*given: Any) -> str | None:
        at = next(left, -1)
        if at == 0:
            act()
        reason = check(*given)
        passed.extend([given] if at <= 0 and reason is None else [])
        return reason

    with mock.patch.object(batch_gate, "check", asked):
        yield passed


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


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


def _written_over(path: Path, rng: random.Random) -> None:
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
    "touched": _touched, "written over": _written_over, "replaced": _replaced, "cut": _cut, "longer": _longer,
    "removed": _removed,
}  # fmt: skip
