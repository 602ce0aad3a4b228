"""Facts that verified credentials prove, and those that they cannot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest

from connector.errors import BadInput
from connector.usage.credential_facts import CredentialFacts
from connector.usage.fact_collector import FactCollector
from policies import vocabulary
from tests.connector.identity.credentials.world import HOLDER, World, verifier


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
    with pytest.raises(BadInput, match="HANSE_CREDENTIAL_RULES"):
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
