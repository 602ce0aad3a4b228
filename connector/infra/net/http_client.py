"""The only HTTP client for other organisations' servers, with a guard against server-side request forgery (SSRF).

A call is refused before a byte is sent unless (1) the scheme is https, or the operator allowed http for the address,
(2) every address of the host is public or on the operator's list, and (3) the connection goes to the address that was
checked. Resolving, checking and connecting are a single step inside the pool's network backend, so a name that resolves
differently a moment later (DNS rebinding) changes nothing. Redirects are not followed, proxies from the environment are
not used, time and body size are limited, and compression is not requested. The number of pieces of a body is limited
too, and the event loop continues between them. Knows no protocol above HTTP.
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
from connector.infra.net import pooled_connection
from connector.infra.net.resolver import NameResolver

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

# IANA's registries: Python's `is_global` depends on its version and calls some of these blocks public.
_SPECIAL_PURPOSE = Path(__file__).parent / "special_purpose.csv"
# Outside the registries: the only IPv6 unicast block that IANA has allocated, and the IPv4 multicast block.
_IPV6_ALLOCATED = ipaddress.IPv6Network("2000::/3")
_IPV4_MULTICAST = ipaddress.IPv4Network("224.0.0.0/4")
_RESOLVED_MAX = 16
_CONNECTIONS_MAX = 512  # per scheme: more than all deliveries, pushes and DID documents at once
# Limit on a line, a head, or trailers: the library keeps them until they are complete.
httpcore2.AsyncHTTP11Connection.MAX_INCOMPLETE_EVENT_SIZE = 2**15
_PIECES_AT_ONCE = 16  # of a body, read before the event loop continues
_PIECES_MAX, _PIECE_BYTES = 1024, 256  # pieces that any body may have; bytes per further piece, on average


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete response: status, headers with lower-case names, body within the limit."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON.

        Raises: ValueError or RecursionError for invalid JSON. With status 200 also for values that cannot be stored:
        lone surrogates, NUL, numbers that are not finite. Errors from peers are sanitized elsewhere.
        """
        value = json.loads(self.body)
        if self.status != 200:
            return value
        again = json.dumps(value, ensure_ascii=False, allow_nan=False)
        again.encode()
        if "\\u0000" in again.replace("\\\\", ""):
            raise ValueError("expected texts without NUL")
        return value


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, by IANA's special-purpose registries.

    An IPv4-mapped address counts as its IPv4 address. Other forms that embed an IPv4 address (NAT64, 6to4, Teredo,
    IPv4-compatible) are not public, as the embedded address could be private.
    """
    plain = _unmapped(address)
    for block, globally_reachable in _special_blocks()[plain.version]:
        if plain in block and not globally_reachable:
            return False
        if plain in block:
            break
    return plain in _IPV6_ALLOCATED if plain.version == 6 else plain not in _IPV4_MULTICAST


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


class AddressGuard:
    """Decides which addresses may be called. `allow` lists the operator's CIDR networks, addresses and host names."""

    def __init__(self, *, allow: Sequence[str] = (), insecure_http: bool = False) -> None:
        self._networks: list[Network] = []
        self._hosts: set[str] = set()
        self._names = NameResolver()
        self.insecure_http = insecure_http
        for entry in allow:
            try:
                self._networks.append(ipaddress.ip_network(entry, strict=False))
            except ValueError:
                self._hosts.add(entry.lower())

    def is_listed(self, host: str, address: Address) -> bool:
        """Whether the operator listed this host, or a network that contains this address."""
        plain = _unmapped(address)
        in_network = any(plain in network for network in self._networks if network.version == plain.version)
        return in_network or host.lower() in self._hosts

    async def pin(self, host: str, port: int, *, secure: bool) -> str:
        """Resolve `host` once, check every address, and return the address to connect to.

        Raises: AddressRefused, before the name is looked up if no address could be allowed; PeerUnreachable.
        """
        if not (secure or self.insecure_http):
            raise _expected_https(host)
        addresses = await self._resolve(host, port)
        for address in addresses:
            self._check(host, address, secure=secure)
        return str(addresses[0])

    async def check(self, url: str) -> None:
        """Check that a URL may be called. Raises: AddressRefused; PeerUnreachable if the name does not resolve."""
        parts = split_url(url)
        secure = parts.scheme == "https"
        await self.pin(parts.hostname or "", parts.port or (443 if secure else 80), secure=secure)

    async def _resolve(self, host: str, port: int) -> list[Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            pass
        try:
            entries = await self._names.addresses(host, port)
        except UnicodeError:
            raise AddressRefused(f"expected a host name, got {host[:200]!r}; check the address") from None
        except OSError as error:
            if getattr(error, "errno", None) == socket.EAI_AGAIN:
                raise PeerUnreachable(
                    f"the name servers cannot resolve {host} at the moment; try again later"
                ) from error
            raise NameUnknown(f"the host name {host} does not resolve; check the address") from error
        addresses = [ipaddress.ip_address(entry) for entry in entries][:_RESOLVED_MAX]
        if not addresses:
            raise NameUnknown(f"the host name {host} does not resolve; check the address")
        return addresses

    def _check(self, host: str, address: Address, *, secure: bool) -> None:
        listed = self.is_listed(host, address)
        if not listed and not is_public(address):
            raise AddressPrivate(
                f"{host} has the private address {address}, which is only called if the operator lists it in "
                "HANSE_ALLOW_PRIVATE"
            )
        if not secure and not (listed and self.insecure_http):
            raise _expected_https(host)


def _expected_https(host: str) -> AddressRefused:
    return AddressRefused(
        f"expected https for {host}; plain http is only for addresses in HANSE_ALLOW_PRIVATE with "
        "HANSE_INSECURE_HTTP=true"
    )


def split_url(url: str) -> SplitResult:
    """Split an http(s) URL that has the form of a callable address. Raises: AddressRefused."""
    try:
        return urls.read_url(url)
    except ValueError as error:
        raise AddressRefused(str(error)) from None


class _GuardedBackend(httpcore2.AsyncNetworkBackend):
    """A network backend that connects only to addresses that the guard has just checked."""

    def __init__(self, guard: AddressGuard, *, secure: bool) -> None:
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


class HttpClient:
    """Guarded calls to other organisations' servers. A process has a single client; `close` it at the end."""

    def __init__(
        self, guard: AddressGuard, *, timeout: float, max_bytes: int, tls: ssl.SSLContext | None = None
    ) -> None:
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
        """Close all pooled connections."""
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
        """Send a request and read the whole response, of at most `max_bytes` bytes.

        Raises: AddressRefused; PeerUnreachable without a response in time; PeerNonsense for one over the limit.
        """
        limit = self.max_bytes if max_bytes is None else max_bytes
        try:
            async with (
                asyncio.timeout(self._timeout),
                self.stream(method, url, headers=headers, body=body) as answer,
            ):
                content = await answer.read_up_to(limit)
                if len(content) > limit:
                    raise PeerNonsense(f"expected at most {limit} bytes from {origin(url)}, got more; stopped reading")
                return Reply(answer.status, answer.headers, content)
        except TimeoutError as error:
            raise PeerUnreachable(
                f"expected a whole response from {origin(url)} within {self._timeout:g} s; try again later"
            ) from error

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
    ) -> AsyncIterator[StreamedReply]:
        """Send a request and let the caller read the response piece by piece; time is limited per piece.

        `seconds`: the limit for a piece if the peer has to compute it (a query); connecting keeps the usual limit.
        `taking`: seconds for the peer to accept a piece of `body`; then PeerUnreachable with code `client_stalled`.
        Raises: AddressRefused, PeerUnreachable, PeerNonsense.
        """
        parts = split_url(url)
        limits = dict.fromkeys(("connect", "read", "write", "pool"), self._timeout)
        limits["read"], limits["write"] = seconds or self._timeout, taking or self._timeout
        all_headers = {"Host": parts.netloc, "Accept-Encoding": "identity", **_framing(body), **(headers or {})}
        content = cast("bytes | AsyncIterator[bytes] | None", body)  # the library accepts any buffer
        request = httpcore2.Request(
            method, url, headers=list(all_headers.items()), content=content, extensions={"timeout": limits}
        )
        try:
            response = await self._pools[parts.scheme].handle_async_request(request)
            _begin_body(response)
            try:
                yield StreamedReply(response, at=origin(url))
            finally:
                await response.aclose()
        except pooled_connection.HeadTooLong as error:
            raise PeerNonsense(f"{origin(url)} sent no complete response head: {error}") from error
        except httpcore2.WriteTimeout as error:
            stalled = f"{origin(url)} accepted almost no data for {limits['write']:g} s"
            raise PeerUnreachable(stalled, code="client_stalled" if taking else None) from error
        except _FAILED as error:
            raise PeerUnreachable(f"{origin(url)} {_describe_failure(error)}") from error


def _describe_failure(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ssl.SSLError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        return f"cannot be reached ({type(error).__name__}); check that it runs and the address is right"
    reason = getattr(cause, "verify_message", "") or cause.reason or "no TLS there"
    return f"answers, and is not trusted ({reason}); check its certificate, and SSL_CERT_FILE for your own authorities"


def _begin_body(response: httpcore2.Response) -> None:
    connection = response.extensions["network_stream"]
    if isinstance(connection, pooled_connection.PooledConnection):  # always: we never ask to switch protocols
        connection.begin_body()


def _framing(body: bytes | AsyncIterator[bytes | memoryview] | None) -> dict[str, str]:
    if body is None:
        return {}
    return {"Content-Length": str(len(body))} if isinstance(body, bytes) else {"Transfer-Encoding": "chunked"}


class StreamedReply:
    """A response whose body is read piece by piece: `status`, `headers` (lower-case names), `pieces()`."""

    def __init__(self, response: httpcore2.Response, *, at: str = "the peer") -> None:
        self._response = response
        self._at = at
        self.status = response.status
        self.headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}

    async def pieces(self) -> AsyncIterator[bytes]:
        """The body as it arrives. A caller that stops early drops the connection.

        Raises: PeerNonsense if the body comes in too many small pieces.
        """
        count = size = 0
        async for piece in self._response.aiter_stream():
            count, size = count + 1, size + len(piece)
            if count > _PIECES_MAX + size // _PIECE_BYTES:
                raise PeerNonsense(
                    f"expected at least {_PIECE_BYTES} bytes a piece beyond {_PIECES_MAX} pieces, got {count} "
                    f"pieces for {size} bytes from {self._at}; stopped reading: its server should send more at once"
                )
            if not count % _PIECES_AT_ONCE:
                await asyncio.sleep(0)
            yield piece

    async def read_up_to(self, most: int) -> bytes:
        """The body; if it is longer than `most` bytes, a beginning that is longer than `most`."""
        content = bytearray()
        async for piece in self.pieces():
            content += piece
            if len(content) > most:
                break
        return bytes(content)


def fits_header(value: str) -> bool:
    """Whether a header can hold this value: printable ASCII."""
    return value.isascii() and value.isprintable()


def origin(url: str) -> str:
    """Scheme, host and port of a URL, for messages and logs: paths and queries may hold secrets."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "an invalid address"
    return f"{parts.scheme}://{parts.hostname}" + (f":{port}" if port else "")
