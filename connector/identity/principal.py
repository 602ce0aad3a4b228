"""The authenticated sender of a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class VerifiedCredential:
    """A credential that a participant presented and that we have verified. Times are UTC seconds.

    `types`: those that its issuer is trusted for. `until`: when its status must be checked again, or when it ends.
    """

    id: str
    issuer: str
    types: tuple[str, ...]
    subjects: tuple[Mapping[str, Any], ...]
    expires: float | None
    checked_at: float
    until: float

    def evidence(self) -> dict[str, Any]:
        """What the log keeps of it: no claims, which may be personal data."""
        return {
            "id": self.id,
            "issuer": self.issuer,
            "types": list(self.types),
            "expires": self.expires,
            "status_checked_at": self.checked_at,
        }


@dataclass(frozen=True, slots=True)
class Principal:
    """A participant of the data space; `id` is its DID. `credentials`: what it presented and we verified."""

    id: str
    credentials: tuple[VerifiedCredential, ...] = ()

    def evidence(self) -> dict[str, Any]:
        """What an event's detail says about the credentials; nothing without credentials."""
        return {"credentials": [one.evidence() for one in self.credentials]} if self.credentials else {}
