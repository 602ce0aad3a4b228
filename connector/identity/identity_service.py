"""The two calls that the rest of the code sees: `authenticate` a request, `mint` a header for a peer."""

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
    """Ours (`did`, a key) and everybody else's. `static` maps bearer tokens to participants, for labs."""

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
        """Who sends this Authorization header. Unauthenticated where that is not proven."""
        if not authorization:
            if self._anonymous:
                return Principal(self._anonymous)
            raise Unauthenticated("expected an Authorization header with a self-issued token, came none")
        scheme, _, token = authorization.partition(" ")
        token = token.strip() if scheme.lower() == "bearer" else authorization.strip()
        for known, participant in self._static.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return Principal(participant)
        if scheme.lower() != "bearer":
            raise Unauthenticated("expected `Authorization: Bearer <token>`, came another scheme")
        claims = await self_issued_token.verify(
            token, audience=self.did, resolver=self._resolver, replays=self._replays
        )
        return Principal(claims["iss"])

    def claimed(self, authorization: str) -> str:
        """Whom this header's self-issued token says that it is from, before anybody is asked for a key: no proof."""
        return self_issued_token.claimed_issuer(authorization.partition(" ")[2].strip(), audience=self.did)

    def mint(self, audience: str) -> str:
        """An Authorization header that proves us to `audience`, for one request."""
        return f"Bearer {self_issued_token.mint(self.key, did=self.did, audience=audience, now=time.time())}"
