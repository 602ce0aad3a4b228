"""Reads a presentation: a JWT by which a holder presents credentials to one verifier (Decentralized Claims 1.0, 5.4).

In VC 1.1 the presentation is in the claim `vp` and lists JWTs; in VC 2.0 it is the payload and lists enveloped
credentials. Some peers envelop a presentation of VC 2.0 once more. Each layer is signed by the holder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from connector.errors import Unproven
from connector.identity.did import DidResolver
from connector.identity.signed_jwt import ReadJwt, check_period, read_jwt, verify_jwt
from policies.odrl.strictjson import list_of

PRESENTATION_MAX = 512 * 2**10
CREDENTIALS_MAX = 16  # in all presentations of an answer together
_WHAT = "a presentation"
_VC_DATA, _VP_DATA = "data:application/vc+jwt,", "data:application/vp+jwt,"
_LAYERS = 2


async def read_presentation(
    given: object, *, holder: str, audience: str, without_audience: bool, resolver: DidResolver, now: float
) -> list[object]:
    """The credentials (JWTs, unread) that `holder` presents to `audience`.

    `without_audience`: accept a presentation that names no audience. Raises: Unproven, Unavailable.
    """
    if isinstance(given, dict):
        given = _enveloped(given, "EnvelopedVerifiablePresentation", _VP_DATA)
    for _ in range(_LAYERS):
        jwt = read_jwt(given, what=_WHAT, longest=PRESENTATION_MAX)
        _check_parties(jwt, holder, audience, without_audience=without_audience)
        check_period(jwt.claims, what=_WHAT, now=now)
        await verify_jwt(jwt, holder, purpose="authentication", what=_WHAT, resolver=resolver)
        if "EnvelopedVerifiablePresentation" not in list_of(jwt.claims.get("type")):
            return _credentials(jwt.claims, holder)
        given = _enveloped(jwt.claims, "EnvelopedVerifiablePresentation", _VP_DATA)
    raise Unproven("expected a presentation in one envelope at most, got more")


def _check_parties(jwt: ReadJwt, holder: str, audience: str, *, without_audience: bool) -> None:
    if any(jwt.claims.get(name, holder) != holder for name in ("iss", "sub")):
        raise Unproven(f"expected a presentation of {holder}, got one of another party")
    if "aud" not in jwt.claims and without_audience:
        return
    if audience not in list_of(jwt.claims.get("aud")):
        raise Unproven(f"expected a presentation for {audience}, got one for another verifier or for any")


def _credentials(claims: dict[str, Any], holder: str) -> list[object]:
    """The credentials of a presentation in either data model, as JWTs."""
    inner = claims.get("vp")
    old = isinstance(inner, dict) and "verifiableCredential" not in claims
    fields: Mapping[str, Any] = inner if isinstance(inner, dict) and old else claims
    if ("vp" in claims) != old or "VerifiablePresentation" not in list_of(fields.get("type")):
        raise Unproven("expected a presentation of VC 1.1 (in the claim `vp`) or VC 2.0 (the claims themselves)")
    named = fields.get("holder", holder)
    if (named.get("id") if isinstance(named, dict) else named) != holder:
        raise Unproven(f"expected a presentation of {holder}, got one that names another holder")
    found = list_of(fields.get("verifiableCredential"))
    if len(found) > CREDENTIALS_MAX:
        raise Unproven(f"expected at most {CREDENTIALS_MAX} credentials in a presentation, got {len(found)}")
    return found if old else [_enveloped(entry, "EnvelopedVerifiableCredential", _VC_DATA) for entry in found]


def _enveloped(entry: object, kind: str, form: str) -> str:
    """The JWT in an envelope of VC 2.0. Raises: Unproven."""
    name = entry.get("id") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or kind not in list_of(entry.get("type")) or not isinstance(name, str):
        raise Unproven(f"expected an object of type {kind} with an id that begins with {form}")
    if not name.startswith(form):
        raise Unproven(f"expected an {kind} whose id begins with {form}, got {name[:60]!a}")
    return name.removeprefix(form)
