"""Reads one credential from its JWT, in both data models, and checks what needs no call: issuer, subject, period.

VC 1.1 has the credential in the claim `vc`, VC 2.0 is the payload itself. Reading is lenient (one value or a list);
the meaning is strict: what the outer claims and the credential both say must agree, and of two periods the shorter
one counts. Pure: signatures, status and schemas are checked elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from connector.errors import Unproven
from connector.identity.signed_jwt import LEEWAY, ReadJwt, read_jwt, seconds_of
from policies.odrl.strictjson import list_of

CREDENTIAL_MAX = 64 * 2**10
_WHAT = "a credential"
_STARTS, _ENDS = ("issuanceDate", "validFrom"), ("expirationDate", "validUntil")
_MANY = 16  # subjects, types, entries of status or schema
_V2 = "https://www.w3.org/ns/credentials/v2"


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential of `holder`, whose signature, status and schemas are not checked yet. Times are UTC seconds."""

    jwt: ReadJwt
    id: str
    issuer: str
    holder: str
    types: tuple[str, ...]
    subjects: tuple[Mapping[str, Any], ...]
    expires: float | None
    statuses: tuple[Mapping[str, Any], ...]
    schemas: tuple[Mapping[str, Any], ...]


def read_credential(text: object, *, holder: str, now: float) -> Credential:
    """A credential about `holder` that is valid now, by its dates. Raises: Unproven."""
    body = read_body(read_jwt(text, what=_WHAT, longest=CREDENTIAL_MAX), now=now)
    subjects = _objects(body.fields, "credentialSubject")
    if not subjects or any(subject.get("id") != holder for subject in subjects):
        raise Unproven(f"expected a credential about {holder} alone, got one about another subject or none")
    if body.jwt.claims.get("sub", holder) not in (holder, body.fields.get("id")):
        raise Unproven(f"expected a credential whose sub is {holder} or the credential's id")
    return Credential(
        jwt=body.jwt,
        id=body.id,
        issuer=body.issuer,
        holder=holder,
        types=body.types,
        subjects=subjects,
        expires=body.expires,
        statuses=_objects(body.fields, "credentialStatus"),
        schemas=_objects(body.fields, "credentialSchema"),
    )


@dataclass(frozen=True, slots=True)
class CredentialBody:
    """What every credential has, status lists included. `fields`: the credential as an object."""

    jwt: ReadJwt
    fields: Mapping[str, Any]
    id: str
    issuer: str
    types: tuple[str, ...]
    expires: float | None


def read_body(jwt: ReadJwt, *, now: float) -> CredentialBody:
    """The credential in a JWT, if it is valid now by its dates. Raises: Unproven."""
    fields = _fields(jwt.claims)
    issuer = _issuer(fields, jwt.claims)
    starts = [seconds_of(jwt.claims, "nbf", what=_WHAT), *(_date(fields, name) for name in _STARTS)]
    starts.append(seconds_of(jwt.claims, "iat", what=_WHAT))
    ends = [seconds_of(jwt.claims, "exp", what=_WHAT), *(_date(fields, name) for name in _ENDS)]
    if any(start is not None and now < start - LEEWAY for start in starts):
        raise Unproven(f"a credential of {issuer} is not valid yet, or was issued in the future")
    end = min((end for end in ends if end is not None), default=None)
    if end is not None and now >= end:
        raise Unproven(f"a credential of {issuer} is expired; its holder must renew it")
    name = fields.get("id", jwt.claims.get("jti", ""))
    types = tuple(kind for kind in list_of(fields.get("type"))[:_MANY] if isinstance(kind, str))
    return CredentialBody(jwt, fields, name if isinstance(name, str) else "", issuer, types, end)


def _fields(claims: dict[str, Any]) -> Mapping[str, Any]:
    """The credential as an object: of VC 1.1 in `vc`, of VC 2.0 the claims themselves."""
    inner = claims.get("vc")
    if isinstance(inner, dict) and "credentialSubject" not in claims:
        return inner
    if "vc" not in claims and "credentialSubject" in claims and _V2 in list_of(claims.get("@context")):
        return claims
    raise Unproven("expected a credential of VC 1.1 (in the claim `vc`) or VC 2.0 (the claims themselves)")


def _issuer(fields: Mapping[str, Any], claims: dict[str, Any]) -> str:
    inner = fields.get("issuer")
    said = [inner.get("id") if isinstance(inner, dict) else inner, claims.get("iss")]
    known = [issuer for issuer in said if issuer is not None]
    if not known or not isinstance(known[0], str) or any(issuer != known[0] for issuer in known):
        raise Unproven("expected a credential with one issuer, the same inside and as `iss`")
    return known[0]


def _objects(fields: Mapping[str, Any], name: str) -> tuple[Mapping[str, Any], ...]:
    found = list_of(fields.get(name))
    if len(found) > _MANY or not all(isinstance(entry, dict) for entry in found):
        raise Unproven(f"expected at most {_MANY} objects in a credential's {name}")
    return tuple(found)


def _date(fields: Mapping[str, Any], name: str) -> float | None:
    """A date in UTC seconds; None without it. Raises: Unproven for another text, or one without its zone."""
    if (text := fields.get(name)) is None:
        return None
    try:
        at = datetime.fromisoformat(text)
        if at.tzinfo is not None:
            return at.timestamp()
    except (TypeError, ValueError, OverflowError):
        pass
    raise Unproven(f"expected a credential whose {name} is a time with its zone, got {str(text)[:50]!a}")
