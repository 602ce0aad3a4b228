"""From a request to an agreement to a started transfer, with nobody in the loop."""

from __future__ import annotations

from pathlib import Path

from connector.events import AgreementConcluded
from tests.support.pair import SHOWN, pair, settled


async def test_a_request_on_an_automatic_offer_runs_to_a_final_agreement(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        _, agreement_id = await two.agreed()
        provided, grant = await two.north.agreements.get(agreement_id)
        consumed, _ = await two.south.agreements.get(agreement_id)
        assert provided.finalized
        assert consumed.finalized
        assert provided.digest == consumed.digest
        dataset = await two.north.store.read(lambda tx: tx.datasets.of(provided.dataset_id))
        assert (provided.version, consumed.version) == (dataset.version, "")
        assert grant is not None
        assert await two.north.outbox() == await two.south.outbox() == 0


async def test_what_was_verified_stands_in_the_agreement_and_its_record_at_both_sides(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        concluded: list[AgreementConcluded] = []
        for side in (two.north, two.south):
            side.store.bus.subscribe(
                lambda event: concluded.append(event) if type(event) is AgreementConcluded else None
            )
        _, agreement_id = await two.agreed()
        shown = {"key": "key-of-the-caller", "credentials": [SHOWN.evidence()]}
        assert "private" not in str(shown)
        for side, peer in ((two.north, two.south), (two.south, two.north)):
            row, _ = await side.agreements.get(agreement_id)
            assert row.verified == {"holder": peer.participant, **shown}
            assert row.verified in [event.detail["verified"] for event in concluded]


async def test_a_transfer_under_it_starts_and_brings_an_address(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        _, agreement_id = await two.agreed()
        row = await two.south.transfers.request(agreement_id=agreement_id, by="test")
        started = await settled(two.south, "transfer", row.id, "STARTED")
        assert started.data_address["endpointProperties"][1]["value"].startswith(f"ticket:{started.peer_pid}:1:")
        await settled(two.north, "transfer", started.peer_pid, "STARTED")


async def test_a_connector_can_agree_with_itself(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        offer_id = await two.north.publish()
        begun = await two.north.negotiations.request(
            counterparty=two.north.participant,
            address=two.north.base,
            dataset_id="urn:hanse:north:air",
            offer={"@id": offer_id, "permission": [{"action": "use"}]},
            by="test",
        )
        done = await settled(two.north, "negotiation", begun.id, "FINALIZED")
        await settled(two.north, "negotiation", done.peer_pid, "FINALIZED")
        transfer = await two.north.transfers.request(agreement_id=done.agreement_id, by="test")
        here = await settled(two.north, "transfer", transfer.id, "STARTED")
        await settled(two.north, "transfer", here.peer_pid, "STARTED")
