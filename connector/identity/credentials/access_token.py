"""Our own access tokens: what lets one verifier query some of our credentials for a few minutes.

An access token is a JWT that we sign for ourselves (iss = aud = our DID); `sub` is the only party that may use it. Its
`typ` and its `sub` keep it from ever being a self-issued token (Decentralized Claims 1.0, section 4).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from connector.errors import Unproven
from connector.identity.self_issued_token import ACCESS_TYPE

_LIFE = 300.0
_LEEWAY = 30.0
_TOKEN_MAX = 8 * 2**10


def mint_access_token(key: ECKey, *, did: str, receiver: str, scopes: Iterable[str], now: float) -> str:
    """A token by which `receiver` alone may query our credentials within `scopes`."""
    header = {"alg": "ES256", "kid": f"{did}#{key.thumbprint()}", "typ": ACCESS_TYPE}
    body = {
        "iss": did,
        "aud": did,
        "sub": receiver,
        "scope": " ".join(scopes),
        "jti": f"at-{uuid.uuid4().hex}",
        "iat": int(now),
        "exp": int(now + _LIFE),
    }
    return jwt.encode(header, body, key, algorithms=["ES256"])


def verify_access_token(text: str, keys: Sequence[ECKey], *, did: str, presenter: str, now: float) -> frozenset[str]:
    """The scopes that `presenter` may query with this token. `keys` are ours, the former ones included.

    Raises: Unproven for a token that another party signed, that is for another party, or that is expired.
    """
    if len(text) > _TOKEN_MAX:
        raise Unproven(f"expected an access token of at most {_TOKEN_MAX} characters, got {len(text)}")
    header, claims = _decode(text, keys)
    if header.get("typ") != ACCESS_TYPE or claims.get("iss") != did or claims.get("aud") != did:
        raise Unproven("expected one of our access tokens, got another token")
    if claims.get("sub") != presenter:
        raise Unproven(f"expected an access token for {presenter}, got one for another party")
    if not float(claims.get("iat", now + 1e9)) - _LEEWAY <= now < float(claims.get("exp", 0)) + _LEEWAY:
        raise Unproven("the access token is expired; ask its holder again")
    return frozenset(str(claims.get("scope", "")).split())


def _decode(text: str, keys: Sequence[ECKey]) -> tuple[dict[str, object], dict[str, float | str]]:
    for key in keys:
        try:
            token = jwt.decode(text, key, algorithms=["ES256"])
        except (JoseError, ValueError, TypeError):
            continue
        return dict(token.header), dict(token.claims)
    raise Unproven("expected an access token that we signed, got another text")
