"""did:web identifiers: conversion to and from URLs, our own DID document, and a resolver with a small cache.

Rules of resolution (Decentralized Claims 1.0, section 2, with our additions): no redirects, a short time limit, a size
limit, the document's id must be the requested DID, and an unknown key causes a single fresh fetch, rate-limited.

Unproven callers can make us fetch documents, as a token is checked with the key in its issuer's document. So
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

from connector.errors import AddressRefused, NameUnknown, PeerFailed, PeerUnreachable, Unavailable, Unproven
from connector.infra.concurrency.fair_semaphore import FairSemaphore
from connector.infra.concurrency.recent_keys import put_recent
from connector.infra.net import resolver
from connector.infra.net.http_client import HttpClient
from connector.setting_types import port_hint
from connector.urls import read_url

CONTEXT = "https://w3id.org/dspace-dcp/v1.0/dcp.jsonld"  # of messages and documents (Decentralized Claims 1.0)
DID_MAX = 255  # characters, as in the database
_LATER = frozenset({408, 425, 429})  # answers of a server that is up and cannot answer now
_CACHE_SECONDS = 300.0
_REFETCH_SECONDS = 10.0
_DOCUMENT_MAX = 64 * 2**10
_KEPT_MAX = 16 * 2**10  # bytes of keys and services from a document, as cached
_PURPOSES = ("capabilityInvocation", "authentication", "assertionMethod")  # the purposes that we look up keys for
_RELATIONSHIPS = (*_PURPOSES, "keyAgreement", "capabilityDelegation")  # every array of DID Core, section 5.3
_SERVICES = ("CredentialService", "IssuerService")  # the types of services that we look up
_ENDPOINT_MAX = 2_048
_MEMBERS = ("kty", "crv", "x", "y", "d", "use", "alg", "key_ops")  # members of a JWK that identify a key and its use
_AT_ONCE, _OF_ONE_HOST, _WAITING_PER_HOST = 12, 4, 16  # fetches in all, fetches per host, requests that wait per host


def did_of(url: str) -> str:
    """The did:web of the document that is served under `url`."""
    parts = urlsplit(url)
    host = quote(parts.netloc, safe="")
    segments = [quote(segment, safe="") for segment in parts.path.split("/") if segment]
    return ":".join(["did:web", host, *segments])


def address_of(did: str, *, insecure_http: bool = False) -> str:
    """The URL of a did:web's document. Raises: Unproven for another method or unsafe segments."""
    method, _, rest = did.removeprefix("did:").partition(":")
    if not did.startswith("did:web:") or not rest:
        raise Unproven(f"expected a did:web, got {did[:200]!r} (method {method[:20]!r} is not supported)")
    host, *segments = (unquote(part) for part in rest.split(":"))
    for part in (host, *segments):
        if not part or any(mark in part for mark in "/?#@\\") or part in (".", ".."):
            raise Unproven(f"the DID {did[:200]!r} has a segment that no address may have")
    if not (did.isascii() and host.isascii() and host.isprintable()):
        raise Unproven(f"expected a did:web in ASCII (a host's xn-- form), got {did[:200]!a}")
    path = "/".join(quote(segment) for segment in segments) if segments else ".well-known"
    url = f"{'http' if insecure_http else 'https'}://{host}/{path}/did.json"
    try:
        read_url(url)
    except ValueError as error:
        raise Unproven(f"the DID {did[:200]!a} has no address that can be called: {error}") from None
    return url


def host_of(did: str) -> str:
    """The host of a did:web, without its port. Limits count by host, as the rest of a DID costs nothing."""
    return unquote(did.removeprefix("did:web:").partition(":")[0]).partition(":")[0].lower()


def document(
    did: str,
    *,
    jwk: dict[str, Any],
    root_url: str,
    former: Iterable[dict[str, Any]] = (),
    credential_service: str = "",
) -> dict[str, Any]:
    """Our own DID document: the key that signs, former keys, and our services. Every key is for all purposes.

    `former`: public JWKs of keys that sign nothing new, as long as something that they signed is in use.
    `credential_service`: address for queries about our credentials; empty: none is published.
    """
    methods = [_method(did, one) for one in (jwk, *former)]
    services = {"dsp": ("CatalogService", f"{root_url}/.well-known/dspace-version")}
    if credential_service:
        services["credentials"] = ("CredentialService", credential_service)
    return {
        "@context": ["https://www.w3.org/ns/did/v1", CONTEXT],
        "id": did,
        "verificationMethod": methods,
        **{purpose: [method["id"] for method in methods] for purpose in reversed(_PURPOSES)},
        "service": [
            {"id": f"{did}#{name}", "type": kind, "serviceEndpoint": endpoint}
            for name, (kind, endpoint) in services.items()
        ],
    }


def _method(did: str, jwk: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"{did}#{jwk['kid']}", "type": "JsonWebKey2020", "controller": did, "publicKeyJwk": jwk}


@dataclass(frozen=True, slots=True)
class _CachedDocument:
    """What we look up in a document, as JSON. `at`: monotonic time of the fetch.

    `keys`: by purpose, then key id, the JWKs; `every`: the JWKs of all methods, if no array lists any; `services`:
    endpoints by type.
    """

    at: float
    content: bytes

    def key(self, did: str, key_id: str, purpose: str, *, every: bool = False) -> dict[str, Any] | None:
        content, name = json.loads(self.content), _to_absolute(did, key_id)
        jwk: dict[str, Any] | None = content["keys"][purpose].get(name)
        return content["every"].get(name) if jwk is None and every else jwk

    def service(self, kind: str) -> str | None:
        endpoint: str | None = json.loads(self.content)["services"].get(kind)
        return endpoint


class _KeyCache:
    """Cached keys of at most `most` participants of a trust level, and the limits on fetching their documents."""

    def __init__(self, name: str, *, most: int, seconds: float) -> None:
        self.name = f"DID documents of {name}"  # the group of their name look-ups
        self.kept: OrderedDict[str, _CachedDocument] = OrderedDict()
        self.places = FairSemaphore(_AT_ONCE, each=_OF_ONE_HOST)
        self.seconds = seconds  # for a document, including the wait for a place
        self._most = most

    def keep(self, did: str, kept: _CachedDocument) -> None:
        put_recent(self.kept, did, kept, most=self._most)


class DidResolver:
    """Resolves keys of participants and caches them for minutes.

    Expected participants (members), proven ones (they have signed a valid token) and strangers have separate caches and
    limits, so that strangers cannot slow down the others.
    """

    def __init__(self, net: HttpClient) -> None:
        self._net = net
        self._names: frozenset[str] = frozenset()
        self._every_key: frozenset[str] = frozenset()
        self._expected = _KeyCache("expected", most=1_024, seconds=15.0)
        self._proven = _KeyCache("proven", most=1_024, seconds=15.0)
        self._strangers = _KeyCache("strangers", most=256, seconds=5.0)
        self._fetches: dict[str, asyncio.Task[_CachedDocument]] = {}

    def expect(self, participants: Iterable[str]) -> None:
        """Set the participants that are known without a proof: the data space's operator and its members."""
        self._names = frozenset(participants)

    def is_expected(self, participant: str) -> bool:
        """Whether a participant is known without a proof; see `expect`."""
        return participant in self._names

    def allow_every_key(self, participants: Iterable[str]) -> None:
        """Set the participants whose keys count for every purpose where their document has no relationship array.

        Some deployed wallets publish such documents. A document that lists a key for any purpose is read as usual.
        """
        self._every_key = frozenset(participants)

    def mark_proven(self, did: str) -> None:
        """Note that a participant has signed with its key, and is no stranger any more."""
        kept = self._strangers.kept.pop(did, None) or self._proven.kept.get(did)
        if kept is not None and did not in self._names:
            self._proven.keep(did, kept)

    async def key(self, did: str, key_id: str, *, purpose: str) -> dict[str, Any]:
        """The public JWK `key_id` of `did`, which its document lists under `purpose`.

        Raises: Unproven if it does not; Unavailable if the document cannot be fetched now.
        """
        every = did in self._every_key
        if (jwk := (await self._document_of(did)).key(did, key_id, purpose, every=every)) is None:
            jwk = (await self._document_of(did, fresh=True)).key(did, key_id, purpose, every=every)
        if jwk is None:
            raise Unproven(f"{did} lists no key {key_id[-60:]!r} for {purpose}; sign with a key of the document")
        return jwk

    async def service(self, did: str, kind: str) -> str:
        """The endpoint of the service of type `kind` in the document of `did`.

        Raises: Unproven if there is none; Unavailable if the document cannot be fetched now.
        """
        if (endpoint := (await self._document_of(did)).service(kind)) is None:
            endpoint = (await self._document_of(did, fresh=True)).service(kind)
        if endpoint is None:
            raise Unproven(f"the DID document of {did} has no service of type {kind}; publish its address there")
        return endpoint

    def _cache_of(self, did: str) -> _KeyCache:
        if did in self._names:
            return self._expected
        return self._proven if did in self._proven.kept else self._strangers

    async def _document_of(self, did: str, *, fresh: bool = False) -> _CachedDocument:
        kept = self._cache_of(did).kept.get(did)
        limit = _REFETCH_SECONDS if fresh else _CACHE_SECONDS
        if kept is not None and time.monotonic() - kept.at < limit:
            return kept
        fetch = self._fetches.get(did)
        if fetch is None:  # later callers wait for the same fetch
            fetch = self._fetches[did] = asyncio.create_task(self._fetch_document(did))
            fetch.add_done_callback(lambda done: self._on_fetched(did, done))
        return await asyncio.shield(fetch)

    def _on_fetched(self, did: str, done: asyncio.Task[_CachedDocument]) -> None:
        del self._fetches[did]
        if not done.cancelled():
            done.exception()  # mark it as retrieved: perhaps no caller waits any more

    async def _fetch_document(self, did: str) -> _CachedDocument:
        """Fetch a document within the limits of its cache, and store what we look up in it."""
        url = address_of(did, insecure_http=self._net.guard.insecure_http)
        cache, host = self._cache_of(did), url.split("/")[2].lower()
        if cache.places.waiting(host) >= _WAITING_PER_HOST:
            raise Unavailable(f"too many DID documents of {host} are requested now; try again in a moment")
        try:
            async with asyncio.timeout(cache.seconds), cache.places.hold(host):
                with resolver.use_group(cache.name, host):
                    kept = _CachedDocument(time.monotonic(), _read_document(await self._fetch(did, url), did))
        except TimeoutError as error:
            raise Unavailable(f"timed out waiting for the DID document of {did}; try again in a moment") from error
        self._cache_of(did).keep(did, kept)
        return kept

    async def _fetch(self, did: str, url: str) -> dict[str, Any]:
        """Fetch a document from an address that an unauthenticated caller chose.

        So details about names, addresses and ports go to our own log only. Raises: Unproven if the address may
        not be called or the document is invalid, Unavailable if a later attempt may succeed.
        """
        try:
            reply = await self._net.call("GET", url, max_bytes=_DOCUMENT_MAX)
            document = json.loads(reply.body) if reply.status == 200 else None
        except (AddressRefused, NameUnknown) as error:  # the same message for both, so that it does not reveal which
            if isinstance(error, NameUnknown) and self._cache_of(did) is not self._strangers:
                raise _unreachable_error(did, error.message) from error
            raise Unproven(
                f"the DID document of {did} cannot be fetched from here; use a reachable DID{port_hint(did)}",
                private=error.message,
            ) from error
        except (PeerUnreachable, Unavailable) as error:
            raise _unreachable_error(did, error.message) from error
        except (PeerFailed, ValueError, RecursionError) as error:
            raise Unproven(
                f"the DID document of {did} cannot be read; check that it is JSON", private=str(error)
            ) from error
        if reply.status >= 500 or reply.status in _LATER:
            raise Unavailable(
                f"the DID document of {did} cannot be fetched now; try again in a moment",
                private=f"{url} answered {reply.status}",
            )
        if not isinstance(document, dict) or document.get("id") != did:
            raise Unproven(
                f"expected the DID document of {did} at {url}, got none or one with another id{port_hint(did)}",
                private=f"it answered {reply.status}",
            )
        return document


def _unreachable_error(did: str, private: str) -> Unavailable:
    return Unavailable(
        f"the DID document of {did} cannot be fetched now; try again in a moment{port_hint(did)}", private=private
    )


def _read_document(document: dict[str, Any], did: str) -> bytes:
    """What we look up in a document, as JSON. Raises: Unproven if it is too large or nested."""
    try:
        content = json.dumps(
            {
                "keys": {purpose: _list_keys(document, did, purpose) for purpose in _PURPOSES},
                "every": _list_every_key(document, did),
                "services": _list_services(document),
            }
        ).encode()
    except RecursionError:
        raise Unproven(f"the keys in the DID document of {did} are nested too deep; publish plain JWKs") from None
    if len(content) > _KEPT_MAX:
        raise Unproven(f"expected at most {_KEPT_MAX} bytes of keys in the DID document of {did}; list fewer")
    return content


def _list_keys(document: dict[str, Any], did: str, purpose: str) -> dict[str, Any]:
    """The JWKs of the verification methods that `purpose` refers to or embeds, by id; ids may be relative."""
    methods = {_to_absolute(did, method.get("id")): method for method in _list_methods(document)}
    keys: dict[str, Any] = {}
    for entry in _as_list(document.get(purpose)):
        method = entry if isinstance(entry, dict) else methods.get(_to_absolute(did, entry))
        if method is not None:
            keys.setdefault(_to_absolute(did, method.get("id")), _read_jwk(method))
    return keys


def _list_every_key(document: dict[str, Any], did: str) -> dict[str, Any]:
    """The JWKs of all verification methods, by id; none where any relationship array is not empty."""
    if any(document.get(name) not in (None, []) for name in _RELATIONSHIPS):
        return {}
    return {_to_absolute(did, method.get("id")): _read_jwk(method) for method in _list_methods(document)}


def _list_methods(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [method for method in _as_list(document.get("verificationMethod")) if isinstance(method, dict)]


def _read_jwk(method: dict[str, Any]) -> dict[str, Any] | None:
    jwk = method.get("publicKeyJwk")
    return {name: jwk[name] for name in _MEMBERS if name in jwk} if isinstance(jwk, dict) else None


def _list_services(document: dict[str, Any]) -> dict[str, str]:
    """The endpoints by type of the services that we look up; the first of each type."""
    found: dict[str, str] = {}
    for service in _as_list(document.get("service")):
        kinds = service.get("type") if isinstance(service, dict) else None
        endpoint = service.get("serviceEndpoint") if isinstance(service, dict) else None
        for kind in kinds if isinstance(kinds, list) else [kinds]:
            if kind in _SERVICES and isinstance(endpoint, str) and len(endpoint) <= _ENDPOINT_MAX:
                found.setdefault(kind, endpoint)
    return found


def _to_absolute(did: str, value: object) -> str:
    text = str(value)
    return f"{did}{text}" if text.startswith("#") else text


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
