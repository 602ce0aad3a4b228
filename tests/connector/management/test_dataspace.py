"""Negotiations, transfers, agreements and events on the management API, between two connectors joined in memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from connector.dataplane.push.push_receiver import PushReceiver, ReceiveLimits
from connector.dsp.duty_upkeep import DutyLedger
from connector.dsp.participants import ParticipantDirectory
from connector.events import DecisionNeeded, Event, ServiceStarted
from connector.infra.http import problem_json
from connector.management import agreements, duties, events, negotiations, transfers
from connector.management.events import Feed, frames
from connector.management.notify.webhooks import Webhooks
from connector.management.sign_on.auth import Tokens
from tests.support.admin import issued
from tests.support.counterparty import DATASET, OFFER_ID
from tests.support.minted import minting
from tests.support.pair import USE, Json, Pair, Side, pair, settled
from tests.support.waiting import until

PAY: Json = {"permission": [{"action": "use", "duty": [{"action": "odrl:compensate"}]}]}


@dataclass
class Desk:
    """One side's management API."""

    side: Side
    tokens: Tokens
    feed: Feed
    http: httpx2.AsyncClient

    async def get(self, path: str, status: int = 200) -> Any:
        return self._read(await self.http.get(path), status)

    async def post(self, path: str, body: Any = None, status: int = 200) -> Any:
        return self._read(await self.http.post(path, json=body or {}), status)

    async def as_somebody_with(self, *scopes: str) -> None:
        token = await issued(self.tokens, "-".join(["may", *scopes]), scopes)
        self.http.headers["authorization"] = f"Bearer {token}"

    def _read(self, reply: httpx2.Response, status: int) -> Any:
        assert reply.status_code == status, reply.text
        return reply.json()


@asynccontextmanager
async def desk(side: Side, two: Pair) -> AsyncIterator[Desk]:
    async def member(named: str) -> dict[str, str]:
        known = [one for one in (two.north, two.south) if named in (one.name, one.participant)]
        return {"id": known[0].participant, "name": known[0].name, "url": f"http://{known[0].host}"} if known else {}

    async def contract(agreement_id: str) -> dict[str, Any]:
        return {"agreement": agreement_id, "contracts": []}

    tokens, feed, app = Tokens(side.store), Feed(side.store.bus), FastAPI()
    problem_json.install(app)
    partners = ParticipantDirectory(peer=side.peer, member=member)
    hooks = Webhooks(store=side.store, sender=side.sender, peer=side.peer, wire=two.cable)
    app.include_router(
        negotiations.router(negotiations=side.negotiations, partners=partners, store=side.store, tokens=tokens)
    )
    received = PushReceiver(
        side.store,
        None,  # type: ignore[arg-type]  # nothing comes here that would have to be checked
        Path(str(side.store.engine.url.database)).with_suffix(".received"),
        secret=b"s",
        root_url="http://t",
        room=ReceiveLimits(each=1, total=1),
    )
    fetches: Any = None  # none of these tests fetches
    app.include_router(
        transfers.router(transfers=side.transfers, receiving=received, fetches=fetches, store=side.store, tokens=tokens)
    )
    app.include_router(agreements.router(agreements=side.agreements, tokens=tokens, contract=contract))
    app.include_router(duties.router(DutyLedger(side.store, two.cable, minting()), tokens))

    async def note(event: Event) -> None:
        await side.store.write(lambda tx: tx.publish(event))

    app.include_router(events.router(feed=feed, webhooks=hooks, tokens=tokens, note=note))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://t") as http:
        made = Desk(side, tokens, feed, http)
        await made.as_somebody_with("admin")
        yield made


@asynccontextmanager
async def desks(tmp_path: Path, decide: str = "auto", policy: Json = USE) -> AsyncIterator[tuple[Desk, Desk]]:
    async with pair(tmp_path) as two:
        await two.north.publish(DATASET, offer=OFFER_ID, decide=decide, policy=policy)
        async with desk(two.north, two) as north, desk(two.south, two) as south:
            yield north, south


async def agree(south: Desk) -> Any:
    begun = await south.post("/negotiations", {"participant": "north", "dataset": "air"}, 201)
    return await south.get(f"/negotiations/{begun['id']}?wait=50&until=FINALIZED")


async def test_a_name_and_a_dataset_are_enough_to_agree_and_read(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, south):
        done = await agree(south)
        assert (done["state"], done["dataset"], done["offer_id"], done["waits_for"]) == (
            "FINALIZED", DATASET, OFFER_ID, "")  # fmt: skip
        assert done["sentences"]
        (row,) = await south.get(f"/agreements?role=consumer&dataset={DATASET}")
        assert (row["id"], row["state"]) == (done["agreement_id"], "active")
        assert (await south.get(f"/agreements/{row['id']}/contract"))["agreement"] == row["id"]
        begun = await south.post("/transfers", {"agreement_id": row["id"], "correlation": "job-7"}, 201)
        started = await south.get(f"/transfers/{begun['id']}?wait=50&until=STARTED")
        assert started["state"] == "STARTED"
        assert "ticket:" not in json.dumps(started)
        address = await south.get(f"/transfers/{begun['id']}/address")
        assert address["ticket"].startswith("ticket:")
        assert (await south.get("/transfers?correlation=job-7"))[0]["id"] == begun["id"]
        assert await south.get("/transfers?correlation=job-8") == []
        there = await north.get(f"/agreements/{row['id']}")
        assert (there["role"], there["used"]["queries"], len(there["contract"])) == ("provider", 0, 1)
        assert there["report"]
        await north.get(f"/transfers/{started['peer_pid']}/address", 404)


async def test_whoever_is_in_no_register_is_reached_by_id_and_address(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, south):
        whom = {
            "counter_party_id": north.side.participant,
            "counter_party_address": north.side.base,
            "dataset_id": DATASET,
        }
        for terms in ({"offer_id": OFFER_ID, "policy": USE}, {"offer_id": OFFER_ID}, {}):
            begun = await south.post("/negotiations", {**whom, **terms}, 201)
            done = await south.get(f"/negotiations/{begun['id']}?wait=50&until=FINALIZED")
            assert done["state"] == "FINALIZED"
        catalog = await south.get(f"/catalog?participant={north.side.participant}&address={north.side.base}")
        assert [entry["@id"] for entry in catalog["dataset"]] == [DATASET]


WRONG = [
    ({"participant": "west", "dataset": "air"}, 404),
    ({"participant": "north", "dataset": "nothing"}, 502),
    ({"participant": "north", "dataset": "air", "offer_id": "offer:none"}, 404),
    ({"dataset": "air"}, 400),
    ({"participant": "north"}, 400),
    ({"participant": "north", "dataset": "air", "decide": "rules"}, 400),
    ({"participant": "north", "dataset": "air", "policy": {"permission": "x"}}, 400),
    ({"participant": "north", "dataset": "air", "unknown": 1}, 400),
]


@pytest.mark.parametrize(("body", "status"), WRONG)
async def test_what_cannot_be_asked_for_is_refused_with_a_reason(
    tmp_path: Path, body: dict[str, Any], status: int
) -> None:
    async with desks(tmp_path) as (_, south):
        problem = await south.post("/negotiations", body, status)
        assert problem["detail"]
        assert await south.get("/negotiations") == []


DPV, DS = "https://w3id.org/dpv#", "https://w3id.org/hanse/policy/1/"
FOR_RESEARCH = {"leftOperand": "odrl:purpose", "operator": "eq", "rightOperand": {"@id": f"{DPV}ScientificResearch"}}
MEMBER = {"leftOperand": f"{DS}membership", "operator": "eq", "rightOperand": "active"}
OVER = {"leftOperand": "dateTime", "operator": "lteq", "rightOperand": {"@value": "2020-01-01T00:00:00Z",
        "@type": "http://www.w3.org/2001/XMLSchema#dateTime"}}  # fmt: skip
ASKED_FOR = [
    ([FOR_RESEARCH], "dpv:ScientificResearch", True),
    ([FOR_RESEARCH], f"{DPV}Marketing", False),
    ([MEMBER, FOR_RESEARCH], "dpv:Marketing", False),
    ([FOR_RESEARCH], "", True),
    ([MEMBER], "dpv:Marketing", True),
    ([{"or": [MEMBER, FOR_RESEARCH]}], "dpv:Marketing", True),  # its owner knows whether we are a member
    ([OVER, FOR_RESEARCH], "dpv:Marketing", True),  # for no purpose any more, as its owner will say
]


@pytest.mark.parametrize(("constraints", "purpose", "asked"), ASKED_FOR, ids=str)
async def test_an_offer_for_other_purposes_is_not_asked_for(
    tmp_path: Path, constraints: list[Any], purpose: str, asked: bool
) -> None:
    async with desks(tmp_path) as (north, south):
        policy = {"@id": OFFER_ID, "permission": [{"action": "use", "constraint": constraints}]}
        said = {"counter_party_id": north.side.participant, "counter_party_address": f"http://{north.side.host}/dsp",
                "dataset": DATASET, "policy": policy, "purpose": purpose}  # fmt: skip
        answer = await south.http.post("/negotiations", json=said)
        assert answer.status_code == (201 if asked else 403), answer.text
        assert len(await south.get("/negotiations")) == asked
        if not asked:
            assert (answer.json()["code"], answer.json()["rule"]) == ("purpose_not_agreed", "/permission/0")
            assert "declared purpose is dpv:ScientificResearch; observed dpv:Marketing" in answer.json()["detail"]
            assert "member" not in answer.json()["detail"]


async def test_the_first_offer_that_is_for_the_purpose_is_asked_for(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, south):
        for_research = {"permission": [{"action": "use", "constraint": [FOR_RESEARCH]}]}
        for_marketing = json.loads(json.dumps(for_research).replace("ScientificResearch", "Marketing"))
        await north.side.publish("urn:hanse:north:sold", offer="offer:a", policy=for_research)
        await north.side.publish("urn:hanse:north:sold", offer="offer:b", policy=for_marketing)
        asked = {"participant": "north", "dataset": "sold"}
        for purpose, offer in (("ScientificResearch", "offer:a"), ("Marketing", "offer:b")):
            assert (await south.post("/negotiations", {**asked, "purpose": DPV + purpose}, 201))["offer_id"] == offer
        refused = await south.post("/negotiations", {**asked, "purpose": "dpv:Personalisation"}, 403)
        assert refused["code"] == "purpose_not_agreed"
        for offer, purpose in (("offer:a", "ScientificResearch"), ("offer:b", "Marketing")):
            assert (
                f"{offer}: /permission/0/constraint/0: needed: the declared purpose is dpv:{purpose}"
                in (refused["detail"])
            )


async def test_what_is_listed_can_be_kept_to_a_counterparty_and_a_dataset(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, south):
        done = await agree(south)
        them, us = north.side.participant, south.side.participant
        for desk_, who, other in ((south, them, us), (north, us, them)):
            for path in ("/agreements", "/negotiations"):
                counts = [
                    len(await desk_.get(f"{path}?counterparty={whom}&dataset={what}"))
                    for whom, what in ((who, DATASET), (who, ""), (other, DATASET), (who, "urn:hanse:north:x"))
                ]
                assert counts == [1, 1, 0, 0]
        assert done["counterparty"] == them


async def test_the_queue_of_what_waits_for_us_is_worked_off_by_approving(tmp_path: Path) -> None:
    async with desks(tmp_path, "manual") as (north, south):
        begun = await south.post("/negotiations", {"participant": "north", "dataset": "air"}, 201)
        await settled(south.side, "negotiation", begun["id"], "REQUESTED")
        (waiting,) = await north.get("/negotiations?waiting_for_us=true")
        assert (waiting["state"], waiting["waits_for"]) == ("REQUESTED", "us")
        assert await south.get("/negotiations?waiting_for_us=true&role=consumer") == []
        for slip in ("negotiations?state=TERMINATD", "negotiations?role=consumr", "transfers?state=FINALIZED"):
            assert "Input should be" in (await south.get(f"/{slip}", 400))["detail"]  # no list that is empty
        problem = await north.post(f"/negotiations/{waiting['id']}/finalize", {}, 409)
        assert problem["code"] == "illegal_step"
        await north.post(f"/negotiations/{waiting['id']}/approve")
        done = await north.get(f"/negotiations/{waiting['id']}?wait=50&until=FINALIZED")
        assert done["state"] == "FINALIZED"
        assert await north.get("/negotiations?waiting_for_us=true") == []


async def test_a_negotiation_is_ended_with_a_reason_and_an_unasked_offer_is_made(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, south):
        made = await north.post("/negotiations/offers", {"participant": "south", "offer_id": OFFER_ID}, 201)
        await settled(north.side, "negotiation", made["id"], "OFFERED")
        (offered,) = await south.get("/negotiations?waiting_for_us=true")
        ended = await south.post(f"/negotiations/{offered['id']}/terminate", {"code": "no_need", "reason": "thanks"})
        assert (ended["state"], ended["code"], ended["reason"]) == ("TERMINATED", "no_need", "thanks")
        told = await settled(north.side, "negotiation", made["id"], "TERMINATED")
        assert (told.code, told.reason) == ("no_need", "thanks")


async def test_what_is_taken_back_is_told_from_a_no_and_what_it_was_for_is_known(tmp_path: Path) -> None:
    async with desks(tmp_path, "manual") as (north, south):
        for by, code in ((south, "request_withdrawn"), (north, "terminated")):
            asked = {"participant": "north", "dataset": "air", "purpose": "dpv:ResearchAndDevelopment"}
            begun = await south.post("/negotiations", asked, 201)
            ours = await settled(south.side, "negotiation", begun["id"], "REQUESTED")
            await by.post(f"/negotiations/{begun['id'] if by is south else ours.peer_pid}/terminate")
            there = await settled(north.side, "negotiation", ours.peer_pid, "TERMINATED")
            await settled(south.side, "negotiation", begun["id"], "TERMINATED")
            here = await south.get(f"/negotiations/{begun['id']}")
            assert (here["code"], here["purpose"]) == (code, "dpv:ResearchAndDevelopment")
            assert (there.code, there.purpose) == (code, "")
        offered = await north.post("/negotiations/offers", {"participant": "south", "offer_id": OFFER_ID}, 201)
        await settled(north.side, "negotiation", offered["id"], "OFFERED")
        (waits,) = await south.get("/negotiations?waiting_for_us=true")
        assert (await south.post(f"/negotiations/{waits['id']}/terminate"))["code"] == "terminated"


async def test_revoking_needs_a_reason_and_ends_everything(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, south):
        agreement_id = (await agree(south))["agreement_id"]
        begun = await south.post("/transfers", {"agreement_id": agreement_id}, 201)
        await south.get(f"/transfers/{begun['id']}?wait=50&until=STARTED")
        await north.post(f"/agreements/{agreement_id}/revoke", {}, 400)
        ended = await north.post(f"/agreements/{agreement_id}/revoke", {"reason": "over"})
        assert (ended["state"], ended["end_reason"]) == ("ended", "over")
        gone = await south.get(f"/transfers/{begun['id']}?wait=50&until=TERMINATED")
        assert (gone["code"], gone["reason"]) == ("agreement_revoked", "over")
        await south.get(f"/transfers/{begun['id']}/address", 404)
        await north.post("/agreements/urn:uuid:none/revoke", {"reason": "x"}, 404)


async def test_revoking_names_what_else_that_party_holds_under_the_offer(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, south):
        one, other = [(await agree(south))["agreement_id"] for _ in range(2)]
        assert (await north.post(f"/agreements/{one}/revoke", {"reason": "over"}))["others"] == [other]
        assert (await north.post(f"/agreements/{other}/revoke", {"reason": "over"}))["others"] == []


async def test_each_side_of_a_process_has_a_scope_of_its_own(tmp_path: Path) -> None:
    async with desks(tmp_path, "manual") as (north, south):
        await south.as_somebody_with("owner", "read")
        await south.post("/negotiations", {"participant": "north", "dataset": "air"}, 403)
        await south.as_somebody_with("consume", "read")
        begun = await south.post("/negotiations", {"participant": "north", "dataset": "air"}, 201)
        await settled(south.side, "negotiation", begun["id"], "REQUESTED")
        provided = await north.side.only("negotiations")
        await north.as_somebody_with("consume", "read")
        await north.post(f"/negotiations/{provided.id}/approve", {}, 403)
        await north.post("/negotiations/offers", {"participant": "south", "offer_id": OFFER_ID}, 403)
        await north.as_somebody_with("owner", "read")
        await north.post(f"/negotiations/{provided.id}/approve")
        await north.get("/webhooks", 403)


async def test_evidence_is_recorded_by_whoever_speaks_for_that_side_of_the_agreement(tmp_path: Path) -> None:
    async with desks(tmp_path, policy=PAY) as (north, south):
        where = f"/agreements/{(await agree(south))['agreement_id']}/duties"
        given = {"path": "/permission/0/duty/0", "evidence": "on our account"}
        for side, scope, status in ((north, "consume", 403), (south, "owner", 403), (north, "owner", 201)):
            await side.as_somebody_with(scope, "read")
            told = await side.post(where, given, status)
        assert told["state"] == "fulfilled", "the owner's word, which lets the data go"


async def test_a_long_poll_ends_with_the_time_with_the_goal_or_with_the_end(tmp_path: Path) -> None:
    async with desks(tmp_path, "manual") as (_, south):
        begun = await south.post("/negotiations", {"participant": "north", "dataset": "air"}, 201)
        await settled(south.side, "negotiation", begun["id"], "REQUESTED")
        still = await south.get(f"/negotiations/{begun['id']}?wait=0.05&until=FINALIZED")
        assert still["state"] == "REQUESTED"
        waiting = asyncio.ensure_future(south.get(f"/negotiations/{begun['id']}?wait=20&until=FINALIZED"))
        await asyncio.sleep(0.05)
        await south.post(f"/negotiations/{begun['id']}/terminate")
        assert (await asyncio.wait_for(waiting, 60))["state"] == "TERMINATED"
        await south.get("/negotiations/urn:uuid:none?wait=1", 404)
        await south.get("/transfers/urn:uuid:none", 404)


async def test_transfers_are_steered(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, south):
        begun = await south.post("/transfers", {"agreement_id": (await agree(south))["agreement_id"]}, 201)
        started = await south.get(f"/transfers/{begun['id']}?wait=50&until=STARTED")
        pid = started["peer_pid"]
        await settled(north.side, "transfer", pid, "STARTED")
        for command, state in (("suspend", "SUSPENDED"), ("resume", "STARTED"), ("complete", "COMPLETED")):
            await north.post(f"/transfers/{pid}/{command}", {"reason": "because"})
            await settled(south.side, "transfer", begun["id"], state)
            await settled(north.side, "transfer", pid, state)
        await north.post(f"/transfers/{pid}/terminate", {}, 409)
        await north.post(f"/transfers/{pid}/dance", {}, 400)


async def test_the_event_stream_tells_committed_events_of_the_wanted_kinds(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, _):
        reader = north.feed.join()
        lines = frames(north.feed, reader, frozenset({"DecisionNeeded"}))
        assert await anext(lines) == ": joined\n\n"
        await north.side.store.write(lambda tx: tx.publish(ServiceStarted(actor="x")))
        await north.side.store.write(lambda tx: tx.publish(DecisionNeeded(actor="x", process="p")))
        number, kind, data = (await asyncio.wait_for(anext(lines), 60)).split("\n")[:3]
        assert (number, kind) == ("id: 1", "event: DecisionNeeded")
        assert json.loads(data.removeprefix("data: "))["process"] == "p"
        north.feed.close()
        assert (await anext(lines)).startswith("event: end")
        assert [line async for line in lines] == []
        await north.get("/events/stream?kind=Nothing", 400)
        await north.get("/events/stream?kind=LogRead", 429)  # closed: it is shutting down


async def test_the_event_stream_takes_the_scope_of_the_log_and_is_a_reading_of_it(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, _):
        north.feed.close()
        for scope, status in (("read", 403), ("audit", 429)):
            await north.as_somebody_with(scope)
            await north.get("/events/stream?kind=ReadStarted", status)
        await until(lambda: any(one.kind == "LogRead" for one in north.side.events))
        (read,) = (one for one in north.side.events if one.kind == "LogRead")
        assert (read.actor, read.detail) == ("may-audit", {"what": "stream", "terms": {"kinds": ["ReadStarted"]}})
        (refused,) = (one for one in north.side.events if one.kind == "RequestRefused")
        assert (refused.actor, refused.detail["token"]) == ("unknown", "may-read")


async def test_a_reader_that_does_not_read_is_cut_off_and_holds_nothing_up(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, _):
        reader = north.feed.join()
        for _i in range(1_500):
            north.feed._on_event(ServiceStarted(actor="x"))
        assert reader.qsize() <= 1_000
        last = None
        while not reader.empty():
            last = reader.get_nowait()
        assert last is None


async def test_webhooks_are_made_listed_and_removed(tmp_path: Path) -> None:
    async with desks(tmp_path) as (north, south):
        made = await north.post("/webhooks", {"url": f"http://{south.side.host}/hook"}, 201)
        assert len(made["secret"]) >= 32
        (listed,) = await north.get("/webhooks")
        assert "secret" not in listed
        await north.post("/webhooks", {"url": f"http://{south.side.host}/hook", "kinds": ["Nonsense"]}, 400)
        await north.post("/webhooks", {"url": "http://10.0.0.1/hook"}, 400)
        assert (await north.http.delete(f"/webhooks/{made['id']}")).status_code == 204
        assert await north.get("/webhooks") == []


async def test_a_policy_with_a_member_twice_is_refused_by_name(tmp_path: Path) -> None:
    async with pair(tmp_path) as two, desk(two.south, two) as south:
        body = '{"policy": {"prohibition": [{"action": "ds:stream"}], "prohibition": []}}'
        reply = await south.http.post("/negotiations", content=body, headers={"content-type": "application/json"})
        assert reply.status_code == 400
        assert "'prohibition' twice" in reply.json()["detail"]
