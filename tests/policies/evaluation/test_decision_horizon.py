"""The time until which the clock cannot change what prohibitions decide."""

from __future__ import annotations

import math

import pytest

from policies.evaluation.evaluate import next_change
from policies.evaluation.values import instant
from policies.model import Constraint, Rule
from policies.vocabulary import expand
from tests.support.gate import agreement, atom, either


def at(text: str) -> float:
    return instant(text).start / 1e9


DAY = "2027-01-02T00:00:00Z"
CASES: dict[str, tuple[str, list[Constraint], float]] = {
    "none": ("odrl:use", [], math.inf),
    "an instant to come": ("odrl:use", [atom("odrl:dateTime", "gt", DAY)], at(DAY)),
    "one that is past": ("odrl:use", [atom("odrl:dateTime", "gt", "2026-12-01T00:00:00Z")], math.inf),
    "a day": ("odrl:use", [atom("odrl:dateTime", "eq", "2027-01-02")], at(DAY)),
    "the end of this day": ("odrl:use", [atom("odrl:dateTime", "eq", "2027-01-01")], at(DAY)),
    "a time without a zone": ("odrl:use", [atom("odrl:dateTime", "gt", "2027-01-02T14:00:00")], at(DAY)),
    "time since the agreement": ("odrl:use", [atom("odrl:elapsedTime", "gt", "P366D")], at(DAY)),
    "under or": ("odrl:use", [either(atom("ds:role", "eq", "x"), atom("odrl:dateTime", "gt", DAY))], at(DAY)),
    "of another action": ("odrl:distribute", [atom("odrl:dateTime", "gt", DAY)], math.inf),
}


@pytest.mark.parametrize(("action", "constraints", "expected"), CASES.values(), ids=CASES.keys())
def test_when_the_clock_may_next_change_what_is_prohibited(
    action: str, constraints: list[Constraint], expected: float
) -> None:
    policy = agreement(prohibitions=[Rule(expand(action), tuple(constraints))])
    assert next_change(policy, action="ds:query", now=at("2027-01-01T12:00:00Z")) == expected
