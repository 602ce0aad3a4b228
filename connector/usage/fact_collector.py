"""What is known of a party at this moment, as facts for the evaluator. What is not known is left out: unknown.

Sources, named in each fact: `signature` (the participant proved its DID), `register` (the operator's signed member
register, as long as it is valid), plugins (`usage.sources`), `owner` (what the owner recorded; where several speak,
this counts), `request` (what the caller declares), `ledger` (duties fulfilled), `clock` and `counter` (our own).
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from connector.errors import BadInput, NotFound
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
_KEPT_SECONDS = 1.0  # what another process recorded is known this late
_KEPT_MAX = 4_096
_VALUE_MAX = 255

PURPOSE = "odrl:purpose"
USES = "odrl:count"
DECLARED = frozenset({PURPOSE, "ds:application"})  # what a request may still declare after its transfer started

FactsOf = Callable[[str], Awaitable[Facts]]  # what is known of a participant now


def party_facts(participant: str, member: Mapping[str, Any] | None, *, until: float | None = None) -> Facts:
    """Facts about `participant`. `member` is its register entry, {} for no member, None where that is unknown;
    `until` is when the register ends (UTC seconds)."""
    facts = Facts.of({"ds:participant": participant}, source="signature")
    if member is None:
        return facts
    entry = member or {"status": "none"}
    known = {key: entry[name] for name, key in _REGISTERED.items() if entry.get(name)}
    return facts.adding({key: _fact(value, "register", until) for key, value in known.items()})


def _fact(value: Any, source: str, until: float | None) -> Fact:
    return Fact(tuple(value) if isinstance(value, list | tuple) else (value,), source, until)


class Known:
    """Gathers what is known of participants, and keeps what the owner vouches for."""

    def __init__(self, store: Store, trust: MemberRegister, *, more: Iterable[FactSource] = ()) -> None:
        self._store, self._trust, self._more = store, trust, tuple(more)
        self._kept: dict[str, tuple[float, tuple[Attestation, ...]]] = {}
        self._changes = 0  # that we have heard of
        store.bus.subscribe(self._heard)

    async def of(self, participant: str) -> Facts:
        """Everything that is known of a participant now."""
        member = await self._trust.find_member(participant)
        facts = party_facts(participant, member, until=self._trust.valid_until())
        if self._more:
            facts = facts.adding(await fact_sources.ask(self._more, participant))
        return facts.adding(attested(await self._attested(participant), now=time.time()))

    async def of_dataset(self, dataset_id: str) -> Facts:
        """What the owner says of a dataset: whether mining is reserved."""
        return attested(await self._attested(dataset_id), now=time.time())

    async def record(
        self, subject: str, fact: str, given: Iterable[str], *, evidence: str, until: float | None, by: str
    ) -> list[Attestation]:
        """Vouch for a fact. BadInput for a word that is not the owner's to say, or a value that it cannot take."""
        key, wanted = attestable(fact), list(given)
        if until is not None and until <= time.time():
            raise BadInput("expected an end in the future, came a time that is over")
        checked = list(dict.fromkeys(_value(key, text) for text in wanted))
        if not checked:
            raise BadInput(f"expected at least one value of {key}")

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
                tx.facts.put(row)
            detail = {"subject": about, "fact": key, "values": checked, "valid_until": until, "evidence": evidence}
            tx.publish(FactRecorded(actor=by, detail=detail))
            return rows

        return await self._store.write(work)

    async def withdraw(self, subject: str, fact: str, value: str = "", *, by: str) -> None:
        """Vouch for it no longer; without `value` for none of its values. NotFound where nothing was recorded."""
        key = compact(expand(fact))

        def work(tx: Transaction) -> None:
            about = _subject(tx, subject, key)
            gone = tx.facts.remove(about, key, _value(key, value) if value else "")
            if not gone:
                raise NotFound(f"nothing is recorded of {about!r} for {key}; list with `hanse fact list`")
            tx.publish(FactWithdrawn(actor=by, detail={"subject": about, "fact": key, "values": list(gone)}))

        await self._store.write(work)

    async def recorded(self, *, after: tuple[str, str, str] = ("", "", ""), limit: int = 100) -> list[Attestation]:
        """What the owner vouches for, in order of subject, fact and value."""
        return list(await self._store.read(lambda tx: tx.facts.page(after=after, limit=limit)))

    async def _attested(self, subject: str) -> tuple[Attestation, ...]:
        at, rows = self._kept.get(subject, (float("-inf"), ()))
        if time.monotonic() - at > _KEPT_SECONDS:
            at, changes = time.monotonic(), self._changes
            rows = tuple(await self._store.read(lambda tx: tx.facts.of(subject)))
            if len(self._kept) >= _KEPT_MAX:
                self._kept.clear()
            if changes == self._changes:  # else what was read may be older than what we have heard
                self._kept[subject] = (at, rows)
        return rows

    def _heard(self, event: Event) -> None:
        if isinstance(event, FactRecorded | FactWithdrawn):
            self._changes += 1
            self._kept.pop(str(event.detail.get("subject", "")), None)


def attestable(fact: str) -> str:
    """The short key of a fact that the owner may vouch for; BadInput names who can supply it instead."""
    iri = expand(fact)
    word, key = vocabulary.operand(iri), compact(iri)
    names = word.sources if word is not None else vocabulary.OTHER_FACTS.get(key, ())
    if "owner" not in names:
        known = sorted(compact(one.name) for one in vocabulary.OPERANDS.values() if "owner" in one.sources)
        who = vocabulary.suppliers(iri)
        why = f"{key} comes from {who}" if who else f"{key} is no fact"
        raise BadInput(f"{why}, and is not yours to record; expected one of {', '.join(known)}, ds:miningReserved")
    return key


def attested(rows: Iterable[Attestation], *, now: float) -> Facts:
    """What the owner vouches for at `now`: each fact with its values, until the first of them ends."""
    found: dict[str, list[Attestation]] = {}
    for row in rows:
        if row.valid_until is None or row.valid_until > now:
            found.setdefault(row.fact, []).append(row)
    return Facts({key: _owners(of_key) for key, of_key in found.items()})


def _owners(rows: list[Attestation]) -> Fact:
    ends = [row.valid_until for row in rows if row.valid_until is not None]
    return Fact(tuple(row.value for row in rows), "owner", min(ends) if ends else None)


def _value(key: str, text: str) -> str:
    if key == "ds:miningReserved":
        if text not in ("true", "false"):
            raise BadInput(f"ds:miningReserved: expected true or false, came {text[:50]!r}")
        return text
    word = vocabulary.operand(expand(key))
    if word is None or not text or len(text) > _VALUE_MAX or not values.is_text(text):
        raise BadInput(f"{key}: expected a text of at most {_VALUE_MAX} characters, came {text[:50]!r}")
    try:
        values.parse(word.type, text, "", word.levels)
    except ValueError as error:
        raise BadInput(f"{key}: {error}") from None
    return expand(text) if word.type is ValueType.IRI else text


def _subject(tx: Transaction, subject: str, key: str) -> str:
    """A participant's DID; a dataset's id for what is said of datasets."""
    if key in vocabulary.OTHER_FACTS:
        return tx.datasets.of(subject).id
    if not subject.startswith("did:") or len(subject) > _VALUE_MAX:
        raise BadInput(f"expected the DID of a participant (did:web:...), came {subject[:100]!r}")
    return subject


def requested(facts: Facts, *, purpose: str, application: str = "") -> Facts:
    """`facts` with what a request declares; no declaration adds nothing."""
    declared = {PURPOSE: purpose, "ds:application": application}
    return facts.adding(Facts.of({key: said for key, said in declared.items() if said}, source="request"))


def counted(facts: Facts, *, uses: int, uses_today: int, running: int) -> Facts:
    """`facts` with the counters of a grant, as they stood before the read that asks."""
    counters = {USES: uses, "ds:queriesPerDay": uses_today, "ds:concurrency": running}
    return facts.adding(Facts.of(counters, source="counter"))
