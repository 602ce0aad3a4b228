"""ReceiptLog in the reader's own log: whose they are the agreement says, each counts once, and they are bounded."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from connector.errors import Limited
from connector.events import Event, ReadTaken
from connector.store import Store, Transaction
from connector.store.tables import Agreement, Transfer
from connector.usage import receipt_log as kept
from connector.usage.receipt_log import ReadReceipt, ReceiptLog, ReportedEnd

US, OWNER = "did:web:lab.example", "did:web:clinic.example"
WHOLE = ReportedEnd(status="complete", rows=5, bytes=40, digest="xxh3:00")
ENDED = ReadReceipt(id="a" * 32, agreement="agr", transfer="trf", read="r1", rows=5, seconds=7, end=WHOLE)


@pytest.fixture
def events(store: Store) -> list[Event]:
    heard: list[Event] = []
    store.bus.subscribe(heard.append)
    return heard


def agreed(tx: Transaction) -> None:
    """An agreement of ours as consumer, one as provider, and a started transfer under the first."""
    common: dict[str, Any] = {"negotiation_id": "n", "address": "", "policy": {}, "digest": "d", "signed_at": tx.now}
    tx.agreements.add(Agreement(id="agr", role="consumer", dataset_id="urn:air", provider=OWNER, consumer=US, **common))
    tx.agreements.add(Agreement(id="own", role="provider", dataset_id="urn:sea", provider=US, consumer=OWNER, **common))
    tx.session.add(
        Transfer(id="trf", role="consumer", counterparty=OWNER, address="", state="STARTED", agreement_id="agr",
                 format="HttpData-PULL", purpose="dpv:X", created_at=tx.now, updated_at=tx.now)
    )  # fmt: skip


async def test_a_receipt_says_what_came_and_our_own_agreement_whose_it_was(store: Store, events: list[Event]) -> None:
    await store.write(agreed)
    found = await ReceiptLog(store, participant=US).record([ENDED], by="job")
    assert (found.recorded, found.unknown) == (1, ())
    (event,) = events
    assert event == ReadTaken(
        actor="job",
        on_behalf_of=US,
        dataset="urn:air",
        agreement="agr",
        purpose="dpv:X",
        process="r1",
        detail={
            "counterparty": OWNER,
            "receipt": "a" * 32,
            "rows": 5,
            "seconds": 7,
            "transfer": "trf",
            "told": {"status": "complete", "rows": 5, "bytes": 40, "digest": "xxh3:00"},
        },
    )


@pytest.mark.parametrize(
    ("changes", "outcome", "code"),
    [
        ({}, "ok", ""),
        ({"rows": 4}, "broken", "rows_differ"),
        ({"digest": WHOLE.digest}, "ok", ""),
        ({"digest": "xxh3:01"}, "broken", "digest_mismatch"),
        ({"digest": "xxh3:01", "end": replace(WHOLE, status="revoked")}, "broken", "digest_mismatch"),
        ({"digest": "xxh3:01", "end": ReportedEnd(status="complete", rows=5)}, "broken", "digest_mismatch"),
        ({"end": None, "code": "left"}, "broken", "left"),
        ({"end": replace(WHOLE, status="revoked")}, "refused", "revoked"),
        ({"end": replace(WHOLE, status="refused", code="not_in_force")}, "refused", "not_in_force"),
        ({"end": replace(WHOLE, status="error", code="busy")}, "broken", "busy"),
        ({"end": ReportedEnd(status="complete")}, "broken", "rows_differ"),
    ],
)
def test_how_a_read_ended(changes: dict[str, Any], outcome: str, code: str) -> None:
    ended = replace(ENDED, **changes)
    assert (ended.outcome, ended.why) == (outcome, code)


async def test_one_that_is_told_again_counts_once(store: Store, events: list[Event]) -> None:
    await store.write(agreed)
    receipts = ReceiptLog(store, participant=US)
    assert (await receipts.record([ENDED, ENDED], by="job")).recorded == 1
    assert (await ReceiptLog(store, participant=US).record([replace(ENDED, rows=9)], by="other")).recorded == 0
    assert [event.detail["rows"] for event in events] == [5]


async def test_reads_under_no_agreement_of_ours_as_consumer_are_named_and_the_others_kept(
    store: Store, events: list[Event]
) -> None:
    await store.write(agreed)
    ends = [replace(ENDED, id=f"{n:032x}", agreement=name) for n, name in enumerate(("none", "own", "agr"))]
    found = await ReceiptLog(store, participant=US).record(ends, by="job")
    assert (found.recorded, found.unknown) == (1, (ends[0].id, ends[1].id))
    assert [event.agreement for event in events] == ["agr"]


async def test_a_transfer_that_is_not_ours_says_nothing(store: Store, events: list[Event]) -> None:
    await store.write(agreed)
    await ReceiptLog(store, participant=US).record([replace(ENDED, transfer="other")], by="job")
    assert (events[0].purpose, "transfer" in events[0].detail) == ("", False)


async def test_a_token_has_so_many_a_minute(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_PER_MINUTE", 60)
    monkeypatch.setattr(kept, "_BURST", 120)
    now = 0.0
    receipts = ReceiptLog(store, participant=US, clock=lambda: now)
    await receipts.record([ENDED] * 120, by="job")
    with pytest.raises(Limited, match="60 receipts a minute") as refused:
        await receipts.record([ENDED] * 2, by="job")
    assert (refused.value.code, refused.value.facts["retry_after"]) == ("too_many_receipts", 2)
    await receipts.record([ENDED], by="other")
    now = 2.0
    await receipts.record([ENDED] * 2, by="job")


async def test_a_token_has_one_call_at_a_time_and_others_come_between(monkeypatch: pytest.MonkeyPatch) -> None:
    store, writing = Store("sqlite://"), asyncio.Event()
    waiting: list[str] = []

    async def written(_: Any) -> None:
        waiting.append("")
        await writing.wait()

    monkeypatch.setattr(store, "write", written)
    receipts = ReceiptLog(store, participant=US)
    calls = [asyncio.create_task(receipts.record([ENDED], by=by)) for by in ("job", "job", "job", "other")]
    await asyncio.sleep(0.05)
    assert len(waiting) == 2
    writing.set()
    await asyncio.gather(*calls)
    store.close()
    assert (len(waiting), len(receipts._turns)) == (4, 0)
