"""Push transfers: the provider sends everything to the consumer's address, over the one governed path."""

from __future__ import annotations

from collections.abc import AsyncIterator

from connector.dataplane import asked, tickets
from connector.dataplane.addresses import Addresses
from connector.dataplane.asked import Asked
from connector.dataplane.stream import GovernedStream, Reads
from connector.errors import PeerRefused, Refused
from connector.net import Net, origin
from connector.store.tables import Transfer

MEDIA = "application/vnd.apache.arrow.stream"


async def push(
    transfer: Transfer, *, endpoint: str, authorization: str, addresses: Addresses, reads: Reads, net: Net, owner: str
) -> None:
    """Send the dataset of a started push transfer with POST; back when the consumer has acknowledged all of it.

    PeerRefused where the consumer's address says no, Refused where the stream was ended before it was complete.
    """
    text, _ = addresses.issue(transfer)
    ticket = tickets.read(text, addresses.key, provider=addresses.participant, now=addresses.clock())
    held = await reads.grants.hold(transfer.agreement_id, consumer=transfer.counterparty)
    wanted = Asked(
        tickets=(ticket,),
        sql=asked.rows_sql((owner, held.dataset.name)),
        action=asked.STREAM,
        purpose=transfer.purpose,
        plain_scan=True,
        unfiltered=True,
    )
    headers = {"content-type": MEDIA, **({"authorization": authorization} if authorization else {})}
    async with reads.open(wanted) as stream:
        async with net.stream("POST", endpoint, headers=headers, body=_body(stream)) as answer:
            if not 200 <= answer.status < 300:
                raise PeerRefused(f"{origin(endpoint)} answered {answer.status} to the pushed data, expected 2xx")
        if stream.end is None or stream.end.status != asked.COMPLETE:
            raise Refused("the push ended before the data did: " + (stream.end.reason if stream.end else "broken off"))


async def _body(stream: GovernedStream) -> AsyncIterator[bytes]:
    yield bytes(stream.schema)
    async for part in stream.frames():
        yield bytes(part)
