"""Collects the facts about a party for the policy evaluator. A fact that is not known is left out.

Each fact names its source: `signature` (the participant proved its DID), `register` (the operator's signed member
register, as long as it is valid), `credential` (what the participant presented and we verified), plugins
(`usage.fact_sources`), `owner` (recorded by the owner; it overrides the others), `request` (what the caller declares),
`ledger` (duties fulfilled), `clock` and `counter` (our own).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from connector.errors import Absent, Invalid
from connector.events import Event, FactRecorded, FactWithdrawn
from connector.identity.member_register import MemberRegister
from connector.store import Store, Transaction
from connector.store.tables import Attestation
from connector.usage import fact_sources
from connector.usage.fact_sources import FactSource
from policies import vocabulary
from policies.evaluation import values
from policies.evaluation.evaluate import Fact, Facts
from policies.vocabulary import ValueType, compact, expand

# Entries of the member register that are facts, and the keys the vocabulary knows them by.
_REGISTERED = {
    "status": "ds:membership",
    "role": "ds:role",
    "country": "ds:participantCountry",
    "url": "ds:connector",
    "business_partner_number": "ds:businessPartnerNumber",
    "framework_agreements": "ds:frameworkAgreement",
    "security_level": "ds:securityLevel",
}
_KEPT_SECONDS = 1.0  # how late changes by other processes are known
_KEPT_MAX = 4_096
_VALUE_MAX = 255

PURPOSE = "odrl:purpose"
USES = "odrl:count"
DECLARED = frozenset({PURPOSE, "ds:application"})  # what a request may still declare after its transfer started

FactsOf = Callable[[str], Awaitable[Facts]]  # collects the facts about a participant


def party_facts(participant: str, member: Mapping[str, Any] | None, *, until: float | None = None) -> Facts:
    """Facts from the signature and the member register.

    `member` is the register entry of `participant`, {} for a non-member, None if unknown; `until` is the register's
    expiry (UTC seconds).
    """
    facts = Facts.of({"ds:participant": participant}, source="signature")
    if member is None:
        return facts
    entry = member or {"status": "none"}
    known = {key: entry[name] for name, key in _REGISTERED.items() if entry.get(name)}
    return facts.adding({key: _fact(value, "register", until) for key, value in known.items()})


def _fact(value: Any, source: str, until: float | None) -> Fact:
    return Fact(tuple(value) if isinstance(value, list | tuple) else (value,), source, until)


class FactCollector:
    """Collects facts about participants from all sources, and records those that the owner vouches for."""

    def __init__(
        self,
        store: Store,
        trust: MemberRegister,
        *,
        more: Iterable[FactSource] = (),
        uses_register: Callable[[str], bool] = lambda _: True,
    ) -> None:
        """`uses_register`: whether the register's facts count for a participant, or its credentials alone."""
        self._store, self._trust, self._more = store, trust, tuple(more)
        self._uses_register = uses_register
        self._kept: dict[str, tuple[float, tuple[Attestation, ...]]] = {}
        self._changes = 0  # FactRecorded and FactWithdrawn events so far
        store.bus.subscribe(self._on_event)

    async def of(self, participant: str) -> Facts:
        """All facts about a participant now."""
        member = await self._trust.find_member(participant) if self._uses_register(participant) else None
        facts = party_facts(participant, member, until=self._trust.valid_until())
        if self._more:
            facts = facts.adding(await fact_sources.ask(self._more, participant))
        return facts.adding(attestations_to_facts(await self._attested(participant), now=time.time()))

    async def of_dataset(self, dataset_id: str) -> Facts:
        """The owner's facts about a dataset, such as whether text and data mining is reserved."""
        return attestations_to_facts(await self._attested(dataset_id), now=time.time())

    async def record(
        self, subject: str, fact: str, given: Iterable[str], *, evidence: str, until: float | None, by: str
    ) -> list[Attestation]:
        """Record a fact that the owner vouches for. Raises: Invalid for a fact of another source, or a wrong value."""
        key, wanted = check_attestable(fact), list(given)
        if until is not None and until <= time.time():
            raise Invalid("expected an end in the future, got a time in the past")
        checked = list(dict.fromkeys(check_value(key, text) for text in wanted))
        if not checked:
            raise Invalid(f"expected at least one value of {key}")

        def work(tx: Transaction) -> list[Attestation]:
            about = _subject(tx, subject, key)
            rows = [
                Attestation(
                    subject=about,
                    fact=key,
                    value=value,
                    valid_until=until,
                    evidence=evidence,
                    recorded_by=by,
                    recorded_at=tx.now,
                )
                for value in checked
            ]
            for row in rows:
                tx.attestations.store(row)
            detail = {"subject": about, "fact": key, "values": checked, "valid_until": until, "evidence": evidence}
            tx.publish(FactRecorded(actor=by, detail=detail))
            return rows

        return await self._store.write(work)

    async def withdraw(self, subject: str, fact: str, value: str = "", *, by: str) -> None:
        """Withdraw a recorded fact; without `value`, all of its values. Raises: Absent if nothing was recorded."""
        key = compact(expand(fact))

        def work(tx: Transaction) -> None:
            about = _subject(tx, subject, key)
            gone = tx.attestations.remove(about, key, check_value(key, value) if value else "")
            if not gone:
                raise Absent(f"{key} is not recorded for {about!r}; list facts with `hanse fact list`")
            tx.publish(FactWithdrawn(actor=by, detail={"subject": about, "fact": key, "values": list(gone)}))

        await self._store.write(work)

    async def recorded(self, *, after: tuple[str, str, str] = ("", "", ""), limit: int = 100) -> list[Attestation]:
        """The recorded facts, ordered by subject, fact and value."""
        return list(await self._store.read(lambda tx: tx.attestations.page(after=after, limit=limit)))

    async def _attested(self, subject: str) -> tuple[Attestation, ...]:
        at, rows = self._kept.get(subject, (float("-inf"), ()))
        if time.monotonic() - at > _KEPT_SECONDS:
            at, changes = time.monotonic(), self._changes
            rows = tuple(await self._store.read(lambda tx: tx.attestations.of(subject)))
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()
            if changes == self._changes:  # otherwise the rows may be older than the last event
                self._kept[subject] = (at, rows)
        return rows

    def _on_event(self, event: Event) -> None:
        if isinstance(event, FactRecorded | FactWithdrawn):
            self._changes += 1
            self._kept.pop(str(event.detail.get("subject", "")), None)


def check_attestable(fact: str) -> str:
    """The short key of a fact that the owner may record. Raises: Invalid, which names the right source."""
    iri = expand(fact)
    word, key = vocabulary.operand(iri), compact(iri)
    names = word.sources if word is not None else vocabulary.OTHER_FACTS.get(key, ())
    if "owner" not in names:
        known = sorted(compact(one.name) for one in vocabulary.OPERANDS.values() if "owner" in one.sources)
        who = vocabulary.describe_suppliers(iri)
        why = f"{key} comes from {who}" if who else f"{key} is not a fact"
        raise Invalid(f"{why}, and the owner cannot record it; expected one of {', '.join(known)}, ds:miningReserved")
    return key


def attestations_to_facts(rows: Iterable[Attestation], *, now: float) -> Facts:
    """Recorded rows as facts at `now`: each fact with its values, valid until the first of them ends."""
    found: dict[str, list[Attestation]] = {}
    for row in rows:
        if row.valid_until is None or row.valid_until > now:
            found.setdefault(row.fact, []).append(row)
    return Facts({key: _owners(of_key) for key, of_key in found.items()})


def _owners(rows: list[Attestation]) -> Fact:
    ends = [row.valid_until for row in rows if row.valid_until is not None]
    return Fact(tuple(row.value for row in rows), "owner", min(ends) if ends else None)


def check_value(key: str, text: str) -> str:
    """A value of a fact as the evaluator reads it. Raises: Invalid for a value that the fact cannot have."""
    if key == "ds:miningReserved":
        if text not in ("true", "false"):
            raise Invalid(f"ds:miningReserved: expected true or false, got {text[:50]!r}")
        return text
    word = vocabulary.operand(expand(key))
    if word is None or not text or len(text) > _VALUE_MAX or not values.is_text(text):
        raise Invalid(f"{key}: expected a text of at most {_VALUE_MAX} characters, got {text[:50]!r}")
    try:
        values.parse(word.type, text, "", word.levels)
    except ValueError as error:
        raise Invalid(f"{key}: {error}") from None
    return expand(text) if word.type is ValueType.IRI else text


def _subject(tx: Transaction, subject: str, key: str) -> str:
    """The subject of a fact: a participant's DID, or a dataset's id for facts about datasets."""
    if key in vocabulary.OTHER_FACTS:
        return tx.datasets.of(subject).id
    if not subject.startswith("did:") or len(subject) > _VALUE_MAX:
        raise Invalid(f"expected the DID of a participant (did:web:...), got {subject[:100]!r}")
    return subject


def with_declared(facts: Facts, *, purpose: str, application: str = "") -> Facts:
    """`facts` with the purpose and application that a request declares; empty ones add nothing."""
    declared = {PURPOSE: purpose, "ds:application": application}
    return facts.adding(Facts.of({key: said for key, said in declared.items() if said}, source="request"))


def with_counters(facts: Facts, *, uses: int, uses_today: int, running: int) -> Facts:
    """`facts` with the counters of a grant, as they were before this read."""
    counters = {USES: uses, "ds:queriesPerDay": uses_today, "ds:concurrency": running}
    return facts.adding(Facts.of(counters, source="counter"))
