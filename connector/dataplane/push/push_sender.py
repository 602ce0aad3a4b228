"""Sends push transfers: the whole dataset goes to the consumer's address, over the one governed path.

A batch is sent in pieces, and the time limit restarts with each piece, so that a slow consumer is treated like a slow
reader (decision 37). Files are read while they are sent, so a push holds a few pieces, however large its batches are.

The read ends with the last byte that the consumer took. Place, worker and grant are free while the consumer checks what
it has received.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from functools import partial
from typing import Any, TypeVar

from connector.dataplane import read_request, tickets
from connector.dataplane.admission import Reads
from connector.dataplane.data_address import Addresses
from connector.dataplane.governed_stream import GovernedStream
from connector.dataplane.http.file_sender import file_cut_error
from connector.dataplane.http.file_spans import Span
from connector.dataplane.http.request_context import as_error
from connector.dataplane.http.send_threads import run_in_send_thread
from connector.dataplane.push.target import Target
from connector.dataplane.read_request import ReadRequest
from connector.dataplane.tickets import Ticket
from connector.errors import Absent, ConnectorError, Denied, PeerRefused, PeerUnreachable, Unavailable, VersionChanged
from connector.infra.net.http_client import HttpClient, StreamedReply, fits_header, origin
from connector.store.tables import Transfer
from connector.telemetry import logger
from connector.usage.held_agreement import EXPIRED
from policies.errors import PolicyError
from policies.vocabulary import expand

MEDIA = "application/vnd.apache.arrow.stream"
_RENEWALS = 3  # per lifetime of a ticket
_PIECE = 2**19  # bytes that are handed over at a time: the HTTP client copies them
_TAKING_SECONDS = 60.0  # for a piece, and for the rest of a batch once the read is over
# Time for a consumer to check the data before it acknowledges: a base, plus its bytes at this rate, which is the
# slowest of our own connector (`push_receiver`), up to a maximum.
_ANSWER_SECONDS, _ANSWER_RATE, _ANSWER_LONGEST = 300.0, 16 * 2**20, 900.0
_ANSWER_MAX = 16 * 2**10
_LATER = (401, 404, 408, 425, 429)  # refusals that may be temporary; other 4xx are final
_NOT_STARTED = "transfer_not_started"  # temporary as well: the consumer's change of the transfer is on its way to us
# The party's facts may hold again, and a new attempt gets a more precise refusal.
_PASSES = frozenset({"not_permitted", EXPIRED})
_SPENT = frozenset({"count_spent", "quota_spent"})  # the agreement is used up
_T = TypeVar("_T")
_log = logger("dataplane")


async def push(
    transfer: Transfer, *, to: Target, addresses: Addresses, reads: Reads, net: HttpClient, owner: str
) -> None:
    """Send the dataset of a started push transfer with POST. Returns when the consumer has acknowledged everything.

    Raises: PeerRefused or Unavailable where another attempt may succeed, for example where the consumer acknowledges
    before reading everything, or where our own files or engine fail. Denied, Limited or Absent where it cannot: the
    agreement refuses, the stream was ended before it was complete, or the consumer's address refuses.
    """
    try:
        held = await reads.grants.load(transfer.agreement_id, consumer=transfer.counterparty)
        wanted = ReadRequest(
            tickets=(_issue_ticket(transfer, addresses),),
            sql=read_request.build_rows_sql((owner, held.dataset.name)),
            action=read_request.STREAM,
            purpose=expand(transfer.purpose),
            plain_scan=True,
            unfiltered=True,
            transport="push",
            to=origin(to.endpoint)[:255],
            job=to.job,
        )
        await _send(transfer, wanted, to=to, addresses=addresses, reads=reads, net=net)
    except (ConnectorError, PolicyError) as raised:
        error = as_error(raised)
        if error.status < 500 and not _is_final(error):
            error = Unavailable(error.message, code=error.code)
        if error is raised:
            raise
        raise error from raised


def _is_final(error: ConnectorError) -> bool:
    """Return whether a refusal by the agreement or the consumer is final.

    All else may succeed later: other reads end, storage answers again, a replaced file is registered again.
    """
    return error.code in _SPENT or (isinstance(error, Denied | Absent) and error.code not in _PASSES)


async def _send(
    transfer: Transfer, wanted: ReadRequest, *, to: Target, addresses: Addresses, reads: Reads, net: HttpClient
) -> None:
    if not fits_header(to.authorization):  # for transfers stored before requests were checked for this
        raise Denied("expected an authorization that fits an HTTP header, got another one", code="push_refused")
    headers = {"content-type": MEDIA, **({to.header: to.authorization} if to.authorization else {})}
    async with AsyncExitStack() as reading, _limit_answer_time(to) as waiting:
        stream = await reading.enter_async_context(reads.open(wanted, spans=True))
        await reading.enter_async_context(_keep_renewed(stream, transfer, addresses, reads))

        async def over() -> None:
            await reading.aclose()
            waiting.reschedule(asyncio.get_running_loop().time() + _answer_seconds(body.sent))

        body = _PushBody(stream, to, over=over)
        async with net.stream(
            "POST", to.endpoint, headers=headers, body=aiter(body), seconds=_ANSWER_LONGEST, taking=_TAKING_SECONDS
        ) as answer:
            _check_complete(stream)
            if not 200 <= answer.status < 300:
                raise await _build_refusal(answer, to.endpoint)
            if not body.left:
                raise PeerRefused(_describe_early_answer(answer, to.endpoint, body.sent))


@asynccontextmanager
async def _limit_answer_time(to: Target) -> AsyncIterator[asyncio.Timeout]:
    """Yield a timeout that starts after the last byte was taken.

    Raises: PeerUnreachable where the consumer does not answer in time.
    """
    waiting = asyncio.timeout(None)
    try:
        async with waiting:
            yield waiting
    except TimeoutError:
        if not waiting.expired():
            raise
        message = f"{origin(to.endpoint)} took the whole push and did not acknowledge it in time"
        raise PeerUnreachable(message, code="no_answer") from None


def _answer_seconds(sent: int) -> float:
    return min(_ANSWER_SECONDS + sent / _ANSWER_RATE, _ANSWER_LONGEST)


class _PushBody:
    """The body of a push. `sent` counts the bytes so far. `left` is set once the last byte was written and the read
    ended.

    A piece is requested when the previous one was taken, and reuses its memory.
    """

    def __init__(self, stream: GovernedStream, to: Target, *, over: Callable[[], Awaitable[None]]) -> None:
        self._stream, self._to, self._end = stream, to, over
        self._room = memoryview(b"")
        self._over = 0.0  # when the read was over with bytes still to be taken
        self.sent = 0
        self.left = False

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        async with aclosing(self._pieces()) as pieces:
            async for piece in pieces:
                self._check(piece)
                yield piece
                del piece
        await self._end()
        self.left = True

    async def _pieces(self) -> AsyncGenerator[memoryview, None]:
        for piece in _cut_memory(self._stream.schema):
            yield piece
        async with aclosing(self._stream.parts()) as parts:
            async for part in parts:
                async with aclosing(self._cut_part(part)) as pieces:
                    del part  # frees a large batch while the next one is read
                    async for piece in pieces:
                        yield piece
                        del piece
                yield memoryview(b"")  # the HTTP client keeps its last piece: replace it

    async def _cut_part(self, part: memoryview | bytes | Span) -> AsyncGenerator[memoryview, None]:
        if not isinstance(part, Span):
            for piece in _cut_memory(part):
                yield piece
                del piece
            return
        await self._in_thread(part, part.check)
        sent = 0
        while sent < part.nbytes:
            piece = await self._in_thread(part, partial(self._read, part, sent))
            yield piece
            sent += len(piece)

    def _read(self, part: Span, sent: int) -> memoryview:
        """Return the bytes of a file that follow the first `sent`. Call in a thread: they may be on disk only."""
        self._room = self._room or memoryview(bytearray(_PIECE))
        if not (got := os.preadv(part.file.fileno(), [self._room[: part.nbytes - sent]], part.at + sent)):
            raise file_cut_error()
        if part.seen is not None:
            part.seen(self._room[:got])
        return self._room[:got]

    async def _in_thread(self, part: Span, work: Callable[[], _T]) -> _T:
        try:
            return await run_in_send_thread(work, stop=_ignore_stop, device=part.device)
        except (EOFError, VersionChanged):
            why = VersionChanged.of("a file of this version is not what it was").message
            raise Unavailable(f"the push failed: {why}", code="version_changed") from None

    def _check(self, piece: memoryview) -> None:
        """Raises: Denied beyond the consumer's limit. PeerUnreachable where it takes too long after the read is
        over."""
        self.sent += len(piece)
        if self._to.most and self.sent > self._to.most:
            raise Denied(
                f"expected at most {self._to.most} bytes, the limit of its consumer, got more", code="push_too_large"
            )
        if not self._stream.over:
            return
        self._over = self._over or time.monotonic()
        if time.monotonic() - self._over > _TAKING_SECONDS:
            message = (
                f"{origin(self._to.endpoint)} did not finish reading within {_TAKING_SECONDS:g} s after access ended"
            )
            raise PeerUnreachable(message, code="client_stalled")


def _cut_memory(part: memoryview | bytes) -> Iterator[memoryview]:
    """Return the bytes in pieces, without a copy."""
    whole = memoryview(part).cast("B")
    return (whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE))


def _ignore_stop() -> None:
    """Do nothing: a piece is read to its end."""


def _check_complete(stream: GovernedStream) -> None:
    """Raise our own reason for an incomplete stream: it says more than the consumer's answer."""
    end = stream.end
    if end is not None and end.status == read_request.FAILED:
        raise Unavailable(f"the push failed: {end.reason}", code=end.code or "failed")
    if end is not None and end.status != read_request.COMPLETE:
        raise Denied(f"the push ended before it was complete: {end.reason}", code=end.code or end.status)


def _describe_early_answer(answer: StreamedReply, endpoint: str, sent: int) -> str:
    """Return the message for an answer before the end of the body: the consumer discards the rest then."""
    return (
        f"{origin(endpoint)} answered {answer.status} before it had read everything: {sent} bytes were on their way "
        "and there are more; it must read the body to its end before it answers"
    )


async def _build_refusal(answer: StreamedReply, endpoint: str) -> ConnectorError:
    problem = _parse_problem(await answer.read_up_to(_ANSWER_MAX))
    detail = f": {' '.join(str(problem['detail'])[:500].split())}" if "detail" in problem else ""  # a line in a log
    said = f"{origin(endpoint)} answered {answer.status} to the pushed data, expected 2xx{detail}"
    later = answer.status in _LATER or problem.get("code") == _NOT_STARTED
    # Redirections are final too: none is followed.
    return Denied(said, code="push_refused") if 300 <= answer.status < 500 and not later else PeerRefused(said)


def _parse_problem(body: bytes) -> dict[str, Any]:
    """Return a problem object, an empty one for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@asynccontextmanager
async def _keep_renewed(
    stream: GovernedStream, transfer: Transfer, addresses: Addresses, reads: Reads
) -> AsyncIterator[None]:
    """Renew the read's ticket while the block runs, as a consumer that pulls does."""
    renewing = asyncio.ensure_future(_renew(stream, transfer, addresses, reads))
    try:
        yield
    finally:
        renewing.cancel()


async def _renew(stream: GovernedStream, transfer: Transfer, addresses: Addresses, reads: Reads) -> None:
    try:
        while True:
            await asyncio.sleep(addresses.seconds / _RENEWALS)
            with suppress(Unavailable):  # the database is away: the ticket outlasts several attempts
                await reads.renew(stream.id, _issue_ticket(transfer, addresses))
    except ConnectorError as error:  # no longer permitted: the read ends with its current ticket
        _log.info("push_not_renewed", transfer=transfer.id, code=error.code, reason=error.message)


def _issue_ticket(transfer: Transfer, addresses: Addresses) -> Ticket:
    text, _ = addresses.issue(transfer)
    return tickets.read(text, addresses.key, provider=addresses.participant, now=addresses.clock())
