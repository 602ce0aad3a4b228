"""Entry point of the room: `authenticate` a request, `mint` a header for a call to a peer."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from joserfc.jwk import ECKey

from connector.errors import Unproven
from connector.identity import self_issued_token
from connector.identity.credentials.access_token import mint_access_token
from connector.identity.credentials.verifier import Verifier
from connector.identity.did import DidResolver
from connector.identity.principal import Principal


class Wallet(Protocol):
    """Signs self-issued tokens for us: our own key, or a secure token service elsewhere."""

    async def sign(self, audience: str, *, scopes: Sequence[str] = (), token: str = "") -> str:
        """A self-issued token for `audience`. Its claim `token` is `token`, or grants `scopes` of our credentials.

        Raises: Unavailable where the signer cannot be reached now.
        """
        ...


class OwnWallet:
    """Signs self-issued tokens with our own key."""

    def __init__(self, *, did: str, key: ECKey) -> None:
        self._did, self._key = did, key

    async def sign(self, audience: str, *, scopes: Sequence[str] = (), token: str = "") -> str:
        now = time.time()
        if scopes and not token:
            token = mint_access_token(self._key, did=self._did, receiver=audience, scopes=scopes, now=now)
        claims = {"token": token} if token else None
        return self_issued_token.mint(self._key, did=self._did, audience=audience, now=now, claims=claims)


class Identity:
    """Our own identity (`did` and `key`), and authentication of other participants.

    `static` maps bearer tokens to participants, for test set-ups. `anonymous` is the participant for requests without a
    token; empty refuses them. `wallet` signs our tokens; None: our key does. `scopes`: what each receiver of our
    tokens may query of our credentials; none: tokens grant nothing. `verifier` checks callers' credentials; None: a
    token suffices. `shared_replays`: used tokens of all processes of this connector; None: this is the only one.
    """

    def __init__(
        self,
        *,
        did: str,
        key: ECKey,
        resolver: DidResolver,
        static: Mapping[str, str] | None = None,
        anonymous: str = "",
        wallet: Wallet | None = None,
        scopes: Sequence[str] = (),
        verifier: Verifier | None = None,
        shared_replays: self_issued_token.SharedReplays | None = None,
    ) -> None:
        self.did = did
        self.key = key
        self._resolver = resolver
        self._wallet = wallet or OwnWallet(did=did, key=key)
        self._scopes = tuple(scopes)
        self._verifier = verifier
        self._replays = self_issued_token.Replays(since=time.time())
        self._shared_replays = shared_replays
        self._static = dict(static or {})
        self._anonymous = anonymous

    async def authenticate(self, authorization: str | None) -> Principal:
        """The participant that sent an Authorization header. Raises: Unproven, Unavailable."""
        if not authorization:
            if self._anonymous:
                return Principal(self._anonymous)
            raise Unproven("expected an Authorization header with a self-issued token, got none")
        scheme, _, token = authorization.partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else authorization.strip()
        for known, participant in self._static.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return Principal(participant)
        if scheme.lower() != "bearer":
            raise Unproven("expected `Authorization: Bearer <token>`, got another scheme")
        verified = await self._verify_token(token)
        issuer, access_token = verified.claims["iss"], verified.claims.get("token")
        shown = () if self._verifier is None else await self._verifier.verify(issuer, access_token)
        return Principal(issuer, shown, verified.key)

    async def authenticate_query(self, authorization: str | None) -> tuple[str, str]:
        """The participant that queries our credentials, and the access token that it presents.

        Its own credentials are not asked for, as it would ask for ours to answer. Raises: Unproven, Unavailable.
        """
        claims = await self._verify_bearer(authorization)
        access_token = claims.get("token")
        if not isinstance(access_token, str):
            raise Unproven("expected a self-issued token with an access token in the claim `token`")
        return claims["iss"], access_token

    async def authenticate_holder(self, authorization: str | None) -> tuple[str, str]:
        """The participant that requests credentials of us, and its access token for our delivery; empty without one.

        Raises: Unproven, Unavailable.
        """
        claims = await self._verify_bearer(authorization)
        access_token = claims.get("token", "")
        if not isinstance(access_token, str) or not (access_token.isascii() and access_token.isprintable()):
            raise Unproven("expected a self-issued token whose claim `token` is printable ASCII, if it has one")
        return claims["iss"], access_token

    async def authenticate_issuer(self, authorization: str | None) -> str:
        """The participant that delivers or offers us credentials, by its token alone. Raises: Unproven, Unavailable."""
        return str((await self._verify_bearer(authorization))["iss"])

    async def _verify_bearer(self, authorization: str | None) -> dict[str, Any]:
        scheme, _, token = (authorization or "").partition(" ")
        if scheme != "Bearer":
            raise Unproven("expected `Authorization: Bearer <token>` with a self-issued token")
        return (await self._verify_token(token)).claims

    async def _verify_token(self, token: str) -> self_issued_token.VerifiedToken:
        return await self_issued_token.verify(
            token,
            audience=self.did,
            resolver=self._resolver,
            replays=self._replays,
            shared=self._shared_replays,
        )

    def read_claimed_issuer(self, authorization: str) -> str:
        """The issuer that the header's token claims, without any check of its signature. Raises: Unproven."""
        return self_issued_token.claimed_issuer(authorization.partition(" ")[2].strip(), audience=self.did)

    async def mint(self, audience: str, *, scopes: Sequence[str] | None = None) -> str:
        """An Authorization header that proves our identity to `audience`, for a single request.

        `scopes`: what `audience` may query of our credentials; None: what the settings say. Raises: Unavailable.
        """
        wanted = self._scopes if scopes is None else scopes
        return f"Bearer {await self._wallet.sign(audience, scopes=wanted)}"
