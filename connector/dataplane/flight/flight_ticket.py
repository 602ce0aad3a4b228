"""Flight tickets: one described read, sealed by the provider. GetFlightInfo gives them out, DoGet takes them. Pure.

A ticket holds the read, its consumer and its end, with a keyed hash over it. It opens nothing by itself: each call
also shows a data-plane ticket of the same consumer and the same agreements.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from connector.errors import Denied, Invalid, Unproven

_MARK = b"hanse1."
_SEAL = 64
# Bytes. The longest question has 64 kB letters of SQL and values, in seven bytes each where a client escapes them, and
# sixteen tickets. The request that brings it back has a megabyte.
SIZE_MAX = 768 * 2**10


@dataclass(frozen=True, slots=True)
class FlightTicket:
    """One described read. `wanted` is its form in `flight_queries`."""

    id: str
    consumer: str
    agreements: tuple[str, ...]
    expires: float
    wanted: Mapping[str, Any]


def seal(one: FlightTicket, key: bytes) -> bytes:
    """Returns the sealed ticket. Raises Invalid for a question that is too large to be sent back."""
    told = {"i": one.id, "c": one.consumer, "a": one.agreements, "x": one.expires, "w": one.wanted}
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    raw = _MARK + _hash(text, key) + text
    if len(raw) > SIZE_MAX:
        raise Invalid(
            f"expected a question of at most {SIZE_MAX} bytes over Flight, got one of {len(raw)}; make it shorter, or "
            "ask it over HTTP",
            code="request_too_large",
        )
    return raw


def unseal(raw: bytes, key: bytes, *, now: float) -> FlightTicket:
    """Returns the ticket in these bytes. Raises Denied for a foreign or changed one, Unproven after its end."""
    text = raw[len(_MARK) + _SEAL :]
    ours = raw.startswith(_MARK) and len(raw) <= SIZE_MAX
    if not ours or not hmac.compare_digest(raw[len(_MARK) : len(_MARK) + _SEAL], _hash(text, key)):
        raise Denied(
            "expected a Flight ticket as this provider gave it out; ask for the flight info again",
            code="flight_ticket_invalid",
        )
    told = json.loads(text)
    if told["x"] <= now:
        raise Unproven("the Flight ticket has ended; ask for the flight info again", code="ticket_expired")
    return FlightTicket(told["i"], told["c"], tuple(told["a"]), told["x"], told["w"])


def _hash(text: bytes, key: bytes) -> bytes:
    return hmac.new(key, text, hashlib.sha256).hexdigest().encode()
