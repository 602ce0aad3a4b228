"""One read on its way out: batch after batch past the gate, then the end record. What stops it, and why."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from connector.dataplane import read_log
from connector.dataplane.cache.cached_stream import CachedReader, ScatteredResult, StreamPart, StreamSource
from connector.dataplane.cache.mixed_stream import MixedStream
from connector.dataplane.http.file_spans import InFiles
from connector.dataplane.read_request import COMPLETE, ENDS, FAILED, QUOTA, REFUSED, ReadRequest, StreamEnd
from connector.dataplane.tickets import Ticket
from connector.engine.pool.error_codes import error_of
from connector.engine.pool.protocol import ARROW
from connector.engine.pool.worker_process import Frame, Result
from connector.errors import EngineFailed, HanseError, Limited, Refused, Withdrawn, internal_error
from connector.infra.formats.digests import RunningDigest
from connector.telemetry import logger
from connector.usage import quotas
from connector.usage.grants import Grants
from connector.usage.held_agreement import EXPIRED, ReadGrant, ended_by
from policies.contracts import batch_gate
from policies.errors import PolicyError

if TYPE_CHECKING:
    from connector.dataplane.admission import Reads
    from policies.enforce.gate import PreparedQuery

_log = logger("dataplane")
_QUANTUM = 0.05  # seconds: answers of aggregate-only data leave at multiples of it (federated-query, section 7)
_EXPIRED = "the time of the ticket has ended; renew the ticket and go on from here"


class GovernedStream:
    """One read under way. `schema` first, then the parts of `frames`; together one Arrow IPC stream."""

    def __init__(
        self,
        reads: Reads,
        asked: ReadRequest,
        grants: Sequence[ReadGrant],
        prepared: PreparedQuery,
        result: StreamSource,
        policy: tuple[str, ...],
    ) -> None:
        self.id = asked.query_id
        self.schema = result.schema
        self.columns = prepared.columns
        self.end: StreamEnd | None = None
        self.rows = self.batches = self.bytes = 0
        self._reads = reads
        self.grants = tuple(grants)
        self._result = result
        self._asked = asked
        self._digest = result.digest
        self._policy = policy
        self.withheld, self._left_out = read_log.describe_withheld(prepared)
        self._first: Frame | StreamPart | None = None  # taken from the source and not let through yet
        self._failed: HanseError | None = None  # what the source said where nobody could end the stream

    @property
    def over(self) -> bool:
        """Whether a grant has ended, so that no further batch will pass."""
        return any(grant.lease.revoked for grant in self.grants) or remaining_lease_s(self.grants) <= 0

    async def peek(self) -> bool:
        """Wait for the first batch without releasing it. Whether there is one."""
        self._first = await anext(self._result, None)
        return self._first is not None

    async def frames(self) -> AsyncGenerator[memoryview | bytes, None]:
        """As `parts`, for a transport that sends memory only."""
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                assert not isinstance(part, InFiles)  # only whoever opens a read with `spans` gets them
                yield part

    async def parts(self) -> AsyncGenerator[memoryview | bytes | InFiles, None]:
        """Batches as they pass the gate, then the end record: at most one batch is held at a time."""
        end: StreamEnd | None = None
        try:
            while end is None:
                frame = await self._take_frame()
                if frame is None:
                    end = self._build_end(COMPLETE)
                elif (stop := await self._count_frame(frame)) is not None:
                    end = self._end_for_reason(stop)
                else:
                    await _update_digest(frame)
                    yield frame.payload
                del frame  # else it is held beside the next one
        except Exception as error:  # noqa: BLE001  a disk that fails, above all: the reader is told that we broke off
            end = await self._end_on_error(to_hanse_error(error))
        self.end = end
        if self._asked.format == ARROW:
            yield end.fill(self._result.trailer)

    def following(self) -> InFiles | None:
        """The batch after the one that `parts` gave last, where it lies in files and passes the gate as things stand.

        For a transport that sends spans in a thread, and called there, while `parts` waits: a batch costs no way
        through the event loop then. None where that has to look: at the end, a refusal, a quota to be filled up.
        """
        try:
            part = (
                self._result.at_once()
                if isinstance(self._result, CachedReader | ScatteredResult | MixedStream)
                else None
            )
            if part is None:
                return None
            if not isinstance(part.payload, InFiles) or self._find_stopping_grant(part) is not None:
                self._first = part
                return None
        except Exception as error:  # noqa: BLE001  as in `parts`
            self._failed = to_hanse_error(error)
            return None
        return part.payload

    def abandon(self, code: str, reason: str) -> None:
        """The client has gone or does not read: the log says so."""
        if self.end is None:
            self.end = replace(self._build_end(FAILED), code=code, reason=reason)

    def of(self, ticket: Ticket) -> list[ReadGrant]:
        """What this read has under that ticket: a fresh one of the same transfer, or the very one."""
        shown = ticket.agreement, ticket.transfer
        return [one for one in self.grants if (one.agreement_id, one.transfer_id) == shown]

    def extend(self, grants: Sequence[ReadGrant], seconds: float) -> None:
        """A renewed ticket: as far as it goes, the read may go on this long from now, within the agreement's time.

        A read under several tickets goes on as long as the first of them to end: each is renewed by itself.
        """
        for grant in grants:
            grant.extend(min(seconds, self._reads.seconds_left(grant.contract)))

    async def _take_frame(self) -> Frame | StreamPart | None:
        if self._failed is not None:
            raise self._failed
        frame, self._first = self._first, None
        return frame or await anext(self._result, None)

    async def _count_frame(self, frame: Frame | StreamPart) -> HanseError | None:
        """None and the batch is counted in every lease (5), or what the stream ends with."""
        filled: ReadGrant | None = None
        while (stop := self._find_stopping_grant(frame)) is not None:
            grant, reason = stop
            if reason not in (batch_gate.ROWS_SPENT, batch_gate.BYTES_SPENT):
                return await find_end_reason(self.grants, self._reads.grants)
            if grant is filled:
                rule = quotas.quota_rule(grant.contract, of_bytes=reason == batch_gate.BYTES_SPENT)
                return Limited(quotas.USED_UP, code=QUOTA, rule=rule, agreement=grant.agreement_id)
            short = (max(0, frame.rows - grant.lease.rows), max(0, frame.nbytes - grant.lease.bytes))
            await self._reads.grants.refill(grant, rows=short[0], nbytes=short[1])
            filled = grant
        return None

    def _find_stopping_grant(self, frame: Frame | StreamPart) -> tuple[ReadGrant, str] | None:
        """None and the batch is counted in every lease, or the first that it does not pass, and counted in none."""
        for number, grant in enumerate(self.grants):
            if (reason := batch_gate.check(grant.lease, frame.rows, frame.nbytes)) is not None:
                for passed in self.grants[:number]:
                    passed.lease.rows += frame.rows
                    passed.lease.bytes += frame.nbytes
                return grant, reason
        self.rows += frame.rows
        self.batches += 1
        self.bytes += frame.nbytes
        self._digest = frame.digest
        return None

    async def _end_on_error(self, error: HanseError) -> StreamEnd:
        """What ended the work from inside: a grant that ended interrupts the worker, anything else is a failure."""
        if ended_by(self.grants) is not None or (error.code == "cancelled" and remaining_lease_s(self.grants) <= 0):
            return self._end_for_reason(await find_end_reason(self.grants, self._reads.grants))
        return self._build_end(FAILED, error)

    def _end_for_reason(self, why: HanseError) -> StreamEnd:
        """The end by a grant: by its owner, by the agreement itself or its consumer, or for a reason that passes."""
        if why.code in ENDS:
            return self._build_end(why.code, why)
        return self._build_end(REFUSED if isinstance(why, Refused) else FAILED, why)

    def _build_end(self, status: str, why: HanseError | None = None) -> StreamEnd:
        name = self._asked.digest
        return StreamEnd(
            status=status,
            rows=self.rows,
            batches=self.batches,
            nbytes=self.bytes,
            digest=f"{name}:{self._digest.hex()}",
            code="" if why is None else why.code,
            reason="" if why is None else why.message,
            rule="" if why is None else why.facts.get("rule", ""),
            policy=self._policy,
            withheld=self.withheld,
            left_out=self._left_out,
            query=self.id,
            agreement="" if why is None else why.facts.get("agreement", ""),
            withdrawn=isinstance(why, Withdrawn),
        )


async def _update_digest(frame: Frame | StreamPart) -> None:
    """Show what leaves as memory to a digest that is taken as it goes; a transport shows what it sends from files."""
    if (
        isinstance(frame, StreamPart)
        and isinstance(frame.digest, RunningDigest)
        and isinstance(frame.payload, memoryview)
    ):
        await asyncio.to_thread(frame.digest.update, frame.payload)


def watch_grants(grants: Sequence[ReadGrant], result: Result) -> Coroutine[Any, Any, None]:
    """Interrupt the worker, which has the read from now on, when a grant ends while no batch comes (6)."""
    for grant in grants:
        grant.served = True
    return _interrupt_on_end(grants, result)


async def _interrupt_on_end(grants: Sequence[ReadGrant], result: Result) -> None:
    stops = [asyncio.ensure_future(grant.stopped.wait()) for grant in grants]
    try:
        while (left := remaining_lease_s(grants)) > 0:
            done, _ = await asyncio.wait(stops, timeout=min(left, 60), return_when=asyncio.FIRST_COMPLETED)
            if done:
                break
        result.interrupt()
    finally:
        for stop in stops:
            stop.cancel()


def remaining_lease_s(grants: Sequence[ReadGrant]) -> float:
    """Seconds that the shortest lease has left."""
    return min(grant.lease.deadline - grant.lease.clock() for grant in grants)


def to_hanse_error(error: Exception) -> HanseError:
    """An error that has a code as it is; any other as one that nobody foresaw, of which our own log says more."""
    if isinstance(error, HanseError):
        return error
    _log.error("a read broke off", exc_info=error)
    return internal_error()


async def find_end_reason(grants: Sequence[ReadGrant], by: Grants) -> HanseError:
    """Why a read ends of which a grant has: what stopped that, or that the time that the read asked for has ended, as a
    worker says it, or what a read that begins now would be refused for, or else that its ticket has ended. Fast and
    slow readers get the same answer."""
    if ended_by(grants) is None and any(grant.is_late for grant in grants):
        return error_of("time_limit", {})
    if ended_by(grants) is None:
        await by.recheck_ended(grants)
    return ended_by(grants) or Refused(_EXPIRED, code=EXPIRED)


async def translate_failure(error: BaseException, grants: Sequence[ReadGrant], by: Grants) -> BaseException:
    """A read that its grant's end has interrupted before its first byte is refused for that reason; what nobody foresaw
    is ours, unless the connection says that its reader has left."""
    if isinstance(error, Exception) and not isinstance(error, HanseError | PolicyError | ConnectionError):
        return to_hanse_error(error)
    if not isinstance(error, EngineFailed) or error.code != "cancelled":
        return error
    if ended_by(grants) is None and remaining_lease_s(grants) > 0:
        return error
    return await find_end_reason(grants, by)


async def await_whole_answer(stream: GovernedStream, prepared: PreparedQuery, begun: float) -> None:
    """An aggregate-only answer leaves when it is known whole: no cell and a small cell look the same, also in time."""
    if not prepared.aggregate:
        return
    found = await stream.peek()
    await wait_for_quantum(begun)
    if not found and prepared.min_group is not None:
        more = ", or for COUNT(*): different units are counted only where none lies in two" if prepared.units else ""
        raise Refused(
            f"no group of at least {prepared.min_group}, in all and in each of its figures, fits the question; ask for "
            f"larger groups{more}",
            code="min_group_size",
            rule=next(
                (path for d in prepared.datasets for name, path in d.contract.reasons if "group" in name.lower()), ""
            ),
        )


async def wait_for_quantum(begun: float) -> None:
    """Wait until the time since `begun` is a multiple of the quantum."""
    await asyncio.sleep(-(time.monotonic() - begun) % _QUANTUM)
