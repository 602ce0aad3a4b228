"""Visits every member's connector in turn and on demand, and keeps the last good copy with its age.

One visit at a time per connector, a few connectors at once: on schedule, for the operator, for members who ask, each in
places of their own, so that whoever asks does not wait for slow connectors on schedule. Attempts and states live in the
database, so that a restart neither forgets a back-off nor hammers anybody. Knows nothing of search.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from prometheus_client import Counter

from catalogue.crawl import freshness, ingest
from catalogue.crawl.freshness import Timing
from catalogue.crawl.ingest import Tally
from catalogue.crawl.namespaces import Namespaces
from catalogue.crawl.sanitize import clean
from catalogue.crawl.visit import Limits, Visit
from catalogue.crawl.visit_turns import Turns
from catalogue.settings import Settings
from catalogue.store import Store, Transaction
from catalogue.store.tables import Member, Run, Source
from connector.errors import Forbidden, HanseError
from connector.identity.identity_service import Identity
from connector.infra.net.http_client import HttpClient
from connector.telemetry import logger

_TICK_SECONDS = 1.0
_HOUR = 3600.0
_PROBLEM_MAX = 2000
_BROKEN = "the visit broke off at an error of this catalogue's own, which its log has; it is tried again later"


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How a visit ended."""

    outcome: str  # complete | unchanged | partial | failed
    problem: str = ""
    pages: int = 0
    bytes: int = 0
    etag: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Basis:
    """What a visit begins with. What is changed while it lasts, it does not undo: it compares when it stores."""

    member: Member
    etag: str
    spaces: Namespaces  # whose ids are whose
    revision: int  # of the register
    seq: int  # the last change number
    at: float


class Crawler:
    """`run()` visits who is due; `crawl(member)` visits one now. `on_change` follows every visit."""

    def __init__(
        self,
        store: Store,
        net: HttpClient,
        identity: Identity,
        settings: Settings,
        *,
        on_change: Callable[[], Awaitable[None]],
        count: Counter,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._net, self._identity, self._settings = store, net, identity, settings
        self._timing, self._limits = Timing.of(settings), Limits.of(settings)
        self._operator = (settings.did, settings.name, settings.root_url)
        self._on_change, self._count, self._luck = on_change, count, luck
        self._running: dict[str, asyncio.Task[Run]] = {}
        self._following: dict[str, asyncio.Task[Run]] = {}
        asked = max(1, settings.crawl_concurrency // 2)
        self._turns = Turns({"schedule": settings.crawl_concurrency, "operator": asked, "member": asked})
        self._reading = asyncio.Lock()  # one page in memory as objects, however many visits are under way
        self._awake = asyncio.Event()
        self._log = logger("crawler")

    def wake(self) -> None:
        """Look for due visits now: a member joined or changed."""
        self._awake.set()

    async def run(self) -> None:
        """Visit who is due, until cancelled."""
        swept = 0.0
        while True:
            self._awake.clear()
            try:
                if time.monotonic() - swept > _HOUR:
                    await self._sweep()
                    await self._strip()
                    swept = time.monotonic()
                for source in await self._store.read(partial(_due, limit=self._settings.crawl_concurrency * 2)):
                    self.start(source.member_id, why="schedule")
            except Exception as error:  # noqa: BLE001  # a schedule that stops is a catalogue that ages
                self._log.error("crawl_round_failed", reason=repr(error))
            try:
                async with asyncio.timeout(
                    _TICK_SECONDS
                ):  # not wait_for: 3.11's swallows a cancellation that meets a wake
                    await self._awake.wait()
            except TimeoutError:
                continue

    async def close(self) -> None:
        """Stop every visit; what was taken so far stays."""
        for task in (tasks := [*self._following.values(), *self._running.values()]):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def stop(self, member_id: str) -> None:
        """End the visit of a member that is suspended or removed, and the one that was to follow; what was taken so
        far stays, as the member's entries do."""
        for tasks in (self._following, self._running):
            if (task := tasks.get(member_id)) is not None:
                task.cancel()

    def start(self, member_id: str, *, why: str) -> asyncio.Task[Run]:
        """A visit of a member that begins no earlier than now.

        On schedule, the visit under way is good enough. Who asks for one wants to see what has just changed, so theirs
        follows the one under way; all who ask meanwhile share it. One that waits for its place has not begun: it stands
        in the line of who asks, too.
        """
        running = self._running.get(member_id)
        if running is None:
            return self._begin(self._running, member_id, self._crawl(member_id, why))
        if why == "schedule" or self._turns.join(member_id, why):
            return running
        following = self._following.get(member_id)
        return following or self._begin(self._following, member_id, self._after(running, member_id, why))

    async def _after(self, running: asyncio.Task[Run], member_id: str, why: str) -> Run:
        await asyncio.wait([running])
        self._following.pop(member_id, None)
        return await self.start(member_id, why=why)

    def _begin(
        self, tasks: dict[str, asyncio.Task[Run]], member_id: str, work: Coroutine[Any, Any, Run]
    ) -> asyncio.Task[Run]:
        task = tasks[member_id] = asyncio.create_task(work)
        task.add_done_callback(lambda done: self._ended(tasks, member_id, done))
        return task

    def _ended(self, tasks: dict[str, asyncio.Task[Run]], member_id: str, task: asyncio.Task[Run]) -> None:
        if tasks.get(member_id) is task:
            del tasks[member_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("visit_broken", member=member_id, reason=repr(error))

    async def _crawl(self, member_id: str, why: str) -> Run:
        async with self._turns.turn(member_id, why) as why:
            basis = await self._store.read(partial(_basis, key=member_id, operator=self._operator))
            member, tally = basis.member, Tally()
            if member.status != "active":
                raise Forbidden(f"{member.name} is {member.status}; its connector is not visited")
            outcome = await self._visit(basis, tally)
            run = await self._store.write(partial(self._conclude, basis=basis, why=why, outcome=outcome, tally=tally))
        if run.counts["withdrawn"]:
            await self._strip()
        self._count.labels(run.outcome).inc()
        self._log.info("visited", member=member.name, outcome=run.outcome, problem=run.problem, **run.counts)
        await self._on_change()
        return run

    async def _visit(self, basis: _Basis, tally: Tally) -> _Outcome:
        member = basis.member
        about = {"did": member.id, "url": member.url, "etag": basis.etag}
        visit = Visit(self._net, self._identity, self._limits, **about, reading=self._reading)
        try:
            async with aclosing(visit.pages()) as pages:
                async for datasets in pages:
                    await self._take(basis, datasets, tally)
        except HanseError as error:
            kind = "partial" if tally.datasets else "failed"
            return _Outcome(kind, error.message, visit.page_count, visit.byte_count)
        except Exception as error:  # noqa: BLE001  # whatever it is, the visit is concluded: else the next one is at once
            self._log.error("visit_broken", member=member.name, reason=repr(error))
            return _Outcome("failed", _BROKEN, visit.page_count, visit.byte_count)
        kind = "unchanged" if visit.unchanged else "complete" if visit.complete else "partial"
        etag = visit.etag if visit.complete and not tally.skipped else ""
        return _Outcome(kind, visit.problem, visit.page_count, visit.byte_count, etag)

    async def _take(self, basis: _Basis, datasets: list[object], tally: Tally) -> None:
        """Store a page. Its texts are read beside the event loop and outside the transaction that stores them."""
        member = basis.member
        sift = partial(ingest.sift, spaces=basis.spaces, entry_bytes=self._settings.crawl_entry_bytes, tally=tally)
        candidates = await asyncio.to_thread(sift, datasets, member)
        known = await self._store.read(lambda tx: ingest.known_texts(tx, member, candidates))
        page = await asyncio.to_thread(partial(ingest.read, tally=tally), candidates, known, member)
        begun: dict[str, Any] = {"seq": basis.seq, "since": basis.at}
        most = self._settings.crawl_entries_max
        await self._store.write(lambda tx: ingest.take(tx, member, page, **begun, most=most, tally=tally))

    def _conclude(self, tx: Transaction, *, basis: _Basis, why: str, outcome: _Outcome, tally: Tally) -> Run:
        member, stands = basis.member, tx.members.stands(basis.member)
        source = tx.members.source(member.id, lock=True)  # after the member, as whoever changes that does
        if source is not None and stands:  # an address that is the member's no longer says nothing of it
            self._follow(tx, source, basis, outcome, tally)
        run = Run(
            member_id=member.id,
            why=why,
            started_at=basis.at,
            ended_at=tx.now,
            outcome=outcome.outcome,
            problem=clean(outcome.problem, _PROBLEM_MAX),
            counts={"pages": outcome.pages, "bytes": outcome.bytes, **tally.counts()},
            skipped=tally.problems,
        )
        if source is not None:  # removed while we were there: nobody to note it for
            tx.members.add(run)
            tx.members.forget_old_runs(member.id)
        return run

    def _follow(self, tx: Transaction, source: Source, basis: _Basis, outcome: _Outcome, tally: Tally) -> None:
        """What a visit means for the member's entries, and for when it is visited again."""
        if tx.members.revision() != basis.revision or tx.entries.withdrawn_after(source.member_id, basis.seq):
            outcome = replace(outcome, etag="")  # what was read was judged by what has changed since: read it again
        if outcome.outcome == "complete":
            ingest.miss(tx, source.member_id, since=basis.at, tally=tally)
        if outcome.outcome == "unchanged":
            tally.datasets = tx.entries.seen_all(source.member_id, tx.now)
        self._note(tx, source, outcome, took=min(tx.now - basis.at, self._settings.crawl_wall_seconds))
        self._age(tx, source, outcome, since=basis.at, tally=tally)

    def _note(self, tx: Transaction, source: Source, outcome: _Outcome, *, took: float) -> None:
        good = outcome.outcome in ("complete", "unchanged", "partial")
        source.last_try = tx.now
        source.failures = 0 if good else source.failures + 1
        source.problem = clean(outcome.problem, _PROBLEM_MAX)
        source.etag = outcome.etag
        if good or (source.last_ok or 0.0) > tx.now:  # the clock was set back: how old its entries are begins anew
            source.last_ok = tx.now
        pause = freshness.pause(self._timing, failures=source.failures, took=took, luck=self._luck())
        source.next_at = tx.now + pause
        self._settle(tx, source)

    def _age(self, tx: Transaction, source: Source, outcome: _Outcome, *, since: float, tally: Tally) -> None:
        """What visits did not come to ages as it would with a connector that is silent, and makes room for the rest."""
        tx.entries.set_right(source.member_id, since, now=tx.now)
        if outcome.outcome == "partial":
            tx.entries.doubt(source.member_id, before=min(since, tx.now - self._timing.unreachable))
        if source.state != freshness.EXPIRED:  # a connector that is silent keeps its entries, out of the search
            ingest.age(tx, source.member_id, since=since, seconds=self._timing.expired, tally=tally)
        if outcome.outcome != "unchanged":
            ingest.bound(tx, source.member_id, since=since, most=self._settings.crawl_entries_max, tally=tally)

    async def _strip(self) -> None:
        while await self._store.write(ingest.strip):
            continue

    def _settle(self, tx: Transaction, source: Source) -> None:
        """Bring a connector's state up to date; its entries show a change."""
        state = self._state(source, tx.now)
        if state != source.state:
            source.state = state
            tx.entries.touch_all(source.member_id)

    def _state(self, source: Source, now: float) -> str:
        return freshness.state_of(self._timing, failures=source.failures, last_ok=source.last_ok, now=now)

    async def _sweep(self) -> None:
        """Once an hour: states that change by time alone, and tombstones that are old enough."""
        for member_id in await self._store.read(self._unsettled):
            await self._store.write(partial(self._resettle, member_id=member_id))  # or it would hold all at once
        await self._store.write(lambda tx: tx.entries.forget_tombstones(tx.now - self._settings.tombstone_seconds))

    def _unsettled(self, tx: Transaction) -> list[str]:
        """The members whose connectors' states are those of an earlier time."""
        return [source.member_id for source in tx.members.sources() if self._state(source, tx.now) != source.state]

    def _resettle(self, tx: Transaction, *, member_id: str) -> None:
        if (source := tx.members.source(member_id, lock=True)) is not None:
            self._settle(tx, source)


def _due(tx: Transaction, *, limit: int) -> list[Source]:
    return list(tx.members.due(tx.now, limit=limit))


def _basis(tx: Transaction, *, key: str, operator: tuple[str, str, str]) -> _Basis:
    """What a visit of a member begins with. The operator's ids are no member's."""
    revision, seq = tx.members.revision(), tx.entries.last_seq()  # before what they stand for
    member = tx.members.of(key)
    source = tx.members.source(member.id)
    if source is None:
        raise HanseError(f"the member {member.name} has no crawl state; remove it and let it join again")
    spaces = Namespaces([operator, *((one.id, one.name, one.url) for one in tx.members.all())])
    return _Basis(member=member, etag=source.etag, spaces=spaces, revision=revision, seq=seq, at=tx.now)
