"""The connector's side of Flight: questions of the Flight process in, answers and governed streams out.

One question per channel, table `Desk.CALLS`; each carries the caller's data-plane tickets and stands for nothing
without them. Reads are those of `stream.py`, with the same checks and records as over HTTP.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from connector.dataplane import asked as ask
from connector.dataplane import http, plans
from connector.dataplane.addresses import Addresses
from connector.dataplane.asked import Asked, End
from connector.dataplane.flight import link, parameters, passes
from connector.dataplane.flight.passes import Pass
from connector.dataplane.flight.slots import Slots
from connector.dataplane.governed import GovernedStream
from connector.dataplane.plans import BLOCKS_MAX, Wanted
from connector.dataplane.stream import Reads
from connector.dataplane.tickets import Ticket
from connector.errors import (
    BadInput,
    HanseError,
    Limited,
    NotFound,
    Refused,
    Unauthenticated,
    VersionChanged,
    unforeseen,
)
from connector.query.spans import InFiles
from connector.telemetry import logger
from connector.usage.held import Held
from policies.contract import Limits
from policies.errors import PolicyError
from policies.vocabulary import expand

_PASS_SECONDS = 900.0
_PARTS = 4  # endpoints of one dataset: as many reads at once as most clients make of them
_PART_BYTES = 512 * 2**20  # each on average at least: the beginning of a read takes as long as twenty megabytes
_QUESTION_SECONDS = 10.0
_CALLS_OF_ONE = 32  # channels that one consumer may hold open, also those that it does not read
_USUAL = 4 * 2**20  # bytes of a batch
_log = logger("flight")


class Question(BaseModel):
    """What the Flight process asks."""

    model_config = ConfigDict(extra="forbid")

    call: str
    authorization: str = ""
    further: list[str] = Field(default_factory=list, max_length=16)
    purpose: str = Field("", max_length=1024)
    application: str = Field("", max_length=1024)
    action: str = Field("query", pattern="^(query|stream)$")
    path: list[str] = Field(default_factory=list, max_length=2)
    envelope: str = ""
    sql: str = ""
    values: list[tuple[str, str]] = Field(default_factory=list, max_length=parameters.MOST)
    tickets: list[str] = Field(default_factory=list, max_length=64)
    schemas: bool = False


@dataclass(slots=True)
class _Call:
    """One question with who asks."""

    question: Question
    tickets: tuple[Ticket, ...]
    channel: socket.socket

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
        self._running: dict[str, set[asyncio.Future[None]]] = {}  # by the pass they were opened with
        self._calls: Mapping[str, Callable[[_Call], Awaitable[dict[str, Any] | None]]] = {
            "describe": self._describe,
            "prepare": self._prepare,
            "tables": self._tables,
            "read": self._read,
            "stop": self._stop,
            "renew": self._renew,
        }

    async def serve(self, channel: socket.socket) -> None:
        """Answer the one question of a channel and close it."""
        channel.setblocking(False)
        try:
            with suppress(OSError, EOFError):
                await self._answer(channel)
        finally:
            channel.close()

    async def _answer(self, channel: socket.socket) -> None:
        try:
            try:
                async with asyncio.timeout(_QUESTION_SECONDS):
                    question = await _question(channel)
            except TimeoutError:
                _log.warning("flight question did not come")
                return
            call = _Call(question, self._bearers(question), channel)
            with self._counted(call.consumer):
                answer = await self._calls[question.call](call)
            if answer is not None:
                await _frame(channel, link.VALUE, answer)
        except (HanseError, PolicyError) as error:
            await _refuse(channel, error)
        except Exception as error:  # noqa: BLE001  as over HTTP: told, unless the channel itself has gone
            if not isinstance(error, ConnectionError | EOFError):
                _log.exception("unforeseen", exc_info=error)
            await _frame(channel, link.ERROR, unforeseen().problem())

    # Calls.

    async def _describe(self, call: _Call) -> dict[str, Any]:
        """Schema and tickets of the read that a path, an envelope or a statement asks for."""
        wanted = _wanted(call.question)
        asked = await self._asked(wanted, call.tickets)
        shown = [ticket for ticket in call.tickets if ticket in asked.tickets]  # the others are in the envelope
        plan = await self._plan(wanted, shown)
        schema = _text(await self._reads.describe(asked)) if plan is None else plan["schema"]
        parts = [self._pass(part, shown) for part in _parted(wanted, plan)]
        return {
            "schema": schema,
            "tickets": [part["ticket"] for part in parts],
            "expires": min(part["expires"] for part in parts),
        }

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
        except (HanseError, PolicyError):
            return None

    async def _prepare(self, call: _Call) -> dict[str, Any]:
        """How many parameters a statement has, and its schema where it has none."""
        found = parameters.count(call.question.sql)
        if found:
            return {"parameters": found, "schema": ""}
        asked = await self._asked(_wanted(call.question), call.tickets)
        return {"parameters": 0, "schema": _text(await self._reads.describe(asked))}

    async def _tables(self, call: _Call) -> dict[str, Any]:
        """The datasets of the tickets, with their schemas where wanted."""
        found = []
        for ticket in call.tickets:
            held = await self._reads.grants.usable(
                ticket.agreement,
                consumer=ticket.consumer,
                purpose=ticket.purpose,
                transfer=(ticket.transfer, ticket.generation),
            )
            schema = b""
            if call.question.schemas and held.contracts:
                schema = await self._reads.columns(held, held.contracts[0], consumer=ticket.consumer)
            found.append({"owner": self._owner, "name": held.dataset.name, "schema": _text(schema)})
        return {"tables": found}

    async def _stop(self, call: _Call) -> dict[str, Any]:
        """End the running reads of these Flight tickets."""
        opened = [self._running.get(self._unseal(raw, call).id, set()) for raw in call.question.tickets]
        return {"stopped": sum(one.cancel() for running in opened for one in running)}

    async def _renew(self, call: _Call) -> dict[str, Any]:
        """A new Flight ticket for an old one; its running reads go on under the data-plane ticket of this call."""
        sealed = _raw(call.question.tickets[0]) if call.question.tickets else b""
        known = passes.unseal(sealed, self._key, now=0.0)  # also one that has ended
        self._check_bearer(known, call.tickets)
        for ticket in call.tickets:
            await self._held(ticket)
        for stream in tuple(self._reads.live.values()):
            if stream.id.startswith(known.id + "."):
                for ticket in call.tickets:
                    if stream.of(ticket):
                        await self._reads.renew(stream.id, ticket)
        return self._pass(known.wanted, call.tickets, id=known.id)

    async def _read(self, call: _Call) -> None:
        """Send a stream, and stop it when its reader leaves, stops reading, or cancels."""
        if not call.question.tickets:
            raise BadInput("expected a Flight ticket, came none")
        one = self._unseal(call.question.tickets[0], call)
        asked = replace(await self._asked(one.wanted, call.tickets), query_id=f"{one.id}.{secrets.token_hex(4)}")
        slots = Slots(call.channel)
        sending = asyncio.ensure_future(self._send(call, asked, slots))
        leaving = asyncio.ensure_future(slots.left.wait())
        self._running.setdefault(one.id, set()).add(sending)
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if leaving.done():
                sending.cancel()
            await self._sent(sending, call.channel)
            call.channel.shutdown(socket.SHUT_WR)
            await leaving  # a reader that does not read keeps its place until it has gone
        finally:
            leaving.cancel()
            sending.cancel()
            self._running[one.id].discard(sending)
            if not self._running[one.id]:
                del self._running[one.id]
            await slots.close()

    async def _sent(self, sending: asyncio.Future[None], channel: socket.socket) -> None:
        try:
            await sending
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            await _frame(channel, link.ERROR, _Cancelled("the read was cancelled by its reader").problem())
        except (HanseError, PolicyError) as error:
            await _refuse(channel, error)

    async def _send(self, call: _Call, asked: Asked, slots: Slots) -> None:
        channel = call.channel
        async with self._reads.open(asked, spans=True) as stream:
            await _raw_frame(channel, link.SCHEMA, stream.schema)
            async with aclosing(stream.parts()) as parts:
                async for part in parts:
                    if stream.end is not None:
                        break
                    try:
                        await self._put(stream, slots, part)
                    except TimeoutError:
                        reason = f"the client took next to nothing for {self._stall_of(slots):g} s"
                        stream.abandon("client_stalled", reason)
                        raise Limited(reason, code="client_stalled") from None
                    except VersionChanged as error:  # told as where it is seen before the gate
                        stream.abandon(error.code, error.message)
                        break
            assert stream.end is not None
            await _frame(channel, link.END, _told(stream.end))

    async def _put(self, stream: GovernedStream, slots: Slots, part: memoryview | bytes | InFiles) -> None:
        """A part, and those in files that follow it."""
        if not isinstance(part, InFiles):
            async with asyncio.timeout(self._stall_of(slots)):
                await slots.put(part)
            return
        spans: Iterator[InFiles | None] = chain((part,), iter(stream.following, None))
        more = True
        while more:
            async with asyncio.timeout(self._stall_of(slots)):
                more = await slots.put_spans(lambda: next(spans, None), device=part.device)

    def _stall_of(self, slots: Slots) -> float:
        """How long a client may take for a batch: what it takes of one is not seen, so a large one has its time."""
        return self._stall_seconds * max(1.0, slots.largest / _USUAL)

    # Who may, and what is meant.

    def _bearers(self, question: Question) -> tuple[Ticket, ...]:
        """The caller's data-plane tickets: one in Authorization, others beside it."""
        if not question.authorization:
            raise Unauthenticated("expected `authorization: Bearer <ticket>`, came no such header; start a transfer")
        texts = (question.authorization, *question.further)
        found = tuple(self._addresses.read(text) for text in texts)
        if len({one.consumer for one in found}) != 1:
            raise BadInput("expected tickets of one consumer", code="tickets_mixed")
        if question.call not in self._calls:
            raise BadInput(f"no call {question.call[:40]!r}")
        return found

    def _unseal(self, text: str, call: _Call) -> Pass:
        one = passes.unseal(_raw(text), self._key, now=self._addresses.clock())
        self._check_bearer(one, call.tickets)
        return one

    def _check_bearer(self, one: Pass, tickets: Sequence[Ticket]) -> None:
        held = {ticket.agreement for ticket in tickets}
        if one.consumer != tickets[0].consumer or not held.issuperset(one.agreements):
            raise Refused(
                "this Flight ticket was given to somebody else or for another agreement; ask for the flight info "
                "with the ticket that you read with",
                code="ticket_mismatch",
            )

    def _pass(self, wanted: Mapping[str, Any], tickets: Sequence[Ticket], *, id: str = "") -> dict[str, Any]:
        expires = min(min(ticket.expires for ticket in tickets), self._addresses.clock() + _PASS_SECONDS)
        one = Pass(
            id=id or secrets.token_hex(8),
            consumer=tickets[0].consumer,
            agreements=tuple(ticket.agreement for ticket in tickets),
            expires=expires,
            wanted=wanted,
        )
        return {"ticket": _text(passes.seal(one, self._key)), "expires": expires}

    async def _held(self, ticket: Ticket) -> Held:
        return await self._reads.grants.hold(ticket.agreement, consumer=ticket.consumer)

    async def _asked(self, wanted: Mapping[str, Any], tickets: tuple[Ticket, ...]) -> Asked:
        """The read that `wanted` (of `_wanted`) means, for these tickets."""
        if "path" in wanted:
            return await self._rows(wanted, tickets)
        if "envelope" in wanted:
            return self._enveloped(wanted["envelope"], tickets)
        return Asked(
            tickets=tickets,
            sql=parameters.bound(wanted["sql"], wanted["values"]),
            action=ask.ACTIONS[wanted["action"]],
            **_declared(wanted),
        )

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
        """Some blocks of the dataset, as `GET .../rows?blocks=` gives them; Flight has no place for their cursors."""
        rows = Wanted(**_declared(wanted))
        split = await self._reads.split(
            ticket, rows, snapshot=wanted["snapshot"], blocks=wanted["blocks"], cursors=False
        )  # fmt: skip
        return plans.asked_of(ticket, held, rows, owner=self._owner, split=split)  # without a condition: that is short

    def _enveloped(self, text: str, tickets: tuple[Ticket, ...]) -> Asked:
        """The read that the JSON of `POST /data/v1/query` asks for."""
        envelope = http.parse_envelope(text.encode())
        if envelope.agreement and envelope.agreement not in {ticket.agreement for ticket in tickets}:
            raise Refused("this ticket is for another agreement than the query names", code="ticket_mismatch")
        if envelope.keys:
            raise BadInput("tables are brought along over HTTP only (POST /data/v1/query)", code="envelope_invalid")
        others = tuple(self._addresses.read(one) for one in envelope.tickets)
        return replace(http.asked_of(envelope, (*tickets, *others)), codec="none")

    def _counted(self, consumer: str) -> _Count:
        if self._open.get(consumer, 0) >= _CALLS_OF_ONE:
            raise Limited(
                f"{_CALLS_OF_ONE} of your calls are open, as many as may be; read or close one",
                code="streams_of_consumer",
            )
        return _Count(self._open, consumer)


class _Count:
    def __init__(self, counts: dict[str, int], name: str) -> None:
        self._counts, self._name = counts, name

    def __enter__(self) -> None:
        self._counts[self._name] = self._counts.get(self._name, 0) + 1

    def __exit__(self, *_: object) -> None:
        self._counts[self._name] -= 1
        if not self._counts[self._name]:
            del self._counts[self._name]


class _Cancelled(HanseError):
    status = 499
    code = "cancelled"


def _wanted(question: Question) -> dict[str, Any]:
    """What a question asks to read, in the form that a pass keeps."""
    if question.envelope:
        return {"envelope": question.envelope}
    declared = {"purpose": question.purpose, "application": question.application}
    if question.path:
        return {"path": question.path, **declared}
    return {"sql": question.sql, "values": question.values, "action": question.action, **declared}


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
    return [wanted | {"blocks": ",".join(map(str, run)), "snapshot": plan["snapshot"]} for run in runs]


def _declared(wanted: Mapping[str, Any]) -> dict[str, Any]:
    return {"purpose": expand(wanted["purpose"]), "application": wanted["application"]}


async def _question(channel: socket.socket) -> Question:
    (size,) = link.LENGTH.unpack(await _exactly(channel, link.LENGTH.size))
    if size > link.QUESTION_MAX:
        raise BadInput("expected a smaller request")
    try:
        return Question.model_validate_json(await _exactly(channel, size))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise BadInput(f"{'.'.join(map(str, first['loc']))}: {first['msg']}", code="request_invalid") from None


async def _exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        more = await asyncio.get_running_loop().sock_recv_into(channel, view[got:])
        if not more:
            raise EOFError
        got += more
    return bytes(data)


async def _frame(channel: socket.socket, kind: int, told: Mapping[str, Any]) -> None:
    await _raw_frame(channel, kind, json.dumps(told, ensure_ascii=True, default=str).encode())


async def _raw_frame(channel: socket.socket, kind: int, payload: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(channel, link.HEADER.pack(kind, 0, False, len(payload)) + payload)


async def _refuse(channel: socket.socket, error: HanseError | PolicyError) -> None:
    told = http.as_error(error)
    if told.status >= 500:
        _log.error("failed", code=told.code, reason=told.message, why=told.private)
    await _frame(channel, link.ERROR, told.problem())


def _told(end: End) -> dict[str, Any]:
    return end.to_json()


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _raw(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise BadInput("expected base64") from None
