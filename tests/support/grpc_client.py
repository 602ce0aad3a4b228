"""A gRPC client of bytes: it sends what a test says, and reads when the test does."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio

from connector.dataplane.flight.listener import FlightServer
from tests.support.flying import reached

SERVICE = "/arrow.flight.protocol.FlightService/"
_HUGE = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


@dataclass(frozen=True)
class Answer:
    """What came back for one call."""

    status: int
    sentence: str
    initial: dict[str, Any]
    trailers: dict[str, Any]
    messages: list[bytes]


# The client library's own status when the server ends a call while the client still writes: it hides the server's.
_WRITE_FAILED = "Internal error from Core"
_ATTEMPTS = 5


class Client:
    """One connection."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def call(
        self, method: str, *, ticket: str = "", headers: Sequence[tuple[str, Any]] = (), timeout: float | None = None
    ) -> Any:
        """A call whose messages the test writes and reads."""
        shown = [("authorization", f"Bearer {ticket}")] if ticket else []
        name = method if method.startswith("/") else SERVICE + method
        return self._channel.stream_stream(name)(metadata=(*shown, *headers), timeout=timeout)

    async def begin(self, method: str, message: bytes, **call: Any) -> Any:
        """A call whose whole request is this message."""
        asked = self.call(method, **call)
        await asked.write(message)
        await asked.done_writing()
        return asked

    async def ask(self, method: str, *messages: bytes, **call: Any) -> Answer:
        """The whole answer to these messages."""
        for _ in range(_ATTEMPTS):
            answer = await self._ask_once(method, messages, **call)
            if answer.sentence != _WRITE_FAILED:
                break
        return answer

    async def _ask_once(self, method: str, messages: Sequence[bytes], **call: Any) -> Answer:
        asked = self.call(method, **call)
        try:
            for message in messages:
                await asked.write(message)
            await asked.done_writing()
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, grpc.aio.InternalError):
            pass  # it is answered before it is whole
        return await answer_of(asked)


async def answer_of(asked: Any) -> Answer:
    """The rest of the answer to a call."""
    found: list[bytes] = []
    try:
        while isinstance(message := await asked.read(), bytes):
            found.append(message)
    except grpc.aio.AioRpcError:
        pass  # its status is in the answer
    return Answer(
        (await asked.code()).value[0],
        await asked.details() or "",
        dict(await asked.initial_metadata() or ()),
        dict(await asked.trailing_metadata() or ()),
        found,
    )


@asynccontextmanager
async def connected(front: FlightServer, *options: tuple[str, Any]) -> AsyncIterator[Client]:
    """A connection of its own, until the block ends."""
    _, roots = reached(front)
    address = f"127.0.0.1:{front.port}"
    own = [*_HUGE, ("grpc.use_local_subchannel_pool", 1), *options]
    if roots:
        channel = grpc.aio.secure_channel(address, grpc.ssl_channel_credentials(roots), options=own)
    else:
        channel = grpc.aio.insecure_channel(address, options=own)
    async with channel:
        yield Client(channel)
