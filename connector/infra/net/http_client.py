"""The one guarded client for calls to other people's servers. Knows no protocol.

A call is refused before a byte leaves unless (1) the scheme is https, or http where the operator allowed it and the
address is on the operator's list, (2) every address that the host resolves to is public or on that list, (3) the
connection is made to exactly the address that was checked: resolving, checking and connecting are one step inside the
pool's network backend, so a name that resolves differently a moment later (DNS rebinding) changes nothing. No
redirects are followed, no proxy from the environment is used; time and body are limited; compression is not asked for.
Each piece of a body (a chunk, or what came at once) costs the event loop more than its bytes do: pieces are counted,
too, and the loop is given back between them.
"""

from __future__ import annotations

import asyncio
import csv
import ipaddress
import json
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias, cast
from urllib.parse import SplitResult, urlsplit

import httpcore2

from connector import urls
from connector.errors import AddressPrivate, AddressRefused, NameUnknown, PeerNonsense, PeerUnreachable
from connector.infra.net import chunk_limit, pooled_connection
from connector.infra.net.resolver import Names

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# Python's `is_global` depends on its version and calls some of these blocks public, so the registries are data here.
_SPECIAL_PURPOSE = Path(__file__).parent / "special_purpose.csv"
# Outside the registries: the only unicast block of IPv6 that IANA has given out, and the multicast block of IPv4.
_IPV6_GIVEN_OUT = ipaddress.IPv6Network("2000::/3")
_IPV4_MULTICAST = ipaddress.IPv4Network("224.0.0.0/4")
_RESOLVED_MAX = 16
_CONNECTIONS_MAX = 512  # of a scheme: more than deliveries, pushes and DID documents may be at once, all together
# As much as the event loop takes from a socket at once: with the 64 KB of the library each of these is cut in four, and
# what is left of it copied each time.
httpcore2.AsyncHTTP11Connection.READ_NUM_BYTES = 2**18
# Of one line, of a head, of trailers: they are kept until they are whole, and read line by line.
httpcore2.AsyncHTTP11Connection.MAX_INCOMPLETE_EVENT_SIZE = 2**15
_PIECES_AT_ONCE = 16  # before others have their turn


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer, whole: status, headers with lower-case names, body within the limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """What the body says; ValueError (or RecursionError) where it is no JSON, or, of a success, has what nobody can
        store and send on: half a character, NUL, a number that is not finite. A refusal is words, and made harmless."""
        found = json.loads(self.body)
        if self.status != 200:
            return found
        again = json.dumps(found, ensure_ascii=False, allow_nan=False)
        again.encode()
        if "\\u0000" in again.replace("\\\\", ""):
            raise ValueError("expected texts without NUL")
        return found


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, by IANA's special-purpose registries.

    An IPv4-mapped address counts as the IPv4 address within. No other form that holds an IPv4 address is public
    (NAT64, 6to4, Teredo, IPv4-compatible): a private address could stand within.
    """
    plain = _unmapped(address)
    for block, globally_reachable in _special_blocks()[plain.version]:
        if plain in block and not globally_reachable:
            return False
        if plain in block:
            break
    return plain in _IPV6_GIVEN_OUT if plain.version == 6 else plain not in _IPV4_MULTICAST


def _unmapped(address: Address) -> Address:
    return getattr(address, "ipv4_mapped", None) or address


@cache
def _special_blocks() -> Mapping[int, Sequence[tuple[Network, bool]]]:
    """IANA's blocks by IP version, the most specific first, each with whether it is globally reachable."""
    lines = _SPECIAL_PURPOSE.read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    blocks = [(ipaddress.ip_network(row["block"]), row["globally_reachable"] == "True") for row in rows]
    blocks.sort(key=lambda entry: -entry[0].prefixlen)
    return {version: [entry for entry in blocks if entry[0].version == version] for version in (4, 6)}


class Guard:
    """Which addresses may be called. `allow` holds CIDR networks, addresses or host names of the operator's choice."""

    def __init__(self, *, allow: Sequence[str] = (), insecure_http: bool = False) -> None:
        self._networks: list[Network] = []
        self._hosts: set[str] = set()
        self._names = Names()
        self.insecure_http = insecure_http
        for entry in allow:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._hosts.add(entry.lower())

    def listed(self, host: str, address: Address) -> bool:
        """Whether the operator named this host or a network that holds this address."""
        plain = _unmapped(address)
        in_network = any(plain in network for network in self._networks if network.version == plain.version)
        return in_network or host.lower() in self._hosts

    async def pin(self, host: str, port: int, *, secure: bool) -> str:
        """Resolve `host` once and check every address; the address to connect to, or AddressRefused. What is refused
        wherever the host is, is so before anybody looks."""
        if not (secure or self.insecure_http):
            raise _expected_https(host)
        addresses = await self._resolve(host, port)
        for address in addresses:
            self._check(host, address, secure=secure)
        return str(addresses[0])

    async def check(self, url: str) -> None:
        """Nothing where this URL could be called; AddressRefused, or PeerUnreachable for a name that is not found."""
        parts = parts_of(url)
        secure = parts.scheme == "https"
        await self.pin(parts.hostname or "", parts.port or (443 if secure else 80), secure=secure)

    async def _resolve(self, host: str, port: int) -> list[Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        try:
            found = await self._names.addresses(host, port)
        except UnicodeError:
            raise AddressRefused(f"expected a host name, came {host[:200]!r}, which can be none") from None
        except OSError as error:
            if getattr(error, "errno", None) == socket.EAI_AGAIN:
                raise PeerUnreachable(f"no name server can say now where {host} is; try again later") from error
            raise NameUnknown(f"the host name {host} does not resolve; check the address") from error
        addresses = [ipaddress.ip_address(entry) for entry in found][:_RESOLVED_MAX]
        if not addresses:
            raise NameUnknown(f"the host name {host} does not resolve; check the address")
        return addresses

    def _check(self, host: str, address: Address, *, secure: bool) -> None:
        listed = self.listed(host, address)
        if not listed and not is_public(address):
            raise AddressPrivate(
                f"{host} is at the private address {address}, which is not called unless the operator lists it in "
                "HANSE_ALLOW_PRIVATE"
            )
        if not secure and not (listed and self.insecure_http):
            raise _expected_https(host)


def _expected_https(host: str) -> AddressRefused:
    return AddressRefused(
        f"expected https for {host}; plain http is only for addresses in HANSE_ALLOW_PRIVATE with "
        "HANSE_INSECURE_HTTP=true"
    )


def parts_of(url: str) -> SplitResult:
    """The parts of an http(s) URL that can be called, wherever it is; AddressRefused says what is wrong with it."""
    try:
        return urls.read_url(url)
    except ValueError as error:
        raise AddressRefused(str(error)) from None


class _GuardedBackend(httpcore2.AsyncNetworkBackend):
    """Connects only to an address that the guard has just checked."""

    def __init__(self, guard: Guard, *, secure: bool) -> None:
        self._guard = guard
        self._secure = secure

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109  # the pool's interface
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        address = await self._guard.pin(host, port, secure=self._secure)
        return await pooled_connection.connect(address, port, timeout)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


_FAILED = (
    httpcore2.NetworkError,
    httpcore2.TimeoutException,
    httpcore2.ProtocolError,
    httpcore2.UnsupportedProtocol,
)


class Net:
    """Calls to other people's servers, guarded. One per process; `close()` at the end."""

    def __init__(self, guard: Guard, *, timeout: float, max_bytes: int, tls: ssl.SSLContext | None = None) -> None:
        self.guard = guard
        self.max_bytes = max_bytes
        self._timeout = timeout
        self._pools = {
            scheme: httpcore2.AsyncConnectionPool(
                ssl_context=tls or ssl.create_default_context(),
                max_connections=_CONNECTIONS_MAX,
                max_keepalive_connections=40,
                keepalive_expiry=30.0,
                network_backend=_GuardedBackend(guard, secure=scheme == "https"),
            )
            for scheme in ("https", "http")
        }

    async def close(self) -> None:
        for pool in self._pools.values():
            await pool.aclose()

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int | None = None,
    ) -> Reply:
        """One exchange, whole. PeerUnreachable for no answer in time, PeerNonsense for one over the limit."""
        limit = self.max_bytes if max_bytes is None else max_bytes
        try:
            async with (
                asyncio.timeout(self._timeout),
                self.stream(method, url, headers=headers, body=body) as answer,
            ):
                held = await answer.beginning(limit)
                if len(held) > limit:
                    raise PeerNonsense(f"the answer of {origin(url)} is larger than {limit} bytes; not read")
                return Reply(answer.status, answer.headers, held)
        except TimeoutError as error:
            raise PeerUnreachable(f"no whole answer from {origin(url)} within {self._timeout:g} s") from error

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | AsyncIterator[bytes | memoryview] | None = None,
        seconds: float | None = None,
        taking: float | None = None,
    ) -> AsyncIterator[Answer]:
        """An exchange whose body the caller reads piece by piece; each piece has the time limit, not the whole.

        `seconds` to wait for a piece, where the other side works for it (a query); connecting keeps the usual limit.
        `taking`: seconds for the other side to take a piece of `body`; PeerUnreachable, `client_stalled`, after them.
        """
        parts = parts_of(url)
        limits = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)
        limits["read"], limits["write"] = seconds or self._timeout, taking or self._timeout
        all_headers = {"Host": parts.netloc, "Accept-Encoding": "identity", **_framing(body), **(headers or {})}
        content = cast("bytes | AsyncIterator[bytes] | None", body)  # the library joins whatever lies in memory
        request = httpcore2.Request(
            method, url, headers=list(all_headers.items()), content=content, extensions={"timeout": limits}
        )
        try:
            response = await self._pools[parts.scheme].handle_async_request(request)
            _let_body_come(response)
            try:
                yield Answer(response, at=origin(url))
            finally:
                await response.aclose()
        except pooled_connection.HeadTooLong as error:
            raise PeerNonsense(f"{origin(url)} does not come to its answer: {error}") from error
        except httpcore2.WriteTimeout as error:
            said = f"{origin(url)} took next to nothing of what it is sent for {limits['write']:g} s"
            raise PeerUnreachable(said, code="client_stalled" if taking else None) from error
        except _FAILED as error:
            raise PeerUnreachable(f"{origin(url)} {_why(error)}") from error


def _why(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return f"cannot be reached ({type(error).__name__}); check that it runs and the address is right"
    said = getattr(cause, "verify_message", "") or cause.reason or "no TLS there"
    return f"answers, and is not trusted ({said}); check its certificate, and SSL_CERT_FILE for authorities of your own"


def _let_body_come(response: httpcore2.Response) -> None:
    connection = response.extensions["network_stream"]
    if isinstance(
        connection, pooled_connection.Stream
    ):  # another one where the protocol is switched, which we never ask for
        connection.answered()


def _framing(body: bytes | AsyncIterator[bytes | memoryview] | None) -> dict[str, str]:
    if body is None:
        return {}
    return {"Content-Length": str(len(body))} if isinstance(body, bytes) else {"Transfer-Encoding": "chunked"}


class Answer:
    """An answer whose body is still on the wire: `status`, `headers` (lower-case names), `pieces()`."""

    def __init__(self, response: httpcore2.Response, *, at: str = "the peer") -> None:
        self._response = response
        self._at = at
        self.status = response.status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives; PeerNonsense for one in so many crumbs that reading it would cost more than it is.
        The connection is dropped when the caller stops early."""
        count = size = 0
        async for piece in self._response.aiter_stream():
            count, size = count + 1, size + len(piece)
            if chunk_limit.too_many(count, size):
                raise PeerNonsense(
                    f"{self._at} sends its answer in pieces of a few bytes ({count} for {size}), and is not heard to "
                    f"the end; beyond {chunk_limit.ANY} expected {chunk_limit.LEAST} bytes each on average: "
                    "send more at once"
                )
            if not count % _PIECES_AT_ONCE:
                await asyncio.sleep(0)
            yield piece

    async def beginning(self, most: int) -> bytes:
        """The body; of one that is longer than `most` bytes, so much that it shows, and the rest is not read."""
        held = bytearray()
        async for piece in self.pieces():
            held += piece
            if len(held) > most:
                break
        return bytes(held)


def fits_header(value: str) -> bool:
    """Whether a header can carry this: printable ASCII."""
    return value.isascii() and value.isprintable()


def origin(url: str) -> str:
    """Scheme, host and port of a URL, for messages and records: paths and queries may hold secrets."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")
