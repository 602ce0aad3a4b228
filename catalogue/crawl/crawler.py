"""Crawler: visits each member's connector on schedule and on demand, and keeps the last good copy with its age.

One visit at a time per connector, a few connectors at once. Scheduled visits, the operator's and members' requests have
separate places, so that a request does not wait for slow connectors. Attempts and states are in the database, so that a
restart keeps every back-off. Does not import the search.
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
from catalogue.crawl.visit import Visit, VisitLimits
from catalogue.crawl.visit_turns import VisitPlaces
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.tables import CrawlState, Member, VisitRecord
from connector.errors import ConnectorError, Forbidden
from connector.identity.identity_service import Identity
from connector.infra.net.http_client import HttpClient
from connector.telemetry import logger

_TICK_SECONDS = 1.0
_HOUR = 3600.0
_PROBLEM_MAX = 2000
_BROKEN = "the visit ended with an internal error of the catalogue; see its log; it is tried again later"


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
    """The state at the start of a visit. The visit compares with it before it stores, so that later changes stay."""

    member: Member
    etag: str
    spaces: Namespaces  # whose ids are whose
    revision: int  # of the register
    seq: int  # the last change number
    at: float


class Crawler:
    """`run()` visits due members, `start(member_id)` visits a member now. `on_change` runs after each visit."""

    def __init__(
        self,
        store: CatalogueStore,
        net: HttpClient,
        identity: Identity,
        settings: CatalogueSettings,
        *,
        on_change: Callable[[], Awaitable[None]],
        count: Counter,
        luck: Callable[[], float] = random.random,
    ) -> None:
        self._store, self._net, self._identity, self._settings = store, net, identity, settings
        self._timing, self._limits = Timing.of(settings), VisitLimits.of(settings)
        self._operator = (settings.did, settings.name, settings.root_url)
        self._on_change, self._count, self._luck = on_change, count, luck
        self._running: dict[str, asyncio.Task[VisitRecord]] = {}
        self._following: dict[str, asyncio.Task[VisitRecord]] = {}
        asked = max(1, settings.crawl_concurrency // 2)
        self._turns = VisitPlaces({"schedule": settings.crawl_concurrency, "operator": asked, "member": asked})
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
                for source in await self._store.read(partial(_list_due, limit=self._settings.crawl_concurrency * 2)):
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
        """Cancel the running and the following visit of a member that is suspended or removed. Stored pages stay."""
        for tasks in (self._following, self._running):
            if (task := tasks.get(member_id)) is not None:
                task.cancel()

    def start(self, member_id: str, *, why: str) -> asyncio.Task[VisitRecord]:
        """Start a visit of a member, or join one. `why`: schedule, operator or member.

        The schedule joins a running visit. A request must see recent changes, so it gets a visit after the running one,
        shared by all requests until it begins. A visit that still waits for a place is joined and also queued as `why`.
        """
        running = self._running.get(member_id)
        if running is None:
            return self._begin(self._running, member_id, self._crawl(member_id, why))
        if why == "schedule" or self._turns.join(member_id, why):
            return running
        following = self._following.get(member_id)
        return following or self._begin(self._following, member_id, self._start_after(running, member_id, why))

    async def _start_after(self, running: asyncio.Task[VisitRecord], member_id: str, why: str) -> VisitRecord:
        await asyncio.wait([running])
        self._following.pop(member_id, None)
        return await self.start(member_id, why=why)

    def _begin(
        self, tasks: dict[str, asyncio.Task[VisitRecord]], member_id: str, work: Coroutine[Any, Any, VisitRecord]
    ) -> asyncio.Task[VisitRecord]:
        task = tasks[member_id] = asyncio.create_task(work)
        task.add_done_callback(lambda done: self._on_visit_end(tasks, member_id, done))
        return task

    def _on_visit_end(
        self, tasks: dict[str, asyncio.Task[VisitRecord]], member_id: str, task: asyncio.Task[VisitRecord]
    ) -> None:
        if tasks.get(member_id) is task:
            del tasks[member_id]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("visit_broken", member=member_id, reason=repr(error))

    async def _crawl(self, member_id: str, why: str) -> VisitRecord:
        async with self._turns.turn(member_id, why) as why:
            basis = await self._store.read(partial(_read_basis, key=member_id, operator=self._operator))
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
                    await self._store_page(basis, datasets, tally)
        except ConnectorError as error:
            kind = "partial" if tally.datasets else "failed"
            return _Outcome(kind, error.message, visit.page_count, visit.byte_count)
        except Exception as error:  # noqa: BLE001  # whatever it is, the visit is concluded: else the next one is at once
            self._log.error("visit_broken", member=member.name, reason=repr(error))
            return _Outcome("failed", _BROKEN, visit.page_count, visit.byte_count)
        kind = "unchanged" if visit.unchanged else "complete" if visit.complete else "partial"
        etag = visit.etag if visit.complete and not tally.skipped else ""
        return _Outcome(kind, visit.problem, visit.page_count, visit.byte_count, etag)

    async def _store_page(self, basis: _Basis, datasets: list[object], tally: Tally) -> None:
        """Store a page. Its texts are parsed in a thread, outside the transaction that stores them."""
        member = basis.member
        sift = partial(ingest.sift, spaces=basis.spaces, entry_bytes=self._settings.crawl_entry_bytes, tally=tally)
        candidates = await asyncio.to_thread(sift, datasets, member)
        known = await self._store.read(lambda tx: ingest.known_texts(tx, member, candidates))
        page = await asyncio.to_thread(partial(ingest.parse_candidates, tally=tally), candidates, known, member)
        begun: dict[str, Any] = {"seq": basis.seq, "since": basis.at}
        most = self._settings.crawl_entries_max
        await self._store.write(lambda tx: ingest.store_page(tx, member, page, **begun, most=most, tally=tally))

    def _conclude(
        self, tx: CatalogueTransaction, *, basis: _Basis, why: str, outcome: _Outcome, tally: Tally
    ) -> VisitRecord:
        member, stands = basis.member, tx.members.is_current(basis.member)
        source = tx.members.get_source(member.id, lock=True)  # after the member, as whoever changes that does
        if source is not None and stands:  # an address that is the member's no longer says nothing of it
            self._follow(tx, source, basis, outcome, tally)
        run = VisitRecord(
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

    def _follow(
        self, tx: CatalogueTransaction, source: CrawlState, basis: _Basis, outcome: _Outcome, tally: Tally
    ) -> None:
        """Apply a visit's outcome to the member's entries and to the time of the next visit."""
        if tx.members.read_revision() != basis.revision or tx.entries.withdrawn_after(source.member_id, basis.seq):
            outcome = replace(outcome, etag="")  # what was read was judged by what has changed since: read it again
        if outcome.outcome == "complete":
            ingest.count_misses(tx, source.member_id, since=basis.at, tally=tally)
        if outcome.outcome == "unchanged":
            tally.datasets = tx.entries.mark_all_seen(source.member_id, tx.now)
        self._note(tx, source, outcome, took=min(tx.now - basis.at, self._settings.crawl_wall_seconds))
        self._age(tx, source, outcome, since=basis.at, tally=tally)

    def _note(self, tx: CatalogueTransaction, source: CrawlState, outcome: _Outcome, *, took: float) -> None:
        good = outcome.outcome in ("complete", "unchanged", "partial")
        source.last_try = tx.now
        source.failures = 0 if good else source.failures + 1
        source.problem = clean(outcome.problem, _PROBLEM_MAX)
        source.etag = outcome.etag
        if good or (source.last_ok or 0.0) > tx.now:  # the clock was set back: how old its entries are begins anew
            source.last_ok = tx.now
        pause = freshness.pause(self._timing, failures=source.failures, took=took, luck=self._luck())
        source.next_at = tx.now + pause
        self._update_state(tx, source)

    def _age(
        self, tx: CatalogueTransaction, source: CrawlState, outcome: _Outcome, *, since: float, tally: Tally
    ) -> None:
        """Mark entries that visits did not reach as stale or expired, and withdraw entries above the limit."""
        tx.entries.reset_future_times(source.member_id, since, now=tx.now)
        if outcome.outcome == "partial":
            tx.entries.mark_stale(source.member_id, before=min(since, tx.now - self._timing.unlisted))
        if source.state != freshness.EXPIRED:  # a connector that is silent keeps its entries, out of the search
            ingest.withdraw_expired(tx, source.member_id, since=since, seconds=self._timing.expired, tally=tally)
        if outcome.outcome != "unchanged":
            ingest.withdraw_excess(
                tx, source.member_id, since=since, most=self._settings.crawl_entries_max, tally=tally
            )

    async def _strip(self) -> None:
        while await self._store.write(ingest.strip_tombstones):
            continue

    def _update_state(self, tx: CatalogueTransaction, source: CrawlState) -> None:
        """Update a connector's state. If it changed, its entries count as changed."""
        state = self._state(source, tx.now)
        if state != source.state:
            source.state = state
            tx.entries.touch_all(source.member_id)

    def _state(self, source: CrawlState, now: float) -> str:
        return freshness.state_of(self._timing, failures=source.failures, last_ok=source.last_ok, now=now)

    async def _sweep(self) -> None:
        """Hourly upkeep: update states that change with time and remove old tombstones."""
        for member_id in await self._store.read(self._list_outdated_states):
            await self._store.write(
                partial(self._update_member_state, member_id=member_id)
            )  # or it would hold all at once
        await self._store.write(lambda tx: tx.entries.forget_tombstones(tx.now - self._settings.tombstone_seconds))

    def _list_outdated_states(self, tx: CatalogueTransaction) -> list[str]:
        """The members whose connectors' states are those of an earlier time."""
        return [source.member_id for source in tx.members.list_sources() if self._state(source, tx.now) != source.state]

    def _update_member_state(self, tx: CatalogueTransaction, *, member_id: str) -> None:
        if (source := tx.members.get_source(member_id, lock=True)) is not None:
            self._update_state(tx, source)


def _list_due(tx: CatalogueTransaction, *, limit: int) -> list[CrawlState]:
    return list(tx.members.list_due(tx.now, limit=limit))


def _read_basis(tx: CatalogueTransaction, *, key: str, operator: tuple[str, str, str]) -> _Basis:
    """Read the state at the start of a visit. The operator's ids belong to no member."""
    revision, seq = tx.members.read_revision(), tx.entries.last_seq()  # before what they stand for
    member = tx.members.of(key)
    source = tx.members.get_source(member.id)
    if source is None:
        raise ConnectorError(f"the member {member.name} has no crawl state; remove it and let it join again")
    spaces = Namespaces([operator, *((one.id, one.name, one.url) for one in tx.members.list_all())])
    return _Basis(member=member, etag=source.etag, spaces=spaces, revision=revision, seq=seq, at=tx.now)
