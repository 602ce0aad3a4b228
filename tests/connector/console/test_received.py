"""What was pushed to us, in the console and on the API beside it: seen, downloaded and removed by whom it is for."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from connector.store import Transaction
from connector.store.tables import PushedData, Transfer
from tests.connector.console.support import ALICE, Console, Reader, console, fill

PID, BODY = "urn:uuid:t-push", b"an Arrow stream that was checked"
API = f"/api/v1/transfers/{PID}"


@pytest.fixture
async def full(tmp_path: Path) -> AsyncIterator[Console]:
    made = console(tmp_path)
    await fill(made.parts)
    now = time.time()

    def received(tx: Transaction) -> None:
        about = {"counterparty": ALICE, "address": "", "agreement_id": "urn:uuid:a-1", "format": "HttpData-PUSH"}
        tx.transfers.add(Transfer(id=PID, role="consumer", state="COMPLETED", created_at=now, updated_at=now, **about))
        counts = {"rows": 1234, "batches": 1, "bytes": len(BODY)}
        tx.pushed_data.add(
            PushedData(transfer_id=PID, whole=False, digest="", received_at=now, removed_at=None, **counts)
        )

    await made.parts.store.write(received)
    made.parts.receiving._file(PID).write_bytes(BODY)
    yield made
    await made.http.aclose()
    made.parts.store.close()


async def test_the_transfers_page_offers_what_was_received(full: Console) -> None:
    page = (await full.get("/transfers", "read", "consume")).text
    assert "1,234 rows, 32 B received" in page
    assert "did not confirm that it is complete" in page
    assert f'href="{API}/received" download' in page
    assert Reader(page).problems == []
    assert f"{API}/received" not in (await full.get("/transfers", "read")).text


async def test_a_file_of_another_kind_of_connector_has_its_media_type(full: Console) -> None:
    def change(tx: Transaction) -> None:
        row = tx.pushed_data.get(PID)
        assert row is not None
        row.rows, row.media = 0, "text/csv"

    await full.parts.store.write(change)
    page = (await full.get("/transfers", "read", "consume")).text
    assert "a file (text/csv), 32 B received" in page
    assert "did not confirm" not in page
    for path in ("received", "data"):
        answer = await full.get(f"{API}/{path}", "consume")
        assert (answer.status_code, answer.content) == (200, BODY)
        assert answer.headers["content-type"].partition(";")[0] == "text/csv"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert 'filename="t-push.csv"' in answer.headers["content-disposition"]
    shown = (await full.get(API, "read")).json()["received"]
    assert (shown["rows"], shown["media"]) == (None, "text/csv")


async def test_it_is_downloaded_by_whoever_may_consume(full: Console) -> None:
    answer = await full.get(f"{API}/received", "consume")
    assert (answer.status_code, answer.content) == (200, BODY)
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    assert 'filename="t-push.arrows"' in answer.headers["content-disposition"]
    assert (await full.get(f"{API}/received", "read", "owner")).status_code == 403
    assert (await full.http.get(f"{API}/received")).status_code == 401


async def test_it_is_removed_from_the_page_once(full: Console) -> None:
    assert (await full.post(f"/transfers/{PID}", {"command": "remove"}, "read")).status_code == 403
    done = await full.post(f"/transfers/{PID}", {"command": "remove"}, "read", "consume")
    assert (done.status_code, done.headers["location"]) == (303, "/transfers")
    assert not full.parts.receiving._file(PID).exists()
    page = (await full.get("/transfers", "read", "consume")).text
    assert "removed <time" in page
    assert "download" not in page
    again = await full.post(f"/transfers/{PID}", {"command": "remove"}, "read", "consume")
    assert (again.status_code, "nothing received is kept" in again.text.lower()) == (404, True)


async def test_the_api_says_what_was_received_and_removes_it(full: Console) -> None:
    shown = (await full.get(API, "read")).json()["received"]
    assert (shown["rows"], shown["bytes"], shown["whole"], shown["coming"]) == (1234, len(BODY), False, False)
    listed = (await full.get("/api/v1/transfers", "read")).json()
    assert {row["id"]: bool(row["received"]) for row in listed}[PID]
    token = {"authorization": f"Bearer {await full.token('consume')}"}
    assert (await full.http.delete(f"{API}/received", headers=token)).status_code == 204
    gone = await full.get(f"{API}/received", "consume")
    assert (gone.status_code, gone.json()["code"]) == (404, "not_kept")
    assert (await full.http.delete(f"{API}/received", headers=token)).status_code == 404


async def test_a_push_can_be_ordered_from_an_agreement(full: Console) -> None:
    page = (await full.get("/agreements/urn:uuid:a-1?role=consumer", "read", "consume")).text
    assert '<option value="HttpData-PUSH">' in page
    assert Reader(page).problems == []
    form = {"agreement": "urn:uuid:a-1", "format": "HttpData-PUSH", "purpose": ""}
    assert (await full.post("/transfers", form, "consume")).status_code == 303
    rows = await full.parts.store.read(lambda tx: list(tx.transfers.page(role="consumer")))
    assert rows[0].format == "HttpData-PUSH"
