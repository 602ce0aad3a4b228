"""One HTTP request and its answer for handlers of the data plane, and the HTTP form of errors.

Bodies are sent as pure ASGI: no middleware may wrap or copy them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope, Send

from connector.dataplane.http.file_sender import OutgoingParts
from connector.dataplane.http.file_spans import Span
from connector.dataplane.http.vectored_body import (
    ABORT,
    BEFORE,
    BUFFERS,
    DEVICE,
    EXTENSION,
    FILE,
    FILES,
    MORE,
    MOVED,
    SEEN,
    TRAILERS,
)
from connector.errors import ConnectorError, Denied, EncodingUnknown, Invalid, QueryInvalid, internal_error
from connector.telemetry import logger
from policies.errors import PolicyError

BODY_MAX = 32 * 2**20
_SMALL = 64 * 2**10  # bytes: bodies up to this size need no thread
_log = logger("dataplane")
_T = TypeVar("_T")


class Exchange:
    """One request and its answer. `methods` are those that its handler accepts."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, *, methods: Sequence[str] = ()) -> None:
        self.scope, self.receive, self.send, self._methods = scope, receive, send, methods
        self.started = False
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

    def check(self) -> None:
        """Check method, HTTP version and encoding. Raises: Invalid or EncodingUnknown."""
        if self.scope["method"] not in self._methods:
            expected = " or ".join(self._methods)
            raise Invalid(f"expected {expected} here, got {self.scope['method']}", code="method_not_allowed")
        if self.scope.get("http_version") == "1.0":  # such a client takes the chunks of an answer for data
            raise Invalid("expected HTTP/1.1 or later, got HTTP/1.0", code="http_version")
        encoding = self.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("identity", ""):
            raise EncodingUnknown(f"expected a body without Content-Encoding, got {encoding[:40]!r}; send it unencoded")

    def path(self, name: str) -> str:
        return str(self.scope.get("path_params", {}).get(name, ""))

    def query(self, known: Sequence[str], form: bytes = b"") -> dict[str, str]:
        """Return the parameters of the query string and of a form.

        Raises: Invalid for an unknown parameter, or a repeated one.
        """
        text = b"&".join(filter(None, (self.scope["query_string"], form))).decode("latin-1")
        try:
            pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=32)
        except ValueError:
            raise Invalid("expected at most 32 parameters in the query string, got more") from None
        if unknown := [name for name, _ in pairs if name not in known]:
            raise Invalid(f"expected parameters {', '.join(known)}, got {unknown[0][:50]!r}", code="parameter_unknown")
        if len({name for name, _ in pairs}) < len(pairs):
            raise Invalid("expected each parameter once, got one repeatedly", code="parameter_repeated")
        return dict(pairs)

    @property
    def length(self) -> int | None:
        """Announced bytes of the body. The server enforces them."""
        text = self.headers.get("content-length", "")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None

    @property
    def is_small(self) -> bool:
        """Whether the body is announced as small."""
        return self.length is not None and self.length <= _SMALL

    async def parse_body(self, work: Callable[[], _T]) -> _T:
        """Return the result of `work` on the body, run in a thread unless the body is small."""
        return work() if self.is_small else await asyncio.to_thread(work)

    async def body(self) -> bytes:
        """Return the whole body, at most BODY_MAX. A body that is announced as larger is not read.

        Raises: Invalid where it is too large, or the client left.
        """
        if (self.length or 0) > BODY_MAX:
            raise Invalid(f"expected a body of at most {BODY_MAX} bytes, got {self.length}", code="body_too_large")
        parts, size, more = [], 0, True
        while more:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Invalid("the client left before its request was complete")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > BODY_MAX:
                raise Invalid(f"expected a body of at most {BODY_MAX} bytes, got more", code="body_too_large")
            more = message.get("more_body", False)
        return b"".join(parts)

    async def begin(self, status: int, headers: Mapping[str, str]) -> None:
        encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": status, "headers": encoded})
        self.started = True

    async def answer(self, status: int, body: bytes, media: str, **extra: str) -> None:
        """Send a whole small answer."""
        headers = {"content-type": media, "content-length": str(len(body)), "cache-control": "no-store"} | extra
        await self.begin(status, headers)
        await self.send({"type": "http.response.body", "body": body})

    @property
    def sends_files(self) -> bool:
        """Whether `file` is available on this connection."""
        return FILES in self.scope.get("extensions", {})

    async def part(self, body: bytes | memoryview, moved: Callable[[], object] = lambda: None) -> None:
        """Send a piece of a long answer as one chunk, without a copy where the server can.

        `moved` is called while it is sent.
        """
        message: dict[str, object] = {"type": "http.response.body", "more_body": True}
        await self.send(message | ({BUFFERS: [body], MOVED: moved} if self._gathers else {"body": body}))

    async def file(
        self, span: Span, following: Callable[[], Span | None], moved: Callable[[], object] = lambda: None
    ) -> None:
        """Send a span of files as one chunk, and what follows it, which the sending thread takes from `following`.

        `moved` is called while they are sent.
        """

        def more() -> OutgoingParts | None:
            after = following()
            return None if after is None else after.parts()

        message: dict[str, object] = {"type": "http.response.body", "more_body": True, FILE: span.parts()}
        message |= {SEEN: span.seen, DEVICE: span.device, BEFORE: span.check, MORE: more, MOVED: moved}
        await self.send(message)

    async def end(self, trailers: Mapping[str, str]) -> None:
        """End a long answer, with trailers where the server can send them."""
        pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in trailers.items()]
        message: dict[str, object] = {"type": "http.response.body", "body": b""}
        await self.send(message | ({TRAILERS: pairs} if self._gathers else {}))

    async def abort(self) -> None:
        """Close the connection now where the server can, else when the handler returns."""
        if self._gathers:
            await self.send({"type": "http.response.body", ABORT: True})

    @property
    def _gathers(self) -> bool:
        return EXTENSION in self.scope.get("extensions", {})

    async def wait_until_gone(self) -> None:
        """Return when the client has left, which `send` does not report."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


class Endpoint:
    """A handler as an ASGI application. Errors become problem objects.

    The handler calls `Exchange.check` after it has identified the caller, so that refusals of malformed requests are
    recorded.
    """

    def __init__(self, handle: Callable[[Exchange], Awaitable[None]], *methods: str) -> None:
        self._handle, self._methods = handle, methods

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, methods=self._methods)
        try:
            await self._handle(exchange)
        except (ConnectorError, PolicyError) as error:
            if exchange.started:
                raise
            await _refuse(exchange, as_error(error))
        except Exception as error:
            if exchange.started:
                raise
            _log.exception("unforeseen", exc_info=error)
            await _refuse(exchange, internal_error())


def as_error(error: ConnectorError | PolicyError) -> ConnectorError:
    """Return the error for the client: a refusal by policy is 403 with its rule, an unreadable query is 400."""
    if isinstance(error, ConnectorError):
        return error
    if error.rule.startswith("/"):
        return Denied(str(error), code=error.code, rule=error.rule)
    return QueryInvalid(str(error), code=error.code, rule=error.rule)


async def _refuse(exchange: Exchange, error: ConnectorError) -> None:
    if error.status >= 500:
        _log.error("failed", code=error.code, reason=error.message, why=error.private)
    body = json.dumps(error.problem(), ensure_ascii=False, default=str).encode()
    await exchange.answer(error.status, body, "application/problem+json", **error.headers)
