"""What is said twice has one effect; what comes early, late or from the wrong side has none, or the right one."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from connector.dsp import process, states
from connector.dsp.states import CONSUMER, PROVIDER
from connector.infra.net.http_client import Reply
from connector.store import Transaction
from tests.support.counterparty import CONTEXT, DATASET, OFFER_ID, PATHS, Counterparty, snapshot
from tests.support.pair import Call, Pair, announced, emptied, pair, settled
from tests.support.waiting import until


async def arranged(two: Pair, decide: str = "manual") -> Counterparty:
    await two.north.publish(DATASET, offer=OFFER_ID, decide=decide)
    return Counterparty(two.north)


async def test_a_first_request_said_again_is_answered_with_the_same_process(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        first = await peer.post("/negotiations/request", peer.request())
        before = await snapshot(two.north)
        again = await peer.post("/negotiations/request", peer.request())
        with_id = await peer.post("/negotiations/request", peer.request(**{"@id": "urn:uuid:another"}))
        assert (first.status, again.status, with_id.status) == (201, 201, 201)
        assert first.body == again.body == with_id.body
        assert await snapshot(two.north) == before


async def test_first_requests_that_arrive_together_begin_one_process(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        replies = await asyncio.gather(*(peer.post("/negotiations/request", peer.request()) for _ in range(8)))
        assert {reply.status for reply in replies} == {201}
        assert len({reply.body for reply in replies}) == 1
        assert len((await snapshot(two.north))["rows"]) == 1


async def test_the_same_consumer_pid_of_somebody_else_is_another_process(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        other = Counterparty(two.north, participant="did:web:third.example")
        first = await peer.post("/negotiations/request", peer.request())
        second = await other.post("/negotiations/request", other.request())
        assert json.loads(first.body)["providerPid"] != json.loads(second.body)["providerPid"]


LATER = [
    (PROVIDER, "negotiation", "OFFERED", states.ACCEPTED_EVENT),
    (PROVIDER, "negotiation", "OFFERED", states.REQUEST),
    (PROVIDER, "negotiation", "AGREED", states.VERIFICATION),
    (PROVIDER, "negotiation", "REQUESTED", states.NEGOTIATION_TERMINATION),
    (CONSUMER, "negotiation", "REQUESTED", states.OFFER),
    (CONSUMER, "negotiation", "REQUESTED", states.AGREEMENT),
    (CONSUMER, "negotiation", "VERIFIED", states.FINALIZED_EVENT),
    (CONSUMER, "transfer", "REQUESTED", states.START),
    (PROVIDER, "transfer", "STARTED", states.SUSPENSION),
    (CONSUMER, "transfer", "STARTED", states.COMPLETION),
    (PROVIDER, "transfer", "STARTED", states.TRANSFER_TERMINATION),
]


@pytest.mark.parametrize("named", [True, False], ids=["with an id", "without an id"])
@pytest.mark.parametrize(("role", "kind", "state", "step"), LATER)
async def test_a_later_message_said_again_changes_nothing(
    tmp_path: Path, role: str, kind: str, state: str, step: str, named: bool
) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        row = await getattr(peer, kind)(role=role, state=state)
        message = peer.message(step, row)
        if not named:
            del message["@id"]
        area = f"/{kind}s/{row.id}/{PATHS[step]}"
        first = await peer.post(area, message)
        before = await snapshot(two.north)
        again = await peer.post(area, message)
        assert (first.status, again.status) == (200, 200), again.body
        assert await snapshot(two.north) == before


async def test_the_same_wish_in_a_new_message_is_not_a_repeat(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        row = await peer.negotiation(role=PROVIDER, state="OFFERED")
        assert (await peer.say(states.REQUEST, row)).status == 200
        before = await snapshot(two.north)
        assert (await peer.say(states.REQUEST, row)).status == 400
        assert await snapshot(two.north) == before


async def test_a_message_id_cannot_be_used_for_another_message(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        one, two_ = [await peer.negotiation(role=PROVIDER, state="AGREED") for _ in range(2)]
        await peer.say(states.VERIFICATION, one, **{"@id": "urn:uuid:same"})
        assert (await peer.say(states.VERIFICATION, two_, **{"@id": "urn:uuid:same"})).status == 400
        now = await two.north.negotiation(two_.id)
        assert now.state == "AGREED"


async def test_a_suspension_said_long_ago_does_not_suspend_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        row = await peer.transfer(role=CONSUMER, state="STARTED")
        old = peer.message(states.SUSPENSION, row)
        assert (await peer.post(f"/transfers/{row.id}/suspension", old)).status == 200
        assert (await peer.say(states.START, row)).status == 200
        assert (await peer.post(f"/transfers/{row.id}/suspension", old)).status == 200
        assert (await two.north.transfer(row.id)).state == "STARTED"


async def test_a_message_with_neither_pid_of_the_process_is_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        row = await peer.negotiation(role=PROVIDER, state="AGREED")
        before = await snapshot(two.north)
        assert (await peer.say(states.VERIFICATION, row, providerPid="another")).status == 400
        assert await snapshot(two.north) == before


async def test_an_agreement_that_overtakes_the_answer_to_the_request_is_taken_in(tmp_path: Path) -> None:
    """The 201 is held back until the agreement has come; it must not set the state back."""
    async with pair(tmp_path) as two:
        await arranged(two, "auto")
        seen = asyncio.Event()

        async def hold(call: Call) -> Reply | None:
            if call.kind == "ContractAgreementMessage":
                reply = await call.go()
                seen.set()
                return reply
            if call.kind == "ContractRequestMessage":
                reply = await call.go()
                await asyncio.wait_for(seen.wait(), 60)
                return reply
            return None

        two.cable.tamper = hold
        row = await two.ask(OFFER_ID)
        await settled(two.south, "negotiation", row.id, "FINALIZED")
        states = ["REQUESTED", "AGREED", "VERIFIED", "FINALIZED"]
        assert await announced(two.south, states) == states


async def test_a_transfer_asked_for_before_the_acknowledgement_of_finalized_is_started(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await arranged(two, "auto")
        go_on = asyncio.Event()

        async def hold(call: Call) -> Reply | None:
            if call.message.get("eventType") != "FINALIZED":
                return None
            reply = await call.go()
            await asyncio.wait_for(go_on.wait(), 60)
            return reply

        two.cable.tamper = hold
        row = await two.ask(OFFER_ID)
        done = await settled(two.south, "negotiation", row.id, "FINALIZED")
        transfer = await two.south.transfers.request(agreement_id=done.agreement_id, by="test")
        await settled(two.south, "transfer", transfer.id, "STARTED")
        go_on.set()
        await emptied(two)
        kinds = [event.kind for event in two.north.events]
        assert kinds.count("AgreementConcluded") == 1
        (provided,) = await two.north.store.read(lambda tx: tx.agreements.page(role=PROVIDER))
        assert provided.finalized


LOST = [
    "ContractRequestMessage",
    "ContractAgreementMessage",
    "ContractAgreementVerificationMessage",
    "ContractNegotiationEventMessage",
    "TransferRequestMessage",
    "TransferStartMessage",
]


@pytest.mark.parametrize("kind", LOST)
async def test_an_answer_that_is_lost_has_the_message_said_again_to_no_further_effect(
    tmp_path: Path, kind: str
) -> None:
    """Every first delivery of one message arrives, and its answer does not."""
    async with pair(tmp_path) as two:
        await arranged(two, "auto")
        lost: list[str] = []

        async def lose(call: Call) -> Reply | None:
            if call.kind == kind and not lost:
                lost.append(kind)
                await call.go()
                return Reply(503, {}, b"")
            return None

        two.cable.tamper = lose
        row = await two.ask(OFFER_ID)
        done = await settled(two.south, "negotiation", row.id, "FINALIZED")
        transfer = await two.south.transfers.request(agreement_id=done.agreement_id, by="test")
        started = await settled(two.south, "transfer", transfer.id, "STARTED")
        await settled(two.north, "transfer", started.peer_pid, "STARTED")
        await emptied(two)
        assert lost == [kind]
        for side in (two.north, two.south):
            counted = [
                (event.kind, event.process, event.detail.get("state"))
                for event in side.events
                if event.kind in ("NegotiationAdvanced", "TransferAdvanced", "AgreementConcluded")
            ]
            assert len(counted) == len(set(counted)), "an effect came twice"


async def test_a_peer_that_forgets_ids_but_tells_its_state_is_believed(tmp_path: Path) -> None:
    """It took the message in, its answer was lost, and to the repeat it says 400: then its state is asked for."""
    async with pair(tmp_path) as two:
        await arranged(two, "auto")
        tries: list[int] = []

        async def forgetful(call: Call) -> Reply | None:
            if call.kind != "ContractAgreementVerificationMessage":
                return None
            tries.append(1)
            if len(tries) == 1:
                await call.go()
                await asyncio.sleep(0)
                return Reply(502, {}, b"")
            return Reply(400, {}, b"")

        two.cable.tamper = forgetful
        row = await two.ask(OFFER_ID)
        await settled(two.south, "negotiation", row.id, "FINALIZED")


@pytest.mark.parametrize("pid", ["https://north.example/negotiations/1?a#b", "urn:uuid:a b"])
async def test_a_peer_whose_pids_are_addresses_is_asked_for_the_state_at_the_right_one(
    tmp_path: Path, pid: str
) -> None:
    """It was asked where nothing is, and what it had taken in counted as refused."""
    async with pair(tmp_path) as two:
        other = Counterparty(two.south)
        row = await other.negotiation(role="consumer", state="AGREED")

        asked: list[str] = []
        tries: list[int] = []

        async def forgetful(call: Call) -> Reply:
            if call.method == "GET":
                asked.append(call.url)
                state = {"@type": "ContractNegotiation", "consumerPid": row.id, "providerPid": pid, "state": "VERIFIED"}
                return Reply(200, {}, json.dumps({"@context": CONTEXT, **state}).encode())
            tries.append(1)
            return Reply(502 if len(tries) == 1 else 400, {}, b"")

        two.cable.tamper = forgetful
        two.cable.apps[other.host] = two.north.app

        def named(tx: Transaction) -> None:
            found = tx.negotiations.get(row.id)
            assert found is not None
            found.peer_pid = pid

        await two.south.store.write(named)
        await two.south.negotiations.command(row.id, "verify", by="x")
        await settled(two.south, "negotiation", row.id, "VERIFIED")
        assert asked == [f"{other.address}/negotiations/{quote(pid, safe=':@')}"]


async def test_a_reply_of_404_is_tried_a_few_times_and_then_counts_as_no(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await arranged(two, "auto")
        tries: list[int] = []

        async def nowhere(call: Call) -> Reply | None:
            if call.kind != "ContractAgreementMessage":
                return None
            tries.append(1)
            return Reply(404, {}, b"")

        two.cable.tamper = nowhere
        row = await two.ask(OFFER_ID)
        await settled(two.south, "negotiation", row.id, "REQUESTED")
        await emptied(two)
        (provided,) = await two.north.store.read(lambda tx: tx.negotiations.page())
        assert len(tries) == 6
        assert (provided.state, provided.pending, provided.code) == ("REQUESTED", "", "refused")
        assert two.north.events[-2].kind == "DecisionNeeded"


async def test_a_reply_of_409_is_tried_a_few_times(tmp_path: Path) -> None:
    """EDC answers 409 to a verification until it has stored its own agreement message as sent."""
    async with pair(tmp_path) as two:
        await arranged(two, "auto")
        tries: list[int] = []

        async def not_yet(call: Call) -> Reply | None:
            if call.kind != "ContractAgreementVerificationMessage":
                return None
            tries.append(1)
            return Reply(409, {}, b"") if len(tries) < 4 else None

        two.cable.tamper = not_yet
        row = await two.ask(OFFER_ID)
        await settled(two.south, "negotiation", row.id, "FINALIZED")
        assert len(tries) == 4


async def test_a_reply_of_409_to_a_message_that_was_taken_is_no_refusal(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await arranged(two, "auto")
        tries: list[int] = []

        async def forgetful(call: Call) -> Reply | None:
            if call.kind != "ContractAgreementVerificationMessage":
                return None
            tries.append(1)
            if len(tries) == 1:
                await call.go()
            return Reply(409 if len(tries) > 1 else 502, {}, b"")

        two.cable.tamper = forgetful
        row = await two.ask(OFFER_ID)
        await settled(two.south, "negotiation", row.id, "FINALIZED")


async def test_a_first_request_that_is_refused_ends_the_negotiation_with_the_reason(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        row = await two.ask("offer:unknown")
        ended = await settled(two.south, "negotiation", row.id, "TERMINATED")
        assert "expected an offer of the catalogue" in ended.reason
        assert ended.code == "message_invalid"


@pytest.mark.parametrize("together", [False, True])
async def test_a_pid_that_is_another_process_is_no_answer_and_ends_what_it_was_said_to(
    tmp_path: Path, together: bool
) -> None:
    """A provider says the same pid to everybody. Whoever it was said to first keeps it."""

    async def same(call: Call) -> Reply | None:
        reply = await call.go()
        return replace(reply, body=json.dumps({**json.loads(reply.body), "providerPid": "same"}).encode())

    async with pair(tmp_path) as two:
        await arranged(two)
        two.cable.tamper = same
        asked = [await two.ask(OFFER_ID)]
        if not together:
            await settled(two.south, "negotiation", asked[0].id, "REQUESTED")
        asked.append(await two.ask(OFFER_ID))
        async with asyncio.timeout(60):
            while await two.south.outbox():
                await asyncio.sleep(0.01)
        rows = [await two.south.negotiation(row.id) for row in asked]
        if together:  # whichever answer was recorded first
            rows.sort(key=lambda row: row.state)
        assert [(row.state, row.peer_pid, row.pending, row.code) for row in rows] == [
            ("REQUESTED", "same", "", ""),
            ("TERMINATED", "", "", "pid_taken"),
        ]
        assert "answered with the pid same" in rows[1].reason


async def test_a_peer_that_never_answers_ends_the_process_at_the_deadline(tmp_path: Path) -> None:
    async with pair(tmp_path, retry_deadline=0.3) as two:
        del two.cable.apps[two.north.host]
        row = await two.ask("offer:any")
        ended = await settled(two.south, "negotiation", row.id, "TERMINATED")
        assert ended.code == "undeliverable"
        assert await two.south.outbox() == 0


async def test_a_negotiation_ended_before_its_request_was_answered_is_ended_at_the_peer_too(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        await arranged(two)
        come, go_on = asyncio.Event(), asyncio.Event()

        async def hold(call: Call) -> Reply | None:
            if call.kind != "ContractRequestMessage":
                return None
            reply = await call.go()
            come.set()
            await go_on.wait()
            return reply

        two.cable.tamper = hold
        row = await two.ask(OFFER_ID)
        await asyncio.wait_for(come.wait(), 60)
        await two.south.negotiations.command(row.id, "terminate", by="test", reason="changed our mind")
        go_on.set()
        await settled(two.south, "negotiation", row.id, "TERMINATED")
        (provided,) = await two.north.store.read(lambda tx: tx.negotiations.page())
        ended = await settled(two.north, "negotiation", provided.id, "TERMINATED")
        assert ended.reason == "changed our mind"


async def test_suspension_and_completion_that_cross_end_in_one_state_on_both_sides(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        _, agreement_id = await two.agreed()
        transfer = await two.south.transfers.request(agreement_id=agreement_id, by="test")
        here = await settled(two.south, "transfer", transfer.id, "STARTED")
        await settled(two.north, "transfer", here.peer_pid, "STARTED")
        both = asyncio.Barrier(2)

        async def meet(call: Call) -> Reply | None:
            if call.kind in ("TransferCompletionMessage", "TransferSuspensionMessage") and len(two.cable.calls) < 100:
                async with asyncio.timeout(60):
                    await both.wait()
            return None

        two.cable.tamper = meet
        await two.south.transfers.command(transfer.id, "complete", by="test")
        await two.north.transfers.command(here.peer_pid, "suspend", by="test")
        await settled(two.south, "transfer", transfer.id, "COMPLETED")
        await settled(two.north, "transfer", here.peer_pid, "COMPLETED")
        await emptied(two)


async def test_a_start_said_again_with_a_fresh_ticket_is_a_repeat(tmp_path: Path) -> None:
    """A provider that died before it noted our answer makes a new ticket for the same message."""
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        row = await peer.transfer(role=CONSUMER, state="REQUESTED")
        said = peer.message(states.START, row)
        ticket = {"@type": "EndpointProperty", "name": "authorization", "value": "another"}
        again = {**said, "dataAddress": {**said["dataAddress"], "endpointProperties": [ticket]}}
        replies = [await peer.post(f"/transfers/{row.id}/start", one) for one in (said, again)]
        assert [reply.status for reply in replies] == [200, 200]
        assert (await two.north.transfer(row.id)).state == "STARTED"


@pytest.mark.parametrize("kind", ["negotiation", "transfer"])
async def test_who_asks_for_the_state_before_its_answer_has_reached_us_is_told_both_pids_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async with pair(tmp_path) as two:
        _, agreement = await two.agreed()
        answered, arrives = asyncio.Event(), asyncio.Event()

        async def late(call: Call) -> Reply:
            reply = await call.go() if call.url.endswith("/request") else None
            if reply:
                answered.set()
            await arrives.wait()  # the provider's next message would tell its pid, too
            return reply

        two.cable.tamper = late
        if kind == "negotiation":
            row: Any = await two.ask("offer:urn:hanse:north:air", decide="manual")
        else:
            row = await two.south.transfers.request(agreement_id=agreement, by="test")
        await answered.wait()
        provider = Counterparty(two.south, participant=two.north.participant)
        with monkeypatch.context() as patience:
            patience.setattr(process, "_UNNUMBERED_SECONDS", 0.0)
            assert (await provider.get(f"/{kind}s/{row.id}")).status == 404
        asking = {asyncio.ensure_future(provider.get(f"/{kind}s/{row.id}")) for _ in range(6)}
        await until(lambda: sum(one.done() for one in asking) == 5)  # one waits, whoever else asks
        assert {one.result().status for one in asking if one.done()} == {404}
        (waits,) = (one for one in asking if not one.done())
        assert (await provider.get(f"/{kind}s/{row.id}")).status == 404
        arrives.set()
        told = json.loads((await waits).body)
        assert told["consumerPid"] == row.id
        assert told["providerPid"] == (await getattr(two.south, kind)(row.id)).peer_pid != ""
