"""What Flight needs of Arrow besides streams, for the connector, which loads none: asked of processes of their own.

Tables of the catalogue and schemas are made by one process (`maker`); what clients put is read by
another, so that nobody else's question waits for it or dies with it. Each starts when it is first needed and stays.
Both answer one question at a time, and consumers take turns.
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
from connector.dataplane.flight.protobuf import Garbled
from connector.engine.pool.sandbox import environment
from connector.errors import BadInput, Busy, unforeseen
from connector.infra.concurrency.turn_queue import Turns
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


class Tables:
    """Arrow's bytes for Flight. `seconds` is what a question may take, once it is its turn, and `wait_seconds` how long
    it waits for that.

    Any method may raise Busy where too many wait, or for too long, and where its process cannot be started or has
    ended meanwhile; the next question gets another one. `consumer` is whose turn it takes.
    """

    def __init__(self, *, seconds: float = 10.0, wait_seconds: float = 30.0) -> None:
        self._ours = _Child(seconds, wait_seconds=wait_seconds, most=_ANSWER_MAX)
        self._foreign = _Child(seconds, wait_seconds=wait_seconds, most=_ROW_MAX)
        self._said = _Kept(_KEPT_BYTES)

    async def constant(self, consumer: str, sql: str) -> bytes | None:
        """What a statement that reads nothing (`SELECT 1`) gives, as an Arrow stream; None for other statements."""
        found = flightsql.constant(sql)
        return found and await self._one(consumer, "constant", *found)

    async def catalogue(self, consumer: str, name: str, command: bytes, tables: Sequence[Mapping[str, Any]]) -> bytes:
        """The catalogue table that a command of this name asks for, of these datasets ({owner, name, schema}), as an
        Arrow stream. BadInput where the command is garbled."""
        told = [(one["owner"], one["name"]) for one in tables]
        parts = [command, *(one["schema"] for one in tables)]
        _, (stream,) = await self._ask(consumer, ["catalogue", name, told], parts)
        return stream

    async def catalogue_schema(self, consumer: str, name: str, command: bytes) -> bytes:
        """The schema of that table as an encapsulated message. BadInput where the command is garbled."""
        try:
            wanted = flightsql.table_schema_wanted(name, protobuf.read(command))
        except Garbled as error:
            raise BadInput(str(error), code="request_invalid") from None
        part = protobuf.write([(5, wanted)])  # all that it looks at
        return await self._one(consumer, "catalogue_schema", name, part=part)

    async def parameters(self, consumer: str, kinds: Sequence[str]) -> bytes:
        """The schema of parameters of these kinds, as an encapsulated message; empty for none."""
        return await self._one(consumer, "parameters", tuple(kinds)) if kinds else b""

    async def values(self, consumer: str, stream: bytes) -> list[list[str]]:
        """The one row of parameters in a stream that a client has put, as [type, text]. BadInput where it is anything
        else, or takes longer or more memory to read than such a row can."""
        if len(stream) > _VALUES_MAX:
            raise BadInput(
                f"expected at most {_VALUES_MAX} bytes of parameters, came {len(stream)}", code="request_invalid"
            )
        try:
            row, _ = await _answer_of(self._foreign, consumer, ["values"], [stream])
        except _Lost:
            raise _unreadable() from None
        # Who has read foreign bytes may say anything.
        if not isinstance(row, list) or not all(map(flightsql.is_value, row)):
            raise _unreadable()
        return row

    @property
    def pids(self) -> tuple[int, int]:
        """The process that makes, and the one that reads what clients put; 0 while there is none."""
        return self._ours.pid, self._foreign.pid

    async def close(self) -> None:
        """End the processes. Whoever waits for an answer gets Busy, or BadInput for values, and so does who asks on."""
        await asyncio.gather(self._ours.close(), self._foreign.close())

    async def _one(self, consumer: str, *question: Any, part: bytes = b"") -> bytes:
        """The one part of the answer to a question that has the same each time."""
        found = self._said.get((question, part))
        if found is None:
            _, found = await self._ask(consumer, list(question), [part])
            self._said.put((question, part), found, sum(map(len, found)))
        return found[0]

    async def _ask(self, consumer: str, question: list[Any], parts: Sequence[bytes]) -> tuple[Any, list[bytes]]:
        try:
            return await _answer_of(self._ours, consumer, question, parts)
        except _Lost:
            raise Busy("the process that makes tables for Flight ended; try again") from None


async def _answer_of(
    child: _Child, consumer: str, question: list[Any], parts: Sequence[bytes]
) -> tuple[Any, list[bytes]]:
    """What is made, and its parts. BadInput where what the client sent does not fit, _Lost where no answer came."""
    told, found = await child.ask(consumer, question, parts)
    if isinstance(told, dict) and "made" in told:
        return told["made"], found
    if isinstance(told, dict) and isinstance(told.get("garbled"), str):
        raise BadInput(told["garbled"][:_SENTENCE_MAX], code="request_invalid")
    _log.error("no table was made", asked=question[0], reason=str(told)[:100])
    raise unforeseen()


def _unreadable() -> BadInput:
    return BadInput("expected one row of parameters, came Arrow that cannot be read in time", code="request_invalid")


class _Lost(Exception):
    """A question whose process ended, or was ended as it took too long."""


class _Child:
    """One process at a time, and one question at a time to it."""

    def __init__(self, seconds: float, *, wait_seconds: float, most: int) -> None:
        self._seconds = seconds
        self._most = most  # bytes of an answer
        self._turns = Turns(1, waiting=_WAITING, wait_seconds=wait_seconds)
        self._used = asyncio.Lock()  # by whose turn it is, and by who ends it
        self._asking: set[asyncio.Task[tuple[Any, list[bytes]]]] = set()  # the one: its caller may have left
        self._process: asyncio.subprocess.Process | None = None
        self._channel: socket.socket | None = None
        self._closed = False

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None and self._process.returncode is None else 0

    async def ask(self, consumer: str, question: list[Any], parts: Sequence[bytes]) -> tuple[Any, list[bytes]]:
        """What is told, and its parts, when it is the consumer's turn. _Lost where none comes; Busy where it is never
        its turn, or there is no process to ask.

        A question whose caller has left is answered all the same, in its time, and nobody hears it: a process that is
        ended for that would be missed by everybody else, as would one that is starting.
        """
        await self._turns.take(consumer)
        asking = asyncio.ensure_future(self._in_turn(question, parts))
        self._asking.add(asking)
        asking.add_done_callback(self._answered)
        await asyncio.wait((asking,))
        return asking.result()

    def _answered(self, asking: asyncio.Task[tuple[Any, list[bytes]]]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # it may be that nobody hears it

    async def _in_turn(self, question: list[Any], parts: Sequence[bytes]) -> tuple[Any, list[bytes]]:
        try:
            async with self._used:
                return await self._asked(question, parts)
        finally:
            self._turns.give_back()

    async def _asked(self, question: list[Any], parts: Sequence[bytes]) -> tuple[Any, list[bytes]]:
        channel = await self._ready()
        try:
            async with asyncio.timeout(self._seconds):
                await asyncio.get_running_loop().sock_sendall(channel, catalogue_process.frame(question, parts))
                return await self._told(channel)
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
        self._end()  # of the channel hears whoever reads it, and closes it
        async with self._used:
            await self._gone()

    async def _ready(self) -> socket.socket:
        """The channel to a process that listens; Busy where none does."""
        if self._closed:
            raise Busy("the connector ends; ask another time")
        if self._channel is None or not self.pid:
            await self._gone()
            try:
                await self._start()
            except BaseException as error:
                self._kill()
                if isinstance(error, OSError | EOFError | ValueError):  # TimeoutError is one of them
                    _log.error("no process for Flight's tables", reason=str(error) or type(error).__name__)
                    raise Busy("the process that makes tables for Flight did not start; try again") from error
                raise
        assert self._channel is not None
        return self._channel

    async def _start(self) -> None:
        """A new process, once it has said that it is ready; OSError, EOFError or ValueError where it does not."""
        self._channel, theirs = socket.socketpair()
        self._channel.setblocking(False)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "connector.dataplane.flight.catalogue_process", str(theirs.fileno()),
                pass_fds=(theirs.fileno(),), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL,
                env=environment(**_ALLOCATION), start_new_session=True,
            )  # fmt: skip
        async with asyncio.timeout(_START_SECONDS):
            told, _ = await self._told(self._channel)
        if told != catalogue_process.READY or self._closed:
            raise ValueError(f"expected {catalogue_process.READY!r}, came something else")

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

    async def _told(self, channel: socket.socket) -> tuple[Any, list[bytes]]:
        """The next frame. EOFError where the other end has gone, ValueError where it is none."""
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
    """Answers that come again, those of least use let go where they are more than `most` bytes."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._found: OrderedDict[Hashable, tuple[list[bytes], int]] = OrderedDict()

    def get(self, key: Hashable) -> list[bytes] | None:
        if key not in self._found:
            return None
        self._found.move_to_end(key)
        return self._found[key][0]

    def put(self, key: Hashable, found: list[bytes], size: int) -> None:
        """Keep them, `size` bytes with their key."""
        if key in self._found:
            return
        size += _ENTRY_BYTES
        self._found[key], self._left = (found, size), self._left - size
        while self._left < 0:
            _, (_, size) = self._found.popitem(last=False)
            self._left += size


_ENTRY_BYTES = 1024  # about what an entry takes besides


__all__ = ["Tables"]
