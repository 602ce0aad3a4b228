"""Data from the endpoint of another kind of connector: as it is, within its limit, and recorded."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from connector.dataplane import foreign_fetch
from connector.dataplane.data_address import PATH
from connector.dataplane.foreign_fetch import FetchHead, FetchSource, ForeignFetches
from connector.errors import AddressRefused, ConnectorError, Invalid, PeerFailed, PeerNonsense, PeerRefused, Unavailable
from connector.events import Event
from connector.infra.http.media_type import OCTETS
from connector.infra.net.http_client import AddressGuard, HttpClient
from connector.store import Store
from connector.store.tables import Transfer
from tests.support import migrated

ROWS = b"id,value\n1,a\n2,b\n"
TOKEN = "secret"
Answer = Callable[[dict[str, str]], bytes]


def plain(status: int, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} X", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "connection: close", "", ""]).encode() + body


def sized(status: int, body: bytes, **headers: str) -> bytes:
    return plain(status, body, content_length=str(len(body)), **headers)


def chunked(body: bytes, *, ended: bool = True) -> bytes:
    piece = f"{len(body):x}\r\n".encode() + body + b"\r\n"
    return plain(200, piece + (b"0\r\n\r\n" if ended else b""), transfer_encoding="chunked", content_type="text/csv")


@asynccontextmanager
async def serving(answer: Answer, seen: list[str] | None = None) -> AsyncIterator[str]:
    """An owner's endpoint; its address. `seen` gets the Authorization header of each request."""

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[1:-2]
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        if seen is not None:
            seen.append(headers.get("authorization", ""))
        writer.write(answer(headers))
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(respond, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/public"


class Reader:
    """A connector that fetches."""

    def __init__(self, store: Store, net: HttpClient, events: list[Event]) -> None:
        self.fetches = ForeignFetches(store, net, most=1_000_000)
        self.events = events

    async def open(self, url: str, **properties: str) -> tuple[FetchHead, AsyncIterator[bytes]]:
        about = {"id": "urn:uuid:t", "agreement_id": "a", "counterparty": "did:web:edc.example", "purpose": "p"}
        transfer = Transfer(**about, correlation="")
        return await self.fetches.open(FetchSource(transfer, url, {"authorization": TOKEN, **properties}), by="token")

    async def all(self, url: str, **properties: str) -> tuple[FetchHead, bytes]:
        head, pieces = await self.open(url, **properties)
        return head, b"".join([piece async for piece in pieces])

    def told(self) -> Event:
        (event,) = self.events
        assert event.kind == "DataFetched"
        return event


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[Reader]:
    store, events = Store(migrated.sqlite(tmp_path / "a.db"), pool_size=2), list[Event]()
    store.bus.subscribe(events.append)
    net = HttpClient(AddressGuard(allow=("127.0.0.1",), insecure_http=True), timeout=5.0, max_bytes=1_000)
    yield Reader(store, net, events)
    await net.close()
    store.close()


@pytest.mark.parametrize(
    ("body", "length"), [(sized(200, ROWS, content_type="text/csv; charset=utf-8"), len(ROWS)), (chunked(ROWS), -1)],
    ids=["sized", "chunked"],
)  # fmt: skip
async def test_the_bytes_are_those_of_the_endpoint(reader: Reader, body: bytes, length: int) -> None:
    async with serving(lambda _: body) as url:
        assert await reader.all(url) == (FetchHead("text/csv", length), ROWS)
    told = reader.told()
    assert (told.outcome, told.actor, told.agreement, told.purpose) == ("ok", "token", "a", "p")
    assert (told.detail["bytes"], told.detail["media"]) == (len(ROWS), "text/csv")
    assert TOKEN not in str(told)


@pytest.mark.parametrize("media", ["", "text", "text/html\tx", "a/b/c", "x" * 70 + "/y"])
async def test_a_media_type_that_is_none_is_not_passed_on(reader: Reader, media: str) -> None:
    async with serving(lambda _: sized(200, ROWS, content_type=media)) as url:
        assert (await reader.all(url))[0].media == OCTETS


async def test_the_token_is_sent_as_it_is_first_and_as_bearer_token_after_a_refusal(reader: Reader) -> None:
    seen: list[str] = []
    async with serving(lambda h: sized(200 if h["authorization"].startswith("Bearer") else 403, ROWS), seen) as url:
        assert (await reader.all(url))[1] == ROWS
    assert seen == [TOKEN, f"Bearer {TOKEN}"]


async def test_a_token_with_its_scheme_is_sent_once(reader: Reader) -> None:
    seen: list[str] = []
    async with serving(lambda _: sized(401, b""), seen) as url:
        with pytest.raises(PeerRefused, match="answered 401"):
            await reader.all(url, authorization="Bearer x")
    assert seen == ["Bearer x"]
    assert (reader.told().outcome, reader.told().code) == ("broken", "peer_refused")


BROKEN: dict[str, tuple[bytes, type[ConnectorError]]] = {
    "announced too large": (plain(200, content_length="2000000"), Invalid),
    "too large": (chunked(b"x" * 1_100_000), Invalid),
    "a redirection": (plain(302, location="http://127.0.0.1:9/"), PeerRefused),
    "no success": (sized(500, b"no"), PeerRefused),
    "a part": (sized(206, ROWS), PeerRefused),
    "cut": (plain(200, ROWS, content_length="1000"), PeerFailed),
    "gzip": (sized(200, gzip.compress(ROWS), content_encoding="gzip"), PeerNonsense),
    "gzip in gzip": (sized(200, gzip.compress(gzip.compress(ROWS)), content_encoding="GZIP, gzip"), PeerNonsense),
    "an unknown encoding": (sized(200, ROWS, content_encoding="x-\x1b[2J"), PeerNonsense),
    "cut between pieces": (chunked(ROWS, ended=False), PeerFailed),
}


@pytest.mark.hostile
@pytest.mark.parametrize(("body", "kind"), BROKEN.values(), ids=BROKEN.keys())
async def test_what_is_not_complete_is_an_error_and_recorded(
    reader: Reader, body: bytes, kind: type[ConnectorError]
) -> None:
    async with serving(lambda _: body) as url:
        with pytest.raises(kind):
            await reader.all(url)
    told = reader.told()
    assert (told.outcome, told.detail["digest"]) == ("broken", "")
    assert told.reason


async def test_a_reader_that_leaves_is_recorded_and_gives_its_place_back(reader: Reader) -> None:
    async with serving(lambda _: sized(200, ROWS)) as url:
        _, pieces = await reader.open(url)
        await pieces.aclose()  # type: ignore[attr-defined]  # a generator
        assert (reader.told().outcome, reader.told().code) == ("broken", "reader_left")
        assert (await reader.all(url))[1] == ROWS


async def test_fetches_at_once_are_limited(reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_fetch, "_AT_ONCE", 1)
    async with serving(lambda _: sized(200, ROWS)) as url:
        _, pieces = await reader.open(url)
        with pytest.raises(Unavailable) as refused:
            await reader.open(url)
        assert refused.value.code == "fetches_max"
        await pieces.aclose()  # type: ignore[attr-defined]  # a generator


REFUSED: dict[str, tuple[str, dict[str, str]]] = {
    "a Hanse owner": (f"https://north.example{PATH}", {"agreement": "a"}),
    "another transport": ("grpc+tls://north.example:8815", {}),
    "a token of two lines": ("https://north.example", {"authorization": "a\r\nb"}),
}


@pytest.mark.parametrize(("url", "properties"), REFUSED.values(), ids=REFUSED.keys())
async def test_an_address_that_is_not_fetched_from_is_named(
    reader: Reader, url: str, properties: dict[str, Any]
) -> None:
    with pytest.raises(Invalid, match=r"expected|Hanse"):
        await reader.open(url, **properties)
    assert not reader.events


async def test_an_address_of_the_own_network_is_not_called(reader: Reader) -> None:
    with pytest.raises(AddressRefused):
        await reader.open("http://10.0.0.1/public")
    assert reader.told().outcome == "broken"
