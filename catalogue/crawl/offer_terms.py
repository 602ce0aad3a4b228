"""What an offer says, for people and for filters: sentences, classes, purposes, and who may know of it. Pure.

Who may know of it is what its owner's connector would say to them: the policy is asked, with what is known of them.

An offer that cannot be read or written, or that uses unknown words, is kept and shown as what it is, never guessed at;
it is then for members only, but for those whom its known words leave out. Changing what is derived here means raising
`entry.READER`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from catalogue.crawl.sanitize import clean, is_writable, writable
from policies import vocabulary
from policies.errors import PolicyError
from policies.evaluation.evaluate import Facts, permits
from policies.model import Atom, Kind, Policy, Rule
from policies.odrl import reader
from policies.review import explain, unknown_terms
from policies.vocabulary import Phase, compact

SOME = "some"  # in an audience: members of whom more is asked than to be one; `fitting` says of whom
_BYTES_MAX = 64 * 2**10
_SENTENCE_MAX = 2 * _BYTES_MAX  # no sentence is cut: it would say something else

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
class OfferLine:
    """One rule or condition: its path in the policy, a sentence, and what it rests on (technical, attested, ...)."""

    path: str
    text: str
    tier: str

    @property
    def depth(self) -> int:
        """0 for a rule, 1 for a condition or duty of one."""
        return 0 if self.path.count("/") <= 2 else 1


@dataclass(frozen=True, slots=True)
class CatalogueOffer:
    """One offer. `audience` holds public, members, DIDs, or SOME; `policy` is the offer as it was sent."""

    id: str
    policy: dict[str, Any]
    lines: tuple[OfferLine, ...]
    classes: tuple[str, ...]
    purposes: tuple[str, ...]
    actions: tuple[str, ...]
    audience: tuple[str, ...]
    until: str = ""  # date on which it ends, where it says one
    problem: str = ""

    @property
    def sentences(self) -> tuple[str, ...]:
        """Every rule and condition in plain words."""
        return tuple(line.text for line in self.lines)

    def to_json(self) -> dict[str, Any]:
        """The offer as JSON values."""
        content = {name: getattr(self, name) for name in self.__slots__}
        for name in ("classes", "purposes", "actions", "audience"):
            content[name] = list(content[name])
        return {**content, "lines": [{"path": o.path, "text": o.text, "tier": o.tier} for o in self.lines]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CatalogueOffer:
        lists = {key: tuple(content[key]) for key in ("classes", "purposes", "actions", "audience")}
        return cls(**{**content, **lists, "lines": tuple(OfferLine(**line) for line in content["lines"])})


@dataclass(frozen=True, slots=True)
class Party:
    """A member as the register tells of it, as far as offers ask."""

    id: str
    role: str = ""
    country: str = ""

    @property
    def facts(self) -> Facts:
        known = {"ds:participant": self.id, "ds:role": self.role, "ds:participantCountry": self.country}
        return Facts.of({**_MEMBER, **{name: value for name, value in known.items() if value}}, source="register")


def list_uses(offer: CatalogueOffer) -> list[tuple[str, str]]:
    """What each permission of an offer lets one do, and a purpose that it is for ("" where it is for any)."""
    if not offer.policy:
        return []
    rules = reader.read(offer.policy, kind=Kind.OFFER).permissions
    return [(compact(rule.action), next(_purposes_of(rule), "")) for rule in rules]


def build_matcher(offer: CatalogueOffer) -> Callable[[Party], bool]:
    """A predicate for the members that an offer for SOME addresses, by the facts in the register."""
    if SOME not in offer.audience:
        return lambda _: False
    return _build_matcher(json.dumps({**offer.policy, "@id": "urn:offer"}))


@lru_cache(maxsize=128)  # more than an entry has offers
def _build_matcher(text: str) -> Callable[[Party], bool]:
    """Members that are alike in what the policy asks are asked about once: there are few roles and countries."""
    policy, judged = _drop_unknown_terms(reader.read(json.loads(text), kind=Kind.OFFER)), dict[Party, bool]()
    rules = (*policy.permissions, *policy.prohibitions)
    names = {value.text for rule in rules for atom in _atoms(rule) if _is_of_party(atom) for value in atom.right}

    def fits(party: Party) -> bool:
        alike = party if party.id in names else replace(party, id=_OTHER)
        if alike not in judged:
            judged[alike] = _is_shown_to(policy, alike.facts)
        return judged[alike]

    return fits


def read_offer(raw: dict[str, Any]) -> CatalogueOffer:
    """An offer of a catalogue, as far as its words are known."""
    offer_id = str(raw.get("@id", raw.get("uid", "")))[:1024]
    try:
        if len(json.dumps(raw)) > _BYTES_MAX:
            raise PolicyError(f"expected an offer of at most {_BYTES_MAX} bytes")
        if not is_writable(raw):  # cleaned of them it would be another offer
            raise PolicyError("expected an offer without control characters and halves of characters")
        policy = reader.read(raw, kind=Kind.OFFER)
        unclear = [one.message for one in unknown_terms.find_unclear(policy)]
    except (PolicyError, ValueError, RecursionError) as error:
        return CatalogueOffer(
            writable(offer_id), {}, (), ("unreadable",), (), (), ("members",), "", clean(str(error), 500)
        )
    return CatalogueOffer(
        offer_id,
        raw,
        tuple(OfferLine(one.path, clean(one.text, _SENTENCE_MAX), one.tier) for one in explain.sentences(policy)),
        tuple(sorted({*_classes(policy), *(["unknown-terms"] if unclear else [])})),
        tuple(sorted(set(_purposes(policy)))),
        tuple(sorted({compact(rule.action) for rule in policy.permissions})),
        _audience_by_known_words(policy)
        if unclear
        else _audience(policy)
        if policy.permissions
        else _audience_by_words(policy),
        _until(policy),
        clean(unclear[0], 500) if unclear else "",
    )


def _until(policy: Policy) -> str:
    """The first day on which some permission ends, if there is one."""
    ends = (
        value.text[:10]
        for rule in policy.permissions
        for atom in _atoms(rule)
        if compact(atom.left) == "odrl:dateTime" and atom.operator in ("lt", "lteq")
        for value in atom.right
    )
    return min(ends, default="")


def _atoms(rule: Rule) -> Iterator[Atom]:
    for _, atom in unknown_terms.walk_atoms(rule.constraints, ""):
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
        yield from _purposes_of(rule)


def _purposes_of(rule: Rule) -> Iterator[str]:
    for atom in _atoms(rule):
        if compact(atom.left) == "odrl:purpose" and atom.operator in ("eq", "isAnyOf", "isPartOf", "isA"):
            yield from (compact(vocabulary.expand(value.text)) for value in atom.right)


_NO_FACTS = Facts()
_MEMBER = {"ds:membership": "active"}
_NAMING = ("eq", "isAnyOf")
_RULES_MAX, _NAMES_MAX = 50, 100  # judged of one offer: each rule for each name takes its time from everybody's visits
_USE = vocabulary.expand("odrl:use")
_OTHER = "did:web:other.invalid"  # who is not named


def _is_shown_to(policy: Policy, facts: Facts) -> bool:
    """Whether the owner's catalogue would show the offer to a party with these facts. Time limits are not checked."""
    return any(
        permits(
            policy, facts, action=rule.action, permission=f"/permission/{index}", phase=Phase.CATALOGUE, now=0.0
        )
        for index, rule in enumerate(policy.permissions)
    )  # fmt: skip


def _audience(policy: Policy) -> tuple[str, ...]:
    """Who may see the offer: public, members, named members, or members with certain facts (SOME)."""
    if _is_shown_to(policy, _NO_FACTS):
        return ("public",)
    if _is_shown_to(policy, Facts.of(_MEMBER)):
        return ("members",)
    if len(policy.permissions) + len(policy.prohibitions) > _RULES_MAX:
        return _audience_by_words(policy) if _is_plain(policy) else ()  # its owner's connector tells whom it is for
    names = {
        value.text
        for rule in policy.permissions
        for atom in _atoms(rule)
        if _is_naming(atom)
        for value in atom.right
    }  # fmt: skip
    named = [name for name in sorted(names)[:_NAMES_MAX] if _is_shown_to(policy, Party(name).facts)]
    return tuple(named) if _is_plain(policy) else (*named, SOME)


def _is_of_party(atom: Atom) -> bool:
    return compact(atom.left) == "ds:participant"


def _is_naming(atom: Atom) -> bool:
    return _is_of_party(atom) and atom.operator in _NAMING


def _is_plain(policy: Policy) -> bool:
    """Whether the policy asks of the party nothing but to be a member, and one of those that it names."""
    asked = [one for rule in policy.permissions for one in rule.constraints]
    forbidden = (atom for rule in policy.prohibitions for atom in _atoms(rule))
    return not any(map(_is_about_party, forbidden)) and all(
        isinstance(one, Atom)
        and (compact(one.left) == "ds:membership" or _is_naming(one) or not _is_about_party(one))
        for one in asked
    )  # fmt: skip


def _audience_by_words(policy: Policy) -> tuple[str, ...]:
    """The audience of a policy that cannot be evaluated here, by its conditions on the party.

    Public if some permission has no condition on the party, else members or the named DIDs.
    """
    audience: set[str] = set()
    for rule in policy.permissions:
        party = [atom for atom in _atoms(rule) if _is_about_party(atom)]
        if not party:
            return ("public",)
        found = [atom for atom in rule.constraints if isinstance(atom, Atom) and _is_naming(atom)]
        named = [{value.text for value in atom.right} for atom in found]
        audience |= set.intersection(*named) if named else {"members"}
    return ("members",) if "members" in audience or not policy.permissions else tuple(sorted(audience))


def _audience_by_known_words(policy: Policy) -> tuple[str, ...]:
    """The audience of a policy with unknown terms, without the members that its known terms exclude."""
    worded, clear = _audience_by_words(policy), _drop_unknown_terms(policy)
    if _is_plain(clear):
        return worded
    if len(policy.permissions) + len(policy.prohibitions) > _RULES_MAX:
        return ()
    named = [name for name in worded if name not in ("public", "members")][:_NAMES_MAX]
    return (*(name for name in named if _is_shown_to(clear, Party(name).facts)), SOME)


def _drop_unknown_terms(policy: Policy) -> Policy:
    """The policy with only its known terms:

    conditions with unknown terms are dropped from permissions and prohibitions.
    """
    unclear = {one.path for one in unknown_terms.find_unclear(policy)}
    if not unclear:
        return policy

    def cleared(rule: Rule, path: str) -> Rule:
        conditions = tuple(
            one
            for number, one in enumerate(rule.constraints)
            if unclear.isdisjoint(
                place for place, _ in unknown_terms.walk_constraint(one, f"{path}/constraint/{number}")
            )
        )
        return Rule(_USE if f"{path}/action" in unclear else rule.action, conditions)

    permissions = [cleared(rule, f"/permission/{index}") for index, rule in enumerate(policy.permissions)]
    prohibitions = [cleared(rule, f"/prohibition/{index}") for index, rule in enumerate(policy.prohibitions)]
    return replace(
        policy,
        profile="",
        obligations=(),
        permissions=tuple(permissions),
        prohibitions=tuple(rule for rule in prohibitions if any(map(_is_about_party, _atoms(rule)))),
    )


def _is_about_party(atom: Atom) -> bool:
    operand = vocabulary.operand(atom.left)
    return operand is None or operand.phase is Phase.CATALOGUE
