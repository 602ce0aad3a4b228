"""Differences between two policies: requests with another outcome, and terms added or removed.

Requests are generated from the values that either policy mentions, an unmentioned value, a missing value, and the times
around each boundary; both policies are evaluated on each. This is a search, not a proof: only an empty result with
equal digests is certain.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from policies import vocabulary
from policies.evaluation import values
from policies.evaluation.evaluate import as_granting_set, permits
from policies.evaluation.facts import Facts, Observed
from policies.model import Atom, Policy
from policies.odrl import reader
from policies.review import explain, unknown_terms
from policies.vocabulary import Counting, Operand, Phase, ValueType, compact

MISSING = "(missing)"
OTHER = "(another)"
_SECOND = 1_000_000_000


@dataclass(frozen=True, slots=True)
class OutcomeChange:
    """One request with another outcome: its action, facts in words, time (UTC seconds), outcome before and after."""

    action: str
    facts: tuple[tuple[str, str], ...]
    now: float
    before: bool
    after: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "action": compact(self.action),
            "facts": dict(self.facts),
            "now": self.now,
            "before": "permitted" if self.before else "refused",
            "after": "permitted" if self.after else "refused",
        }


@dataclass(frozen=True, slots=True)
class PolicyDifference:
    """Whether both mean the same; requests with another outcome; sentences added and removed."""

    same: bool
    requests: tuple[OutcomeChange, ...] = ()
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "same": self.same,
            "requests": [change.to_json() for change in self.requests],
            "added": list(self.added),
            "removed": list(self.removed),
        }


def diff(before: Policy, after: Policy, *, now: float, limit: int = 20, tries: int = 20_000) -> PolicyDifference:
    """Return what changes from `before` to `after`, at `now` (UTC seconds) and around every time that either mentions.

    Returns at most `limit` changes, the simplest first, from at most `tries` requests.
    """
    if reader.rules_equal(before, after):
        return PolicyDifference(same=True)
    said_before = [sentence.text for sentence in explain.sentences(before)]
    said_after = [sentence.text for sentence in explain.sentences(after)]
    return PolicyDifference(
        same=False,
        requests=tuple(_changes(before, after, now, limit, tries)),
        added=tuple(text for text in dict.fromkeys(said_after) if text not in said_before),
        removed=tuple(text for text in dict.fromkeys(said_before) if text not in said_after),
    )


def _changes(before: Policy, after: Policy, now: float, limit: int, tries: int) -> Iterator[OutcomeChange]:
    old, new = as_granting_set(before), as_granting_set(after)
    shown: set[tuple[str, bool]] = set()
    kept: list[OutcomeChange] = []
    for action, facts, moment in itertools.islice(_requests(before, after, now), tries):
        snapshot = _build_facts(facts, now)
        was = permits(old, snapshot, action=action, phase=Phase.BATCH, now=moment)
        becomes = permits(new, snapshot, action=action, phase=Phase.BATCH, now=moment)
        if was == becomes:
            continue
        change = OutcomeChange(action, tuple((key, _format_value(value)) for key, value in facts), moment, was, becomes)
        # One example of each kind comes first; more of the same follow while there is room.
        if (action, was) in shown:
            kept.append(change)
            continue
        shown.add((action, was))
        yield change
    yield from itertools.islice(kept, max(0, limit - len(shown)))


Request = tuple[str, tuple[tuple[str, Observed], ...], float]


def _requests(before: Policy, after: Policy, now: float) -> Iterator[Request]:
    """Yield requests that satisfy as much as possible, then variants that differ from these in one or two places."""
    choices = _choices((before, after))
    actions = _actions((before, after))
    moments = _moments((before, after), now)
    keys = sorted(choices)
    product = itertools.product(*(choices[key] for key in keys))
    ordered = _few_departures(keys, choices) if _count_combinations(choices) > 2_000 else product
    for combination in ordered:
        facts = tuple(zip(keys, combination, strict=True))
        for action in actions:
            for moment in moments:
                yield action, facts, moment


def _count_combinations(choices: dict[str, list[Observed]]) -> int:
    size = 1
    for options in choices.values():
        size *= len(options)
    return size


def _few_departures(keys: list[str], choices: dict[str, list[Observed]]) -> Iterator[tuple[Observed, ...]]:
    first = [choices[key][0] for key in keys]
    for count in (0, 1, 2):
        for places in itertools.combinations(range(len(keys)), count):
            for picked in itertools.product(*(choices[keys[place]][1:] for place in places)):
                changed = list(first)
                for place, value in zip(places, picked, strict=True):
                    changed[place] = value
                yield tuple(changed)


def _choices(policies: Iterable[Policy]) -> dict[str, list[Observed]]:
    """Return for each fact the values that the policies mention, an unmentioned one, and none."""
    found: dict[str, list[Observed]] = {}
    for policy in policies:
        for _, rule, place in unknown_terms.walk_rules(policy):
            if place == "duty":
                found.setdefault("ds:fulfilled", [compact(rule.action), None])
            for _, atom in unknown_terms.walk_atoms(rule.constraints, ""):
                operand = vocabulary.operand(atom.left)
                if operand is None or place in ("duty", "obligation"):
                    continue
                if operand.by_engine or operand.counting in (Counting.CLOCK, Counting.ELAPSED):
                    continue
                options = found.setdefault(operand.fact, [])
                options += [value for value in _mentioned_values(operand, atom) if value not in options]
    return {key: [*options, *([] if None in options else [OTHER, None])] for key, options in found.items()}


def _mentioned_values(operand: Operand, atom: Atom) -> Iterator[Observed]:
    for literal in atom.right:
        if operand.type in (ValueType.INTEGER, ValueType.DECIMAL):
            try:
                limit = int(values.decimal(literal.text))
            except ValueError:
                continue
            yield from (0, max(0, limit - 1), limit, limit + 1)
        elif operand.type is ValueType.PLACE:
            yield from _sample_countries(literal.text)
        else:
            yield literal.text


def _sample_countries(text: str) -> Iterator[str]:
    """Countries that distinguish regions (Germany, Norway, Switzerland), and the place itself."""
    if not text.startswith(values.REGION):
        yield text
    for country in ("DE", "NO", "CH", "NL"):
        if text in values.ancestors(country):
            yield country


def _actions(policies: Iterable[Policy]) -> list[str]:
    named = {rule.action for policy in policies for rule in (*policy.permissions, *policy.prohibitions)}
    below = {
        name
        for name, action in vocabulary.ACTIONS.items()
        if action.use and any(vocabulary.action_includes(one, name) for one in named)
    }
    served = [name for name in sorted(below) if vocabulary.ACTIONS[name].enforced_by or name in named]
    return [*sorted(named), *(name for name in served if name not in named)]


def _moments(policies: Iterable[Policy], now: float) -> list[float]:
    found = [now]
    for policy in policies:
        for _, rule, _ in unknown_terms.walk_rules(policy):
            for _, atom in unknown_terms.walk_atoms(rule.constraints, ""):
                found.extend(_moments_around(atom, now))
    return list(dict.fromkeys(found))


def _moments_around(atom: Atom, now: float) -> Iterator[float]:
    operand = vocabulary.operand(atom.left)
    if operand is None:
        return
    try:
        if operand.counting is Counting.CLOCK:
            moment = values.instant(atom.right[0].text, atom.right[0].datatype)
            yield from (moment.start / _SECOND - 1, moment.end / _SECOND + 1)
        elif operand.counting is Counting.ELAPSED:
            end = values.add_duration(values.nanoseconds(now), values.duration(atom.right[0].text))
            yield from (end / _SECOND - 1, end / _SECOND + 1)
    except ValueError:
        return


def _build_facts(chosen: tuple[tuple[str, Observed], ...], signed: float) -> Facts:
    """Facts of an agreement signed at `signed`, with every condition on the answer enforced."""
    given: dict[str, Any] = {key: _unmentioned_value(key, value) for key, value in chosen if value is not None}
    given["ds:enforced"] = [name for name, operand in vocabulary.OPERANDS.items() if operand.by_engine]
    given.setdefault("ds:miningReserved", "false")
    given["ds:start"] = values.format_time(signed)
    return Facts.of(given, source="made up")


def _unmentioned_value(key: str, value: Observed) -> Observed:
    """A value that no policy mentions."""
    if value != OTHER:
        return value
    if key == "ds:participantCountry":
        return "US"
    return "urn:hanse:another" if key in ("odrl:purpose", "ds:participant") else "another"


def _format_value(value: Observed) -> str:
    return MISSING if value is None else compact(str(value))
