"""What is known of a party: from whom, until when; what an owner may record; how long a read rests on it."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connector.errors import Absent, ConnectorError, Denied, Invalid
from connector.store import Store
from connector.usage.fact_collector import FactCollector, party_facts
from connector.usage.grants import Grants
from connector.usage.held_agreement import GrantRequest, ReadGrant
from policies.evaluation.evaluate import Fact, Facts
from policies.vocabulary import expand
from tests.protocol.test_transfers import agreed, constrained, started
from tests.support.pair import Pair, pair

DID = "did:web:a.example"


class Register:
    """A member register as `MemberRegister` gives it."""

    def __init__(self, entry: dict[str, Any] | None, until: float | None) -> None:
        self.entry, self.until = entry, until

    async def find_member(self, participant: str) -> dict[str, Any] | None:
        return self.entry

    def valid_until(self) -> float | None:
        return self.until


def known(store: Store, entry: dict[str, Any] | None, *, until: float | None = None) -> FactCollector:
    return FactCollector(store, Register(entry, until))  # type: ignore[arg-type]  # all that is asked of a MemberRegister


def said(facts: Facts) -> dict[str, tuple[tuple[Any, ...], str, float | None]]:
    return {key: (fact.values, fact.source, fact.valid_until) for key, fact in facts.items()}


@pytest.mark.parametrize(
    ("entry", "facts"),
    [
        (None, {}),
        ({}, {"ds:membership": (("none",), "register", 9.0)}),
        ({"status": "active", "country": ""}, {"ds:membership": (("active",), "register", 9.0)}),
        (
            {"status": "suspended", "role": ["a", "b"], "url": "https://a.example", "title": "A"},
            {
                "ds:membership": (("suspended",), "register", 9.0),
                "ds:role": (("a", "b"), "register", 9.0),
                "ds:connector": (("https://a.example",), "register", 9.0),
            },
        ),
    ],
)
def test_the_register_says_what_it_says_and_until_when(entry: dict[str, Any] | None, facts: dict[str, Any]) -> None:
    assert said(party_facts(DID, entry, until=9.0)) == {"ds:participant": ((DID,), "signature", None), **facts}


async def test_the_owners_record_counts_where_several_speak_and_ends_when_it_says(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    who, soon = known(sqlite_store, {"status": "active", "role": "hospital"}), time.time() + 600
    await who.record(DID, "ds:role", ["insurer"], evidence="a letter", until=soon, by="test")
    await who.record(DID, "ds:permit", ["P-1", "P-2"], evidence="", until=None, by="test")
    found = await who.of(DID)
    assert found["ds:role"] == Fact(("insurer",), "owner", soon)
    assert found["ds:permit"].values == ("P-1", "P-2")
    monkeypatch.setattr(
        "connector.usage.fact_collector.time", SimpleNamespace(time=lambda: soon, monotonic=time.monotonic)
    )
    assert (await who.of(DID))["ds:role"].values == ("hospital",)
    await who.withdraw(DID, "ds:permit", "P-1", by="test")
    assert (await who.of(DID))["ds:permit"].values == ("P-2",)
    await who.withdraw(DID, "ds:permit", by="test")
    assert "ds:permit" not in await who.of(DID)
    with pytest.raises(Absent):
        await who.withdraw(DID, "ds:permit", by="test")


@pytest.mark.parametrize(
    ("subject", "fact", "values", "until", "says"),
    [
        (DID, "ds:membership", ["active"], None, "comes from the operator of the data space"),
        (DID, "ds:participant", [DID], None, "comes from the party itself"),
        (DID, "odrl:purpose", ["dpv:Marketing"], None, "comes from the caller"),
        (DID, "odrl:count", ["0"], None, "comes from the grant's counters"),
        (DID, "ds:minGroupSize", ["1"], None, "is not a fact"),
        (DID, "ds:mood", ["good"], None, "is not a fact"),
        (DID, "ds:securityLevel", ["highest"], None, "base, trust, trust"),
        (DID, "ds:participantCountry", ["Atlantis"], None, "expected a country"),
        (DID, "ds:permit", [""], None, "at most 255"),
        (DID, "ds:permit", ["x" * 256], None, "at most 255"),
        (DID, "ds:permit", [], None, "at least one value"),
        (DID, "ds:permit", ["P"], 5.0, "in the future"),
        ("somebody", "ds:permit", ["P"], None, "the DID of a participant"),
        ("nowhere", "ds:miningReserved", ["true"], None, "no dataset 'nowhere'"),
    ],
)
async def test_what_is_not_the_owners_to_say_is_refused_with_who_says_it(
    sqlite_store: Store, subject: str, fact: str, values: list[str], until: float | None, says: str
) -> None:
    who = known(sqlite_store, {})
    with pytest.raises((Invalid, Absent), match=says):
        await who.record(subject, fact, values, evidence="", until=until, by="test")
    assert await who.recorded() == []


async def test_a_failing_register_leaves_membership_unknown(sqlite_store: Store) -> None:
    who = known(sqlite_store, None)
    await who.record(DID, "ds:environment", ["secure"], evidence="", until=None, by="test")
    assert sorted(await who.of(DID)) == ["ds:environment", "ds:participant"]


async def test_what_is_withdrawn_while_it_is_read_is_not_kept(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    who, read = known(sqlite_store, None), sqlite_store.read
    await who.record(DID, "ds:environment", ["secure"], evidence="", until=None, by="test")

    async def read_before(work: Any) -> Any:
        found = await read(work)
        monkeypatch.setattr(sqlite_store, "read", read)
        await who.withdraw(DID, "ds:environment", by="test")
        return found

    monkeypatch.setattr(sqlite_store, "read", read_before)
    assert "ds:environment" in await who.of(DID)  # as it was when it was asked
    assert "ds:environment" not in await who.of(DID)


async def test_what_the_owner_records_is_read_once_until_it_changes(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    who, read, count = known(sqlite_store, None), sqlite_store.read, 0

    async def counted(work: Any) -> Any:
        nonlocal count
        count += 1
        return await read(work)

    monkeypatch.setattr(sqlite_store, "read", counted)
    for _ in range(3):
        assert "ds:environment" not in await who.of(DID)
    assert count == 1
    await who.record(DID, "ds:environment", ["secure"], evidence="", until=None, by="test")
    for _ in range(3):
        assert "ds:environment" in await who.of(DID)
    assert count == 2


async def opened(two: Pair, facts: dict[str, Fact], left: str, right: str) -> tuple[Grants, ReadGrant]:
    """A read admitted under a policy on one fact; `facts` may change afterwards."""

    async def facts_of(who: str) -> Facts:
        return Facts.of({"ds:participant": who}, source="signature").adding(facts)

    agreement = await agreed(two, policy=constrained(left, "eq", right))
    _, there = await started(two, agreement)
    grants = Grants(two.north.store, facts_of=facts_of)
    wanted = GrantRequest(
        agreement_id=agreement,
        consumer=two.south.participant,
        transfer_id=there.id,
        generation=there.generation,
        action=expand("ds:stream"),
        purpose="",
        longest=600,
    )
    (grant,) = await grants.examine(wanted)
    await grants.begin([grant], lambda _: None, read_id="r")
    return grants, grant


async def test_a_read_rests_on_a_fact_only_until_its_end_and_stops_when_it_is_gone(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        facts = {"ds:permit": Fact(("P-1",), "owner", time.time() + 400)}
        two.north.facts[two.south.participant] = Facts.of({"ds:participant": two.south.participant, **facts})
        grants, grant = await opened(two, facts, "ds:permit", "P-1")
        assert 100 < grant.lease.deadline - time.monotonic() <= 400
        facts["ds:permit"] = Fact(("P-1",), "owner", time.time() + 1_200)
        assert 900 < await grants.recheck(grant) <= 1_200
        facts["ds:permit"] = Fact(("P-2",), "owner")
        with pytest.raises(Denied, match="observed P-2"):
            await grants.recheck(grant)
        assert grant.lease.revoked
        assert "observed P-2" in str(grant.ended)
        grants.forget([grant])


async def test_a_fresh_ticket_asks_the_facts_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        facts = {"ds:permit": Fact(("P-1",), "owner")}
        two.north.facts[two.south.participant] = Facts.of({"ds:participant": two.south.participant, **facts})
        grants, grant = await opened(two, facts, "ds:permit", "P-1")
        about = {"consumer": two.south.participant, "purpose": ""}
        await grants.load_usable(grant.agreement_id, **about)
        del facts["ds:permit"]
        with pytest.raises(ConnectorError, match="it can come from the owner"):
            await grants.load_usable(grant.agreement_id, **about)
        grants.forget([grant])
