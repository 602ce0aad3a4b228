"""What the issuer offers: each configured type in both profiles of the protocol, and the messages about that. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from catalogue.crawl.sanitize import is_writable
from connector.errors import Invalid
from connector.identity.did import CONTEXT

_MANY = 16  # credentials in a request
_TEXT_MAX = 255


@dataclass(frozen=True, slots=True)
class Profile:
    """A data model with its kind of status list (Decentralized Claims 1.0, appendix).

    `name` is the protocol's, `short` ours in ids and `hub_format` that of IdentityHub up to 0.15.
    """

    name: str
    short: str
    list_kind: str
    hub_format: str


VC11 = Profile("vc11-sl2021/jwt", "vc11", "statuslist2021", "VC1_0_JWT")
VC20 = Profile("vc20-bssl/jwt", "vc20", "bitstring", "VC2_0_JOSE")
PROFILES = {profile.name: profile for profile in (VC11, VC20)}


@dataclass(frozen=True, slots=True)
class CredentialKind:
    """A type of credential in one profile."""

    type: str
    profile: Profile

    @property
    def id(self) -> str:
        """Its id in the metadata."""
        return f"{self.type}-{self.profile.short}"


@dataclass(frozen=True, slots=True)
class IssuanceRequest:
    """A CredentialRequestMessage: the holder's id of it, and the ids of the kinds that it asks for."""

    holder_pid: str
    wanted: tuple[str, ...]


def list_kinds(types: Sequence[str]) -> dict[str, CredentialKind]:
    """Every kind that an issuer of these types offers, by id."""
    kinds = (CredentialKind(kind, profile) for kind in types for profile in PROFILES.values())
    return {kind.id: kind for kind in kinds}


def make_metadata(did: str, kinds: Mapping[str, CredentialKind]) -> dict[str, Any]:
    """The IssuerMetadata (section 6.7)."""
    return {
        "@context": [CONTEXT],
        "type": "IssuerMetadata",
        "issuer": did,
        "credentialsSupported": [
            {
                "id": key,
                "type": "CredentialObject",
                "credentialType": kind.type,
                "offerReason": "issuance",
                "bindingMethods": ["did:web"],
                "profile": kind.profile.name,
                "issuancePolicy": {"id": "member", "input_descriptors": []},
            }
            for key, kind in kinds.items()
        ],
    }


def read_request(message: Any, kinds: Mapping[str, CredentialKind]) -> IssuanceRequest:
    """A CredentialRequestMessage (section 6.4). Fields that the protocol does not name have no effect.

    Raises: Invalid, which names the ids that exist.
    """
    if not isinstance(message, dict) or message.get("type") != "CredentialRequestMessage":
        raise Invalid("expected a CredentialRequestMessage, got another message")
    holder_pid = message.get("holderPid")
    if not isinstance(holder_pid, str) or not 0 < len(holder_pid) <= _TEXT_MAX or not is_writable(holder_pid):
        raise Invalid(f"expected a holderPid of 1 to {_TEXT_MAX} characters, without control characters")
    entries = message.get("credentials")
    if not isinstance(entries, list) or not 0 < len(entries) <= _MANY:
        raise Invalid(f"expected 1 to {_MANY} entries in credentials")
    wanted = tuple(entry.get("id") if isinstance(entry, dict) else None for entry in entries)
    if any(not isinstance(one, str) or one not in kinds for one in wanted) or len(set(wanted)) != len(wanted):
        raise Invalid(f"expected ids of our metadata, each once ({', '.join(kinds)}), got another one")
    return IssuanceRequest(holder_pid, tuple(str(one) for one in wanted))
