"""Makes presentations of our credentials for one verifier: one for each data model, signed with our key."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey

from connector.identity.signed_jwt import ReadJwt

_LIFE = 60.0
_V1, _V2 = "https://www.w3.org/2018/credentials/v1", "https://www.w3.org/ns/credentials/v2"


def make_presentations(credentials: Sequence[ReadJwt], key: ECKey, *, did: str, verifier: str, now: float) -> list[str]:
    """Presentations of all credentials as JWTs. Without credentials there is none."""
    old = [one.text for one in credentials if one.is_vc11]
    new = [one.text for one in credentials if not one.is_vc11]
    made = [_sign(_of_v1(old, did), key, did, verifier, now, kind="JWT")] if old else []
    return [*made, _sign(_of_v2(new, did), key, did, verifier, now, kind="vp+jwt")] if new else made


def _of_v1(credentials: Sequence[str], did: str) -> dict[str, Any]:
    presentation = {
        "@context": [_V1],
        "id": f"urn:uuid:{uuid.uuid4()}",
        "type": ["VerifiablePresentation"],
        "holder": did,
        "verifiableCredential": list(credentials),
    }
    return {"vp": presentation}


def _of_v2(credentials: Sequence[str], did: str) -> dict[str, Any]:
    enveloped = [
        {"@context": _V2, "type": "EnvelopedVerifiableCredential", "id": f"data:application/vc+jwt,{one}"}
        for one in credentials
    ]
    return {"@context": [_V2], "type": ["VerifiablePresentation"], "holder": did, "verifiableCredential": enveloped}


def _sign(claims: dict[str, Any], key: ECKey, did: str, verifier: str, now: float, *, kind: str) -> str:
    times = {"iat": int(now), "nbf": int(now), "exp": int(now + _LIFE)}
    body = {"iss": did, "sub": did, "aud": verifier, "jti": uuid.uuid4().hex, **times, **claims}
    header = {"alg": "ES256", "kid": f"{did}#{key.thumbprint()}", "typ": kind}
    return jws.serialize_compact(header, json.dumps(body, separators=(",", ":")), key, algorithms=["ES256"])
