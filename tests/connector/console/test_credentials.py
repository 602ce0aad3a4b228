"""The page of credentials: what we hold and requested, and who may request; the button that fetches foreign data."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from connector.store import Transaction
from connector.store.tables import CredentialRequest, HeldCredential, Transfer
from tests.connector.console.support import ALICE, Console, Reader, console, fill

ISSUER = "did:web:office.example"


@pytest.fixture
async def full(tmp_path: Path) -> AsyncIterator[Console]:
    made = console(tmp_path, credential_issuers=(ISSUER,))
    await fill(made.parts)
    now = time.time()

    def work(tx: Transaction) -> None:
        about = {"issuer": ISSUER, "types": ["VerifiableCredential", "MembershipCredential"], "jwt": "no.jwt.here"}
        for number, expires in enumerate((now - 1, now + 3600)):
            row = HeldCredential(
                id=str(number), name=f"urn:{number}", expires=expires, holder_pid="", stored_at=now, **about
            )
            tx.held_credentials.store(row)
        for number, status in enumerate(("RECEIVED", "REJECTED")):
            request = CredentialRequest(
                id=f"urn:r{number}", issuer=ISSUER, type="MembershipCredential", status=status, reason="",
                status_url="", requested_by="ann", created_at=now, updated_at=now,
            )  # fmt: skip
            tx.held_credentials.add_request(request)

    await made.parts.store.write(work)
    yield made
    await made.http.aclose()
    made.parts.store.close()


async def test_the_page_shows_what_we_hold_and_asked_for(full: Console) -> None:
    page = (await full.get("/credentials", "read", "owner")).text
    assert Reader(page).problems == []
    for words in ("Expired", "Unknown", "Waiting for the issuer", "Rejected", "Request a credential", ISSUER):
        assert words in page
    assert "VerifiableCredential" not in page
    assert "Request a credential" not in (await full.get("/credentials", "read")).text


async def test_a_request_that_cannot_be_made_says_why(full: Console) -> None:
    form = {"issuer": "did:web:other.example", "type": "MembershipCredential"}
    answer = await full.post("/credentials", form, "read", "owner")
    assert (answer.status_code, "HANSE_CREDENTIAL_ISSUERS" in answer.text) == (400, True)
    assert (await full.post("/credentials", form, "read")).status_code == 403


@pytest.mark.parametrize("foreign", [True, False])
async def test_foreign_data_is_fetched_from_the_page(full: Console, foreign: bool) -> None:
    pid, now = "urn:uuid:t-foreign", time.time()
    properties = {"authorization": "t"} if foreign else {"authorization": "t", "agreement": "a"}
    address = {
        "endpointType": "HttpData",
        "endpoint": "https://alice.example/public" if foreign else "https://alice.example/data/v1",
        "endpointProperties": [{"name": name, "value": value} for name, value in properties.items()],
    }
    about = {"counterparty": ALICE, "address": "", "agreement_id": "urn:uuid:a-1", "format": "HttpData-PULL"}
    row = Transfer(
        id=pid, role="consumer", state="STARTED", data_address=address, created_at=now, updated_at=now, **about
    )
    await full.parts.store.write(lambda tx: tx.transfers.add(row))
    page = (await full.get("/transfers", "read", "consume")).text
    assert Reader(page).problems == []
    assert (f'href="/api/v1/transfers/{pid}/data" download' in page) == foreign
    assert (f'href="/transfers/{pid}/connect"' in page) != foreign
    assert f"/api/v1/transfers/{pid}/data" not in (await full.get("/transfers", "read")).text
