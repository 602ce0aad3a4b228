"""Lets a library that calls through httpx2 use the guarded client: its SSRF guard, time limits and size limits."""

from __future__ import annotations

import httpx2

from connector.infra.net.http_client import HttpClient

_OURS = ("host", "content-length", "transfer-encoding", "connection", "accept-encoding")  # set by the guarded client


class GuardedTransport(httpx2.AsyncBaseTransport):
    """Sends each request with `HttpClient.call`. Its errors, such as PeerUnreachable, reach the library's caller."""

    def __init__(self, net: HttpClient, *, max_bytes: int) -> None:
        self._net, self._max_bytes = net, max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _OURS}
        body = await request.aread() or None
        reply = await self._net.call(
            request.method, str(request.url), headers=headers, body=body, max_bytes=self._max_bytes
        )
        kept = {name: value for name, value in reply.headers.items() if name not in ("transfer-encoding",)}
        return httpx2.Response(reply.status, headers=kept, content=reply.body, request=request)
