"""An OpenID provider in memory, in place of the guarded HTTP client: it signs what a test asks for."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlsplit

from joserfc import jwt
from joserfc.jwk import ECKey, KeySet, RSAKey

from connector.errors import PeerUnreachable
from connector.infra.net.http_client import Reply

ISSUER = "https://idp.example"
CLIENT = "hanse-north"
_LOGOUT = "http://schemas.openid.net/event/backchannel-logout"


class MemoryProvider:
    """`claims` and `header` change the next ID tokens; a claim of None is left out."""

    def __init__(self) -> None:
        self.key: ECKey | RSAKey = ECKey.generate_key("P-256", {"kid": "first"})
        self.signing: Any = None  # another key to sign with
        self.claims: dict[str, Any] = {}
        self.metadata: dict[str, Any] = {}
        self.alg = "ES256"
        self.down = False
        self.asked: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}

    def log_in(self, address: str) -> dict[str, str]:
        """The query that the provider sends the browser back with, for the address that a login led it to."""
        asked = dict(parse_qsl(urlsplit(address).query))
        code = f"code-{len(self._codes)}"
        self._codes[code] = asked
        return {"code": code, "state": asked["state"], "iss": ISSUER}

    def logout_token(self, **claims: Any) -> str:
        now = int(time.time())
        body = {
            "iss": ISSUER, "aud": CLIENT, "iat": now, "exp": now + 120, "jti": "j-1", "events": {_LOGOUT: {}},
            "sub": "ada", "sid": "s-1",
        } | claims  # fmt: skip
        return self._sign({name: value for name, value in body.items() if value is not None})

    def id_token(self, **claims: Any) -> str:
        """An ID token as a program gets it; a claim of None is left out."""
        now = int(time.time())
        body = {
            "iss": ISSUER, "aud": "hanse-cli", "sub": "ada", "name": "Ada Byron", "sid": "s-1", "groups": ["data-team"],
            "iat": now, "exp": now + 600, "nonce": "n-1",
        } | claims  # fmt: skip
        return self._sign({name: value for name, value in body.items() if value is not None})

    async def call(
        self, method: str, url: str, *, headers: Any = None, body: bytes | None = None, max_bytes: int | None = None
    ) -> Reply:
        if self.down:
            raise PeerUnreachable("idp.example cannot be reached")
        self.asked.append(urlsplit(url).path)
        if url.endswith("/.well-known/openid-configuration"):
            return _reply(200, self._metadata())
        if url.endswith("/jwks"):
            return _reply(200, KeySet([self.key]).as_dict(private=False))
        return self._token({name: values[0] for name, values in parse_qs((body or b"").decode()).items()})

    def _metadata(self) -> dict[str, Any]:
        return {
            "issuer": ISSUER,
            "authorization_endpoint": f"{ISSUER}/auth",
            "token_endpoint": f"{ISSUER}/token",
            "jwks_uri": f"{ISSUER}/jwks",
            "end_session_endpoint": f"{ISSUER}/end",
            "id_token_signing_alg_values_supported": ["ES256", "none", "HS256"],
        } | self.metadata

    def _token(self, form: Mapping[str, str]) -> Reply:
        asked = self._codes.pop(form.get("code", ""), None)
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(verifier).decode().rstrip("=")
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
            return _reply(400, {"error": "invalid_grant", "error_description": "grant request is invalid"})
        now = int(time.time())
        claims = {
            "iss": ISSUER, "aud": CLIENT, "sub": "ada", "name": "Ada Byron", "sid": "s-1", "groups": ["data-team"],
            "iat": now, "exp": now + 600, "nonce": asked["nonce"],
        } | self.claims  # fmt: skip
        signed = self._sign({name: value for name, value in claims.items() if value is not None})
        return _reply(200, {"access_token": "a-1", "token_type": "Bearer", "id_token": signed})

    def _sign(self, claims: dict[str, Any]) -> str:
        if self.alg == "none":
            parts = ({"alg": "none"}, claims)
            return (
                ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts)
                + "."
            )
        key = self.signing or self.key
        header = {"alg": self.alg, **({"kid": key.kid} if key.kid else {})}
        return jwt.encode(header, claims, key, algorithms=[self.alg])


def _reply(status: int, body: Mapping[str, Any]) -> Reply:
    return Reply(status, {"content-type": "application/json"}, json.dumps(body).encode())
