"""The guarded client: which addresses are never called, and what a hostile server cannot do to us."""

from __future__ import annotations

import asyncio
import csv
import ipaddress
import random
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from connector.errors import AddressPrivate, AddressRefused, ConnectorError, NameUnknown, PeerNonsense, PeerUnreachable
from connector.infra.net import http_client, resolver
from connector.infra.net.http_client import AddressGuard, HttpClient, is_public
from tests.support.certificates import self_signed, server_side
from tests.support.own_name import changed

PRIVATE = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "127.8.8.8", "169.254.169.254", "172.16.0.1", "192.0.0.1",
    "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "203.0.113.1", "224.0.0.1", "239.255.255.250",
    "240.0.0.1", "255.255.255.255", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
    "::10.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b:1::a00:1", "2001:db8::1", "2002:7f00:1::",
    "fc00::1", "fe80::1", "fec0::1", "ff02::1", "ff0e::1", "5f00::1", "3fff::1", "3fff:fff::1", "100:0:0:1::1",
    "192.0.0.8", "192.0.0.11", "192.0.0.170", "192.0.0.255", "::ffff:192.0.0.8", "64:ff9b::8.8.8.8", "64:ff9b:1::1",
    "2002:808:808::1", "2001::1", "2001:0:808:808::1", "4000::1", "1fff::1", "fbff::1", "fe80::1%eth0",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "192.0.0.9", "192.0.0.10", "::ffff:192.0.0.9",
    "192.0.1.0", "223.255.255.255", "100.63.255.255", "100.128.0.0", "2001:1::1", "2001:200::1", "2003::1",
    "3ffe:ffff::1", "3fff:1000::1",
]  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE)
def test_addresses_of_nobody_on_the_internet_are_not_public(text: str) -> None:
    assert not is_public(ipaddress.ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_addresses_of_the_internet_are_public(text: str) -> None:
    assert is_public(ipaddress.ip_address(text))


REGISTRY = [
    (ipaddress.ip_network(row["block"]), row["globally_reachable"])
    for row in csv.DictReader(
        line
        for line in (Path(http_client.__file__).parent / "special_purpose.csv").read_text("utf-8").splitlines()
        if not line.startswith("#")
    )
]


def expected_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """A second reading of the registries: every block that holds the address, and the smallest of them decides."""
    if isinstance(address, ipaddress.IPv6Address) and int(address) >> 32 == 0xFFFF:
        return expected_of(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    around = [(block.num_addresses, said) for block, said in REGISTRY if address in block]
    unicast = int(address) >> 125 == 1 if address.version == 6 else int(address) >> 28 != 14
    return unicast and (not around or min(around)[1] == "True")


@pytest.mark.parametrize("block", [block for block, _ in REGISTRY], ids=str)
def test_the_edges_of_every_special_block_are_as_the_registry_says(
    block: ipaddress.IPv4Network | ipaddress.IPv6Network,
) -> None:
    first, last = int(block[0]), int(block[-1])
    for number in {first - 1, first, (first + last) // 2, last, last + 1}:
        if 0 <= number < 2**block.max_prefixlen:
            address = type(block[0])(number)
            assert is_public(address) == expected_of(address), address


def test_the_registries_are_whole_and_plain() -> None:
    assert {said for _, said in REGISTRY} == {"True", "False"}
    assert len({block for block, _ in REGISTRY}) == len(REGISTRY)
    assert {block.version for block, _ in REGISTRY} == {4, 6}


@pytest.mark.parametrize("bits", [32, 128])
def test_any_address_is_public_as_the_registry_says(bits: int) -> None:
    chance, kind = random.Random(bits), ipaddress.IPv4Address if bits == 32 else ipaddress.IPv6Address
    for _ in range(2_000):
        address = kind(chance.getrandbits(bits))
        assert is_public(address) == expected_of(address), address


@pytest.mark.hostile
@pytest.mark.parametrize("text", PRIVATE)
async def test_an_address_that_is_not_public_is_never_pinned(text: str) -> None:
    with pytest.raises(AddressPrivate):
        await AddressGuard().pin(text, 443, secure=True)


@pytest.mark.hostile
@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]"]
)
async def test_every_spelling_of_loopback_is_refused_before_a_byte_leaves(host: str) -> None:
    net = HttpClient(AddressGuard(), timeout=60, max_bytes=1000)
    try:
        with pytest.raises((AddressRefused, PeerUnreachable)) as caught:
            await net.call("GET", f"https://{host}:9/")
        assert isinstance(caught.value, AddressRefused) or "resolve" in caught.value.message
    finally:
        await net.close()


@pytest.mark.parametrize(
    "url",
    ["ftp://example.org/", "file:///etc/passwd", "//example.org", "example.org", "http://", "https://user:pw@example.org/",
     "https://[::1/", "https://example.org:port/", "https://example.org:99999/", "https://example.org:0/",
     f"https://{'a' * 64}.example/", "https://a..example/",
     "gopher://127.0.0.1:70/", "javascript:alert(1)", "https://example.org/ä", "https://ä.example.org/"],
)  # fmt: skip
async def test_anything_but_a_plain_http_url_is_refused(url: str) -> None:
    net = HttpClient(AddressGuard(), timeout=60, max_bytes=1000)
    with pytest.raises(AddressRefused):
        await net.call("GET", url)
    await net.close()


async def test_plain_http_is_refused_for_public_addresses_even_where_it_is_allowed() -> None:
    guard = AddressGuard(allow=["127.0.0.0/8"], insecure_http=True)
    with pytest.raises(AddressRefused, match="https"):
        await guard.pin("8.8.8.8", 80, secure=False)


@pytest.mark.hostile
async def test_a_name_that_resolves_to_one_private_address_among_public_ones_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        kinds = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kinds, ("8.8.8.8", 443)), (*kinds, ("10.0.0.1", 443))]

    monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=resolve))
    with pytest.raises(AddressRefused, match=r"10\.0\.0\.1"):
        await AddressGuard().pin("rebind.example", 443, secure=True)


@pytest.mark.parametrize(
    ("said", "kind"), [(socket.EAI_NONAME, NameUnknown), (socket.EAI_AGAIN, PeerUnreachable)], ids=["no", "later"]
)
async def test_a_name_that_no_server_knows_is_told_from_servers_that_do_not_know_now(
    monkeypatch: pytest.MonkeyPatch, said: int, kind: type[ConnectorError]
) -> None:
    def resolve(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(said, "as it says")

    monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=resolve))
    with pytest.raises(PeerUnreachable) as caught:
        await AddressGuard().pin("them.example", 443, secure=True)
    assert type(caught.value) is kind


async def test_the_address_that_was_checked_is_the_one_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: the second answer of the resolver is never asked for."""
    answers = [[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0))]]

    def resolve(*_: object, **__: object) -> list[object]:
        return answers.pop(0)  # a second look-up would fail with IndexError

    async with server(reply(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), host="127.0.0.2") as port:
        monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=resolve))
        net = HttpClient(AddressGuard(allow=["127.0.0.2"], insecure_http=True), timeout=60, max_bytes=1000)
        assert (await net.call("GET", f"http://peer.example:{port}/")).body == b"ok"
        await net.close()
    assert answers == []


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def reply(data: bytes, *, linger: float = 0.0) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        await writer.drain()
        if linger:
            await asyncio.sleep(linger)
        writer.close()

    return handle


class server:  # noqa: N801  # reads as `async with server(...)`
    def __init__(self, handler: Handler, host: str = "127.0.0.1") -> None:
        self._handler, self._host = handler, host

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._handler, self._host, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    async def __aexit__(self, *_: object) -> None:
        self._server.close()


@pytest.fixture
async def net() -> AsyncIterator[HttpClient]:
    made = HttpClient(AddressGuard(allow=["127.0.0.0/8"], insecure_http=True), timeout=60, max_bytes=10_000)
    yield made
    await made.close()


@pytest.fixture
async def hasty() -> AsyncIterator[HttpClient]:
    """One that waits for half a second."""
    made = HttpClient(AddressGuard(allow=["127.0.0.0/8"], insecure_http=True), timeout=0.5, max_bytes=10_000)
    yield made
    await made.close()


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunks(size: int, many: int) -> bytes:
    return (b"%x\r\n" % size + b"x" * size + b"\r\n") * many


HOSTILE: dict[str, tuple[bytes, type[ConnectorError]]] = {
    "more bytes than the limit": (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 20_000, PeerNonsense),
    "a length that is not there": (b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nshort", PeerUnreachable),
    "no protocol at all": (b"\x00\x01\x02 hello\r\n\r\n", PeerUnreachable),
    "endless headers": (b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 50_000, PeerNonsense),
    "an endless header": (b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 100_000, PeerUnreachable),
    "interim answers without an end": (b"HTTP/1.1 103 \r\n\r\n" * 50_000, PeerNonsense),
    "a body in crumbs": (CHUNKED + chunks(1, 5_000), PeerNonsense),
    "crumbs behind a large piece": (CHUNKED + chunks(5_000, 1) + chunks(1, 2_000), PeerNonsense),
    "very many trailers": (CHUNKED + b"0\r\n" + b"a: b\r\n" * 15_000 + b"\r\n", PeerUnreachable),
    "nothing": (b"", PeerUnreachable),
}


async def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 no TLS here\r\n")
    await writer.drain()


async def test_who_cannot_be_trusted_is_told_from_who_does_not_answer(tmp_path: Path) -> None:
    certificate = server_side(self_signed(tmp_path / "peer.pem"))
    here = ssl.create_default_context(cafile=str(tmp_path / "peer.pem"))
    served = await asyncio.start_server(reply(b""), "127.0.0.1", 0, ssl=certificate)
    port = served.sockets[0].getsockname()[1]
    async with served, server(hello) as plain:
        for host, at, tls, said in (
            ("127.0.0.1", port, None, "self-signed certificate"),
            ("localhost", port, here, "Hostname mismatch"),
            ("127.0.0.1", plain, None, "not trusted"),
            ("127.0.0.1", 1, None, "check that it runs"),
        ):
            net = HttpClient(AddressGuard(allow=["127.0.0.0/8", "localhost"]), timeout=60, max_bytes=1000, tls=tls)
            with pytest.raises(PeerUnreachable, match=said):
                await net.call("GET", f"https://{host}:{at}/")
            await net.close()


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_answer_is_a_typed_error(net: HttpClient, name: str) -> None:
    data, expected = HOSTILE[name]
    async with server(reply(data)) as port:
        with pytest.raises(expected):
            await net.call("GET", f"http://127.0.0.1:{port}/")


async def test_a_body_is_whole_where_its_pieces_are_few_or_not_that_small() -> None:
    data = CHUNKED + chunks(1, 1_024) + chunks(300, 5_000) + b"0\r\n\r\n"
    net = HttpClient(AddressGuard(allow=["127.0.0.0/8"], insecure_http=True), timeout=60, max_bytes=2**22)
    async with server(reply(data)) as port:
        assert len((await net.call("GET", f"http://127.0.0.1:{port}/")).body) == 1_024 + 300 * 5_000
    await net.close()


async def test_others_have_their_turn_between_the_pieces_of_a_body(net: HttpClient) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with (
        server(reply(CHUNKED + chunks(10, 900) + b"0\r\n\r\n")) as port,
        net.stream("GET", f"http://127.0.0.1:{port}/") as answer,
    ):
        await asyncio.sleep(0.2)  # all of it has come
        waiting = asyncio.ensure_future(others())
        assert len([piece async for piece in answer.pieces()]) >= 900
        waiting.cancel()
        assert turns >= 900 // 16


async def test_what_comes_before_an_answer_and_after_its_body_keeps_nobody_waiting(net: HttpClient) -> None:
    longest = 0.0

    async def look(at: float) -> None:
        nonlocal longest
        while True:
            await asyncio.sleep(0.001)
            longest, at = max(longest, time.thread_time() - at), time.thread_time()

    waiting = asyncio.ensure_future(look(time.thread_time()))
    for name in ("interim answers without an end", "very many trailers"):
        async with server(reply(HOSTILE[name][0])) as port:
            with pytest.raises(ConnectorError):
                await net.call("GET", f"http://127.0.0.1:{port}/")
    waiting.cancel()
    assert longest < 0.1, f"the loop stood still for {longest:.3f} s of processor time"


async def test_a_server_that_never_answers_ends_in_the_time_limit(hasty: HttpClient) -> None:
    async with server(reply(b"", linger=60)) as port:
        with pytest.raises(PeerUnreachable):
            await hasty.call("GET", f"http://127.0.0.1:{port}/")


async def test_a_server_that_drips_bytes_ends_in_the_time_limit_of_the_whole_call(hasty: HttpClient) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.05)

    async with server(drip) as port:
        with pytest.raises(PeerUnreachable, match="within"):
            await hasty.call("GET", f"http://127.0.0.1:{port}/")


async def test_a_redirect_is_an_answer_and_is_not_followed(net: HttpClient) -> None:
    data = b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/\r\nContent-Length: 0\r\n\r\n"
    async with server(reply(data)) as port:
        assert (await net.call("GET", f"http://127.0.0.1:{port}/")).status == 302


async def test_a_message_names_the_server_and_never_the_path(net: HttpClient) -> None:
    with pytest.raises(PeerUnreachable) as caught:
        await net.call("GET", "http://127.0.0.1:9/secret?token=abc")
    assert "127.0.0.1:9" in caught.value.message
    assert "secret" not in caught.value.message
