"""The client of an issuer of signed tokens: discovery, keys, signatures. Authlib and joserfc do the work.

It talks through the guarded client. Each network failure or unfit answer is one of `FAILED`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import httpx2
from authlib.common.errors import AuthlibBaseError
from authlib.integrations.starlette_client import StarletteOAuth2App
from authlib.oauth2.rfc7523 import PrivateKeyJWT, private_key_jwt_sign
from authlib.oidc.discovery import get_well_known_url
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import Key, KeySet, import_key
from joserfc.jws import JWSRegistry

from connector.errors import ConnectorError, Invalid, PeerUnreachable, Unavailable
from connector.infra.net.http_client import HttpClient
from connector.infra.net.httpx_transport import GuardedTransport
from connector.telemetry import logger

LEEWAY_S = 30
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
_SIGNING = {"RSA": "RS256", "P-256": "ES256", "P-384": "ES384", "P-521": "ES512", "Ed25519": "EdDSA"}
_ASSERTION_SECONDS = 60
_METADATA_SECONDS = 3600.0  # then discovery and keys are read again
_METADATA_KEPT_SECONDS = 24 * 3600.0  # so long what was read last counts, where it cannot be read again
_RELOAD_PAUSE_SECONDS = 60.0  # between attempts to read it again then
_KEYS_PAUSE_SECONDS = 10.0  # between two readings of the keys on account of an unknown one
_DOWN_SECONDS = 5.0  # in which an issuer that did not answer is not called again
_ANSWER_BYTES = 2**20
_UNREACHABLE = (httpx2.HTTPError, PeerUnreachable, Unavailable)
T = TypeVar("T")
_log = logger("sign-on")
FAILED = (
    AuthlibBaseError,
    JoseError,
    httpx2.HTTPError,
    ConnectorError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    AttributeError,
    OverflowError,
)


class _KeyAuthentication(PrivateKeyJWT):  # type: ignore[misc]  # Authlib has no types
    """Authlib's client authentication with a key, under assertions that last a minute."""

    def __init__(self, key: Key) -> None:
        super().__init__(alg=name_algorithm(key), headers={"kid": key.kid} if key.kid else {})

    def sign(self, auth: Any, token_endpoint: str) -> str:
        return private_key_jwt_sign(  # type: ignore[no-any-return]  # Authlib has no types
            auth.client_secret, auth.client_id, token_endpoint, alg=self.alg, header=dict(self.headers),
            expires_in=_ASSERTION_SECONDS,
        )  # fmt: skip


def name_algorithm(key: Key) -> str:
    """Return the algorithm that a private key signs with. Raises: Invalid for a key that signs none of ours."""
    kind = str(key.as_dict(private=False).get("crv", key.key_type))
    if kind not in _SIGNING or not key.is_private:
        raise Invalid(f"expected a private key of one of the kinds {', '.join(_SIGNING)}, got {kind[:20]}")
    return _SIGNING[kind]


class IssuerClient:
    """Authlib's client of an issuer, over the guarded HTTP client.

    `jwks_url` or `jwks`: in place of the discovery. `client_key`: a private JWK that the client authenticates with
    (`private_key_jwt`) in place of the secret.
    """

    def __init__(
        self,
        net: HttpClient,
        *,
        name: str,
        issuer: str,
        client_id: str = "",
        client_secret: str = "",
        client_key: Mapping[str, Any] | None = None,
        scopes: str = "",
        jwks_url: str = "",
        jwks: Mapping[str, Any] | None = None,
    ) -> None:
        self._issuer = issuer
        self._fixed = jwks is not None
        key = None if client_key is None else import_key(dict(client_key))
        self._make = partial(
            StarletteOAuth2App,
            None,
            name=name,
            client_id=client_id,
            client_secret=key or client_secret or None,
            client_auth_methods=None if key is None else [_KeyAuthentication(key)],
            client_kwargs={
                **({} if key is None else {"token_endpoint_auth_method": _KeyAuthentication.name}),
                "scope": scopes,
                "code_challenge_method": "S256",
                "transport": GuardedTransport(net, max_bytes=_ANSWER_BYTES),
                "trust_env": False,
            },
            **(
                {
                    "issuer": issuer,
                    "jwks_uri": jwks_url,
                    "jwks": jwks,
                    "id_token_signing_alg_values_supported": _ALGORITHMS,
                }
                if jwks_url or jwks
                else {"server_metadata_url": get_well_known_url(issuer, external=True)}
            ),
        )
        self._app: StarletteOAuth2App | None = None
        self._loaded = self._load_at = self._keys_read = 0.0
        self._down_until = 0.0
        self._calling = asyncio.Lock()  # one caller asks the issuer; the others wait for what it learns

    async def app(self) -> StarletteOAuth2App:
        """Return the client with current metadata. Raises: Invalid for metadata of another issuer; Unavailable."""
        async with self._calling:
            if self._app is None or time.monotonic() >= self._load_at:
                self._app = await self._load_or_keep()
            return self._app

    async def _load_or_keep(self) -> StarletteOAuth2App:
        """Return new metadata, or for a day those at hand where the issuer gives none: logins and jobs go on."""
        now = time.monotonic()
        try:
            app = await self._call(self._load)
        except FAILED as error:
            if self._app is None or now - self._loaded > _METADATA_KEPT_SECONDS:
                raise
            _log.warning("issuer_metadata_not_renewed", issuer=self._issuer, reason=str(error)[:300])
            self._load_at = now + _RELOAD_PAUSE_SECONDS
            return self._app
        self._loaded, self._load_at = now, now + _METADATA_SECONDS
        return app

    async def _call(self, work: Callable[[], Awaitable[T]]) -> T:
        """Wait for an answer of the issuer. Raises: Unavailable, for a while without a call if it did not answer
        before."""
        if time.monotonic() < self._down_until:
            raise Unavailable(f"{self._issuer} did not answer a moment ago; try again in a moment")
        try:
            return await work()
        except _UNREACHABLE as error:
            self._down_until = time.monotonic() + _DOWN_SECONDS
            raise Unavailable(f"{self._issuer} does not answer now ({error}); try again in a moment") from error

    async def _load(self) -> StarletteOAuth2App:
        app = self._make()
        metadata = await app.load_server_metadata()
        if metadata.get("issuer") != self._issuer:
            raise Invalid(f"expected metadata of {self._issuer}, got {str(metadata.get('issuer'))[:200]!r}")
        offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        metadata["id_token_signing_alg_values_supported"] = [name for name in _ALGORITHMS if name in offered]
        if not metadata["id_token_signing_alg_values_supported"]:
            raise Invalid(f"expected a signature algorithm among {', '.join(_ALGORITHMS)}, got {offered}")
        await app.fetch_jwk_set()  # into the metadata
        return app

    async def decode(self, token: str) -> Mapping[str, Any]:
        """Return the claims of a token that the issuer signed. Keys are read again for an unknown one, within a pace.

        Raises: JoseError; Unavailable if the issuer does not answer.
        """
        app = await self.app()
        registry = JWSRegistry(
            algorithms=app.server_metadata["id_token_signing_alg_values_supported"], strict_check_header=False
        )
        try:
            return jwt.decode(token, KeySet.import_key_set(await app.fetch_jwk_set()), registry=registry).claims
        except InvalidKeyIdError:
            if self._fixed:
                raise
            await self._read_keys_again(app)
            return jwt.decode(token, KeySet.import_key_set(await app.fetch_jwk_set()), registry=registry).claims

    async def _read_keys_again(self, app: StarletteOAuth2App) -> None:
        async with self._calling:
            if time.monotonic() - self._keys_read >= _KEYS_PAUSE_SECONDS:
                self._keys_read = time.monotonic()
                await self._call(partial(app.fetch_jwk_set, force=True))
