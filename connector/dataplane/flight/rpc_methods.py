"""Flight and Flight SQL (Flight.proto, FlightSql.proto): each method of the service, answered by the queries.

Imports grpcio, so load it when Flight starts.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

import grpc.aio

from connector.dataplane.flight import flightsql, protobuf
from connector.dataplane.flight.caller import read_caller
from connector.dataplane.flight.catalogue_client import CatalogueClient
from connector.dataplane.flight.flight_queries import FlightQueries, TicketHolder, enveloped_of, rows_of, stated_of
from connector.dataplane.flight.framing import flight_data_to_stream, stream_to_flight_data
from connector.dataplane.flight.grpc_call import SERVICE, GrpcCall, StreamEndedEarly, Unimplemented
from connector.dataplane.flight.protobuf import MalformedMessage
from connector.dataplane.http.request_context import as_error
from connector.dataplane.read_log import ReaderEnded
from connector.errors import ConnectorError, Invalid, internal_error
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
_EARLY_S = 0.25  # a client's time begins before the server's, and gRPC ends the call at the server's
_log = logger("flight")


class FlightService(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Answers calls. Who may read what is decided by the queries."""

    def __init__(self, queries: FlightQueries, tables: CatalogueClient) -> None:
        self._queries = queries
        self._catalogue = tables
        self._methods: Mapping[str, Callable[[GrpcCall, TicketHolder], Awaitable[None]]] = {
            "Handshake": self._handshake,
            "ListFlights": self._list_flights,
            "GetFlightInfo": self._flight_info,
            "GetSchema": self._schema,
            "DoGet": self._do_get,
            "DoPut": self._do_put,
            "DoAction": self._do_action,
            "ListActions": self._list_actions,
        }
        self._actions: Mapping[str, Callable[[TicketHolder, bytes], Awaitable[list[bytes]]]] = {
            "CreatePreparedStatement": self._prepare,
            "ClosePreparedStatement": self._forget,
            "CancelFlightInfo": self._cancel,
            "RenewFlightEndpoint": self._renew,
        }

    def service(self, handler_call_details: Any) -> Any:
        """Returns the handler of a call. Every method is a stream of bytes in both directions, so the caller is
        checked before a message of the request is read."""

        async def handle(_: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            await self.answer(GrpcCall(handler_call_details.method, context))

        return grpc.stream_stream_rpc_method_handler(handle)

    async def answer(self, call: GrpcCall) -> None:
        """Answer one call to its end."""
        error: ConnectorError | None = None
        try:
            await self._answer_caller(call)
        except (ConnectorError, PolicyError) as refused:
            error = as_error(refused)
            if error.status >= 500 and not isinstance(error, Unimplemented | StreamEndedEarly):
                _log.error("failed", code=error.code, reason=error.message, why=error.private)
        except Exception as failed:  # noqa: BLE001  as over HTTP: the client learns that it failed, our log learns why
            if call.client_left:  # no status can reach it
                return
            _log.exception("unforeseen", exc_info=failed)
            error = internal_error()
        if error is not None:
            call.set_error(error)
        del error  # its traceback refers to this frame, and would keep the last batch until the garbage collector runs

    async def _answer_caller(self, call: GrpcCall) -> None:
        caller = read_caller(call.metadata)
        holder = await self._queries.identify(caller)
        if caller.basic:
            call.initial_metadata.append(("authorization", caller.authorization))
        if not call.method.startswith(SERVICE):
            raise Unimplemented(f"expected a method of {SERVICE}, got {call.method[:100]}")
        method = _look_up(self._methods, call.method.removeprefix(SERVICE))
        # A stream that ended early has a record of its own, and an unimplemented method is not a refusal.
        async with self._queries.record_refusals(holder, besides=(StreamEndedEarly, Unimplemented)):
            call.on_done(self._queries.count_call(holder.consumer))
            with _as_bad_input():
                await method(call, holder)

    async def _handshake(self, call: GrpcCall, holder: TicketHolder) -> None:
        """Answer at once: each call carries the caller in its metadata."""
        await call.begin()

    async def _list_flights(self, call: GrpcCall, holder: TicketHolder) -> None:
        await call.single_message()
        for table in await self._queries.tables(holder, schemas=True):
            path = [(3, table["owner"]), (3, table["name"])]
            descriptor = protobuf.write([(1, _PATH), *path])
            await call.send(protobuf.write([(1, table["schema"]), (2, descriptor), (4, _UNKNOWN), (5, _UNKNOWN)]))
        await call.begin()

    async def _flight_info(self, call: GrpcCall, holder: TicketHolder) -> None:
        raw = await call.single_message()
        info, _ = await self._info(holder, raw)
        await call.send(info)

    async def _schema(self, call: GrpcCall, holder: TicketHolder) -> None:
        _, schema = await self._info(holder, await call.single_message())
        await call.send(protobuf.write([(1, schema)]))

    async def _info(self, holder: TicketHolder, raw: bytes) -> tuple[bytes, bytes]:
        """Returns the FlightInfo of a descriptor, and its schema."""
        descriptor = protobuf.read(raw)
        if protobuf.number(descriptor, 1) == _PATH:
            return await self._read_info(holder, raw, rows_of(holder, _path(protobuf.texts(descriptor, 3))))
        command = protobuf.octets(descriptor, 2) or b""
        if command.lstrip().startswith(b"{"):
            return await self._read_info(holder, raw, enveloped_of(command.decode()))
        name, told = flightsql.unpack(command)
        if name == _STATEMENT:
            _no_transaction(told)
            return await self._statement_info(holder, raw, protobuf.text(told, 1) or "", [])
        if name == _PREPARED:
            return await self._statement_info(holder, raw, *await self._read_handle(holder, protobuf.octets(told, 1)))
        _look_up(dict.fromkeys((_STATEMENT, _PREPARED, *flightsql.CATALOGUE)), name)
        inner = protobuf.octets(protobuf.read(command), 2) or b""
        schema = await self._catalogue.catalogue_schema(holder.consumer, name, inner)
        return _info(schema, raw, [(command, None)]), schema

    async def _read_info(self, holder: TicketHolder, raw: bytes, wanted: dict[str, Any]) -> tuple[bytes, bytes]:
        told = await self._queries.describe(holder, wanted)
        endpoints = [(ticket, told.expires) for ticket in told.tickets]
        return _info(told.schema, raw, endpoints, ordered=True), told.schema

    async def _statement_info(
        self, holder: TicketHolder, raw: bytes, sql: str, values: Sequence[Sequence[str]]
    ) -> tuple[bytes, bytes]:
        constant = await self._constant(holder, sql)
        if constant is None:
            return await self._read_info(holder, raw, stated_of(holder, sql, values))
        schema = _schema_of(constant)
        return _info(schema, raw, [(flightsql.pack(_STATEMENT, [(1, sql)]), None)], rows=1), schema

    async def _read_handle(self, holder: TicketHolder, raw: bytes | None) -> tuple[str, list[list[str]]]:
        """Returns statement and values of a handle. It comes from the client, so it may be long."""
        return await self._queries.inspect_text(holder.tickets, len(raw or b""), partial(flightsql.unhandle, raw))

    async def _constant(self, holder: TicketHolder, sql: str) -> bytes | None:
        """Returns the answer to a statement that reads nothing, for callers that may read a dataset."""
        found = await self._catalogue.constant(holder.consumer, sql)
        if found is not None:
            await self._queries.tables(holder, schemas=False)
        return found

    async def _do_get(self, call: GrpcCall, holder: TicketHolder) -> None:
        ticket = protobuf.octets(protobuf.read(await call.single_message()), 1) or b""
        if ticket.startswith(_PASS):
            record = await self._queries.read(holder, ticket, _StreamReader(call))
            if record["status"] != "complete":
                raise StreamEndedEarly(record)
            return
        name, command = flightsql.unpack(ticket)
        if name == _STATEMENT and (made := await self._constant(holder, protobuf.text(command, 1) or "")) is not None:
            await _send_table(call, made)
            return
        if name not in flightsql.CATALOGUE:
            raise MalformedMessage("expected a Flight ticket as this provider gave it out")
        wanted = flightsql.table_schema_wanted(name, command)
        found = await self._queries.tables(holder, schemas=wanted)
        raw = protobuf.octets(protobuf.read(ticket), 2) or b""
        await _send_table(call, await self._catalogue.catalogue(holder.consumer, name, raw, found))

    async def _do_put(self, call: GrpcCall, holder: TicketHolder) -> None:
        async with aclosing(call.messages()) as messages:
            first = protobuf.read(await anext(messages, b""))  # some clients end their request after our answer only
            descriptor = protobuf.read(protobuf.octets(first, 1) or b"")
            name, command = flightsql.unpack(protobuf.octets(descriptor, 2) or b"")
            if name != _PREPARED:
                more = "; a SELECT takes one row of parameters at a time (execute, not executemany)" * (name == _UPDATE)
                raise Unimplemented(f"{name or 'this'}; here data is read, not written{more}")
            sql, _ = await self._read_handle(holder, protobuf.octets(command, 1))
            await self._queries.tables(
                holder, schemas=False
            )  # before foreign data is decompressed: 30 kB hold gigabytes
            parts = [first, *[protobuf.read(message) async for message in messages]]
        stream = b"".join(
            flight_data_to_stream(header, protobuf.octets(part, 1000) or b"")
            for part in parts
            if (header := protobuf.octets(part, 2))
        )
        values = await self._catalogue.values(holder.consumer, stream)
        await call.send(protobuf.write([(1, protobuf.write([(1, flightsql.handle(sql, values))]))]))

    async def _do_action(self, call: GrpcCall, holder: TicketHolder) -> None:
        action = protobuf.read(await call.single_message())
        name = protobuf.text(action, 1) or ""
        for body in await _look_up(self._actions, name)(holder, protobuf.octets(action, 2) or b""):
            await call.send(protobuf.write([(1, body)]))
        await call.begin()

    async def _list_actions(self, call: GrpcCall, holder: TicketHolder) -> None:
        for name, text in _DESCRIPTIONS.items():
            await call.send(protobuf.write([(1, name), (2, text)]))

    async def _prepare(self, holder: TicketHolder, body: bytes) -> list[bytes]:
        _, request = flightsql.unpack(body)
        _no_transaction(request)
        sql = protobuf.text(request, 1) or ""
        kinds: Sequence[str] = ()
        if (constant := await self._constant(holder, sql)) is not None:
            schema = _schema_of(constant)
        else:
            kinds, schema = await self._queries.prepare(holder, sql)
        told = [
            (1, flightsql.handle(sql, [])),
            (2, schema),
            (3, await self._catalogue.parameters(holder.consumer, kinds)),
        ]
        return [flightsql.pack("ActionCreatePreparedStatementResult", told)]

    async def _forget(self, holder: TicketHolder, body: bytes) -> list[bytes]:
        return []

    async def _cancel(self, holder: TicketHolder, body: bytes) -> list[bytes]:
        info = protobuf.read(protobuf.octets(protobuf.read(body), 1) or b"")
        tickets = [_ticket_of(endpoint) for endpoint in info.get(3, ())]
        return [protobuf.write([(1, _CANCELLED if self._queries.stop(holder, tickets) else _NOT_CANCELLABLE)])]

    async def _renew(self, holder: TicketHolder, body: bytes) -> list[bytes]:
        endpoint = protobuf.octets(protobuf.read(body), 1) or b""
        ticket, expires = await self._queries.renew(holder, _ticket_of(endpoint))
        return [_endpoint(ticket, expires)]


@contextmanager
def _as_bad_input() -> Iterator[None]:
    try:
        yield
    except (MalformedMessage, UnicodeDecodeError) as garbled:
        raise Invalid(str(garbled), code="request_invalid") from None


class _StreamReader:
    """A client that reads a governed stream."""

    def __init__(self, call: GrpcCall) -> None:
        self._call = call

    @property
    def late(self) -> ReaderEnded | None:
        """See `flight_queries.Reader`."""
        deadline = self._call.deadline
        if deadline is None or asyncio.get_running_loop().time() < deadline - _EARLY_S:
            return None
        return ReaderEnded("the call has lasted as long as its reader waits", code="deadline_exceeded")

    async def send(self, part: memoryview | bytes, end: Mapping[str, Any] | None = None) -> None:
        """See `flight_queries.Reader`."""
        metadata = b"" if end is None else json.dumps(end).encode()
        for message in stream_to_flight_data(part, app_metadata=metadata):
            await self._call.send(message)


async def _send_table(call: GrpcCall, stream: bytes) -> None:
    for message in stream_to_flight_data(stream):
        await call.send_in_time(message)


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
        raise MalformedMessage("expected an endpoint, got a number")
    return protobuf.octets(protobuf.read(protobuf.octets(protobuf.read(endpoint), 1) or b""), 1) or b""


def _path(parts: list[str]) -> list[str]:
    if not 1 <= len(parts) <= 2:
        raise MalformedMessage(f"expected a path of owner and dataset, or of a dataset, got {len(parts)} parts")
    return parts


def _no_transaction(request: protobuf.Message) -> None:
    if protobuf.octets(request, 2):
        raise Unimplemented("transactions; each read stands for itself")


def _look_up(table: Mapping[str, Any], name: str) -> Any:
    # Clients use some requests to detect features: an unknown one must be unimplemented, never empty.
    if name not in table:
        raise Unimplemented(f"{name[:60]}; known are {', '.join(table)}")
    return table[name]
