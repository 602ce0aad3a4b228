"""Signed JWTs of others: reads them within limits, and checks signatures with keys of DID documents.

Whatever is wrong is `Unproven`. Only keys of DID documents count: `jwk`, `jku` and `x5u` of headers are ignored.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from dataclasses import dataclass
from typing import Any

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey
from joserfc.jws import JWSRegistry

from connector.errors import Unproven
from connector.identity.did import DidResolver
from policies.odrl import strictjson

ALGORITHMS = ("ES256", "EdDSA", "Ed25519")
JWT_MAX = 4 * 2**20  # a status list is the longest
LEEWAY = 30.0  # seconds
_LATEST = 2.0**53
_REGISTRY = JWSRegistry(algorithms=list(ALGORITHMS))
_REGISTRY.max_payload_length = JWT_MAX


@dataclass(frozen=True, slots=True)
class ReadJwt:
    """A JWT before any check of its signature. `signer`: the DID of its `kid`; empty if the kid is relative.

    `typ`: in lower case; empty without one.
    """

    text: str
    kid: str
    signer: str
    claims: dict[str, Any]
    typ: str = ""

    @property
    def is_vc11(self) -> bool:
        """Whether a credential in it is of VC 1.1, which has it in the claim `vc`; VC 2.0 is the payload itself."""
        return "vc" in self.claims


def read_jwt(text: object, *, what: str, longest: int) -> ReadJwt:
    """The parts of a JWT. `what` names it in errors. Raises: Unproven."""
    if not isinstance(text, str) or len(text) > longest or text.count(".") != 2 or not text.isascii():
        raise Unproven(f"expected {what} as a signed JWT of at most {longest} characters")
    try:
        header, claims = (_decode(piece) for piece in text.split(".")[:2])
    except (ValueError, RecursionError) as error:
        raise Unproven(f"expected {what} as a signed JWT, got something else") from error
    kid = header.get("kid")
    if header.get("alg") not in ALGORITHMS or not isinstance(kid, str) or "crit" in header or "b64" in header:
        raise Unproven(f"expected {what} with alg {' or '.join(ALGORITHMS)}, a kid and no crit")
    return ReadJwt(text, kid, kid.partition("#")[0], claims, str(header.get("typ", "")).lower())


def _decode(piece: str) -> dict[str, Any]:
    value = strictjson.loads(urlsafe_b64decode(piece + "=" * (-len(piece) % 4)), parse_constant=_no_number)
    if not isinstance(value, dict):
        raise ValueError("expected an object")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"expected a number, got {name}")


def public_key(jwk: dict[str, Any]) -> ECKey | OKPKey:
    """The key object of a public JWK. Raises: Unproven for anything but a public EC or OKP key."""
    kind = jwk.get("kty")
    if "d" not in jwk and kind == "EC":
        return ECKey.import_key(jwk)
    if "d" not in jwk and kind == "OKP":
        return OKPKey.import_key(jwk)
    raise Unproven(f"expected a public EC or OKP key in the DID document, got kty {kind!r}")


async def verify_jwt(read: ReadJwt, signer: str, *, purpose: str, what: str, resolver: DidResolver) -> str:
    """Check that `signer` signed with a key that its document lists under `purpose`; return the key's thumbprint.

    Raises: Unproven, Unavailable.
    """
    if read.signer not in (signer, ""):
        raise Unproven(f"expected {what} signed by {signer}, got one signed by {read.signer[:200]!a}")
    jwk = await resolver.key(signer, read.kid, purpose=purpose)
    try:
        key = public_key(jwk)
        jws.deserialize_compact(read.text, key, registry=_REGISTRY)
    except (JoseError, ValueError, KeyError) as error:  # an unknown curve is a KeyError
        raise Unproven(f"{what} is not signed by the key of {signer} that it names") from error
    return key.thumbprint()


def check_period(claims: dict[str, Any], *, what: str, now: float) -> None:
    """Check iat, nbf and exp where present. Raises: Unproven."""
    for name in ("iat", "nbf"):
        if (at := seconds_of(claims, name, what=what)) is not None and now < at - LEEWAY:
            raise Unproven(f"{what} is not valid yet ({name}); check the clocks of both sides")
    if (end := seconds_of(claims, "exp", what=what)) is not None and now >= end + LEEWAY:
        raise Unproven(f"{what} is expired")


def seconds_of(claims: dict[str, Any], name: str, *, what: str) -> float | None:
    """A claim in seconds; None without it. Raises: Unproven for anything but a number."""
    value = claims.get(name)
    if name in claims and (isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < _LATEST):
        raise Unproven(f"expected {what} whose {name} is a number of seconds")
    return None if value is None else float(value)
