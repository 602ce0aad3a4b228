"""Who answers by itself agrees once with a party on what is counted, and not again on what it took back."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from connector.dsp import states
from connector.dsp.states import CONSUMER, PROVIDER
from connector.infra.net.http_client import Reply
from tests.support.counterparty import DATASET, OFFER_ID, Counterparty
from tests.support.pair import USE, Call, Json, Pair, emptied, pair, settled

DS = "https://w3id.org/hanse/policy/1/"


def limited(left: str, value: str, **more: Any) -> Json:
    return {"permission": [{"action": "use", "constraint": [
        {"leftOperand": left, "operator": "lteq", "rightOperand": value}, *more.get("also", ())]}]}  # fmt: skip


QUANTITIES = {
    "uses": limited("odrl:count", "1"),
    "rows": limited(f"{DS}rowQuota", "5"),
    "bytes": limited(f"{DS}byteQuota", "5"),
    "a share": limited("odrl:percentage", "5"),
    "reads a day": limited(f"{DS}queriesPerDay", "5"),
    "reads at once": limited(f"{DS}concurrency", "2"),
    "noise": limited(f"{DS}epsilonBudget", "1"),
}


async def concluded(two: Pair, policy: Json) -> str:
    row = await two.ask(OFFER_ID, policy=policy)
    done = await settled(two.south, "negotiation", row.id, "FINALIZED")
    await settled(two.north, "negotiation", done.peer_pid, "FINALIZED")
    return str(done.agreement_id)


async def waits(two: Pair, policy: Json) -> str:
    """Ask again, and nothing comes; what the person who decides is told."""
    row = await two.ask(OFFER_ID, policy=policy)
    here = await settled(two.south, "negotiation", row.id, "REQUESTED")
    await emptied(two)
    assert two.north.events[-1].kind == "DecisionNeeded"
    there = await two.north.negotiation(here.peer_pid)
    assert (there.pending, there.reason) == ("", two.north.events[-1].reason)
    return str(there.reason)


@pytest.mark.parametrize("decide", ["auto", "rules"])
@pytest.mark.parametrize("policy", QUANTITIES.values(), ids=QUANTITIES.keys())
async def test_what_is_counted_is_not_had_twice_by_asking_twice(tmp_path: Path, policy: Json, decide: str) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, policy=policy, decide=decide)
        await concluded(two, policy)
        assert "count anew" in await waits(two, policy)


@pytest.mark.parametrize("policy", [QUANTITIES["rows"], QUANTITIES["noise"]], ids=["rows", "noise"])
async def test_an_agreement_that_its_consumer_refused_does_not_count(tmp_path: Path, policy: Json) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, policy=policy)

        async def refusing(call: Call) -> Reply | None:
            return Reply(400, {}, b"") if call.kind == "ContractAgreementMessage" else None

        two.cable.tamper = refusing
        row = await two.ask(OFFER_ID, policy=policy)
        here = await settled(two.south, "negotiation", row.id, "REQUESTED")
        await emptied(two)
        two.cable.tamper = None
        await concluded(two, policy)
        refused = await two.north.negotiation(here.peer_pid)
        assert (refused.state, refused.code) == ("REQUESTED", "refused")
        assert "count anew" in await waits(two, policy), "the concluded one counts"


async def test_a_refused_agreement_can_be_sent_again_by_a_person_and_is_then_another(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)

        async def refusing(call: Call) -> Reply | None:
            return Reply(400, {}, b"") if call.kind == "ContractAgreementMessage" else None

        two.cable.tamper = refusing
        row = await two.ask(OFFER_ID, policy=USE)
        here = await settled(two.south, "negotiation", row.id, "REQUESTED")
        await emptied(two)
        two.cable.tamper = None
        before = (await two.north.negotiation(here.peer_pid)).agreement_id
        await two.north.negotiations.command(here.peer_pid, "approve", by="owner")
        done = await settled(two.south, "negotiation", row.id, "FINALIZED")
        assert done.agreement_id not in ("", before)


async def test_of_two_negotiations_at_once_one_is_agreed_on(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        policy = QUANTITIES["rows"]
        await two.north.publish(DATASET, offer=OFFER_ID, policy=policy)
        peer = Counterparty(two.north)
        one, other = [await peer.negotiation(role=PROVIDER, state="OFFERED", decide="auto") for _ in range(2)]

        def on_the_table(tx: Any) -> None:
            for row in (one, other):
                tx.negotiations.get(row.id).offer = {"@type": "Offer", "@id": OFFER_ID, "target": DATASET, **policy}

        await two.north.store.write(on_the_table)
        for row in (one, other):
            assert (await peer.say(states.ACCEPTED_EVENT, row)).status == 200
        assert (await two.north.negotiation(one.id)).pending == states.AGREEMENT
        assert (await two.north.negotiation(other.id)).pending == ""


async def test_what_counts_nothing_is_agreed_on_as_often_as_it_is_asked_for(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        assert await concluded(two, USE) != await concluded(two, USE)


async def test_what_was_revoked_is_not_had_again_by_asking_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        agreement = await concluded(two, USE)
        await two.north.agreements.revoke(agreement, reason="misused", by="owner", role=PROVIDER)
        assert "revoked" in await waits(two, USE)


async def left_agreed(two: Pair) -> Any:
    """A negotiation that its consumer does not verify by itself; it as the consumer has it."""
    row = await two.ask(OFFER_ID, policy=USE, decide="manual")
    here = await settled(two.south, "negotiation", row.id, "AGREED")
    await settled(two.north, "negotiation", here.peer_pid, "AGREED")
    return here


async def test_what_was_revoked_is_not_had_again_by_an_agreement_that_was_left_over(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        first, spare = await concluded(two, USE), await left_agreed(two)
        await two.north.agreements.revoke(first, reason="misused", by="owner", role=PROVIDER)
        await two.south.negotiations.command(spare.id, "verify", by="test")
        await settled(two.south, "negotiation", spare.id, "VERIFIED")
        await emptied(two)
        there = await settled(two.north, "negotiation", spare.peer_pid, "VERIFIED")
        assert "revoked" in there.reason
        await two.north.negotiations.command(there.id, "approve", by="owner")
        await settled(two.south, "negotiation", spare.id, "FINALIZED")


@pytest.mark.parametrize("role", [PROVIDER, CONSUMER])
async def test_an_agreement_that_is_ended_before_it_is_final_is_never_concluded(tmp_path: Path, role: str) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        row = await left_agreed(two)
        who, other = (two.north, two.south) if role == PROVIDER else (two.south, two.north)
        await who.agreements.revoke(row.agreement_id, reason="not like this", by="owner", role=role)
        mine, theirs = (row.peer_pid, row.id) if role == PROVIDER else (row.id, row.peer_pid)
        await settled(who, "negotiation", mine, "TERMINATED")
        assert (await settled(other, "negotiation", theirs, "TERMINATED")).reason == "not like this"
        if role == PROVIDER:
            assert "revoked" in await waits(two, USE)


async def test_what_ends_while_its_consumer_may_have_finalized_is_final_and_told_to_have_ended(tmp_path: Path) -> None:
    async with pair(tmp_path, retry_first=60, retry_cap=60) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        lost = asyncio.Event()

        async def unanswered(call: Call) -> Reply | None:
            if call.message.get("eventType") != "FINALIZED":
                return None
            await call.go()
            lost.set()
            return Reply(503, {}, b"")

        two.cable.tamper = unanswered
        row = await two.ask(OFFER_ID, policy=USE)
        await lost.wait()
        here = await two.south.negotiation(row.id)
        _, grant = await two.north.agreements.get(here.agreement_id, role=PROVIDER)
        assert (here.state, grant) == ("FINALIZED", None)
        await two.north.agreements.revoke(here.agreement_id, reason="too late", by="owner", role=PROVIDER)
        assert (await two.north.negotiation(here.peer_pid)).state == "FINALIZED"
        _, grant = await two.north.agreements.get(here.agreement_id, role=PROVIDER)
        assert grant is not None
        assert grant.reason == "too late"
        asked = await two.south.transfers.request(agreement_id=here.agreement_id, by="test")
        assert (await settled(two.south, "transfer", asked.id, "TERMINATED")).code == "agreement_ended"
        mine, _ = await two.south.agreements.get(here.agreement_id, role=CONSUMER)
        assert "too late" in mine.end_reason


async def test_a_person_may_agree_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        policy = QUANTITIES["uses"]
        await two.north.publish(DATASET, offer=OFFER_ID, policy=policy)
        agreement = await concluded(two, policy)
        await two.north.agreements.revoke(agreement, reason="a mistake", by="owner", role=PROVIDER)
        row = await two.ask(OFFER_ID, policy=policy)
        here = await settled(two.south, "negotiation", row.id, "REQUESTED")
        await two.north.negotiations.command(here.peer_pid, "approve", by="owner")
        await settled(two.south, "negotiation", row.id, "FINALIZED")
        await emptied(two)
        assert (await two.north.negotiation(here.peer_pid)).reason == ""


@pytest.mark.parametrize("name", ["rows", "noise"])
async def test_time_that_is_over_gives_new_quantities_and_no_new_noise(tmp_path: Path, name: str) -> None:
    async with pair(tmp_path) as two:
        policy = QUANTITIES[name]
        await two.north.publish(DATASET, offer=OFFER_ID, policy=policy)
        agreement = await concluded(two, policy)
        reason = "the time that was agreed has ended"
        await two.north.agreements.revoke(agreement, reason=reason, by="clock", role=PROVIDER)
        if name == "rows":
            await concluded(two, policy)
        else:
            assert "count anew" in await waits(two, policy)


async def test_one_that_came_to_nothing_stands_in_nobodys_way(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        policy = QUANTITIES["rows"]
        await two.north.publish(DATASET, offer=OFFER_ID, policy=policy)
        row = await two.ask(OFFER_ID, policy=policy, decide="manual")
        await settled(two.south, "negotiation", row.id, "AGREED")
        await two.south.negotiations.command(row.id, "terminate", by="test", reason="not now")
        await emptied(two)
        await concluded(two, policy)
