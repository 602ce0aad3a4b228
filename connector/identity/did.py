"""did:web: an id to the address of its document and back, our own document, and a resolver with a small cache.

Rules of resolution (Decentralized Claims 1.0, section 2, with our additions): no redirects, short time limit, size
limit, the document's id must be the DID that was asked for; an unknown key makes one fresh fetch, rate-limited.
"""

from __future__ import annotations

import json
import time
from collections import OrderedDict
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from connector.errors import Busy, PeerFailed, PeerUnreachable, Unauthenticated
from connector.net import Net

_CACHE_SECONDS = 300.0
_CACHE_MAX = 1024
_REFETCH_SECONDS = 10.0
_DOCUMENT_MAX = 64 * 2**10


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
    path = "/".join(quote(segment) for segment in segments) if segments else ".well-known"
    return f"{'http' if insecure_http else 'https'}://{host}/{path}/did.json"


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


class Resolver:
    """DID documents of others, kept for minutes, at most a thousand."""

    def __init__(self, net: Net) -> None:
        self._net = net
        self._kept: OrderedDict[str, tuple[float, dict[str, Any]]] = OrderedDict()

    async def key(self, did: str, key_id: str, *, purpose: str) -> dict[str, Any]:
        """The public JWK `key_id` of `did`, if its document lists it under `purpose`. Unauthenticated otherwise;
        Busy where the document's server does not answer, which says nothing about the key."""
        document = await self._document(did)
        if (found := _listed(document, did, key_id, purpose)) is None:
            document = await self._document(did, fresh=True)
            found = _listed(document, did, key_id, purpose)
        if found is None:
            raise Unauthenticated(f"{did} lists no key {key_id[-60:]!r} for {purpose}; sign with a key of the document")
        return found

    async def _document(self, did: str, *, fresh: bool = False) -> dict[str, Any]:
        now = time.monotonic()
        fetched, kept = self._kept.get(did, (0.0, None))
        limit = _REFETCH_SECONDS if fresh else _CACHE_SECONDS
        if kept is not None and now - fetched < limit:
            return kept
        found = await self._fetch(did)
        self._kept[did] = (now, found)
        self._kept.move_to_end(did)
        while len(self._kept) > _CACHE_MAX:
            self._kept.popitem(last=False)
        return found

    async def _fetch(self, did: str) -> dict[str, Any]:
        url = address_of(did, insecure_http=self._net.guard.insecure_http)
        try:
            reply = await self._net.call("GET", url, max_bytes=_DOCUMENT_MAX)
            found = json.loads(reply.body) if reply.status == 200 else None
        except PeerUnreachable as error:
            raise Busy(f"the DID document of {did} cannot be had now; try again in a moment: {error}") from error
        except (PeerFailed, ValueError, RecursionError) as error:
            raise Unauthenticated(f"the DID document of {did} cannot be read: {error}") from error
        if reply.status >= 500:
            raise Busy(f"the DID document of {did} cannot be had now (status {reply.status}); try again in a moment")
        if not isinstance(found, dict) or found.get("id") != did:
            raise Unauthenticated(
                f"expected the DID document of {did} at {url}, came status {reply.status} or another id"
            )
        return found


def _listed(document: dict[str, Any], did: str, key_id: str, purpose: str) -> dict[str, Any] | None:
    """The JWK of a verification method that `purpose` refers to or embeds; ids may be relative."""

    def absolute(value: object) -> str:
        text = str(value)
        return f"{did}{text}" if text.startswith("#") else text

    wanted = absolute(key_id)
    methods = {absolute(m.get("id")): m for m in _many(document.get("verificationMethod")) if isinstance(m, dict)}
    for entry in _many(document.get(purpose)):
        method = entry if isinstance(entry, dict) else methods.get(absolute(entry))
        if method is not None and absolute(method.get("id")) == wanted:
            jwk = method.get("publicKeyJwk")
            return jwk if isinstance(jwk, dict) else None
    return None


def _many(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
