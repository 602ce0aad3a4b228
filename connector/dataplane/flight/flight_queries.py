"""Flight's questions answered: what a path, an envelope or a statement reads, and the governed stream of it.

Each question carries the caller's data-plane tickets and stands for nothing without them. Reads are those of
`stream.py`, with the same checks and records as over HTTP. Knows no gRPC; `service` speaks that.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from connector.dataplane import block_plan
from connector.dataplane import read_request as ask
from connector.dataplane.admission import Reads
from connector.dataplane.block_plan import BLOCKS_MAX, Wanted
from connector.dataplane.data_address import Addresses
from connector.dataplane.flight import flight_ticket, parameters
from connector.dataplane.flight.caller import Caller
from connector.dataplane.flight.flight_ticket import Pass
from connector.dataplane.governed_stream import GovernedStream
from connector.dataplane.http import schemas as request_schemas
from connector.dataplane.http.stall_timeout import Moved, in_time
from connector.dataplane.read_log import ReaderEnded
from connector.dataplane.read_request import Asked
from connector.dataplane.tickets import Ticket
from connector.errors import BadInput, Busy, HanseError, Limited, NotFound, Refused
from connector.usage.held_agreement import Held
from policies.contracts.columns import fold
from policies.contracts.contract import Limits
from policies.contracts.masks import texts
from policies.errors import PolicyError
from policies.vocabulary import expand

_PASS_SECONDS = 900.0
_PARTS = 4  # endpoints of one dataset: as many reads at once as most clients make of them
_PART_BYTES = 512 * 2**20  # each on average at least: the beginning of a read takes as long as twenty megabytes
_SHORT = 1_024  # characters that are looked at at once: a millisecond or two
_CANCELLED = "the read was cancelled by its reader"
_CALLS_OF_ONE = 32  # open calls of one consumer, including those whose answer it does not read
_STALL_BYTES = 4 * 2**20  # what a reader must take within its time limit (decision 37)

_T = TypeVar("_T")


class Reader(Protocol):
    """The client of a stream."""

    async def send(self, part: memoryview | bytes, end: Mapping[str, Any] | None = None) -> None:
        """Send a part of the stream; returns when the client's flow control has let it through. `end`: the end record,
        with the last part. Raises ConnectionError when the client has left."""

    @property
    def late(self) -> ReaderEnded | None:
        """The reason of the end where the client's own time limit is over."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and what is declared with it."""

    tickets: tuple[Ticket, ...]
    purpose: str = ""
    application: str = ""
    action: str = "query"

    @property
    def consumer(self) -> str:
        return self.tickets[0].consumer


class Desk:
    """Answers for one provider. `key` seals Flight tickets, `owner` is the name that SQL writes before a dataset."""

    def __init__(
        self, reads: Reads, addresses: Addresses, *, owner: str, key: bytes, stall_seconds: float = 60.0
    ) -> None:
        self._reads = reads
        self._addresses = addresses
        self._owner = owner
        self._key = key
        self._stall_seconds = stall_seconds
        self._open: dict[str, int] = {}
        self._running: dict[str, set[asyncio.Task[Mapping[str, Any]]]] = {}  # by the pass they were opened with

    async def asker(self, caller: Caller) -> Asker:
        """Who calls: one data-plane ticket in Authorization, others beside it. Unauthenticated for one that is not
        ours or has ended, BadInput for those of several consumers."""
        first = self._addresses.read(caller.authorization)
        async with self._reads.hearing(first):
            found = (first, *map(self._addresses.read, caller.further))
            if len({one.consumer for one in found}) != 1:
                raise BadInput("expected tickets of one consumer", code="tickets_mixed")
        return Asker(found, caller.purpose, caller.application, caller.action)

    def hearing(self, asker: Asker, *, besides: tuple[type[HanseError], ...]) -> AbstractAsyncContextManager[None]:
        """See `Reads.hearing`; a read that its reader cancels is not refused either."""
        return self._reads.hearing(*asker.tickets, besides=(*besides, ReaderEnded))

    def counted(self, consumer: str) -> Callable[[], None]:
        """Count an open call of this consumer; returns what ends it. Raises Limited where too many are open."""
        if self._open.get(consumer, 0) >= _CALLS_OF_ONE:
            raise Limited(
                f"{_CALLS_OF_ONE} of your calls are open, which is the limit; read or close one",
                code="streams_of_consumer",
            )
        self._open[consumer] = self._open.get(consumer, 0) + 1
        return partial(self._close_call, consumer)

    def _close_call(self, consumer: str) -> None:
        self._open[consumer] -= 1
        if not self._open[consumer]:
            del self._open[consumer]

    async def describe(self, asker: Asker, wanted: dict[str, Any]) -> Described:
        """Schema and tickets of the read that `wanted` (of `rows_of`, `enveloped_of` or `stated_of`) means."""
        asked = await self._asked(wanted, asker.tickets)
        shown = [ticket for ticket in asker.tickets if ticket in asked.tickets]  # the others are in the envelope
        plan = await self._plan(wanted, shown)
        schema = await self._reads.describe(asked) if plan is None else base64.b64decode(plan["schema"])
        passed = [self._pass(part, shown) for part in _parted(wanted, plan)]
        return Described(bytes(schema), [ticket for ticket, _ in passed], min(expires for _, expires in passed))

    async def _plan(self, wanted: dict[str, Any], tickets: Sequence[Ticket]) -> dict[str, Any] | None:
        """The blocks of a dataset that may be read side by side, and its schema; None where it must be one read.

        Every part is a read of its own: an agreement that limits reads, their number at once, or what they take
        together gives one. So do sources without blocks. What is refused here is refused, and recorded, as one read.
        """
        if "path" not in wanted:
            return None
        held = await self._held(tickets[0])
        if any(contract.limits != Limits() for contract in held.contracts):
            return None
        try:
            return await self._reads.plans.plan(tickets[0], Wanted(**_declared(wanted)))
        except Busy:  # the read would wait as long once more
            raise
        except (HanseError, PolicyError):
            return None

    async def prepare(self, asker: Asker, sql: str) -> tuple[Sequence[str], bytes]:
        """The kinds of a statement's parameters (`parameters.kinds`), and its schema where it has none."""
        if "?" in sql:
            work = partial(parameters.kinds, sql, await self._types(asker.tickets))
            if found := await self._reads.judging.judge(asker.consumer, work):
                return found, b""
        return (), bytes(await self._reads.describe(await self._asked(stated_of(asker, sql, []), asker.tickets)))

    async def _types(self, tickets: Sequence[Ticket]) -> dict[str, str]:
        """The types of the columns that are shown under these tickets, by name, where they are of one kind."""
        found: dict[str, dict[str, str]] = {}
        for ticket in tickets:
            with suppress(HanseError):  # it is refused when the statement is asked
                for contract in (await self._usable(ticket)).contracts:
                    as_texts = texts(contract.masks)
                    for column in contract.schema.columns:
                        if column.name in contract.columns:
                            shown = "VARCHAR" if column.name in as_texts else column.type
                            found.setdefault(fold(column.name), {})[parameters.kind_of(shown)] = shown
        return {name: kind for name, kinds in found.items() if len(kinds) == 1 for kind in kinds.values()}

    async def tables(self, asker: Asker, *, schemas: bool) -> list[dict[str, Any]]:
        """The datasets of the tickets as {owner, name, schema}, with their schemas where wanted; none of a dataset
        whose files cannot be looked at, which keeps nobody from seeing the others."""
        found = []
        for ticket in asker.tickets:
            async with self._reads.hearing(ticket):  # of several it is this one that is refused
                held = await self._usable(ticket)
            schema = b""
            if schemas and held.contracts:
                schema = await self._reads.columns(held, held.contracts[0], consumer=ticket.consumer)
            found.append({"owner": self._owner, "name": held.dataset.name, "schema": bytes(schema)})
        return found

    def stop(self, asker: Asker, tickets: Sequence[bytes]) -> int:
        """End the running reads of these Flight tickets, also of those that have ended; how many there were."""
        opened = [self._running.get(self._unseal(raw, asker, now=0.0).id, set()) for raw in tickets]
        return sum(one.cancel(ReaderEnded(_CANCELLED)) for running in opened for one in running)

    async def renew(self, asker: Asker, ticket: bytes) -> tuple[bytes, float]:
        """A new Flight ticket for an old one, and when it ends; its running reads go on under this call's tickets."""
        known = flight_ticket.unseal(ticket, self._key, now=0.0)  # also one that has ended
        shown = _bearers(known, asker)
        for one in shown:
            await self._held(one)
        for stream in tuple(self._reads.live.values()):
            if stream.id.startswith(known.id + "."):
                for one in shown:
                    if stream.of(one):
                        await self._reads.renew(stream.id, one)
        return self._pass(known.wanted, shown, id=known.id)

    async def read(self, asker: Asker, ticket: bytes, reader: Reader) -> Mapping[str, Any]:
        """Send the stream of a Flight ticket to its reader, until it stops reading or cancels; the end record."""
        one = self._unseal(ticket, asker, now=self._addresses.clock())
        asked = replace(
            await self._asked(one.wanted, _bearers(one, asker)), query_id=f"{one.id}.{secrets.token_hex(4)}"
        )
        sending = asyncio.ensure_future(self._send(asked, reader))
        self._running.setdefault(one.id, set()).add(sending)
        sending.add_done_callback(partial(self._ended, one.id))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            if sending.done() and (task := asyncio.current_task()) is not None and not task.cancelling():
                raise ReaderEnded(_CANCELLED) from None
            raise
        finally:
            sending.cancel(reader.late)
            while not sending.done():  # however often we are cancelled: by a reset, and by the end of its connection
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((sending,))
            del sending  # its error has this frame, and would keep what was being sent until the collector comes by

    def _ended(self, id: str, sending: asyncio.Task[Mapping[str, Any]]) -> None:
        self._running[id].discard(sending)
        if not self._running[id]:
            del self._running[id]
        with suppress(asyncio.CancelledError):  # else its error would keep what was being sent
            sending.exception()

    async def _send(self, asked: Asked, reader: Reader) -> Mapping[str, Any]:
        async with self._reads.open(replace(asked, transport="flight")) as stream:
            await self._send_in_time(stream, reader, stream.schema)
            async with aclosing(stream.frames()) as frames:
                async for frame in frames:
                    if stream.end is None:
                        await self._send_in_time(stream, reader, frame)
                    if stream.end is not None:  # the last frame has no rows, or the read was abandoned
                        break
            assert stream.end is not None
            record = stream.end.to_json()
            if stream.end.status == ask.COMPLETE:
                await self._send_in_time(stream, reader, frame, record)
            return record

    async def _send_in_time(
        self, stream: GovernedStream, reader: Reader, part: memoryview | bytes, end: Mapping[str, Any] | None = None
    ) -> None:
        """Send a part; a reader that takes nothing for `stall_seconds` ends the read.

        gRPC does not say how much of a message has gone, so a large one has that time for each 4 MB. After a
        revocation one such time remains, whatever the size.
        """

        async def send(moved: Moved) -> None:
            loop, spans = asyncio.get_running_loop(), len(part) // _STALL_BYTES
            timers = [loop.call_later(number * self._stall_seconds * 0.9, moved) for number in range(1, spans + 1)]
            try:
                await reader.send(part, end)
            finally:
                for timer in timers:
                    timer.cancel()

        try:
            await in_time(send, seconds=self._stall_seconds, over=lambda: stream.over)
        except Limited as stalled:
            stream.abandon(stalled.code, stalled.message)
            raise
        except ConnectionError:  # this comes before the call is cancelled
            if (late := reader.late) is not None:
                stream.abandon(late.code, late.message)
            raise

    # Who may, and what is meant.

    def _unseal(self, raw: bytes, asker: Asker, *, now: float) -> Pass:
        one = flight_ticket.unseal(raw, self._key, now=now)
        _bearers(one, asker)
        return one

    def _pass(self, wanted: Mapping[str, Any], tickets: Sequence[Ticket], *, id: str = "") -> tuple[bytes, float]:
        expires = min(min(ticket.expires for ticket in tickets), self._addresses.clock() + _PASS_SECONDS)
        one = Pass(
            id=id or secrets.token_hex(8),
            consumer=tickets[0].consumer,
            agreements=tuple(ticket.agreement for ticket in tickets),
            expires=expires,
            wanted=wanted,
        )
        return flight_ticket.seal(one, self._key), expires

    async def _held(self, ticket: Ticket) -> Held:
        async with self._reads.hearing(ticket):  # of several it is this one that is refused
            return await self._reads.grants.hold(ticket.agreement, consumer=ticket.consumer)

    async def _usable(self, ticket: Ticket) -> Held:
        """What is held with those of its contracts that are active now. Refused where there is none."""
        return await self._reads.grants.usable(
            ticket.agreement,
            consumer=ticket.consumer,
            purpose=ticket.purpose,
            transfer=(ticket.transfer, ticket.generation),
        )

    async def _asked(self, wanted: Mapping[str, Any], tickets: tuple[Ticket, ...]) -> Asked:
        """The read that `wanted` (of `_wanted`) means, for these tickets."""
        if "path" in wanted:
            return await self._rows(wanted, tickets)
        if "envelope" in wanted:
            text = wanted["envelope"]
            return await self.looked_at(tickets, len(text), partial(self._enveloped, text, tickets))
        sql, values = wanted["sql"], wanted["values"]
        size = len(sql) + sum(len(text) for _, text in values)
        return Asked(
            tickets=tickets,
            sql=await self.looked_at(tickets, size, partial(parameters.bound, sql, values)),
            action=ask.ACTIONS[wanted["action"]],
            **_declared(wanted),
        )

    async def looked_at(self, tickets: Sequence[Ticket], size: int, work: Callable[[], _T]) -> _T:
        """What `work` finds in a text of such a size. As the gate's where it is long: hostile text takes its time."""
        return work() if size <= _SHORT else await self._reads.judging.judge(tickets[0].consumer, work)

    async def _rows(self, wanted: Mapping[str, Any], tickets: tuple[Ticket, ...]) -> Asked:
        """All rows of one of the datasets, as `GET .../rows` gives them."""
        name = wanted["path"][-1]
        for ticket in tickets:
            held = await self._held(ticket)
            if name in (held.dataset.name, held.dataset.id) and wanted["path"][:-1] in ([], [self._owner]):
                if "blocks" in wanted:
                    return await self._part_of(wanted, ticket, held)
                return Asked(
                    tickets=(ticket,),
                    sql=ask.rows_sql((self._owner, held.dataset.name)),
                    action=ask.STREAM,
                    plain_scan=True,
                    unfiltered=True,
                    **_declared(wanted),
                )
        raise NotFound(f"your tickets are not for {'/'.join(wanted['path'])[:200]!r}; list the flights")

    async def _part_of(self, wanted: Mapping[str, Any], ticket: Ticket, held: Held) -> Asked:
        """Some blocks of the dataset, as `GET .../rows?blocks=` gives them; Flight has no place for their cursors.

        All parts of one FlightInfo show the same, or they are refused. Those of connectors of before say not what.
        """
        if "shown" not in wanted:
            raise Refused(
                "this Flight ticket is of this provider's last release; ask for the flight info again",
                code="flight_ticket_invalid",
            )
        rows = Wanted(**_declared(wanted))
        split = await self._reads.split(
            ticket, rows, snapshot=wanted["snapshot"], blocks=wanted["blocks"], as_shown=wanted["shown"], cursors=False
        )
        return block_plan.asked_of(
            ticket, held, rows, owner=self._owner, split=split
        )  # without a condition: that is short

    def _enveloped(self, text: str, tickets: tuple[Ticket, ...]) -> Asked:
        """The read that the JSON of `POST /data/v1/query` asks for."""
        envelope = request_schemas.parse_envelope(text.encode())
        if envelope.agreement and envelope.agreement not in {ticket.agreement for ticket in tickets}:
            raise Refused("this ticket is for another agreement than the query names", code="ticket_mismatch")
        if envelope.keys:
            raise BadInput("tables are brought along over HTTP only (POST /data/v1/query)", code="envelope_invalid")
        others = tuple(self._addresses.read(one) for one in envelope.tickets)
        return replace(request_schemas.asked_of(envelope, (*tickets, *others)), codec="none")


def _bearers(one: Pass, asker: Asker) -> tuple[Ticket, ...]:
    """Those of the tickets that are shown under which a Flight ticket was given out: it is read, and charged, under no
    others. Refused unless they are all there."""
    held = {ticket.agreement for ticket in asker.tickets}
    if one.consumer != asker.consumer or not held.issuperset(one.agreements):
        raise Refused(
            "this Flight ticket was given to somebody else or for another agreement; ask for the flight info "
            "with the ticket that you read with",
            code="ticket_mismatch",
        )
    return tuple(ticket for ticket in asker.tickets if ticket.agreement in one.agreements)


@dataclass(frozen=True, slots=True)
class Described:
    """What a read gives: its schema (an encapsulated message), tickets in the order of the rows, and until when."""

    schema: bytes
    tickets: list[bytes]
    expires: float


def rows_of(asker: Asker, path: Sequence[str]) -> dict[str, Any]:
    """All rows of a dataset, as a pass keeps it."""
    return {"path": list(path), "purpose": asker.purpose, "application": asker.application}


def enveloped_of(text: str) -> dict[str, Any]:
    """The read of an envelope, as a pass keeps it."""
    return {"envelope": text}


def stated_of(asker: Asker, sql: str, values: Sequence[Sequence[str]]) -> dict[str, Any]:
    """A statement with its parameters, as a pass keeps it."""
    declared = {"purpose": asker.purpose, "application": asker.application}
    return {"sql": sql, "values": [list(one) for one in values], "action": asker.action, **declared}


def _parted(wanted: dict[str, Any], plan: dict[str, Any] | None) -> list[dict[str, Any]]:
    """All rows of a dataset in runs of its blocks, to be read side by side; the whole without a plan of more."""
    if plan is None:
        return [wanted]
    blocks = len(plan["blocks"])
    worth = sum(block["bytes"] for block in plan["blocks"]) // _PART_BYTES
    count = min(_PARTS, blocks, max(worth, -(-blocks // BLOCKS_MAX)))
    if count <= 1 or blocks > count * BLOCKS_MAX:
        return [wanted]
    runs = (range(part * blocks // count, (part + 1) * blocks // count) for part in range(count))
    common = wanted | {"snapshot": plan["snapshot"], "shown": plan["shown"]}
    return [common | {"blocks": ",".join(map(str, run))} for run in runs]


def _declared(wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {"purpose": expand(wanted["purpose"]), "application": wanted["application"]}
