"""Client of the processes that make and read Arrow for Flight, because the connector's process loads no Arrow.

One process makes catalogue tables and schemas. Another reads the parameters that clients send, so that no other
question waits for it or ends with it. Each starts when it is first needed and stays. Both answer one question at a
time, and consumers take turns. `catalogue_process` is the other end.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from connector.dataplane.flight import catalogue_process, flightsql, protobuf
from connector.dataplane.flight.protobuf import MalformedMessage
from connector.engine.pool.sandbox import environment
from connector.errors import Invalid, Unavailable, internal_error
from connector.infra.concurrency.turn_queue import TurnQueue
from connector.telemetry import logger

_START_SECONDS = 60.0
_WAITING = 256  # questions to a process, half of them of one consumer at most
_ANSWER_MAX = 64 * 2**20
_VALUES_MAX = 16 * 2**20
_ROW_MAX = 2 * 2**20  # of values that are read, as JSON
_KEPT_BYTES = 4 * 2**20
_ALLOCATION = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}  # address space is what is limited
_SENTENCE_MAX = 300
_log = logger("flight")


class CatalogueClient:
    """Asks for catalogue tables, schemas and parameters as bytes of Arrow.

    A question may wait `wait_seconds` for its turn and then take `seconds`. `consumer` says whose turn it takes. Every
    method raises Unavailable when too many questions wait, or for too long, and when its process cannot start or has
    ended. The next question starts another process.
    """

    def __init__(self, *, seconds: float = 10.0, wait_seconds: float = 30.0) -> None:
        self._ours = _Child(seconds, wait_seconds=wait_seconds, most=_ANSWER_MAX)
        self._foreign = _Child(seconds, wait_seconds=wait_seconds, most=_ROW_MAX)
        self._answers = _Kept(_KEPT_BYTES)

    async def constant(self, consumer: str, sql: str) -> bytes | None:
        """Returns the answer to a statement that reads nothing (`SELECT 1`) as an Arrow stream; None for others."""
        found = flightsql.constant(sql)
        return found and await self._cached_part(consumer, "constant", *found)

    async def catalogue(self, consumer: str, name: str, command: bytes, tables: Sequence[Mapping[str, Any]]) -> bytes:
        """Returns the catalogue table that a command asks for, about these datasets ({owner, name, schema}), as a
        stream of Arrow. Raises Invalid for a malformed command."""
        told = [(one["owner"], one["name"]) for one in tables]
        parts = [command, *(one["schema"] for one in tables)]
        _, (stream,) = await self._ask(consumer, ["catalogue", name, told], parts)
        return stream

    async def catalogue_schema(self, consumer: str, name: str, command: bytes) -> bytes:
        """Returns the schema of that table as an encapsulated message. Raises Invalid for a malformed command."""
        try:
            wanted = flightsql.table_schema_wanted(name, protobuf.read(command))
        except MalformedMessage as error:
            raise Invalid(str(error), code="request_invalid") from None
        part = protobuf.write([(5, wanted)])  # all that it looks at
        return await self._cached_part(consumer, "catalogue_schema", name, part=part)

    async def parameters(self, consumer: str, kinds: Sequence[str]) -> bytes:
        """Returns the schema of parameters of these kinds as an encapsulated message; empty without parameters."""
        return await self._cached_part(consumer, "parameters", tuple(kinds)) if kinds else b""

    async def values(self, consumer: str, stream: bytes) -> list[list[str]]:
        """Returns the one row of parameters in a client's stream as [type, text].

        Raises Invalid for anything else, also for what takes more time or memory than such a row can."""
        if len(stream) > _VALUES_MAX:
            raise Invalid(
                f"expected at most {_VALUES_MAX} bytes of parameters, got {len(stream)}", code="request_invalid"
            )
        try:
            row, _ = await _answer_of(self._foreign, consumer, ["values"], [stream])
        except _Lost:
            raise _unreadable() from None
        # A process that has read foreign bytes may answer anything.
        if not isinstance(row, list) or not all(map(flightsql.is_value, row)):
            raise _unreadable()
        return row

    @property
    def pids(self) -> tuple[int, int]:
        """The process ids of the maker and the reader; 0 while it does not run."""
        return self._ours.pid, self._foreign.pid

    async def close(self) -> None:
        """End the processes. Questions that wait, and later ones, raise Unavailable, those for values Invalid."""
        await asyncio.gather(self._ours.close(), self._foreign.close())

    async def _cached_part(self, consumer: str, *question: Any, part: bytes = b"") -> bytes:
        """Returns the one part of an answer that is always the same, from memory where it is known."""
        found = self._answers.get((question, part))
        if found is None:
            _, found = await self._ask(consumer, list(question), [part])
            self._answers.store((question, part), found, sum(map(len, found)))
        return found[0]

    async def _ask(self, consumer: str, question: list[Any], parts: Sequence[bytes]) -> tuple[Any, list[bytes]]:
        try:
            return await _answer_of(self._ours, consumer, question, parts)
        except _Lost:
            raise Unavailable("the process that makes tables for Flight ended; try again") from None


async def _answer_of(
    child: _Child, consumer: str, question: list[Any], parts: Sequence[bytes]
) -> tuple[Any, list[bytes]]:
    """Returns the answer and its parts. Raises Invalid for a malformed question, _Lost where no answer came."""
    told, found = await child.ask(consumer, question, parts)
    if isinstance(told, dict) and "made" in told:
        return told["made"], found
    if isinstance(told, dict) and isinstance(told.get("garbled"), str):
        raise Invalid(told["garbled"][:_SENTENCE_MAX], code="request_invalid")
    _log.error("no table was made", asked=question[0], reason=str(told)[:100])
    raise internal_error()


def _unreadable() -> Invalid:
    return Invalid("expected one row of parameters, got Arrow that cannot be read in time", code="request_invalid")


class _Lost(Exception):
    """The process of a question ended, or took too long."""


class _Child:
    """One process at a time, and one question at a time to it."""

    def __init__(self, seconds: float, *, wait_seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most  # bytes of an answer
        self._turns = TurnQueue(1, waiting=_WAITING, wait_seconds=wait_seconds)
        self._used = asyncio.Lock()  # by whose turn it is, and by who ends it
        self._asking: set[asyncio.Task[tuple[Any, list[bytes]]]] = set()  # the one: its caller may have left
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None
        self._closed = False

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def ask(self, consumer: str, question: list[Any], parts: Sequence[bytes]) -> tuple[Any, list[bytes]]:
        """Returns the answer and its parts, in the consumer's turn. Raises _Lost or Unavailable.

        A question runs to its end although its caller has left: to end a running or starting process would delay
        the questions that wait.
        """
        await self._turns.take(consumer)
        asking = asyncio.ensure_future(self._in_turn(consumer, question, parts))
        self._asking.add(asking)
        asking.add_done_callback(self._answered)
        await asyncio.wait((asking,))
        return asking.result()

    def _answered(self, asking: asyncio.Task[tuple[Any, list[bytes]]]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # its caller may have left

    async def _in_turn(self, consumer: str, question: list[Any], parts: Sequence[bytes]) -> tuple[Any, list[bytes]]:
        try:
            async with self._used:
                return await self._exchange(question, parts)
        finally:
            self._turns.give_back(consumer)

    async def _exchange(self, question: list[Any], parts: Sequence[bytes]) -> tuple[Any, list[bytes]]:
        channel = await self._ready()
        try:
            async with asyncio.timeout(self._seconds):
                await asyncio.get_running_loop().sock_sendall(channel, catalogue_process.frame(question, parts))
                return await self._receive_answer(channel)
        except (TimeoutError, OSError, EOFError, ValueError) as error:
            self._kill()
            _log.error("a process of Flight's tables is lost", asked=question[0], reason=type(error).__name__)
            raise _Lost from None
        except BaseException:
            self._kill()
            raise

    async def close(self) -> None:
        """End it, and let no other start."""
        self._closed = True
        self._end()  # the reader of the channel sees that, and closes it
        async with self._used:
            await self._gone()

    async def _ready(self) -> socket.socket:
        """Returns the channel to a process that listens. Raises Unavailable where none does."""
        if self._closed:
            raise Unavailable("the connector is stopping; try again later")
        if self._channel is None or not self.pid:
            await self._gone()
            try:
                await self._start()
            except BaseException as error:
                self._kill()
                if isinstance(error, OSError | EOFError | ValueError):  # TimeoutError is one of them
                    _log.error("no process for Flight's tables", reason=str(error) or type(error).__name__)
                    raise Unavailable("the process that makes tables for Flight did not start; try again") from error
                raise
        assert self._channel is not None
        return self._channel

    async def _start(self) -> None:
        """Start a process and wait until it is ready. Raises OSError, EOFError or ValueError where it does not."""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "connector.dataplane.flight.catalogue_process", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                env=environment(**_ALLOCATION), start_new_session=True,
            )  # fmt: skip
        async with asyncio.timeout(_START_SECONDS):
            told, _ = await self._receive_answer(self._channel)
        if told != catalogue_process.READY or self._closed:
            raise ValueError(f"expected {catalogue_process.READY!r}, got something else")

    def _kill(self) -> None:
        """End it now; `_gone` waits for that."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        self._end()

    def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def _gone(self) -> None:
        self._kill()
        if self._process is not None:
            await self._process.wait()
        self._process = None

    async def _receive_answer(self, channel: socket.socket) -> tuple[Any, list[bytes]]:
        """Returns the next frame. Raises EOFError at the end, ValueError for anything but a frame."""
        size, room = catalogue_process.HEADER.unpack(await _received(channel, catalogue_process.HEADER.size))
        if size + room > self._most:
            raise ValueError("expected an answer of a size that can be")
        return catalogue_process.unframed(await _received(channel, size), await _received(channel, room))


async def _received(channel: socket.socket, size: int) -> bytes:
    loop, data, got = asyncio.get_running_loop(), bytearray(size), 0
    view = memoryview(data)
    while got < size:
        more = await loop.sock_recv_into(channel, view[got:])
        if not more:
            raise EOFError
        got += more
    return bytes(data)


class _Kept:
    """Answers by question: at most `most` bytes, the least recently used are removed first."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._found: OrderedDict[Hashable, tuple[list[bytes], int]] = OrderedDict()

    def get(self, key: Hashable) -> list[bytes] | None:
        if key not in self._found:
            return None
        self._found.move_to_end(key)
        return self._found[key][0]

    def store(self, key: Hashable, found: list[bytes], size: int) -> None:
        """Keep an answer of `size` bytes."""
        if key in self._found:
            return
        size += _ENTRY_BYTES
        self._found[key], self._left = (found, size), self._left - size
        while self._left < 0:
            _, (_, size) = self._found.popitem(last=False)
            self._left += size


_ENTRY_BYTES = 1024  # about what an entry takes besides


__all__ = ["CatalogueClient"]
