"""Tickets as they are shown: one that is ours is read once, and ends all the same."""

from __future__ import annotations

from typing import Any

import pytest
from joserfc.jwk import ECKey

from connector.dataplane import data_address, tickets
from connector.dataplane.data_address import Addresses
from connector.dataplane.tickets import Ticket
from connector.errors import Unproven
from connector.store.tables import Transfer

US = "did:web:north.example"
NOW = 1_800_000_000.0
KEY = ECKey.generate_key("P-256")


def shown(number: int = 0, *, key: ECKey = KEY, seconds: float = 60) -> str:
    ticket = Ticket(US, "did:web:south.example", f"a{number}", "t", 1, "", NOW + seconds)
    return "Bearer " + tickets.issue(ticket, key, now=NOW)


@pytest.fixture
def ours() -> Addresses:
    nothing: Any = None
    made = Addresses(nothing, nothing, key=KEY, participant=US, root_url="", ticket_seconds=60)
    made.clock = lambda: NOW
    return made


def test_a_ticket_that_is_shown_again_is_not_verified_again(ours: Addresses, monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown()
    first = ours.read(text)
    monkeypatch.setattr(tickets, "read", lambda *_, **__: pytest.fail("verified again"))
    assert ours.read(text) is first


def test_a_ticket_that_was_shown_before_ends_with_its_time(ours: Addresses) -> None:
    text = shown(seconds=60)
    ours.read(text)
    ours.clock = lambda: NOW + 60
    with pytest.raises(Unproven) as refused:
        ours.read(text)
    assert refused.value.code == "ticket_expired"


@pytest.mark.parametrize("text", ["", "Bearer ", "Bearer x.y.z", shown(key=ECKey.generate_key("P-256"))])
def test_what_is_not_ours_is_refused_each_time_and_not_kept(ours: Addresses, text: str) -> None:
    for _ in range(2):
        with pytest.raises(Unproven):
            ours.read(text)
    assert not ours._read


def test_few_tickets_are_kept(ours: Addresses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_address, "_READ_MAX", 3)
    for number in range(8):
        assert ours.read(shown(number)).agreement == f"a{number}"
        assert len(ours._read) <= 3


@pytest.mark.parametrize("flight", ["", "grpc+tcp://north.example:8815"])
def test_the_endpoint_is_a_property_too(ours: Addresses, flight: str) -> None:
    """EDC reads no member `endpoint`."""
    ours.flight = flight
    about = {"counterparty": "did:web:south.example", "agreement_id": "a", "id": "t", "generation": 1, "purpose": ""}
    address = ours.address(Transfer(**about, format=data_address.FLIGHT_FORMAT))
    named = {one["name"]: one["value"] for one in address["endpointProperties"]}
    assert named["endpoint"] == address["endpoint"] == (flight or data_address.PATH)
