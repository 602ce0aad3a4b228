"""A member with a wallet: takes deliveries, presents what it took, and asks the issuer. Over real HTTP on loopback."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx2

from catalogue.store import CatalogueTransaction
from connector.identity import self_issued_token
from connector.identity.credentials.presenting import make_presentations
from connector.identity.credentials.rules import CredentialRules
from connector.identity.credentials.verifier import Verifier
from connector.identity.did import CONTEXT, DidResolver, document
from connector.identity.identity_service import OwnWallet
from connector.identity.keys import public_jwk
from connector.identity.signed_jwt import read_jwt
from connector.infra.net.http_client import HttpClient
from connector.infra.net.http_client import Reply as HttpReply
from tests.catalogue import provider as providers
from tests.catalogue.conftest import ROOT, Catalogue
from tests.catalogue.provider import Provider, Reply, Request

OPERATOR = "did:web:catalogue.test"
MEMBERSHIP, SENSITIVE = "MembershipCredential", "SensitiveDataCredential"


@dataclass
class Holder:
    """A provider with a credential service. `answers` are the statuses of the next deliveries; then 200."""

    provider: Provider
    deliveries: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)  # claims of the issuer's tokens
    answers: list[int] = field(default_factory=list)
    attempts: int = 0

    @property
    def did(self) -> str:
        return self.provider.did

    @property
    def credentials(self) -> list[str]:
        """The JWTs of the last delivery."""
        return [one["payload"] for one in self.deliveries[-1]["credentials"]]

    def answer(self, _: Provider, request: Request) -> Reply:
        if request.path == "/cs/credentials":
            return self._take(request)
        if request.path == "/cs/presentations/query":
            return self._present(request)
        return Reply.of({}, status=404)

    def _take(self, request: Request) -> Reply:
        self.attempts += 1
        if self.answers and (status := self.answers.pop(0)) != 200:
            return Reply.of({"detail": "not now"}, status=status)
        self.tokens.append(read_jwt(request.headers["authorization"][7:], what="a token", longest=8192).claims)
        self.deliveries.append(json.loads(request.body))
        return Reply.of({})

    def _present(self, request: Request) -> Reply:
        verifier = read_jwt(request.headers["authorization"][7:], what="a token", longest=8192).claims["iss"]
        read = [read_jwt(one, what="a credential", longest=2**16) for one in self.credentials]
        made = make_presentations(read, self.provider.key, did=self.did, verifier=verifier, now=time.time())
        return Reply.of({"@context": [CONTEXT], "type": "PresentationResponseMessage", "presentation": made})

    def document(self) -> Reply:
        jwk, url = public_jwk(self.provider.key), self.provider.url
        return Reply.of(document(self.did, jwk=jwk, root_url=url, credential_service=f"{url}/cs"))

    def header(self, **claims: Any) -> dict[str, str]:
        """An Authorization header; `claims` replace those of a good token."""
        token = self_issued_token.mint(
            self.provider.key, did=self.did, audience=OPERATOR, now=time.time(), claims=claims
        )
        return {"authorization": f"Bearer {token}"}

    async def request(self, catalogue: Catalogue, *wanted: str, headers: Any = None, **more: Any) -> httpx2.Response:
        """Ask the issuer for credentials by their ids."""
        message = {
            "@context": [CONTEXT],
            "type": "CredentialRequestMessage",
            "holderPid": "our-request-1",
            "credentials": [{"id": one} for one in wanted],
        }
        body = {name: value for name, value in {**message, **more}.items() if value is not None}
        return await catalogue.http.post("/issuer/credentials", json=body, headers=headers or self.header())


@asynccontextmanager
async def holding() -> AsyncIterator[Holder]:
    """A holder that listens on a free port of 127.0.0.1."""
    async with providers.running() as provider:
        holder = Holder(provider)
        provider.answer, provider.document = holder.answer, holder.document
        yield holder


async def deliver(catalogue: Catalogue) -> None:
    """Deliver what is due now, to the end."""
    issuer = catalogue.parts.issuer
    assert issuer is not None
    while await catalogue.parts.store.read(_is_due):
        await asyncio.gather(*await issuer.delivery.start_due())


def _is_due(tx: CatalogueTransaction) -> bool:
    return bool(tx.issuances.list_due(tx.now, apart_from=(), limit=1))


class Network:
    """The calls of a verifier: to the catalogue's app in memory, to all others by HTTP."""

    def __init__(self, catalogue: Catalogue) -> None:
        self._app, self._net = catalogue.http, catalogue.parts.net
        self.guard = catalogue.parts.net.guard

    async def call(self, method: str, url: str, **more: Any) -> HttpReply:
        if not url.startswith(ROOT):
            return await self._net.call(method, url, **more)
        answer = await self._app.request(method, url, headers=more.get("headers"), content=more.get("body"))
        return HttpReply(answer.status_code, dict(answer.headers), answer.content)


def verifier(catalogue: Catalogue, *types: str) -> Verifier:
    """A connector's verifier that trusts the catalogue for these types; it has no copies of lists yet."""
    wanted = types or (MEMBERSHIP,)
    rules = CredentialRules.model_validate({"issuers": {OPERATOR: list(wanted)}, "scopes": list(wanted)})
    net: HttpClient = Network(catalogue)  # type: ignore[assignment]  # what the verifier calls of it
    did = "did:web:verifier.test"
    signer = OwnWallet(did=did, key=catalogue.parts.identity.key)
    return Verifier(rules, net=net, resolver=DidResolver(net), did=did, signer=signer)
