"""A read under several agreements: which of the tickets shown take part, and where the log has it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from connector.audit.log import Filter, Sequencer
from connector.audit.signed_note import Signer
from connector.dataplane import running_reads
from connector.dataplane.read_request import QUERY, ReadRequest
from connector.events import Event
from policies.model import Policy
from policies.vocabulary import expand
from tests.connector.dataplane.http.test_routes import ask, parse
from tests.connector.dataplane.test_usage_counts import used
from tests.support import data, gate
from tests.support.gate import atom
from tests.support.provider import CONSUMER, Provider, settled

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBERS, OTHERS = "urn:hanse:clinic:numbers", "urn:hanse:clinic:others"
ALONE = 'SELECT id FROM "clinic".numbers'
BOTH = 'SELECT n.id, o.name FROM "clinic".numbers n JOIN "clinic".others o ON n.id = o.id'
RESEARCH, CARE = expand("dpv:ScientificResearch"), expand("dpv:ServiceProvision")


@pytest.fixture
def others(tmp_path: Path) -> Path:
    return data.parquet(tmp_path / "others.parquet", 50)


def limited(term: str, most: str) -> Policy:
    return gate.agreement(atom(term, "lteq", most), action="odrl:use")


async def told(running: Provider, before: int) -> list[Event]:
    await settled(running)
    return running.events[before:]


async def test_a_ticket_that_the_question_does_not_need_takes_no_part(running: Provider, others: Path) -> None:
    agreement, spare = (
        await running.agree(),
        await running.agree(limited("odrl:count", "9"), name="others", path=others),
    )
    for first, second in ((agreement, spare), (spare, agreement)):
        before = len(running.events)
        answer = await ask(running, running.ticket(first), ALONE, tickets=[running.ticket(second)])
        assert parse(answer.content)[1]["rows"] == data.ROWS
        found = await told(running, before)
        assert [(one.kind, one.agreement, one.dataset) for one in found] == [
            ("ReadStarted", agreement, NUMBERS),
            ("ReadEnded", agreement, NUMBERS),
        ]
    assert (await used(running, spare))[0] == 0


async def test_what_ends_an_agreement_that_a_read_is_not_under_does_not_end_the_read(
    running: Provider, others: Path
) -> None:
    agreement, spare = await running.agree(), await running.agree(name="others", path=others)
    tickets = tuple(running.addresses.read(f"Bearer {running.ticket(one)}") for one in (spare, agreement))
    async with running.reads.open(ReadRequest(tickets=tickets, sql=ALONE, action=QUERY)) as stream:
        assert running.grants.running(spare) == 0
        await running.revoke(spare, "over")
        async for _ in stream.frames():
            pass
    assert stream.end is not None
    assert (stream.end.status, stream.end.rows) == ("complete", data.ROWS)


async def test_the_log_has_a_read_under_each_of_its_agreements(running: Provider, others: Path) -> None:
    agreements = {NUMBERS: await running.agree(), OTHERS: await running.agree(name="others", path=others)}
    purposes = {NUMBERS: RESEARCH, OTHERS: CARE}
    first, second = (running.ticket(agreements[name], purpose=purposes[name]) for name in agreements)
    answer = await ask(running, first, BOTH, tickets=[second])
    end = parse(answer.content)[1]
    await settled(running)
    await Sequencer(running.store, signer=Signer("clinic", Ed25519PrivateKey.generate())).settle()
    for dataset, agreement in agreements.items():
        which = Filter(agreement=agreement, dataset=dataset).query
        rows = await running.store.read(lambda tx, which=which: tx.audit.list_events(**which))
        bodies = [json.loads(row.body) for row in rows]
        assert [one["kind"] for one in bodies] == ["ReadStarted", "ReadEnded"]
        for body in bodies:
            assert (body["process"], body["purpose"], body["version"]) == (end["query"], purposes[dataset], "v1")
            assert body["detail"]["agreements"] == list(agreements.values())
        assert bodies[-1]["detail"]["rows"] == end["rows"] == 50


async def test_a_purpose_is_asked_of_the_agreement_whose_ticket_names_it(running: Provider, others: Path) -> None:
    """One purpose for both would be the wrong one for one of them, whichever ticket comes first."""
    first, second = (
        gate.agreement(atom("odrl:purpose", "eq", RESEARCH), action="odrl:use"),
        gate.agreement(atom("odrl:purpose", "eq", CARE), action="odrl:use"),
    )
    shown = [
        running.ticket(await running.agree(first), purpose=RESEARCH),
        running.ticket(await running.agree(second, name="others", path=others), purpose=CARE),
    ]
    for bearer, other in (shown, shown[::-1]):
        assert (await ask(running, bearer, BOTH, tickets=[other])).status_code == 200


async def test_a_refusal_is_recorded_under_the_agreement_that_was_the_reason(running: Provider, others: Path) -> None:
    good = await running.agree()
    ended = await running.agree(name="others", path=others)
    await running.revoke(ended, "over")
    spent = await running.agree(limited("odrl:count", "0"), name="others")
    for bad, code in ((ended, "agreement_ended"), (spent, "count_spent")):
        before = len(running.events)
        answer = await ask(running, running.ticket(good), BOTH, tickets=[running.ticket(bad)])
        assert (answer.json()["code"], answer.json()["agreement"]) == (code, bad)
        assert [(one.kind, one.agreement, one.code) for one in await told(running, before)] == [
            ("ReadRefused", bad, code)
        ]


async def test_what_no_agreement_in_particular_refuses_is_recorded_under_each(running: Provider, others: Path) -> None:
    both = [await running.agree(), await running.agree(name="others", path=others)]
    before = len(running.events)
    first, second = map(running.ticket, both)
    assert (await ask(running, first, "SELECT nope FROM numbers", tickets=[second])).status_code == 400
    found = await told(running, before)
    assert [(one.agreement, one.dataset, one.code) for one in found] == [
        (both[0], NUMBERS, "column_unknown"),
        (both[1], OTHERS, "column_unknown"),
    ]


async def test_the_records_of_an_end_say_which_agreement_ended_the_read(running: Provider, others: Path) -> None:
    kept, ending = await running.agree(), await running.agree(name="others", path=others)
    tickets = tuple(running.addresses.read(f"Bearer {running.ticket(one)}") for one in (kept, ending))
    before = len(running.events)
    async with running.reads.open(ReadRequest(tickets=tickets, sql=BOTH, action=QUERY)) as stream:
        await running.revoke(ending, "over")
        async for _ in stream.frames():
            pass
    found = [one for one in await told(running, before) if one.kind == "ReadEnded"]
    assert [(one.agreement, one.code, one.rule) for one in found] == [
        (kept, "revoked", ""),
        (ending, "revoked", "/permission/0"),
    ]
    assert {one.detail["ended_by"] for one in found} == {ending}


async def test_what_a_crash_leaves_of_a_read_is_closed_under_each_of_its_agreements(
    running: Provider, others: Path
) -> None:
    both = [await running.agree(), await running.agree(name="others", path=others)]
    before = len(running.events)
    tickets = tuple(running.addresses.read(f"Bearer {running.ticket(one)}") for one in both)
    asked = ReadRequest(tickets=tickets, sql=BOTH, action=QUERY, query_id="cut", transport="http")
    async with running.reads.open(asked):
        await asyncio.gather(*running.reads._tasks - {running.reads._noting})
        (known,) = await running.store.read(lambda tx: running_reads.list_running(tx, limit=10))
        assert (known.id, known.consumer, known.transport) == ("cut", CONSUMER, "http")
        assert time.time() - 60 < known.since <= time.time()
        assert [(one.agreement, one.transfer) for one in known.under] == [
            (one, one.replace("agreement", "transfer")) for one in both
        ]
        await running_reads.close_left_over(running.store, instance=running.reads._instance)
    found = [one for one in await told(running, before) if one.kind == "ReadEnded"]
    assert [(one.agreement, one.dataset, one.code, one.detail.get("after")) for one in found] == [
        (both[0], NUMBERS, "interrupted", None),
        (both[1], OTHERS, "interrupted", None),
        (both[0], NUMBERS, "client_gone", "interrupted"),  # of who was not dead after all
        (both[1], OTHERS, "client_gone", "interrupted"),
    ]
    assert all(one.detail["agreements"] == both and one.process == "cut" for one in found)
