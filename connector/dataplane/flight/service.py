"""Flight and Flight SQL as the library calls them, each call handed to the connector. Runs in the Flight process."""

from __future__ import annotations

import base64
import functools
import socket
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.flight as fl

from connector.dataplane.flight import commands, protobuf
from connector.dataplane.flight.calls import Callers, Lines
from connector.dataplane.flight.protobuf import Garbled

_PASS = b"hanse1."
_CANCELLED, _NOT_CANCELLABLE = 1, 3  # Flight.proto, CancelStatus
_STATEMENT = "CommandStatementQuery"
_CATALOGUE = ("CommandGetCatalogs", "CommandGetDbSchemas", "CommandGetTables", "CommandGetTableTypes")
_Method = TypeVar("_Method", bound=Callable[..., Any])


def serve(control: socket.socket, *, host: str, port: int, certificate: list[tuple[bytes, bytes]] | None) -> Service:
    """A server that listens from now on."""
    # The library appends a Python traceback, with our paths in it, to what the client of a failed call is told.
    traceback.format_exception = lambda *_, **__: []
    scheme = "grpc+tls" if certificate else "grpc+tcp"
    return Service(
        Lines(control),
        f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}",
        auth_handler=_Handshake(),
        tls_certificates=certificate,
        middleware={"caller": Callers()},
    )


class _Handshake(fl.ServerAuthHandler):  # type: ignore[misc]  # untyped library
    """Lets clients that begin with a handshake do so: who they are is in the headers of each call."""

    def authenticate(self, outgoing: Any, incoming: Any) -> None:
        """Nothing is exchanged."""

    def is_valid(self, token: bytes) -> str:
        """Every call is judged by its own headers."""
        return ""


def _clear(method: _Method) -> _Method:
    """A method whose bad input comes back as that, and not as a failure of ours."""

    @functools.wraps(method)
    def answered(*arguments: Any) -> Any:
        try:
            return method(*arguments)
        except (Garbled, UnicodeDecodeError) as error:
            raise pa.ArrowInvalid(f"request_invalid: {error}") from None

    return answered  # type: ignore[return-value]  # the same signature


class Service(fl.FlightServerBase):  # type: ignore[misc]  # untyped library
    """Flight's methods, under their names in the library. None of them decides anything."""

    def __init__(self, lines: Lines, location: str, **options: Any) -> None:
        self._lines = lines  # before the base: it answers from then on
        super().__init__(location, **options)

    def list_flights(self, context: Any, criteria: bytes) -> Iterator[Any]:
        for table in self._tables(context, schemas=True):
            descriptor = fl.FlightDescriptor.for_path(table["owner"], table["name"])
            yield fl.FlightInfo(_schema(table["schema"]), descriptor, [], -1, -1)

    @_clear
    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        if descriptor.descriptor_type == fl.DescriptorType.PATH:
            path = [_decoded(part) for part in descriptor.path]
            return self._described(context, descriptor, path=path)
        if descriptor.command.lstrip().startswith(b"{"):
            return self._described(context, descriptor, envelope=_decoded(descriptor.command))
        name, command = commands.unpack(descriptor.command)
        return _known(_INFO, name)(self, context, descriptor, name, command)

    @_clear
    def get_schema(self, context: Any, descriptor: Any) -> Any:
        return fl.SchemaResult(self.get_flight_info(context, descriptor).schema)

    @_clear
    def do_get(self, context: Any, ticket: Any) -> Any:
        caller = context.get_middleware("caller")
        if ticket.ticket.startswith(_PASS):
            stream = self._lines.read(caller, ticket.ticket, context.is_cancelled)
            return fl.GeneratorStream(stream.schema, stream.batches())
        name, command = commands.unpack(ticket.ticket)
        if name == _STATEMENT and (constant := self._constant(context, protobuf.text(command, 1) or "")) is not None:
            return fl.RecordBatchStream(constant)
        if name not in _CATALOGUE:
            raise Garbled("expected a Flight ticket as this provider gave it out")
        wanted = name == "CommandGetTables" and commands.table_schema_wanted(command)
        found = self._tables(context, schemas=wanted)
        return fl.RecordBatchStream(commands.catalogue(name, command, found))

    @_clear
    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        name, command = commands.unpack(descriptor.command or b"")
        if name != "CommandPreparedStatementQuery":
            raise NotImplementedError(f"unimplemented: {name or 'this'}; here data is read, not written")
        sql, _ = commands.unhandle(protobuf.octets(command, 1))
        self._tables(context, schemas=False)  # who asks is known before Arrow unfolds what came: of 30 kB, gigabytes
        values = commands.values_of(chunk.data for chunk in reader)
        writer.write(protobuf.write([(1, commands.handle(sql, values))]))

    @_clear
    def do_action(self, context: Any, action: Any) -> list[bytes]:
        found: list[bytes] = _known(_ACTIONS, action.type)(self, context, action.body.to_pybytes())
        return found

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        return [
            ("CancelFlightInfo", "End the running reads of a FlightInfo."),
            ("RenewFlightEndpoint", "A new ticket for an endpoint; its running reads go on."),
            ("CreatePreparedStatement", "Flight SQL: prepare a statement."),
            ("ClosePreparedStatement", "Flight SQL: forget a statement."),
        ]

    def _tables(self, context: Any, *, schemas: bool) -> list[dict[str, Any]]:
        found = self._lines.ask(context.get_middleware("caller"), "tables", schemas=schemas)["tables"]
        return [one | {"schema": base64.b64decode(one["schema"])} for one in found]

    def _described(self, context: Any, descriptor: Any, **wanted: Any) -> Any:
        told = self._lines.ask(context.get_middleware("caller"), "describe", **wanted)
        endpoints = [
            fl.FlightEndpoint(fl.Ticket(base64.b64decode(ticket)), [], _when(told["expires"]), b"")
            for ticket in told["tickets"]
        ]
        schema = _schema(base64.b64decode(told["schema"]))
        return fl.FlightInfo(schema, descriptor, endpoints, -1, -1, ordered=True)

    def _statement(self, context: Any, descriptor: Any, name: str, command: protobuf.Message) -> Any:
        if protobuf.octets(command, 2):
            raise NotImplementedError("unimplemented: transactions; each read stands for itself")
        return self._asked(context, descriptor, protobuf.text(command, 1) or "", [])

    def _prepared(self, context: Any, descriptor: Any, name: str, command: protobuf.Message) -> Any:
        return self._asked(context, descriptor, *commands.unhandle(protobuf.octets(command, 1)))

    def _asked(self, context: Any, descriptor: Any, sql: str, values: list[list[str]]) -> Any:
        if (constant := self._constant(context, sql)) is None:
            return self._described(context, descriptor, sql=sql, values=values)
        endpoint = fl.FlightEndpoint(fl.Ticket(commands.pack(_STATEMENT, [(1, sql)])), [])
        return fl.FlightInfo(constant.schema, descriptor, [endpoint], constant.num_rows, -1)

    def _constant(self, context: Any, sql: str) -> pa.Table | None:
        """What a statement that reads nothing gives, for whoever may read something."""
        found = commands.constant(sql)
        if found is not None:
            self._tables(context, schemas=False)
        return found

    def _catalogue(self, context: Any, descriptor: Any, name: str, command: protobuf.Message) -> Any:
        endpoint = fl.FlightEndpoint(fl.Ticket(descriptor.command), [])
        return fl.FlightInfo(commands.schema_of(name, command), descriptor, [endpoint], -1, -1)

    def _prepare(self, context: Any, body: bytes) -> list[bytes]:
        _, request = commands.unpack(body)
        if protobuf.octets(request, 2):
            raise NotImplementedError("unimplemented: transactions; each read stands for itself")
        sql = protobuf.text(request, 1) or ""
        told: dict[str, Any] = {"parameters": 0}
        if (constant := self._constant(context, sql)) is not None:
            schema = constant.schema.serialize().to_pybytes()
        else:
            told = self._lines.ask(context.get_middleware("caller"), "prepare", sql=sql)
            schema = base64.b64decode(told["schema"])
        fields = [pa.field(str(number), pa.null()) for number in range(told["parameters"])]
        return [
            commands.pack(
                "ActionCreatePreparedStatementResult",
                [
                    (1, commands.handle(sql, [])),
                    (2, schema),
                    (3, pa.schema(fields).serialize().to_pybytes() if fields else b""),
                ],
            )
        ]

    def _forget(self, context: Any, body: bytes) -> list[bytes]:
        return []

    def _cancel(self, context: Any, body: bytes) -> list[bytes]:
        info = fl.FlightInfo.deserialize(protobuf.octets(protobuf.read(body), 1) or b"")
        tickets = [base64.b64encode(one.ticket.ticket).decode() for one in info.endpoints]
        stopped = self._lines.ask(context.get_middleware("caller"), "stop", tickets=tickets)["stopped"]
        return [protobuf.write([(1, _CANCELLED if stopped else _NOT_CANCELLABLE)])]

    def _renew(self, context: Any, body: bytes) -> list[bytes]:
        endpoint = fl.FlightEndpoint.deserialize(protobuf.octets(protobuf.read(body), 1) or b"")
        tickets = [base64.b64encode(endpoint.ticket.ticket).decode()]
        told = self._lines.ask(context.get_middleware("caller"), "renew", tickets=tickets)
        ticket = fl.Ticket(base64.b64decode(told["ticket"]))
        return [fl.FlightEndpoint(ticket, [], _when(told["expires"]), b"").serialize()]


_INFO: Mapping[str, Callable[..., Any]] = {
    _STATEMENT: Service._statement,
    "CommandPreparedStatementQuery": Service._prepared,
    **dict.fromkeys(_CATALOGUE, Service._catalogue),
}
_ACTIONS: Mapping[str, Callable[..., list[bytes]]] = {
    "CreatePreparedStatement": Service._prepare,
    "ClosePreparedStatement": Service._forget,
    "CancelFlightInfo": Service._cancel,
    "RenewFlightEndpoint": Service._renew,
}


def _known(table: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
    # Clients ask for some things only to see; what is not here must be unimplemented, never empty.
    if name not in table:
        raise NotImplementedError(f"unimplemented: {name[:60]}; here are {', '.join(table)}")
    return table[name]


def _schema(raw: bytes) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(raw)) if raw else pa.schema([])


def _when(seconds: float) -> Any:
    return pa.scalar(int(seconds), pa.timestamp("s", "UTC")).cast(pa.timestamp("ns", "UTC"))


def _decoded(raw: bytes | str) -> str:
    return raw if isinstance(raw, str) else raw.decode()
