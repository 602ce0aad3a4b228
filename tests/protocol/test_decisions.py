"""Who answers by itself and when, what is refused and with which reason, and what waits for a person."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from connector.dsp import auto_decisions, states
from connector.dsp.states import CONSUMER, PROVIDER
from connector.errors import Denied
from policies.evaluation.evaluate import Facts
from tests.support.counterparty import DATASET, OFFER_ID, Counterparty, snapshot
from tests.support.pair import USE, Json, emptied, pair, settled

DS = "https://w3id.org/hanse/policy/1/"
MEMBERS: Json = {
    "permission": [
        {
            "action": "use",
            "constraint": [{"leftOperand": f"{DS}membership", "operator": "eq", "rightOperand": "active"}],
        }
    ]
}
OTHER_TERMS: Json = {
    "permission": [
        {
            "action": "use",
            "constraint": [{"leftOperand": "odrl:count", "operator": "lteq", "rightOperand": "5"}],
        }
    ]
}
UNENFORCEABLE: Json = {
    "permission": [
        {
            "action": "use",
            "constraint": [{"leftOperand": f"{DS}row/no_such_column", "operator": "eq", "rightOperand": "x"}],
        }
    ]
}

# decide, what is known of the asker's membership, terms asked for -> our answer, or refused, or waits
FIRST_ANSWERS = [
    ("auto", "active", "same", "AGREED"),
    ("auto", "active", "other", "OFFERED"),
    ("auto", "none", "same", "refused"),
    ("auto", "", "same", "refused"),
    ("rules", "active", "same", "AGREED"),
    ("rules", "active", "other", "waits"),
    ("rules", "", "same", "waits"),
    ("rules", "none", "same", "refused"),
    ("manual", "active", "same", "waits"),
    ("manual", "", "same", "waits"),
    ("manual", "none", "same", "refused"),
    ("four_eyes", "active", "same", "waits"),
]


@pytest.mark.parametrize(("decide", "membership", "asked", "answer"), FIRST_ANSWERS)
async def test_the_first_answer_of_a_provider(
    tmp_path: Path, decide: str, membership: str, asked: str, answer: str
) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, policy=MEMBERS, decide=decide)
        known = {"ds:participant": two.south.participant} | ({"ds:membership": membership} if membership else {})
        two.north.facts[two.south.participant] = Facts.of(known, source="register")
        policy = MEMBERS if asked == "same" else OTHER_TERMS
        row = await two.ask(OFFER_ID, policy=policy, decide="manual")
        state = {"waits": "REQUESTED", "refused": "TERMINATED"}.get(answer, answer)
        here = await settled(two.south, "negotiation", row.id, state)
        await emptied(two)
        waiting = [event for event in two.north.events if event.kind == "DecisionNeeded"]
        assert len(waiting) == (answer == "waits")
        if waiting:
            there = await two.north.negotiation(here.peer_pid)
            assert there.reason == waiting[0].reason
            assert bool(there.reason) == (asked == "other" or not membership)
        if answer == "refused":
            assert here.reason.endswith(f"expected an offer of the catalogue, got '{OFFER_ID}' for '{DATASET}'")
        if answer == "OFFERED":
            assert here.offer["permission"] == two.cable.sent("ContractOfferMessage")[0]["offer"]["permission"]
            assert "membership" in str(here.offer)


async def test_an_offer_that_is_hidden_and_one_that_is_not_there_are_refused_alike(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, policy=MEMBERS)
        peer = Counterparty(two.north)
        two.north.facts[peer.participant] = Facts.of({"ds:membership": "none"}, source="register")
        answers = []
        for offer_id in (OFFER_ID, "offer:none"):
            offer = {"@type": "Offer", "@id": offer_id, "target": DATASET, **USE}
            reply = await peer.post("/negotiations/request", peer.request(f"pid for {offer_id}", offer=offer))
            error = json.loads(reply.body)
            answers.append((reply.status, error["code"], error["reason"][0].replace(offer_id, "X")))
        assert answers[0] == answers[1]
        assert answers[0][0] == 400


BAD_REQUESTS: dict[str, Json] = {
    "another target": {"offer": {"@type": "Offer", "@id": OFFER_ID, "target": "urn:other", **USE}},
    "an offer without rules": {"offer": {"@type": "Offer", "@id": OFFER_ID, "target": DATASET}},
    "an offer without an id": {"offer": {"@type": "Offer", "target": DATASET, **USE}},
    "no callback address": {"callbackAddress": ""},
    "a callback address that is no URL": {"callbackAddress": "nowhere"},
    "a callback address with credentials": {"callbackAddress": "http://a:b@203.0.113.9/dsp"},
    "a callback address with a line end": {"callbackAddress": "http://203.0.113.9/dsp\r\n"},
    "a callback address with a tab": {"callbackAddress": "http://203.0.113.9/d\tsp"},
    "a callback address with a zero-width space": {"callbackAddress": "http://203.0.113.9/d\u200bsp"},
    "a callback address on a private network": {"callbackAddress": "http://10.0.0.1/dsp"},
    "a callback address of another scheme": {"callbackAddress": "file:///etc/passwd"},
}


@pytest.mark.parametrize("change", BAD_REQUESTS.values(), ids=BAD_REQUESTS.keys())
async def test_a_first_request_that_is_wrong_is_refused_and_leaves_nothing(tmp_path: Path, change: Json) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        peer = Counterparty(two.north)
        before = await snapshot(two.north)
        reply = await peer.post("/negotiations/request", peer.request(**change))
        assert reply.status == 400, reply.body
        assert json.loads(reply.body)["@type"] == "ContractNegotiationError"
        assert await snapshot(two.north) == before


@pytest.mark.parametrize("decide", ["auto", "manual"])
async def test_terms_that_cannot_be_enforced_are_refused_naming_the_rule(tmp_path: Path, decide: str) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, policy=UNENFORCEABLE, decide=decide)
        row = await two.ask(OFFER_ID, policy=UNENFORCEABLE, decide="manual")
        if decide == "auto":
            ended = await settled(two.south, "negotiation", row.id, "TERMINATED")
            assert "no_such_column" in ended.reason
            refusals = [event for event in two.north.events if event.kind == "RequestRefused"]
            assert refusals[-1].rule == "/permission/0/constraint/0"
        else:
            await settled(two.south, "negotiation", row.id, "REQUESTED")
            provided = await two.north.only("negotiations")
            with pytest.raises(Exception, match="no_such_column"):
                await two.north.negotiations.command(provided.id, "agree", by="test")


def groups(width: str) -> Json:
    """Counts of values in bins of that width."""
    said = {"minGroupSize": ("gteq", "10"), "dimension/value": ("eq", width)}
    atoms = [{"leftOperand": DS + left, "operator": op, "rightOperand": right} for left, (op, right) in said.items()]
    return {"permission": [{"action": f"{DS}query", "constraint": atoms}]}


async def test_groups_that_nobody_has_offered_are_not_agreed_to_beside_those_that_somebody_has(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, policy=groups("10"), decide="manual")
        for width, agreed in (("10", True), ("20", False)):
            row = await two.ask(OFFER_ID, policy=groups(width))
            asked = await settled(two.south, "negotiation", row.id, "REQUESTED")
            command = two.north.negotiations.command(asked.peer_pid, "approve", by="test")
            if agreed:
                await command
                await settled(two.south, "negotiation", row.id, "FINALIZED")
                continue
            with pytest.raises(Denied, match="count other groups") as refused:
                await command
            assert (refused.value.code, refused.value.facts["rule"]) == ("grids_differ", "/permission/0")
            assert OFFER_ID not in refused.value.message  # what others have been offered is not for everybody
            assert OFFER_ID in refused.value.private


async def test_terms_that_nobody_knows_are_not_signed_by_hand_either(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, decide="manual")
        terms = {**USE, "obligation": [{"action": "odrl:delete", "constraint": [
            {"leftOperand": "odrl:event", "operator": "eq", "rightOperand": f"{DS}event/someday"}]}]}  # fmt: skip
        row = await two.ask(OFFER_ID, policy=terms, decide="manual")
        await settled(two.south, "negotiation", row.id, "REQUESTED")
        provided = await two.north.only("negotiations")
        with pytest.raises(Exception, match="the event ds:event/someday is not recorded here"):
            await two.north.negotiations.command(provided.id, "agree", by="test")


async def test_an_offer_for_one_assignee_is_for_nobody_else(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        for party, expected in ((two.south.participant, "FINALIZED"), ("did:web:alice.example", "TERMINATED")):
            offer = await two.north.publish(DATASET, offer=f"offer:for:{party}", policy={"assignee": party, **USE})
            for policy in (USE, {"assignee": two.south.participant, **USE}):  # said in the request or not
                row = await two.ask(offer, policy=policy)
                await settled(two.south, "negotiation", row.id, expected)


async def test_an_offer_withdrawn_meanwhile_is_not_agreed_to(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID)
        peer = Counterparty(two.north)
        row = await peer.negotiation(role=PROVIDER, state="OFFERED", decide="auto")

        def withdraw(tx: Any) -> None:
            tx.datasets.get_offer(OFFER_ID).withdrawn_at = tx.now

        await two.north.store.write(withdraw)
        reply = await peer.say(states.ACCEPTED_EVENT, row)
        assert reply.status == 400
        assert b"withdrawn" in reply.body
        assert (await two.north.negotiation(row.id)).state == "OFFERED"


BAD_AGREEMENTS: dict[str, tuple[Json, str]] = {
    "for somebody else": ({"assignee": "did:web:somebody.example"}, "assignee"),
    "from somebody else": ({"assigner": "did:web:somebody.example"}, "assigner"),
    "about something else": ({"target": "urn:other"}, "target"),
    "with other rules": ({"permission": OTHER_TERMS["permission"]}, "rules"),
    "with a prohibition more": ({"prohibition": [{"action": "odrl:distribute"}]}, "rules"),
    "without rules": ({"permission": []}, "permission"),
    "signed before there were any": ({"timestamp": "0001-01-01T00:00:00+14:00"}, "timestamp"),
    "signed after the end of the calendar": ({"timestamp": "9999-12-31T23:59:59-14:00"}, "timestamp"),
}


@pytest.mark.parametrize(("change", "named"), BAD_AGREEMENTS.values(), ids=BAD_AGREEMENTS.keys())
async def test_an_agreement_that_is_not_what_was_agreed_is_refused(tmp_path: Path, change: Json, named: str) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        row = await peer.negotiation(role=CONSUMER, state="REQUESTED")
        before = await snapshot(two.north)
        agreement = peer.agreement("urn:uuid:bad", **change)
        reply = await peer.say(states.AGREEMENT, row, agreement=agreement)
        assert reply.status == 400
        assert named in json.loads(reply.body)["reason"][0]
        assert await snapshot(two.north) == before


async def test_two_agreements_cannot_have_one_id(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        one, other = [await peer.negotiation(role=CONSUMER, state="REQUESTED") for _ in range(2)]
        agreement = peer.agreement("urn:uuid:same")
        assert (await peer.say(states.AGREEMENT, one, agreement=agreement)).status == 200
        assert (await peer.say(states.AGREEMENT, other, agreement=agreement)).status == 400
        assert (await two.north.negotiation(other.id)).state == "REQUESTED"


async def test_a_provider_cannot_give_its_agreement_the_id_of_one_of_ours(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer, ourselves = Counterparty(two.north), Counterparty(two.north, participant=two.north.participant)
        ours = (await peer.negotiation(role=PROVIDER, state="FINALIZED")).agreement_id
        for who, status in ((peer, 400), (ourselves, 200)):  # a connector may agree with itself: both sides have the id
            row = await who.negotiation(role=CONSUMER, state="REQUESTED")
            reply = await who.say(states.AGREEMENT, row, agreement=who.agreement(ours))
            assert reply.status == status, reply.body
        assert (await two.north.agreements.get(ours))[0].role == PROVIDER


async def test_an_automatic_consumer_accepts_what_it_asked_for_and_nothing_else(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        for terms, expected in ((USE, states.ACCEPTED_EVENT), (OTHER_TERMS, "")):
            row = await peer.negotiation(role=CONSUMER, state="REQUESTED", decide="auto")
            offer = {"@type": "Offer", "@id": OFFER_ID, "target": DATASET, **terms}
            assert (await peer.say(states.OFFER, row, offer=offer)).status == 200
            waits = await two.north.negotiation(row.id)
            assert (waits.pending, waits.reason) == (expected, "" if expected else "other terms than we asked for")


async def test_what_an_accepted_offer_lacks_is_told_to_whom_it_waits_for(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, policy=MEMBERS)
        peer = Counterparty(two.north)
        row = await peer.negotiation(role=PROVIDER, state="OFFERED", decide="auto")
        assert (await peer.say(states.ACCEPTED_EVENT, row)).status == 200
        waits = await two.north.negotiation(row.id)
        assert waits.pending == ""
        assert "membership" in waits.reason


async def test_an_offer_for_another_dataset_is_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        row = await peer.negotiation(role=CONSUMER, state="REQUESTED")
        offer = {"@type": "Offer", "@id": OFFER_ID, "target": "urn:another", **USE}
        assert (await peer.say(states.OFFER, row, offer=offer)).status == 400
        assert (await two.north.negotiation(row.id)).state == "REQUESTED"


SILENT = [
    (PROVIDER, "OFFERED", states.ACCEPTED_EVENT),
    (PROVIDER, "OFFERED", states.REQUEST),
    (PROVIDER, "AGREED", states.VERIFICATION),
    (CONSUMER, "REQUESTED", states.OFFER),
    (CONSUMER, "REQUESTED", states.AGREEMENT),
]


@pytest.mark.parametrize(("role", "state", "step"), SILENT)
async def test_what_is_decided_by_hand_sends_nothing_by_itself(
    tmp_path: Path, role: str, state: str, step: str
) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, decide="manual")
        peer = Counterparty(two.north)
        row = await peer.negotiation(role=role, state=state, decide="manual")
        assert (await peer.say(step, row)).status == 200
        assert (await two.north.negotiation(row.id)).pending == ""
        assert await two.north.outbox() == 0
        assert two.north.events[-1].kind == "DecisionNeeded"


async def test_approving_lets_the_rest_run_by_itself_and_transfers_too(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, decide="manual")
        row = await two.ask(OFFER_ID)
        await settled(two.south, "negotiation", row.id, "REQUESTED")
        provided = await two.north.only("negotiations")
        await two.north.negotiations.command(provided.id, "approve", by="test")
        done = await settled(two.south, "negotiation", row.id, "FINALIZED")
        transfer = await two.south.transfers.request(agreement_id=done.agreement_id, by="test")
        await settled(two.south, "transfer", transfer.id, "STARTED")


async def test_transfers_under_an_agreement_made_by_hand_wait_for_a_person(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, decide="manual")
        row = await two.ask(OFFER_ID)
        await settled(two.south, "negotiation", row.id, "REQUESTED")
        provided = await two.north.only("negotiations")
        for command, state in (("agree", "VERIFIED"), ("finalize", "FINALIZED")):
            await two.north.negotiations.command(provided.id, command, by="test")
            await settled(two.north, "negotiation", provided.id, state)
        done = await settled(two.south, "negotiation", row.id, "FINALIZED")
        transfer = await two.south.transfers.request(agreement_id=done.agreement_id, by="test")
        await settled(two.south, "transfer", transfer.id, "REQUESTED")
        await emptied(two)
        assert two.north.events[-1].kind == "DecisionNeeded"
        waiting = await two.north.only("transfers")
        await two.north.transfers.command(waiting.id, "start", by="test")
        await settled(two.south, "transfer", transfer.id, "STARTED")


@pytest.mark.parametrize("table", [auto_decisions.NEGOTIATION, auto_decisions.TRANSFER])
def test_every_decision_is_a_step_that_its_state_allows(table: Any) -> None:
    machine = states.NEGOTIATION if table is auto_decisions.NEGOTIATION else states.TRANSFER
    for role, state in table:
        for decide in (auto_decisions.AUTO, auto_decisions.RULES, auto_decisions.MANUAL):
            for same in (True, False):
                for permitted in (True, False):
                    case = auto_decisions.DecisionCase(decide=decide, same_terms=same, permitted=permitted)
                    move = auto_decisions.next_message(table, role=role, state=state, case=case)
                    if move:
                        assert decide != auto_decisions.MANUAL
                        states.advance(machine, states.Step(state, move, role))
