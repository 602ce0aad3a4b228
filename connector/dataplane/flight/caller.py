"""Who calls over Flight: the tickets and declarations in the metadata of one call. Pure."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from connector.acting import JOB_MAX
from connector.errors import Invalid, Unproven

_TICKET_MAX = 16 * 2**10  # bytes
_TICKETS_MAX = 16
_DECLARED_MAX = 1024  # characters

Metadata = Mapping[str, list[str]]


@dataclass(frozen=True, slots=True)
class FlightCaller:
    """The tickets that a call shows, and what it declares."""

    authorization: str
    further: tuple[str, ...]
    purpose: str
    application: str
    action: str
    job: str  # the training job, for the owner's log
    basic: bool  # the ticket came as a password; the answer returns it as the bearer token for later calls


def metadata_to_mapping(pairs: Iterable[tuple[str, str | bytes]]) -> dict[str, list[str]]:
    """Returns all values by name, in order. Values that are not ASCII text match no ticket and no declaration."""
    found: dict[str, list[str]] = {}
    for name, value in pairs:
        text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
        found.setdefault(name, []).append(text)
    return found


def read_caller(metadata: Metadata) -> FlightCaller:
    """Returns the caller of a call with this metadata.

    Raises:
        Unproven: it shows no ticket.
        Invalid: a declaration does not fit.
    """
    text = _single_value(metadata, "authorization", _TICKET_MAX)
    basic = text[:6].lower() == "basic "
    authorization = _basic_to_bearer(text[6:]) if basic else text
    if not authorization:
        raise Unproven(
            "expected one header `authorization: Bearer <ticket>`, got none or several; send the ticket that came with "
            "a started transfer"
        )
    further = [item.strip() for value in metadata.get("hanse-ticket", ()) for item in value.split(",") if item.strip()]
    if len(further) > _TICKETS_MAX:
        raise Invalid(f"expected at most {_TICKETS_MAX} further tickets, got {len(further)}", code="request_invalid")
    action = _declared(metadata, "hanse-action") or "query"
    if action not in ("query", "stream"):
        raise Invalid("expected hanse-action to be query or stream, got another value", code="request_invalid")
    return FlightCaller(
        authorization=authorization,
        further=tuple(further),
        purpose=_declared(metadata, "hanse-purpose"),
        application=_declared(metadata, "hanse-application"),
        action=action,
        job=_declared(metadata, "hanse-job", JOB_MAX),
        basic=basic,
    )


def _basic_to_bearer(encoded: str) -> str:
    """Returns the password as a bearer token; empty without one."""
    encoded = encoded.strip()
    try:  # clients in Go leave out the padding
        _, _, password = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return ""
    return f"Bearer {password}" if password else ""


def _declared(metadata: Metadata, name: str, most: int = _DECLARED_MAX) -> str:
    values = metadata.get(name) or [""]
    if len(values) > 1 or len(values[0]) > most:
        raise Invalid(f"expected one header {name} of at most {most} characters, got another", code="request_invalid")
    return values[0]


def _single_value(metadata: Metadata, name: str, most: int) -> str:
    values = metadata.get(name) or [""]
    return values[0] if len(values) == 1 and len(values[0]) <= most else ""
