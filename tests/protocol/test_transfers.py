"""What a transfer rests on and what ends it: agreement, party, purpose, time, pushes, resumption, revocation."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from connector.dataplane.contract_routes import Renewal
from connector.dsp import states
from connector.dsp.messages import DataAddress
from connector.dsp.states import CONSUMER, PROVIDER
from connector.dsp.transfer import FACTS
from connector.errors import (
    Absent,
    AddressPrivate,
    AddressRefused,
    Denied,
    IllegalStep,
    Invalid,
    Limited,
    MessageInvalid,
    PeerRefused,
    PeerUnreachable,
    WrongState,
)
from connector.infra.net import resolver
from connector.infra.net.http_client import Reply
from connector.store import Transaction
from connector.usage.grants import is_started
from connector.usage.held_agreement import EndReason
from policies.evaluation.evaluate import Facts
from tests.support.counterparty import ADDRESS, CONTEXT, DATASET, OFFER_ID, Counterparty, snapshot
from tests.support.own_name import changed
from tests.support.pair import USE, Call, Json, Pair, Side, emptied, pair, settled

RESEARCH, MARKETING = "https://w3id.org/dpv#ScientificResearch", "https://w3id.org/dpv#Marketing"
SINK = DataAddress("https://w3id.org/idsa/v4.1/HTTP", "http://203.0.113.2/sink", (("authorization", "token"),))


def constrained(left: str, operator: str, right: Any) -> Json:
    return {
        "permission": [
            {"action": "use", "constraint": [{"leftOperand": left, "operator": operator, "rightOperand": right}]}
        ]
    }


async def agreed(two: Pair, **offer: Any) -> str:
    """An agreement on a policy that `south` asked for as it was published."""
    offer_id = await two.north.publish(DATASET, offer=OFFER_ID, **offer)
    row = await two.ask(offer_id, dataset=DATASET, policy=offer.get("policy") or {"permission": [{"action": "use"}]})
    done = await settled(two.south, "negotiation", row.id, "FINALIZED")
    await settled(two.north, "negotiation", done.peer_pid, "FINALIZED")
    return str(done.agreement_id)


async def started(two: Pair, agreement_id: str, **more: Any) -> tuple[Any, Any]:
    """A started transfer, as its consumer and as its provider hold it."""
    row = await two.south.transfers.request(agreement_id=agreement_id, by="test", **more)
    here = await settled(two.south, "transfer", row.id, "STARTED")
    return here, await settled(two.north, "transfer", here.peer_pid, "STARTED")


def asking(peer: Counterparty, agreement_id: str, **more: Any) -> Json:
    return {
        "@context": CONTEXT,
        "@type": "TransferRequestMessage",
        "consumerPid": "their-pid",
        "agreementId": agreement_id,
        "format": "HttpData-PULL",
        "callbackAddress": peer.address,
        **more,
    }


async def test_a_request_said_again_does_not_start_a_second_transfer(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        agreement_id = (await peer.transfer(role=PROVIDER, state="COMPLETED")).agreement_id
        first = await peer.post("/transfers/request", asking(peer, agreement_id))
        before = await snapshot(two.north)
        again = await peer.post("/transfers/request", asking(peer, agreement_id))
        assert (first.status, again.status) == (201, 201)
        assert first.body == again.body
        assert await snapshot(two.north) == before


async def test_only_an_agreement_between_exactly_these_two_is_good_for_a_transfer(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        other = Counterparty(two.north, participant="did:web:third.example")
        mine = (await peer.transfer(role=PROVIDER, state="COMPLETED")).agreement_id
        as_consumer = (await peer.transfer(role=CONSUMER, state="COMPLETED")).agreement_id
        open_one = (await peer.negotiation(role=PROVIDER, state="VERIFIED")).agreement_id
        before = await snapshot(two.north)
        answers = []
        for who, agreement_id in ((other, mine), (peer, "urn:uuid:none"), (peer, as_consumer), (peer, open_one)):
            reply = await who.post("/transfers/request", asking(who, agreement_id))
            error = json.loads(reply.body)
            assert (reply.status, error["@type"]) == (400, "TransferError")
            answers.append((error["code"], error["reason"][0].replace(agreement_id, "X")))
        assert answers[0] == answers[1] == answers[2], "a foreign agreement looks like none"
        assert answers[3][0] == "not_final"
        assert await snapshot(two.north) == before


def pushed(endpoint: str = SINK.endpoint, /, **properties: str) -> Json:
    named = [{"name": name, "value": value} for name, value in properties.items()]
    address = {"@type": "DataAddress", "endpointType": "t", "endpoint": endpoint, "endpointProperties": named}
    return {"format": "HttpData-PUSH", "dataAddress": address}


BAD: dict[str, Json] = {
    "a format that nobody speaks": {"format": "Carrier-Pigeon"},
    "a push without an address": {"format": "HttpData-PUSH"},
    "a push to nowhere": pushed(""),
    "an unusable callback": {"callbackAddress": "ftp://203.0.113.9"},
    "a callback with a line end": {"callbackAddress": "https://203.0.113.9/dsp\r\n"},
    "a callback with a blank": {"callbackAddress": "https://203.0.113.9/d sp"},
    "an endpoint with a line end": pushed("https://203.0.113.2/sink\r\n"),
    "an endpoint with a tab, of a format that needs none": {
        "dataAddress": {"endpointType": "t", "endpoint": "https://203.0.113.2/\tsink"}
    },
    "an endpoint of another transport with a line end": {
        "dataAddress": {"endpointType": "t", "endpoint": "grpc+tls://203.0.113.2\n:8815"}
    },
    "no format": {"format": ""},
    "a purpose that no read can declare": {"odrl:purpose": "a\x1b[2J"},
    "an authorization that no header can carry": pushed(authorization="Bearer \u00fc"),
    "an authorization of two headers": pushed(authorization="a\r\nX-Other: y"),
    "a sink of EDC with a header that is not its own": pushed("", baseUrl=SINK.endpoint, authKey="Host", authCode="x"),
    "a sink of EDC with another method": pushed("", baseUrl=SINK.endpoint, method="DELETE"),
    "more properties than anybody reads": pushed(**{f"p{index}": "x" for index in range(51)}),
    "more of an address than is kept": pushed(note="x" * 2**14),
    "an endpoint without end": {"dataAddress": {"endpointType": "t", "endpoint": f"https://203.0.113.2/{'x' * 8_000}"}},
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
async def test_a_request_that_is_wrong_is_refused_and_leaves_nothing(tmp_path: Path, change: Json) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        agreement_id = (await peer.transfer(role=PROVIDER, state="COMPLETED")).agreement_id
        before = await snapshot(two.north)
        assert (await peer.post("/transfers/request", asking(peer, agreement_id, **change))).status == 400
        assert await snapshot(two.north) == before


async def test_a_push_goes_to_a_sink_in_the_names_of_edc(tmp_path: Path) -> None:
    prefix = "https://w3id.org/edc/v0.0.1/ns/"
    named = {f"{prefix}baseUrl": SINK.endpoint, f"{prefix}authKey": "Authorization", f"{prefix}authCode": "token"}
    properties = [{"@type": "EndpointProperty", "name": name, "value": value} for name, value in named.items()]
    sink = {"@type": "DataAddress", "endpointType": "HttpData", "endpointProperties": properties}
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        agreement_id = (await peer.transfer(role=PROVIDER, state="COMPLETED")).agreement_id
        asked = asking(peer, agreement_id, format="HttpData-PUSH", dataAddress=sink)
        reply = await peer.post("/transfers/request", asked)
        assert reply.status == 201, reply.body
        row = await two.north.transfer(json.loads(reply.body)["providerPid"])
        assert (row.data_address["endpoint"], row.data_address["endpointType"]) == (SINK.endpoint, "HttpData")


TOLD: dict[str, tuple[str, str]] = {
    "no URL": ("somewhere", "expected an absolute http(s) URL"),
    "a login": ("https://u:p@203.0.113.2/sink", "without credentials"),
    "no ASCII": ("https://203.0.113.2/\u00fc", "in ASCII"),
    "no port": ("https://203.0.113.2:99999/", "expected a port from 1 to 65535"),
    "a line end": ("https://203.0.113.2/sink\r\n", "line ends"),
    "a zero-width space": ("https://203.0\u200b.113.2/sink", "with '\\u200b' at position 13"),
    "http where https is expected": ("http://8.8.8.8/sink", "expected https for 8.8.8.8"),
}


@pytest.mark.parametrize(("endpoint", "said"), TOLD.values(), ids=TOLD.keys())
async def test_what_is_wrong_with_where_it_wants_a_push_its_consumer_is_told(
    tmp_path: Path, endpoint: str, said: str
) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        agreement_id = (await peer.transfer(role=PROVIDER, state="COMPLETED")).agreement_id
        reply = await peer.post("/transfers/request", asking(peer, agreement_id, **pushed(endpoint)))
        assert reply.status == 400
        assert said in json.loads(reply.body)["reason"][0]


@pytest.mark.parametrize(
    "endpoint", ["https://203.0.113.2/sink\r\n", "https://203.0.113.2/a b", "https://u:p@203.0.113.2/"]
)
async def test_a_push_is_not_asked_for_to_an_address_that_cannot_be_called(tmp_path: Path, endpoint: str) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two)
        before = await snapshot(two.south)
        with pytest.raises(MessageInvalid, match="dataAddress: expected"):
            await two.south.transfers.request(
                agreement_id=agreement_id, format="HttpData-PUSH", data_address=DataAddress("t", endpoint), by="test"
            )
        assert await snapshot(two.south) == before


async def test_pushes_tell_nobody_which_names_there_are_in_our_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_up(host: str, *_: Any, **__: Any) -> list[Any]:
        if host == "payroll.internal":
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.20.30.40", 443))]
        raise socket.gaierror(socket.EAI_NONAME, "no such name")

    monkeypatch.setattr(resolver, "socket", changed(socket, getaddrinfo=look_up))
    async with pair(tmp_path) as two:
        peer, answers = Counterparty(two.north), set()
        agreement_id = (await peer.transfer(role=PROVIDER, state="COMPLETED")).agreement_id
        before = await snapshot(two.north)
        for host in ("payroll.internal", "nothere.internal"):
            reply = await peer.post("/transfers/request", asking(peer, agreement_id, **pushed(f"https://{host}/x?y=1")))
            error = json.loads(reply.body)
            answers.add((reply.status, error["code"], error["reason"][0].replace(host, "HOST")))
        assert [status for status, *_ in answers] == [400]
        assert await snapshot(two.north) == before


async def test_an_address_is_kept_where_something_is_pushed_to_it_and_as_long_as_that_may_be(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        agreement_id = (await peer.transfer(role=PROVIDER, state="COMPLETED")).agreement_id
        pull = {**pushed(), "format": "HttpData-PULL"}
        reply = await peer.post("/transfers/request", asking(peer, agreement_id, **pull))
        assert (await two.north.transfer(json.loads(reply.body)["providerPid"])).data_address == {}
        row = await two.south.transfers.request(
            agreement_id=await agreed(two), format="HttpData-PUSH", data_address=SINK, by="test"
        )
        done = await settled(two.south, "transfer", row.id, "COMPLETED")
        assert (await settled(two.north, "transfer", done.peer_pid, "COMPLETED")).data_address == {}


@pytest.mark.parametrize(("said", "ends"), [("nan", 0.0), ("inf", 0.0), ("soon", 0.0), ("", 0.0), ("9e9", 9e9)])
async def test_when_a_ticket_ends_is_a_number_or_not_said(tmp_path: Path, said: str, ends: float) -> None:
    async with pair(tmp_path) as two:
        row = await Counterparty(two.north).transfer(role=CONSUMER, state="STARTED")

        def says(tx: Transaction) -> None:
            kept = tx.transfers.get(row.id)
            assert kept is not None
            kept.data_address = {**ADDRESS, "endpointProperties": [{"name": "expires", "value": said}]}

        await two.north.store.write(says)
        assert (await two.north.transfers.get_read_address(row.id)).expires == ends


async def test_the_party_is_looked_at_again_when_a_transfer_is_asked_for(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        membership = "https://w3id.org/hanse/policy/1/membership"
        two.north.facts[two.south.participant] = facts(two.south, membership="active")
        agreement_id = await agreed(two, policy=constrained(membership, "eq", "active"))
        await started(two, agreement_id)
        two.north.facts[two.south.participant] = facts(two.south, membership="suspended")
        row = await two.south.transfers.request(agreement_id=agreement_id, by="test")
        refused = await settled(two.south, "transfer", row.id, "TERMINATED")
        assert refused.code == "not_permitted"
        assert "membership" in refused.reason


def facts(side: Side, **more: str) -> Facts:
    known = {f"ds:{name}": value for name, value in more.items()}
    return Facts.of({"ds:participant": side.participant, **known}, source="register")


EDC_CONTEXT = [*CONTEXT, "https://w3id.org/edc/dspace/v0.0.1"]
PURPOSES: dict[str, tuple[Json, str]] = {
    "one": (constrained("odrl:purpose", "eq", RESEARCH), RESEARCH),
    "a list of one": (constrained("odrl:purpose", "isAnyOf", [RESEARCH]), RESEARCH),
    "two": (constrained("odrl:purpose", "isAnyOf", [RESEARCH, MARKETING]), ""),
    "all but one": (constrained("odrl:purpose", "neq", MARKETING), ""),
    "none": (USE, ""),
}


@pytest.mark.parametrize(("policy", "bound"), PURPOSES.values(), ids=PURPOSES.keys())
async def test_a_transfer_of_a_peer_that_declares_no_purpose_has_the_only_one_of_the_agreement(
    tmp_path: Path, policy: Json, bound: str
) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two, policy=policy)
        peer = Counterparty(two.north, two.south.participant, two.south.host)
        reply = await peer.post("/transfers/request", asking(peer, agreement_id, **{"@context": EDC_CONTEXT}))
        assert reply.status == 201, reply.body
        row = await two.north.transfer(json.loads(reply.body)["providerPid"])
        assert row.purpose == bound
        told = next(one for one in two.north.events if one.kind == "TransferAdvanced")
        assert (told.purpose, told.detail.get("purpose_from")) == (bound, "agreement" if bound else None)


async def test_a_peer_that_can_declare_a_purpose_is_not_bound_to_that_of_the_agreement(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two, policy=PURPOSES["one"][0])
        _, there = await started(two, agreement_id)
        assert there.purpose == ""
        told = next(one for one in two.north.events if one.kind == "TransferAdvanced")
        assert "purpose_from" not in told.detail


async def test_a_purpose_is_declared_with_the_transfer_or_with_each_read_but_never_another_one(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two, policy=constrained("odrl:purpose", "isAnyOf", [RESEARCH]))
        await started(two, agreement_id)
        here, there = await started(two, agreement_id, purpose=RESEARCH)
        assert here.purpose == there.purpose == RESEARCH
        row = await two.south.transfers.request(agreement_id=agreement_id, purpose=MARKETING, by="test")
        refused = await settled(two.south, "transfer", row.id, "TERMINATED")
        assert refused.code == "purpose_not_agreed"
        assert refused.reason.startswith("refused (4")  # whose word it is stands beside it
        assert "purpose" in refused.reason
        with pytest.raises(Invalid, match="control characters"):
            await two.south.transfers.request(agreement_id=agreement_id, purpose="a\x1b[2J", by="test")


async def test_an_agreement_whose_time_is_over_starts_nothing_more(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        right = {"@value": "2020-01-01T00:00:00Z", "@type": "xsd:dateTime"}
        policy = constrained("odrl:dateTime", "lt", right)
        agreement_id = await agreed(two)

        def expire(tx: Transaction) -> None:
            row = tx.agreements.of(agreement_id, role=PROVIDER)
            row.policy = {**row.policy, **policy}

        await two.north.store.write(expire)
        row = await two.south.transfers.request(agreement_id=agreement_id, by="test")
        assert (await settled(two.south, "transfer", row.id, "TERMINATED")).code == "not_permitted"


async def test_an_agreement_whose_uses_are_spent_starts_nothing_more_and_says_so(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two, policy=constrained("odrl:count", "lteq", "1"))

        def use(tx: Transaction) -> None:
            tx.agreements.count_use(agreement_id, day=0, most=1, most_today=None)

        await two.north.store.write(use)
        row = await two.south.transfers.request(agreement_id=agreement_id, by="test")
        refused = await settled(two.south, "transfer", row.id, "TERMINATED")
        assert (refused.code, "number of uses" in refused.reason) == ("count_spent", True)


async def test_a_push_sends_everything_and_completes(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two)
        row = await two.south.transfers.request(
            agreement_id=agreement_id, format="HttpData-PUSH", data_address=SINK, by="test"
        )
        done = await settled(two.south, "transfer", row.id, "COMPLETED")
        await settled(two.north, "transfer", done.peer_pid, "COMPLETED")
        assert two.north.plane.pushed == [(done.peer_pid, SINK)]
        assert "dataAddress" not in two.cable.sent("TransferStartMessage")[0]
        told = [one for one in two.north.events if one.kind == "TransferAdvanced"]
        assert {one.detail["to"] for one in told} == {"http://203.0.113.2"}


async def test_a_push_without_an_address_comes_to_its_consumer(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two)
        row = await two.south.transfers.request(agreement_id=agreement_id, format="HttpData-PUSH", by="test")
        done = await settled(two.south, "transfer", row.id, "COMPLETED")
        own = two.south.plane.receives(row.id)
        assert two.north.plane.pushed == [(done.peer_pid, own)]
        assert two.cable.sent("TransferRequestMessage")[-1]["dataAddress"] == own.to_wire()


async def test_no_token_of_a_push_lies_in_the_outbox(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two)

        async def switched_off(call: Call) -> Reply:
            raise PeerUnreachable("switched off")

        two.cable.tamper = switched_off
        await two.south.transfers.request(agreement_id=agreement_id, format="HttpData-PUSH", by="test")
        (waiting,) = await two.south.store.read(
            lambda tx: tx.outbox.claim(owner="test", now=float("inf"), lease=0.0, limit=10)
        )
        assert "dataAddress" not in waiting.message


async def test_a_push_to_one_who_receives_nothing_is_not_ordered(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two)
        two.south.plane.receives_nothing = True
        before = await snapshot(two.south)
        with pytest.raises(Invalid, match="receives no pushes"):
            await two.south.transfers.request(agreement_id=agreement_id, format="HttpData-PUSH", by="test")
        assert await snapshot(two.south) == before
        named = await two.south.transfers.request(
            agreement_id=agreement_id, format="HttpData-PUSH", data_address=SINK, by="test"
        )
        await settled(two.south, "transfer", named.id, "COMPLETED")


async def test_a_push_that_is_sent_again_says_why_until_it_arrives(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        two.north.plane.push_fails = PeerUnreachable("the sink took nothing")
        agreement_id = await agreed(two)
        row = await two.south.transfers.request(
            agreement_id=agreement_id, format="HttpData-PUSH", data_address=SINK, by="test"
        )
        here = await settled(two.south, "transfer", row.id, "STARTED")
        async with asyncio.timeout(60):
            while not (there := await two.north.transfer(here.peer_pid)).code:
                await asyncio.sleep(0.005)
        assert (there.state, there.code) == ("STARTED", "push_again")
        assert there.reason == "push, to be sent again: the sink took nothing"
        two.north.plane.push_fails = None
        done = await settled(two.north, "transfer", here.peer_pid, "COMPLETED")
        assert (done.code, done.reason) == ("", "")


async def test_a_push_that_fails_for_good_ends_its_transfer_and_both_sides_know_why(tmp_path: Path) -> None:
    async with pair(tmp_path, retry_deadline=0.3) as two:
        two.north.plane.push_fails = PeerUnreachable("the sink is gone")
        agreement_id = await agreed(two)
        row = await two.south.transfers.request(
            agreement_id=agreement_id, format="HttpData-PUSH", data_address=SINK, by="test"
        )
        here = await settled(two.south, "transfer", row.id, "TERMINATED")
        there = await settled(two.north, "transfer", here.peer_pid, "TERMINATED")
        for side in (here, there):
            assert (side.code, side.reason) == ("push_failed", "push: the sink is gone")
        # The acknowledgement of the start may be recorded before it or after.
        assert [event.code for event in two.north.events if event.outcome == "failed"] == ["push_failed"]


async def test_a_push_that_a_revocation_cuts_ends_with_it_before_the_other_transfers_do(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two)

        def ends(tx: Transaction) -> None:
            agreement = tx.agreements.of(agreement_id, role="provider")
            agreement.ended_at, agreement.end_reason = tx.now, "misused"

        async def cut(*_: Any) -> None:
            await two.north.store.write(ends)
            raise Denied("revoked: misused", code="revoked")

        two.north.plane.push = cut  # type: ignore[method-assign]
        row = await two.south.transfers.request(
            agreement_id=agreement_id, format="HttpData-PUSH", data_address=SINK, by="test"
        )
        here = await settled(two.south, "transfer", row.id, "TERMINATED")
        there = await settled(two.north, "transfer", here.peer_pid, "TERMINATED")
        assert {(side.code, side.reason) for side in (here, there)} == {("agreement_revoked", "misused")}
        assert not [event for event in two.north.events if event.outcome == "failed"]


async def test_why_an_address_is_not_pushed_to_is_for_its_provider_alone(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        two.north.plane.push_fails = AddressPrivate("payroll.corp.internal is at the private address 10.20.30.40")
        row = await two.south.transfers.request(
            agreement_id=await agreed(two), format="HttpData-PUSH", data_address=SINK, by="test"
        )
        here = await settled(two.south, "transfer", row.id, "TERMINATED")
        there = await settled(two.north, "transfer", here.peer_pid, "TERMINATED")
        assert here.reason == "push: its address cannot be called from here"
        assert there.reason == "push: payroll.corp.internal is at the private address 10.20.30.40"


async def test_a_push_whose_last_attempt_finds_the_agreement_used_up_says_what_had_failed(tmp_path: Path) -> None:
    refused, spent = PeerRefused("the sink answered 500"), Limited("the 4 reads are used up", code="count_spent")
    async with pair(tmp_path) as two:
        agreement_id, failures = await agreed(two), [refused, refused, refused, spent]

        async def fails(*_: Any) -> None:
            raise failures.pop(0)

        two.north.plane.push = fails  # type: ignore[method-assign]
        row = await two.south.transfers.request(
            agreement_id=agreement_id, format="HttpData-PUSH", data_address=SINK, by="test"
        )
        here = await settled(two.south, "transfer", row.id, "TERMINATED")
        there = await settled(two.north, "transfer", here.peer_pid, "TERMINATED")
        said = "push: the 4 reads are used up; the attempt before it: the sink answered 500"
        assert {(side.code, side.reason) for side in (here, there)} == {("push_failed", said)}
        told = [(one.outcome, one.code) for one in two.north.events if one.detail.get("message") == "push"]
        assert told == [("broken", "push_again"), ("failed", "push_failed")]  # once for what was the same each time
        assert "the sink answered 500" in next(one.reason for one in two.north.events if one.code == "push_again")


async def test_a_push_that_was_suspended_is_not_completed_when_it_ends(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two)

        async def suspend_first(transfer: Any, data_address: DataAddress) -> None:
            await two.north.transfers.command(transfer.id, "suspend", by="test")
            await settled(two.north, "transfer", transfer.id, "SUSPENDED")

        two.north.plane.push = suspend_first  # type: ignore[method-assign]
        row = await two.south.transfers.request(
            agreement_id=agreement_id, format="HttpData-PUSH", data_address=SINK, by="test"
        )
        await settled(two.south, "transfer", row.id, "SUSPENDED")
        await emptied(two)
        assert two.cable.sent("TransferCompletionMessage") == []


async def test_a_consumer_that_resumes_is_acknowledged_and_then_sent_a_new_address(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        here, there = await started(two, await agreed(two))
        await two.south.transfers.command(here.id, "suspend", by="test")
        suspended = await settled(two.south, "transfer", here.id, "SUSPENDED")
        assert suspended.data_address == {}
        await two.south.transfers.command(here.id, "resume", by="test")
        await settled(two.north, "transfer", there.id, "STARTED")
        await emptied(two)
        again = await settled(two.south, "transfer", here.id, "STARTED")
        assert again.data_address["endpointProperties"] != here.data_address["endpointProperties"]
        assert [side["@type"] for side in two.cable.sent("TransferStartMessage")] == ["TransferStartMessage"] * 3


async def test_what_the_provider_suspended_only_the_provider_resumes(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        here, there = await started(two, await agreed(two))
        await two.north.transfers.command(there.id, "suspend", by="test", code="maintenance", reason="back at 18:00")
        told = await settled(two.south, "transfer", here.id, "SUSPENDED")
        assert (told.code, told.reason, told.suspended_by) == ("maintenance", "back at 18:00", PROVIDER)
        own = await settled(two.north, "transfer", there.id, "SUSPENDED")  # who looks at it there sees why, too
        assert (own.code, own.reason) == ("maintenance", "back at 18:00")
        await two.south.transfers.command(here.id, "resume", by="test")
        await emptied(two)
        assert (await two.south.transfer(here.id)).state == "SUSPENDED"
        assert (await two.north.transfer(there.id)).state == "SUSPENDED"
        await two.north.transfers.command(there.id, "resume", by="test")
        await settled(two.south, "transfer", here.id, "STARTED")
        assert (await settled(two.north, "transfer", there.id, "STARTED")).reason == ""


def readable(where: Side, pid: str) -> Any:
    """Whether a ticket of this transfer is good, or a new one is had."""
    return where.store.read(lambda tx: is_started(tx.transfers.peek(pid)))


# What the consumer answers to it, and where the transfer is then: readable in none of these
@pytest.mark.parametrize("status", [200, 400, 503])
@pytest.mark.parametrize(("order", "after"), [("suspend", "SUSPENDED"), ("complete", "COMPLETED")])
async def test_what_a_provider_stops_is_not_read_whatever_its_consumer_answers(
    tmp_path: Path, order: str, after: str, status: int
) -> None:
    async with pair(tmp_path) as two:
        here, there = await started(two, await agreed(two))

        async def unwilling(call: Call) -> Reply | None:
            return None if status == 200 or call.kind == states.START else Reply(status, {}, b"")

        two.cable.tamper = unwilling
        await two.north.transfers.command(there.id, order, by="test", code="facts_ended")
        assert not await readable(two.north, there.id)
        pending = {"suspend": states.SUSPENSION, "complete": states.COMPLETION}[order] if status == 503 else ""
        row = await settled(two.north, "transfer", there.id, after if status == 200 else "STARTED", pending=pending)
        assert row.suspended_by == ("" if row.state == "COMPLETED" else PROVIDER)
        assert not await readable(two.north, there.id)
        if status == 400:
            await two.north.transfers.command(there.id, "resume", by="test")
            await emptied(two)
            assert await readable(two.north, there.id), "its owner lets it go on"
            assert (await two.south.transfer(here.id)).state == "STARTED"


@pytest.mark.parametrize(("order", "after"), [("suspend", "SUSPENDED"), ("complete", "COMPLETED")])
async def test_what_a_provider_stops_is_not_read_while_its_start_is_not_acknowledged(
    tmp_path: Path, order: str, after: str
) -> None:
    async with pair(tmp_path, retry_first=0.05, retry_cap=0.05) as two:
        agreement_id, unanswered = await agreed(two), asyncio.Event()

        async def never(call: Call) -> Reply | None:
            if call.kind != states.START:
                return None
            unanswered.set()
            return Reply(503, {}, b"")

        two.cable.tamper = never
        row = await two.south.transfers.request(agreement_id=agreement_id, by="test")
        await unanswered.wait()
        there = await two.north.only("transfers")
        assert await readable(two.north, there.id), "its consumer has the ticket"
        await two.north.transfers.command(there.id, order, by="test")
        assert not await readable(two.north, there.id)
        await two.north.transfers.command(there.id, "resume", by="test")
        assert await readable(two.north, there.id), "its owner takes that back"
        await two.north.transfers.command(there.id, order, by="test")
        two.cable.tamper = None
        await settled(two.south, "transfer", row.id, after)
        assert (await settled(two.north, "transfer", there.id, after)).generation > there.generation
        assert not await readable(two.north, there.id)


async def test_what_its_consumer_suspended_the_owner_may_keep_suspended(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        here, there = await started(two, await agreed(two))
        await two.south.transfers.command(here.id, "suspend", by="test", reason="a pause of theirs")
        await settled(two.north, "transfer", there.id, "SUSPENDED")
        await two.north.transfers.command(there.id, "suspend", by="owner", reason="a question of ours")
        assert (await two.north.transfer(there.id)).reason == "a question of ours"
        await settled(two.south, "transfer", here.id, "SUSPENDED")  # it has heard that its own has arrived
        await two.south.transfers.command(here.id, "resume", by="test")
        await emptied(two)
        assert (await two.north.transfer(there.id)).state == "SUSPENDED"
        await two.north.transfers.command(there.id, "resume", by="owner")
        await settled(two.south, "transfer", here.id, "STARTED")


@pytest.mark.parametrize("status", [400, 503])
async def test_a_consumers_own_suspension_does_not_make_the_providers_its_own(tmp_path: Path, status: int) -> None:
    async with pair(tmp_path) as two:
        _, there = await started(two, await agreed(two))
        peer = Counterparty(two.north, participant=two.south.participant)
        two.cable.tamper = lambda call: asyncio.sleep(0, Reply(status, {}, b""))
        await two.north.transfers.command(there.id, "suspend", by="test")
        await settled(two.north, "transfer", there.id, "STARTED", pending=states.SUSPENSION if status == 503 else "")
        assert (await peer.say(states.SUSPENSION, there)).status == 200
        reply = await peer.say(states.START, there)
        assert (reply.status, json.loads(reply.body)["code"]) == (400, "suspended")
        assert (await two.north.transfer(there.id)).suspended_by == PROVIDER


async def test_a_second_start_is_refused_where_no_address_is_awaited(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        row = await peer.transfer(role=CONSUMER, state="STARTED")
        assert (await peer.say(states.START, row)).status == 400
        assert (await two.north.transfer(row.id)).data_address == ADDRESS


async def test_what_a_provider_stops_stops_before_the_consumer_has_the_message(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        _, there = await started(two, await agreed(two))
        seen: list[int] = []

        async def late(call: Call) -> Reply | None:
            if call.kind == "TransferSuspensionMessage":
                seen.append(len(two.north.plane.stopped))
            return None

        two.cable.tamper = late
        await two.north.transfers.command(there.id, "suspend", by="test", reason="pause")
        now = await settled(two.north, "transfer", there.id, "SUSPENDED")
        assert now.generation > there.generation, "older tickets are void"
        assert (there.id, EndReason("suspended", PROVIDER, "pause")) in two.north.plane.stopped


@pytest.mark.parametrize(
    ("ending", "state", "told"),
    [
        ("suspend", "SUSPENDED", "the consumer suspended the transfer: enough for today"),
        ("complete", "COMPLETED", "the consumer completed the transfer"),
        ("terminate", "TERMINATED", "the consumer terminated the transfer: enough for today"),
    ],
)
@pytest.mark.parametrize("who", ["south", "north"])
async def test_bytes_stop_whoever_ends_a_transfer_and_it_is_said_who_and_why(
    tmp_path: Path, ending: str, state: str, told: str, who: str
) -> None:
    async with pair(tmp_path) as two:
        here, there = await started(two, await agreed(two))
        reason = "" if ending == "complete" else "enough for today"
        side, pid = (two.south, here.id) if who == "south" else (two.north, there.id)
        await side.transfers.command(pid, ending, by="test", reason=reason)
        await settled(two.north, "transfer", there.id, state)
        async with asyncio.timeout(60):  # the data plane is told right after the commit that we have just read
            while not two.north.plane.stopped:
                await asyncio.sleep(0.005)
        pid, how = two.north.plane.stopped[0]
        by = "the consumer" if who == "south" else "the owner"
        assert (pid, how.sentence) == (there.id, told.replace("the consumer", by))


@pytest.mark.parametrize(
    ("stopper", "told"),
    [(PROVIDER, "the owner suspended the transfer: not now"), (FACTS, "the transfer is suspended: not now")],
)
async def test_it_is_said_who_stopped_the_bytes_and_why_before_and_after_the_consumer_has_heard_of_it(
    tmp_path: Path, stopper: str, told: str
) -> None:
    async with pair(tmp_path) as two:
        _, there = await started(two, await agreed(two))
        await two.north.transfers.command(there.id, "suspend", by="clock", stopper=stopper, reason="not now")
        await settled(two.north, "transfer", there.id, "SUSPENDED")
        async with asyncio.timeout(60):
            while len(two.north.plane.stopped) < 2:
                await asyncio.sleep(0.005)
        assert [how.sentence for _, how in two.north.plane.stopped] == [told, told]


async def test_revoking_an_agreement_ends_its_transfers_with_the_reason_on_both_sides(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two)
        here, there = await started(two, agreement_id)
        await two.north.agreements.revoke(agreement_id, reason="the study is over", by="owner")
        ended = await settled(two.south, "transfer", here.id, "TERMINATED")
        assert (ended.code, ended.reason) == ("agreement_revoked", "the study is over")
        row, grant = await two.north.agreements.get(agreement_id)
        assert grant is not None
        assert (row.end_reason, grant.reason) == ("the study is over", "the study is over")
        assert grant.revoked_at == row.ended_at is not None
        assert (there.id, EndReason("TERMINATED", PROVIDER, "the study is over")) in two.north.plane.stopped
        for side, actor in ((two.north, "owner"), (two.south, two.north.participant)):
            told = [(event.actor, event.reason) for event in side.events if event.kind == "AgreementRevoked"]
            assert told == [(actor, "the study is over")]
        mine, _ = await two.south.agreements.get(agreement_id, role=CONSUMER)
        assert mine.end_reason == "the study is over", "the consumer knows that there is nothing to ask for any more"
        with pytest.raises(WrongState):
            await two.south.transfers.request(agreement_id=agreement_id, by="test")
        with pytest.raises(WrongState):
            await two.north.agreements.revoke(agreement_id, reason="again", by="owner")


TWO_WAYS: Json = {
    "permission": [
        {
            "action": "use",
            "constraint": [
                {"leftOperand": "ds:membership", "operator": "eq", "rightOperand": "active"},
                {"leftOperand": "odrl:purpose", "operator": "eq", "rightOperand": RESEARCH},
            ],
        },
        {
            "action": "use",
            "constraint": [{"leftOperand": "ds:participantCountry", "operator": "eq", "rightOperand": "DK"}],
        },
    ]
}
# What is known of the party later, the purpose it declares; what the refusal says of each permission, none if it starts
WAYS: list[tuple[Json, str, list[str]]] = [
    ({"membership": "active", "participantCountry": "SE"}, RESEARCH, []),
    ({"membership": "active", "participantCountry": "SE"}, "", []),  # the purpose is declared with each read
    ({"participantCountry": "DK"}, "", []),
    (
        {"membership": "active", "participantCountry": "SE"},
        MARKETING,
        ["under /permission/0: /permission/0/constraint/1:", "or under /permission/1: /permission/1/constraint/0:"],
    ),
    (
        {"participantCountry": "SE"},
        RESEARCH,
        ["under /permission/0: /permission/0/constraint/0:", "or under /permission/1: /permission/1/constraint/0:"],
    ),
]


@pytest.mark.parametrize(("later", "purpose", "said"), WAYS)
async def test_each_permission_is_a_way_of_its_own_to_a_start(
    tmp_path: Path, later: Json, purpose: str, said: list[str]
) -> None:
    async with pair(tmp_path) as two:
        two.north.facts[two.south.participant] = facts(two.south, membership="active")
        agreement_id = await agreed(two, policy=TWO_WAYS)
        two.north.facts[two.south.participant] = facts(two.south, **later)
        row = await two.south.transfers.request(agreement_id=agreement_id, purpose=purpose, by="test")
        here = await settled(two.south, "transfer", row.id, "TERMINATED" if said else "STARTED")
        places = [here.reason.index(one) for one in said]
        assert places == sorted(places), here.reason
        if said:
            refusal = [event for event in two.north.events if event.kind == "RequestRefused"][-1]
            assert refusal.rule == "/permission/0"


async def test_nothing_starts_under_a_revoked_agreement(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        old = await peer.transfer(role=PROVIDER, state="REQUESTED")
        await two.north.agreements.revoke(old.agreement_id, reason="no more", by="owner")
        reply = await peer.post("/transfers/request", asking(peer, old.agreement_id))
        assert (reply.status, json.loads(reply.body)["code"]) == (400, "agreement_ended")
        with pytest.raises(IllegalStep):
            await two.north.transfers.command(old.id, "start", by="test")
        unfinished = (await peer.negotiation(role=PROVIDER, state="VERIFIED")).agreement_id
        await two.north.agreements.revoke(unfinished, reason="not at all", by="owner")
        reply = await peer.post("/transfers/request", asking(peer, unfinished))
        assert json.loads(reply.body)["code"] == "agreement_ended"


async def test_a_ticket_near_its_end_is_renewed_at_the_provider(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        here, _ = await started(two, await agreed(two))

        def near_its_end(tx: Transaction) -> None:
            row = tx.transfers.get(here.id)
            assert row is not None
            properties = [*row.data_address["endpointProperties"], {"name": "expires", "value": "1"}]
            row.data_address = {**row.data_address, "endpointProperties": properties}

        await two.south.store.write(near_its_end)
        fresh = {**ADDRESS, "endpointProperties": [
            {"@type": "EndpointProperty", "name": "authorization", "value": "fresh"},
            {"@type": "EndpointProperty", "name": "expires", "value": "99999999999"}]}  # fmt: skip
        asked: list[Json] = []

        async def renew(call: Call) -> Reply | None:
            if not call.url.endswith("/tickets"):
                return None
            Renewal.model_validate(call.message)  # as the other side reads it
            asked.append(call.message)
            return Reply(200, {}, json.dumps(fresh).encode())

        two.cable.tamper = renew
        for _ in range(2):
            reading = await two.south.transfers.get_read_address(here.id)
            assert reading.address.get("authorization") == "fresh"
        assert asked == [{"transfer": here.peer_pid}], "kept for the next who asks"


FLIGHT = "grpc+tcp://203.0.113.9:8815"
READ_FROM = {  # endpoint, where HTTP is spoken, whether readers are sent there
    "a public address": ("http://203.0.113.9/data", "", True),
    "Flight beside it": (FLIGHT, "http://203.0.113.9/data", True),
    "Flight alone": (FLIGHT, "", True),
    "a cloud's own": ("http://169.254.169.254/latest", "", False),
    "a network of ours": ("https://10.0.0.7", "", False),
    "Flight in a network of ours": ("grpc+tls://10.0.0.7:8815", "http://203.0.113.9/data", False),
    "HTTP in a network of ours": (FLIGHT, "http://10.0.0.7", False),
    "a question of somebody else": ("http://203.0.113.9/?delete=all&", "", False),
    "a file": ("file:///etc/hosts", "", False),
}


@pytest.mark.parametrize("name", READ_FROM)
async def test_readers_are_sent_nowhere_that_the_connector_itself_would_not_ask(tmp_path: Path, name: str) -> None:
    endpoint, http, sent = READ_FROM[name]
    properties = [{"@type": "EndpointProperty", "name": "http", "value": http}] if http else []
    async with pair(tmp_path) as two:
        row = await Counterparty(two.north).transfer(role=CONSUMER, state="STARTED")

        def leads(tx: Transaction) -> None:
            kept = tx.transfers.get(row.id)
            assert kept is not None
            kept.data_address = {**ADDRESS, "endpoint": endpoint, "endpointProperties": properties}

        await two.north.store.write(leads)
        if sent:
            assert (await two.north.transfers.get_read_address(row.id)).address.endpoint == endpoint
        else:
            with pytest.raises(AddressRefused, match="gives an address to which readers may not be sent"):
                await two.north.transfers.get_read_address(row.id)


async def test_where_an_owners_name_does_not_resolve_readers_ask_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        row = await Counterparty(two.north).transfer(role=CONSUMER, state="STARTED")

        def leads(tx: Transaction) -> None:
            kept = tx.transfers.get(row.id)
            assert kept is not None
            kept.data_address = {**ADDRESS, "endpoint": "https://nowhere.invalid"}

        await two.north.store.write(leads)
        with pytest.raises(PeerUnreachable, match="does not resolve"):
            await two.north.transfers.get_read_address(row.id)


async def test_only_a_started_transfer_of_ours_as_consumer_has_an_address_to_read_from(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        peer = Counterparty(two.north)
        for role, state in ((CONSUMER, "REQUESTED"), (CONSUMER, "SUSPENDED"), (PROVIDER, "STARTED")):
            row = await peer.transfer(role=role, state=state)
            with pytest.raises(Absent):
                await two.north.transfers.get_read_address(row.id)
        with pytest.raises(Absent):
            await two.north.transfers.get_read_address("urn:uuid:nowhere")


async def test_no_ticket_lies_in_the_outbox(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        agreement_id = await agreed(two)

        async def away(call: Call) -> Reply | None:
            if call.kind == "TransferStartMessage":
                raise PeerUnreachable("away")
            return None

        two.cable.tamper = away
        await two.south.transfers.request(agreement_id=agreement_id, by="test")
        while not two.cable.sent("TransferStartMessage"):
            await settled(two.south, "negotiation", (await two.south.only("negotiations")).id, "FINALIZED")
        kept = await two.north.store.read(lambda tx: str([vars(row) for row in outbox(tx)]))
        assert "TransferStartMessage" in kept
        assert "ticket:" not in kept


def outbox(tx: Transaction) -> list[Any]:
    from connector.store.tables import Outbox

    return list(tx.session.query(Outbox))
