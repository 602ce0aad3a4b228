"""Every state, message and sender of both machines, said to a running connector: what is legal advances it, what is
not is answered 400 and changes nothing; whoever is not the counterparty gets 404 for everything."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from connector.dsp import states
from connector.dsp.states import CONSUMER, NEGOTIATION, PROVIDER, TRANSFER, Step
from tests.support.counterparty import DATASET, OFFER_ID, Counterparty, snapshot
from tests.support.pair import Pair, pair

MACHINES = [
    (NEGOTIATION, PROVIDER, "negotiation"),
    (NEGOTIATION, CONSUMER, "negotiation"),
    (TRANSFER, PROVIDER, "transfer"),
    (TRANSFER, CONSUMER, "transfer"),
]
FIRST = {states.TRANSFER_REQUEST}  # has no address within a process: see test_first_messages_begin_a_new_process


async def arranged(two: Pair) -> Counterparty:
    await two.north.publish(DATASET, offer=OFFER_ID, decide="manual")
    return Counterparty(two.north)


@pytest.mark.parametrize(("table", "role", "kind"), MACHINES, ids=lambda value: value if isinstance(value, str) else "")
async def test_every_message_in_every_state(tmp_path: Path, table: states.Table, role: str, kind: str) -> None:
    wrong: list[str] = []
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        for state, step in itertools.product(states.states(table), states.messages(table)):
            if step in FIRST:
                continue
            row = await getattr(peer, kind)(role=role, state=state)
            before = await snapshot(two.north)
            reply = await peer.say(step, row)
            now = await getattr(two.north, kind)(row.id)
            expected = table.get(Step(state, step, states.other(role)))
            if expected is None:
                same = await snapshot(two.north) == before
                error = json.loads(reply.body)
                if reply.status != 400 or not same or not error["@type"].endswith("Error") or row.id not in str(error):
                    wrong.append(f"{step} in {state}: expected 400 and no change, came {reply.status} {now.state}")
            elif (reply.status, now.state) != (200, expected):
                wrong.append(f"{step} in {state}: expected {expected}, came {reply.status} {now.state} {reply.body!r}")
    assert wrong == []


@pytest.mark.parametrize(("table", "role", "kind"), MACHINES, ids=lambda value: value if isinstance(value, str) else "")
async def test_a_stranger_cannot_tell_a_foreign_process_from_none(
    tmp_path: Path, table: states.Table, role: str, kind: str
) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        stranger = Counterparty(two.north, participant="did:web:stranger.example")
        nobody = Counterparty(two.north, participant="")
        nobody.headers = dict  # type: ignore[method-assign]  # no Authorization at all
        row = await getattr(peer, kind)(role=role, state=states.states(table)[1])
        before = await snapshot(two.north)
        unknown = type(row)(id="urn:uuid:nowhere", role=role)
        for step in states.messages(table):
            if step in FIRST:
                continue
            answers = [await who.say(step, process) for who in (stranger, nobody) for process in (row, unknown)]
            shown = [(one.status, json.loads(one.body)["reason"], json.loads(one.body)["code"]) for one in answers]
            assert shown == [(404, ["nothing here for you"], "not_found")] * 4, step
        gets = [(await who.get(f"/{kind}s/{pid}")).status for who in (stranger, nobody) for pid in (row.id, unknown.id)]
        assert gets == [404] * 4
        assert (await peer.get(f"/{kind}s/{row.id}")).status == 200
        assert await snapshot(two.north) == before


async def test_the_state_is_told_to_the_counterparty_as_a_process_object(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        for role, state in itertools.product((CONSUMER, PROVIDER), states.states(NEGOTIATION)):
            row = await peer.negotiation(role=role, state=state)
            told = json.loads((await peer.get(f"/negotiations/{row.id}")).body)
            assert (told["@type"], told["state"]) == ("ContractNegotiation", state)
            assert row.id == told["providerPid" if role == PROVIDER else "consumerPid"]
        for role, state in itertools.product((CONSUMER, PROVIDER), states.states(TRANSFER)):
            transfer = await peer.transfer(role=role, state=state)
            told = json.loads((await peer.get(f"/transfers/{transfer.id}")).body)
            assert (told["@type"], told["state"]) == ("TransferProcess", state)


async def test_first_messages_begin_a_new_process(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = await arranged(two)
        begun = await peer.post("/negotiations/request", peer.request("one"))
        assert begun.status == 201
        assert json.loads(begun.body)["state"] == "REQUESTED"
        offer = peer.request()["offer"]
        offered = {**peer.request(), "@type": "ContractOfferMessage", "providerPid": "two", "offer": offer}
        del offered["consumerPid"]
        begun = await peer.post("/negotiations/offers", offered)
        assert begun.status == 201
        assert json.loads(begun.body)["state"] == "OFFERED"
        assert [event.kind for event in two.north.events].count("DecisionNeeded") == 2
