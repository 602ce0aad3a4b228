"""Batches to the socket as they are: uvicorn's HTTP protocol with a gathered write (data-plane, section 3).

uvicorn joins chunk size, body and line end into new bytes for each chunk: for bodies of megabytes that copy costs more
than the network. Here a body may be a list of buffers, which goes to the transport in one vectored write as one HTTP
chunk. Offered to the application as the extension `hanse.gather`; a body message then has the keys

    hanse.buffers  a list of buffers, none of which may change until it is sent
    hanse.trailers at the end of a chunked body: (name, value) pairs that go after its last chunk
    hanse.abort    true: close the connection at once, without waiting for a reader that does not read

It rests on uvicorn's internals (the range is pinned; a contract test compares the bytes with the stock path) and knows
nothing of what it carries. Use it as `uvicorn.Config(http=Protocol)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

EXTENSION = "hanse.gather"
BUFFERS = "hanse.buffers"
TRAILERS = "hanse.trailers"
ABORT = "hanse.abort"


class Cycle(RequestResponseCycle):
    """One request and its answer, with the two keys above."""

    async def send(self, message: Any) -> None:
        """As uvicorn's, and gathered where the message has buffers. Silent once the client has left."""
        if message.get(ABORT):
            self.transport.abort()
        elif BUFFERS in message:
            await self._gathered(message)
        elif TRAILERS in message:
            await self._trailed(message)
        else:
            await super().send(message)

    async def _trailed(self, message: Mapping[str, Any]) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started or self.response_complete or not self.chunked_encoding or message.get("body"):
            raise RuntimeError("expected trailers at the end of a chunked body")
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in message[TRAILERS])
        self.transport.write(b"0\r\n" + lines + b"\r\n")
        self.chunked_encoding = False  # so that completing the answer writes nothing more
        await super().send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _gathered(self, message: Mapping[str, Any]) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started or self.response_complete:
            raise RuntimeError("expected buffers between the start and the end of an answer")
        if self.scope["method"] == "HEAD" or not self.chunked_encoding or not message.get("more_body"):
            raise RuntimeError("expected buffers as a part of a chunked body, not as its end")
        buffers = message[BUFFERS]
        # An empty chunk would end the body.
        if total := sum(buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in buffers):
            self.transport.writelines([b"%x\r\n" % total, *buffers, b"\r\n"])


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with cycles of ours."""

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # The class comes from a name in uvicorn's module; here is where normal and pipelined requests both pass.
        cycle.__class__ = Cycle
        extensions: dict[str, Any] = cycle.scope.setdefault("extensions", {})
        extensions[EXTENSION] = {}
        super()._start_asgi_task(cycle, app)
