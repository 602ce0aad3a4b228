"""Entry point of the room: `authenticate` a request, `mint` a header for a call to a peer."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping

from joserfc.jwk import ECKey

from connector.errors import Unauthenticated
from connector.identity import self_issued_token
from connector.identity.did import DidResolver
from connector.identity.principal import Principal


class Identity:
    """Our own identity (`did` and `key`), and authentication of other participants.

    `static` maps bearer tokens to participants, for test set-ups. `anonymous` is the participant for requests without a
    token; empty refuses them.
    """

    def __init__(
        self,
        *,
        did: str,
        key: ECKey,
        resolver: DidResolver,
        static: Mapping[str, str] | None = None,
        anonymous: str = "",
    ) -> None:
        self.did = did
        self.key = key
        self._resolver = resolver
        self._replays = self_issued_token.Replays(since=time.time())
        self._static = dict(static or {})
        self._anonymous = anonymous

    async def authenticate(self, authorization: str | None) -> Principal:
        """The participant that sent an Authorization header. Raises: Unauthenticated, Busy."""
        if not authorization:
            if self._anonymous:
                return Principal(self._anonymous)
            raise Unauthenticated("expected an Authorization header with a self-issued token, got none")
        scheme, _, token = authorization.partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else authorization.strip()
        for known, participant in self._static.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return Principal(participant)
        if scheme.lower() != "bearer":
            raise Unauthenticated("expected `Authorization: Bearer <token>`, got another scheme")
        claims = await self_issued_token.verify(
            token, audience=self.did, resolver=self._resolver, replays=self._replays
        )
        return Principal(claims["iss"])

    def read_claimed_issuer(self, authorization: str) -> str:
        """The issuer that the header's token claims, without any check of its signature. Raises: Unauthenticated."""
        return self_issued_token.claimed_issuer(authorization.partition(" ")[2].strip(), audience=self.did)

    def mint(self, audience: str) -> str:
        """An Authorization header that proves our identity to `audience`, for a single request."""
        return f"Bearer {self_issued_token.mint(self.key, did=self.did, audience=audience, now=time.time())}"
