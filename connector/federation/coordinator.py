"""Questions over several owners, from SQL to an Arrow stream: plan, ask the owners, merge, account.

    answer = await coordinator.ask(Question(sql=..., purpose=...), by="console")
    async for part in answer.parts(): ...      # one Arrow IPC stream; its last record says how it ended
    await answer.close()

How one question goes on its way is in `execution`. Whatever happens, the log has a `QueryCoordinated` under
each of its agreements, or one alone where it has none, with the totals; the first has every owner's part, too. The main
process loads neither the engine nor Arrow for this.
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
from connector.errors import Busy, HanseError, Limited, NotFound, PeerFailed, QueryInvalid, Refused, internal_error
from connector.events import QueryCoordinated, together
from connector.federation.deadline import Deadline
from connector.federation.execution import END_OF_STREAM, Answer, Means, Work, filled
from connector.federation.expected_types import Shapes
from connector.federation.federated_query import Missing, Progress, Question
from connector.federation.owner_client import Answered, Remote, Ticket, told_by
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
    """What the datasets of these names are to us, for a purpose; `fresh`: as their owners say now."""

    def __call__(self, names: Collection[Name], purpose: str, *, fresh: bool = False) -> Awaitable[KnownTables]: ...


class _NoTurn(Limited):
    """A question that was refused before anything was done for it."""


class Coordinator:
    """Asks questions over several owners. `tables_for` and `ticket` speak for our agreements as a consumer.

    At most `queries_max` questions run at once. TypeCasts wait for their turn, at most `queue_seconds` and within their
    own deadline; askers take turns, so that many questions of one asker do not delay another's.
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
        self._turns = TurnQueue(queries_max, waiting=_WAITING_MAX, wait_seconds=queue_seconds)
        self._means = Means(
            pool=pool,
            remote=Remote(net, pool, ticket),
            shapes=Shapes(pool),
            work_dir=work_dir,
            memory_mb=memory_mb,
            temp_mb=temp_mb,
            bytes_max=bytes_max,
            plan=self._plan,
            ended=self._ended,
        )
        self._waiting: dict[str, Progress] = {}
        self._known: OrderedDict[str, Progress] = OrderedDict()
        self._running: set[str] = set()
        self._explaining = 0  # questions of which only the plan is asked
        if metrics is not None:
            metrics.queries.set_function(lambda: len(self._running) + self._explaining)
            metrics.queries_waiting.set_function(lambda: self._turns.waiting)
        shutil.rmtree(work_dir, ignore_errors=True)  # what a crash has left
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def progress(self, query_id: str) -> Progress | None:
        """A question that waits, runs or ran recently."""
        return self._waiting.get(query_id) or self._known.get(query_id)

    def recent(self) -> list[Progress]:
        """Questions that wait, then those that run or ran recently; each newest first."""
        return [*reversed(self._waiting.values()), *reversed(self._known.values())]

    def cancel(self, query_id: str) -> bool:
        """Stop a question that runs or waits; its owners' work stops with it. Whether there was one to stop."""
        found = self.progress(query_id)
        under_way = query_id in self._running or query_id in self._waiting
        if found is None or found.task is None or not under_way:
            return False
        found.code = "cancelled"
        found.task.cancel()
        return True

    async def plan(self, question: Question, *, by: str) -> FederatedPlan:
        """The plan alone; nothing is asked of an owner but what its agreement shows. Counts among the questions that
        run, and has their time. Refusals are recorded."""
        deadline = Deadline(question.seconds or self._seconds)
        await self._take_turn(by, deadline)
        self._explaining += 1
        try:
            return await self._plan_in_time(question, self._progress(question, by), deadline)
        except HanseError as error:
            await self._record(self._progress(question, by), None, (), "refused", error)
            raise
        finally:
            self._explaining -= 1
            self._turns.give_back()

    async def ask(self, question: Question, *, by: str) -> Answer:
        """FederatedPlan, ask, and start merging. Raises before the first byte whatever stands in the way."""
        if self.progress(question.query_id) is not None:
            raise QueryInvalid("a question with this id is running or recent; choose another", code="id_taken")
        progress = self._progress(question, by)
        progress.task = asyncio.current_task()
        work = Work(self._means, question, progress, seconds=question.seconds or self._seconds)
        try:
            await self._wait(work)
            return await work.begin()
        except _NoTurn:  # counted
            raise
        except BaseException as error:
            await asyncio.shield(work.end(_outcome(error, work.asked), error))
            if isinstance(error, asyncio.CancelledError) and progress.code == "cancelled":
                raise Refused("the question was cancelled", code="cancelled") from None
            raise

    async def _plan_in_time(self, question: Question, progress: Progress, deadline: Deadline) -> FederatedPlan:
        try:
            async with asyncio.timeout(deadline.left()):
                return await self._plan(question, progress, False)
        except TimeoutError:
            raise Limited(
                f"planning took longer than {deadline.seconds:g} s; ask for less", code="time_limit"
            ) from None

    async def _wait(self, work: Work) -> None:
        """Wait until a question may run. Meanwhile it is known as one that waits, afterwards as one that runs or ran.
        One that was refused is known no more: its id may be used again."""
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

        A refusal costs no database write: the log has the number of them (decision 35).
        """
        try:
            await self._turns.take(by, seconds=min(self._queue_seconds, deadline.left(later=_STAGES)))
        except Busy as full:
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

    def _progress(self, question: Question, by: str) -> Progress:
        query_id = question.query_id or secrets.token_hex(8)
        return Progress(query_id, by, question.sql[:10_000], question.purpose, time.time())

    async def _plan(self, question: Question, progress: Progress, fresh: bool) -> FederatedPlan:
        read = await asyncio.to_thread(_read, question)
        progress.misleading = read.misleading
        copies = [(ALL, name) for name in question.layout.copies]
        known = await self._tables_for((*read.names, *copies), question.purpose, fresh=fresh)
        for silent in _needed(read.names, known):
            missing = Missing.of(
                silent.error, silent.owner, silent.participant, silent.dataset, agreements=[silent.agreement]
            )
            progress.miss(missing, question, silent.error)
        found, planned = await asyncio.to_thread(_planned, question, read.tree, question.layout.apply_to(known.tables))
        progress.planning_ms = round(read.ms + planned, 1)
        return found

    async def _ended(self, work: Work, outcome: str, error: BaseException | None) -> None:
        if work.progress.query_id in self._running:
            self._running.discard(work.progress.query_id)
            self._turns.give_back()
        await self._record(work.progress, work.plan, work.answers, outcome, error)

    async def _record(
        self,
        progress: Progress,
        plan: FederatedPlan | None,
        answers: Sequence[Answered],
        outcome: str,
        error: BaseException | None,
    ) -> None:
        failure = _told(error)
        progress.state = "complete" if outcome == "ok" else outcome
        progress.code = progress.code or ("" if error is None else "cancelled" if failure is None else failure.code)
        progress.reason = "" if failure is None else failure.message
        under = _under(plan)
        common: dict[str, Any] = {
            "actor": progress.by,
            "purpose": progress.purpose,
            "process": progress.query_id,
            "outcome": outcome,
            "code": progress.code,
            "reason": progress.reason[:400],
            "rule": str(getattr(failure, "rule", "")),
        }
        told = _told_under(list(under), progress, answers)
        events = [
            QueryCoordinated(agreement=one, dataset=named, detail=detail, **common)
            for (one, named), detail in zip(under.items(), told, strict=True)
        ]

        def work(tx: Transaction) -> None:
            for event in events:
                tx.publish(event)

        await self._store.write(work)


def _under(plan: FederatedPlan | None) -> dict[str, str]:
    """The agreements of a question with what each is for, as `owner/dataset`; only an empty one where it has none."""
    found: dict[str, dict[str, None]] = {}
    for one in plan.fragments if plan is not None else ():
        for agreement, dataset in one.under:
            found.setdefault(agreement, {})[f"{one.owner}/{dataset}"] = None
    return {agreement: ",".join(names)[:2000] for agreement, names in found.items()} or {"": ""}


def _told_under(agreements: Sequence[str], progress: Progress, answers: Sequence[Answered]) -> Iterator[dict[str, Any]]:
    """The `detail` of a question's record under each of its agreements: the first has all, the others what is theirs.

    All in each would be as much as the square of how many there are.
    """
    totals = {"rows": progress.rows, "ms": progress.ms}
    parts = [_part(one) for one in answers if one.missing is None]
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


def _part(answer: Answered) -> dict[str, Any]:
    """What a fragment brought; no rows where nobody had counted them yet when the question failed."""
    return {
        "owner": answer.fragment.owner,
        "fragment": answer.fragment.id,
        "agreements": list(answer.fragment.agreements),
        **({} if answer.unread else {"rows": answer.rows}),
        "bytes": answer.nbytes,
        **({"digest": answer.digest} if answer.digest else {}),
    }


@dataclass(frozen=True, slots=True)
class _Read:
    """A question's text, read: its tree, the datasets it names, and what stands against a partial answer."""

    tree: exp.Expr
    names: tuple[Name, ...]
    misleading: str
    ms: float


def _read(question: Question) -> _Read:
    from connector.federation import partial_answers
    from connector.federation.planner import sql_text

    begun = time.thread_time()
    tree = sql_text.read(question.sql)
    misleading = partial_answers.why_not(tree) if question.partial else ""
    return _Read(tree, sql_text.datasets(tree), misleading, (time.thread_time() - begun) * 1000)


def _planned(question: Question, tree: exp.Expr, tables: Tables) -> tuple[FederatedPlan, float]:
    """The plan, and the milliseconds of processor time that it took."""
    from connector.federation.planner.planner import plan

    begun = time.thread_time()
    found = plan(question.sql, tables, tree=tree, mode=question.mode, across_agreements=True)
    return found, (time.thread_time() - begun) * 1000


def _needed(names: Collection[Name], known: KnownTables) -> Iterator[UnreachableOwner]:
    """Datasets of the question whose owners did not say what they share: a union without them would be short.

    Raises where nobody else has the dataset.
    """
    for owner, dataset in names:
        silent = [one for one in known.silent if one.may_be(owner, dataset)]
        there = [key for key in known.tables if key[1] == dataset and owner in (ALL, key[0])]
        if silent and not there:
            raise told_by(silent[0])
        for one in silent if owner == ALL else ():
            yield UnreachableOwner(one.owner, one.dataset, one.participant, one.agreement, told_by(one))


def _told(error: BaseException | None) -> HanseError | None:
    """An error as it is recorded; None where there is none, or whoever asked has stopped."""
    if error is None or isinstance(error, asyncio.CancelledError):
        return None
    return error if isinstance(error, HanseError) else internal_error()


def _outcome(error: BaseException, asked: bool) -> str:
    if not isinstance(error, HanseError | asyncio.CancelledError):
        return "failed"
    said = isinstance(error, Refused | QueryInvalid | NotFound) or not (asked or isinstance(error, PeerFailed))
    if said and not isinstance(error, asyncio.CancelledError | Limited):
        return "refused"
    return "broken" if isinstance(error, asyncio.CancelledError) else "failed"


__all__ = ["END_OF_STREAM", "MEDIA", "TRAILER_KEY", "Answer", "Coordinator", "Progress", "Question", "filled"]
