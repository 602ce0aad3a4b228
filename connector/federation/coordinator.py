"""Federated query service: plan SQL over several owners, ask them, merge their answers, record the query.

    answer = await coordinator.ask(Question(sql=..., purpose=...), by="console")
    async for part in answer.parts(): ...      # one Arrow IPC stream; its last record states the outcome
    await answer.close()

`execution` runs a single question. Every outcome is logged as one `QueryCoordinated` with the totals for each agreement
(a single one without an agreement); the first record also has every owner's part. Runs in the main process, which loads
neither the engine nor Arrow.
"""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections import OrderedDict
from collections.abc import Awaitable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import TRAILER_KEY
from connector.errors import (
    Absent,
    ConnectorError,
    Denied,
    Limited,
    PeerFailed,
    QueryInvalid,
    Unavailable,
    internal_error,
)
from connector.events import QueryCoordinated, together
from connector.federation.deadline import Deadline
from connector.federation.execution import END_OF_STREAM, FederatedAnswer, Means, Work, fill_trailer
from connector.federation.expected_types import Shapes
from connector.federation.federated_query import Missing, QueryProgress, Question
from connector.federation.owner_client import OwnerAnswer, OwnerClient, Ticket, explain_silence
from connector.federation.planner.model import ALL, FederatedPlan, KnownTables, Tables, UnreachableOwner
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.concurrency.turn_queue import TurnQueue, pause_after
from connector.infra.net.http_client import HttpClient
from connector.store import Store, Transaction
from connector.telemetry import Metrics

if TYPE_CHECKING:
    from sqlglot import exp

MEDIA = "application/vnd.apache.arrow.stream"
_KEPT = 200
_WAITING_MAX = 512  # questions of at most 64 KB; one asker has half of them
_STAGES = 3  # that follow the wait: planning, asking, merging

_WHY_NO_TURN = {"queue_full": "too many questions wait already", "queue_timeout": "the questions before it take long"}

Name = tuple[str, str]


class TablesFor(Protocol):
    """Looks up the tables of these names for a purpose; `fresh` asks their owners again."""

    def __call__(self, names: Collection[Name], purpose: str, *, fresh: bool = False) -> Awaitable[KnownTables]: ...


class _NoTurn(Limited):
    """No place became free for the question; it was refused before any work was done."""


class Coordinator:
    """Runs questions over several owners. `tables_for` and `ticket` look up this participant's consumer agreements.

    At most `queries_max` questions run at once, at most three quarters of them for one asker. Others wait in a
    round-robin queue keyed by asker, for at most `queue_seconds` and within their own deadline.
    """

    def __init__(
        self,
        store: Store,
        net: HttpClient,
        pool: Pool,
        *,
        work_dir: Path,
        tables_for: TablesFor,
        ticket: Ticket,
        seconds: float = 60.0,
        memory_mb: int = 512,
        temp_mb: int = 2048,
        bytes_max: int = 4 * 2**30,
        queries_max: int = 8,
        queue_seconds: float = 5.0,
        metrics: Metrics | None = None,
    ) -> None:
        self._store = store
        self._tables_for = tables_for
        self._seconds = seconds
        self._queries_max = queries_max
        self._queue_seconds = queue_seconds
        share = max(1, queries_max - max(1, queries_max // 4))
        self._turns = TurnQueue(queries_max, each=share, waiting=_WAITING_MAX, wait_seconds=queue_seconds)
        self._means = Means(
            pool=pool,
            remote=OwnerClient(net, pool, ticket),
            shapes=Shapes(pool),
            work_dir=work_dir,
            memory_mb=memory_mb,
            temp_mb=temp_mb,
            bytes_max=bytes_max,
            plan=self._plan,
            on_end=self._on_end,
        )
        self._waiting: dict[str, QueryProgress] = {}
        self._known: OrderedDict[str, QueryProgress] = OrderedDict()
        self._running: set[str] = set()
        self._explaining = 0  # questions that ask only for their plan
        if metrics is not None:
            metrics.queries.set_function(lambda: len(self._running) + self._explaining)
            metrics.queries_waiting.set_function(lambda: self._turns.waiting)
        shutil.rmtree(work_dir, ignore_errors=True)  # files left by a crash
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def progress(self, query_id: str) -> QueryProgress | None:
        """Return the state of a question that waits, runs or ran recently."""
        return self._waiting.get(query_id) or self._known.get(query_id)

    def recent(self) -> list[QueryProgress]:
        """List questions that wait, then those that run or ran recently; each newest first."""
        return [*reversed(self._waiting.values()), *reversed(self._known.values())]

    def cancel(self, query_id: str) -> bool:
        """Stop a question that runs or waits, and its work at the owners. Return whether it was under way."""
        found = self.progress(query_id)
        under_way = query_id in self._running or query_id in self._waiting
        if found is None or found.task is None or not under_way:
            return False
        found.code = "cancelled"
        found.task.cancel()
        return True

    async def plan(self, question: Question, *, by: str) -> FederatedPlan:
        """Return the plan without asking owners for data; only contract summaries are fetched.

        Counts as a running question and has the same deadline. Refusals are recorded.
        """
        deadline = Deadline(question.seconds or self._seconds)
        await self._take_turn(by, deadline)
        self._explaining += 1
        try:
            return await self._plan_in_time(question, self._make_progress(question, by), deadline)
        except ConnectorError as error:
            await self._record(self._make_progress(question, by), None, (), "refused", error)
            raise
        finally:
            self._explaining -= 1
            self._turns.give_back(by)

    async def ask(self, question: Question, *, by: str) -> FederatedAnswer:
        """Plan the question, ask the owners and start merging. Errors up to the first byte are raised here."""
        if self.progress(question.query_id) is not None:
            raise QueryInvalid("a question with this id is running or recent; choose another", code="id_taken")
        progress = self._make_progress(question, by)
        progress.task = asyncio.current_task()
        work = Work(self._means, question, progress, seconds=question.seconds or self._seconds)
        try:
            await self._wait(work)
            return await work.begin()
        except _NoTurn:  # counted
            raise
        except BaseException as error:
            await asyncio.shield(work.end(_name_outcome(error, work.asked), error))
            if isinstance(error, asyncio.CancelledError) and progress.code == "cancelled":
                raise Denied("the question was cancelled", code="cancelled") from None
            raise

    async def _plan_in_time(self, question: Question, progress: QueryProgress, deadline: Deadline) -> FederatedPlan:
        try:
            async with asyncio.timeout(deadline.seconds_left()):
                return await self._plan(question, progress, False)
        except TimeoutError:
            raise Limited(
                f"planning took longer than {deadline.seconds:g} s; ask for less", code="time_limit"
            ) from None

    async def _wait(self, work: Work) -> None:
        """Wait until a question may run. It is listed as waiting meanwhile and as running afterwards.

        A question that gets no place is forgotten, so its id may be used again.
        """
        progress = work.progress
        self._waiting[progress.query_id] = progress
        try:
            await self._take_turn(progress.by, work.deadline)
        finally:
            del self._waiting[progress.query_id]
        self._running.add(progress.query_id)
        put_recent(self._known, progress.query_id, progress, most=_KEPT)

    async def _take_turn(self, by: str, deadline: Deadline) -> None:
        """Wait until the question may run, before any work is done for it.

        A refusal writes nothing to the database; the log records only how many there were (decision 35).
        """
        try:
            await self._turns.take(by, seconds=min(self._queue_seconds, deadline.seconds_left(later=_STAGES)))
        except Unavailable as full:
            pause = pause_after(self._queue_seconds)
            refused = _NoTurn(
                f"expected one of {self._queries_max} places for questions to become free, got none: "
                f"{_WHY_NO_TURN[full.code]}; ask again in {pause} s",
                code="queries_max",
                retry_after=pause,
            )
            counted = QueryCoordinated(actor=by, outcome="refused", code=refused.code)
            self._store.refusals.count(counted, time.monotonic())
            raise refused from None

    def _make_progress(self, question: Question, by: str) -> QueryProgress:
        query_id = question.query_id or secrets.token_hex(8)
        return QueryProgress(query_id, by, question.sql[:10_000], question.purpose, time.time())

    async def _plan(self, question: Question, progress: QueryProgress, fresh: bool) -> FederatedPlan:
        read = await asyncio.to_thread(_parse, question)
        progress.misleading = read.misleading
        copies = [(ALL, name) for name in question.layout.copies]
        known = await self._tables_for((*read.names, *copies), question.purpose, fresh=fresh)
        for silent in _find_missing_owners(read.names, known):
            missing = Missing.of(
                silent.error, silent.owner, silent.participant, silent.dataset, agreements=[silent.agreement]
            )
            progress.miss(missing, question, silent.error)
        found, planned = await asyncio.to_thread(
            _make_plan, question, read.tree, question.layout.apply_to(known.tables)
        )
        progress.planning_ms = round(read.ms + planned, 1)
        return found

    async def _on_end(self, work: Work, outcome: str, error: BaseException | None) -> None:
        if work.progress.query_id in self._running:
            self._running.discard(work.progress.query_id)
            self._turns.give_back(work.progress.by)
        await self._record(work.progress, work.plan, work.answers, outcome, error)

    async def _record(
        self,
        progress: QueryProgress,
        plan: FederatedPlan | None,
        answers: Sequence[OwnerAnswer],
        outcome: str,
        error: BaseException | None,
    ) -> None:
        failure = _error_to_record(error)
        progress.state = "complete" if outcome == "ok" else outcome
        progress.code = progress.code or ("" if error is None else "cancelled" if failure is None else failure.code)
        progress.reason = "" if failure is None else failure.message
        under = _map_agreements(plan)
        common: dict[str, Any] = {
            "actor": progress.by,
            "purpose": progress.purpose,
            "process": progress.query_id,
            "outcome": outcome,
            "code": progress.code,
            "reason": progress.reason[:400],
            "rule": str(getattr(failure, "rule", "")),
        }
        told = _split_details(list(under), progress, answers)
        events = [
            QueryCoordinated(agreement=one, dataset=named, detail=detail, **common)
            for (one, named), detail in zip(under.items(), told, strict=True)
        ]

        def work(tx: Transaction) -> None:
            for event in events:
                tx.publish(event)

        await self._store.write(work)


def _map_agreements(plan: FederatedPlan | None) -> dict[str, str]:
    """Map each agreement to its datasets (`owner/dataset`, comma-separated); one empty entry without agreements."""
    found: dict[str, dict[str, None]] = {}
    for one in plan.fragments if plan is not None else ():
        for agreement, dataset in one.under:
            found.setdefault(agreement, {})[f"{one.owner}/{dataset}"] = None
    return {agreement: ",".join(names)[:2000] for agreement, names in found.items()} or {"": ""}


def _split_details(
    agreements: Sequence[str], progress: QueryProgress, answers: Sequence[OwnerAnswer]
) -> Iterator[dict[str, Any]]:
    """Yield the `detail` of the record for each agreement: the first has every part, the others only their own.

    Every part in every record would grow with the square of the number of agreements.
    """
    totals = {"rows": progress.rows, "ms": progress.ms}
    parts = [_report_fragment(one) for one in answers if one.missing is None]
    missing = [one.to_json() for one in progress.missing]
    by: dict[str, tuple[list[Any], list[Any]]] = {one: ([], []) for one in agreements}
    for part in parts:
        for one in by.keys() & part["agreements"]:
            by[one][0].append({**part, "agreements": [one]})
    for lacking in missing:
        for one in by.keys() & lacking["agreement"].split(","):
            by[one][1].append({**lacking, "agreement": one})
    yield {**totals, "owners": parts, **({"missing": missing} if missing else {}), **together(agreements)}
    whole = {"agreement": agreements[0], "agreements": len(agreements)}
    for owners, lacks in [by[one] for one in agreements[1:]]:
        yield {**totals, "owners": owners, **({"missing": lacks} if lacks else {}), "whole": whole}


def _report_fragment(answer: OwnerAnswer) -> dict[str, Any]:
    """Return the figures of a fragment; without `rows` if they were not counted before the question failed."""
    return {
        "owner": answer.fragment.owner,
        "fragment": answer.fragment.id,
        "agreements": list(answer.fragment.agreements),
        **({} if answer.unread else {"rows": answer.rows}),
        "bytes": answer.nbytes,
        **({"digest": answer.digest} if answer.digest else {}),
    }


@dataclass(frozen=True, slots=True)
class _ParsedQuestion:
    """A parsed question: its tree, its datasets, and why a partial answer would mislead (empty if it would not)."""

    tree: exp.Expr
    names: tuple[Name, ...]
    misleading: str
    ms: float


def _parse(question: Question) -> _ParsedQuestion:
    from connector.federation import partial_answers
    from connector.federation.planner import sql_text

    begun = time.thread_time()
    tree = sql_text.read(question.sql)
    misleading = partial_answers.explain_misleading(tree) if question.partial else ""
    return _ParsedQuestion(tree, sql_text.datasets(tree), misleading, (time.thread_time() - begun) * 1000)


def _make_plan(question: Question, tree: exp.Expr, tables: Tables) -> tuple[FederatedPlan, float]:
    """Return the plan and the milliseconds of processor time that it took."""
    from connector.federation.planner.planner import plan

    begun = time.thread_time()
    found = plan(question.sql, tables, tree=tree, mode=question.mode, across_agreements=True)
    return found, (time.thread_time() - begun) * 1000


def _find_missing_owners(names: Collection[Name], known: KnownTables) -> Iterator[UnreachableOwner]:
    """Yield the datasets whose owners sent no contract summary; a union without them would be incomplete.

    Raises: the owner's error if no other owner has the dataset.
    """
    for owner, dataset in names:
        silent = [one for one in known.silent if one.may_be(owner, dataset)]
        there = [key for key in known.tables if key[1] == dataset and owner in (ALL, key[0])]
        if silent and not there:
            raise explain_silence(silent[0])
        for one in silent if owner == ALL else ():
            yield UnreachableOwner(one.owner, one.dataset, one.participant, one.agreement, explain_silence(one))


def _error_to_record(error: BaseException | None) -> ConnectorError | None:
    """Return the error to record; None without an error or if the caller cancelled the question."""
    if error is None or isinstance(error, asyncio.CancelledError):
        return None
    return error if isinstance(error, ConnectorError) else internal_error()


def _name_outcome(error: BaseException, asked: bool) -> str:
    if not isinstance(error, ConnectorError | asyncio.CancelledError):
        return "failed"
    said = isinstance(error, Denied | QueryInvalid | Absent) or not (asked or isinstance(error, PeerFailed))
    if said and not isinstance(error, asyncio.CancelledError | Limited):
        return "refused"
    return "broken" if isinstance(error, asyncio.CancelledError) else "failed"


__all__ = [
    "END_OF_STREAM",
    "MEDIA",
    "TRAILER_KEY",
    "Coordinator",
    "FederatedAnswer",
    "QueryProgress",
    "Question",
    "fill_trailer",
]
