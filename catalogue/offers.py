"""What an offer says, for people and for filters: sentences, classes, purposes, and who may know of it. Pure.

An offer that cannot be read, or that uses unknown words, is kept and shown as what it is, never guessed at; it is then
for members only. Changing what is derived here means raising `entry.READER`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from policies import jsonld, known, vocabulary, words
from policies.errors import PolicyError
from policies.model import Atom, Kind, Policy, Rule
from policies.vocabulary import Phase, compact

_BYTES_MAX = 64 * 2**10

# Classes that the policy facet counts, by the word that a permission's condition uses.
_BY_TERM = {
    "ds:membership": "members-only",
    "ds:minGroupSize": "minimum-group",
    "ds:epsilonBudget": "differential-privacy",
    "odrl:purpose": "purpose-bound",
    "odrl:dateTime": "time-limited",
    "odrl:elapsedTime": "time-limited",
    "odrl:payAmount": "fee",
    "ds:participantCountry": "region-bound",
    "odrl:spatial": "region-bound",
}


@dataclass(frozen=True, slots=True)
class Offer:
    """One offer. `audience` holds public, members, or DIDs; `policy` is the offer as it was sent."""

    id: str
    policy: dict[str, Any]
    sentences: tuple[str, ...]
    classes: tuple[str, ...]
    purposes: tuple[str, ...]
    actions: tuple[str, ...]
    audience: tuple[str, ...]
    problem: str = ""

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Offer:
        lists = {key: tuple(content[key]) for key in ("sentences", "classes", "purposes", "actions", "audience")}
        return cls(**{**content, **lists})


def read_offer(raw: dict[str, Any]) -> Offer:
    """An offer of a catalogue, as far as its words are known."""
    offer_id = str(raw.get("@id", raw.get("uid", "")))[:1024]
    try:
        if len(json.dumps(raw)) > _BYTES_MAX:
            raise PolicyError(f"expected an offer of at most {_BYTES_MAX} bytes")
        policy = jsonld.read(raw, kind=Kind.OFFER)
        unclear = [one.message for one in known.unclear(policy)]
    except (PolicyError, ValueError, RecursionError) as error:
        return Offer(offer_id, {}, (), ("unreadable",), (), (), ("members",), str(error)[:500])
    return Offer(
        offer_id,
        raw,
        tuple(_sentences(policy)),
        tuple(sorted({*_classes(policy), *(["unknown-terms"] if unclear else [])})),
        tuple(sorted(set(_purposes(policy)))),
        tuple(sorted({compact(rule.action) for rule in policy.permissions})),
        _audience(policy),
        unclear[0][:500] if unclear else "",
    )


def _sentences(policy: Policy) -> Iterator[str]:
    for rule in policy.permissions:
        yield _sentence("May", rule)
        for duty in rule.duties:
            yield f"Must {words.duty(duty)}."
    for rule in policy.prohibitions:
        yield _sentence("Must not", rule)
    for duty in policy.obligations:
        yield f"Must {words.duty(duty)}."


def _sentence(modal: str, rule: Rule) -> str:
    conditions = "; ".join(words.constraint(one) for one in rule.constraints)
    return f"{modal} {words.action(rule.action)}" + (f" if {conditions}." if conditions else ".")


def _atoms(rule: Rule) -> Iterator[Atom]:
    for _, atom in known.atoms(rule.constraints, ""):
        yield atom


def _classes(policy: Policy) -> Iterator[str]:
    for rule in policy.permissions:
        for atom in _atoms(rule):
            if name := _BY_TERM.get(compact(atom.left)):
                yield name
            if compact(atom.left) == "ds:resultKind" and any(value.text == "aggregate" for value in atom.right):
                yield "aggregates-only"
        if compact(rule.action) in ("ds:train", "ds:stream"):
            yield "training" if compact(rule.action) == "ds:train" else "streaming"
        if not rule.constraints and not rule.duties:
            yield "open"
        yield from ("masked" for duty in rule.duties if compact(duty.action) == "ds:mask")
    yield from ("no-redistribution" for rule in policy.prohibitions if compact(rule.action) == "odrl:distribute")


def _purposes(policy: Policy) -> Iterator[str]:
    for rule in policy.permissions:
        for atom in _atoms(rule):
            if compact(atom.left) == "odrl:purpose" and atom.operator in ("eq", "isAnyOf", "isPartOf", "isA"):
                yield from (compact(vocabulary.expand(value.text)) for value in atom.right)


def _audience(policy: Policy) -> tuple[str, ...]:
    """Who may know of the offer: everybody where some permission asks nothing of the party; else members or DIDs."""
    audience: set[str] = set()
    for rule in policy.permissions:
        party = [atom for atom in _atoms(rule) if _is_about_party(atom)]
        if not party:
            return ("public",)
        named = [
            atom for atom in rule.constraints
            if isinstance(atom, Atom) and compact(atom.left) == "ds:participant" and atom.operator in ("eq", "isAnyOf")
        ]  # fmt: skip
        audience |= {value.text for value in named[0].right} if named else {"members"}
    return ("members",) if "members" in audience or not audience else tuple(sorted(audience))


def _is_about_party(atom: Atom) -> bool:
    operand = vocabulary.operand(atom.left)
    return operand is None or operand.phase is Phase.CATALOGUE
