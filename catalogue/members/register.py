"""The signed member register (members.jws), which connectors believe, and the operator's DID document.

A compact JWS (ES256) over {"iss", "iat", "exp", "members": [...]}, read by member_register. It is signed again
when a member changed or a tenth of its life is over, so that its ETag holds for a while.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey

from catalogue.issuer.credential_signer import PATH as ISSUER_PATH
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.tables import Member
from connector.identity.did import document
from connector.identity.keys import public_jwk

_FRESH_PART = 0.1
CREDENTIALS_PATH = "/dcp"  # of the operator's credential service


@dataclass(frozen=True, slots=True)
class SignedRegister:
    """The register as served: its text, its ETag, when it was signed and what it was signed over."""

    text: str
    etag: str
    signed_at: float
    revision: int


def facts_of(member: Member) -> dict[str, Any]:
    """What the register says of a member."""
    fields = ("id", "name", "title", "role", "country", "url", "status")
    return {field: getattr(member, field) for field in fields}


class RegisterSigner:
    """Signs who is a member. The operator itself is listed too, so that connectors show it their catalogues."""

    def __init__(self, store: CatalogueStore, key: ECKey, settings: CatalogueSettings) -> None:
        self._store, self._key, self._settings = store, key, settings
        self._signed: SignedRegister | None = None

    async def current(self) -> SignedRegister:
        """The register, signed recently enough."""
        return await self._store.read(self._current)

    def _current(self, tx: CatalogueTransaction) -> SignedRegister:
        revision, kept = tx.members.read_revision(), self._signed
        age = tx.now - kept.signed_at if kept else 0.0  # below 0: the clock was set back, and it would hold for long
        fresh = 0 <= age < self._settings.register_seconds * _FRESH_PART
        if kept is None or kept.revision != revision or not fresh:
            kept = self._sign([facts_of(member) for member in tx.members.list_all()], revision, tx.now)
            self._signed = kept
        return kept

    def _sign(self, members: list[dict[str, Any]], revision: int, now: float) -> SignedRegister:
        settings = self._settings
        body = {
            "iss": settings.did,
            "iat": int(now),
            "exp": int(now) + settings.register_seconds,
            "members": [self.operator(), *members],
        }
        header = {"alg": "ES256", "kid": f"{settings.did}#{self._key.thumbprint()}", "typ": "hanse-members+jwt"}
        text = jws.serialize_compact(header, json.dumps(body).encode(), self._key, algorithms=["ES256"])
        return SignedRegister(text, f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"', now, revision)

    def operator(self) -> dict[str, Any]:
        """What the register says of the operator itself."""
        settings = self._settings
        facts = {"id": settings.did, "name": settings.name, "title": settings.title, "role": "operator"}
        return {**facts, "country": settings.country, "url": settings.root_url, "status": "active"}

    def did_document(self) -> dict[str, Any]:
        """The operator's DID document: its key for every purpose, and where its services are."""
        settings = self._settings
        made = document(settings.did, jwk=public_jwk(self._key), root_url=settings.root_url)
        services = [("members", "HanseMemberRegister", "/members.jws"), ("search", "HanseSearch", "/api/v1/search")]
        if settings.issuer_types:
            services.append(("issuer", "IssuerService", ISSUER_PATH))
        if settings.credential_folder is not None:
            services.append(("credentials", "CredentialService", CREDENTIALS_PATH))
        made["service"] = [
            {"id": f"{settings.did}#{name}", "type": kind, "serviceEndpoint": f"{settings.root_url}{path}"}
            for name, kind, path in services
        ]
        return made
