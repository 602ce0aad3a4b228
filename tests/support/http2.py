"""A client of gRPC made of `h2` and a socket: it sends what it is told, also what no library of gRPC would."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection

from connector.dataplane.flight.grpc_call import SERVICE

_PATIENCE = 120.0
EMPTY = b"\0\0\0\0\0"  # a message of gRPC without fields


@dataclass
class Answer:
    """What came back for one request."""

    heads: list[dict[str, str]] = field(default_factory=list)  # headers, then trailers
    size: int = 0
    over: bool = False
    reset: int | None = None

    @property
    def status(self) -> str:
        return self.heads[-1].get("grpc-status", "") if self.heads else ""


class Wire:
    """One connection. What is asked of it blocks."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE)
        self._h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self._h2.initiate_connection()
        self.answers: dict[int, Answer] = {}
        self.pings = 0  # that were answered
        self.goodbye: events.ConnectionTerminated | None = None
        self._flush()

    def ask(self, method: str, ticket: str = "", body: bytes = EMPTY, *, whole: bool = True, **headers: str) -> int:
        """Send a request, or its beginning; its number."""
        number = self._h2.get_next_available_stream_id()
        told = {":method": "POST", ":scheme": "http", ":path": SERVICE + method, ":authority": "127.0.0.1"}
        told |= {"content-type": "application/grpc", "te": "trailers"}
        told |= {"authorization": f"Bearer {ticket}"} if ticket else {}
        told |= {name.replace("_", "-").replace("--", ":"): value for name, value in headers.items()}
        self.answers[number] = Answer()
        self._h2.send_headers(number, list(told.items()))
        self._h2.send_data(number, body, end_stream=whole)
        self._flush()
        return number

    def answer(self, number: int) -> Answer:
        """Read until this request is answered. TimeoutError where that does not come to an end."""
        until = time.monotonic() + _PATIENCE
        while not self.answers[number].over:
            if time.monotonic() > until:
                raise TimeoutError("the answer does not end")
            self.read()
        return self.answers[number]

    def ping(self) -> None:
        self._h2.ping(b"8 octets")
        self._flush()

    def read(self) -> None:
        """What has come, as soon as there is something. ConnectionError where the other side has gone before the
        answers that are awaited."""
        data = self.socket.recv(2**16)
        if not data:
            raise ConnectionAbortedError("the provider has closed the connection")
        self.heard(self._h2.receive_data(data))
        self._flush()

    def heard(self, found: Iterable[events.Event]) -> None:
        for event in found:
            answer = self.answers.get(getattr(event, "stream_id", None) or 0, Answer())
            if isinstance(event, events.ResponseReceived | events.TrailersReceived):
                answer.heads.append(dict(event.headers or ()))
            elif isinstance(event, events.DataReceived):
                answer.size += len(event.data or b"")
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id or 0)
            elif isinstance(event, events.StreamEnded):
                answer.over = True
            elif isinstance(event, events.StreamReset):
                answer.reset, answer.over = int(event.error_code or 0), True
            elif isinstance(event, events.PingAckReceived):
                self.pings += 1
            elif isinstance(event, events.ConnectionTerminated):
                self.goodbye = event

    def _flush(self) -> None:
        if data := self._h2.data_to_send():
            self.socket.sendall(data)


@contextmanager
def wire(port: int) -> Iterator[Wire]:
    """A connection, until the block ends."""
    made = Wire(port)
    try:
        yield made
    finally:
        made.socket.close()
