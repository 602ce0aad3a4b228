"""The crash program's post-mortem names what somebody needs who was not there."""

from __future__ import annotations

from pathlib import Path

from tests.load import postmortem
from tests.support.counterparty import DATASET, OFFER_ID
from tests.support.pair import pair


async def test_a_process_that_did_not_end_is_told_from_both_sides(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, decide="auto")
        two.cable.apps.pop(two.north.host)  # nobody answers, so the request stays in the outbox
        row = await two.ask(OFFER_ID)
        log.write_text(f"something else\n10:00 delivery_later process={row.id}\n")
        sides = [
            postmortem.Side(one.name, f"sqlite:///{tmp_path / one.name}.db", log) for one in (two.north, two.south)
        ]
        told = postmortem.report(sides)
    for wanted in (
        f"negotiation {row.id} (consumer; theirs unknown): (new), pending ContractRequestMessage",
        "event",
        "ContractRequestMessage to /negotiations/request",
        f"delivery_later process={row.id}",
    ):
        assert wanted in told, told
