"""Bounds for what is asked of a listener: uvicorn's HTTP protocol, with an end to heads, bodies, rests and queues.

Who asks is not known before it is there, so nobody's endless head fills memory, and nobody's silence keeps a
connection. How large a body may be says whoever reads it. Use it as `uvicorn.Config(http=Bounded)`; it rests on
uvicorn's internals, whose range is pinned.
"""

from __future__ import annotations

import asyncio
import resource

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_MAX = 2**18  # bytes: the names of thousands of columns
FIELDS_MAX = 256  # of a head, and of the trailers of a body: an empty one is four bytes on the wire and 150 in memory
HEAD_SECONDS = 30.0  # as long as a connection may rest
WAITING_MAX = 32  # requests that are sent before the one ahead of them is answered; few clients do so at all
DESCRIPTORS_MAX = 65_536
OUR_DESCRIPTORS = 256  # for files, workers and the database
SILENCE_SECONDS = 180.0  # in the middle of a body; whoever reads it has said what is wrong by then


def raise_descriptors() -> None:
    """Let this process open as many files as its operator's limit allows; the usual one is for programs of another
    kind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS_MAX)), hard))


def connections_max() -> int:
    """How many connections a listener has at once: two of them leave descriptors for what the process itself opens."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - OUR_DESCRIPTORS) // 2)


class Bounded(HttpToolsProtocol):
    """uvicorn's protocol on httptools; nothing that is asked is endless."""

    _unfinished = 0  # bytes that came since anything of a request was whole
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's."""
        super().connection_made(transport)
        if len(self.connections) > connections_max():
            self.transport.close()
        else:
            self._expect(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        """As uvicorn's. What is longer than a head may be is not waited for: the parser would keep all of it."""
        self._unfinished += len(data)
        super().data_received(data)
        if len(self.pipeline) > WAITING_MAX:  # each answer lets more of them in than it takes out
            self.pipeline.clear()
            self.transport.close()
        if self.transport.is_closing():
            return
        if self._unfinished > HEAD_MAX:
            self.send_400_response(f"Expected a head of at most {HEAD_MAX} bytes.")
        elif self._rests and self._late is None:  # what came is no beginning of a request
            self._expect(HEAD_SECONDS)

    def on_message_begin(self) -> None:
        """As uvicorn's."""
        super().on_message_begin()
        self._expect(HEAD_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        """As uvicorn's. Of too many none is kept: the parser stops at our error, and the answer is 400."""
        if len(self.headers) >= FIELDS_MAX:
            raise ValueError(f"expected at most {FIELDS_MAX} fields, came more")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """As uvicorn's."""
        self._unfinished = 0
        self._expect(SILENCE_SECONDS)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """As uvicorn's."""
        self._unfinished = 0
        self._expect(SILENCE_SECONDS)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As uvicorn's."""
        self._unfinished = 0
        self._expect_nothing()
        super().on_message_complete()

    def _expect(self, seconds: float) -> None:
        """More of a request within that time."""
        self._expect_nothing()
        self._late = self.loop.call_later(seconds, self._too_late)

    def _expect_nothing(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    @property
    def _rests(self) -> bool:
        """Whether nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _too_late(self) -> None:
        self._late = None
        if self._rests or (self.cycle.more_body and not self.flow.read_paused):
            self.transport.close()
        else:  # the next request has begun while this one is answered, or it is ours to read on
            self._expect(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._expect_nothing()
        super().connection_lost(exc)
