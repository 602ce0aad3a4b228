"""The short form of an offer as values, and tables of its words with their ODRL operands.

Values and tables only; `convert`, `read_yaml` and `write_yaml` do the work.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from policies import vocabulary
from policies.evaluation import values
from policies.vocabulary import ds, odrl

DECIDE = ("auto", "manual", "rules", "four_eyes")
OFFER_URN = "urn:hanse:offer:"


@dataclass(frozen=True, slots=True)
class PartyLine:
    """One condition on the party: a word of `PARTY_WORDS` and its values."""

    word: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MaskLine:
    """One mask: column, method, and argument (characters, digits, bin width or period; empty without one)."""

    column: str
    method: str
    argument: str = ""


@dataclass(frozen=True, slots=True)
class ColumnRules:
    """Which columns can be read, and which are masked."""

    only: tuple[str, ...] = ()
    hide: tuple[str, ...] = ()
    masks: tuple[MaskLine, ...] = ()


@dataclass(frozen=True, slots=True)
class OfferLimits:
    """Quantities as written; `per` is the column that identifies a unit for `min_group` or `epsilon`."""

    min_group: str = ""
    per: str = ""
    rows: str = ""
    bytes: str = ""
    queries: str = ""
    queries_per_day: str = ""
    concurrency: str = ""
    epsilon: str = ""
    delta: str = ""
    rows_per_entity: str = ""


@dataclass(frozen=True, slots=True)
class DutyLine:
    """One duty: a short action and its details by the words of `DETAILS`."""

    action: str
    details: tuple[tuple[str, tuple[str, ...]], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferForm:
    """An offer as a person writes it.

    `odrl` holds the rules as JSON where the short words cannot express them; then only the offer's name, its dataset
    and `decide` may be set as well.
    """

    offer: str
    dataset: str = ""
    who: tuple[PartyLine, ...] = ()
    may: tuple[str, ...] = ()
    purposes: tuple[str, ...] = ()
    not_before: str = ""
    until: str = ""
    lasts: str = ""
    rows: str = ""
    columns: ColumnRules = ColumnRules()
    limits: OfferLimits = OfferLimits()
    answers: str = ""
    group_by: tuple[tuple[str, str], ...] = ()
    measure: tuple[tuple[str, str], ...] = ()
    joins: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    first: tuple[DutyLine, ...] = ()
    forbidden: tuple[str, ...] = ()
    then: tuple[DutyLine, ...] = ()
    decide: str = "manual"
    odrl: Mapping[str, Any] | None = None


KEYS = tuple(
    word
    for line in (
        "offer dataset who may for from until lasts rows columns limits answers grid joins templates",
        "first not then decide odrl",
    )
    for word in line.split()
)

# word -> operand, operator
PARTY_WORDS: dict[str, tuple[str, str]] = {
    "membership": (ds("membership"), "eq"),
    "role": (ds("role"), "isAnyOf"),
    "country": (ds("participantCountry"), "isPartOf"),
    "participant": (ds("participant"), "isAnyOf"),
    "not_participant": (ds("participant"), "isNoneOf"),
    "business_partner": (ds("businessPartnerNumber"), "isAnyOf"),
    "framework": (ds("frameworkAgreement"), "isAnyOf"),
    "security": (ds("securityLevel"), "gteq"),
    "environment": (ds("environment"), "eq"),
    "permit": (ds("permit"), "isAnyOf"),
    "connector": (ds("connector"), "isAnyOf"),
    "application": (ds("application"), "isAnyOf"),
}
LIMITS: dict[str, tuple[str, str]] = {
    "min_group": (ds("minGroupSize"), "gteq"),
    "rows": (ds("rowQuota"), "lteq"),
    "bytes": (ds("byteQuota"), "lteq"),
    "queries": (odrl("count"), "lteq"),
    "queries_per_day": (ds("queriesPerDay"), "lteq"),
    "concurrency": (ds("concurrency"), "lteq"),
    "epsilon": (ds("epsilonBudget"), "lteq"),
    "delta": (ds("deltaBudget"), "lteq"),
    "rows_per_entity": (ds("rowsPerEntity"), "lteq"),
}
DETAILS: dict[str, tuple[str, str]] = {
    "within": (odrl("delayPeriod"), "lteq"),
    "on": (odrl("event"), "eq"),
    "by": (odrl("dateTime"), "lteq"),
    "to": (ds("informedParty"), "eq"),
    "text": (ds("attributionText"), "eq"),
    "amount": (odrl("payAmount"), "eq"),
    "currency": (ds("currency"), "eq"),
    "every": (ds("every"), "eq"),
    "policy": (ds("policy"), "eq"),
    "registry": (ds("modelRegistry"), "eq"),
}
MASKS: dict[str, bool] = {"null": False, "hash": False, "truncate": True, "round": True, "generalise": True}
OPERATOR_ORDER = (
    "eq",
    "neq",
    "lt",
    "lteq",
    "gt",
    "gteq",
    "isAnyOf",
    "isNoneOf",
    "isAllOf",
    "isPartOf",
    "hasPart",
    "isA",
)
EVENT = ds("event/")
_SPAN = re.compile(r"(\d{1,6})\s*(h|d|w|mo|y|hours?|days?|weeks?|months?|years?)", re.ASCII)
_UNITS = {"h": "PT{}H", "d": "P{}D", "w": "P{}W", "m": "P{}M", "y": "P{}Y"}


def order_masks(masks: Iterable[MaskLine]) -> tuple[MaskLine, ...]:
    """Return masks in the order of the form: hashed columns, emptied ones, then the others."""
    return tuple(sorted(masks, key=lambda mask: {"hash": 0, "null": 1}.get(mask.method, 2)))


def parse_span(text: str) -> str:
    """Return `30d`, `12 hours`, `3 months` or an ISO duration as an ISO duration.

    Raises: ValueError.
    """
    found = _SPAN.fullmatch(text.strip())
    iso = _UNITS[found[2][0]].format(int(found[1])) if found else text.strip()
    values.duration(iso)
    return iso


def format_span(iso: str) -> str:
    """Return the shortest spelling of a duration that `parse_span` reads back."""
    for head, tail, unit in (("P", "D", "d"), ("PT", "H", "h"), ("P", "W", "w"), ("P", "M", "mo"), ("P", "Y", "y")):
        number = iso.removeprefix(head).removesuffix(tail)
        if number.isdecimal() and iso == f"{head}{number}{tail}" and parse_span(number + unit) == iso:
            return number + unit
    return iso


def _short_actions() -> dict[str, str]:
    """Local names of actions; an action of this project's profile takes precedence over ODRL's."""
    found: dict[str, str] = {}
    for name in vocabulary.ACTIONS:
        local = vocabulary.compact(name).partition(":")[2]
        if local not in found or name.startswith(vocabulary.PREFIXES["ds"]):
            found[local] = name
    return found


def action_iri(word: str) -> str:
    """Return the action (IRI) of a word of the form, or an empty text."""
    if word in (short := _short_actions()):
        return short[word]
    iri = vocabulary.expand(word)
    return iri if vocabulary.action(iri) else ""


def action_word(iri: str) -> str:
    """Return the shortest word that `action_iri` reads back."""
    local = vocabulary.compact(iri).partition(":")[2]
    return local if _short_actions().get(local) == iri else vocabulary.compact(iri)


def action_words(*, duty: bool) -> list[str]:
    """Return the words for `may` and `not`, or with `duty` those for `first` and `then`."""
    return sorted(
        word
        for word, iri in _short_actions().items()
        if (vocabulary.ACTIONS[iri].duty if duty else vocabulary.ACTIONS[iri].use)
    )
