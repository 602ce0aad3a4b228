"""Execution of one federated query: plan, ask the owners, merge, and stream the answer.

Fragments run concurrently as far as their keys allow; the first failure cancels the rest. All fragments read the
dataset versions of the plan; if an owner has a newer version by then, the question is planned again, once. The answers
stay in a private directory until the residual query has run over them, in a worker that can read nothing else.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from connector.datasets.sources.source_files import own_ref
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import ARROW, BATCH_BYTES, HELD, LOADED, Job, Limits, Recheck, Relation
from connector.engine.pool.worker_process import Result
from connector.errors import ConnectorError, Denied, Limited, VersionChanged
from connector.federation.answer_batching import AnswerBatches
from connector.federation.deadline import Deadline
from connector.federation.expected_types import Shape, Shapes
from connector.federation.federated_query import Missing, QueryProgress, Question
from connector.federation.owner_client import Budget, KeyTable, OwnerAnswer, OwnerClient, OwnerRequest
from connector.federation.planner.model import FederatedPlan, Fragment, TypeCasts
from connector.infra.formats.digests import SEAL_BYTES, sealed
from policies.enforce.withheld import Withheld, strongest

END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_AT_ONCE = 8
_THREADS = max(1, min(4, os.cpu_count() or 1))
_HELD_MAX = 24 * 2**20  # bytes of rows held outside the engine, within a worker's allowance above its limit
_KEYS_MAX = 3_000_000  # above this a scan is cheaper
_LOADED_SHARE = 4  # a quarter of memory or disk may hold loaded answers; their joins need at least as much again
_KEY_BYTES_MAX = 16 * 2**20  # what fits into a query envelope in base64
_POLICY_ROOM = 2048  # bytes of an end record for the sentences about the policies that were applied
# Errors of the residual query that do not depend on the answers.
_NOT_OF_ANSWERS = frozenset({"cancelled", "time_limit", "shutting_down", "format_unfit"})
# Batch sizes for file formats: Parquet is better with few row groups, and small Arrow batches become long JSON.
_BATCH_BYTES = {"parquet": 2**23, "json": 2**19}

EndCallback = Callable[["Work", str, "BaseException | None"], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """The services that a question uses. `plan(question, progress, fresh)`: `fresh` bypasses cached summaries."""

    pool: Pool
    remote: OwnerClient
    shapes: Shapes
    work_dir: Path
    memory_mb: int
    temp_mb: int
    bytes_max: int
    plan: Callable[[Question, QueryProgress, bool], Awaitable[FederatedPlan]]
    on_end: EndCallback


class Work:
    """The run of one question; ends exactly once."""

    def __init__(self, means: Means, question: Question, progress: QueryProgress, *, seconds: float) -> None:
        self.means = means
        self.question = question
        self.progress = progress
        self.deadline = Deadline(seconds)
        self.plan: FederatedPlan | None = None
        self.asked = False
        self.answers: list[OwnerAnswer] = []
        self.folder: Path | None = None
        self.run: AbstractAsyncContextManager[Result] | None = None
        self.result: Result | None = None
        self.done = False
        self._waves: dict[str, int] = {}
        self._wanted: dict[str, tuple[str, ...]] = {}
        self._reading: AnswerBatches | None = None
        self._key_tables: dict[tuple[str, str], asyncio.Future[bytes | None]] = {}
        self._shapes: asyncio.Future[Mapping[str, Shape]] = asyncio.Future()

    async def begin(self) -> FederatedAnswer:
        """Plan, ask and start merging, until the first bytes of the answer are available."""
        try:
            return await self._answer(fresh=False)
        except VersionChanged as changed:
            if changed.code != "snapshot_changed":
                raise
            await self._discard_answers()
            return await self._answer(fresh=True)

    async def _answer(self, *, fresh: bool) -> FederatedAnswer:
        await self._ask_owners(fresh=fresh)
        progress, plan = self.progress, self._current_plan
        self._check_withheld(plan)
        progress.state = "merging"
        progress.owners = self.owners()
        try:
            async with asyncio.timeout(self.deadline.seconds_left()):
                return await self._merge_or_reread(plan)
        except TimeoutError:
            raise self._time_limit_error() from None

    async def _ask_owners(self, *, fresh: bool) -> None:
        means, progress = self.means, self.progress
        progress.state = "planning"
        try:
            async with asyncio.timeout(self.deadline.seconds_left(later=2)):
                self.plan = plan = await means.plan(self.question, progress, fresh)
        except TimeoutError:
            raise self._time_limit_error() from None
        progress.fragments = plan.fragments
        self.folder = Path(tempfile.mkdtemp(prefix="query-", dir=means.work_dir))
        progress.state, self.asked = "asking", True
        self._waves = plan.waves
        self._wanted = {table: list_wanted_outputs(plan, table) for table in plan.tables}
        self._shapes = asyncio.ensure_future(means.shapes.of(plan.fragments, self._limits(later=1)))
        self._shapes.add_done_callback(_mark_failure_seen)
        self.answers = await self._ask_fragments(plan)

    async def _discard_answers(self) -> None:
        """Discard the answers for dataset versions that the owners have replaced."""
        self._cancel_reading()
        self._key_tables.clear()
        self.progress.owners, self.progress.missing = [], []
        if self.folder is not None:
            await asyncio.to_thread(shutil.rmtree, self.folder, True)

    @property
    def _current_plan(self) -> FederatedPlan:
        assert self.plan is not None
        return self.plan

    def _time_limit_error(self) -> Limited:
        return Limited(
            f"the question took longer than {self.deadline.seconds:g} s ({self.progress.state}); ask for less, or "
            "raise limits.seconds",
            code="time_limit",
            stage=self.progress.state,
        )

    async def _ask_fragments(self, plan: FederatedPlan) -> list[OwnerAnswer]:
        """Ask all owners; return the answers in the plan's order. The first failure cancels the rest."""
        gate, budget = asyncio.Semaphore(_AT_ONCE), Budget(self.question.nbytes or self.means.bytes_max)
        tasks: dict[str, asyncio.Task[OwnerAnswer]] = {}
        sources = [table for table, outputs in self._wanted.items() if outputs]
        self._reading = reading = AnswerBatches(
            plan, sources=sources, together=self._read_together, apart=self._read_apart
        )

        async def ask_fragment(fragment: Fragment) -> OwnerAnswer:
            sources = {key.source for key in fragment.keys}
            shares = {source: [await tasks[share.id] for share in plan.tables[source]] for source in sources}
            async with gate:
                sql, keys = await self._keys(fragment, shares)
                answered = await self._ask(fragment, sql, keys, budget)
            answered = await reading.read(answered)
            if answered.missing is None and not answered.unread:
                self.progress.owners.append(_report_owner(answered))
            return answered

        try:
            async with asyncio.TaskGroup() as group:
                for fragment in plan.fragments:
                    tasks[fragment.id] = group.create_task(ask_fragment(fragment))
        except BaseExceptionGroup as failed:
            raise _first_error(failed) from None
        return [tasks[fragment.id].result() for fragment in plan.fragments]

    async def _keys(
        self, fragment: Fragment, shares: Mapping[str, list[OwnerAnswer]]
    ) -> tuple[str, tuple[KeyTable, ...]]:
        """Return the fragment's SQL and its key tables; a condition with too many keys becomes TRUE and sends none."""
        sql: str = fragment.sql
        tables: list[KeyTable] = []
        for key in fragment.keys:
            known = (key.source, key.output)
            if known not in self._key_tables:
                self._key_tables[known] = asyncio.ensure_future(self._read_distinct(key.output, shares[key.source]))
            arrow = await asyncio.shield(self._key_tables[known])
            if arrow is None:
                sql = sql.replace(key.condition, "TRUE")
            elif all(table.name != key.name for table in tables):
                tables.append(KeyTable(key.name, ("k",), arrow))
        return sql, tuple(tables)

    async def _read_distinct(self, output: str, answers: Sequence[OwnerAnswer]) -> bytes | None:
        """Return the sorted distinct values of an output over its shares as an Arrow stream; None if too many."""
        if (path := await self._unite_values(output, answers)) is not None:
            return await asyncio.to_thread(_read_small_file, path)
        relations, blobs = self._make_relations(answers)
        parts = " UNION ALL ".join(f'SELECT "{output}" AS k FROM "{name}"' for name in relations)  # noqa: S608
        job = Job(
            relations=relations,
            sql=f"SELECT DISTINCT k FROM ({parts}) WHERE k IS NOT NULL ORDER BY k",  # noqa: S608  names of the plan
            limits=self._limits(later=2),
            codec="zstd",
            blobs=tuple(blobs.values()),
            consumer="coordinator",
            once=True,
        )
        held, rows = bytearray(), 0
        async with self.means.pool.run(job) as result:
            held += result.schema
            async for frame in result:
                rows += frame.rows
                held += frame.payload
                if rows > _KEYS_MAX or len(held) > _KEY_BYTES_MAX:
                    return None
        return bytes(held) + END_OF_STREAM

    async def _unite_values(self, output: str, answers: Sequence[OwnerAnswer]) -> Path | None:
        """Merge the values found while the answers were checked into one file; None if any answer lacks them."""
        paths = dict.fromkeys(answer.distinct.get(output) for answer in answers if answer.rows)
        found = [path for path in paths if path is not None]
        if not found or None in paths or sum(path.stat().st_size for path in found) > _KEY_BYTES_MAX:
            return None
        if len(found) == 1:
            return found[0]
        united = found[0].with_suffix(".united")
        arguments = {"paths": [str(path) for path in found], "save": str(united)}
        job = Job(kind="unite_keys", arguments=arguments, limits=self._limits(later=2), consumer="coordinator")
        return united if await self.means.pool.ask(job) else None

    async def _ask(self, fragment: Fragment, sql: str, keys: tuple[KeyTable, ...], budget: Budget) -> OwnerAnswer:
        """Return the owner's answer, or a missing one if the question may be answered without it."""
        assert self.folder is not None
        later = max(self._waves.values()) - self._waves[fragment.table] + 1  # the waves after this one, and merging
        request = OwnerRequest(
            query_id=self.progress.query_id,
            fragment=fragment,
            sql=sql,
            purpose=self.question.purpose,
            epsilon=self.question.epsilon,
            deadline=self.deadline,
            later=later,
            keys=keys,
            codec=self.question.wire,
            shapes=self._shapes,
            wanted=self._wanted[fragment.table],
        )
        return await self._unless_missing(fragment, self.means.remote.ask(request, self.folder, budget))

    async def _read_alone(self, answered: OwnerAnswer) -> OwnerAnswer:
        if answered.small is None:
            return answered
        return await self._unless_missing(answered.fragment, self.means.remote.read(answered))

    async def _read_apart(self, answers: Sequence[OwnerAnswer]) -> list[OwnerAnswer]:
        """Read each small answer alone, all concurrently, so that a slow owner delays no other."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._read_alone(one)) for one in answers]
        except BaseExceptionGroup as failed:
            raise _first_error(failed) from None
        return [task.result() for task in tasks]

    async def _read_together(self, answers: Sequence[OwnerAnswer]) -> list[OwnerAnswer]:
        wanted = self._wanted[answers[0].fragment.table]
        shapes = await asyncio.shield(self._shapes)
        return await self.means.remote.read_together(answers, wanted, shapes, self._limits(later=2))

    async def _unless_missing(self, fragment: Fragment, answer: Awaitable[OwnerAnswer]) -> OwnerAnswer:
        try:
            return await answer
        except ConnectorError as error:
            missing = Missing.of(
                error, fragment.owner, fragment.participant, ",".join(fragment.datasets), agreements=fragment.agreements
            )
            self.progress.miss(missing, self.question, error)
            return OwnerAnswer(fragment, None, missing=error)

    def _check_withheld(self, plan: FederatedPlan) -> None:
        """Raise the owner's refusal if no share of a table has an answer, because then there is nothing to merge."""
        by = {answer.fragment.id: answer for answer in self.answers}
        for fragments in plan.tables.values():
            there = [by[one.id] for one in fragments]
            if any(answer.has_content for answer in there):
                continue
            refused = next((answer.refused for answer in there if answer.refused is not None), None)
            if refused is None:
                raise next(answer.missing for answer in there if answer.missing is not None)
            raise Denied(
                f"{', '.join(dict.fromkeys(one.owner for one in fragments))}: {refused.message}",
                code=refused.code,
                rule=getattr(refused, "rule", "") or str(refused.facts.get("rule", "")),
            )

    async def _merge_or_reread(self, plan: FederatedPlan) -> FederatedAnswer:
        """Start the merge. If that fails, read each small answer alone and start it again.

        Reading alone requests a damaged answer once more, or raises an error that names its owner.
        """
        await asyncio.shield(self._shapes)  # a failure here is not caused by an owner's answer
        try:
            return await self._merge(plan)
        except ConnectorError as error:
            if error.code in _NOT_OF_ANSWERS or all(answer.small is None for answer in self.answers):
                raise
        self.answers = await self._read_apart(self.answers)
        self._check_withheld(plan)
        return await self._merge(plan)

    async def _merge(self, plan: FederatedPlan) -> FederatedAnswer:
        """Start the residual query in a worker that can read only the answers."""
        shapes = self._shapes.result()
        others = {name: one.others for name, one in shapes.items() if one.others}
        relations, blobs = self._make_relations(self.answers, others)
        if len(plan.tables) > 1:
            relations = self._load_relations(relations, plan)
        without = {answer.fragment.id for answer in self.answers if not answer.has_content}
        sql, functions = await asyncio.to_thread(_write_residual, plan, others, without, relations)
        told = [_report_owner(answer) for answer in self.answers if answer.missing is None]  # including unread answers
        room = len(json.dumps(self.report("complete", owners=told))) + 1024 + _POLICY_ROOM * len(blobs)
        self.run = self.means.pool.run(
            Job(
                relations=relations,
                sql=sql,
                passed=plan.columns if plan.passed and self.question.format == ARROW else (),
                recheck=Recheck((*relations, *plan.tables, *plan.ctes), functions),
                limits=self._limits(rows=self.question.rows),
                batch_bytes=_BATCH_BYTES.get(self.question.format, BATCH_BYTES),
                format=self.question.format,
                codec=self.question.codec,
                trailer_room=room,
                arguments={"shapes": [shapes[name].to_json() for name in blobs], "notes": self._notes()},
                blobs=tuple(blobs.values()),
                consumer="coordinator",
                once=True,
            )
        )
        self.result = await self.run.__aenter__()
        read = dict(zip(blobs, self.result.answers, strict=True))
        self.answers = [one.with_content(read[one.fragment.id], {}) if one.unread else one for one in self.answers]
        self.progress.owners = self.owners()
        return FederatedAnswer(self, self.result)

    def _limits(self, *, later: int = 0, rows: int | None = None) -> Limits:
        means = self.means
        return Limits(
            seconds=self.deadline.seconds_left(later),
            rows=rows,
            memory_mb=means.memory_mb,
            temp_mb=means.temp_mb,
            threads=_THREADS,
        )

    def _make_relations(
        self, answers: Sequence[OwnerAnswer], apart: Collection[str] = ()
    ) -> tuple[dict[str, Relation], dict[str, bytes]]:
        """Return the answers as relations, and the small ones as blobs of the job by fragment id.

        A table is one relation if all its answers are small and none of its fragments is in `apart`; otherwise each
        fragment is a relation.
        """
        blobs = {one.fragment.id: one.small.body for one in answers if one.small is not None}
        places = {name: (number,) for number, name in enumerate(blobs)}
        tables: dict[str, list[OwnerAnswer]] = {}
        for answer in answers:
            if answer.has_content:
                tables.setdefault(answer.fragment.table, []).append(answer)
        relations: dict[str, Relation] = {}
        for table, given in tables.items():
            columns = given[0].fragment.outputs
            if all(one.small is not None and one.fragment.id not in apart for one in given):
                whole = tuple(number for one in given for number in places[one.fragment.id])
                relations[table] = Relation("", answers=whole, columns=columns)
            else:
                relations |= {one.fragment.id: self._relation(one, places.get(one.fragment.id, ())) for one in given}
        return relations, blobs

    def _relation(self, answer: OwnerAnswer, places: tuple[int, ...]) -> Relation:
        if places:
            return Relation("", answers=places, columns=answer.fragment.outputs)
        assert self.folder is not None
        return Relation("", (own_ref(str(answer.file), folder=self.folder).to_json(),))

    def _load_relations(self, relations: dict[str, Relation], plan: FederatedPlan) -> dict[str, Relation]:
        """Mark relations to be loaded into the engine if they are small enough.

        The engine does not know the row count of a stream, so it may join two large streams on a column with few values
        before a small one. The largest table may be held instead of loaded, which takes half the time: its partners in
        every join are loaded, and the row count of one side is enough.
        """
        most = max(self.means.memory_mb, self.means.temp_mb) * 2**20 // _LOADED_SHARE
        sizes = Counter[str]()
        for answer in self.answers:
            # `nbytes` is an underestimate for an unread answer.
            sizes[answer.fragment.table] += answer.size or answer.nbytes
        if sizes.total() > most:
            return relations
        ((largest, size),) = sizes.most_common(1)
        held = largest in plan.once and size <= _HELD_MAX
        table_of = {fragment.id: fragment.table for fragment in plan.fragments}
        return {
            name: replace(one, taken=HELD if held and table_of.get(name, name) == largest else LOADED)
            for name, one in relations.items()
        }

    def owners(self) -> list[dict[str, Any]]:
        return [_report_owner(answer) for answer in self.answers if answer.missing is None and not answer.unread]

    def report(self, status: str, **more: Any) -> dict[str, Any]:
        """Return the end record."""
        return {
            "status": status,
            "query_id": self.progress.query_id,
            "rows": self.progress.rows,
            "ms": self.progress.ms,
            "planning_ms": self.progress.planning_ms,
            "withheld": self._withheld().value,
            "left_out": self._left_out(),
            "partial": bool(self.progress.missing),
            "missing": [one.to_json() for one in self.progress.missing],
            "owners": self.owners(),
            "stayed": [note.text() for note in self.plan.notes][:20] if self.plan else [],
            **more,
        }

    def _withheld(self) -> Withheld:
        planned = self.plan.withheld if self.plan else Withheld.NOTHING
        return strongest((planned, *(answer.withheld for answer in self.answers)))

    def _left_out(self) -> list[str]:
        """List in sentences what is left out: by agreements, and by owners that refused their whole share."""
        refused = dict.fromkeys(answer.fragment.owner for answer in self.answers if answer.refused is not None)
        said = [
            f"{owner} returned no groups: no group is large enough, or no row matches the question" for owner in refused
        ]
        return [*(self.plan.left_out() if self.plan else ()), *said]

    def _notes(self) -> dict[str, str]:
        """Return schema metadata about withheld rows, so that a saved file or table still carries it."""
        if self._withheld() is Withheld.NOTHING:
            return {}
        return {"hanse.withheld": self._withheld().value, "hanse.left_out": ". ".join(self._left_out())}

    def _cancel_reading(self) -> None:
        self._shapes.cancel()
        if self._reading is not None:
            self._reading.cancel()
        for table in self._key_tables.values():
            table.cancel()

    async def end(self, outcome: str, error: BaseException | None) -> None:
        """Stop the worker, delete the files and write the log. Later calls do nothing."""
        if self.done:
            return
        self.done = True
        self.progress.ms = int(self.deadline.passed * 1000)
        self.progress.task = None
        self._cancel_reading()
        if self.run is not None and self.result is not None:
            with suppress(ConnectorError):
                await self.run.__aexit__(None, None, None)
        if self.folder is not None:
            await asyncio.to_thread(shutil.rmtree, self.folder, True)
        await self.means.on_end(self, outcome, error)


class FederatedAnswer:
    """A streamed answer. The caller must call `close`, also after a failure; a second call does nothing."""

    def __init__(self, work: Work, result: Result) -> None:
        self._work = work
        self._result = result
        self._format = result.job.format
        self._digest = result.digest  # of the bytes sent so far
        self._error: BaseException | None = None
        self._outcome = "broken"

    @property
    def query_id(self) -> str:
        return self._work.progress.query_id

    @property
    def plan(self) -> FederatedPlan:
        assert self._work.plan is not None
        return self._work.plan

    def report(self) -> dict[str, Any]:
        """Return the figures of each owner and of the whole answer; complete once all parts were read."""
        return self._work.report(self._work.progress.state)

    async def parts(self) -> AsyncGenerator[bytes | memoryview, None]:
        """Yield schema, batches and end record as one Arrow IPC stream.

        Other formats have no end record. There an incomplete answer raises, and the sender must abort the response, so
        that a truncated file is not taken for a complete one.
        """
        work, progress = self._work, self._work.progress
        progress.task = asyncio.current_task()
        yield self._result.schema
        try:
            async for frame in self._result:
                progress.rows += frame.rows
                self._digest = frame.digest
                yield frame.payload
        except ConnectorError as error:
            self._error, self._outcome = error, "failed"
            if self._format != ARROW:
                raise
            yield self._trailer("error", code=error.code, reason=error.message[:400])
            return
        except Exception as error:
            self._error, self._outcome = error, "failed"
            raise
        progress.ms = int(work.deadline.passed * 1000)
        self._outcome = "ok"
        if self._format == ARROW:
            yield self._trailer("complete")

    def _trailer(self, status: str, **more: Any) -> bytes:
        room = self._result.job.trailer_room
        report = self._work.report(status, digest=f"{self._result.job.digest}:{self._digest.hex()}", **more)
        text = json.dumps(report, separators=(",", ":"))
        if len(text) > room - SEAL_BYTES:  # no Hanse owner sends policy sentences of this length
            report["owners"] = [one | {"policy": []} for one in report["owners"]]
            text = json.dumps(report, separators=(",", ":"))
        return fill_trailer(self._result.trailer, sealed(text), room)

    async def close(self) -> None:
        """End the question; it counts as broken if not all parts were read."""
        await asyncio.shield(self._work.end(self._outcome, self._error))


def fill_trailer(trailer: bytes, record: bytes, room: int) -> bytes:
    """Return the prepared trailer with the record in its free room, followed by the end of the stream."""
    start = trailer.rindex(b" " * room)
    return trailer[:start] + record.ljust(room)[:room] + trailer[start + room :] + END_OF_STREAM


def list_wanted_outputs(plan: FederatedPlan, table: str) -> tuple[str, ...]:
    """List the outputs of a table whose values narrow other fragments."""
    keys = (key for fragment in plan.fragments for key in fragment.keys if key.source == table)
    return tuple(dict.fromkeys(key.output for key in keys))


def _mark_failure_seen(done: asyncio.Future[Any]) -> None:
    """Mark the failure as retrieved, so that asyncio logs no warning when no task awaits the future any more."""
    if not done.cancelled():
        done.exception()


def _read_small_file(path: Path) -> bytes | None:
    """Return a file of keys; None if it is too large to send."""
    return path.read_bytes() if path.stat().st_size <= _KEY_BYTES_MAX else None


def _report_owner(answer: OwnerAnswer) -> dict[str, Any]:
    fragment = answer.fragment
    return {
        "owner": fragment.owner,
        "participant": fragment.participant,
        "dataset": ",".join(fragment.datasets),
        "agreement": ",".join(fragment.agreements),
        "fragment": fragment.id,
        "sql": fragment.sql,
        "rows": answer.rows,
        "data_rows": answer.data_rows,
        "result_rows": answer.rows - answer.data_rows,
        "bytes": answer.nbytes,
        "keys_bytes": answer.keys_sent,
        "ms": answer.ms,
        "withheld": answer.withheld.value,
        "policy": _list_policy(answer.end),
    }


def _list_policy(end: Mapping[str, Any]) -> list[str]:
    found = end.get("policy")
    return [str(one)[:200] for one in found[:20]] if isinstance(found, list) else []


def _write_residual(
    plan: FederatedPlan, others: Mapping[str, TypeCasts], without: Collection[str], whole: Collection[str]
) -> tuple[str, tuple[str, ...]]:
    from connector.federation.planner.planner import merge_sql
    from policies.sql.allowed_functions import ENGINE_FUNCTIONS

    return merge_sql(plan, others, without=without, whole=whole), tuple(sorted(ENGINE_FUNCTIONS))


def _first_error(failed: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error to show: the first ConnectorError, otherwise the first of any kind."""
    found: list[BaseException] = []
    stack: list[BaseException] = [failed]
    while stack:
        one = stack.pop(0)
        if isinstance(one, BaseExceptionGroup):
            stack = [*one.exceptions, *stack]
        else:
            found.append(one)
    return next((one for one in found if isinstance(one, ConnectorError)), found[0])


__all__ = ["END_OF_STREAM", "FederatedAnswer", "Means", "Work", "fill_trailer"]
