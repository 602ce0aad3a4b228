"""HTTP/1.1 client for streams: a request on its own socket, and its body as a file that Arrow reads without copies.

The kernel writes each chunk straight into memory that Arrow then uses. Chunk borders carry no meaning: a body with
other chunks is only slower. Knows nothing of tokens or of the content of the stream.
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
from hanse._transport.sockets import Plain, Tls, is_trust_renewed, load_trust, untrusted_error
from hanse.errors import BadInput, Broken, HanseError, Unreachable, error_from_problem
from hanse.retry import check_seconds

ARROW = "application/vnd.apache.arrow.stream"
_SCRATCH = 64 * 1024
_HEADERS_MAX = 64 * 1024
_CHUNK_MAX = 1 << 30  # far above any batch of a connector; checked before memory is allocated
TOGETHER_MAX = 16 * 2**20  # bytes of a chunk in one piece of memory: a small batch in it keeps all of the piece
_PROBLEM_MAX = 1 << 20
_LINE_MAX = 256
_TRAILERS_MAX = 100  # lines after the last chunk
_INTERIM_MAX = 10  # informational answers before the final one
_PORTS = {"http": 80, "https": 443}
_HUGE = 2 * 2**20  # bytes of a huge page

Memory: TypeAlias = "Callable[[int], pa.Buffer]"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One HTTP request. `idle_seconds`: the longest silence that is tolerated, at any point of the exchange.

    A reply that has begun and trickles counts as silent. Whatever is not a stream (the head of a reply, an error, a
    plan) must arrive whole in that time.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    idle_seconds: float = 60.0
    accept: str = ARROW
    ours: bool = False  # to the reader's own connector, whose errors are trusted

    def __post_init__(self) -> None:
        most = threading.TIMEOUT_MAX  # the longest wait of the system: 292 years
        if not 0 < check_seconds("idle_seconds", self.idle_seconds) <= most:
            raise BadInput(f"expected idle_seconds above 0 and at most {most:.0f}, got {self.idle_seconds}")

    @property
    def where(self) -> str:
        """Host and port, as shown in errors."""
        _, host, port = _address(self.url)
        return f"{host}:{port}"


class Wire:
    """A connected socket with a scratch buffer for the bytes before and between payloads."""

    def __init__(self, request: HttpRequest, waits: Waits | None = None) -> None:
        scheme, host, port = _address(request.url)
        self.where = request.where
        self._scratch = bytearray(_SCRATCH)
        self._view = memoryview(self._scratch)
        self._start = self._stop = 0
        self._seconds = request.idle_seconds  # until there is a socket that keeps it
        self._socket = self._translate_errors(lambda: _connect(scheme, host, port, request.idle_seconds, waits))

    def send(self, data: bytes) -> None:
        self._translate_errors(lambda: self._socket.sendall(data))

    def begin(self) -> None:
        """Start to read something that may take long to begin; once begun it must not trickle."""
        self._socket.begin()

    def begin_short(self) -> None:
        """Start to read something short: all of it until the next `begin` must arrive within the longest silence."""
        self._socket.begin_short()

    def set_silence(self, seconds: float) -> None:
        """Set the longest silence that is tolerated from now on."""
        self._seconds = seconds
        self._socket.set_silence(seconds)

    def read_line(self) -> bytes:
        """Read a line, without its CRLF. Raises: Broken if it is longer than a chunk's head may be."""
        return self._read_until(b"\r\n", _LINE_MAX)

    def read_head(self) -> bytes:
        """Read everything up to the empty line."""
        return self._read_until(b"\r\n\r\n", _HEADERS_MAX)

    def read_into(self, view: memoryview) -> int:
        """Read at least one byte into `view`, from the scratch buffer or straight from the socket; return 0 at the end.

        All of `view` must be on its way: a part of it may be waited for.
        """
        if buffered := min(self._stop - self._start, len(view)):
            view[:buffered] = self._view[self._start : self._start + buffered]
            self._start += buffered
            return buffered
        got: int = self._translate_errors(lambda: self._socket.receive(view, len(view)))
        return got

    def close(self) -> None:
        self._socket.close()

    def _read_until(self, mark: bytes, most: int) -> bytes:
        searched = self._start
        while (at := self._scratch.find(mark, searched, self._stop)) < 0:
            if self._stop - self._start >= most:
                raise Broken(f"{self.where} sent a head of more than {most} bytes; is it a connector?")
            searched = max(self._start, self._stop - len(mark) + 1)
            searched -= self._make_room()
            if not (got := self._translate_errors(lambda: self._socket.receive(self._view[self._stop :]))):
                raise Unreachable(f"{self.where} closed the connection in the middle of its answer")
            self._stop += got
        data = bytes(self._view[self._start : at])
        self._start = at + len(mark)
        return data

    def _make_room(self) -> int:
        """Move the buffered bytes to the front if the buffer is full; return how far they moved."""
        if self._stop < _SCRATCH:
            return 0
        moved = self._start
        self._scratch[: self._stop - moved] = self._scratch[moved : self._stop]
        self._start, self._stop = 0, self._stop - moved
        return moved

    def _translate_errors(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except TimeoutError:
            raise Unreachable(
                f"{self.where} sent nothing for too long, or next to nothing; it may be down or overloaded"
            ).after(self._seconds) from None
        except ssl.SSLCertVerificationError as error:
            raise untrusted_error(self.where, error) from error
        except ssl.SSLError as error:
            raise Unreachable(f"no trusted connection to {self.where}: {error.reason or error}") from error
        except OSError as error:
            why = f"{error.strerror or error}{_proxy_hint(error)}"
            raise Unreachable(f"no connection to {self.where}: {why}") from error


def _proxy_hint(error: OSError) -> str:
    """Return a hint for a host name that does not resolve, if the environment names a proxy."""
    names = [name for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY") for name in (name, name.lower())]
    if not isinstance(error, socket.gaierror) or not (proxies := [name for name in names if os.environ.get(name)]):
        return ""
    return f"; {proxies[0]} names a proxy, but plans and streams do not use proxies: connect to the owner directly"


def _address(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port of an address."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
        if parts.scheme in _PORTS and host.encode("idna"):  # the form that is resolved
            return parts.scheme, host, port
    except ValueError:  # malformed brackets, port or name
        pass
    raise Broken(f"expected an address http(s)://host/..., got {url[:200]!r}")


def _connect(scheme: str, host: str, port: int, seconds: float, waits: Waits | None) -> Plain | Tls:
    if scheme == "http":
        return _connect_plain(host, port, seconds, waits)
    before = load_trust()
    try:
        return _connect_tls(host, port, seconds, waits)
    except ssl.SSLCertVerificationError:
        if not is_trust_renewed(before):
            raise
        return _connect_tls(host, port, seconds, waits)


def _connect_plain(host: str, port: int, seconds: float, waits: Waits | None) -> Plain:
    connected = Plain(socket.create_connection((host, port), timeout=seconds), seconds)
    if waits is not None:
        waits.connected(connected)
    return connected


def _connect_tls(host: str, port: int, seconds: float, waits: Waits | None) -> Tls:
    plain = _connect_plain(host, port, seconds, waits)
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
        self._left = 0  # bytes of the chunk that are still on the wire
        self._chunk: pa.Buffer | None = None
        self._at = 0
        self._first = True
        self._memory: Memory = pa.allocate_buffer  # allocates memory for payloads
        self.ended = False  # the last chunk was read: the body is complete

    def read(self, size: int = -1) -> Any:
        """Read the next `size` bytes, fewer only at the end. Raises: Unreachable if the connection ends before the
        body."""
        if size < 0:
            raise ValueError("expected a number of bytes to read")
        if size > _CHUNK_MAX:
            raise Broken(f"expected an Arrow message of at most {_CHUNK_MAX} bytes, got {size}")
        held = 0 if self._chunk is None else self._chunk.size - self._at
        if held >= size and self._chunk is not None:
            part = self._chunk.slice(self._at, size)
            self._at += size
            return part
        self._wire.begin()
        if held == 0 and self._left == 0 and not self._next_chunk(begins=True):
            return b""
        if held == 0 and size <= self._left:
            return self._read_chunk(size)
        return self._read_across(size)

    def readable(self) -> bool:
        return True

    def set_silence(self, seconds: float) -> None:
        """Set the longest silence that is tolerated from now on."""
        self._wire.set_silence(seconds)

    def close(self) -> None:
        self._wire.close()
        self.closed = True

    def use_memory(self, memory: Memory) -> None:
        """Use memory from this allocator from now on, as `pa.allocate_buffer` returns it."""
        self._memory = memory

    def read_rest(self, most: int) -> bytes:
        """Read everything that is left of a small body, in the time for something short."""
        parts, came = [], 0
        while part := bytes(self._read_across(_SCRATCH)):
            parts.append(part)
            if (came := came + len(part)) > most:
                raise _too_large_error(self._wire, most)
        return b"".join(parts)

    def _read_chunk(self, size: int) -> Any:
        """Read the rest of the chunk into one piece of memory, and answer from it: the next message is there too."""
        length = self._left if self._left <= TOGETHER_MAX else size
        self._chunk = self._read_buffer(length)
        self._left, self._at = self._left - length, size
        return self._chunk.slice(0, size)

    def _read_across(self, size: int) -> Any:
        """Read `size` bytes across chunk borders, copied together."""
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

    def _read_buffer(self, size: int) -> pa.Buffer:
        buffer = self._memory(size)
        self._fill(memoryview(buffer).cast("B"))
        return buffer

    def _fill(self, view: memoryview) -> None:
        while len(view):
            got = self._wire.read_into(view)
            if not got:
                raise Unreachable(f"{self._wire.where} closed the connection in the middle of its stream")
            view = view[got:]

    def _next_chunk(self, *, begins: bool = False) -> bool:
        """Read the head of the next chunk; return False after the last one. `begins`: it starts a new wait."""
        if self.ended:
            return False
        if not self._first and self._wire.read_line():
            raise Broken(f"{self._wire.where} sent a chunk that is longer than it said")
        self._first = False
        if begins:  # the owner may have had nothing to send since the end of the last chunk
            self._wire.begin()
        text = self._wire.read_line().split(b";", 1)[0].strip()
        if not text or len(text) > 8 or text.strip(b"0123456789abcdefABCDEF"):
            raise Broken(f"{self._wire.where} sent {text[:20]!r} where the size of a chunk was expected")
        self._left = int(text, 16)
        if self._left > _CHUNK_MAX:
            raise Broken(f"{self._wire.where} sent a chunk of {self._left} bytes, more than {_CHUNK_MAX}")
        if self._left == 0:
            self._skip_trailers()
            self.ended = True
        return not self.ended

    def _skip_trailers(self) -> None:
        for _ in range(_TRAILERS_MAX):
            if not self._wire.read_line():
                return
        raise Broken(f"{self._wire.where} sent more than {_TRAILERS_MAX} lines after its last chunk")


def allocate_lasting(size: int) -> pa.Buffer:
    """Allocate memory for a result that lives long; each buffer is freed by itself.

    Large buffers use huge pages if the system has them: the kernel clears those in a sixth less time. Arrow's own pool
    would have several times their size cleared.
    """
    if size < _HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return pa.allocate_buffer(size, memory_pool=pa.system_memory_pool())
    piece = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        piece.madvise(mmap.MADV_HUGEPAGE)
    return pa.py_buffer(piece)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """Status, headers (names in lower case), and the body, not read yet. `renew`: called before each batch."""

    status: int
    headers: Mapping[str, str]
    body: Body
    renew: Callable[[], None] | None = None


def open_stream(request: HttpRequest, waits: Waits | None = None) -> HttpReply:
    """Send a request and read the head of its reply, an Arrow stream. Raises: the error of any other reply."""
    wire = Wire(request, waits)
    try:
        headers = _read_headers(wire, request)
        _expect_stream(wire, headers)
    except BaseException:
        wire.close()
        raise
    return HttpReply(200, headers, Body(wire))


def read_whole(request: HttpRequest, *, most: int) -> bytes:
    """Send a request and read the body of a small reply, at most `most` bytes. Raises: the error of any other reply."""
    wire = Wire(request)
    try:
        return _read_small(wire, _read_headers(wire, request), most)
    finally:
        wire.close()


def _read_headers(wire: Wire, request: HttpRequest) -> Mapping[str, str]:
    """Send a request and return the headers of a successful, uncompressed reply; its body is not read yet."""
    wire.send(_request_head(request) + request.body)
    wire.begin_short()
    status, headers = _read_status(wire)
    if status != 200:
        raise _problem_error(wire, status, headers, ours=request.ours)
    if is_compressed(coding := headers.get("content-encoding", "")):
        raise Broken(
            f"expected an uncompressed answer from {wire.where}, got {coding[:30]}; a proxy may have compressed it"
        )
    return headers


def is_compressed(coding: str) -> bool:
    """Return whether this content-encoding changes the body."""
    return coding.strip().lower() not in ("", "identity")


def _request_head(request: HttpRequest) -> bytes:
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
        raise Broken("expected headers without line breaks, got one in a token or an address; copy it again")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def _read_status(wire: Wire) -> tuple[int, dict[str, str]]:
    """Read status and headers; skip informational replies."""
    for _ in range(_INTERIM_MAX + 1):
        first, *lines = wire.read_head().decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not (rest[:3].isascii() and rest[:3].isdigit()):
            raise Broken(f"{wire.where} does not speak HTTP/1.1: it sent {first[:60]!r}")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if (status := int(rest[:3])) >= 200:
            return status, headers
    raise Broken(f"{wire.where} sent more than {_INTERIM_MAX} informational answers before the final one")


def _expect_stream(wire: Wire, headers: Mapping[str, str]) -> None:
    media = headers.get("content-type", "").split(";", 1)[0].strip().lower()
    if media != ARROW:
        raise Broken(f"expected an Arrow stream from {wire.where}, got {media[:60] or 'no media type'}")
    if headers.get("transfer-encoding", "").lower() != "chunked":
        # a body that ends with the connection cannot be told from a truncated one
        raise Broken(f"expected a chunked stream from {wire.where}; a proxy between may have changed it")


def _problem_error(wire: Wire, status: int, headers: Mapping[str, str], *, ours: bool) -> HanseError:
    if 300 <= status < 400:
        return Broken(
            f"{wire.where} answers with a redirect ({status}); expected the stream itself at the address given"
        )
    try:
        problem = json.loads(_read_small(wire, headers, _PROBLEM_MAX))
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict):  # from a proxy, whose only hint is its header
        delay = headers.get("retry-after", "")
        problem = {"retry_after": int(delay)} if delay.isascii() and delay.isdecimal() and len(delay) < 10 else {}
    return error_from_problem(status, problem, where=wire.where, ours=ours)


def _read_small(wire: Wire, headers: Mapping[str, str], most: int) -> bytes:
    """Read a small body. A body without a stated length ends with the connection, as in HTTP/1.0; if truncated it is
    not JSON.

    Raises:
        Broken: the body is larger than `most`.
    """
    if headers.get("transfer-encoding", "").lower() == "chunked":
        return Body(wire).read_rest(most)
    if (length := headers.get("content-length")) is None:
        return _read_to_end(wire, most)
    size = int(length) if length.isascii() and length.isdigit() and len(length) < 10 else 0
    if size > most:
        raise _too_large_error(wire, most)
    data = bytearray(size)
    view = memoryview(data)
    while len(view):
        if not (got := wire.read_into(view)):
            raise Unreachable(f"{wire.where} closed the connection in the middle of its answer")
        view = view[got:]
    return bytes(data)


def _read_to_end(wire: Wire, most: int) -> bytes:
    """Read until the connection ends, in the time for something short."""
    data, part = bytearray(), memoryview(bytearray(_SCRATCH))
    while got := wire.read_into(part):
        data += part[:got]
        if len(data) > most:
            raise _too_large_error(wire, most)
    return bytes(data)


def _too_large_error(wire: Wire, most: int) -> Broken:
    return Broken(f"expected an answer of at most {most} bytes from {wire.where}, got a larger one")
