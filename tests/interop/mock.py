"""The profile `mock`: EDC's iam-mock, whose tokens prove nothing. Hanse knows EDC by fixed tokens.

A server between the two gives each request of Hanse the token that the mock reads, as Hanse makes no such tokens. It
also serves the operator's register of members, which the ready-made offers ask for.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
from fastapi import Request, Response
from joserfc import jws
from joserfc.jwk import ECKey

from connector.identity import did
from tests.interop import steps
from tests.interop.edc import MOCK_PARTICIPANT, Edc, mock_token, mock_tokens
from tests.interop.files import Files
from tests.tck.product import Place, Product, free_port


@dataclass(frozen=True, slots=True)
class Member(Place):
    """A connector of a data space with an operator."""

    anchor: str

    def environment(self, tokens: Mapping[str, str]) -> dict[str, str]:
        return {**Place.environment(self, tokens), "HANSE_TRUST_ANCHOR": self.anchor}


class Operator:
    """The operator's register of members, and the way to EDC. `edc`: where EDC speaks the protocol."""

    def __init__(self, files: Files, http: httpx2.AsyncClient, participant: str, edc: str) -> None:
        self.did = f"did:web:{files.url.removeprefix('http://').replace(':', '%3A')}"
        self._url, self._http, self._edc = files.url, http, edc
        self._token = mock_token(participant, MOCK_PARTICIPANT)
        self._key = ECKey.generate_key("P-256", auto_kid=True)
        files.app.add_api_route("/.well-known/did.json", self._document, methods=["GET"])
        files.app.add_api_route("/members.jws", self._register, methods=["GET"])
        files.app.add_api_route("/protocol/{path:path}", self._forward, methods=["GET", "POST"])

    async def _document(self) -> Response:
        jwk = self._key.as_dict(private=False)
        return Response(json.dumps(did.document(self.did, jwk=jwk, root_url=self._url)))

    async def _register(self) -> Response:
        header = {"alg": "ES256", "kid": f"{self.did}#{self._key.kid}"}
        member = {"id": MOCK_PARTICIPANT, "name": "edc", "status": "active", **steps.MEMBER}
        body = {"iss": self.did, "exp": time.time() + 300, "members": [member]}
        return Response(jws.serialize_compact(header, json.dumps(body).encode(), self._key))

    async def _forward(self, path: str, request: Request) -> Response:
        kept = {name: value for name, value in request.headers.items() if name in ("accept", "content-type")}
        headers = {**kept, "authorization": self._token}
        reply = await self._http.request(
            request.method, f"{self._edc}/{path}", headers=headers, content=await request.body()
        )
        return Response(reply.content, reply.status_code, media_type=reply.headers.get("content-type"))


@asynccontextmanager
async def running(classes: Mapping[str, str], directory: Path) -> AsyncIterator[steps.Space]:
    """Both connectors, not seeded yet."""
    port = free_port()
    place = Member(directory, free_port(), free_port(), f"did:web:127.0.0.1%3A{port}")
    async with (
        httpx2.AsyncClient(timeout=30, trust_env=False) as operator,
        httpx2.AsyncClient(timeout=60, trust_env=False) as http,
    ):
        tokens = mock_tokens(MOCK_PARTICIPANT, (place.participant, place.base, place.root))
        hanse = Product(place, dict.fromkeys(tokens, MOCK_PARTICIPANT), operator)
        files, edc = Files(port), Edc(directory, classes["mock"], http, MOCK_PARTICIPANT)
        Operator(files, http, place.participant, edc.protocol)
        edc.callback = f"{files.url}/protocol"
        space = steps.Space(edc, hanse, http, directory, f"{edc.callback}/2025-1", f"{files.url}/files", files.sunk)
        async with files.serving(), space.started():
            yield space
