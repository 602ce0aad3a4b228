"""One question over several owners, from SQL to an Arrow stream: plan, ask the owners, merge, account.

    answer = await coordinator.ask(Question(sql=..., purpose=...), by="console")
    async for part in answer.parts(): ...      # one Arrow IPC stream; its last record says how it ended
    await answer.close()

Fragments run at once, as far as their keys allow; the first that fails ends the others. Their answers lie in a
private directory until the residual has run over them in a worker that can read nothing else. Whatever happens,
the log has one `QueryCoordinated` with the totals. The main process loads neither the engine nor Arrow for this.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from connector.datasets.sources.files import file_ref
from connector.errors import HanseError, Limited, QueryInvalid, Refused
from connector.events import QueryCoordinated
from connector.net import Net
from connector.query.federation import Fragment, Layout, Mode, Plan, TableInfo, Tables
from connector.query.job import TRAILER_KEY, Job, Limits, Recheck, Relation
from connector.query.pool import Pool, Result
from connector.query.remote import Answered, Budget, KeyTable, Remote, Request, Ticket
from connector.store import Store

TablesFor = Callable[[Collection[tuple[str, str]] | None, str], Awaitable[Mapping[tuple[str, str], TableInfo]]]

MEDIA = "application/vnd.apache.arrow.stream"
END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_AT_ONCE = 8
_KEYS_MAX = 3_000_000  # federated-query, section 9.1: beyond this a scan costs less
_KEY_BYTES_MAX = 16 * 2**20  # what an owner's envelope takes, in base64
_KEPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is asked. `rows` limits the answer; `nbytes` what the owners' answers may take together."""

    sql: str
    purpose: str = ""
    mode: Mode = Mode.FULL
    seconds: float | None = None
    rows: int | None = None
    nbytes: int | None = None
    codec: str = "none"  # of the answer
    wire: str = "zstd"  # of what owners send
    layout: Layout = field(default_factory=Layout)
    query_id: str = ""  # chosen by who asks, to look on meanwhile; else one is made


@dataclass(slots=True)
class Progress:
    """A question's state, for those who ask about it: planning, asking, merging, then how it ended."""

    query_id: str
    by: str
    sql: str
    purpose: str
    started_at: float
    state: str = "planning"
    owners: list[dict[str, Any]] = field(default_factory=list)
    fragments: tuple[Fragment, ...] = ()
    rows: int = 0
    ms: int = 0
    planning_ms: float = 0.0  # of processor time
    code: str = ""
    reason: str = ""
    task: asyncio.Task[Any] | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "id": self.query_id,
            "by": self.by,
            "sql": self.sql,
            "purpose": self.purpose,
            "started_at": self.started_at,
            "state": self.state,
            "owners": self.owners,
            "waiting": [
                {"owner": one.owner, "fragment": one.id, "dataset": ",".join(one.datasets)}
                for one in self.fragments
                if all(told["fragment"] != one.id for told in self.owners)
            ],
            "rows": self.rows,
            "ms": self.ms,
            "code": self.code,
            "reason": self.reason,
        }


class Coordinator:
    """Asks questions over several owners. `tables_for` and `ticket` speak for our agreements as a consumer."""

    def __init__(
        self,
        store: Store,
        net: Net,
        pool: Pool,
        *,
        work_dir: Path,
        tables_for: TablesFor,
        ticket: Ticket,
        seconds: float = 60.0,
        memory_mb: int = 512,
        bytes_max: int = 4 * 2**30,
        queries_max: int = 8,
    ) -> None:
        self._store = store
        self._pool = pool
        self._work_dir = work_dir
        self._tables_for = tables_for
        self._remote = Remote(net, pool, ticket)
        self._seconds = seconds
        self._memory_mb = memory_mb
        self._bytes_max = bytes_max
        self._queries_max = queries_max
        self._known: OrderedDict[str, Progress] = OrderedDict()
        self._running: set[str] = set()
        shutil.rmtree(work_dir, ignore_errors=True)  # what a crash has left
        work_dir.mkdir(mode=0o700, parents=True, exist_ok=True)

    def progress(self, query_id: str) -> Progress | None:
        """A running or recent question."""
        return self._known.get(query_id)

    def recent(self) -> list[Progress]:
        """Running and recent questions, newest first."""
        return list(reversed(self._known.values()))

    def cancel(self, query_id: str) -> bool:
        """Stop a running question; its owners' work stops with it. Whether it was running."""
        found = self._known.get(query_id)
        if found is None or query_id not in self._running or found.task is None:
            return False
        found.code = "cancelled"
        found.task.cancel()
        return True

    async def plan(self, question: Question, *, by: str) -> Plan:
        """The plan alone; nothing is asked of an owner but what its agreement shows. Refusals are recorded."""
        try:
            return await self._plan(question, self._progress(question, by))
        except HanseError as error:
            await self._record(self._progress(question, by), None, (), "refused", error)
            raise

    async def ask(self, question: Question, *, by: str) -> Answer:
        """Plan, ask, and start merging. Raises before the first byte whatever stands in the way."""
        if len(self._running) >= self._queries_max:
            raise Limited(f"{len(self._running)} questions are running, as many as may be; wait", code="queries_max")
        if question.query_id in self._known:
            raise QueryInvalid("a question with this id is running or recent; choose another", code="id_taken")
        progress = self._progress(question, by)
        self._known[progress.query_id] = progress
        while len(self._known) > _KEPT:
            self._known.popitem(last=False)
        self._running.add(progress.query_id)
        progress.task = asyncio.current_task()
        work = _Work(self, question, progress)
        try:
            return await work.begin()
        except BaseException as error:
            await asyncio.shield(work.end(_outcome(error, work.asked), error))
            if isinstance(error, asyncio.CancelledError) and progress.code == "cancelled":
                raise Refused("the question was cancelled", code="cancelled") from None
            raise

    def _progress(self, question: Question, by: str) -> Progress:
        query_id = question.query_id or secrets.token_hex(8)
        return Progress(query_id, by, question.sql[:10_000], question.purpose, time.time())

    async def _plan(self, question: Question, progress: Progress) -> Plan:
        names = await asyncio.to_thread(_named, question.sql)
        copies = [("all", name) for name in question.layout.copies]
        known = question.layout.over(await self._tables_for((*names, *copies), question.purpose))
        found, progress.planning_ms = await asyncio.to_thread(_planned, question, known)
        return found

    async def _record(
        self,
        progress: Progress,
        plan: Plan | None,
        answers: Sequence[Answered],
        outcome: str,
        error: BaseException | None,
    ) -> None:
        progress.state = "complete" if outcome == "ok" else outcome
        progress.code = progress.code or getattr(error, "code", "" if error is None else "cancelled")
        progress.reason = error.message if isinstance(error, HanseError) else ""
        fragments = plan.fragments if plan is not None else ()
        event = QueryCoordinated(
            actor=progress.by,
            dataset=",".join(dict.fromkeys(f"{one.owner}/{name}" for one in fragments for name in one.datasets))[:2000],
            agreement=",".join(dict.fromkeys(name for one in fragments for name in one.agreements))[:2000],
            purpose=progress.purpose,
            process=progress.query_id,
            outcome=outcome,
            code=progress.code,
            reason=progress.reason[:400],
            rule=str(getattr(error, "rule", "")),
            detail={
                "rows": progress.rows,
                "ms": progress.ms,
                "owners": [
                    {"owner": one.fragment.owner, "fragment": one.fragment.id, "rows": one.rows, "bytes": one.nbytes}
                    for one in answers
                ],
            },
        )
        await self._store.write(lambda tx: tx.publish(event))


class _Work:
    """One question on its way; ends exactly once."""

    def __init__(self, coordinator: Coordinator, question: Question, progress: Progress) -> None:
        self.home = coordinator
        self.question = question
        self.progress = progress
        self.begun = time.monotonic()
        self.seconds = question.seconds or coordinator._seconds
        self.plan: Plan | None = None
        self.asked = False
        self.answers: list[Answered] = []
        self.folder: Path | None = None
        self.run: AbstractAsyncContextManager[Result] | None = None
        self.result: Result | None = None
        self.done = False
        self._key_tables: dict[tuple[str, str], asyncio.Future[bytes | None]] = {}

    async def begin(self) -> Answer:
        home, progress = self.home, self.progress
        try:
            async with asyncio.timeout(self.seconds):
                self.plan = plan = await home._plan(self.question, progress)
                progress.fragments = plan.fragments
                self.folder = Path(tempfile.mkdtemp(prefix="query-", dir=home._work_dir))
                progress.state, self.asked = "asking", True
                self.answers = await self._fragments(plan)
                self._check_withheld(plan)
                progress.state = "merging"
                progress.owners = self.owners()
                return await self._merge(plan)
        except TimeoutError:
            waiting = [one.owner for one in (self.plan.fragments if self.plan else ()) if one.id not in self._there()]
            where = f"waiting for {', '.join(dict.fromkeys(waiting))}" if waiting else progress.state
            raise Limited(
                f"the question took longer than {self.seconds:g} s ({where}); ask for less, or raise limits.seconds",
                code="time_limit",
                stage=progress.state,
            ) from None

    async def _fragments(self, plan: Plan) -> list[Answered]:
        """Every fragment's answer, in the plan's order; the first failure ends the rest."""
        gate, budget = asyncio.Semaphore(_AT_ONCE), Budget(self.question.nbytes or self.home._bytes_max)
        tasks: dict[str, asyncio.Task[Answered]] = {}

        async def one(fragment: Fragment) -> Answered:
            sources = {key.source for key in fragment.keys}
            shares = {source: [await tasks[share.id] for share in plan.tables[source]] for source in sources}
            async with gate:
                sql, keys = await self._keys(fragment, shares)
                answered = await self._ask(fragment, sql, keys, budget)
            self.progress.owners.append(_told(answered))
            return answered

        try:
            async with asyncio.TaskGroup() as group:
                for fragment in plan.fragments:
                    tasks[fragment.id] = group.create_task(one(fragment))
        except BaseExceptionGroup as failed:
            raise _first(failed) from None
        return [tasks[fragment.id].result() for fragment in plan.fragments]

    async def _keys(self, fragment: Fragment, shares: Mapping[str, list[Answered]]) -> tuple[str, tuple[KeyTable, ...]]:
        """The fragment's SQL and the tables of keys that it reads; too many keys are not sent, and not tested."""
        sql: str = fragment.sql
        tables: list[KeyTable] = []
        for key in fragment.keys:
            known = (key.source, key.output)
            if known not in self._key_tables:
                self._key_tables[known] = asyncio.ensure_future(self._distinct(key.output, shares[key.source]))
            arrow = await asyncio.shield(self._key_tables[known])
            if arrow is None:
                sql = sql.replace(key.condition, "TRUE")
            elif all(table.name != key.name for table in tables):
                tables.append(KeyTable(key.name, ("k",), arrow))
        return sql, tuple(tables)

    async def _distinct(self, output: str, answers: Sequence[Answered]) -> bytes | None:
        """The distinct values of an output over its shares, sorted, as an Arrow stream; None where too many."""
        relations = self._relations(answers)
        parts = " UNION ALL ".join(f'SELECT "{output}" AS k FROM "{name}"' for name in relations)  # noqa: S608
        job = Job(
            relations=relations,
            sql=f"SELECT DISTINCT k FROM ({parts}) WHERE k IS NOT NULL ORDER BY k",  # noqa: S608  names of the plan
            limits=Limits(seconds=self._left(), memory_mb=self.home._memory_mb, temp_mb=4 * self.home._memory_mb),
            codec="zstd",
            consumer="coordinator",
        )
        held, rows = bytearray(), 0
        async with self.home._pool.run(job) as result:
            held += result.schema
            async for frame in result:
                rows += frame.rows
                held += frame.payload
                if rows > _KEYS_MAX or len(held) > _KEY_BYTES_MAX:
                    return None
        return bytes(held) + END_OF_STREAM

    async def _ask(self, fragment: Fragment, sql: str, keys: tuple[KeyTable, ...], budget: Budget) -> Answered:
        assert self.folder is not None
        request = Request(
            query_id=self.progress.query_id,
            fragment=fragment,
            sql=sql,
            purpose=self.question.purpose,
            seconds=self._left(),
            keys=keys,
            codec=self.question.wire,
        )
        return await self.home._remote.ask(request, self.folder, budget)

    def _there(self) -> set[str]:
        return {str(told["fragment"]) for told in self.progress.owners}

    def _left(self) -> float:
        return max(0.1, self.seconds - (time.monotonic() - self.begun))

    def _check_withheld(self, plan: Plan) -> None:
        """Where no share of a table gave anything there is nothing to merge: the owner's own refusal stands."""
        by = {answer.fragment.id: answer for answer in self.answers}
        for fragments in plan.tables.values():
            if all(by[one.id].file is None for one in fragments):
                refused = by[fragments[0].id].end["refusal"]
                raise Refused(
                    f"{', '.join(dict.fromkeys(one.owner for one in fragments))}: {refused.message}",
                    code=refused.code,
                    rule=getattr(refused, "rule", "") or str(refused.facts.get("rule", "")),
                )

    async def _merge(self, plan: Plan) -> Answer:
        """Start the residual in a worker, over the answers' files and nothing else."""
        relations = self._relations(self.answers)
        without = {answer.fragment.id for answer in self.answers if answer.file is None}
        sql, functions = await asyncio.to_thread(_residual, plan, without)
        report = json.dumps(self.report("complete"))
        self.run = self.home._pool.run(
            Job(
                relations=relations,
                sql=sql,
                recheck=Recheck((*relations, *plan.tables, *plan.ctes), functions),
                limits=Limits(
                    seconds=self._left(),
                    rows=self.question.rows,
                    memory_mb=self.home._memory_mb,
                    temp_mb=4 * self.home._memory_mb,
                ),
                codec=self.question.codec,
                trailer_room=len(report) + 1024,
                consumer="coordinator",
            )
        )
        self.result = await self.run.__aenter__()
        return Answer(self, self.result)

    def _relations(self, answers: Sequence[Answered]) -> dict[str, Relation]:
        assert self.folder is not None
        return {
            answer.fragment.id: Relation("arrow_ipc", (file_ref(str(answer.file), roots=[self.folder]).to_json(),))
            for answer in answers
            if answer.file is not None
        }

    def owners(self) -> list[dict[str, Any]]:
        return [_told(answer) for answer in self.answers]

    def report(self, status: str, **more: Any) -> dict[str, Any]:
        """The end record."""
        return {
            "status": status,
            "query_id": self.progress.query_id,
            "rows": self.progress.rows,
            "ms": self.progress.ms,
            "planning_ms": self.progress.planning_ms,
            "withheld": any(answer.withheld for answer in self.answers),
            "owners": self.owners(),
            "stayed": [note.text() for note in self.plan.notes][:20] if self.plan else [],
            **more,
        }

    async def end(self, outcome: str, error: BaseException | None) -> None:
        """Stop the worker, forget the files, write the log. Once."""
        if self.done:
            return
        self.done = True
        self.progress.ms = int((time.monotonic() - self.begun) * 1000)
        self.home._running.discard(self.progress.query_id)
        self.progress.task = None
        for table in self._key_tables.values():
            table.cancel()
        if self.run is not None and self.result is not None:
            with suppress(HanseError):
                await self.run.__aexit__(None, None, None)
        if self.folder is not None:
            await asyncio.to_thread(shutil.rmtree, self.folder, True)
        await self.home._record(self.progress, self.plan, self.answers, outcome, error)


class Answer:
    """The answer as it comes. `close` must be called, also after a failure; it says nothing twice."""

    def __init__(self, work: _Work, result: Result) -> None:
        self._work = work
        self._result = result
        self._error: BaseException | None = None
        self._outcome = "broken"

    @property
    def query_id(self) -> str:
        return self._work.progress.query_id

    @property
    def plan(self) -> Plan:
        assert self._work.plan is not None
        return self._work.plan

    def report(self) -> dict[str, Any]:
        """Figures of each owner and of the whole; complete once all parts were read."""
        return self._work.report(self._work.progress.state)

    async def parts(self) -> AsyncGenerator[bytes | memoryview, None]:
        """Schema, batches, end record: one Arrow IPC stream."""
        work, progress = self._work, self._work.progress
        progress.task = asyncio.current_task()
        yield self._result.schema
        try:
            async for frame in self._result:
                progress.rows += frame.rows
                yield frame.payload
        except HanseError as error:
            self._error, self._outcome = error, "failed"
            yield self._trailer("error", code=error.code, reason=error.message[:400])
            return
        progress.ms = int((time.monotonic() - work.begun) * 1000)
        self._outcome = "ok"
        yield self._trailer("complete")

    def _trailer(self, status: str, **more: Any) -> bytes:
        report = json.dumps(self._work.report(status, **more), separators=(",", ":")).encode()
        return filled(self._result.trailer, report, self._result.job.trailer_room)

    async def close(self) -> None:
        """End the question; without all parts read it counts as broken off."""
        await asyncio.shield(self._work.end(self._outcome, self._error))


def filled(trailer: bytes, record: bytes, room: int) -> bytes:
    """The prepared trailer with the record in its free room, and the end of the stream."""
    start = trailer.rindex(b" " * room)
    return trailer[:start] + record.ljust(room)[:room] + trailer[start + room :] + END_OF_STREAM


def _told(answer: Answered) -> dict[str, Any]:
    fragment = answer.fragment
    return {
        "owner": fragment.owner,
        "participant": fragment.participant,
        "dataset": ",".join(fragment.datasets),
        "agreement": ",".join(fragment.agreements),
        "fragment": fragment.id,
        "sql": fragment.sql,
        "rows": answer.rows,
        "bytes": answer.nbytes,
        "keys_bytes": answer.keys_sent,
        "ms": answer.ms,
        "withheld": answer.withheld,
        "policy": list(answer.end.get("policy", ())) if answer.file is not None else [],
    }


def _named(sql: str) -> tuple[tuple[str, str], ...]:
    from connector.query import parse

    return parse.datasets(parse.read(sql))


def _planned(question: Question, tables: Tables) -> tuple[Plan, float]:
    """The plan, and the milliseconds of processor time that it took."""
    from connector.query.plan import plan

    begun = time.thread_time()
    found = plan(question.sql, tables, mode=question.mode, across_agreements=True)
    return found, round((time.thread_time() - begun) * 1000, 1)


def _residual(plan: Plan, without: Collection[str]) -> tuple[str, tuple[str, ...]]:
    from connector.query.plan import merge_sql
    from policies.enforce.functions import ENGINE_FUNCTIONS

    return merge_sql(plan, without=without), tuple(sorted(ENGINE_FUNCTIONS))


def _outcome(error: BaseException, asked: bool) -> str:
    if isinstance(error, Refused | QueryInvalid) or not asked:
        return "refused"
    return "broken" if isinstance(error, asyncio.CancelledError) else "failed"


def _first(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that a person should see first: our own before others."""
    found: list[BaseException] = []
    stack: list[BaseException] = [failed]
    while stack:
        one = stack.pop(0)
        if isinstance(one, BaseExceptionGroup):
            stack = [*one.exceptions, *stack]
        else:
            found.append(one)
    return next((one for one in found if isinstance(one, HanseError)), found[0])


__all__ = ["MEDIA", "TRAILER_KEY", "Answer", "Coordinator", "Progress", "Question", "filled"]
