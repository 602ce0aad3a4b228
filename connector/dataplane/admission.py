"""The one path of every byte that leaves an owner: source, contract, gate, audit, frames. Transports only frame it.

`Reads.open` admits a read and `GovernedStream` (`governed`) delivers it; the numbers stand beside the code:
1. the grants: each agreement holds, covers action and purpose, and has uses and quota left (`usage.grants`);
2. the SQL passes the gate and comes out with the contracts inside it (`policies.enforce.gate`), values as parameters;
   the grants of the datasets that it reads go on, and those of further tickets take no part;
3. the use is counted, and the start of the read is durable in the log, before the first row is read;
4. a worker, made ready meanwhile, checks the SQL again with the engine's parser and runs it over the pinned files
   (`query.pool`), or its answer is there from an earlier pass (`origin`);
5. before each batch the gate looks at every lease: revoked, expired, rows, bytes; a batch is counted, then released;
6. revocation and expiry also interrupt a worker that gives no batch;
7. the stream ends with its end record, whatever the reason, and the log has the totals; quota not used goes back, and
   a use of which nobody had anything.
What stops a read before its first byte raises; what stops it later is in the end record.
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
from connector.errors import AlreadyExists, BadInput, Busy, HanseError, Limited, NotFound, Refused
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
PROGRESS_SECONDS = 1.0  # what had left is known to this precision after a crash
_LONGEST = 24 * 3600.0
_END_SECONDS = 30.0  # how long a read waits for the record of its end where the database is away
_COLUMNS_MAX = 128  # datasets whose columns are remembered, as they are shown under one contract
_DISPLACED = "the connector did not answer for a minute, and the end of this read is recorded already; ask again"
_ELSEWHERE = "this read runs in another process of this connector, and is renewed by that one; ask again to come to it"
_OF_FILES = frozenset({"file_unavailable", "blocks_not_kept"})  # busy is what one dataset lies on
_MOMENT = 0.05  # seconds that a read has at least, once it runs
_LOOK_SECONDS, _LOOKS_WAITING = 30.0, 256  # how long one who asks what a read would give waits, and how many do


class Reads:
    """Every read of one provider's data, over all transports."""

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
        self._instance = f"{instance}.{secrets.token_hex(8)}"  # this run's: what it owes an end is nobody else's
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
        # As many wait as run: each holds its request, which may have megabytes of keys.
        self._turns = TurnQueue(
            streams_max, each=max(1, streams_max // 2), waiting=streams_max, wait_seconds=queue_seconds
        )
        self._metrics = metrics
        self._columns: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()
        self._live: dict[str, GovernedStream] = {}
        self._ids = ActiveCounter()  # of those, of reads that have not begun yet, and of ends that are owed
        self._waited = ActiveCounter()  # those whose reader waits until they have begun
        self._end_writer = EndWriter(store, self._ids, later=self._spawn, leaving=lambda: bool(self.draining))
        if metrics is not None:
            metrics.streams.set_function(lambda: len(self._live))
            metrics.streams_waiting.set_function(lambda: self._turns.waiting)
        self._running = ActiveCounter()  # consumers, for each of their reads
        self._lookers = ActiveCounter()  # and for each look at what a read would give
        self._tasks: set[asyncio.Task[Any]] = set()
        self._noting: asyncio.Task[None] | None = None
        self._recorded: WeakSet[Exception] = (
            WeakSet()
        )  # refusals on their way to whoever asked, which have their record
        looks = max(2, streams_max // 2)
        self._looks = TurnQueue(
            looks, each=looks // 2, waiting=_LOOKS_WAITING, wait_seconds=_LOOK_SECONDS, what="turn to describe a read"
        )
        self.draining = ""  # the reason, once no new reads are taken
        self.clock: Callable[[], float] = time.time

    @property
    def run(self) -> str:
        """This run of our process, by which reads under way are known to be its own."""
        return self._instance

    @property
    def live(self) -> Mapping[str, GovernedStream]:
        """Reads under way, by id."""
        return self._live

    @asynccontextmanager
    async def open(self, asked: ReadRequest, *, spans: bool = False) -> AsyncIterator[GovernedStream]:
        """Admit a read, or raise HanseError or PolicyError before anything has left; leaving the block ends it.

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
                self._check_open()  # whoever drains has stopped those that were admitted by then
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
        except (HanseError, PolicyError) as error:
            refused = beginning is None or beginning.exception() is not None
            if refused:
                await self._record_refusal(asked, error, grants)
            self._recorded.add(error)  # or it is in the record of its end
            if refused or passed[0].aggregate:
                await wait_for_quantum(begun)
            raise
        finally:
            self.grants.forget(grants)

    @asynccontextmanager
    async def record_refusals(
        self, *tickets: Ticket, exclude: tuple[type[HanseError], ...] = ()
    ) -> AsyncIterator[None]:
        """A request of whoever showed these tickets, until the block ends: where it is refused, that is in the log
        once, whether it came to a read or not. `exclude`: errors that refuse nothing."""
        try:
            yield
        except (HanseError, PolicyError) as error:
            if error not in self._recorded and not isinstance(error, exclude):
                await self._record(read_log.build_request_refusals(tickets, error), error)
            raise

    async def plan(self, ticket: Ticket, wanted: block_plan.RowSelection) -> dict[str, Any]:
        """The blocks of a read that may come; a refusal is in the log as one of the read."""
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
        """The ranges of a read of blocks, for `Asked.split`; a refusal is in the log as one of the read."""
        found = self.plans.split(
            ticket, wanted, snapshot=snapshot, blocks=blocks, after=after, as_shown=as_shown, cursors=cursors
        )
        return await self._record_plan_refusal(ticket, wanted, found)

    async def _record_plan_refusal(
        self, ticket: Ticket, wanted: block_plan.RowSelection, work: Coroutine[Any, Any, _T]
    ) -> _T:
        try:
            return await work
        except (HanseError, PolicyError) as error:
            asked = ReadRequest(tickets=(ticket,), sql="", action=STREAM, purpose=wanted.purpose)
            await self._record_refusal(asked, error, ())
            raise

    async def describe(self, asked: ReadRequest) -> bytes:
        """The schema message of what a read would give; a refusal is raised and recorded as `open` would, and so
        is that no worker is free.

        Nothing is counted or reserved and no row is read. Empty where only the read itself can tell, with its reason.
        """
        grants: list[ReadGrant] = []
        begun = time.monotonic()
        try:
            async with self._hold_describe_turn(asked.consumer) as until:
                grants = [await self._preview_grant(ticket, asked) for ticket in asked.tickets]
                prepared, keys = await self._prepare(asked, grants, bytes(32))  # the key is of no value that leaves
                grants = select_grants(grants, prepared)
                job = replace(self._build_job(asked, grants, prepared, keys), kind="describe")
                return await self._describe_job(job, seconds=until - time.monotonic())
        except (HanseError, PolicyError) as error:
            await self._record_refusal(asked, error, grants)
            await wait_for_quantum(begun)
            raise

    async def columns(self, held: CompiledAgreement, contract: DataContract, *, consumer: str) -> bytes:
        """The schema message of a dataset as a contract shows it, aggregate-only or not. No row is read.

        What was told once is told again without a worker: a version has one schema. Busy where none is free; empty
        where the files cannot be looked at, which a read says why.
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
        """Those of admitted grants that the read is under. The others run no more: tickets that a connection has for
        its other statements are not held, counted, charged or recorded for this one."""
        found = select_grants(grants, prepared)
        self.grants.forget([grant for grant in grants if grant not in found])
        return found

    async def _describe_job(self, job: Job, *, seconds: float | None = None) -> bytes:
        try:
            return base64.b64decode((await self._pool.ask(job, seconds=seconds))["schema"])
        except HanseError as error:
            if isinstance(error, Busy) and error.code not in _OF_FILES:
                raise
            _log.info("not described", code=error.code)
            return b""

    async def _preview_grant(self, ticket: Ticket, asked: ReadRequest) -> ReadGrant:
        """What a grant would be, without its place and its uses."""
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
        self, asked: ReadRequest, error: HanseError | PolicyError, grants: Sequence[ReadGrant]
    ) -> None:
        await self._record(read_log.build_refusal_events(asked, error, grants), error)

    async def _record(self, events: Sequence[ReadRefused], error: HanseError | PolicyError) -> None:
        self._recorded.add(error)
        for event in events:
            await self._run_shielded(self._store.record_refusal(event))

    async def note(self, left: Mapping[str, tuple[int, int]]) -> list[str]:
        """Note the rows and bytes that have left of each of these reads, for the record that a crash leaves behind; ids
        of those that have one already, as others took us for dead."""

        def work(tx: Transaction) -> list[str]:
            noted = {
                read_id: tx.reads.update_totals(read_id, instance=self._instance, rows=rows, nbytes=nbytes)
                for read_id, (rows, nbytes) in left.items()
            }
            return [read_id for read_id, kept in noted.items() if not kept]

        return await self._store.write(work)

    async def _save_progress(self) -> None:
        """While reads run, note those that have gone on, in one commit for all of them: by time, as the reader of the
        last batch may take as long for it as for all before. What others have ended meanwhile does not go on."""
        noted: dict[str, tuple[int, int]] = {}
        while self._live:
            await asyncio.sleep(PROGRESS_SECONDS)
            left = {read_id: (one.rows, one.bytes) for read_id, one in self._live.items() if one.batches}
            gone_on = {read_id: much for read_id, much in left.items() if noted.get(read_id) != much}
            if gone_on:
                with suppress(HanseError):  # a database that is away hears it the next time
                    for over in await self.note(gone_on):
                        self._displace(over)
                    noted = left

    def _displace(self, read_id: str) -> None:
        stream = self._live.get(read_id)  # none where it has just ended by itself
        for grant in stream.grants if stream is not None else ():
            grant.stop(Busy(_DISPLACED))

    async def drain(self, reason: str, *, seconds: float = 5.0) -> None:
        """No new reads; running ones end at their next batch or before their first, with a reason. Back when their ends
        are recorded, and those that earlier ones owe."""
        self.draining = self.draining or reason
        self.grants.stop_all(reason, code="shutting_down")
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._running.wait_until_empty()
                await self._lookers.wait_until_empty()
                await self._end_writer.wait_for_all()

    async def renew(self, query_id: str, ticket: Ticket) -> None:
        """Let a running read go on with a fresh ticket of the same transfer. NotFound for anybody else's, Refused
        where the transfer is over or the party's facts do not permit it any more, Busy where the read runs in another
        process: that is no refusal, and not recorded."""
        stream = self._live.get(query_id)
        grants = [] if stream is None else stream.of(ticket)
        if stream is None and await self._store.read(lambda tx: tx.reads.has(query_id, consumer=ticket.consumer)):
            elsewhere = Busy(_ELSEWHERE, code="runs_elsewhere")
            self._recorded.add(elsewhere)
            raise elsewhere
        if stream is None or not grants:
            raise NotFound(f"no read {query_id[:64]!r} of yours is running")
        await self.grants.check_started(ticket.agreement, transfer=ticket.transfer, generation=ticket.generation)
        known = [await self.grants.recheck(grant) for grant in grants]
        stream.extend(grants, min(ticket.expires - self.clock(), *known))

    def seconds_left(self, contract: DataContract) -> float:
        """Seconds until the contract's own end."""
        return _LONGEST if contract.not_after is None else contract.not_after - self.clock()

    def _check_open(self) -> None:
        if self.draining:
            raise Busy("the connector is stopping; try again later", code="shutting_down")
        if self._end_writer.is_full:
            raise Busy("the database has not taken the ends of many reads yet; try again in a moment")

    @asynccontextmanager
    async def _hold_place(self, asked: ReadRequest) -> AsyncIterator[ReadRequest]:
        """The read's id and a place among the reads that run; the read with the time that is left to it.

        Waits for a place in turn with other consumers. Limited where none becomes free in time; nothing was done for
        the read by then.
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
                self._turns.give_back(of=consumer)

    async def _take_turn(self, asked: ReadRequest) -> None:
        try:
            await self._turns.take(asked.consumer, seconds=min(self._queue_seconds, asked.seconds or math.inf))
        except Busy:
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
        """A turn of those who ask what a read would give, and until when they wait for a worker after it. They are soon
        done, so they wait for it, and take no place of reads. Nobody has more than half of the turns: whoever holds one
        while he waits for a worker would keep others from waiting for it too."""
        self._check_open()
        until = time.monotonic() + _LOOK_SECONDS
        await self._looks.take(consumer)
        try:
            self._check_open()
            with self._lookers.hold(consumer):
                yield until
        finally:
            self._looks.give_back(of=consumer)

    async def _admit(self, asked: ReadRequest) -> list[ReadGrant]:
        """One grant per ticket, or none at all (1); nothing is counted yet."""
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
        """A ticket may be narrower than its agreement; where the agreement itself says no, that is the answer."""
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
            raise Refused(
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
            # How much may be sent, and how much noise there is, is known once the read has begun.
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
            del failure  # it has this frame, and would keep what was asked until the collector comes by
            await self._run_shielded(recording)

    async def _begin(
        self, asked: ReadRequest, grants: Sequence[ReadGrant], prepared: PreparedQuery
    ) -> NoiseCharge | None:
        """Count the read, charge an answer with noise, and record the start, before anything runs; what was charged."""

        def start(tx: Transaction) -> NoiseCharge | None:
            charged = None
            if prepared.private is not None:
                (grant,) = grants  # nothing else stands in such a question
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
        except AlreadyExists:  # in another process on this database
            raise _id_taken_error(asked) from None

    async def _replace_with_noised(
        self, job: Job, grants: Sequence[ReadGrant], prepared: PreparedQuery, charged: NoiseCharge
    ) -> Job:
        """The public statement over the noised table, which a worker makes now or the same question has left."""
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
        await asyncio.wait([beginning])  # where we were cancelled meanwhile, its commit comes all the same
        failed = beginning.exception()
        unknown = isinstance(failed, Busy) and failed.code == UNKNOWN  # it may have begun, and run for ever
        if failed is not None and not unknown:
            return
        failure = read_log.find_cause(failure, ended_by(grants))
        if stream is not None and stream.end is None:
            code = getattr(failure, "code", read_log.GONE)
            stream.abandon(code, str(failure) if isinstance(failure, HanseError | PolicyError) else read_log.LEFT)
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
            elif not again and not unknown:  # else it has committed before, or never begun
                running_reads.end_again(tx, *told())

        recording = self._end_writer.record(asked.query_id, work)
        if unknown:  # nobody waits for a database that is away
            return
        await asyncio.wait([recording], timeout=_END_SECONDS)
        if not recording.done() or not recording.result():
            raise Busy("the database does not answer now, and the end of this read waits for it")

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run_shielded(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do what must be done although our caller may be cancelled: the record of an end is never lost."""
        return await asyncio.shield(self._spawn(work))


def _subtract_wait(asked: ReadRequest, waited: float) -> ReadRequest:
    """A read that has waited: its own time began before."""
    return asked if asked.seconds is None else replace(asked, seconds=max(_MOMENT, asked.seconds - waited))


def _id_taken_error(asked: ReadRequest) -> BadInput:
    return BadInput(f"a read with the id {asked.query_id!r} is running; choose another", code="id_taken")


def _is_unused(asked: ReadRequest, grants: Sequence[ReadGrant], end: StreamEnd | None) -> bool:
    """Whether nobody has had anything of a read that has ended, so that it counts as no use: no worker has had it, or
    nothing of it left and it asked for all rows, so that its end tells nothing of them either."""
    if end is None and not any(grant.served for grant in grants):
        return True
    left = end is not None and (end.batches > 0 or end.status == COMPLETE)
    return asked.unfiltered and not left
