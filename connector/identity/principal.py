"""The authenticated sender of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class VerifiedCredential:
    """A credential that a participant presented and that we have verified. Times are UTC seconds.

    `types`: those that its issuer is trusted for. `until`: when its status must be checked again, or when it ends.
    `key`: thumbprint (RFC 7638) of the issuer's key that signed it.
    """

    id: str
    issuer: str
    types: tuple[str, ...]
    subjects: tuple[Mapping[str, Any], ...]
    expires: float | None
    checked_at: float
    until: float
    key: str = ""

    def evidence(self) -> dict[str, Any]:
        """What the log keeps of it: no claims, which may be personal data."""
        return {
            "id": self.id,
            "issuer": self.issuer,
            "types": list(self.types),
            "expires": self.expires,
            "status_checked_at": self.checked_at,
            **({"key": self.key} if self.key else {}),
        }


@dataclass(frozen=True, slots=True)
class Principal:
    """A participant of the data space; `id` is its DID. `credentials`: what it presented and we verified.

    `key`: thumbprint (RFC 7638) of the key that signed its token; empty for a static token of a test set-up.
    """

    id: str
    credentials: tuple[VerifiedCredential, ...] = ()
    key: str = ""

    def evidence(self) -> dict[str, Any]:
        """What an event's detail says about the credentials; nothing without credentials."""
        return {"credentials": [one.evidence() for one in self.credentials]} if self.credentials else {}

    def proof(self) -> dict[str, Any]:
        """What proved the identity: holder, key and credentials, as an agreement keeps it."""
        return {"holder": self.id, **({"key": self.key} if self.key else {}), **self.evidence()}
