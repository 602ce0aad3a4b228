"""did:web identifiers: conversion to and from URLs, our own DID document, and a resolver with a small cache.

Rules of resolution (Decentralized Claims 1.0, section 2, with our additions): no redirects, a short time limit, a size
limit, the document's id must be the requested DID, and an unknown key causes a single fresh fetch, rate-limited.

Unauthenticated callers can make us fetch documents, as a token is checked with the key in its issuer's document. So
unknown parties have fetches and time limits of their own, and cannot use up those of known participants.
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

DID_MAX = 255  # characters, as in the database
_CACHE_SECONDS = 300.0
_REFETCH_SECONDS = 10.0
_DOCUMENT_MAX = 64 * 2**10
_KEYS_MAX = 16 * 2**10  # bytes of keys from a document, as cached
_PURPOSES = ("capabilityInvocation", "assertionMethod")  # the purposes that we look up keys for
_MEMBERS = ("kty", "crv", "x", "y", "d", "use", "alg", "key_ops")  # members of a JWK that identify a key and its use
_AT_ONCE, _OF_ONE_HOST, _WAITING_PER_HOST = 12, 4, 16  # fetches in all, fetches per host, requests that wait per host


def did_of(url: str) -> str:
    """The did:web of the document that is served under `url`."""
    parts = urlsplit(url)
    host = quote(parts.netloc, safe="")
    segments = [quote(segment, safe="") for segment in parts.path.split("/") if segment]
    return ":".join(["did:web", host, *segments])


def address_of(did: str, *, insecure_http: bool = False) -> str:
    """The URL of a did:web's document. Raises: Unauthenticated for another method or unsafe segments."""
    method, _, rest = did.removeprefix("did:").partition(":")
    if not did.startswith("did:web:") or not rest:
        raise Unauthenticated(f"expected a did:web, got {did[:200]!r} (method {method[:20]!r} is not supported)")
    host, *segments = (unquote(part) for part in rest.split(":"))
    for part in (host, *segments):
        if not part or any(mark in part for mark in "/?#@\\") or part in (".", ".."):
            raise Unauthenticated(f"the DID {did[:200]!r} has a segment that no address may have")
    if not (did.isascii() and host.isascii() and host.isprintable()):
        raise Unauthenticated(f"expected a did:web in ASCII (a host's xn-- form), got {did[:200]!a}")
    path = "/".join(quote(segment) for segment in segments) if segments else ".well-known"
    url = f"{'http' if insecure_http else 'https'}://{host}/{path}/did.json"
    try:
        read_url(url)
    except ValueError as error:
        raise Unauthenticated(f"the DID {did[:200]!a} has no address that can be called: {error}") from None
    return url


def host_of(did: str) -> str:
    """The host of a did:web, without its port. Limits count by host, as the rest of a DID costs nothing."""
    return unquote(did.removeprefix("did:web:").partition(":")[0]).partition(":")[0].lower()


def document(did: str, *, jwk: dict[str, Any], root_url: str) -> dict[str, Any]:
    """Our own DID document: a single key for all purposes, and the address of our catalogue."""
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


_LATER = frozenset({408, 425, 429})  # answers of a server that is up and cannot answer now


@dataclass(frozen=True, slots=True)
class _CachedKeys:
    """The keys of a document as JSON: purpose, then key id, then JWK. `at`: monotonic time of the fetch."""

    at: float
    keys: bytes

    def key(self, did: str, key_id: str, purpose: str) -> dict[str, Any] | None:
        jwk: dict[str, Any] | None = json.loads(self.keys)[purpose].get(_to_absolute(did, key_id))
        return jwk


class _KeyCache:
    """Cached keys of at most `most` participants of a trust level, and the limits on fetching their documents."""

    def __init__(self, name: str, *, most: int, seconds: float) -> None:
        self.name = f"DID documents of {name}"  # the group of their name look-ups
        self.kept: OrderedDict[str, _CachedKeys] = OrderedDict()
        self.places = FairSemaphore(_AT_ONCE, each=_OF_ONE_HOST)
        self.seconds = seconds  # for a document, including the wait for a place
        self._most = most

    def keep(self, did: str, kept: _CachedKeys) -> None:
        put_recent(self.kept, did, kept, most=self._most)


class DidResolver:
    """Resolves keys of participants and caches them for minutes.

    Expected participants (members), proven ones (they have signed a valid token) and strangers have separate caches and
    limits, so that strangers cannot slow down the others.
    """

    def __init__(self, net: HttpClient) -> None:
        self._net = net
        self._names: frozenset[str] = frozenset()
        self._expected = _KeyCache("expected", most=1_024, seconds=15.0)
        self._proven = _KeyCache("proven", most=1_024, seconds=15.0)
        self._strangers = _KeyCache("strangers", most=256, seconds=5.0)
        self._fetches: dict[str, asyncio.Task[_CachedKeys]] = {}

    def expect(self, participants: Iterable[str]) -> None:
        """Set the participants that are known without a proof: the data space's operator and its members."""
        self._names = frozenset(participants)

    def is_expected(self, participant: str) -> bool:
        """Whether a participant is known without a proof; see `expect`."""
        return participant in self._names

    def mark_proven(self, did: str) -> None:
        """Note that a participant has signed with its key, and is no stranger any more."""
        kept = self._strangers.kept.pop(did, None) or self._proven.kept.get(did)
        if kept is not None and did not in self._names:
            self._proven.keep(did, kept)

    async def key(self, did: str, key_id: str, *, purpose: str) -> dict[str, Any]:
        """The public JWK `key_id` of `did`, which its document lists under `purpose`.

        Raises: Unauthenticated if it does not; Busy if the document cannot be fetched now.
        """
        if (jwk := (await self._keys_of(did)).key(did, key_id, purpose)) is None:
            jwk = (await self._keys_of(did, fresh=True)).key(did, key_id, purpose)
        if jwk is None:
            raise Unauthenticated(f"{did} lists no key {key_id[-60:]!r} for {purpose}; sign with a key of the document")
        return jwk

    def _cache_of(self, did: str) -> _KeyCache:
        if did in self._names:
            return self._expected
        return self._proven if did in self._proven.kept else self._strangers

    async def _keys_of(self, did: str, *, fresh: bool = False) -> _CachedKeys:
        kept = self._cache_of(did).kept.get(did)
        limit = _REFETCH_SECONDS if fresh else _CACHE_SECONDS
        if kept is not None and time.monotonic() - kept.at < limit:
            return kept
        fetch = self._fetches.get(did)
        if fetch is None:  # later callers wait for the same fetch
            fetch = self._fetches[did] = asyncio.create_task(self._fetch_keys(did))
            fetch.add_done_callback(lambda done: self._on_fetched(did, done))
        return await asyncio.shield(fetch)

    def _on_fetched(self, did: str, done: asyncio.Task[_CachedKeys]) -> None:
        del self._fetches[did]
        if not done.cancelled():
            done.exception()  # mark it as retrieved: perhaps no caller waits any more

    async def _fetch_keys(self, did: str) -> _CachedKeys:
        """Fetch a document within the limits of its cache, and store its keys."""
        url = address_of(did, insecure_http=self._net.guard.insecure_http)
        cache, host = self._cache_of(did), url.split("/")[2].lower()
        if cache.places.waiting(host) >= _WAITING_PER_HOST:
            raise Busy(f"too many DID documents of {host} are requested now; try again in a moment")
        try:
            async with asyncio.timeout(cache.seconds), cache.places.hold(host):
                with resolver.use_group(cache.name, host):
                    kept = _CachedKeys(time.monotonic(), _keys(await self._fetch(did, url), did))
        except TimeoutError as error:
            raise Busy(f"timed out waiting for the DID document of {did}; try again in a moment") from error
        self._cache_of(did).keep(did, kept)
        return kept

    async def _fetch(self, did: str, url: str) -> dict[str, Any]:
        """Fetch a document from an address that an unauthenticated caller chose.

        So details about names, addresses and ports go to our own log only. Raises: Unauthenticated if the address may
        not be called or the document is invalid, Busy if a later attempt may succeed.
        """
        try:
            reply = await self._net.call("GET", url, max_bytes=_DOCUMENT_MAX)
            document = json.loads(reply.body) if reply.status == 200 else None
        except (AddressRefused, NameUnknown) as error:  # the same message for both, so that it does not reveal which
            if isinstance(error, NameUnknown) and self._cache_of(did) is not self._strangers:
                raise _unreachable_error(did, error.message) from error
            raise Unauthenticated(
                f"the DID document of {did} cannot be fetched from here; use a reachable DID{port_hint(did)}",
                private=error.message,
            ) from error
        except (PeerUnreachable, Busy) as error:
            raise _unreachable_error(did, error.message) from error
        except (PeerFailed, ValueError, RecursionError) as error:
            raise Unauthenticated(
                f"the DID document of {did} cannot be read; check that it is JSON", private=str(error)
            ) from error
        if reply.status >= 500 or reply.status in _LATER:
            raise Busy(
                f"the DID document of {did} cannot be fetched now; try again in a moment",
                private=f"{url} answered {reply.status}",
            )
        if not isinstance(document, dict) or document.get("id") != did:
            raise Unauthenticated(
                f"expected the DID document of {did} at {url}, got none or one with another id{port_hint(did)}",
                private=f"it answered {reply.status}",
            )
        return document


def _unreachable_error(did: str, private: str) -> Busy:
    return Busy(
        f"the DID document of {did} cannot be fetched now; try again in a moment{port_hint(did)}", private=private
    )


def _keys(document: dict[str, Any], did: str) -> bytes:
    """The keys of a document for our purposes, as JSON. Raises: Unauthenticated if they are too large or nested."""
    try:
        keys = json.dumps({purpose: _list_keys(document, did, purpose) for purpose in _PURPOSES}).encode()
    except RecursionError:
        raise Unauthenticated(
            f"the keys in the DID document of {did} are nested too deep; publish plain JWKs"
        ) from None
    if len(keys) > _KEYS_MAX:
        raise Unauthenticated(f"expected at most {_KEYS_MAX} bytes of keys in the DID document of {did}; list fewer")
    return keys


def _list_keys(document: dict[str, Any], did: str, purpose: str) -> dict[str, Any]:
    """The JWKs of the verification methods that `purpose` refers to or embeds, by id; ids may be relative."""
    methods = {
        _to_absolute(did, m.get("id")): m for m in _as_list(document.get("verificationMethod")) if isinstance(m, dict)
    }
    keys: dict[str, Any] = {}
    for entry in _as_list(document.get(purpose)):
        method = entry if isinstance(entry, dict) else methods.get(_to_absolute(did, entry))
        if method is not None:
            jwk = method.get("publicKeyJwk")
            members = {name: jwk[name] for name in _MEMBERS if name in jwk} if isinstance(jwk, dict) else None
            keys.setdefault(_to_absolute(did, method.get("id")), members)
    return keys


def _to_absolute(did: str, value: object) -> str:
    text = str(value)
    return f"{did}{text}" if text.startswith("#") else text


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
