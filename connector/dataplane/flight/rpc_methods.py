"""Flight and Flight SQL (Flight.proto, FlightSql.proto): each method of the service, answered from the desk."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

from connector.dataplane.flight import flightsql, framing
from connector.dataplane.flight.catalogue_client import Tables
from connector.dataplane.flight.flight_queries import Asker, Desk, enveloped_of, rows_of, stated_of
from connector.dataplane.flight.framing import encapsulated
from connector.dataplane.flight.grpc_call import (
    SERVICE,
    DeadlineExceeded,
    Ended,
    Exchange,
    Unimplemented,
    caller_of,
    seconds_of,
)
from connector.dataplane.flight.http2 import protobuf
from connector.dataplane.flight.http2.http2_connection import Call
from connector.dataplane.flight.http2.protobuf import Garbled
from connector.dataplane.http.file_spans import InFiles, Scattered, Span
from connector.dataplane.http.request_context import as_error
from connector.dataplane.http.send_threads import in_thread
from connector.dataplane.http.stall_timeout import Moved
from connector.dataplane.read_log import ReaderEnded
from connector.errors import BadInput, HanseError, internal_error
from connector.telemetry import logger
from policies.errors import PolicyError

_PASS = b"hanse1."
_PATH, _COMMAND = 1, 2  # Flight.proto, DescriptorType
_CANCELLED, _NOT_CANCELLABLE = 1, 3  # Flight.proto, CancelStatus
_UNKNOWN = 2**64 - 1  # -1, of rows and bytes
_STATEMENT = "CommandStatementQuery"
_PREPARED = "CommandPreparedStatementQuery"
_UPDATE = "CommandPreparedStatementUpdate"
_DESCRIPTIONS = {
    "CancelFlightInfo": "End the running reads of a FlightInfo.",
    "RenewFlightEndpoint": "A new ticket for an endpoint; its running reads go on.",
    "CreatePreparedStatement": "Flight SQL: prepare a statement.",
    "ClosePreparedStatement": "Flight SQL: forget a statement.",
}
_EARLY = 0.25  # seconds: a caller's time begins before ours, and most end their calls by themselves then
_log = logger("flight")


class Service:
    """Answers calls. None of its methods decides anything: who may what is the desk's."""

    def __init__(self, desk: Desk, tables: Tables) -> None:
        self._desk = desk
        self._tables = tables
        self._methods: Mapping[str, Callable[[Exchange, Asker], Awaitable[None]]] = {
            "Handshake": self._handshake,
            "ListFlights": self._list_flights,
            "GetFlightInfo": self._flight_info,
            "GetSchema": self._schema,
            "DoGet": self._do_get,
            "DoPut": self._do_put,
            "DoAction": self._do_action,
            "ListActions": self._list_actions,
        }
        self._actions: Mapping[str, Callable[[Asker, bytes], Awaitable[list[bytes]]]] = {
            "CreatePreparedStatement": self._prepare,
            "ClosePreparedStatement": self._forget,
            "CancelFlightInfo": self._cancel,
            "RenewFlightEndpoint": self._renew,
        }

    async def answer(self, call: Call) -> None:
        """One call to its end: what is refused is said in its trailers."""
        exchange = Exchange(call)
        error: HanseError | None = None
        try:
            await self._in_time(exchange)
        except (HanseError, PolicyError) as refused:
            error = as_error(refused)
            if error.status >= 500 and not isinstance(error, Unimplemented | DeadlineExceeded | Ended):
                _log.error("failed", code=error.code, reason=error.message, why=error.private)
        except Exception as failed:  # noqa: BLE001  as over HTTP: told, and more in our own log
            if call.over:  # nothing more can be said to its client
                return
            _log.exception("unforeseen", exc_info=failed)
            error = internal_error()
        exchange.finish(error)
        del error  # it has this frame, and would keep what was being sent until the collector comes by

    async def _in_time(self, exchange: Exchange) -> None:
        """DeadlineExceeded where the caller waits no more: not all clients end their calls by themselves."""
        seconds = seconds_of(exchange.call.headers)
        try:
            async with asyncio.timeout(seconds) as limit:
                exchange.until = limit.when()
                await self._answered(exchange)
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceeded(f"the call has lasted {seconds:g} s, as long as its caller waits") from None

    async def _answered(self, exchange: Exchange) -> None:
        call = exchange.call
        exchange.check()
        caller = caller_of(call.headers)
        asker = await self._desk.asker(caller)
        if caller.basic:
            exchange.headers.append(("authorization", caller.authorization))
        if not call.path.startswith(SERVICE):
            raise Unimplemented(f"expected a path that begins with {SERVICE}, came {call.path[:100]}")
        method = _known(self._methods, call.path.removeprefix(SERVICE))
        # A stream that ended early has a record of that, and what nobody here can do was refused to nobody.
        async with self._desk.hearing(asker, besides=(Ended, Unimplemented)):
            call.known = True
            with self._desk.counted(asker.consumer), _understood():
                await method(exchange, asker)

    async def _handshake(self, exchange: Exchange, asker: Asker) -> None:
        """Nothing is exchanged: who somebody is stands in the headers of each call."""
        exchange.begin()

    async def _list_flights(self, exchange: Exchange, asker: Asker) -> None:
        await exchange.message()
        for table in await self._desk.tables(asker, schemas=True):
            path = [(3, table["owner"]), (3, table["name"])]
            descriptor = protobuf.write([(1, _PATH), *path])
            await exchange.send(protobuf.write([(1, table["schema"]), (2, descriptor), (4, _UNKNOWN), (5, _UNKNOWN)]))
        exchange.begin()

    async def _flight_info(self, exchange: Exchange, asker: Asker) -> None:
        raw = await exchange.message()
        info, _ = await self._info(asker, raw)
        await exchange.send(info)

    async def _schema(self, exchange: Exchange, asker: Asker) -> None:
        _, schema = await self._info(asker, await exchange.message())
        await exchange.send(protobuf.write([(1, schema)]))

    async def _info(self, asker: Asker, raw: bytes) -> tuple[bytes, bytes]:
        """The FlightInfo of a descriptor, and its schema."""
        descriptor = protobuf.read(raw)
        if protobuf.number(descriptor, 1) == _PATH:
            return await self._described(asker, raw, rows_of(asker, _path(protobuf.texts(descriptor, 3))))
        command = protobuf.octets(descriptor, 2) or b""
        if command.lstrip().startswith(b"{"):
            return await self._described(asker, raw, enveloped_of(command.decode()))
        name, told = flightsql.unpack(command)
        if name == _STATEMENT:
            _no_transaction(told)
            return await self._stated(asker, raw, protobuf.text(told, 1) or "", [])
        if name == _PREPARED:
            return await self._stated(asker, raw, *await self._unhandled(asker, protobuf.octets(told, 1)))
        _known(dict.fromkeys((_STATEMENT, _PREPARED, *flightsql.CATALOGUE)), name)
        inner = protobuf.octets(protobuf.read(command), 2) or b""
        schema = await self._tables.catalogue_schema(asker.consumer, name, inner)
        return _info(schema, raw, [(command, None)]), schema

    async def _described(self, asker: Asker, raw: bytes, wanted: dict[str, Any]) -> tuple[bytes, bytes]:
        told = await self._desk.describe(asker, wanted)
        endpoints = [(ticket, told.expires) for ticket in told.tickets]
        return _info(told.schema, raw, endpoints, ordered=True), told.schema

    async def _stated(self, asker: Asker, raw: bytes, sql: str, values: Sequence[Sequence[str]]) -> tuple[bytes, bytes]:
        constant = await self._constant(asker, sql)
        if constant is None:
            return await self._described(asker, raw, stated_of(asker, sql, values))
        schema = _schema_of(constant)
        return _info(schema, raw, [(flightsql.pack(_STATEMENT, [(1, sql)]), None)], rows=1), schema

    async def _unhandled(self, asker: Asker, raw: bytes | None) -> tuple[str, list[list[str]]]:
        """See `commands.unhandle`: a handle is as long as whoever made it likes."""
        return await self._desk.looked_at(asker.tickets, len(raw or b""), partial(flightsql.unhandle, raw))

    async def _constant(self, asker: Asker, sql: str) -> bytes | None:
        """What a statement that reads nothing gives, for whoever may read something."""
        found = await self._tables.constant(asker.consumer, sql)
        if found is not None:
            await self._desk.tables(asker, schemas=False)
        return found

    async def _do_get(self, exchange: Exchange, asker: Asker) -> None:
        ticket = protobuf.octets(protobuf.read(await exchange.message()), 1) or b""
        if ticket.startswith(_PASS):
            record = await self._desk.read(asker, ticket, _Reader(exchange))
            if record["status"] != "complete":
                raise Ended(record)
            return
        name, command = flightsql.unpack(ticket)
        if name == _STATEMENT and (made := await self._constant(asker, protobuf.text(command, 1) or "")) is not None:
            await _table(exchange, made)
            return
        if name not in flightsql.CATALOGUE:
            raise Garbled("expected a Flight ticket as this provider gave it out")
        wanted = flightsql.table_schema_wanted(name, command)
        found = await self._desk.tables(asker, schemas=wanted)
        raw = protobuf.octets(protobuf.read(ticket), 2) or b""
        await _table(exchange, await self._tables.catalogue(asker.consumer, name, raw, found))

    async def _do_put(self, exchange: Exchange, asker: Asker) -> None:
        first = protobuf.read(await exchange.first())  # some end their request only when they have an answer
        descriptor = protobuf.read(protobuf.octets(first, 1) or b"")
        name, command = flightsql.unpack(protobuf.octets(descriptor, 2) or b"")
        if name != _PREPARED:
            more = "; a SELECT takes one row of parameters at a time (execute, not executemany)" * (name == _UPDATE)
            raise Unimplemented(f"{name or 'this'}; here data is read, not written{more}")
        sql, _ = await self._unhandled(asker, protobuf.octets(command, 1))
        await self._desk.tables(asker, schemas=False)  # who may read nothing has nothing unfolded: of 30 kB, gigabytes
        stream = b"".join(
            encapsulated(header, protobuf.octets(one, 1000) or b"")
            for one in map(protobuf.read, await exchange.messages())
            if (header := protobuf.octets(one, 2))
        )
        values = await self._tables.values(asker.consumer, stream)
        await exchange.send(protobuf.write([(1, protobuf.write([(1, flightsql.handle(sql, values))]))]))

    async def _do_action(self, exchange: Exchange, asker: Asker) -> None:
        action = protobuf.read(await exchange.message())
        name = protobuf.text(action, 1) or ""
        for body in await _known(self._actions, name)(asker, protobuf.octets(action, 2) or b""):
            await exchange.send(protobuf.write([(1, body)]))
        exchange.begin()

    async def _list_actions(self, exchange: Exchange, asker: Asker) -> None:
        for name, text in _DESCRIPTIONS.items():
            await exchange.send(protobuf.write([(1, name), (2, text)]))

    async def _prepare(self, asker: Asker, body: bytes) -> list[bytes]:
        _, request = flightsql.unpack(body)
        _no_transaction(request)
        sql = protobuf.text(request, 1) or ""
        kinds: Sequence[str] = ()
        if (constant := await self._constant(asker, sql)) is not None:
            schema = _schema_of(constant)
        else:
            kinds, schema = await self._desk.prepare(asker, sql)
        told = [(1, flightsql.handle(sql, [])), (2, schema), (3, await self._tables.parameters(asker.consumer, kinds))]
        return [flightsql.pack("ActionCreatePreparedStatementResult", told)]

    async def _forget(self, asker: Asker, body: bytes) -> list[bytes]:
        return []

    async def _cancel(self, asker: Asker, body: bytes) -> list[bytes]:
        info = protobuf.read(protobuf.octets(protobuf.read(body), 1) or b"")
        tickets = [_ticket_of(endpoint) for endpoint in info.get(3, ())]
        return [protobuf.write([(1, _CANCELLED if self._desk.stop(asker, tickets) else _NOT_CANCELLABLE)])]

    async def _renew(self, asker: Asker, body: bytes) -> list[bytes]:
        endpoint = protobuf.octets(protobuf.read(body), 1) or b""
        ticket, expires = await self._desk.renew(asker, _ticket_of(endpoint))
        return [_endpoint(ticket, expires)]


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except (Garbled, UnicodeDecodeError) as garbled:
        raise BadInput(str(garbled), code="request_invalid") from None


class _Reader:
    """A client that takes a governed stream."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._room = bytearray()  # of a batch that is read before it is encrypted

    @property
    def late(self) -> ReaderEnded | None:
        """See `desk.Reader`."""
        until = self._exchange.until
        if until is None or asyncio.get_running_loop().time() < until - _EARLY:
            return None
        return ReaderEnded("the call has lasted as long as its reader waits", code=DeadlineExceeded.code)

    async def begin(self, schema: memoryview | bytes) -> None:
        """See `desk.Reader`."""
        self._exchange.begin()
        for message in framing.messages(schema):
            await self._exchange.call.send(message)

    async def part(self, part: memoryview | bytes | InFiles, following: Iterator[InFiles], moved: Moved) -> None:
        """See `desk.Reader`."""
        call = self._exchange.call
        if not isinstance(part, Span | Scattered):
            for message in framing.messages(part):
                await call.send(message, moved)
        elif call.sends_files:
            messages = chain.from_iterable(map(framing.messages, chain((part,), following)))
            await call.send_files(messages, device=part.device, moved=moved)
        else:
            for message in framing.messages(await self._read(part)):
                await call.send(message, moved)

    async def end(self, last: memoryview | bytes, record: Mapping[str, Any]) -> None:
        """See `desk.Reader`."""
        for message in framing.messages(last, app_metadata=json.dumps(record).encode()):
            await self._exchange.call.send(message)

    async def _read(self, part: InFiles) -> memoryview:
        """A part of files in memory, until the next."""
        if len(self._room) < part.nbytes:
            self._room = bytearray(part.nbytes)
        memory = memoryview(self._room)[: part.nbytes]

        def read() -> None:
            part.check()
            part.read_into(memory)

        await in_thread(read, stop=lambda: None, device=part.device)
        return memory


async def _table(exchange: Exchange, stream: bytes) -> None:
    for message in framing.messages(stream):
        await exchange.pass_on(message)


def _schema_of(stream: bytes) -> bytes:
    """The first message of an Arrow stream, which is its schema's."""
    return stream[: 8 + int.from_bytes(stream[4:8], "little")]


def _info(
    schema: bytes,
    descriptor: bytes,
    endpoints: Sequence[tuple[bytes, float | None]],
    *,
    rows: int = _UNKNOWN,
    ordered: bool = False,
) -> bytes:
    found = [(3, _endpoint(ticket, expires)) for ticket, expires in endpoints]
    return protobuf.write([(1, schema), (2, descriptor), *found, (4, rows), (5, _UNKNOWN), (6, int(ordered))])


def _endpoint(ticket: bytes, expires: float | None) -> bytes:
    ends = [] if expires is None else [(3, protobuf.write([(1, int(expires))]))]
    return protobuf.write([(1, protobuf.write([(1, ticket)])), *ends])


def _ticket_of(endpoint: int | bytes) -> bytes:
    if not isinstance(endpoint, bytes):
        raise Garbled("expected an endpoint, came a number")
    return protobuf.octets(protobuf.read(protobuf.octets(protobuf.read(endpoint), 1) or b""), 1) or b""


def _path(parts: list[str]) -> list[str]:
    if not 1 <= len(parts) <= 2:
        raise Garbled(f"expected a path of owner and dataset, or of a dataset, came {len(parts)} parts")
    return parts


def _no_transaction(request: protobuf.Message) -> None:
    if protobuf.octets(request, 2):
        raise Unimplemented("transactions; each read stands for itself")


def _known(table: Mapping[str, Any], name: str) -> Any:
    # Clients ask for some things only to see; what is not here must be unimplemented, never empty.
    if name not in table:
        raise Unimplemented(f"{name[:60]}; here are {', '.join(table)}")
    return table[name]
