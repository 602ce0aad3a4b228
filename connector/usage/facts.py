"""What is known of a party at this moment, as facts for the evaluator. What is not known is left out: unknown.

Sources, named in each fact: `signature` (the participant proved its DID), `register` (the operator's signed member
register), `request` (what the caller declares), `clock` and `counter` (our own).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from connector.identity.trust import Trust
from policies.evaluate import Facts

# Entries of the member register that are facts, and the keys the vocabulary knows them by.
_REGISTERED = {
    "status": "ds:membership",
    "role": "ds:role",
    "country": "ds:participantCountry",
    "business_partner_number": "ds:businessPartnerNumber",
    "framework_agreements": "ds:frameworkAgreement",
    "security_level": "ds:securityLevel",
}

FactsOf = Callable[[str], Awaitable[Facts]]  # what is known of a participant now


def party_facts(participant: str, member: Mapping[str, Any] | None) -> Facts:
    """Facts about `participant`. `member` is its register entry, {} for no member, None where that is unknown."""
    facts = Facts.of({"ds:participant": participant}, source="signature")
    if member is None:
        return facts
    if not member:
        return facts.adding(Facts.of({"ds:membership": "none"}, source="register"))
    known = {key: member[name] for name, key in _REGISTERED.items() if member.get(name)}
    return facts.adding(Facts.of(known, source="register"))


async def facts_of(participant: str, *, trust: Trust) -> Facts:
    """Facts about `participant`, from the register as it is believed now."""
    return party_facts(participant, await trust.member(participant))


def requested(facts: Facts, *, purpose: str) -> Facts:
    """`facts` with what a request declares; no declaration adds nothing."""
    return facts.adding(Facts.of({"odrl:purpose": purpose}, source="request")) if purpose else facts


def counted(facts: Facts, *, uses: int, uses_today: int, running: int) -> Facts:
    """`facts` with the counters of a grant, as they stood before the read that asks."""
    counters = {"odrl:count": uses, "ds:queriesPerDay": uses_today, "ds:concurrency": running}
    return facts.adding(Facts.of(counters, source="counter"))
