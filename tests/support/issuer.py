"""An issuer of membership credentials on loopback, with a status list that the test changes. Signs JWTs of VC 1.1."""

from __future__ import annotations

import base64
import gzip
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from joserfc import jws
from joserfc.jwk import ECKey

from connector.identity import did

TYPE = "MembershipCredential"
_LIFE = 24 * 3600.0
_BITS = 131_072  # the least size of a list (Bitstring Status List 1.0, section 6.1)
_CONTEXT = ["https://www.w3.org/2018/credentials/v1"]


@dataclass
class Issuer:
    """Issues credentials at `url` (without a path). `list_seconds`: how long a copy of its status list counts."""

    url: str
    list_seconds: float = 300.0
    revoked: set[int] = field(default_factory=set)
    key: ECKey = field(default_factory=lambda: ECKey.generate_key("P-256", auto_kid=True))
    _issued: int = 0

    @property
    def did(self) -> str:
        return f"did:web:{quote(self.url.removeprefix('http://'), safe='')}:issuer"

    @property
    def list_url(self) -> str:
        return f"{self.url}/issuer/status/1"

    def router(self) -> APIRouter:
        """Its DID document and its status list."""
        routes = APIRouter(prefix="/issuer")
        routes.add_api_route("/did.json", self._document, methods=["GET"])
        routes.add_api_route("/status/1", self._status_list, methods=["GET"])
        return routes

    def issue(self, holder: str, subject: dict[str, Any] | None = None) -> tuple[str, int]:
        """A membership credential about `holder`, and its index in the status list."""
        index, now = self._issued, time.time()
        self._issued += 1
        status = {
            "id": f"{self.list_url}#{index}",
            "type": "BitstringStatusListEntry",
            "statusPurpose": "revocation",
            "statusListIndex": index,
            "statusListCredential": self.list_url,
        }
        about = {"credentialSubject": {"id": holder, **(subject or {})}, "credentialStatus": status}
        times = {"nbf": int(now - 60), "exp": int(now + _LIFE)}
        vc = {**_credential(self.did, TYPE, begins=now - 60, ends=now + _LIFE), **about}
        return self._sign({"iss": self.did, "sub": holder, "jti": vc["id"], **times, "vc": vc}), index

    def status_list(self) -> dict[str, Any]:
        """The list as a credential, unsigned."""
        bits, now = bytearray(_BITS // 8), time.time()
        for index in self.revoked:
            bits[index // 8] |= 0x80 >> index % 8
        subject = {
            "id": f"{self.list_url}#list",
            "type": "BitstringStatusList",
            "statusPurpose": "revocation",
            "encodedList": encode_bits(bits),
        }
        vc = _credential(self.did, "BitstringStatusListCredential", begins=now - 60, ends=now + self.list_seconds)
        return {**vc, "id": self.list_url, "credentialSubject": subject}

    async def _document(self) -> Response:
        return Response(json.dumps(did.document(self.did, jwk=self.key.as_dict(private=False), root_url=self.url)))

    async def _status_list(self, request: Request) -> Response:
        """Signed; for EDC 0.15, which reads unsigned lists alone and asks for JSON, unsigned."""
        vc = self.status_list()
        if request.headers.get("accept") == "application/json":
            return Response(json.dumps(vc), media_type="application/json")
        claims = {"iss": self.did, "sub": vc["id"], "exp": int(time.time() + self.list_seconds), "vc": vc}
        return Response(self._sign(claims), media_type="application/vc+jwt")

    def _sign(self, claims: dict[str, Any]) -> str:
        header = {"alg": "ES256", "kid": f"{self.did}#{self.key.kid}", "typ": "JWT"}
        return jws.serialize_compact(header, json.dumps(claims), self.key, algorithms=["ES256"])


def encode_bits(bits: bytes) -> str:
    """The bits of a status list as `encodedList`."""
    return "u" + base64.urlsafe_b64encode(gzip.compress(bytes(bits))).rstrip(b"=").decode()


def import_credential(credential: str, file: Path, environment: Mapping[str, str]) -> None:
    """Give a connector its credential by the command line, as an operator does. `environment`: the connector's."""
    file.write_text(credential)
    command = [sys.executable, "-m", "connector", "import-credential", str(file)]
    subprocess.run(command, env=environment, check=True, capture_output=True)


def _credential(issuer: str, kind: str, *, begins: float, ends: float) -> dict[str, Any]:
    return {
        "@context": _CONTEXT,
        "id": f"urn:uuid:{uuid.uuid4()}",
        "type": ["VerifiableCredential", kind],
        "issuer": issuer,
        "issuanceDate": stamp(begins),
        "expirationDate": stamp(ends),
    }


def stamp(seconds: float) -> str:
    """A time as credentials write it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
