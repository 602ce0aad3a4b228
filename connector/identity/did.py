"""did:web: an id to the address of its document and back, our own document, and a resolver with a small cache.

Rules of resolution (Decentralized Claims 1.0, section 2, with our additions): no redirects, short time limit, size
limit, the document's id must be the DID that was asked for; an unknown key makes one fresh fetch, rate-limited.

Anybody can make us fetch a document: nothing is proven before we have it. So those of whom we know nothing yet have a
few places and little time of their own, and cannot take those of participants that we know.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from connector.errors import AddressRefused, Busy, NameUnknown, PeerFailed, PeerUnreachable, Unauthenticated
from connector.infra.concurrency.fair_semaphore import FairSemaphore
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.net import resolver
from connector.infra.net.http_client import HttpClient
from connector.setting_types import port_hint
from connector.urls import read_url

DID_MAX = 255  # characters: what the database has room for
_CACHE_SECONDS = 300.0
_REFETCH_SECONDS = 10.0
_DOCUMENT_MAX = 64 * 2**10
_KEYS_MAX = 16 * 2**10  # of one document, as they are kept
_PURPOSES = ("capabilityInvocation", "assertionMethod")  # what keys are asked for here
_MEMBERS = ("kty", "crv", "x", "y", "d", "use", "alg", "key_ops")  # of a JWK: which key it is, and what it is for
_AT_ONCE, _OF_ONE_HOST, _WAITING_PER_HOST = 12, 4, 16  # documents that are fetched, and requests for one that wait


def did_of(url: str) -> str:
    """The did:web whose document is served under `url`."""
    parts = urlsplit(url)
    host = quote(parts.netloc, safe="")
    segments = [quote(segment, safe="") for segment in parts.path.split("/") if segment]
    return ":".join(["did:web", host, *segments])


def address_of(did: str, *, insecure_http: bool = False) -> str:
    """Where a did:web's document is. Segments that would leave their place are refused."""
    method, _, rest = did.removeprefix("did:").partition(":")
    if not did.startswith("did:web:") or not rest:
        raise Unauthenticated(f"expected a did:web, came {did[:200]!r} (method {method[:20]!r} is not spoken here)")
    host, *segments = (unquote(part) for part in rest.split(":"))
    for part in (host, *segments):
        if not part or any(mark in part for mark in "/?#@\\") or part in (".", ".."):
            raise Unauthenticated(f"the DID {did[:200]!r} has a segment that no address may have")
    if not (did.isascii() and host.isascii() and host.isprintable()):
        raise Unauthenticated(f"expected a did:web in ASCII (a host's xn-- form), came {did[:200]!a}")
    path = "/".join(quote(segment) for segment in segments) if segments else ".well-known"
    url = f"{'http' if insecure_http else 'https'}://{host}/{path}/did.json"
    try:
        read_url(url)
    except ValueError as error:
        raise Unauthenticated(f"the DID {did[:200]!a} has no address that can be called: {error}") from None
    return url


def host_of(did: str) -> str:
    """The host of a did:web, without its port: what costs something, unlike the rest of the identifier."""
    return unquote(did.removeprefix("did:web:").partition(":")[0]).partition(":")[0].lower()


def document(did: str, *, jwk: dict[str, Any], root_url: str) -> dict[str, Any]:
    """Our own DID document: one key for all purposes, and where our catalogue answers."""
    key_id = f"{did}#{jwk['kid']}"
    method = {"id": key_id, "type": "JsonWebKey2020", "controller": did, "publicKeyJwk": jwk}
    return {
        "@context": ["https://www.w3.org/ns/did/v1", "https://w3id.org/dspace-dcp/v1.0/dcp.jsonld"],
        "id": did,
        "verificationMethod": [method],
        "authentication": [key_id],
        "assertionMethod": [key_id],
        "capabilityInvocation": [key_id],
        "service": [
            {"id": f"{did}#dsp", "type": "CatalogService", "serviceEndpoint": f"{root_url}/.well-known/dspace-version"}
        ],
    }


@dataclass(frozen=True, slots=True)
class _Kept:
    """What is kept of a document: JSON of purpose, id of the key and its JWK. `at`: monotonic time of the fetch."""

    at: float
    keys: bytes

    def key(self, did: str, key_id: str, purpose: str) -> dict[str, Any] | None:
        found: dict[str, Any] | None = json.loads(self.keys)[purpose].get(_absolute(did, key_id))
        return found


class _Circle:
    """Participants of whom we know equally much: their keys, as many as `most`, and the places for their documents."""

    def __init__(self, name: str, *, most: int, seconds: float) -> None:
        self.name = f"DID documents of {name}"  # where their names are looked up
        self.kept: OrderedDict[str, _Kept] = OrderedDict()
        self.places = FairSemaphore(_AT_ONCE, each=_OF_ONE_HOST)
        self.seconds = seconds  # for one document, waiting for a place included
        self._most = most

    def keep(self, did: str, kept: _Kept) -> None:
        put_recent(self.kept, did, kept, most=self._most)


class DidResolver:
    """Keys of others, kept for minutes: of those that are expected, those that have proven themselves, and strangers.

    What is kept of one of them and what is fetched for one of them takes nothing from the others.
    """

    def __init__(self, net: HttpClient) -> None:
        self._net = net
        self._names: frozenset[str] = frozenset()
        self._expected = _Circle("expected", most=1_024, seconds=15.0)
        self._proven = _Circle("proven", most=1_024, seconds=15.0)
        self._strangers = _Circle("strangers", most=256, seconds=5.0)
        self._coming: dict[str, asyncio.Task[_Kept]] = {}

    def expect(self, participants: Iterable[str]) -> None:
        """These we know whatever they have proven: the data space's operator and its members."""
        self._names = frozenset(participants)

    def expected(self, participant: str) -> bool:
        """Whether it is one of those that we know whatever they have proven."""
        return participant in self._names

    def proven(self, did: str) -> None:
        """This participant has signed something with its key: it is no stranger any more."""
        kept = self._strangers.kept.pop(did, None) or self._proven.kept.get(did)
        if kept is not None and did not in self._names:
            self._proven.keep(did, kept)

    async def key(self, did: str, key_id: str, *, purpose: str) -> dict[str, Any]:
        """The public JWK `key_id` of `did`, if its document lists it under `purpose`. Unauthenticated otherwise;
        Busy where the document cannot be had now, which says nothing about the key."""
        if (found := (await self._document(did)).key(did, key_id, purpose)) is None:
            found = (await self._document(did, fresh=True)).key(did, key_id, purpose)
        if found is None:
            raise Unauthenticated(f"{did} lists no key {key_id[-60:]!r} for {purpose}; sign with a key of the document")
        return found

    def _circle(self, did: str) -> _Circle:
        if did in self._names:
            return self._expected
        return self._proven if did in self._proven.kept else self._strangers

    async def _document(self, did: str, *, fresh: bool = False) -> _Kept:
        kept = self._circle(did).kept.get(did)
        limit = _REFETCH_SECONDS if fresh else _CACHE_SECONDS
        if kept is not None and time.monotonic() - kept.at < limit:
            return kept
        coming = self._coming.get(did)
        if coming is None:  # whoever asks meanwhile waits for the same answer
            coming = self._coming[did] = asyncio.create_task(self._bring(did))
            coming.add_done_callback(lambda done: self._came(did, done))
        return await asyncio.shield(coming)

    def _came(self, did: str, done: asyncio.Task[_Kept]) -> None:
        del self._coming[did]
        if not done.cancelled():
            done.exception()  # looked at: perhaps nobody waits for it any more

    async def _bring(self, did: str) -> _Kept:
        """Fetch a document in one of the places of its circle, and keep it."""
        url = address_of(did, insecure_http=self._net.guard.insecure_http)
        circle, host = self._circle(did), url.split("/")[2].lower()
        if circle.places.waiting(host) >= _WAITING_PER_HOST:
            raise Busy(f"many DID documents of {host} are asked for now; try again in a moment")
        try:
            async with asyncio.timeout(circle.seconds), circle.places.hold(host):
                with resolver.use_group(circle.name, host):
                    kept = _Kept(time.monotonic(), _keys(await self._fetch(did, url), did))
        except TimeoutError as error:
            raise Busy(f"the DID document of {did} did not come in time; try again in a moment") from error
        self._circle(did).keep(did, kept)
        return kept

    async def _fetch(self, did: str, url: str) -> dict[str, Any]:
        """A document, from wherever a caller of whom nothing is proven says that it is: what we found out about names,
        addresses and ports on the way there is for our own log. An address that we do not call is told as no proof, as
        waiting for it is in vain."""
        try:
            reply = await self._net.call("GET", url, max_bytes=_DOCUMENT_MAX)
            found = json.loads(reply.body) if reply.status == 200 else None
        except (AddressRefused, NameUnknown) as error:  # alike: who is not called may be there or not
            raise Unauthenticated(
                f"the DID document of {did} cannot be had from here; give one that others can reach{port_hint(did)}",
                private=error.message,
            ) from error
        except (PeerUnreachable, Busy) as error:
            raise Busy(
                f"the DID document of {did} cannot be had now; try again in a moment{port_hint(did)}",
                private=error.message,
            ) from error
        except (PeerFailed, ValueError, RecursionError) as error:
            raise Unauthenticated(f"the DID document of {did} cannot be read", private=str(error)) from error
        if reply.status >= 500:
            raise Busy(
                f"the DID document of {did} cannot be had now; try again in a moment",
                private=f"{url} answered {reply.status}",
            )
        if not isinstance(found, dict) or found.get("id") != did:
            raise Unauthenticated(
                f"expected the DID document of {did} at {url}, came none or one with another id{port_hint(did)}",
                private=f"it answered {reply.status}",
            )
        return found


def _keys(document: dict[str, Any], did: str) -> bytes:
    """What a document says of keys for our purposes, of whatever else it says nothing. Unauthenticated for too much."""
    try:
        found = json.dumps({purpose: _listed(document, did, purpose) for purpose in _PURPOSES}).encode()
    except RecursionError:
        raise Unauthenticated(f"the keys in the DID document of {did} are nested too deep to be keys") from None
    if len(found) > _KEYS_MAX:
        raise Unauthenticated(f"expected at most {_KEYS_MAX} bytes of keys in the DID document of {did}; list fewer")
    return found


def _listed(document: dict[str, Any], did: str, purpose: str) -> dict[str, Any]:
    """The JWKs of the verification methods that `purpose` refers to or embeds, by id; ids may be relative."""
    methods = {_absolute(did, m.get("id")): m for m in _many(document.get("verificationMethod")) if isinstance(m, dict)}
    found: dict[str, Any] = {}
    for entry in _many(document.get(purpose)):
        method = entry if isinstance(entry, dict) else methods.get(_absolute(did, entry))
        if method is not None:
            jwk = method.get("publicKeyJwk")
            kept = {name: jwk[name] for name in _MEMBERS if name in jwk} if isinstance(jwk, dict) else None
            found.setdefault(_absolute(did, method.get("id")), kept)
    return found


def _absolute(did: str, value: object) -> str:
    text = str(value)
    return f"{did}{text}" if text.startswith("#") else text


def _many(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
