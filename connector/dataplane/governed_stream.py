"""One read while it is sent: each batch passes the gate, then the end record follows. Finds why a read ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from connector.dataplane import read_log
from connector.dataplane.cache.cached_stream import CachedReader, StreamPart, StreamSource
from connector.dataplane.cache.mixed_stream import MixedStream
from connector.dataplane.http.file_spans import Span
from connector.dataplane.read_request import COMPLETE, ENDS, FAILED, QUOTA, REFUSED, ReadRequest, StreamEnd
from connector.dataplane.tickets import Ticket
from connector.engine.pool.error_codes import error_of
from connector.engine.pool.protocol import ARROW
from connector.engine.pool.worker_process import Frame, Result
from connector.errors import ConnectorError, Denied, EngineFailed, Limited, Withdrawn, internal_error
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
# Seconds: answers of aggregate-only data leave at multiples of it, so that their time does not show group sizes.
_QUANTUM = 0.05
_EXPIRED = "the ticket has expired; renew it and resume from here"


class GovernedStream:
    """One read under way. `schema` and then the parts of `frames` are one Arrow IPC stream."""

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
        self._first: Frame | StreamPart | None = None  # taken from the source, not released yet
        self._failed: ConnectorError | None = None  # error of the source during `following`, raised by `parts`

    @property
    def over(self) -> bool:
        """Whether a grant has ended, so that no further batch will pass."""
        return any(grant.lease.revoked for grant in self.grants) or remaining_lease_s(self.grants) <= 0

    async def peek(self) -> bool:
        """Wait for the first batch without releasing it. Returns whether there is one."""
        self._first = await anext(self._result, None)
        return self._first is not None

    async def frames(self) -> AsyncGenerator[memoryview | bytes, None]:
        """Yield the same as `parts`, for a transport that sends memory only."""
        async with aclosing(self.parts()) as parts:
            async for part in parts:
                assert not isinstance(part, Span)  # only a read opened with `spans` has them
                yield part

    async def parts(self) -> AsyncGenerator[memoryview | bytes | Span, None]:
        """Yield batches as they pass the gate, then the end record. Holds at most one batch at a time."""
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
                del frame  # else two batches are held
        except Exception as error:  # noqa: BLE001  mainly disk failures: the end record says that we broke off
            end = await self._end_on_error(to_hanse_error(error))
        self.end = end
        if self._asked.format == ARROW:
            yield end.fill(self._result.trailer)

    def following(self) -> Span | None:
        """Return the batch after the last one of `parts`, if it is in files and passes the gate as things stand.

        For a transport that sends spans in a thread, and called there while `parts` waits: a batch then needs no turn
        of the event loop. None where `parts` must decide: at the end, on a refusal, or to refill a quota.
        """
        try:
            part = self._result.at_once() if isinstance(self._result, CachedReader | MixedStream) else None
            if part is None:
                return None
            if not isinstance(part.payload, Span) or self._find_stopping_grant(part) is not None:
                self._first = part
                return None
        except Exception as error:  # noqa: BLE001  as in `parts`
            self._failed = to_hanse_error(error)
            return None
        return part.payload

    def abandon(self, code: str, reason: str) -> None:
        """Record that the client has left or does not read."""
        if self.end is None:
            self.end = replace(self._build_end(FAILED), code=code, reason=reason)

    def of(self, ticket: Ticket) -> list[ReadGrant]:
        """Return the grants under that ticket: the one used, or a fresh one of the same transfer."""
        shown = ticket.agreement, ticket.transfer
        return [one for one in self.grants if (one.agreement_id, one.transfer_id) == shown]

    def extend(self, grants: Sequence[ReadGrant], seconds: float) -> None:
        """Extend the grants of a renewed ticket by `seconds` from now, within the agreement's time.

        A read under several tickets lasts until the first of them ends: each is renewed by itself.
        """
        for grant in grants:
            grant.extend(min(seconds, self._reads.seconds_left(grant.contract)))

    async def _take_frame(self) -> Frame | StreamPart | None:
        if self._failed is not None:
            raise self._failed
        frame, self._first = self._first, None
        return frame or await anext(self._result, None)

    async def _count_frame(self, frame: Frame | StreamPart) -> ConnectorError | None:
        """Count the batch in every lease and return None, or return the error that ends the stream.

        Step 5 of `admission`.
        """
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
        """Count the batch in every lease and return None, or return the first grant that refuses it and count
        nothing."""
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

    async def _end_on_error(self, error: ConnectorError) -> StreamEnd:
        """Return the end after an error: a grant that ended interrupts the worker, anything else is a failure."""
        if ended_by(self.grants) is not None or (error.code == "cancelled" and remaining_lease_s(self.grants) <= 0):
            return self._end_for_reason(await find_end_reason(self.grants, self._reads.grants))
        return self._build_end(FAILED, error)

    def _end_for_reason(self, why: ConnectorError) -> StreamEnd:
        """Return the end by a grant: by its owner, the agreement or its consumer, or for a temporary reason."""
        if why.code in ENDS:
            return self._build_end(why.code, why)
        return self._build_end(REFUSED if isinstance(why, Denied) else FAILED, why)

    def _build_end(self, status: str, why: ConnectorError | None = None) -> StreamEnd:
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
    """Add memory to a digest that is computed while sending. A transport adds what it sends from files."""
    if (
        isinstance(frame, StreamPart)
        and isinstance(frame.digest, RunningDigest)
        and isinstance(frame.payload, memoryview)
    ):
        await asyncio.to_thread(frame.digest.update, frame.payload)


def watch_grants(grants: Sequence[ReadGrant], result: Result) -> Coroutine[Any, Any, None]:
    """Interrupt the worker, which now has the read, when a grant ends while no batch comes.

    Step 6 of `admission`.
    """
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
    """Return the seconds that the shortest lease has left."""
    return min(grant.lease.deadline - grant.lease.clock() for grant in grants)


def to_hanse_error(error: Exception) -> ConnectorError:
    """Return an error that has a code unchanged. Log any other and return an internal error."""
    if isinstance(error, ConnectorError):
        return error
    _log.error("a read broke off", exc_info=error)
    return internal_error()


async def find_end_reason(grants: Sequence[ReadGrant], by: Grants) -> ConnectorError:
    """Return why a read ends after one of its grants did. Fast and slow readers get the same answer.

    1. The reason that stopped the grant.
    2. The time limit that the request set.
    3. The refusal that a new read would get now.
    4. The end of the ticket.
    """
    if ended_by(grants) is None and any(grant.is_late for grant in grants):
        return error_of("time_limit", {})
    if ended_by(grants) is None:
        await by.recheck_ended(grants)
    return ended_by(grants) or Denied(_EXPIRED, code=EXPIRED)


async def translate_failure(error: BaseException, grants: Sequence[ReadGrant], by: Grants) -> BaseException:
    """Return the error to raise for a failed read.

    A read that a grant's end interrupted before its first byte is refused for that reason. An unexpected error becomes
    an internal one, except a ConnectionError, which means that the reader has left.
    """
    if isinstance(error, Exception) and not isinstance(error, ConnectorError | PolicyError | ConnectionError):
        return to_hanse_error(error)
    if not isinstance(error, EngineFailed) or error.code != "cancelled":
        return error
    if ended_by(grants) is None and remaining_lease_s(grants) > 0:
        return error
    return await find_end_reason(grants, by)


async def await_whole_answer(stream: GovernedStream, prepared: PreparedQuery, begun: float) -> None:
    """Wait for the whole answer of an aggregate-only read before anything leaves.

    No group and a small group look the same, in time as well. Raises: Denied where no group is large enough.
    """
    if not prepared.aggregate:
        return
    found = await stream.peek()
    await wait_for_quantum(begun)
    if not found and prepared.min_group is not None:
        more = ", or for COUNT(*): different units are counted only where none lies in two" if prepared.units else ""
        raise Denied(
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
