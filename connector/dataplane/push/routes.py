"""HTTP routes for received pushes: `POST` (or `PUT`) `/data/v1/received/{transfer}` with an Arrow stream as the body,
or a file of another media type from another kind of connector.

Frames only; `push_receiver` decides. Mounted before the framework, whose body limit is for small requests. A refusal is
sent before the body has arrived. A little of the rest is read then, so that its sender receives the refusal.
"""

from __future__ import annotations

import asyncio
import json

from starlette.routing import BaseRoute, Route
from starlette.types import Receive, Scope, Send

from connector.dataplane.http.request_context import Exchange
from connector.dataplane.push.push_receiver import PUSHED, PushReceiver
from connector.errors import ConnectorError, Invalid
from connector.infra.http.http_limits import REFUSED_SECONDS
from connector.telemetry import logger

_METHODS = ("POST", "PUT")
_REST_BYTES = 8 * 2**20  # of a refused stream that are read and dropped
_log = logger("receiving")


def routes(receiving: PushReceiver) -> list[BaseRoute]:
    """Return the endpoint, for the public application."""
    return [Route(f"{PUSHED}/{{transfer:path}}", _PushEndpoint(receiving))]


class _PushEndpoint:
    def __init__(self, receiving: PushReceiver) -> None:
        self._receiving = receiving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, receive, send, methods=_METHODS)
        try:
            await self._take(exchange)
        except ConnectorError as error:
            await _refuse(exchange, error)

    async def _take(self, exchange: Exchange) -> None:
        exchange.check()  # a compressed body would be kept as if it were plain
        row = await self._receiving.take(
            exchange.path("transfer"),
            exchange.headers.get("authorization", ""),
            media=exchange.headers.get("content-type", ""),
            ask=_BodyReader(exchange),
        )
        body = {"transfer": row.transfer_id, "rows": row.rows, "bytes": row.bytes, "received_at": row.received_at}
        await exchange.answer(200, json.dumps(body).encode(), "application/json")


class _BodyReader:
    """Returns the next piece of a body with each call. Raises: Invalid where the sender leaves before its end."""

    def __init__(self, exchange: Exchange) -> None:
        self._receive, self._more = exchange.receive, True

    async def __call__(self) -> bytes | None:
        if not self._more:
            return None
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Invalid("the sender left before its stream was complete; push it again", code="cut")
        self._more = message.get("more_body", False)
        return bytes(message.get("body", b""))


async def _refuse(exchange: Exchange, error: ConnectorError) -> None:
    if error.status >= 500:
        _log.warning("push_refused", code=error.code, reason=error.message, why=error.private)
    body = json.dumps(error.problem(), ensure_ascii=False, default=str).encode()
    headers = {"content-type": "application/problem+json", "content-length": str(len(body)), "connection": "close"}
    await exchange.begin(error.status, headers | error.headers)
    await exchange.send({"type": "http.response.body", "body": body, "more_body": True})
    await _discard_rest(exchange)
    await exchange.send({"type": "http.response.body", "body": b""})


async def _discard_rest(exchange: Exchange) -> None:
    """Read some of what still comes: closing while the client sends would reset the connection and lose our answer."""
    left = _REST_BYTES
    try:
        async with asyncio.timeout(REFUSED_SECONDS):
            while left > 0 and (message := await exchange.receive()).get("more_body", False):
                left -= len(message.get("body", b""))
    except TimeoutError:
        return
