"""Self-issued ID tokens: short JWTs that a participant signs with its own key (Decentralized Claims 1.0, section 3).

What `verify` checks, in this order; the numbers stand beside the code:
1. size, shape, one of the allowed algorithms, a `kid` that belongs to a did:web;
2. iss, sub, aud, jti, iat and exp are there; iss = sub = the kid's DID; aud is us and no other party;
3. the time: not expired, not from the future, no life longer than the longest that we accept;
4. the signature, with a key that the issuer's document lists under capabilityInvocation;
5. jti was not seen from this issuer before, and cannot have been by an earlier process of ours.
"""

from __future__ import annotations

import heapq
import json
import time
import uuid
from base64 import urlsafe_b64decode
from collections import Counter, defaultdict
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey

from connector.errors import Busy, Unauthenticated
from connector.identity.did import DID_MAX, DidResolver, host_of

ALGORITHMS = ("ES256", "EdDSA", "Ed25519")
_TOKEN_MAX = 8 * 2**10
_LIFE = 60.0
_LIFE_MAX = 900.0  # others sign for up to ten minutes
_LEEWAY = 30.0
_LATEST = 2.0**53  # a number of seconds; what is larger is none
_SEEN_MAX = 100_000  # of those that are expected, and of all others together
_OF_ONE_MAX = 50_000  # of one that is expected, or of others' one host
_FORGOTTEN_AT_ONCE = 500  # a millisecond or two
_FEW, _LAST_FOR_FEW = 1_000, 25_000  # so much room, at the end, is for those of whom few are noted


def mint(key: ECKey, *, did: str, audience: str, now: float, claims: dict[str, Any] | None = None) -> str:
    """A token that says who we are, for one receiver and one minute."""
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


class Replays:
    """Token ids that were seen, while their tokens are good, per issuer. Full is a refusal, never a forgotten id.

    Those that are expected have room of their own. The others' is counted by the host of their DIDs: DIDs cost nothing.

    `since`: when we began to look (UTC seconds). What was signed before may have been used at an earlier process.
    """

    def __init__(self, *, since: float = 0.0) -> None:
        self._since = int(since)  # tokens are dated to the second
        self._seen: defaultdict[str, set[str]] = defaultdict(set)
        self._noted: tuple[Counter[str], Counter[str]] = (Counter(), Counter())  # of strangers' hosts, of the expected
        self._all = [0, 0]  # the sums of those
        self._ends: list[tuple[float, str, str, bool]] = []  # a heap: those that end first come first

    def first_time(
        self, issuer: str, jti: str, *, issued: float, expires: float, now: float, expected: bool = False
    ) -> bool:
        """Note it. Busy where that is not possible now: with another token, in a moment, it may be."""
        self._forget(now)
        if issued < self._since:
            raise Busy(f"the token of {issuer} was signed before this connector started; sign a new one")
        if jti in self._seen.get(issuer, ()):
            return False
        counted = _counted(issuer, expected)
        most = _OF_ONE_MAX if self._all[expected] < _SEEN_MAX - _LAST_FOR_FEW else _FEW
        if self._noted[expected][counted] >= most or self._all[expected] >= _SEEN_MAX:
            raise Busy("too many tokens at once; try again in a minute")
        self._noted[expected][counted] += 1
        self._all[expected] += 1
        self._seen[issuer].add(jti)
        heapq.heappush(self._ends, (expires + _LEEWAY, issuer, jti, expected))
        return True

    def _forget(self, now: float) -> None:
        for _ in range(_FORGOTTEN_AT_ONCE):  # each call brings one at most
            if not self._ends or self._ends[0][0] > now:
                return
            _, issuer, jti, expected = heapq.heappop(self._ends)
            self._seen[issuer].discard(jti)
            if not self._seen[issuer]:
                del self._seen[issuer]
            counted = _counted(issuer, expected)
            self._all[expected] -= 1
            self._noted[expected][counted] -= 1
            if not self._noted[expected][counted]:
                del self._noted[expected][counted]


def _counted(issuer: str, expected: bool) -> str:
    return issuer if expected else host_of(issuer)


async def verify(
    token: str, *, audience: str, resolver: DidResolver, replays: Replays, now: float | None = None
) -> dict[str, Any]:
    """The claims of a good token. Unauthenticated says what was expected and what came, never the token."""
    at = time.time() if now is None else now
    header, claims = _parts(token)  # 1
    issuer = _issuer(header, claims, audience)  # 2
    _check_time(claims, at)  # 3
    jwk = await resolver.key(issuer, header["kid"], purpose="capabilityInvocation")
    try:  # 4
        jwt.decode(token, public_key(jwk), algorithms=list(ALGORITHMS))
    except (JoseError, ValueError, KeyError) as error:  # a curve that is none is a KeyError
        raise Unauthenticated(f"the token of {issuer} is not signed by the key that it names") from error
    resolver.proven(issuer)
    issued, expires = float(claims["iat"]), float(claims["exp"])
    expected = resolver.expected(issuer)
    if not replays.first_time(  # 5
        issuer, claims["jti"], issued=issued, expires=expires, now=at, expected=expected
    ):
        raise Unauthenticated(f"the token of {issuer} was used before; sign a new one for each request")
    return claims


def claimed_issuer(token: str, *, audience: str) -> str:
    """Whose token it says that it is, which proves nothing yet: for asking whether to look up their keys at all."""
    return _issuer(*_parts(token), audience)


def public_key(jwk: dict[str, Any]) -> ECKey | OKPKey:
    """The key object of a public JWK. Unauthenticated for anything but a public EC or OKP key."""
    kind = jwk.get("kty")
    if "d" not in jwk and kind == "EC":
        return ECKey.import_key(jwk)
    if "d" not in jwk and kind == "OKP":
        return OKPKey.import_key(jwk)
    raise Unauthenticated(f"expected a public EC or OKP key in the DID document, came kty {kind!r}")


def _parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    pieces = token.split(".")
    if len(token) > _TOKEN_MAX or len(pieces) != 3:
        raise Unauthenticated("expected a signed JWT of at most 8 kB as bearer token")
    try:
        header, claims = (json.loads(urlsafe_b64decode(piece + "=" * (-len(piece) % 4))) for piece in pieces[:2])
    except (ValueError, RecursionError) as error:
        raise Unauthenticated("expected a signed JWT as bearer token, came something else") from error
    if not isinstance(header, dict) or not isinstance(claims, dict):
        raise Unauthenticated("expected a signed JWT as bearer token, came something else")
    if header.get("alg") not in ALGORITHMS or not isinstance(header.get("kid"), str) or "crit" in header:
        raise Unauthenticated(f"expected a token with alg {' or '.join(ALGORITHMS)}, a kid and no crit")
    return header, claims


def _issuer(header: dict[str, Any], claims: dict[str, Any], audience: str) -> str:
    issuer, audiences = claims.get("iss"), claims.get("aud")
    # A token for several receivers is good once at each: any of them could use it at the others.
    only = audiences[0] if isinstance(audiences, list) and len(audiences) == 1 else audiences
    if (
        not isinstance(issuer, str)
        or claims.get("sub") != issuer
        or header["kid"].partition("#")[0] not in (issuer, "")
        or len(issuer) > DID_MAX
    ):
        raise Unauthenticated(
            f"expected a self-issued token: iss, sub and the kid's DID are the same, of at most {DID_MAX} characters"
        )
    if isinstance(only, list):
        raise Unauthenticated(f"expected a token for {audience} alone, got {len(only)} audiences; sign one for each")
    if only != audience:
        raise Unauthenticated(f"expected a token for {audience}, got one for another audience")
    if not isinstance(claims.get("jti"), str) or not 0 < len(claims["jti"]) <= 255:
        raise Unauthenticated("expected a token with a jti of at most 255 characters")
    return issuer


def _check_time(claims: dict[str, Any], now: float) -> None:
    issued, expires = _seconds(claims, "iat"), _seconds(claims, "exp")
    if not issued - _LEEWAY <= now < expires + _LEEWAY or expires - issued > _LIFE_MAX:
        raise Unauthenticated(
            f"the token is expired, from the future, or lives longer than {_LIFE_MAX:.0f} seconds; see that the clocks "
            "of both sides are right"
        )
    if "nbf" in claims and now < _seconds(claims, "nbf") - _LEEWAY:
        raise Unauthenticated("the token is not valid yet")


def _seconds(claims: dict[str, Any], name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < _LATEST:
        raise Unauthenticated(f"expected a token whose {name} is a number of seconds")
    return float(value)
