"""Facts that verified credentials prove, and those that they cannot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from connector.errors import Invalid
from connector.usage.credential_facts import CredentialFacts
from connector.usage.fact_collector import FactCollector
from policies import vocabulary
from policies.authoring.convert import to_policy
from policies.authoring.read_yaml import read_form
from policies.evaluation.facts import Facts
from policies.odrl import reader
from tests.connector.identity.credentials.world import HOLDER, ISSUER, World, verifier
from tests.support.pair import pair, settled


@pytest.fixture(autouse=True)
def _vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take back at the end what a source registers with the vocabulary."""
    for name, word in list(vocabulary.OPERANDS.items()):
        monkeypatch.setitem(vocabulary.OPERANDS, name, word)
    monkeypatch.setitem(vocabulary.SOURCES, CredentialFacts.NAME, CredentialFacts.HELP)


RULES = {
    "ds:membership": {"credential": "MembershipCredential", "value": "active"},
    "ds:participantCountry": {"credential": "MembershipCredential", "path": "address.country"},
}


async def facts(rules: dict[str, Any], world: World | None = None, **changes: Any) -> Mapping[str, Any]:
    asked = verifier(world or World(**changes), {"facts": rules})
    source = CredentialFacts(asked)
    assert await source.facts(HOLDER) == {}
    await asked.verify(HOLDER, "opaque")
    return await source.facts(HOLDER)


async def test_a_verified_credential_proves_the_facts_that_the_rules_map() -> None:
    found = await facts(RULES)
    assert {key: fact.values for key, fact in found.items()} == {
        "ds:membership": ("active",),
        "ds:participantCountry": ("DE",),
    }
    assert {fact.source for fact in found.values()} == {"credential"}
    assert all(time.time() < fact.valid_until <= time.time() + 3600 for fact in found.values())


@pytest.mark.parametrize(
    ("subject", "values"),
    [
        ({"address": {"country": ["DE", "FR"]}}, ("DE", "FR")),
        ({"address": {"country": ["DE", "DE", "nowhere at all"]}}, ("DE",)),
        ({"address": {"country": 5}}, None),
        ({"address": {"country": {"name": "DE"}}}, None),
        ({"address": "DE"}, None),
        ({}, None),
        ({"address": {"country": ""}}, None),
        ({"address": {"country": "DE" * 200}}, None),
    ],
)
async def test_a_value_that_the_fact_cannot_have_proves_nothing(
    subject: dict[str, Any], values: tuple[str, ...] | None
) -> None:
    found = await facts(RULES, **{"in": {"credentialSubject": {"id": HOLDER, **subject}}})
    assert (found["ds:participantCountry"].values if values else found.get("ds:participantCountry")) == values
    assert "ds:membership" in found


@pytest.mark.parametrize("fact", ["ds:participant", "odrl:purpose", "odrl:count", "odrl:dateTime", "ds:nonsense"])
def test_identity_purpose_time_and_counters_come_from_no_credential(fact: str) -> None:
    with pytest.raises(Invalid, match="HANSE_CREDENTIAL_RULES"):
        CredentialFacts(verifier(World(), {"facts": {fact: {"credential": "A", "value": "x"}}}))


class Register:
    """A register in which every participant is an active member."""

    async def find_member(self, _: str) -> dict[str, str]:
        return {"status": "active", "country": "FR"}

    def valid_until(self) -> None:
        return None


@pytest.mark.parametrize(
    ("credentials", "presents", "membership", "country"),
    [
        ("required", False, None, None),
        ("required", True, "credential", "credential"),
        ("optional", False, "register", "register"),
        ("optional", True, "credential", "credential"),
        ("never", False, "register", "register"),
    ],
)
async def test_the_register_counts_only_for_participants_that_need_no_credentials(
    store: Any, credentials: str, presents: bool, membership: str | None, country: str | None
) -> None:
    asked = verifier(World(), {"facts": RULES, "credentials": credentials})
    known = FactCollector(
        store,
        Register(),  # type: ignore[arg-type]  # a fake
        more=[CredentialFacts(asked)],
        uses_register=lambda party: asked.rules.required_of(party) != "required",
    )
    if presents:
        await asked.verify(HOLDER, "opaque")
    found = await known.of(HOLDER)
    for key, source in (("ds:membership", membership), ("ds:participantCountry", country)):
        fact = found.get(key)
        assert (fact.source if fact is not None else None) == source


TRACTUS_X = {"mapping": "tractus-x", "scopes": None, "issuers": [ISSUER]}
OFFER = """
offer: quality
dataset: urn:hanse:north:air
who: {membership: active, framework: "DataExchangeGovernance:1.0"}
may: [stream]
"""


def governed(version: Any = "1.0") -> World:
    """A holder with a membership and a framework agreement, as Tractus-X issues them."""
    world, number = World(), {"id": HOLDER, "holderIdentifier": "BPNL000000000001"}
    agreement = {**number, "group": "UseCaseFramework", "useCase": "DataExchangeGovernance", "contractVersion": version}
    changes = {
        "jti": "urn:uuid:2", "vc.id": "urn:uuid:2", "vc.credentialSubject": agreement,
        "vc.type": ["VerifiableCredential", "DataExchangeGovernanceCredential"],
    }  # fmt: skip
    member = world.credential(**{"vc.credentialSubject": {**number, "memberOf": "Catena-X"}})
    world.changes["given"] = [member, world.credential(**changes)]
    return world


async def test_the_ready_mapping_of_tractus_x_proves_membership_number_and_framework_agreement() -> None:
    found = await facts_of(governed())
    assert {key: fact.values for key, fact in found.items()} == {
        "ds:membership": ("active",),
        "ds:businessPartnerNumber": ("BPNL000000000001",),
        "ds:frameworkAgreement": ("DataExchangeGovernance:1.0",),
    }


async def facts_of(world: World, **own: Any) -> Mapping[str, Any]:
    asked = verifier(world, {**TRACTUS_X, **own})
    await asked.verify(HOLDER, "opaque")
    return await CredentialFacts(asked).facts(HOLDER)


async def test_own_rules_go_before_the_ready_ones() -> None:
    own = {"ds:frameworkAgreement": {"credential": "DataExchangeGovernanceCredential", "value": "ours:1"}}
    found = await facts_of(governed(), facts=own)
    assert (found["ds:frameworkAgreement"].values, found["ds:membership"].values) == (("ours:1",), ("active",))


@pytest.mark.parametrize("given", ["tractus", ["tractus-x"], 5])
def test_an_unknown_mapping_is_refused(given: Any) -> None:
    with pytest.raises(ValueError, match="expected a mapping among tractus-x"):
        verifier(World(), {"mapping": given})


@pytest.mark.parametrize("version", ["1.0", "2.0", None, 1.0, ["1.1", "0.9"]])
async def test_an_offer_for_the_framework_agreement_is_for_its_signatories_alone(tmp_path: Path, version: Any) -> None:
    """From the credential over the facts to the negotiation and the transfer."""
    proven = await facts_of(governed(version))
    written = reader.write(to_policy(read_form(OFFER)), in_catalog=True)
    policy = {name: rules for name, rules in written.items() if not name.startswith("@")}
    async with pair(tmp_path) as two:
        party = Facts.of({"ds:participant": two.south.participant}, source="signature")
        two.north.facts[two.south.participant] = party.adding(proven)
        offer_id = await two.north.publish(policy=policy)
        begun = await two.ask(offer_id, policy=policy)
        if version != "1.0":
            await settled(two.south, "negotiation", begun.id, "TERMINATED")
            return
        done = await settled(two.south, "negotiation", begun.id, "FINALIZED")
        await settled(two.north, "negotiation", done.peer_pid, "FINALIZED")
        row = await two.south.transfers.request(agreement_id=done.agreement_id, by="test")
        await settled(two.south, "transfer", row.id, "STARTED")
        two.north.facts[two.south.participant] = party  # the credentials are gone
        again = await two.south.transfers.request(agreement_id=done.agreement_id, by="test")
        await settled(two.south, "transfer", again.id, "TERMINATED")
