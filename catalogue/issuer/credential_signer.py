"""Signs credentials and status lists as JWTs, in both data models, with the operator's key. Knows no database."""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from joserfc import jws
from joserfc.jwk import ECKey

from catalogue.issuer.profiles import PROFILES, VC11, VC20, Profile
from catalogue.store.issuances import LIST_BITS
from catalogue.store.tables import IssuedCredential

PATH = "/issuer"
# A set bit means that the credential does not hold now; that of a removed member is never cleared. See decision 78.
PURPOSE = "suspension"
_BACKDATED = 60.0  # seconds that a verifier's clock may be behind ours
_CONTEXTS = {
    VC11: ["https://www.w3.org/2018/credentials/v1", "https://w3id.org/vc/status-list/2021/v1"],
    VC20: ["https://www.w3.org/ns/credentials/v2", "https://www.w3.org/ns/credentials/undefined-terms/v2"],
}
_LISTS = {VC11: "StatusList2021", VC20: "BitstringStatusList"}
_PROFILES = {profile.list_kind: profile for profile in PROFILES.values()}
_TYP = {VC11: "JWT", VC20: "vc+jwt"}


class CredentialSigner:
    """Makes and signs what the issuer `did` says."""

    def __init__(self, key: ECKey, *, did: str, root_url: str) -> None:
        self._key, self._did, self._root = key, did, root_url

    def sign_credential(self, row: IssuedCredential, subject: Mapping[str, Any]) -> str:
        """The credential of a row (all but its `jwt` is set) about its holder, as a JWT."""
        profile, url = PROFILES[row.profile], self._list_url(row.list_kind, row.list_number)
        body = {
            "credentialSubject": {"id": row.holder, **subject},
            "credentialStatus": {  # one object: some wallets read no list of them
                "id": f"{url}#{row.list_index}",
                "type": f"{_LISTS[profile]}Entry",
                "statusPurpose": PURPOSE,
                "statusListIndex": str(row.list_index),
                "statusListCredential": url,
            },
        }
        return self._sign(
            profile, row.id, row.type, body, begins=row.issued_at, ends=row.expires_at, subject=row.holder
        )

    def sign_list(self, kind: str, number: int, places: Iterable[int], *, begins: float, ends: float) -> str:
        """A status list as a JWT; `places` are set."""
        profile, url = _PROFILES[kind], self._list_url(kind, number)
        subject = {
            "id": f"{url}#list",
            "type": _LISTS[profile],
            "statusPurpose": PURPOSE,
            "encodedList": encode_bits(places),
        }
        body = {"credentialSubject": subject}
        return self._sign(profile, url, f"{_LISTS[profile]}Credential", body, begins=begins, ends=ends, subject=url)

    def _list_url(self, kind: str, number: int) -> str:
        return f"{self._root}{PATH}/status/{kind}/{number}"

    def _sign(
        self,
        profile: Profile,
        name: str,
        kind: str,
        body: Mapping[str, Any],
        *,
        begins: float,
        ends: float,
        subject: str,
    ) -> str:
        """A credential as a JWT: of VC 1.1 in the claim `vc`, of VC 2.0 as the claims themselves."""
        starts, stops = ("issuanceDate", "expirationDate") if profile is VC11 else ("validFrom", "validUntil")
        begins -= _BACKDATED
        credential = {
            "@context": _CONTEXTS[profile],
            "id": name,
            "type": ["VerifiableCredential", kind],
            "issuer": self._did,
            starts: _stamp(begins),
            stops: _stamp(ends),
            **body,
        }
        times = {"nbf": int(begins), "iat": int(begins), "exp": int(ends)}
        claims = {"iss": self._did, "sub": subject, "jti": name, **times}
        claims = {**claims, **({"vc": credential} if profile is VC11 else credential)}
        header = {"alg": "ES256", "kid": f"{self._did}#{self._key.thumbprint()}", "typ": _TYP[profile]}
        return jws.serialize_compact(header, json.dumps(claims), self._key, algorithms=["ES256"])


def encode_bits(places: Iterable[int]) -> str:
    """The `encodedList` of a list in which `places` are set, counted from the most significant bit of each byte."""
    bits = bytearray(LIST_BITS // 8)
    for place in places:
        bits[place // 8] |= 0x80 >> place % 8
    return "u" + base64.urlsafe_b64encode(gzip.compress(bytes(bits), mtime=0)).rstrip(b"=").decode()


def _stamp(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
