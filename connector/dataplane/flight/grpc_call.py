"""One call of gRPC: its request messages, its answers, and its status. Imports grpcio, so load it when Flight starts.

A refusal has a gRPC status and a sentence. Arrow's own clients read it again in Arrow's words (`x-arrow-status` and its
companions). Clients in C++ also show `grpc-status-details-bin` as `extra_info`: they get the problem's JSON there, or
the end record of a stream that ended early. In gRPC that field is a `google.rpc.Status` message, and clients in Go
report anything else as an error of the server: they get none.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

import grpc.aio

from connector.dataplane.flight.caller import metadata_to_mapping
from connector.dataplane.http.stall_timeout import send_in_time
from connector.engine.pool.error_codes import status_of
from connector.errors import ConnectorError, Invalid, Limited

SERVICE = "/arrow.flight.protocol.FlightService/"
BODY_MAX = 2**20  # bytes of a request
_BODY_TIMEOUT_S = 10.0
_MESSAGES_MAX = 256  # of a request: a descriptor, a schema and a row of parameters are three
_STALL_TIMEOUT_S = 60.0  # as of a read
_SENTENCE_MAX, _DETAILS_MAX = 1000, 2500  # bytes of a refusal, which is sent twice, and its JSON: clients take 8 kB
_CODES = {code.value[0]: code for code in grpc.StatusCode}
# By HTTP status: the status of gRPC, that of Arrow (`StatusCode`), and Flight's kind of it.
_STATUS = {
    400: (3, 4, ""),
    401: (16, 5, "Unauthenticated"),
    403: (7, 5, "Unauthorized"),
    404: (5, 2, ""),
    409: (10, 5, "Failed"),  # a retry starts again from the beginning
    429: (14, 5, "Unavailable"),
    499: (1, 5, "Cancelled"),
    501: (12, 10, ""),
    503: (14, 5, "Unavailable"),
    504: (4, 5, "TimedOut"),
}
_INTERNAL = (13, 5, "Internal")
_EXHAUSTED = (8, 5, "Failed")
# The same request would fail again at once, so clients must not repeat it by themselves, as UNAVAILABLE invites them
# to. It may succeed later: a daily count starts again, and a smaller read needs less memory.
_SPENT = frozenset(
    {
        "count_spent", "quota_spent", "quota", "privacy_budget_spent",
        "rows_limit", "bytes_limit", "memory_limit", "time_limit", "groups_max",
    }
)  # fmt: skip
_END_STATUS = {"revoked": 403, "refused": 403, "quota": 429, "lease_expired": 401}
_TEMPORARY = frozenset({"busy", "outcome_unknown"})  # 503 of the connector's own, in addition to those of a worker


class StreamEndedEarly(ConnectorError):
    """A stream that did not complete. `record` is its end record."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        reason = record.get("reason") or "the stream broke"
        rule = {"rule": record["rule"]} if record.get("rule") else {}
        super().__init__(f"{reason} (after {record['rows']} rows)", code=record.get("code") or record["status"], **rule)
        # The status that the same code has before the first batch.
        self.status = _END_STATUS.get(record["status"]) or (503 if self.code in _TEMPORARY else status_of(self.code))  # type: ignore[misc]
        self.record = record


class Unimplemented(ConnectorError):
    status = 501
    code = "unimplemented"


class GrpcCall:
    """One call of a method: its metadata, the messages of its request, and the messages that answer it."""

    def __init__(self, method: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        self.method = method
        self.metadata = metadata_to_mapping(context.invocation_metadata() or ())
        self.initial_metadata: list[tuple[str, str]] = []  # of the answer
        self.deadline = _deadline_of(context)
        self.client_left = False
        self._context = context
        self._begun = False

    def on_done(self, callback: Any) -> None:
        """Call back when nothing of the answer waits for the client any more."""
        self._context.add_done_callback(lambda _: callback())

    async def messages(self) -> AsyncGenerator[bytes, None]:
        """Yields the messages of the request.

        Raises:
            Invalid: there are too many, or they are too large.
            Limited: they do not come in time.
        """
        left = BODY_MAX
        for _ in range(_MESSAGES_MAX + 1):
            message = await self._read()
            if message is None:
                return
            left -= len(message)
            if left < 0:
                raise Invalid(f"expected a request of at most {BODY_MAX} bytes, got more", code="request_too_large")
            yield message
        raise Invalid(f"expected at most {_MESSAGES_MAX} messages, got more", code="request_invalid")

    async def single_message(self) -> bytes:
        """Returns the message of a call that has exactly one. Raises as `messages`."""
        async with aclosing(self.messages()) as messages:
            found = [message async for message in messages]
        if len(found) != 1:
            raise Invalid(f"expected one message, got {len(found)}", code="request_invalid")
        return found[0]

    async def begin(self) -> None:
        """Send the initial metadata, unless it has gone."""
        if not self._begun:
            self._begun = True
            await self._context.send_initial_metadata(tuple(self.initial_metadata))

    async def send(self, message: bytes) -> None:
        """Send one message; returns when the client's flow control has let it through.

        Raises:
            ConnectionAbortedError: the client has left.
        """
        await self.begin()
        try:
            await self._context.write(message)
        except (grpc.aio.BaseError, asyncio.InvalidStateError):
            self.client_left = True
            raise ConnectionAbortedError("the client has left") from None

    async def send_in_time(self, message: bytes) -> None:
        """As `send`. Raises Limited when the client does not take the message in time."""
        await send_in_time(lambda moved: self.send(message), seconds=_STALL_TIMEOUT_S)

    def set_error(self, error: ConnectorError) -> None:
        """Set the status that ends the call."""
        agent = (self.metadata.get("user-agent") or [""])[0]
        status, sentence, trailers = error_to_status(error, details="grpc-c++/" in agent)
        self._context.set_code(_CODES[status])
        self._context.set_details(sentence)
        self._context.set_trailing_metadata(trailers)

    async def _read(self) -> bytes | None:
        try:
            async with asyncio.timeout(_BODY_TIMEOUT_S):
                message = await self._context.read()
        except TimeoutError:
            raise Limited(f"expected a request within {_BODY_TIMEOUT_S:g} s; send it again", code="body_late") from None
        return message if isinstance(message, bytes) else None


def error_to_status(error: ConnectorError, *, details: bool) -> tuple[int, str, tuple[tuple[str, str | bytes], ...]]:
    """Returns the status of gRPC, its sentence, and the trailing metadata; `details`: with the problem's JSON."""
    problem: dict[str, Any] = error.problem()
    rule = f" [rule {problem['rule']}]" if problem.get("rule") else ""
    sentence = _shorten(f"{problem['code']}: {problem['detail']}{rule}")
    raw = json.dumps(error.record if isinstance(error, StreamEndedEarly) else problem, default=str).encode()
    status, arrow, kind = _EXHAUSTED if error.code in _SPENT else _STATUS.get(error.status, _INTERNAL)
    if isinstance(error, StreamEndedEarly) and not kind:  # clients read the end record only of errors with a kind
        status, arrow, kind = _INTERNAL
    trailers: list[tuple[str, str | bytes]] = [
        ("x-arrow-status", str(arrow)),
        ("x-arrow-status-message-bin", sentence.encode()),
    ]
    if kind:  # without one, the client would report an error of the server
        trailers.append(("x-arrow-status-detail-bin", kind.encode()))
        if details and len(raw) <= _DETAILS_MAX:
            trailers.append(("grpc-status-details-bin", raw))
    return status, sentence, tuple(trailers)


def _shorten(text: str) -> str:
    """Returns as much of a sentence as fits, in valid characters."""
    return text.encode(errors="replace")[:_SENTENCE_MAX].decode(errors="ignore")


def _deadline_of(context: grpc.aio.ServicerContext[Any, Any]) -> float | None:
    """Returns the time of the event loop at which the client stops waiting; None where it waits for ever."""
    left = context.time_remaining()
    return None if left is None else asyncio.get_running_loop().time() + left
