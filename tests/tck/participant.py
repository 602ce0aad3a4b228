"""A participant that stands between the conformance kit and the connector, as the kit can neither sign nor present.

It has a DID document, and over Decentralized Claims a credential and a credential service. Each call of the kit goes
on with a self-issued token of its own (`/front`), and each call of the connector goes on to the kit once its token, and
its credential, are verified (`/back`). The kit's fixed name and addresses are replaced in what passes; nothing else is.
"""

from __future__ import annotations

import re
from typing import Any

import httpx2
from fastapi import APIRouter, Request, Response
from joserfc.jwk import ECKey

from connector.identity import did as dids
from connector.identity.credentials.presentation_query import PATH, PresentationService
from connector.identity.credentials.rules import CredentialRules
from connector.identity.credentials.verifier import Verifier
from connector.identity.did import DidResolver
from connector.identity.identity_service import Identity, OwnWallet
from connector.identity.keys import public_jwk
from connector.identity.signed_jwt import read_jwt
from connector.infra.net.http_client import AddressGuard, HttpClient
from tests.support.issuer import TYPE, Issuer

_METHODS = ["GET", "POST", "PUT", "DELETE"]
_LOOPBACK = re.compile(rb"http://127\.0\.0\.1:(\d+)")
_KEPT = ("accept", "content-type")


def rules(issuer: Issuer) -> dict[str, Any]:
    """What both sides demand of each other: a membership credential of the issuer."""
    return {"issuers": {issuer.did: [TYPE]}, "scopes": [TYPE]}


class Participant:
    """The participant at `address`. `name`: the kit's. `issuer`: of credentials; None: tokens alone prove identity."""

    def __init__(
        self, address: str, *, name: str, connector: str, root: str, http: httpx2.AsyncClient, issuer: Issuer | None
    ) -> None:
        self.did = dids.did_of(f"{address}/participant")
        self.front = f"{address}/front"
        self._address, self._name, self._connector, self._root, self._http = address, name, connector, root, http
        self._net = HttpClient(AddressGuard(allow=("127.0.0.1",), insecure_http=True), timeout=5, max_bytes=2**20)
        self._key = ECKey.generate_key("P-256", auto_kid=True)
        self._identity = self._build_identity(issuer)
        self._credential = issuer.issue(self.did, {"name": "kit"})[0] if issuer is not None else ""
        self.router = self._build_router(with_credentials=issuer is not None)

    def back(self, url: str) -> str:
        """The address by which the connector calls this one of loopback."""
        return _LOOPBACK.sub(self._to_back, url.encode()).decode()

    async def close(self) -> None:
        await self._net.close()

    def _build_identity(self, issuer: Issuer | None) -> Identity:
        resolver = DidResolver(self._net)
        if issuer is None:
            return Identity(did=self.did, key=self._key, resolver=resolver)
        found = CredentialRules.model_validate(rules(issuer))
        wallet = OwnWallet(did=self.did, key=self._key)
        verifier = Verifier(found, net=self._net, resolver=resolver, did=self.did, signer=wallet)
        scopes = [str(scope) for scope in found.scopes]
        return Identity(did=self.did, key=self._key, resolver=resolver, scopes=scopes, verifier=verifier)

    def _build_router(self, *, with_credentials: bool) -> APIRouter:
        routes = APIRouter()
        service = f"{self._address}/participant/dcp" if with_credentials else ""
        document = dids.document(
            self.did, jwk=public_jwk(self._key), root_url=self._address, credential_service=service
        )
        presenting = PresentationService(self._identity, self._find)

        async def query(request: Request) -> dict[str, Any]:
            return await presenting.answer(request.headers.get("authorization"), request.json)

        routes.add_api_route("/participant/did.json", lambda: document, methods=["GET"])
        routes.add_api_route(f"/participant/dcp{PATH}", query, methods=["POST"])
        routes.add_api_route("/front/{path:path}", self._go_front, methods=_METHODS)
        routes.add_api_route("/back/{port}/{path:path}", self._go_back, methods=_METHODS)
        return routes

    async def _find(self, scopes: Any, now: float) -> list[Any]:
        return [read_jwt(self._credential, what="a credential", longest=2**16)] if scopes else []

    async def _go_front(self, path: str, request: Request) -> Response:
        """A call of the kit, to the connector."""
        body = _LOOPBACK.sub(self._to_back, await request.body()).replace(self._name.encode(), self.did.encode())
        token = await self._identity.mint(self._connector)
        return await self._forward(f"{self._root}/{path}", request, body, {"authorization": token})

    async def _go_back(self, port: int, path: str, request: Request) -> Response:
        """A call of the connector, to the kit."""
        caller = await self._identity.authenticate(request.headers.get("authorization"))
        if caller.id != self._connector:
            return Response(status_code=403)
        body = (await request.body()).replace(self.did.encode(), self._name.encode())
        body = body.replace(self._root.encode(), self.front.encode())  # the address to which the kit answers
        return await self._forward(f"http://127.0.0.1:{port}/{path}", request, body, {})

    async def _forward(self, url: str, request: Request, body: bytes, more: dict[str, str]) -> Response:
        headers = {name: value for name, value in request.headers.items() if name in _KEPT}
        reply = await self._http.request(
            request.method, url, params=request.query_params, headers=headers | more, content=body
        )
        kept = {name: value for name, value in reply.headers.items() if name in ("content-type", "location")}
        return Response(reply.content, reply.status_code, headers=kept)

    def _to_back(self, found: re.Match[bytes]) -> bytes:
        return f"{self._address}/back/{found[1].decode()}".encode()
