"""A call of a Flight client on its way to the connector and back. Runs in the Flight process.

`Caller` is who calls, by the headers of the call; `Line` carries its question over and gives the answer, the batches
of a stream without a copy, or the error as Flight's own exception.
"""

from __future__ import annotations

import base64
import binascii
import json
import mmap
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from connector.dataplane.flight import link

_LOOK_SECONDS = 0.2  # how long a client may have gone before that is seen, while no batch comes
_HEADER_MAX = 16 * 2**10

Cancelled = Callable[[], bool]


class Caller(fl.ServerMiddleware):  # type: ignore[misc]  # untyped library
    """Who calls: the tickets in the headers, and what is declared with them."""

    def __init__(self, headers: Mapping[str, list[str]]) -> None:
        self._basic = ""
        self.asks = {
            "authorization": self._bearer(_one(headers, "authorization")),
            "further": [text for value in headers.get("hanse-ticket", ()) for text in _listed(value)],
            "purpose": _one(headers, "hanse-purpose"),
            "application": _one(headers, "hanse-application"),
            "action": _one(headers, "hanse-action") or "query",
        }

    def sending_headers(self) -> dict[str, str]:
        """A caller that came with a password gets it back as the bearer token to go on with."""
        return {"authorization": self._basic} if self._basic else {}

    def _bearer(self, text: str) -> str:
        scheme, _, rest = text.partition(" ")
        if scheme.lower() != "basic":
            return text
        try:
            _, _, password = base64.b64decode(rest, validate=True).decode().partition(":")
        except (binascii.Error, ValueError):
            return ""
        self._basic = f"Bearer {password}"
        return self._basic


class Callers(fl.ServerMiddlewareFactory):  # type: ignore[misc]  # untyped library
    """A `Caller` for each call; without any proof of who it is the call ends here."""

    def start_call(self, info: Any, headers: Mapping[str, list[str]]) -> Caller:
        """The call's middleware, or FlightUnauthenticatedError."""
        caller = Caller(headers)
        if not caller.asks["authorization"]:
            raise fl.FlightUnauthenticatedError(
                "unauthenticated: expected one header `authorization: Bearer <ticket>`, came none or several "
                "(a ticket comes with a started transfer)"
            )
        return caller


class Lines:
    """Makes lines to the connector over the control socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = threading.Lock()

    def ask(self, caller: Caller, call: str, **more: Any) -> dict[str, Any]:
        """One question, one answer."""
        with closing(self._open(caller, call, more)) as channel:
            kind, payload, _ = _frame(channel)
            if kind != link.VALUE:
                raise error_of(json.loads(payload))
            found: dict[str, Any] = json.loads(payload)
            return found

    def read(self, caller: Caller, ticket: bytes, cancelled: Cancelled) -> Stream:
        """A stream, once its schema has come."""
        channel = self._open(caller, "read", {"tickets": [base64.b64encode(ticket).decode()]})
        try:
            return Stream(channel, cancelled)
        except BaseException:
            channel.close()
            raise

    def _open(self, caller: Caller, call: str, more: Mapping[str, Any]) -> socket.socket:
        ours, theirs = socket.socketpair()
        try:
            with theirs, self._lock:
                socket.send_fds(self._control, [b"c"], [theirs.fileno()])
            link.ask(ours, {"call": call, **caller.asks, **more})
        except ValueError as error:
            ours.close()
            raise pa.ArrowInvalid(f"request_too_large: {error}") from None
        except OSError:
            ours.close()
            raise _gone() from None
        return ours


class Stream:
    """One governed stream: `schema`, then `batches`."""

    def __init__(self, channel: socket.socket, cancelled: Cancelled) -> None:
        self._channel = channel
        self._messages = _Messages(channel, cancelled)
        self._reader = pa.ipc.open_stream(pa.PythonFile(self._messages, mode="r"))
        self.schema: pa.Schema = self._reader.schema

    def batches(self) -> Iterator[Any]:
        """The batches as they come, and a last one of no rows with the end record as its metadata; or the error."""
        with closing(self._channel):
            yield from self._reader
            end = self._messages.end
            if end is None:
                raise _gone()
            if end["status"] != "complete":
                raise error_of(_as_problem(end))
            nothing = pa.RecordBatch.from_arrays(
                [pa.array([], field.type) for field in self.schema], schema=self.schema
            )
            yield nothing, json.dumps(end).encode()


class _Messages:
    """What comes over a channel, as a file for Arrow's reader: what that asks for lies whole in one message, so it gets
    that memory itself. Must not know the reader: who holds it through Arrow's file is seen by no collector of
    garbage."""

    closed = False

    def __init__(self, channel: socket.socket, cancelled: Cancelled) -> None:
        self._channel = channel
        self._cancelled = cancelled
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)
        self._slots: dict[int, pa.Buffer] = {}
        self.end: dict[str, Any] | None = None
        self._buffer: pa.Buffer | None = self._next()
        self._at = 0

    def read(self, size: int) -> Any:
        """The next bytes, of the present message only."""
        if self._buffer is None or self._at >= self._buffer.size:
            self._buffer, self._at = self._next(), 0
            if self._buffer is None:
                return b""
        part = self._buffer.slice(self._at, size)
        self._at += part.size
        return part

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        """The generator closes what there is to close."""

    def _next(self) -> pa.Buffer | None:
        while not self._poll.poll(_LOOK_SECONDS * 1000):
            if self._cancelled():
                raise fl.FlightCancelledError("cancelled: the client has left")
        kind, payload, slot = _frame(self._channel, self._slots)
        if kind == link.BATCH:
            return pa.foreign_buffer(payload.address, payload.size, _Held(self._channel, slot, payload))
        if kind == link.SCHEMA:
            return pa.py_buffer(payload)
        if kind == link.END:
            self.end = json.loads(payload)
            return None
        raise error_of(json.loads(payload))


class _Held:
    """A slot in use. When the last buffer over it is gone, so is this, and the connector may fill it again."""

    __slots__ = ("_channel", "_memory", "_slot")

    def __init__(self, channel: socket.socket, slot: int, memory: pa.Buffer) -> None:
        self._channel, self._slot, self._memory = channel, slot, memory

    def __del__(self) -> None:
        with suppress(OSError):  # the stream is over
            self._channel.send(bytes((self._slot,)))


def _frame(channel: socket.socket, slots: dict[int, pa.Buffer] | None = None) -> tuple[int, Any, int]:
    """Kind, payload (a buffer over shared memory for a batch) and slot of the next frame."""
    try:
        kind, slot, size, descriptor = link.receive_header(channel)
        if kind != link.BATCH:
            return kind, link.receive(channel, size), 0
    except (EOFError, OSError):
        raise _gone() from None
    assert slots is not None
    if descriptor is not None:
        room = os.fstat(descriptor).st_size
        slots[slot] = pa.py_buffer(mmap.mmap(descriptor, room))
        os.close(descriptor)
    return kind, slots[slot].slice(0, size), slot


def error_of(problem: Mapping[str, Any]) -> Exception:
    """A refusal as Flight's own exception: the code, the sentence, the rule; all of it as JSON in `extra_info`."""
    rule = f" [rule {problem['rule']}]" if problem.get("rule") else ""
    text = f"{problem['code']}: {problem['detail']}{rule}"
    status = int(problem["status"])
    made: Exception
    if status == 400:
        made = pa.ArrowInvalid(text)
    elif status == 404:
        made = pa.ArrowKeyError(text)
    else:
        made = _ERRORS.get(status, fl.FlightInternalError)(text, json.dumps(problem).encode())
    return made


_ERRORS: dict[int, Any] = {
    401: fl.FlightUnauthenticatedError,
    403: fl.FlightUnauthorizedError,
    409: fl.FlightUnavailableError,
    429: fl.FlightUnavailableError,
    499: fl.FlightCancelledError,
    503: fl.FlightUnavailableError,
}
_STATUS = {"revoked": 403, "quota": 403, "lease_expired": 401}
# Of ends: what is 503 where it comes before the first batch.
_AGAIN = frozenset({"busy", "shutting_down", "worker_wanted", "file_unavailable", "blocks_not_kept", "outcome_unknown"})


def _as_problem(end: Mapping[str, Any]) -> dict[str, Any]:
    """An early end as the problem that it is; how far the stream came stands in it too."""
    status = _STATUS.get(end["status"], 503 if end.get("code") in _AGAIN else 500)
    reason = end.get("reason") or "the stream broke"
    detail = f"{reason} (after {end['rows']} rows)"
    return {**end, "status": status, "code": end.get("code") or end["status"], "detail": detail, "end": end["status"]}


def _gone() -> Exception:
    gone: Exception = fl.FlightUnavailableError(
        "broken_off: the owner's connector ended this call; what came of it is not complete"
    )
    return gone


def _one(headers: Mapping[str, list[str]], name: str) -> str:
    values = headers.get(name) or [""]
    if len(values) > 1 or not isinstance(values[0], str) or len(values[0]) > _HEADER_MAX:
        return ""
    return values[0]


def _listed(value: str) -> list[str]:
    return [text.strip() for text in value[: 8 * _HEADER_MAX].split(",") if text.strip()]
