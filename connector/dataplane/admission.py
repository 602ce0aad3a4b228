"""Admits every read of one provider's data: source, contract, gate, audit, frames. Transports only frame the stream.

`Reads.open` admits a read and `GovernedStream` delivers it. The numbers also stand next to the code:

1. Grants: each agreement is valid, covers action and purpose, and has uses and quota left (`usage.grants`).
2. The SQL passes the gate and leaves it with the contracts in it (`policies.enforce.gate`), values as parameters. The
   grants of the datasets that it reads go on. Those of further tickets are released.
3. The use is counted, and the start of the read is durable in the log, before the first row is read.
4. A worker, made ready meanwhile, checks the SQL again with the engine's parser and runs it over the pinned files
   (`engine.pool`), or the cache has the answer of an earlier pass (`read_source`).
5. Before each batch the gate checks every lease: revoked, expired, rows, bytes. A batch is counted, then released.
6. Revocation and expiry also interrupt a worker that returns no batch.
7. Whatever the reason, the stream ends with its end record and the log has the totals. Unused quota is returned, and
   so is a use that returned nothing to its reader.

A failure before the first byte is raised; a later one is in the end record.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import math
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from connector.dataplane import block_plan, noise_budget, read_log, running_reads
from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.end_writer import EndWriter
from connector.dataplane.gate_queue import GateQueue
from connector.dataplane.governed_stream import (
    GovernedStream,
    await_whole_answer,
    find_end_reason,
    remaining_lease_s,
    translate_failure,
    wait_for_quantum,
    watch_grants,
)
from connector.dataplane.job_builder import build_job, prepare_query, select_grants, version_to_relation
from connector.dataplane.noise_budget import NoiseCharge
from connector.dataplane.read_request import COMPLETE, STREAM, ReadRequest, Split, StreamEnd
from connector.dataplane.read_source import ReadSource
from connector.dataplane.tickets import Ticket
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Recheck, Relation
from connector.errors import Absent, AlreadyExists, ConnectorError, Denied, Invalid, Limited, Unavailable
from connector.events import ReadRefused
from connector.infra.concurrency.active_counter import ActiveCounter
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.concurrency.turn_queue import TurnQueue, pause_after
from connector.store import UNKNOWN, Store, Transaction
from connector.telemetry import Metrics, logger
from connector.usage.grants import Grants, name_agreement
from connector.usage.held_agreement import CompiledAgreement, GrantRequest, ReadGrant, ended_by
from policies.contracts import batch_gate
from policies.contracts.columns import quote_identifier
from policies.contracts.contract import DataContract
from policies.contracts.masks import text_columns
from policies.errors import PolicyError
from policies.vocabulary import compact

if TYPE_CHECKING:  # the SQL parser behind it is loaded with the first read, not at start
    from policies.enforce.gate import CallerTable, PreparedQuery

_T = TypeVar("_T")
_log = logger("dataplane")
PROGRESS_SECONDS = 1.0  # seconds between saves of the totals that a crash leaves behind
_LONGEST = 24 * 3600.0
_END_SECONDS = 30.0  # seconds to wait for the record of an end while the database is away
_COLUMNS_MAX = 128  # cached schemas, one for each dataset and contract
_DISPLACED = (
    "the connector was silent for a minute, so the end of this read is recorded already; send the request again"
)
_ELSEWHERE = "this read runs in another process of this connector; send the request again until it reaches that process"
# Codes of Unavailable because of one dataset's files, not of the workers.
_OF_FILES = frozenset({"file_unavailable", "blocks_not_kept"})
_MOMENT = 0.05  # seconds: the least time of a read that has waited
_LOOK_SECONDS, _LOOKS_WAITING = 30.0, 256  # how long a request to describe waits, and how many may


class Reads:
    """All reads of one provider's data, over all transports."""

    def __init__(
        self,
        store: Store,
        grants: Grants,
        pool: Pool,
        *,
        name: str,
        mask_secret: bytes,
        memory_mb: int = 512,
        temp_mb: int = 0,
        seconds: float = 60.0,
        streams_max: int = 16,
        queue_seconds: float = 5.0,
        metrics: Metrics | None = None,
        instance: str = "",
        prepared: PreparedStreams | None = None,
    ) -> None:
        self.grants = grants
        self._instance = f"{instance}.{secrets.token_hex(8)}"  # unique to this run: its reads are its own to end
        self._store = store
        self._pool = pool
        self.origin = ReadSource(pool, prepared, later=self._spawn)
        self._name = name
        self._mask_secret = mask_secret
        self.gate_queue = GateQueue()
        self.plans = block_plan.BlockPlans(
            grants,
            pool,
            name=name,
            secret=mask_secret,
            relation_of=version_to_relation,
            judging=self.gate_queue,
            looking=self._hold_describe_turn,
        )
        self._most = Limits(seconds=seconds, memory_mb=memory_mb, temp_mb=temp_mb)
        self._streams_max = streams_max
        self._queue_seconds = queue_seconds
        # As many wait as run: each holds its request, which may have megabytes of join tables.
        self._turns = TurnQueue(
            streams_max, each=max(1, streams_max // 2), waiting=streams_max, wait_seconds=queue_seconds
        )
        self._metrics = metrics
        self._columns: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()
        self._live: dict[str, GovernedStream] = {}
        self._ids = ActiveCounter()  # of live reads, of reads before their start, and of pending ends
        self._waited = ActiveCounter()  # reads whose reader waits for their start
        self._end_writer = EndWriter(store, self._ids, later=self._spawn, leaving=lambda: bool(self.draining))
        if metrics is not None:
            metrics.streams.set_function(lambda: len(self._live))
            metrics.streams_waiting.set_function(lambda: self._turns.waiting)
        self._running = ActiveCounter()  # consumers, counted once per read
        self._lookers = ActiveCounter()  # consumers, counted once per description
        self._tasks: set[asyncio.Task[Any]] = set()
        self._noting: asyncio.Task[None] | None = None
        self._recorded: WeakSet[Exception] = WeakSet()  # refusals being raised that are recorded already
        looks = max(2, streams_max // 2)
        self._looks = TurnQueue(
            looks, each=looks // 2, waiting=_LOOKS_WAITING, wait_seconds=_LOOK_SECONDS, what="turn to describe a read"
        )
        self.draining = ""  # the reason why no new reads are taken; empty while they are
        self.clock: Callable[[], float] = time.time

    @property
    def run(self) -> str:
        """Id of this run of the process, which marks its reads under way."""
        return self._instance

    @property
    def live(self) -> Mapping[str, GovernedStream]:
        """Reads under way, by id."""
        return self._live

    @asynccontextmanager
    async def open(self, asked: ReadRequest, *, spans: bool = False) -> AsyncIterator[GovernedStream]:
        """Admit a read and yield its stream; leaving the block ends it. Raises ConnectorError or PolicyError before any
        byte.

        `spans`: the transport can send parts of files, and takes them from `parts`.
        """
        asked = asked if asked.query_id else replace(asked, query_id=secrets.token_hex(16))
        if asked.query_id in self._ids:
            raise _id_taken_error(asked)
        begun = time.monotonic()
        grants: list[ReadGrant] = []
        beginning: asyncio.Task[NoiseCharge | None] | None = None
        try:
            async with self._hold_place(asked) as asked:
                grants = await self._admit(asked)  # 1
                self._check_open()  # draining stopped only the grants that existed then
                block_plan.check_versions(asked.versions, [grant.held for grant in grants])
                if asked.split is not None:
                    block_plan.check_snapshot(asked.split.snapshot, grants[0].held)
                    block_plan.check_shown(asked.split, grants[0].contract)
                mask_key = hmac.digest(self._mask_secret, asked.consumer.encode(), "sha256")
                passed = await self._prepare(asked, grants, mask_key)  # 2
                grants = self._keep_needed(grants, passed[0])
                for grant in grants:
                    grant.drawn = passed[0].row_multiplicity.get((self._name, grant.held.dataset.name), 0)
                beginning = self._spawn(self._begin(asked, grants, passed[0]))  # 3
                async with self._running_stream(asked, grants, *passed, beginning, begun, spans) as stream:
                    yield stream
        except (ConnectorError, PolicyError) as error:
            refused = beginning is None or beginning.exception() is not None
            if refused:
                await self._record_refusal(asked, error, grants)
            self._recorded.add(error)  # else the record of the end has it
            if refused or passed[0].aggregate:
                await wait_for_quantum(begun)
            raise
        finally:
            self.grants.forget(grants)

    @asynccontextmanager
    async def record_refusals(
        self, *tickets: Ticket, exclude: tuple[type[ConnectorError], ...] = ()
    ) -> AsyncIterator[None]:
        """Record a refusal in the block once, under these tickets, unless the read has recorded it already.

        `exclude`: errors that are not refusals.
        """
        try:
            yield
        except (ConnectorError, PolicyError) as error:
            if error not in self._recorded and not isinstance(error, exclude):
                await self._record(read_log.build_request_refusals(tickets, error), error)
            raise

    async def plan(self, ticket: Ticket, wanted: block_plan.RowSelection) -> dict[str, Any]:
        """Return the blocks of a future read. A refusal is recorded as one of the read."""
        return await self._record_plan_refusal(ticket, wanted, self.plans.plan(ticket, wanted))

    async def split(
        self,
        ticket: Ticket,
        wanted: block_plan.RowSelection,
        *,
        snapshot: str,
        blocks: str,
        after: str = "",
        as_shown: str = "",
        cursors: bool = True,
    ) -> Split | None:
        """Return the ranges of a read of blocks, for `ReadRequest.split`. A refusal is recorded as one of the read."""
        found = self.plans.split(
            ticket, wanted, snapshot=snapshot, blocks=blocks, after=after, as_shown=as_shown, cursors=cursors
        )
        return await self._record_plan_refusal(ticket, wanted, found)

    async def _record_plan_refusal(
        self, ticket: Ticket, wanted: block_plan.RowSelection, work: Coroutine[Any, Any, _T]
    ) -> _T:
        try:
            return await work
        except (ConnectorError, PolicyError) as error:
            asked = ReadRequest(tickets=(ticket,), sql="", action=STREAM, purpose=wanted.purpose)
            await self._record_refusal(asked, error, ())
            raise

    async def describe(self, asked: ReadRequest) -> bytes:
        """Return the schema message of what a read would give; empty where only the read itself can tell.

        Counts, reserves and reads nothing. A refusal, or that no worker is free, is raised and recorded as by `open`.
        """
        grants: list[ReadGrant] = []
        begun = time.monotonic()
        try:
            async with self._hold_describe_turn(asked.consumer) as until:
                grants = [await self._preview_grant(ticket, asked) for ticket in asked.tickets]
                # No value leaves, so any mask key will do.
                prepared, keys = await self._prepare(asked, grants, bytes(32))
                grants = select_grants(grants, prepared)
                job = replace(self._build_job(asked, grants, prepared, keys), kind="describe")
                return await self._describe_job(job, seconds=until - time.monotonic())
        except (ConnectorError, PolicyError) as error:
            await self._record_refusal(asked, error, grants)
            await wait_for_quantum(begun)
            raise

    async def columns(self, held: CompiledAgreement, contract: DataContract, *, consumer: str) -> bytes:
        """Return the schema message of a dataset as a contract shows it, aggregate-only or not. Reads no row.

        Cached, since a version has one schema. Empty where the files cannot be read; a read then raises the reason.

        Raises: Unavailable where no worker is free.
        """
        as_texts = text_columns(contract.masks)
        names = [(one, quote_identifier(one)) for one in contract.columns]
        shown = [f"CAST({quoted} AS VARCHAR) AS {quoted}" if one in as_texts else quoted for one, quoted in names]
        sql = f"SELECT {', '.join(shown)} FROM t"  # noqa: S608  names of the contract, quoted
        known = (held.dataset.id, held.version.digest, sql)
        if known in self._columns:
            return self._columns[known]
        relations = {"t": version_to_relation(held.version)}
        found = await self._describe_job(
            Job(kind="describe", relations=relations, sql=sql, consumer=consumer, shared=True)
        )
        if found:
            put_recent(self._columns, known, found, most=_COLUMNS_MAX)
        return found

    async def _prepare(
        self, asked: ReadRequest, grants: Sequence[ReadGrant], mask_key: bytes
    ) -> tuple[PreparedQuery, list[CallerTable]]:
        work = partial(prepare_query, asked, grants, name=self._name, mask_key=mask_key)
        return await self.gate_queue.run_in_turn(asked.consumer, work)

    def _keep_needed(self, grants: Sequence[ReadGrant], prepared: PreparedQuery) -> list[ReadGrant]:
        """Return the grants that the read is under, and release the others.

        Tickets that a connection has for other statements are not held, counted, charged or recorded for this read.
        """
        found = select_grants(grants, prepared)
        self.grants.forget([grant for grant in grants if grant not in found])
        return found

    async def _describe_job(self, job: Job, *, seconds: float | None = None) -> bytes:
        try:
            return base64.b64decode((await self._pool.ask(job, seconds=seconds))["schema"])
        except ConnectorError as error:
            if isinstance(error, Unavailable) and error.code not in _OF_FILES:
                raise
            _log.info("not described", code=error.code)
            return b""

    async def _preview_grant(self, ticket: Ticket, asked: ReadRequest) -> ReadGrant:
        """Return what a grant would be, without taking a place or a use."""
        await self._check_ticket_purpose(ticket, asked)
        purpose = ticket.purpose or asked.purpose
        with name_agreement(ticket.agreement):
            held, contract = await self.grants.find_contract(
                ticket.agreement,
                consumer=ticket.consumer,
                action=asked.action,
                purpose=purpose,
                application=asked.application,
                transfer=(ticket.transfer, ticket.generation),
            )
        lease = batch_gate.Lease(deadline=time.monotonic() + _LONGEST)
        return ReadGrant(
            held, contract, ticket.consumer, ticket.transfer, asked.action, purpose, asked.application, lease
        )

    async def _record_refusal(
        self, asked: ReadRequest, error: ConnectorError | PolicyError, grants: Sequence[ReadGrant]
    ) -> None:
        await self._record(read_log.build_refusal_events(asked, error, grants), error)

    async def _record(self, events: Sequence[ReadRefused], error: ConnectorError | PolicyError) -> None:
        self._recorded.add(error)
        for event in events:
            await self._run_shielded(self._store.record_refusal(event))

    async def note(self, left: Mapping[str, tuple[int, int]]) -> list[str]:
        """Save the rows and bytes sent by each of these reads, for the record that a crash leaves behind.

        Returns the ids of reads whose end is recorded already, as other processes took this one for dead.
        """

        def work(tx: Transaction) -> list[str]:
            noted = {
                read_id: tx.reads.update_totals(read_id, instance=self._instance, rows=rows, nbytes=nbytes)
                for read_id, (rows, nbytes) in left.items()
            }
            return [read_id for read_id, kept in noted.items() if not kept]

        return await self._store.write(work)

    async def _save_progress(self) -> None:
        """While reads run, save their progress at intervals, in one commit for all of them.

        By time, since one batch may take its reader as long as all before. Reads that other processes have ended are
        stopped.
        """
        noted: dict[str, tuple[int, int]] = {}
        while self._live:
            await asyncio.sleep(PROGRESS_SECONDS)
            left = {read_id: (one.rows, one.bytes) for read_id, one in self._live.items() if one.batches}
            gone_on = {read_id: much for read_id, much in left.items() if noted.get(read_id) != much}
            if gone_on:
                with suppress(ConnectorError):  # a database that is away gets it the next time
                    for over in await self.note(gone_on):
                        self._displace(over)
                    noted = left

    def _displace(self, read_id: str) -> None:
        stream = self._live.get(read_id)  # None where it has just ended by itself
        for grant in stream.grants if stream is not None else ():
            grant.stop(Unavailable(_DISPLACED))

    async def drain(self, reason: str, *, seconds: float = 5.0) -> None:
        """Take no new reads, end running ones with a reason, and wait for the records of all ends."""
        self.draining = self.draining or reason
        self.grants.stop_all(reason, code="shutting_down")
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._running.wait_until_empty()
                await self._lookers.wait_until_empty()
                await self._end_writer.wait_for_all()

    async def renew(self, query_id: str, ticket: Ticket) -> None:
        """Extend a running read with a fresh ticket of the same transfer.

        Raises: Absent for another participant's read. Denied where the transfer is over or the party's facts no
        longer permit it. Unavailable where the read runs in another process, which is not recorded as a refusal.
        """
        stream = self._live.get(query_id)
        grants = [] if stream is None else stream.of(ticket)
        if stream is None and await self._store.read(lambda tx: tx.reads.has(query_id, consumer=ticket.consumer)):
            elsewhere = Unavailable(_ELSEWHERE, code="runs_elsewhere")
            self._recorded.add(elsewhere)
            raise elsewhere
        if stream is None or not grants:
            raise Absent(f"no read {query_id[:64]!r} of yours is running")
        await self.grants.check_started(ticket.agreement, transfer=ticket.transfer, generation=ticket.generation)
        known = [await self.grants.recheck(grant) for grant in grants]
        stream.extend(grants, min(ticket.expires - self.clock(), *known))

    def seconds_left(self, contract: DataContract) -> float:
        """Return the seconds until the contract's own end."""
        return _LONGEST if contract.not_after is None else contract.not_after - self.clock()

    def _check_open(self) -> None:
        if self.draining:
            raise Unavailable("the connector is stopping; try again later", code="shutting_down")
        if self._end_writer.is_full:
            raise Unavailable("the ends of many reads are not recorded yet; try again in a moment")

    @asynccontextmanager
    async def _hold_place(self, asked: ReadRequest) -> AsyncIterator[ReadRequest]:
        """Hold the read's id and a place among running reads; yields the read with its remaining time.

        Waits for a place in turn with other consumers. Raises: Limited where none becomes free in time; then nothing
        was done.
        """
        self._check_open()
        consumer, begun = asked.consumer, time.monotonic()
        with self._ids.hold(asked.query_id):
            await self._take_turn(asked)
            try:
                self._check_open()
                with self._running.hold(consumer):
                    yield _subtract_wait(asked, time.monotonic() - begun)
            finally:
                self._turns.give_back(consumer)

    async def _take_turn(self, asked: ReadRequest) -> None:
        try:
            await self._turns.take(asked.consumer, seconds=min(self._queue_seconds, asked.seconds or math.inf))
        except Unavailable:
            raise self._no_place_error(asked.consumer) from None

    def _no_place_error(self, consumer: str) -> Limited:
        pause, most = pause_after(self._queue_seconds), max(1, self._streams_max // 2)
        if self._running.count(consumer) >= most:
            return Limited(
                f"expected at most {most} reads of yours at once, got one more; end one, or ask again in {pause} s",
                code="streams_of_consumer",
                retry_after=pause,
            )
        return Limited(
            f"expected one of {self._streams_max} places for reads to become free, got none; ask again in {pause} s",
            code="streams_max",
            retry_after=pause,
        )

    @asynccontextmanager
    async def _hold_describe_turn(self, consumer: str) -> AsyncIterator[float]:
        """Take a turn to describe reads; yields the time until which to wait for a worker.

        Such requests are short, so they wait in turn and take no place of reads. A consumer has at most half of the
        turns, so that its own waiting for a worker does not keep others from waiting.
        """
        self._check_open()
        until = time.monotonic() + _LOOK_SECONDS
        await self._looks.take(consumer)
        try:
            self._check_open()
            with self._lookers.hold(consumer):
                yield until
        finally:
            self._looks.give_back(consumer)

    async def _admit(self, asked: ReadRequest) -> list[ReadGrant]:
        """Return one grant per ticket, or raise (1). Nothing is counted yet."""
        for ticket in asked.tickets:
            await self._check_ticket_purpose(ticket, asked)
        now = self.clock()
        wanted = [
            GrantRequest(
                agreement_id=ticket.agreement,
                consumer=ticket.consumer,
                transfer_id=ticket.transfer,
                generation=ticket.generation,
                action=asked.action,
                purpose=ticket.purpose or asked.purpose,
                application=asked.application,
                longest=min(ticket.expires - now, _LONGEST),
                seconds=asked.seconds or math.inf,
            )
            for ticket in asked.tickets
        ]
        return await self.grants.examine(*wanted)

    async def _check_ticket_purpose(self, ticket: Ticket, asked: ReadRequest) -> None:
        """Refuse a purpose other than the ticket's. If the agreement itself refuses it, that reason is raised."""
        if not ticket.purpose or not asked.purpose or ticket.purpose == asked.purpose:
            return
        with name_agreement(ticket.agreement):
            await self.grants.find_contract(
                ticket.agreement,
                consumer=ticket.consumer,
                action=asked.action,
                purpose=asked.purpose,
                application=asked.application,
            )
            raise Denied(
                f"this ticket is for {compact(ticket.purpose)}, the request declares {compact(asked.purpose)}; "
                "start a transfer for that purpose",
                code="purpose_not_agreed",
            )

    @asynccontextmanager
    async def _running_stream(
        self,
        asked: ReadRequest,
        grants: Sequence[ReadGrant],
        prepared: PreparedQuery,
        keys: Sequence[CallerTable],
        beginning: asyncio.Task[NoiseCharge | None],
        begun: float,
        spans: bool,
    ) -> AsyncIterator[GovernedStream]:
        stream: GovernedStream | None = None
        failure: BaseException | None = None
        try:
            charged = None
            # Quota and noise are known only after the start.
            if prepared.private is not None or any(grant.contract.limits.rationed for grant in grants):
                with self._waited.hold(asked.query_id):
                    charged = await asyncio.shield(beginning)
            job = self._build_job(asked, grants, prepared, keys)
            if charged is not None:
                job = await self._replace_with_noised(job, grants, prepared, charged)
            async with self.origin.source(asked, grants, job, spans=spans, begun=beginning) as result:
                stream = GovernedStream(
                    self, asked, grants, prepared, result, read_log.describe_policies(prepared, charged)
                )
                self._live[asked.query_id] = stream
                if self._noting is None or self._noting.done():
                    self._noting = asyncio.get_running_loop().create_task(self._save_progress())
                await await_whole_answer(stream, prepared, begun)
                yield stream
        except BaseException as error:
            failure = await translate_failure(error, grants, self.grants)
            if failure is error:
                raise
            raise failure from error
        finally:
            self._live.pop(asked.query_id, None)
            recording = self._record_end(beginning, asked, grants, stream, failure, begun)  # 7
            del failure  # it refers to this frame, and would keep the request alive until garbage collection
            await self._run_shielded(recording)

    async def _begin(
        self, asked: ReadRequest, grants: Sequence[ReadGrant], prepared: PreparedQuery
    ) -> NoiseCharge | None:
        """Count the read, charge an answer with noise, and record the start, before anything runs. Returns the
        charge."""

        def start(tx: Transaction) -> NoiseCharge | None:
            charged = None
            if prepared.private is not None:
                (grant,) = grants  # a query with noise has one dataset
                charged = noise_budget.charge(tx, asked, grant, prepared.private)
            events = read_log.build_start_events(asked, grants, prepared, read_log.describe_policies(prepared, charged))
            transfers = [grant.transfer_id for grant in grants]
            running_reads.begin(tx, *events, instance=self._instance, transfers=transfers, transport=asked.transport)
            return charged

        def waits() -> bool:
            return asked.query_id in self._waited and ended_by(grants) is None and remaining_lease_s(grants) > 0

        try:
            return await noise_budget.retry_until_answered(
                lambda: self.grants.begin(grants, start, read_id=asked.query_id),
                seconds=min(self._most.seconds, asked.seconds or math.inf),
                waits=waits,
            )
        except noise_budget.AnswerInProgress:
            if asked.query_id in self._waited and not waits():
                raise await find_end_reason(grants, self.grants) from None
            raise
        except AlreadyExists:  # it runs in another process on this database
            raise _id_taken_error(asked) from None

    async def _replace_with_noised(
        self, job: Job, grants: Sequence[ReadGrant], prepared: PreparedQuery, charged: NoiseCharge
    ) -> Job:
        """Return the job for the public statement over the noised table: a new table, or the kept one."""
        asked = prepared.private
        assert asked is not None
        (grant,) = grants
        inner = replace(
            job,
            sql=asked.sql,
            params=asked.params,
            recheck=Recheck(asked.names, tuple(sorted(asked.functions))),
            noise=noise_budget.build_noise_plan(asked, charged),
            limits=replace(job.limits, rows=None, bytes=None),
            batch_rows=None,
            codec="none",
        )
        answer = await noise_budget.load_or_compute_answer(
            self._store, self._pool, inner, grant, charged, watch=partial(watch_grants, grants)
        )
        return replace(job, relations={asked.relation: Relation("", blob=0)}, blobs=(answer,))

    def _build_job(
        self, asked: ReadRequest, grants: Sequence[ReadGrant], prepared: PreparedQuery, keys: Sequence[CallerTable]
    ) -> Job:
        return build_job(asked, grants, prepared, keys, most=self._most, running=len(self._running))

    async def _record_end(
        self,
        beginning: asyncio.Task[NoiseCharge | None],
        asked: ReadRequest,
        grants: Sequence[ReadGrant],
        stream: GovernedStream | None,
        failure: BaseException | None,
        begun: float,
    ) -> None:
        await asyncio.wait([beginning])  # its commit comes even if we are cancelled
        failed = beginning.exception()
        unknown = isinstance(failed, Unavailable) and failed.code == UNKNOWN  # it may have begun, and would stay open
        if failed is not None and not unknown:
            return
        failure = read_log.find_cause(failure, ended_by(grants))
        if stream is not None and stream.end is None:
            code = getattr(failure, "code", read_log.GONE)
            stream.abandon(code, str(failure) if isinstance(failure, ConnectorError | PolicyError) else read_log.LEFT)
        end = stream.end if stream is not None else None
        if self._metrics is not None and end is not None:
            self._metrics.rows.inc(end.rows)
            self._metrics.bytes.inc(end.nbytes)
            self._metrics.query_seconds.observe(time.monotonic() - begun)
        unused = not unknown and _is_unused(asked, grants, end)
        told = partial(read_log.build_end_events, asked, grants, end, failure)
        events = told(unused=unused)
        charged = beginning.result() if unused else None

        def work(again: bool, tx: Transaction) -> None:
            if running_reads.end(tx, *events, instance=self._instance):
                self.grants.end(tx, grants, least=0 if asked.unfiltered else 1, unused=unused)
                if charged is not None and charged.paid:
                    tx.noised_answers.give_back(grants[0].agreement_id, micro=charged.paid)
            elif not again and not unknown:  # else it was committed before, or never began
                running_reads.end_again(tx, *told())

        recording = self._end_writer.record(asked.query_id, work)
        if unknown:  # do not wait for a database that is away
            return
        await asyncio.wait([recording], timeout=_END_SECONDS)
        if not recording.done() or not recording.result():
            raise Unavailable(
                "expected the database to record the end of this read, got no answer; it is recorded later, try again"
            )

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_shielded(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run work to its end although our caller may be cancelled: the record of an end is never lost."""
        return await asyncio.shield(self._spawn(work))


def _subtract_wait(asked: ReadRequest, waited: float) -> ReadRequest:
    """Return the read with the time that is left after it waited."""
    return asked if asked.seconds is None else replace(asked, seconds=max(_MOMENT, asked.seconds - waited))


def _id_taken_error(asked: ReadRequest) -> Invalid:
    return Invalid(f"a read with the id {asked.query_id!r} is running; choose another id", code="id_taken")


def _is_unused(asked: ReadRequest, grants: Sequence[ReadGrant], end: StreamEnd | None) -> bool:
    """Return whether a read gave its reader nothing, so that it counts as no use.

    So it is where no worker had the read, or nothing of it left although it asked for all rows: then its end reveals
    nothing of them either.
    """
    if end is None and not any(grant.served for grant in grants):
        return True
    left = end is not None and (end.batches > 0 or end.status == COMPLETE)
    return asked.unfiltered and not left
