"""The lean reader: an HTTP/1.1 request on a socket of its own, and its body as a file that Arrow reads without copies.

The kernel writes each chunk straight into memory that Arrow then uses. Knows nothing of tokens or of what is in the
stream. Chunk borders are no promise: a body that is cut otherwise is only slower.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import pyarrow as pa

from hanse._transport.cancellation import Waits
from hanse._transport.sockets import Plain, Tls, renewed, trusted, untrusted
from hanse.errors import BadInput, Broken, HanseError, Unreachable, of_problem
from hanse.retry import seconds_of

ARROW = "application/vnd.apache.arrow.stream"
_SCRATCH = 64 * 1024
_HEADERS_MAX = 64 * 1024
_CHUNK_MAX = 1 << 30  # far above any batch of ours, however it is cut; checked before memory is taken for it
TOGETHER_MAX = 16 * 2**20  # of a chunk, in one piece of memory: a small batch in it keeps all of that
_PROBLEM_MAX = 1 << 20
_LINE_MAX = 256
_TRAILERS_MAX = 100  # lines after the last chunk, and
_INTERIM_MAX = 10  # informational answers before the real one: whoever sends more never ends
_PORTS = {"http": 80, "https": 443}
_HUGE = 2 * 2**20  # bytes of a huge page

Memory: TypeAlias = "Callable[[int], pa.Buffer]"


@dataclass(frozen=True, slots=True)
class Request:
    """One call. `idle_seconds`: the longest silence that is borne, at any point of the exchange.

    Next to nothing of what has begun to come is no more than silence. What is no stream, as the head of an answer, an
    error or a plan, is there whole in that time: it has an end, and no reason to be long in coming.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    idle_seconds: float = 60.0
    accept: str = ARROW
    ours: bool = False  # to our own connector, whose errors are believed as they are

    def __post_init__(self) -> None:
        most = threading.TIMEOUT_MAX  # what the system can wait for: 292 years
        if not 0 < seconds_of("idle_seconds", self.idle_seconds) <= most:
            raise BadInput(f"expected idle_seconds above 0 and of at most {most:.0f}, came {self.idle_seconds}")

    @property
    def where(self) -> str:
        """Host and port, as errors name them."""
        _, host, port = _address(self.url)
        return f"{host}:{port}"


class Wire:
    """A connected socket with a scratch buffer for what comes before and between payloads."""

    def __init__(self, request: Request, waits: Waits | None = None) -> None:
        scheme, host, port = _address(request.url)
        self.where = request.where
        self._scratch = bytearray(_SCRATCH)
        self._view = memoryview(self._scratch)
        self._start = self._stop = 0
        self._seconds = request.idle_seconds  # until there is a socket that knows
        self._socket = self._told(lambda: _connect(scheme, host, port, request.idle_seconds, waits))

    def send(self, data: bytes) -> None:
        self._told(lambda: self._socket.sendall(data))

    def begin(self) -> None:
        """What is read next may be long in coming; then it has to go on."""
        self._socket.begin()

    def short(self) -> None:
        """What is read until the next `begin` is there whole within the longest silence."""
        self._socket.short()

    def bear(self, seconds: float) -> None:
        """The longest silence from now on."""
        self._seconds = seconds
        self._socket.bear(seconds)

    def line(self) -> bytes:
        """A line without its CRLF. Broken where it is longer than a chunk's head may be."""
        return self._until(b"\r\n", _LINE_MAX)

    def head(self) -> bytes:
        """Everything up to the empty line."""
        return self._until(b"\r\n\r\n", _HEADERS_MAX)

    def into(self, view: memoryview) -> int:
        """At least one byte into `view`, from the scratch buffer or straight from the socket; 0 at the end.

        All of `view` must be on its way: a part of it may be waited for.
        """
        if held := min(self._stop - self._start, len(view)):
            view[:held] = self._view[self._start : self._start + held]
            self._start += held
            return held
        got: int = self._told(lambda: self._socket.receive(view, len(view)))
        return got

    def close(self) -> None:
        self._socket.close()

    def _until(self, mark: bytes, most: int) -> bytes:
        searched = self._start
        while (at := self._scratch.find(mark, searched, self._stop)) < 0:
            if self._stop - self._start >= most:
                raise Broken(f"{self.where} sent a head of more than {most} bytes: that is not our protocol")
            searched = max(self._start, self._stop - len(mark) + 1)
            searched -= self._make_room()
            if not (got := self._told(lambda: self._socket.receive(self._view[self._stop :]))):
                raise Unreachable(f"{self.where} closed the connection in the middle of its answer")
            self._stop += got
        data = bytes(self._view[self._start : at])
        self._start = at + len(mark)
        return data

    def _make_room(self) -> int:
        """Move what is held to the front where the buffer is full. By how much it moved."""
        if self._stop < _SCRATCH:
            return 0
        moved = self._start
        self._scratch[: self._stop - moved] = self._scratch[moved : self._stop]
        self._start, self._stop = 0, self._stop - moved
        return moved

    def _told(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except TimeoutError:
            raise Unreachable(
                f"{self.where} said nothing for too long, or next to nothing; it may be down or overloaded"
            ).after(self._seconds) from None
        except ssl.SSLCertVerificationError as error:
            raise untrusted(self.where, error) from error
        except ssl.SSLError as error:
            raise Unreachable(f"no trusted connection to {self.where}: {error.reason or error}") from error
        except OSError as error:
            why = f"{error.strerror or error}{_without_proxy(error)}"
            raise Unreachable(f"no connection to {self.where}: {why}") from error


def _without_proxy(error: OSError) -> str:
    """What to say beside a host that has no address here, where others are reached through a proxy."""
    names = [name for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY") for name in (name, name.lower())]
    if not isinstance(error, socket.gaierror) or not (named := [name for name in names if os.environ.get(name)]):
        return ""
    return f"; {named[0]} names a proxy, and plans and streams go through none: an owner has to be reached directly"


def _address(url: str) -> tuple[str, str, int]:
    """Scheme, host and port."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
        if parts.scheme in _PORTS and host.encode("idna"):  # as it is looked up
            return parts.scheme, host, port
    except ValueError:  # of brackets, a port, or a name that are none
        pass
    raise Broken(f"expected an address http(s)://host/..., came {url[:200]!r}")


def _connect(scheme: str, host: str, port: int, seconds: float, waits: Waits | None) -> Plain | Tls:
    if scheme == "http":
        return _plain(host, port, seconds, waits)
    before = trusted()
    try:
        return _encrypted(host, port, seconds, waits)
    except ssl.SSLCertVerificationError:
        if not renewed(before):
            raise
        return _encrypted(host, port, seconds, waits)


def _plain(host: str, port: int, seconds: float, waits: Waits | None) -> Plain:
    made = Plain(socket.create_connection((host, port), timeout=seconds), seconds)
    if waits is not None:
        waits.connected(made)
    return made


def _encrypted(host: str, port: int, seconds: float, waits: Waits | None) -> Tls:
    plain = _plain(host, port, seconds, waits)
    try:
        return Tls(plain, host)
    except BaseException:
        plain.close()
        raise


class Body:
    """A chunked body as a file for `pa.ipc.open_stream`: `read(n)` gives Arrow memory, filled by the kernel."""

    closed = False

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._left = 0  # of the chunk on the wire
        self._chunk: pa.Buffer | None = None
        self._at = 0
        self._first = True
        self._memory: Memory = pa.allocate_buffer  # where the payloads go
        self.ended = False  # the last chunk was seen: the body is whole

    def read(self, size: int = -1) -> Any:
        """The next `size` bytes, fewer only at the end. Unreachable where the connection ends before the body."""
        if size < 0:
            raise ValueError("expected a number of bytes to read")
        if size > _CHUNK_MAX:
            raise Broken(f"the stream is not Arrow as expected: a message of {size} bytes, more than {_CHUNK_MAX}")
        held = 0 if self._chunk is None else self._chunk.size - self._at
        if held >= size and self._chunk is not None:
            part = self._chunk.slice(self._at, size)
            self._at += size
            return part
        self._wire.begin()
        if held == 0 and self._left == 0 and not self._next_chunk(begins=True):
            return b""
        if held == 0 and size <= self._left:
            return self._at_once(size)
        return self._across(size)

    def readable(self) -> bool:
        return True

    def bear(self, seconds: float) -> None:
        """The longest silence from now on."""
        self._wire.bear(seconds)

    def close(self) -> None:
        self._wire.close()
        self.closed = True

    def into(self, memory: Memory) -> None:
        """Have what comes from now on go to memory that this makes, as `pa.allocate_buffer` does."""
        self._memory = memory

    def rest(self, most: int) -> bytes:
        """Everything that is left, for small bodies: all of them in the time for what is short."""
        parts, came = [], 0
        while part := bytes(self._across(_SCRATCH)):
            parts.append(part)
            if (came := came + len(part)) > most:
                raise _too_large(self._wire, most)
        return b"".join(parts)

    def _at_once(self, size: int) -> Any:
        """Take the rest of the chunk in one piece of memory, and answer from it: the message after it is there too."""
        taken = self._left if self._left <= TOGETHER_MAX else size
        self._chunk = self._filled(taken)
        self._left, self._at = self._left - taken, size
        return self._chunk.slice(0, size)

    def _across(self, size: int) -> Any:
        """`size` bytes over chunk borders, copied together."""
        target = self._memory(size)
        view, done = memoryview(target).cast("B"), 0
        while done < size:
            if self._chunk is not None and (held := min(self._chunk.size - self._at, size - done)):
                view[done : done + held] = memoryview(self._chunk)[self._at : self._at + held].cast("B")
                self._at, done = self._at + held, done + held
                continue
            self._chunk = None
            if self._left == 0 and not self._next_chunk():
                break
            part = min(self._left, size - done)
            self._fill(view[done : done + part])
            self._left, done = self._left - part, done + part
        return target.slice(0, done)

    def _filled(self, size: int) -> pa.Buffer:
        buffer = self._memory(size)
        self._fill(memoryview(buffer).cast("B"))
        return buffer

    def _fill(self, view: memoryview) -> None:
        while len(view):
            got = self._wire.into(view)
            if not got:
                raise Unreachable(f"{self._wire.where} closed the connection in the middle of its stream")
            view = view[got:]

    def _next_chunk(self, *, begins: bool = False) -> bool:
        """Read the head of the next chunk. False after the last one. `begins`: it is no part of what has begun."""
        if self.ended:
            return False
        if not self._first and self._wire.line():
            raise Broken(f"{self._wire.where} sent a chunk that is longer than it said")
        self._first = False
        if begins:  # its owner may have had nothing to send since the end of the last one
            self._wire.begin()
        text = self._wire.line().split(b";", 1)[0].strip()
        if not text or len(text) > 8 or text.strip(b"0123456789abcdefABCDEF"):
            raise Broken(f"{self._wire.where} sent {text[:20]!r} where the size of a chunk was expected")
        self._left = int(text, 16)
        if self._left > _CHUNK_MAX:
            raise Broken(f"{self._wire.where} sent a chunk of {self._left} bytes, more than {_CHUNK_MAX}")
        if self._left == 0:
            self._pass_over_trailers()
            self.ended = True
        return not self.ended

    def _pass_over_trailers(self) -> None:
        for _ in range(_TRAILERS_MAX):
            if not self._wire.line():
                return
        raise Broken(f"{self._wire.where} sent more than {_TRAILERS_MAX} lines after its last chunk")


def kept(size: int) -> pa.Buffer:
    """So many bytes for what stays; each buffer is given back by itself.

    Large ones are in huge pages where the system has them: clearing those takes the kernel a sixth of the time. For
    pieces of megabytes that stay, Arrow's own pool has it clear several times their size.
    """
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return pa.allocate_buffer(size, memory_pool=pa.system_memory_pool())
    piece = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        piece.madvise(mmap.MADV_HUGEPAGE)
    return pa.py_buffer(piece)


@dataclass(frozen=True, slots=True)
class Answer:
    """Status, headers (names in small letters), and the body not read yet."""

    status: int
    headers: Mapping[str, str]
    body: Body


def ask(request: Request, waits: Waits | None = None) -> Answer:
    """Send a request and read the head of its answer: an Arrow stream. Any other answer is raised as its error."""
    wire = Wire(request, waits)
    try:
        headers = _good(wire, request)
        _expect_stream(wire, headers)
    except BaseException:
        wire.close()
        raise
    return Answer(200, headers, Body(wire))


def whole(request: Request, *, most: int) -> bytes:
    """The body of a small answer, of at most so many bytes. Any other answer is raised as its error."""
    wire = Wire(request)
    try:
        return _small(wire, _good(wire, request), most)
    finally:
        wire.close()


def _good(wire: Wire, request: Request) -> Mapping[str, str]:
    """The headers of an answer that is no error and as it was sent, its body not read yet."""
    wire.send(_head_of(request) + request.body)
    wire.short()
    status, headers = _answered(wire)
    if status != 200:
        raise _problem(wire, status, headers, ours=request.ours)
    if packed(coding := headers.get("content-encoding", "")):
        raise Broken(
            f"expected an answer as it is from {wire.where}, came one that is compressed ({coding[:30]}); a proxy may "
            "do so"
        )
    return headers


def packed(coding: str) -> bool:
    """Whether an answer of this content-encoding is another than it is without."""
    return coding.strip().lower() not in ("", "identity")


def _head_of(request: Request) -> bytes:
    parts = urlsplit(request.url)
    target = parts.path or "/"
    if parts.query:
        target += f"?{parts.query}"
    lines = [
        f"{request.method} {target} HTTP/1.1",
        f"host: {parts.netloc.rpartition('@')[2]}",
        f"accept: {request.accept}",
    ]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    lines += ["accept-encoding: identity", "connection: close"]
    lines += [f"content-length: {len(request.body)}"] if request.body else []
    if any("\r" in line or "\n" in line for line in lines):
        raise Broken("a header of our own has a line break in it; a token or an address is not what it should be")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _answered(wire: Wire) -> tuple[int, dict[str, str]]:
    """Status and headers; informational answers before the real one are passed over."""
    for _ in range(_INTERIM_MAX + 1):
        first, *lines = wire.head().decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not (rest[:3].isascii() and rest[:3].isdigit()):
            raise Broken(f"{wire.where} does not speak HTTP/1.1: it said {first[:60]!r}")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if (status := int(rest[:3])) >= 200:
            return status, headers
    raise Broken(f"{wire.where} sent more than {_INTERIM_MAX} informational answers, and no other")


def _expect_stream(wire: Wire, headers: Mapping[str, str]) -> None:
    media = headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if media != ARROW:
        raise Broken(f"expected an Arrow stream from {wire.where}, came {media[:60] or 'no media type'}")
    if headers.get("transfer-encoding", "").lower() != "chunked":
        # a body that ends with the connection cannot be told from one that was cut
        raise Broken(f"expected a chunked stream from {wire.where}; a proxy between may have changed it")


def _problem(wire: Wire, status: int, headers: Mapping[str, str], *, ours: bool) -> HanseError:
    if 300 <= status < 400:
        return Broken(
            f"{wire.where} answers with a redirect ({status}); expected the stream itself at the address given"
        )
    try:
        problem = json.loads(_small(wire, headers, _PROBLEM_MAX))
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict):  # of a proxy, whose only hint is its header
        told = headers.get("retry-after", "")
        problem = {"retry_after": int(told)} if told.isascii() and told.isdecimal() and len(told) < 10 else {}
    return of_problem(status, problem, where=wire.where, ours=ours)


def _small(wire: Wire, headers: Mapping[str, str], most: int) -> bytes:
    """A small body, whole. Broken where it is larger than that. One that does not say where it ends does so with the
    connection, as of HTTP/1.0: what is cut in it is no JSON."""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return Body(wire).rest(most)
    if (length := headers.get("content-length")) is None:
        return _to_the_end(wire, most)
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 10 else 0
    if size > most:
        raise _too_large(wire, most)
    data = bytearray(size)
    view = memoryview(data)
    while len(view):
        if not (got := wire.into(view)):
            raise Unreachable(f"{wire.where} closed the connection in the middle of its answer")
        view = view[got:]
    return bytes(data)


def _to_the_end(wire: Wire, most: int) -> bytes:
    """Everything that comes on a connection, in the time for what is short."""
    data, part = bytearray(), memoryview(bytearray(_SCRATCH))
    while got := wire.into(part):
        data += part[:got]
        if len(data) > most:
            raise _too_large(wire, most)
    return bytes(data)


def _too_large(wire: Wire, most: int) -> Broken:
    return Broken(f"expected an answer of at most {most} bytes from {wire.where}, came a larger one")
