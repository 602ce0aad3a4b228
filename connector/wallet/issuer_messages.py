"""Reads the messages of issuers: deliveries and offers of credentials (Decentralized Claims 1.0, section 6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from connector.errors import Invalid

_MANY = 16  # credentials in a message
_TEXT_MAX = 255


@dataclass(frozen=True, slots=True)
class Delivery:
    """Credentials (JWTs, unread) for our request `holder_pid`; none if the issuer rejected it."""

    holder_pid: str
    credentials: tuple[object, ...]


def read_delivery(message: Any) -> Delivery:
    """A CredentialMessage. Raises: Invalid."""
    _check_type(message, "CredentialMessage")
    pids = [message.get(name) for name in ("holderPid", "issuerPid")]
    if not all(isinstance(pid, str) and 0 < len(pid) <= _TEXT_MAX for pid in pids):
        raise Invalid(f"expected holderPid and issuerPid of at most {_TEXT_MAX} characters")
    if message.get("status") not in ("ISSUED", "REJECTED"):
        raise Invalid("expected the status ISSUED or REJECTED in a CredentialMessage")
    if message["status"] == "REJECTED":
        return Delivery(str(pids[0]), ())
    entries = _list(message, "credentials")
    if not all(isinstance(entry, dict) for entry in entries):
        raise Invalid("expected each credential of a CredentialMessage as an object with a payload")
    return Delivery(str(pids[0]), tuple(entry.get("payload") for entry in entries))


def read_offer(message: Any, issuer: str) -> list[str]:
    """What a CredentialOfferMessage of `issuer` names: ids, or types. Raises: Invalid."""
    _check_type(message, "CredentialOfferMessage")
    if message.get("issuer", issuer) != issuer:
        raise Invalid(f"expected an offer of {issuer}, which sends it, got one of another issuer")
    return [_name(entry) for entry in _list(message, "credentials")]


def _name(entry: object) -> str:
    name = entry.get("credentialType", entry.get("id")) if isinstance(entry, dict) else entry
    if not isinstance(name, str) or not 0 < len(name) <= _TEXT_MAX:
        raise Invalid(f"expected each offered credential by an id of at most {_TEXT_MAX} characters")
    return name


def _check_type(message: Any, kind: str) -> None:
    if not isinstance(message, dict) or message.get("type") != kind:
        raise Invalid(f"expected a {kind}, got another message")


def _list(message: dict[str, Any], name: str) -> list[Any]:
    found = message.get(name)
    if not isinstance(found, list) or not 0 < len(found) <= _MANY:
        raise Invalid(f"expected 1 to {_MANY} entries in {name}")
    return found
