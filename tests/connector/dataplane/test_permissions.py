"""Under a policy of several permissions a read is under one whose own conditions are met, and shows that one's data."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import httpx2
import pytest

from connector.dataplane.contract_routes import summary
from connector.dataplane.read_log import describe_policies
from connector.dataplane.read_request import STREAM
from connector.dataplane.read_request import ReadRequest as Read
from connector.offers.preview import OwnersView, PreviewRequest
from connector.usage.fact_collector import FactCollector, party_facts
from policies.evaluation.evaluate import Facts
from policies.model import Constraint, Duty, Policy, Rule
from policies.vocabulary import expand
from tests.connector.dataplane.http.test_routes import ROWS, ask, client, parse, read
from tests.support import gate, provider
from tests.support.gate import atom, mask
from tests.support.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNPAID = Duty(expand("odrl:compensate"), (atom("odrl:payAmount", "eq", "1000"),))
ONLY_ID = atom("ds:columnAllow", "isAnyOf", "id")
ALL = ["id", "x", "name", "day", "gap", "tags"]


def may(*constraints: Constraint, duties: tuple[Duty, ...] = ()) -> Rule:
    return Rule(expand("odrl:use"), constraints, duties)


def policy(*permissions: Rule) -> Policy:
    return replace(gate.agreement(action="odrl:use"), permissions=permissions)


CLOSED = [
    (may(atom("ds:role", "isAnyOf", "research")), "ds:role"),
    (may(duties=(UNPAID,)), "/permission/0/duty/0"),
    (may(atom("ds:participantCountry", "eq", "DE")), "ds:participantCountry"),
    (may(atom("ds:environment", "eq", "secure")), "ds:environment"),
    (may(atom("ds:application", "eq", "https://app.example/")), "ds:application"),
    (may(atom("odrl:count", "lteq", "0")), "0 reads and they are used up"),
    (may(atom("ds:queriesPerDay", "lt", "1")), "0 reads a day"),
    (may(atom("ds:concurrency", "lt", "1")), "0 reads at once"),
    (may(atom("ds:rowQuota", "lteq", "0")), "used up; ask its owner for another agreement"),
    (may(atom("odrl:percentage", "lteq", "0.000001")), "used up; ask its owner for another agreement"),
    (may(atom("ds:byteQuota", "lteq", "0")), "used up; ask its owner for another agreement"),
]


@pytest.mark.parametrize(("closed", "lacks"), CLOSED)
async def test_a_permission_that_is_not_active_shows_nothing_and_bars_no_other(
    running: Provider, closed: Rule, lacks: str
) -> None:
    open_ = may(ONLY_ID, atom("ds:row/gap", "eq", "2"))
    ticket = running.ticket(await running.agree(policy(closed, open_)))
    for more in ({}, {"blocks": "all"}):
        table, end = await read(running, ticket, **more)
        assert (table.schema.names, end["policy"]) == (["id"], ["numbers: row filter", "numbers: 5 columns withheld"])
    answer = await ask(running, ticket, "SELECT * FROM numbers LIMIT 2")
    assert parse(answer.content)[0].schema.names == ["id"]
    assert (await ask(running, ticket, "SELECT name FROM numbers")).json()["code"] == "column_unknown"
    alone = await ask(running, running.ticket(await running.agree(policy(closed))), "SELECT id FROM numbers")
    assert alone.status_code in (403, 429)
    assert lacks in alone.json()["detail"]


async def test_the_first_active_permission_counts_whatever_later_ones_lack(running: Provider) -> None:
    ticket = running.ticket(await running.agree(policy(may(ONLY_ID), CLOSED[0][0])))
    assert (await read(running, ticket))[0].schema.names == ["id"]


async def test_rows_are_never_shown_where_only_groups_are_permitted(running: Provider) -> None:
    groups = may(atom("ds:minGroupSize", "gteq", "10"), atom("ds:dimension/gap", "eq", "exact"))
    ticket = running.ticket(await running.agree(policy(CLOSED[3][0], groups)))
    async with client(running, ticket) as session:
        for path in (ROWS, f"{ROWS}?blocks=all"):
            refused = await session.get(path)
            assert refused.status_code in (400, 403), refused.text
        assert (await session.post("/data/v1/streams", json={})).json()["code"] == "aggregate_only"
    refused = await ask(running, ticket, "SELECT name FROM numbers LIMIT 1")
    assert refused.status_code in (400, 403)
    answer = await ask(running, ticket, "SELECT gap, count(*) AS n FROM numbers GROUP BY gap")
    assert parse(answer.content)[1]["status"] == "complete"


async def test_what_each_permission_lacks_is_said_and_what_passes_by_itself_gives_the_code(running: Provider) -> None:
    both = policy(CLOSED[0][0], CLOSED[2][0])
    refused = (await ask(running, running.ticket(await running.agree(both)), "SELECT id FROM numbers")).json()
    assert refused["code"] == "not_permitted"
    assert all(f"/permission/{number}/constraint/0: needed" in refused["detail"] for number in (0, 1))
    late = policy(CLOSED[0][0], may(atom("ds:queriesPerDay", "lteq", "1")))
    ticket = running.ticket(await running.agree(late))
    assert (await ask(running, ticket, "SELECT id FROM numbers LIMIT 1")).status_code == 200
    refused = (await ask(running, ticket, "SELECT id FROM numbers LIMIT 1")).json()
    assert (refused["code"], refused["rule"]) == ("count_spent", "/permission/1/constraint/0")
    assert "ds:role" in refused["detail"]


async def test_a_plan_and_a_description_are_of_the_permission_that_a_read_will_be_under(running: Provider) -> None:
    ticket = running.ticket(await running.agree(policy(CLOSED[0][0], may(ONLY_ID))))
    async with client(running, ticket) as session:
        plan = (await session.post("/data/v1/streams", json={})).json()
    table, _ = await read(running, ticket, blocks="0", snapshot=plan["snapshot"])
    assert table.schema.names == ["id"]
    application = policy(CLOSED[4][0], may(ONLY_ID))
    ticket = running.ticket(await running.agree(application))
    declared: dict[str, Any] = {"application": "https://app.example/"}
    assert (await read(running, ticket, blocks="0", **declared))[0].schema.names == ALL
    assert (await read(running, ticket, blocks="0"))[0].schema.names == ["id"]


async def test_a_read_ends_when_its_own_permission_does_though_another_is_active(running: Provider) -> None:
    role: list[str] = ["research"]

    async def facts(who: str) -> Facts:
        return party_facts(who, {"status": "active", "role": role})

    before, running.grants._facts_of = running.grants._facts_of, facts
    try:
        agreement = await running.agree(policy(CLOSED[0][0], may(ONLY_ID)))
        ticket = running.addresses.read(f"Bearer {running.ticket(agreement)}")
        asked = Read(tickets=(ticket,), sql="SELECT * FROM numbers", action=STREAM, plain_scan=True, query_id="own")
        async with running.reads.open(asked) as stream:
            assert list(stream.columns) == ALL
            role[:] = ["sales"]
            async with httpx2.AsyncClient(timeout=60) as session:
                path, bearer = f"{running.url}/data/v1/reads/own/renew", f"Bearer {running.ticket(agreement)}"
                renewed = await session.post(path, headers={"authorization": bearer})
            assert renewed.json()["code"] == "not_permitted"
            async for _ in stream.frames():
                pass
            assert stream.end is not None
            assert (stream.end.status, stream.end.code) == ("refused", "not_permitted")
        assert (await read(running, running.ticket(agreement)))[0].schema.names == ["id"]
    finally:
        running.grants._facts_of = before


async def test_an_agreement_tells_of_the_permissions_that_this_party_can_use(running: Provider) -> None:
    ticket = running.ticket(await running.agree(policy(CLOSED[0][0], CLOSED[4][0], may(ONLY_ID))))
    held = await running.grants.load_usable(
        running.addresses.read(f"Bearer {ticket}").agreement, consumer=provider.CONSUMER
    )
    assert [one.permission for one in held.contracts] == ["/permission/1", "/permission/2"]


PASSING = expand("odrl:distribute")
FOR_RESEARCH = atom("odrl:purpose", "isA", "https://w3id.org/dpv#ResearchAndDevelopment")
RESEARCH = "https://w3id.org/dpv#ScientificResearch"
OTHERWISE: dict[str, Constraint] = {
    "rows": atom("ds:row/id", "lt", "5"),
    "columns": ONLY_ID,
    "purpose": FOR_RESEARCH,
    "an end": atom("odrl:dateTime", "lt", "2099-01-01T00:00:00Z"),
    "quota": atom("ds:rowQuota", "lteq", "10"),
}


async def shared(running: Provider, agreed: Policy, *, purpose: str = "") -> dict[str, bool]:
    """What the party hears of its contracts: whether their values may go to other owners, by permission."""
    ticket = running.addresses.read(f"Bearer {running.ticket(await running.agree(agreed))}")
    held = await running.grants.load_usable(ticket.agreement, consumer=provider.CONSUMER, purpose=purpose)
    told = summary(held, owner="o")["contracts"]
    return {one.permission: said["shares_keys"] for one, said in zip(held.contracts, told, strict=True)}


async def test_values_go_to_other_owners_where_their_own_contract_lets_them(running: Provider) -> None:
    query, passing = Rule(expand("ds:query")), Rule(PASSING)
    assert await shared(running, policy(may())) == {"/permission/0": True}
    assert await shared(running, policy(query)) == {"/permission/0": False}
    assert await shared(running, policy(query, passing)) == {"/permission/0": True, "/permission/1": True}
    alike = policy(replace(query, constraints=(ONLY_ID,)), replace(passing, constraints=(ONLY_ID,)))
    assert await shared(running, alike) == {"/permission/0": True, "/permission/1": True}


@pytest.mark.parametrize("less", OTHERWISE.values(), ids=OTHERWISE)
async def test_leave_to_distribute_something_else_is_none(running: Provider, less: Constraint) -> None:
    told = await shared(running, policy(Rule(expand("ds:query")), Rule(PASSING, (less,))), purpose=RESEARCH)
    assert told == {"/permission/0": False, "/permission/1": True}


@pytest.mark.parametrize(
    "when",
    [
        (),
        (atom("odrl:dateTime", "gt", "2026-06-01T00:00:00Z"),),
        (atom("ds:participant", "eq", provider.CONSUMER),),
        (atom("ds:role", "isAnyOf", "research"),),  # which is not known
        (atom("ds:participantCountry", "eq", "DE"), FOR_RESEARCH),
    ],
    ids=["ever", "by now", "this one", "unknown", "unknown with a purpose"],
)
async def test_a_prohibition_to_distribute_that_applies_or_may_keeps_values_here(
    running: Provider, when: tuple[Constraint, ...]
) -> None:
    agreed = replace(policy(may()), prohibitions=(Rule(PASSING, when),))
    assert await shared(running, agreed, purpose=RESEARCH) == {"/permission/0": False}
    assert await shared(running, agreed) == {"/permission/0": False}


async def test_a_prohibition_to_distribute_that_does_not_apply_keeps_nothing(running: Provider) -> None:
    never = Rule(PASSING, (atom("ds:participant", "eq", "did:web:another"),))
    assert await shared(running, replace(policy(may()), prohibitions=(never,))) == {"/permission/0": True}


async def test_a_purpose_that_the_transfer_does_not_name_is_left_to_the_question(running: Provider) -> None:
    assert await shared(running, policy(may(FOR_RESEARCH))) == {"/permission/0": True}
    secret = Rule(PASSING, (FOR_RESEARCH, atom("ds:participant", "eq", provider.CONSUMER)))
    kept = replace(policy(may(FOR_RESEARCH)), prohibitions=(secret,))
    assert await shared(running, kept) == {"/permission/0": False}


async def test_an_owner_sees_what_the_party_would_see_through_its_own_permission(running: Provider) -> None:
    class Register:
        async def find_member(self, participant: str) -> dict[str, Any]:
            return {"status": "active"}

        def valid_until(self) -> None:
            return None

    await running.agree()
    known = FactCollector(running.store, Register())  # type: ignore[arg-type]  # all that is asked of a MemberRegister
    view = OwnersView(running.store, running.pool, known, name=provider.OWNER, mask_secret=b"m" * 32, memory_mb=256)
    dataset = await running.store.read(lambda tx: tx.datasets.of(provider.DATASET))
    version = await running.store.read(lambda tx: tx.datasets.get_current(dataset))
    asked = PreviewRequest(participant=provider.CONSUMER, action="odrl:use")
    facts, two = await view._facts(asked, dataset), policy(CLOSED[0][0], may(ONLY_ID, duties=(mask("null", "gap"),)))
    shown = await view._read_first_rows(dataset, version, two, facts, asked, "offer", by="test", now=2e9)
    assert [column["name"] for column in shown["columns"]] == ["id"]
    assert shown["columns_shown"] == ["id"]


@pytest.mark.parametrize(("hidden", "told"), [(["name"], "1 column withheld"), (["name", "gap"], "2 columns withheld")])
async def test_what_a_policy_withholds_is_counted(hidden: list[str], told: str) -> None:
    bench = gate.Bench()
    table = gate.schema(id="BIGINT", gap="BIGINT", name="VARCHAR")
    bench.add("clinic", "numbers", "src", gate.contract(table, atom("ds:columnDeny", "isNoneOf", *hidden)))
    assert describe_policies(bench.prepare("SELECT id FROM numbers")) == (f"numbers: {told}",)
