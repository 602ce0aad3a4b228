"""Data addresses of started transfers, and the tickets in them, which can be renewed.

The data plane's part of `dsp.transfer.DataPlane`. A ticket is issued only for a started transfer under an agreement
that holds. Renewal repeats both checks and checks the party's facts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from joserfc.jwk import ECKey

from connector.dataplane import tickets
from connector.dataplane.tickets import Ticket
from connector.errors import Absent, Denied, Unproven
from connector.store import Store, Transaction
from connector.store.tables import Transfer
from connector.usage.grants import Grants, describe_state, is_started
from policies.vocabulary import expand

ENDPOINT_TYPE = "https://w3id.org/idsa/v4.1/HTTP"
HTTP_DATA = "HttpData"  # EDC's type of an HTTP address to which data is pushed
FLIGHT_TYPE = "https://w3id.org/hanse/endpoint/ArrowFlight"
FLIGHT_FORMAT = "ArrowFlight-PULL"
PATH = "/data/v1"
_READ_MAX = 1024  # cached tickets whose signature was checked


class Addresses:
    """Data addresses and tickets of one provider. `flight` is the Flight location, empty where Flight is not served."""

    def __init__(
        self,
        store: Store,
        grants: Grants,
        *,
        key: ECKey,
        participant: str,
        root_url: str,
        ticket_seconds: int,
        flight: str = "",
    ) -> None:
        self.flight = flight
        self._store = store
        self._grants = grants
        self.key = key
        self.participant = participant
        self._endpoint = root_url + PATH
        self.seconds = ticket_seconds
        self.clock: Callable[[], float] = time.time
        # A consumer sends the same ticket with each request until it expires. The grant is checked at each request.
        self._read: dict[str, Ticket] = {}

    def issue(self, transfer: Transfer) -> tuple[str, float]:
        """Return a ticket for a started transfer, and its expiry (UTC seconds)."""
        now = self.clock()
        ticket = Ticket(
            provider=self.participant,
            consumer=transfer.counterparty,
            agreement=transfer.agreement_id,
            transfer=transfer.id,
            generation=transfer.generation,
            purpose=expand(transfer.purpose),
            expires=now + self.seconds,
        )
        return tickets.issue(ticket, self.key, now=now), ticket.expires

    def address(self, transfer: Transfer) -> dict[str, Any]:
        """Return the data address of a started transfer for the protocol (DSP 2025-1, DataAddress).

        The ticket is valid over both transports. The format decides which endpoint is the main one; the other is a
        property.
        """
        text, expires = self.issue(transfer)
        properties = {
            "authType": "bearer",
            "authorization": text,
            "expires": str(int(expires)),
            "agreement": transfer.agreement_id,
        }
        over_flight = bool(self.flight) and transfer.format == FLIGHT_FORMAT
        endpoint = self.flight if over_flight else self._endpoint
        properties["endpoint"] = endpoint  # EDC reads it here only
        if self.flight:
            properties |= {"http": self._endpoint} if over_flight else {"flight": self.flight}
        return {
            "@type": "DataAddress",
            "endpointType": FLIGHT_TYPE if over_flight else ENDPOINT_TYPE,
            "endpoint": endpoint,
            "endpointProperties": [
                {"@type": "EndpointProperty", "name": name, "value": value} for name, value in properties.items()
            ],
        }

    async def renew(self, transfer_pid: str, *, consumer: str) -> dict[str, Any]:
        """Return a fresh data address for the consumer of a started transfer.

        Raises: Absent for any other participant, Denied where the transfer is not started.
        """

        def work(tx: Transaction) -> Transfer:
            row = tx.transfers.peek(transfer_pid)
            if row is None or row.counterparty != consumer or row.role != "provider":
                raise Absent(f"no transfer {transfer_pid!r} between you and this participant")
            if not is_started(row):
                raise Denied(f"the transfer is {describe_state(row)}, expected started", code="transfer_not_started")
            return row

        row = await self._store.read(work)
        await self._grants.load_usable(row.agreement_id, consumer=consumer, purpose=expand(row.purpose))
        return self.address(row)

    def read(self, authorization: str | None) -> Ticket:
        """Return the ticket in a request's Authorization header.

        Raises: Unproven without a valid ticket.
        """
        text = (authorization or "").removeprefix("Bearer ").removeprefix("bearer ").strip()
        now, kept = self.clock(), self._read.get(text)
        if kept is not None and kept.expires > now:
            return kept
        if "," in text:
            raise Unproven("expected one Authorization header with one ticket, got several; send one")
        ticket = tickets.read(text, self.key, provider=self.participant, now=now)
        if len(self._read) >= _READ_MAX:
            self._read.clear()
        self._read[text] = ticket
        return ticket
