"""Data-plane tickets: short-lived, signed by the provider, bound to one agreement, party, transfer and purpose.

A ticket is an ES256 JWT whose issuer and audience are the provider. It identifies a grant. Whether the grant still
holds is checked at each request (`usage.grants`).
"""

from __future__ import annotations

from dataclasses import dataclass

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from connector.errors import Unproven

_TYPE = "hanse-ticket+jwt"
_TICKET_MAX = 4 * 2**10


@dataclass(frozen=True, slots=True)
class Ticket:
    """Claims of a ticket, valid until `expires` (UTC seconds). With an empty purpose, each request declares its own."""

    provider: str
    consumer: str
    agreement: str
    transfer: str  # the provider's pid
    generation: int
    purpose: str
    expires: float


def issue(ticket: Ticket, key: ECKey, *, now: float) -> str:
    """Return the ticket as a signed bearer token."""
    claims = {
        "iss": ticket.provider,
        "aud": ticket.provider,
        "sub": ticket.consumer,
        "agr": ticket.agreement,
        "trf": ticket.transfer,
        "gen": ticket.generation,
        "pur": ticket.purpose,
        "iat": int(now),
        "exp": int(ticket.expires),
    }
    return jwt.encode({"alg": "ES256", "typ": _TYPE}, claims, key, algorithms=["ES256"])


def read(text: str, key: ECKey, *, provider: str, now: float) -> Ticket:
    """Return the ticket in a bearer token.

    Raises: Unproven where the token is not signed by this provider, or has expired.
    """
    if len(text) > _TICKET_MAX:
        raise Unproven("expected a data-plane ticket of at most 4 kB")
    try:
        token = jwt.decode(text, key, algorithms=["ES256"])
        claims = token.claims
        ticket = Ticket(
            provider=claims["iss"],
            consumer=claims["sub"],
            agreement=claims["agr"],
            transfer=claims["trf"],
            generation=int(claims["gen"]),
            purpose=claims["pur"],
            expires=float(claims["exp"]),
        )
    except (JoseError, KeyError, ValueError, TypeError) as error:
        raise Unproven(
            "expected a ticket that this provider issued; start a transfer under your agreement to get one"
        ) from error
    if token.header.get("typ") != _TYPE or ticket.provider != provider or claims.get("aud") != provider:
        raise Unproven("expected a data-plane ticket of this provider, got another token")
    if ticket.expires <= now:
        raise Unproven(
            "the ticket has expired; get a fresh one from your own connector "
            "(GET /api/v1/transfers/{id}/address) and repeat the request with it, over Flight on a new connection",
            code="ticket_expired",
        )
    return ticket
