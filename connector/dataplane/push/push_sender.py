"""Push transfers: the provider sends everything to the consumer's address, over the one governed path.

A batch goes out in pieces, whose time begins anew with each: whoever takes it slowly is served as a reader is (decision
37). What lies in files is read as it goes, so a push holds a few pieces, however large its batches are.

Its read ends with the last byte that was taken: place, worker and grant are others' while the consumer makes up its
mind, for as long as a check of so much may take it.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar

from connector.dataplane import read_request, tickets
from connector.dataplane.admission import Reads
from connector.dataplane.data_address import Addresses
from connector.dataplane.governed_stream import GovernedStream
from connector.dataplane.http.file_sender import file_cut_error
from connector.dataplane.http.file_spans import InFiles, Place, Span
from connector.dataplane.http.request_context import as_error
from connector.dataplane.http.send_threads import run_in_send_thread
from connector.dataplane.read_request import ReadRequest
from connector.dataplane.tickets import Ticket
from connector.errors import Busy, HanseError, NotFound, PeerRefused, PeerUnreachable, Refused, VersionChanged
from connector.infra.net.http_client import HttpClient, StreamedReply, fits_header, origin
from connector.store.tables import Transfer
from connector.telemetry import logger
from connector.usage.held_agreement import EXPIRED
from policies.errors import PolicyError
from policies.vocabulary import expand

MEDIA = "application/vnd.apache.arrow.stream"
_RENEWALS = 3  # in the life of a ticket
_PIECE = 2**19  # bytes that are handed over at once: the client that we send with copies them
_TAKING_SECONDS = 60.0  # for the consumer to take a piece, and once the read is over, for the rest of a batch
# For a consumer that checks what has come before it acknowledges it: so many seconds, and for its bytes at this rate
# as a connector like ours takes at most (`receiving`), the longest in all.
_ANSWER_SECONDS, _ANSWER_RATE, _ANSWER_LONGEST = 300.0, 16 * 2**20, 900.0
_ANSWER_MAX = 16 * 2**10
_LATER = (401, 404, 408, 425, 429)  # a no that may be a yes in a moment; other 4xx stay, however often it is sent
_NOT_STARTED = "transfer_not_started"  # another such no: what the consumer did to the transfer is on its way to us
# The party's facts may be right again, and an attempt that begins now is told more than that it ended.
_PASSES = frozenset({"not_permitted", EXPIRED})
_SPENT = frozenset({"count_spent", "quota_spent"})  # of the agreement: there is no more of it
_T = TypeVar("_T")
_log = logger("dataplane")


@dataclass(frozen=True, slots=True)
class Target:
    """Where a consumer wants its data: an address, what to show there, and the most that it takes (0: not said)."""

    endpoint: str
    authorization: str = ""
    most: int = 0

    @classmethod
    def of(cls, endpoint: str, properties: Mapping[str, str]) -> Self:
        """Out of a data address, as the protocol has it."""
        shown, most = properties.get("authorization", ""), properties.get("maxBytes", "")
        bearer = properties.get("authType", "").lower() == "bearer" and shown and " " not in shown
        said = most.isascii() and most.isdigit() and len(most) < 20
        return cls(endpoint, f"Bearer {shown}" if bearer else shown, int(most) if said else 0)


async def push(
    transfer: Transfer, *, to: Target, addresses: Addresses, reads: Reads, net: HttpClient, owner: str
) -> None:
    """Send the dataset of a started push transfer with POST; back when the consumer has acknowledged all of it.

    PeerRefused or Busy where another attempt may do, as where a consumer acknowledges what it has not read, or where
    our own files or engine fail; Refused, Limited or NotFound where it would not: the agreement says no, the stream was
    ended before it was complete, or the consumer's address says no.
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
        )
        await _send(transfer, wanted, to=to, addresses=addresses, reads=reads, net=net)
    except (HanseError, PolicyError) as raised:
        error = as_error(raised)
        if error.status < 500 and not _is_final(error):
            error = Busy(error.message, code=error.code)
        if error is raised:
            raise
        raise error from raised


def _is_final(error: HanseError) -> bool:
    """Whether it is a no for good, of the agreement or of the consumer. All else is ours, and may be well in a moment:
    other reads end, a store answers, what is too large for the memory now is written otherwise, a file that was
    replaced is registered anew."""
    return error.code in _SPENT or (isinstance(error, Refused | NotFound) and error.code not in _PASSES)


async def _send(
    transfer: Transfer, wanted: ReadRequest, *, to: Target, addresses: Addresses, reads: Reads, net: HttpClient
) -> None:
    if not fits_header(to.authorization):  # of a transfer that was stored before its request was looked at for this
        raise Refused("expected an authorization that a header can carry, came another one", code="push_refused")
    headers = {"content-type": MEDIA, **({"authorization": to.authorization} if to.authorization else {})}
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
    """For a limit that begins when all was taken; PeerUnreachable where the consumer does not say by then that it is
    well."""
    waiting = asyncio.timeout(None)
    try:
        async with waiting:
            yield waiting
    except TimeoutError:
        if not waiting.expired():
            raise
        said = f"{origin(to.endpoint)} took all of the push, and did not answer in time whether it is well"
        raise PeerUnreachable(said, code="no_answer") from None


def _answer_seconds(sent: int) -> float:
    return min(_ANSWER_SECONDS + sent / _ANSWER_RATE, _ANSWER_LONGEST)


class _PushBody:
    """A stream on its way out. `sent` are the bytes so far; once it `left`, the last of them was written, too, and its
    read is `over`.

    A piece is asked for when the one before it was taken, and its memory is used again then.
    """

    def __init__(self, stream: GovernedStream, to: Target, *, over: Callable[[], Awaitable[None]]) -> None:
        self._stream, self._to, self._end = stream, to, over
        self._room = memoryview(b"")
        self._over = 0.0  # since when the read is over, though not all that has passed the gate was taken
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
                    del part  # it may be all that holds a large batch while the next one comes
                    async for piece in pieces:
                        yield piece
                        del piece
                yield memoryview(b"")  # the client that we send with holds what it has sent last, too

    async def _cut_part(self, part: memoryview | bytes | InFiles) -> AsyncGenerator[memoryview, None]:
        if not isinstance(part, InFiles):
            for piece in _cut_memory(part):
                yield piece
                del piece
            return
        await self._in_thread(part, part.check)
        for place in part.parts():
            if isinstance(place, memoryview):
                for piece in _cut_memory(place):
                    yield piece
                continue
            number, at, left = place
            while left:
                piece = await self._in_thread(part, partial(self._read, part, (number, at, left)))
                yield piece
                at, left = at + len(piece), left - len(piece)

    def _read(self, part: InFiles, place: Place) -> memoryview:
        """The next bytes of a file. In a thread: they may be on a disk only."""
        number, at, left = place
        self._room = self._room or memoryview(bytearray(_PIECE))
        if not (got := os.preadv(number, [self._room[:left]], at)):
            raise file_cut_error()
        if isinstance(part, Span) and part.seen is not None:
            part.seen(self._room[:got])
        return self._room[:got]

    async def _in_thread(self, part: InFiles, work: Callable[[], _T]) -> _T:
        try:
            return await run_in_send_thread(work, stop=_ignore_stop, device=part.device)
        except (EOFError, VersionChanged):
            why = VersionChanged.of("a file of this version is not what it was").message
            raise Busy(f"the push broke off: {why}", code="version_changed") from None

    def _check(self, piece: memoryview) -> None:
        """Refused beyond what the consumer takes; PeerUnreachable where the rest of a read that is over lasts."""
        self.sent += len(piece)
        if self._to.most and self.sent > self._to.most:
            raise Refused(
                f"expected at most {self._to.most} bytes, as its consumer takes; there are more", code="push_too_large"
            )
        if not self._stream.over:
            return
        self._over = self._over or time.monotonic()
        if time.monotonic() - self._over > _TAKING_SECONDS:
            said = f"{origin(self._to.endpoint)} took not all that it may for {_TAKING_SECONDS:g} s"
            raise PeerUnreachable(said, code="client_stalled")


def _cut_memory(part: memoryview | bytes) -> Iterator[memoryview]:
    """Its bytes as they lie, a piece at a time."""
    whole = memoryview(part).cast("B")
    return (whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE))


def _ignore_stop() -> None:
    """A piece is read to its end: there is nothing to stop."""


def _check_complete(stream: GovernedStream) -> None:
    """Our own reason for a short stream says more than the consumer's answer to it."""
    end = stream.end
    if end is not None and end.status == read_request.FAILED:
        raise Busy(f"the push broke off: {end.reason}", code=end.code or "failed")
    if end is not None and end.status != read_request.COMPLETE:
        raise Refused(f"the push ended before the data did: {end.reason}", code=end.code or end.status)


def _describe_early_answer(answer: StreamedReply, endpoint: str, sent: int) -> str:
    """Who answers and closes has the rest thrown away, and the client that we send with listens to the answer alone."""
    return (
        f"{origin(endpoint)} answered {answer.status} before it had read everything: {sent} bytes were on their way "
        "and there are more; it must read the body to its end before it answers"
    )


async def _build_refusal(answer: StreamedReply, endpoint: str) -> HanseError:
    problem = _parse_problem(await answer.read_up_to(_ANSWER_MAX))
    told = f": {' '.join(str(problem['detail'])[:500].split())}" if "detail" in problem else ""  # a line in a log
    said = f"{origin(endpoint)} answered {answer.status} to the pushed data, expected 2xx{told}"
    later = answer.status in _LATER or problem.get("code") == _NOT_STARTED
    # Nor does a redirection lead anywhere, however often: none is followed.
    return Refused(said, code="push_refused") if 300 <= answer.status < 500 and not later else PeerRefused(said)


def _parse_problem(body: bytes) -> dict[str, Any]:
    """A problem object; an empty one where it is something else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


@asynccontextmanager
async def _keep_renewed(
    stream: GovernedStream, transfer: Transfer, addresses: Addresses, reads: Reads
) -> AsyncIterator[None]:
    """Let the read go on for as long as it takes: as a consumer that pulls renews its ticket."""
    renewing = asyncio.ensure_future(_renew(stream, transfer, addresses, reads))
    try:
        yield
    finally:
        renewing.cancel()


async def _renew(stream: GovernedStream, transfer: Transfer, addresses: Addresses, reads: Reads) -> None:
    try:
        while True:
            await asyncio.sleep(addresses.seconds / _RENEWALS)
            with suppress(Busy):  # the database is away: the ticket lasts until it was asked several times more
                await reads.renew(stream.id, _issue_ticket(transfer, addresses))
    except HanseError as error:  # not permitted any more: the read ends with the ticket that it has
        _log.info("push_not_renewed", transfer=transfer.id, code=error.code, reason=error.message)


def _issue_ticket(transfer: Transfer, addresses: Addresses) -> Ticket:
    text, _ = addresses.issue(transfer)
    return tickets.read(text, addresses.key, provider=addresses.participant, now=addresses.clock())
