"""One visit of one connector: its whole catalogue over the Dataspace Protocol, page by page, within hard limits.

What comes is foreign: every page, link, nested catalogue and identity is checked, nothing is kept here. Knows no
database. Limits (catalogue limits of the design, each with a test against a hostile provider):
1. the protocol's version document is read first, and only a version that we speak is used;
2. addresses pass the outbound guard; a `next` link, and the address of a catalogue within the catalogue, lead to the
   origin of the member's URL and are followed once: else a member could ask through us who answers in our network;
3. a page has a size limit, also after inflating; pages, depth, time and the addresses of catalogues within the
   catalogue are limited;
4. `participantId` is the DID that the member is registered with.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import urljoin, urlsplit

from catalogue.settings import CatalogueSettings
from connector.dsp.messages import CatalogRequestMessage
from connector.dsp.protocol_client import ProtocolClient
from connector.errors import ConnectorError, Limited, PeerNonsense, PeerRefused, PeerUnreachable
from connector.identity.identity_service import Identity
from connector.infra.net.http_client import HttpClient, Reply, origin
from connector.urls import check_endpoint, read_url

_REQUEST = json.dumps(CatalogRequestMessage().to_wire()).encode()
_NEXT = re.compile(r'<([^<>]{1,4096})>\s*;[^,<]*\brel\s*=\s*"?([a-z ]+)"?', re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
_ADDRESS_MAX, _TAG_MAX = 2_000, 1_000

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class VisitLimits:
    """How much of a foreign catalogue is read."""

    pages: int
    page_bytes: int
    depth: int
    inner: int
    seconds: float

    @classmethod
    def of(cls, settings: CatalogueSettings) -> VisitLimits:
        return cls(
            pages=settings.crawl_pages_max,
            page_bytes=settings.crawl_page_bytes,
            depth=settings.crawl_depth_max,
            inner=settings.crawl_inner_max,
            seconds=settings.crawl_wall_seconds,
        )


class _AddressQueue:
    """Addresses that are to be read, each once, with their depth; beyond the first there are at most `most`."""

    def __init__(self, first: str, *, home: str, most: int) -> None:
        self._waiting = deque([(first, 0)])
        self._met, self._home, self._most = {first}, home, most

    def __iter__(self) -> Iterator[tuple[str, int]]:
        while self._waiting:
            yield self._waiting.popleft()

    def add(self, address: str, depth: int) -> str:
        """Note an address; why it is not followed, or nothing. A page may have 100,000 of them: the limit comes before
        what costs more, and those that are not followed count, too."""
        if (address := address.rstrip("/")) in self._met:
            return ""
        if len(self._met) > self._most:
            return f"the catalogue points to more than {self._most} catalogues within it; the others are not followed"
        self._met.add(address[:_ADDRESS_MAX])
        if len(address) > _ADDRESS_MAX or not _same_origin(address, self._home):
            return "a catalogue within the catalogue is not at the member's own server; not followed"
        self._waiting.append((address, depth))
        return ""


class Visit:
    """One visit: iterate `pages()`, then read the outcome from the attributes.

    `reading` is locked from the parsing of a page until the next page is requested: the objects of a page take twenty
    times as much memory as its text.
    """

    def __init__(
        self,
        net: HttpClient,
        identity: Identity,
        limits: VisitLimits,
        *,
        did: str,
        url: str,
        etag: str,
        reading: asyncio.Lock,
    ) -> None:
        self._net, self._identity, self._limits, self._reading = net, identity, limits, reading
        self._did, self._root, self._known_etag = did, url.rstrip("/"), _clean_etag(etag)
        self.page_count = 0
        self.byte_count = 0
        self.etag = ""
        self.unchanged = False
        self.problem = ""  # why it is not the whole catalogue, where it is not

    @property
    def complete(self) -> bool:
        return not self.problem

    async def pages(self) -> AsyncGenerator[list[Any], None]:
        """The datasets of each page; the list is emptied when the next one is asked for. Close it (`aclosing`). Raises
        where there is no first page; later, `problem` says what is missing."""
        deadline = asyncio.get_running_loop().time() + self._limits.seconds
        try:
            async with aclosing(self._walk(deadline)) as walk:
                async for datasets in walk:
                    yield datasets
        except TimeoutError as error:
            self._broke_off(Limited(f"the visit took longer than {self._limits.seconds:g} s"), error)
        except ConnectorError as error:
            self._broke_off(error, error)

    def _broke_off(self, problem: ConnectorError, cause: Exception) -> None:
        if self.page_count == 0:
            raise problem from cause
        self.problem = problem.message

    async def _walk(self, deadline: float) -> AsyncGenerator[list[Any], None]:
        async with asyncio.timeout_at(deadline):
            base = await ProtocolClient(wire=self._net, mint=self._identity.mint).base_of(self._root)  # 1
        line = _AddressQueue(base, home=self._root, most=self._limits.inner)
        for address, depth in line:
            following: str | None = f"{address}/catalog/request"
            followed: set[str] = set()
            while following is not None:
                followed.add(following)
                async with asyncio.timeout_at(deadline):
                    reply = await self._page(following)
                if reply is None:
                    return
                async with self._reading:
                    datasets = await self._read(reply, depth, line)
                    yield datasets
                    datasets.clear()
                following = _next_link(reply.headers, following)  # 2, after what is good was taken
                if following in followed:
                    raise PeerNonsense("the pages of the catalogue lead in a circle")

    async def _page(self, url: str) -> Reply | None:
        """One page as it came; None where nothing changed since the known ETag."""
        if self.page_count >= self._limits.pages:
            raise Limited(f"the catalogue has more than {self._limits.pages} pages")
        headers = {"Authorization": await self._identity.mint(self._did), "Content-Type": "application/json"}
        if self.page_count == 0 and self._known_etag:
            headers["If-None-Match"] = self._known_etag
        most = self._limits.page_bytes
        reply = await self._net.call("POST", url, headers=headers, body=_REQUEST, max_bytes=most)
        if reply.status == 304 and "If-None-Match" in headers:
            self.page_count, self.unchanged, self.etag = 1, True, self._known_etag
            return None
        _check_status(reply, url)
        return reply

    async def _read(self, reply: Reply, depth: int, line: _AddressQueue) -> list[Any]:
        """The datasets of a page."""
        body = _inflate(reply, self._limits.page_bytes)  # 3
        catalog = await _parse_json(body)
        self._check_owner(catalog)  # 4
        if self.page_count == 0:
            self.etag = _clean_etag(reply.headers.get("etag", ""))
        self.page_count += 1
        self.byte_count += len(body)
        return await asyncio.to_thread(list, self._datasets(catalog, depth, line))

    def _check_owner(self, catalog: Json) -> None:
        """The catalogue is that of the member that we asked."""
        if (came := catalog.get("participantId")) != self._did:
            raise PeerNonsense(
                f"expected the catalogue of {self._did}, came one of {str(came)[:200]!r}; "
                "nothing of it was taken: correct the member's DID or its connector"
            )

    def _datasets(self, catalog: Json, depth: int, line: _AddressQueue) -> Iterator[Any]:
        """The datasets of a page and of catalogues inside it; addresses of others inside it join `line`."""
        yield from _as_list(catalog, "dataset")
        for inner in _as_list(catalog, "catalog"):
            if not isinstance(inner, dict):
                continue
            if inner.get("participantId", self._did) != self._did:
                continue  # somebody else's: that member is asked itself
            if depth >= self._limits.depth:
                self.problem = f"the catalogue holds catalogues more than {self._limits.depth} deep; left out"
                continue
            if "dataset" in inner or "catalog" in inner:
                yield from self._datasets(inner, depth + 1, line)
                continue
            for service in _as_list(inner, "service"):
                address = service.get("endpointURL") if isinstance(service, dict) else None
                if isinstance(address, str):
                    self.problem = line.add(address, depth + 1) or self.problem


def _clean_etag(text: str) -> str:
    """An ETag as it can be sent back; nothing for any other, which is as none: the catalogue is read again."""
    return text if len(text) <= _TAG_MAX and text.isascii() and text.isprintable() else ""


def _as_list(node: Json, key: str) -> list[Any]:
    value = node.get(key, [])
    return value if isinstance(value, list) else [value]


async def _parse_json(body: bytes) -> Json:
    """Parse a JSON object in a thread, because a page may have megabytes. Raises PeerNonsense."""
    try:
        found = await asyncio.to_thread(json.loads, body)
    except (ValueError, RecursionError) as error:
        raise PeerNonsense("expected JSON from the connector, came something else") from error
    if not isinstance(found, dict):
        raise PeerNonsense(f"expected a JSON object from the connector, came {type(found).__name__}")
    return found


def _inflate(reply: Reply, limit: int) -> bytes:
    """The body, inflated where it came compressed although we did not ask for it; never more than `limit`."""
    encoding = reply.headers.get("content-encoding", "identity").lower()
    if encoding == "identity":
        return reply.body
    if encoding not in ("gzip", "x-gzip"):
        raise PeerNonsense(f"expected an answer without compression or with gzip, came {encoding[:40]!r}")
    try:
        inflater = zlib.decompressobj(wbits=31)
        body = inflater.decompress(reply.body, limit + 1)
    except zlib.error as error:
        raise PeerNonsense("the answer says that it is gzip, and is not") from error
    if len(body) <= limit and not inflater.eof:
        raise PeerNonsense("the answer says that it is gzip, and is cut short")
    if len(body) > limit:
        raise PeerNonsense(f"the answer is larger than {limit} bytes when inflated; not read")
    return body


def _check_status(reply: Reply, url: str) -> None:
    if reply.status == 200:
        return
    if reply.status in (401, 403):
        raise PeerRefused(
            f"{origin(url)} refused the catalogue ({reply.status}); check that its HANSE_TRUST_ANCHOR is this "
            "operator, or that our HANSE_CREDENTIAL_FOLDER has the credentials that it demands"
        )
    if reply.status >= 500 or reply.status == 429:
        raise PeerUnreachable(f"{origin(url)} answered {reply.status}; it is tried again later")
    raise PeerNonsense(f"{origin(url)} answered {reply.status} where a catalogue was expected")


def _next_link(headers: Mapping[str, str], url: str) -> str | None:
    """The address of the next page, if there is one at the same origin."""
    for target, relation in _NEXT.findall(headers.get("link", "")[:16_384]):
        if "next" in relation.lower().split():
            if not _same_origin(str(target), url):
                raise PeerNonsense("the next page of the catalogue is on another server; not followed")
            return urljoin(url, str(target))
    return None


def _same_origin(address: str, home: str) -> bool:
    """Whether an address, which may be relative to `home`, is one at the same server."""
    try:
        check_endpoint(address)  # the text itself, too: joining drops line ends
        joined = urljoin(home, address)
        read_url(joined)
        return _server(joined) == _server(home)
    except ValueError:
        return False


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)
