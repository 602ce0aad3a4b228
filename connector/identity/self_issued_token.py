"""Self-issued ID tokens: short JWTs that a participant signs with its own key (Decentralized Claims 1.0, section 3).

`verify` checks in this order; the code repeats the numbers:
1. size, shape, one of the allowed algorithms, a `kid` that belongs to a did:web;
2. iss, sub, aud, jti, iat and exp are present; iss = sub = the kid's DID; aud is our DID alone;
3. the time: not expired, not from the future, no life longer than `_LIFE_MAX`;
4. the signature, with a key that the issuer's document lists under capabilityInvocation;
5. jti was not used by this issuer before, not even at an earlier or another process of this connector.
"""

from __future__ import annotations

import heapq
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import Any, Protocol

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from connector.errors import Unavailable, Unproven
from connector.identity.did import DID_MAX, DidResolver, host_of
from connector.identity.signed_jwt import ALGORITHMS, LEEWAY, ReadJwt, public_key, read_jwt, seconds_of

_WHAT = "a self-issued token"
ACCESS_TYPE = "hanse-access+jwt"  # `typ` of our access tokens, which prove no identity
_TOKEN_MAX = 8 * 2**10
_LIFE = 60.0
_LIFE_MAX = 900.0  # others sign for up to ten minutes
_SEEN_MAX = 100_000  # token ids of expected participants; and of all others together
_OF_ONE_MAX = 50_000  # of an expected participant, or of a host of others
_FORGOTTEN_AT_ONCE = 500  # a millisecond or two
_FEW, _LAST_FOR_FEW = 1_000, 25_000  # the last room is for issuers or hosts with few noted ids


def mint(key: ECKey, *, did: str, audience: str, now: float, claims: dict[str, Any] | None = None) -> str:
    """A token that proves our identity to a single audience for a minute."""
    header = {"alg": "ES256", "kid": f"{did}#{key.thumbprint()}", "typ": "JWT"}
    body = {
        "iss": did,
        "sub": did,
        "aud": audience,
        "jti": uuid.uuid4().hex,
        "iat": int(now),
        "exp": int(now + _LIFE),
        **(claims or {}),
    }
    return jwt.encode(header, body, key, algorithms=["ES256"])


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """The claims of a valid token, and the thumbprint (RFC 7638) of the key that signed it."""

    claims: dict[str, Any]
    key: str


class SharedReplays(Protocol):
    """Ids of tokens that were used at any process of this connector."""

    async def note_first_use(self, issuer: str, jti: str, until: float) -> bool:
        """Note a token id until `until` (UTC seconds); False if it was noted before. Raises: Unavailable."""
        ...


class Replays:
    """Ids of valid tokens that were used, per issuer. If it is full, tokens are refused; no id is forgotten early.

    Expected participants have room of their own. The others are counted by the host of their DIDs, as DIDs cost
    nothing.

    `since`: start of the record (UTC seconds). A token signed earlier may have been used at an earlier process.
    """

    def __init__(self, *, since: float = 0.0) -> None:
        self._since = int(since)  # tokens are dated to the second
        self._seen: defaultdict[str, set[str]] = defaultdict(set)
        self._counts: tuple[Counter[str], Counter[str]] = (
            Counter(),
            Counter(),
        )  # by strangers' hosts; by expected issuer
        self._totals = [0, 0]  # the sums of `_counts`
        self._ends: list[tuple[float, str, str, bool]] = []  # a heap by expiry: (expiry, issuer, jti, expected)

    def note_first_use(
        self, issuer: str, jti: str, *, issued: float, expires: float, now: float, expected: bool = False
    ) -> bool:
        """Note a token id; False if it was used before. Raises: Unavailable if it cannot be noted now, or is too
        old."""
        self._forget(now)
        if issued < self._since:
            raise Unavailable(f"the token of {issuer} was signed before this connector started; sign a new one")
        if jti in self._seen.get(issuer, ()):
            return False
        key = _count_key(issuer, expected)
        most = _OF_ONE_MAX if self._totals[expected] < _SEEN_MAX - _LAST_FOR_FEW else _FEW
        if self._counts[expected][key] >= most or self._totals[expected] >= _SEEN_MAX:
            raise Unavailable("too many tokens are in use; try again in a minute")
        self._counts[expected][key] += 1
        self._totals[expected] += 1
        self._seen[issuer].add(jti)
        heapq.heappush(self._ends, (expires + LEEWAY, issuer, jti, expected))
        return True

    def _forget(self, now: float) -> None:
        for _ in range(_FORGOTTEN_AT_ONCE):  # each call adds one at most
            if not self._ends or self._ends[0][0] > now:
                return
            _, issuer, jti, expected = heapq.heappop(self._ends)
            self._seen[issuer].discard(jti)
            if not self._seen[issuer]:
                del self._seen[issuer]
            key = _count_key(issuer, expected)
            self._totals[expected] -= 1
            self._counts[expected][key] -= 1
            if not self._counts[expected][key]:
                del self._counts[expected][key]


def _count_key(issuer: str, expected: bool) -> str:
    return issuer if expected else host_of(issuer)


async def verify(
    token: str,
    *,
    audience: str,
    resolver: DidResolver,
    replays: Replays,
    shared: SharedReplays | None = None,
    now: float | None = None,
) -> VerifiedToken:
    """A valid token. `replays` bounds what this process notes, and so what `shared` stores.

    Raises: Unproven, with a message that never holds the token; Unavailable.
    """
    at = time.time() if now is None else now
    read = _read_token(token)  # 1
    claims = read.claims
    issuer = _check_parties(read, audience)  # 2
    _check_time(claims, at)  # 3
    jwk = await resolver.key(issuer, read.kid, purpose="capabilityInvocation")
    try:  # 4
        key = public_key(jwk)
        jwt.decode(token, key, algorithms=list(ALGORITHMS))
    except (JoseError, ValueError, KeyError) as error:  # an unknown curve is a KeyError
        raise Unproven(f"the token of {issuer} is not signed by the key that it names") from error
    resolver.mark_proven(issuer)
    issued, expires = float(claims["iat"]), float(claims["exp"])
    expected = resolver.is_expected(issuer)
    first = replays.note_first_use(  # 5
        issuer, claims["jti"], issued=issued, expires=expires, now=at, expected=expected
    )
    if not first or (shared is not None and not await shared.note_first_use(issuer, claims["jti"], expires + LEEWAY)):
        raise Unproven(f"the token of {issuer} was used before; sign a new one for each request")
    return VerifiedToken(claims, key.thumbprint())


def claimed_issuer(token: str, *, audience: str) -> str:
    """The issuer that a token claims, without a check of its signature. Raises: Unproven."""
    return _check_parties(_read_token(token), audience)


def _read_token(token: str) -> ReadJwt:
    read = read_jwt(token, what=_WHAT, longest=_TOKEN_MAX)
    if read.typ == ACCESS_TYPE:
        raise Unproven("expected a self-issued token, got an access token; send it in the claim `token`")
    return read


def _check_parties(read: ReadJwt, audience: str) -> str:
    claims = read.claims
    issuer, audiences = claims.get("iss"), claims.get("aud")
    # A token for several audiences would be valid once at each: any of them could use it at the others.
    only = audiences[0] if isinstance(audiences, list) and len(audiences) == 1 else audiences
    if (
        not isinstance(issuer, str)
        or claims.get("sub") != issuer
        or read.signer not in (issuer, "")
        or len(issuer) > DID_MAX
    ):
        raise Unproven(
            f"expected a self-issued token: iss, sub and the kid's DID are the same, of at most {DID_MAX} characters"
        )
    if isinstance(only, list):
        raise Unproven(f"expected a token for {audience} alone, got {len(only)} audiences; sign one for each")
    if only != audience:
        raise Unproven(f"expected a token for {audience}, got one for another audience")
    if not isinstance(claims.get("jti"), str) or not 0 < len(claims["jti"]) <= 255:
        raise Unproven("expected a token with a jti of at most 255 characters")
    return issuer


def _check_time(claims: dict[str, Any], now: float) -> None:
    issued, expires = _read_seconds(claims, "iat"), _read_seconds(claims, "exp")
    if not issued - LEEWAY <= now < expires + LEEWAY or expires - issued > _LIFE_MAX:
        raise Unproven(
            f"the token is expired, from the future, or lives longer than {_LIFE_MAX:.0f} seconds; check the clocks "
            "of both sides"
        )
    if "nbf" in claims and now < _read_seconds(claims, "nbf") - LEEWAY:
        raise Unproven("the token is not valid yet; check the clocks of both sides")


def _read_seconds(claims: dict[str, Any], name: str) -> float:
    seconds = seconds_of(claims, name, what=_WHAT)
    if seconds is None:
        raise Unproven(f"expected {_WHAT} with {name}, a number of seconds")
    return seconds
