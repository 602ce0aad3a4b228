"""Flight queries: which read a path, an envelope or a statement means, and its governed stream. Knows no gRPC.

Each call carries the caller's data-plane tickets. Reads go through `admission` and `governed_stream`, with the same
checks and records as over HTTP. `rpc_methods` is the caller.
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
from connector.dataplane.block_plan import BLOCKS_MAX, RowSelection
from connector.dataplane.data_address import Addresses
from connector.dataplane.flight import flight_ticket, parameters
from connector.dataplane.flight.caller import FlightCaller
from connector.dataplane.flight.flight_ticket import FlightTicket
from connector.dataplane.governed_stream import GovernedStream
from connector.dataplane.http import schemas as request_schemas
from connector.dataplane.http.stall_timeout import OnProgress, send_in_time
from connector.dataplane.read_log import ReaderEnded
from connector.dataplane.read_request import ReadRequest
from connector.dataplane.tickets import Ticket
from connector.errors import Absent, ConnectorError, Denied, Invalid, Limited, Unavailable
from connector.usage.held_agreement import CompiledAgreement
from policies.contracts.columns import fold
from policies.contracts.contract import UsageLimits
from policies.contracts.masks import text_columns
from policies.errors import PolicyError
from policies.vocabulary import expand

_PASS_SECONDS = 900.0
_PARTS = 4  # endpoints of one dataset: most clients read as many at once
_PART_BYTES = 512 * 2**20  # of an endpoint, on average at least: to begin a read takes as long as twenty megabytes
_SHORT = 1_024  # characters that are inspected without a thread: a millisecond or two
_CANCELLED = "the read was cancelled by its reader"
_CALLS_OF_ONE = 32  # open calls of one consumer, including those whose answer it does not read
_STALL_BYTES = 4 * 2**20  # what a reader must take within its time limit (decision 37)

_T = TypeVar("_T")


class StreamClient(Protocol):
    """The client of a stream."""

    async def send(self, part: memoryview | bytes, end: Mapping[str, Any] | None = None) -> None:
        """Send a part of the stream; returns when the client's flow control has let it through. `end`: the end record,
        with the last part. Raises ConnectionError when the client has left."""

    @property
    def late(self) -> ReaderEnded | None:
        """The reason of the end where the client's own time limit is over."""


@dataclass(frozen=True, slots=True)
class TicketHolder:
    """The tickets that a call shows, and its declarations."""

    tickets: tuple[Ticket, ...]
    purpose: str = ""
    application: str = ""
    action: str = "query"
    job: str = ""

    @property
    def consumer(self) -> str:
        return self.tickets[0].consumer


class FlightQueries:
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
        self._running: dict[str, set[asyncio.Task[Mapping[str, Any]]]] = {}  # by the id of the Flight ticket

    async def identify(self, caller: FlightCaller) -> TicketHolder:
        """Returns the tickets of a call. Raises Unproven for a foreign or ended one, Invalid for tickets of
        several consumers."""
        first = self._addresses.read(caller.authorization)
        async with self._reads.record_refusals(first):
            found = (first, *map(self._addresses.read, caller.further))
            if len({one.consumer for one in found}) != 1:
                raise Invalid("expected tickets of one consumer", code="tickets_mixed")
        return TicketHolder(found, caller.purpose, caller.application, caller.action, caller.job)

    def record_refusals(
        self, holder: TicketHolder, *, besides: tuple[type[ConnectorError], ...]
    ) -> AbstractAsyncContextManager[None]:
        """See `Reads.record_refusals`. A read that its reader cancels is not a refusal."""
        return self._reads.record_refusals(*holder.tickets, exclude=(*besides, ReaderEnded))

    def count_call(self, consumer: str) -> Callable[[], None]:
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

    async def describe(self, holder: TicketHolder, wanted: dict[str, Any]) -> ReadDescription:
        """Returns schema and tickets of a read (`wanted` is made by `rows_of`, `enveloped_of` or `stated_of`)."""
        asked = await self._resolve_read(wanted, holder.tickets)
        shown = [ticket for ticket in holder.tickets if ticket in asked.tickets]  # the others are in the envelope
        plan = await self._plan_blocks(wanted, shown)
        schema = await self._reads.describe(asked) if plan is None else base64.b64decode(plan["schema"])
        passed = [self._seal_ticket(part, shown) for part in _split_blocks(wanted, plan)]
        return ReadDescription(bytes(schema), [ticket for ticket, _ in passed], min(expires for _, expires in passed))

    async def _plan_blocks(self, wanted: dict[str, Any], tickets: Sequence[Ticket]) -> dict[str, Any] | None:
        """Returns the blocks of a dataset that may be read at the same time, and its schema; None for one read of all.

        Each endpoint is a read. So an agreement that limits reads, concurrent reads, rows or bytes gives one endpoint,
        and so does a source without blocks. A refusal here is repeated, and recorded, by the one read.
        """
        if "path" not in wanted:
            return None
        held = await self._hold_agreement(tickets[0])
        if any(contract.limits != UsageLimits() for contract in held.contracts):
            return None
        try:
            return await self._reads.plans.plan(tickets[0], RowSelection(**_declared(wanted)))
        except Unavailable:  # the read would wait as long once more
            raise
        except (ConnectorError, PolicyError):
            return None

    async def prepare(self, holder: TicketHolder, sql: str) -> tuple[Sequence[str], bytes]:
        """Returns the kinds of a statement's parameters (`parameters.kinds`), or its schema without parameters."""
        if "?" in sql:
            work = partial(parameters.kinds, sql, await self._types(holder.tickets))
            if found := await self._reads.gate_queue.run_in_turn(holder.consumer, work):
                return found, b""
        return (), bytes(
            await self._reads.describe(await self._resolve_read(stated_of(holder, sql, []), holder.tickets))
        )

    async def _types(self, tickets: Sequence[Ticket]) -> dict[str, str]:
        """Returns the types of the visible columns by name, where all datasets have the same kind."""
        found: dict[str, dict[str, str]] = {}
        for ticket in tickets:
            with suppress(ConnectorError):  # the read itself is refused with the reason
                for contract in (await self._hold_usable(ticket)).contracts:
                    as_texts = text_columns(contract.masks)
                    for column in contract.schema.columns:
                        if column.name in contract.columns:
                            shown = "VARCHAR" if column.name in as_texts else column.type
                            found.setdefault(fold(column.name), {})[parameters.kind_of(shown)] = shown
        return {name: kind for name, kinds in found.items() if len(kinds) == 1 for kind in kinds.values()}

    async def tables(self, holder: TicketHolder, *, schemas: bool) -> list[dict[str, Any]]:
        """Returns the datasets of the tickets as {owner, name, schema}, with schemas where wanted.

        A dataset whose files cannot be read has an empty schema, so that the others stay visible."""
        found = []
        for ticket in holder.tickets:
            async with self._reads.record_refusals(ticket):  # the refusal is recorded under this ticket
                held = await self._hold_usable(ticket)
            schema = b""
            if schemas and held.contracts:
                schema = await self._reads.columns(held, held.contracts[0], consumer=ticket.consumer)
            found.append({"owner": self._owner, "name": held.dataset.name, "schema": bytes(schema)})
        return found

    def stop(self, holder: TicketHolder, tickets: Sequence[bytes]) -> int:
        """End the running reads of these Flight tickets, also of ended tickets; returns how many there were."""
        opened = [self._running.get(self._unseal(raw, holder, now=0.0).id, set()) for raw in tickets]
        return sum(one.cancel(ReaderEnded(_CANCELLED)) for running in opened for one in running)

    async def renew(self, holder: TicketHolder, ticket: bytes) -> tuple[bytes, float]:
        """Returns a new Flight ticket for an old one, and its end. Running reads go on under this call's tickets."""
        known = flight_ticket.unseal(ticket, self._key, now=0.0)  # also an ended one
        shown = _bearers(known, holder)
        for one in shown:
            await self._hold_agreement(one)
        for stream in tuple(self._reads.live.values()):
            if stream.id.startswith(known.id + "."):
                for one in shown:
                    if stream.of(one):
                        await self._reads.renew(stream.id, one)
        return self._seal_ticket(known.wanted, shown, id=known.id)

    async def read(self, holder: TicketHolder, ticket: bytes, reader: StreamClient) -> Mapping[str, Any]:
        """Send the stream of a Flight ticket to its reader, until it leaves or cancels; returns the end record."""
        one = self._unseal(ticket, holder, now=self._addresses.clock())
        asked = replace(
            await self._resolve_read(one.wanted, _bearers(one, holder)),
            query_id=f"{one.id}.{secrets.token_hex(4)}",
            job=holder.job,
        )
        sending = asyncio.ensure_future(self._send(asked, reader))
        self._running.setdefault(one.id, set()).add(sending)
        sending.add_done_callback(partial(self._forget_running, one.id))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            if sending.done() and (task := asyncio.current_task()) is not None and not task.cancelling():
                raise ReaderEnded(_CANCELLED) from None
            raise
        finally:
            sending.cancel(reader.late)
            while not sending.done():  # gRPC may cancel a call more than once
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((sending,))
            del (
                sending
            )  # its traceback refers to this frame, and would keep the last batch until the garbage collector runs

    def _forget_running(self, id: str, sending: asyncio.Task[Mapping[str, Any]]) -> None:
        self._running[id].discard(sending)
        if not self._running[id]:
            del self._running[id]
        with suppress(asyncio.CancelledError):  # else its error would keep the last batch
            sending.exception()

    async def _send(self, asked: ReadRequest, reader: StreamClient) -> Mapping[str, Any]:
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
        self,
        stream: GovernedStream,
        reader: StreamClient,
        part: memoryview | bytes,
        end: Mapping[str, Any] | None = None,
    ) -> None:
        """Send a part; a reader that takes nothing for `stall_seconds` ends the read.

        gRPC does not say how much of a message has gone, so a large one has that time for each 4 MB. After a
        revocation one such time remains, whatever the size.
        """

        async def send(moved: OnProgress) -> None:
            loop, spans = asyncio.get_running_loop(), len(part) // _STALL_BYTES
            timers = [loop.call_later(number * self._stall_seconds * 0.9, moved) for number in range(1, spans + 1)]
            try:
                await reader.send(part, end)
            finally:
                for timer in timers:
                    timer.cancel()

        try:
            await send_in_time(send, seconds=self._stall_seconds, over=lambda: stream.over)
        except Limited as stalled:
            stream.abandon(stalled.code, stalled.message)
            raise
        except ConnectionError:  # this comes before the call is cancelled
            if (late := reader.late) is not None:
                stream.abandon(late.code, late.message)
            raise

    def _unseal(self, raw: bytes, holder: TicketHolder, *, now: float) -> FlightTicket:
        one = flight_ticket.unseal(raw, self._key, now=now)
        _bearers(one, holder)
        return one

    def _seal_ticket(
        self, wanted: Mapping[str, Any], tickets: Sequence[Ticket], *, id: str = ""
    ) -> tuple[bytes, float]:
        expires = min(min(ticket.expires for ticket in tickets), self._addresses.clock() + _PASS_SECONDS)
        one = FlightTicket(
            id=id or secrets.token_hex(8),
            consumer=tickets[0].consumer,
            agreements=tuple(ticket.agreement for ticket in tickets),
            expires=expires,
            wanted=wanted,
        )
        return flight_ticket.seal(one, self._key), expires

    async def _hold_agreement(self, ticket: Ticket) -> CompiledAgreement:
        async with self._reads.record_refusals(ticket):  # the refusal is recorded under this ticket
            return await self._reads.grants.load(ticket.agreement, consumer=ticket.consumer)

    async def _hold_usable(self, ticket: Ticket) -> CompiledAgreement:
        """Returns the agreement with its contracts that are active now. Raises Denied without one."""
        return await self._reads.grants.load_usable(
            ticket.agreement,
            consumer=ticket.consumer,
            purpose=ticket.purpose,
            transfer=(ticket.transfer, ticket.generation),
        )

    async def _resolve_read(self, wanted: Mapping[str, Any], tickets: tuple[Ticket, ...]) -> ReadRequest:
        """Returns the read that `wanted` describes, for these tickets."""
        if "path" in wanted:
            return await self._rows(wanted, tickets)
        if "envelope" in wanted:
            text = wanted["envelope"]
            return await self.inspect_text(tickets, len(text), partial(self._enveloped, text, tickets))
        sql, values = wanted["sql"], wanted["values"]
        size = len(sql) + sum(len(text) for _, text in values)
        return ReadRequest(
            tickets=tickets,
            sql=await self.inspect_text(tickets, size, partial(parameters.bound, sql, values)),
            action=ask.ACTIONS[wanted["action"]],
            **_declared(wanted),
        )

    async def inspect_text(self, tickets: Sequence[Ticket], size: int, work: Callable[[], _T]) -> _T:
        """Returns the result of `work` on a text of this size. Long text waits for a thread of the gate."""
        return work() if size <= _SHORT else await self._reads.gate_queue.run_in_turn(tickets[0].consumer, work)

    async def _rows(self, wanted: Mapping[str, Any], tickets: tuple[Ticket, ...]) -> ReadRequest:
        """Returns the read of all rows of a dataset, as of `GET .../rows`."""
        name = wanted["path"][-1]
        for ticket in tickets:
            held = await self._hold_agreement(ticket)
            if name in (held.dataset.name, held.dataset.id) and wanted["path"][:-1] in ([], [self._owner]):
                if "blocks" in wanted:
                    return await self._part_of(wanted, ticket, held)
                return ReadRequest(
                    tickets=(ticket,),
                    sql=ask.build_rows_sql((self._owner, held.dataset.name)),
                    action=ask.STREAM,
                    plain_scan=True,
                    unfiltered=True,
                    **_declared(wanted),
                )
        raise Absent(f"your tickets are not for {'/'.join(wanted['path'])[:200]!r}; list the flights")

    async def _part_of(self, wanted: Mapping[str, Any], ticket: Ticket, held: CompiledAgreement) -> ReadRequest:
        """Returns the read of some blocks of a dataset, as of `GET .../rows?blocks=`, without cursors.

        All parts of one FlightInfo show the same, or they are refused. Tickets of older releases do not say what.
        """
        if "shown" not in wanted:
            raise Denied(
                "this Flight ticket is of this provider's last release; ask for the flight info again",
                code="flight_ticket_invalid",
            )
        rows = RowSelection(**_declared(wanted))
        split = await self._reads.split(
            ticket, rows, snapshot=wanted["snapshot"], blocks=wanted["blocks"], as_shown=wanted["shown"], cursors=False
        )
        # Short: it has no condition.
        return block_plan.build_read_request(ticket, held, rows, owner=self._owner, split=split)

    def _enveloped(self, text: str, tickets: tuple[Ticket, ...]) -> ReadRequest:
        """Returns the read of the JSON of `POST /data/v1/query`."""
        envelope = request_schemas.parse_envelope(text.encode())
        if envelope.agreement and envelope.agreement not in {ticket.agreement for ticket in tickets}:
            raise Denied("this ticket is for another agreement than the query names", code="ticket_mismatch")
        if envelope.keys:
            raise Invalid(
                "expected no keys over Flight; send tables over HTTP (POST /data/v1/query)", code="envelope_invalid"
            )
        others = tuple(self._addresses.read(one) for one in envelope.tickets)
        return replace(request_schemas.envelope_to_request(envelope, (*tickets, *others)), codec="none")


def _bearers(one: FlightTicket, holder: TicketHolder) -> tuple[Ticket, ...]:
    """Returns the shown tickets of the agreements of a Flight ticket: it is read, and charged, under no others.

    Raises Denied unless all are shown."""
    held = {ticket.agreement for ticket in holder.tickets}
    if one.consumer != holder.consumer or not held.issuperset(one.agreements):
        raise Denied(
            "this Flight ticket is for another consumer or another agreement; ask for the flight info "
            "with the ticket that you read with",
            code="ticket_mismatch",
        )
    return tuple(ticket for ticket in holder.tickets if ticket.agreement in one.agreements)


@dataclass(frozen=True, slots=True)
class ReadDescription:
    """A described read: its schema (an encapsulated message), tickets in the order of the rows, and their end."""

    schema: bytes
    tickets: list[bytes]
    expires: float


def rows_of(holder: TicketHolder, path: Sequence[str]) -> dict[str, Any]:
    """Returns the read of all rows of a dataset, as a Flight ticket holds it."""
    return {"path": list(path), "purpose": holder.purpose, "application": holder.application}


def enveloped_of(text: str) -> dict[str, Any]:
    """Returns the read of an envelope, as a Flight ticket holds it."""
    return {"envelope": text}


def stated_of(holder: TicketHolder, sql: str, values: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Returns the read of a statement with its parameters, as a Flight ticket holds it."""
    declared = {"purpose": holder.purpose, "application": holder.application}
    return {"sql": sql, "values": [list(one) for one in values], "action": holder.action, **declared}


def _split_blocks(wanted: dict[str, Any], plan: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the read of a dataset in runs of its blocks, one an endpoint; the whole without a plan."""
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
