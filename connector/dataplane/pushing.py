"""Push transfers: the provider sends everything to the consumer's address, over the one governed path."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Self

from connector.dataplane import asked, tickets
from connector.dataplane.addresses import Addresses
from connector.dataplane.asked import Asked
from connector.dataplane.governed import GovernedStream
from connector.dataplane.stream import Reads
from connector.dataplane.tickets import Ticket
from connector.errors import Busy, HanseError, Limited, PeerRefused, Refused
from connector.net import Answer, Net, origin
from connector.store.tables import Transfer
from connector.telemetry import logger

MEDIA = "application/vnd.apache.arrow.stream"
_RENEWALS = 3  # in the life of a ticket
_ANSWER_SECONDS = 900.0  # for a consumer that checks what has come before it acknowledges it
_ANSWER_MAX = 16 * 2**10
_LATER = (401, 404, 408, 425, 429)  # a no that may be a yes in a moment; other 4xx stay, however often it is sent
_FULL = ("streams_max", "streams_of_consumer", "concurrency")  # other reads end
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


async def push(transfer: Transfer, *, to: Target, addresses: Addresses, reads: Reads, net: Net, owner: str) -> None:
    """Send the dataset of a started push transfer with POST; back when the consumer has acknowledged all of it.

    PeerRefused or Busy where another attempt may do, as where a consumer acknowledges what it has not read; Refused
    where it would not: the stream was ended before it was complete, or the consumer's address says no.
    """
    ticket = _ticket(transfer, addresses)
    held = await reads.grants.hold(transfer.agreement_id, consumer=transfer.counterparty)
    wanted = Asked(
        tickets=(ticket,),
        sql=asked.rows_sql((owner, held.dataset.name)),
        action=asked.STREAM,
        purpose=transfer.purpose,
        plain_scan=True,
        unfiltered=True,
        transport="push",
    )
    try:
        await _sent(transfer, wanted, to=to, addresses=addresses, reads=reads, net=net)
    except Limited as error:
        if error.code not in _FULL:
            raise
        raise Busy(error.message, code=error.code) from error


async def _sent(transfer: Transfer, wanted: Asked, *, to: Target, addresses: Addresses, reads: Reads, net: Net) -> None:
    headers = {"content-type": MEDIA, **({"authorization": to.authorization} if to.authorization else {})}
    async with reads.open(wanted) as stream, _renewed(stream, transfer, addresses, reads):
        body = _Body(stream, to)
        async with net.stream(
            "POST", to.endpoint, headers=headers, body=aiter(body), seconds=_ANSWER_SECONDS
        ) as answer:
            _must_be_complete(stream)
            if not 200 <= answer.status < 300:
                raise await _refusal(answer, to.endpoint)
            if not body.left:
                raise PeerRefused(_early(answer, to.endpoint, body.sent))


class _Body:
    """A stream on its way out. `sent` are the bytes so far; once it `left`, the last of them was written, too."""

    def __init__(self, stream: GovernedStream, to: Target) -> None:
        self._stream, self._to = stream, to
        self.sent = 0
        self.left = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._counted(self._stream.schema)
        async for part in self._stream.frames():
            yield self._counted(part)
        self.left = True

    def _counted(self, part: memoryview | bytes) -> bytes:
        self.sent += len(part)
        if self._to.most and self.sent > self._to.most:
            raise Refused(
                f"expected at most {self._to.most} bytes, as its consumer takes; there are more", code="push_too_large"
            )
        return bytes(part)


def _must_be_complete(stream: GovernedStream) -> None:
    """Our own reason for a short stream says more than the consumer's answer to it."""
    end = stream.end
    if end is not None and end.status == asked.FAILED:
        raise Busy(f"the push broke off: {end.reason}", code=end.code or "failed")
    if end is not None and end.status != asked.COMPLETE:
        raise Refused(f"the push ended before the data did: {end.reason}", code=end.code or end.status)


def _early(answer: Answer, endpoint: str, sent: int) -> str:
    """Who answers and closes has the rest thrown away, and the client that we send with listens to the answer alone."""
    return (
        f"{origin(endpoint)} answered {answer.status} before it had read everything: {sent} bytes were on their way "
        "and there are more; it must read the body to its end before it answers"
    )


async def _refusal(answer: Answer, endpoint: str) -> HanseError:
    told = _detail(await answer.beginning(_ANSWER_MAX))
    said = f"{origin(endpoint)} answered {answer.status} to the pushed data, expected 2xx{told}"
    final = 400 <= answer.status < 500 and answer.status not in _LATER
    return Refused(said, code="push_refused") if final else PeerRefused(said)


def _detail(body: bytes) -> str:
    """What a problem object says."""
    try:
        return f": {str(json.loads(body)['detail'])[:500]}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


@asynccontextmanager
async def _renewed(
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
                await reads.renew(stream.id, _ticket(transfer, addresses))
    except HanseError as error:  # not permitted any more: the read ends with the ticket that it has
        _log.info("push_not_renewed", transfer=transfer.id, code=error.code, reason=error.message)


def _ticket(transfer: Transfer, addresses: Addresses) -> Ticket:
    text, _ = addresses.issue(transfer)
    return tickets.read(text, addresses.key, provider=addresses.participant, now=addresses.clock())
