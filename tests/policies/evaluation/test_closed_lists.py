"""An agreement with a value that its operand's closed list lacks, signed before the list existed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.evaluation.evaluate import Facts, evaluate
from policies.model import Kind, Policy, Rule
from policies.review import unknown_terms
from policies.vocabulary import Phase
from tests.support import gate

AT = 1_800_000_000.0
RULES = [
    # operator, words, what is said of the party, permitted
    ("isAnyOf", ("active", "expelled"), "active", True),
    ("isAnyOf", ("active", "expelled"), "suspended", False),
    ("isAnyOf", ("expelled", "removed"), "active", False),
    ("eq", ("expelled",), "active", False),
    ("neq", ("expelled",), "active", False),
    ("isNoneOf", ("suspended", "expelled"), "active", False),
]


def permitted(policy: Policy, state: str) -> bool:
    facts = Facts.of({"ds:participant": "did:web:lab.example", "ds:membership": state}, source="register")
    return evaluate(policy, facts, action="ds:query", phase=Phase.TRANSFER, now=AT).permitted


@pytest.mark.parametrize(("operator", "words", "state", "may"), RULES)
def test_a_known_word_decides_where_any_of_the_list_will_do(
    operator: str, words: tuple[str, ...], state: str, may: bool
) -> None:
    policy = gate.agreement(gate.atom("ds:membership", operator, *words))
    assert permitted(policy, state) is may
    assert [one.path for one in unknown_terms.find_unclear(policy)] == ["/permission/0/constraint/0"]
    assert bool(unknown_terms.find_blocking(policy)) is ("active" not in words)


def test_a_prohibition_of_a_word_that_nobody_knows_hits_everybody() -> None:
    listed = gate.atom("ds:membership", "isAnyOf", "suspended", "expelled")
    policy = gate.agreement(prohibitions=[Rule(gate.QUERY, (listed,))])
    assert not permitted(policy, "active")


def test_an_offer_has_no_such_word() -> None:
    signed = gate.agreement(gate.atom("ds:membership", "isAnyOf", "active", "expelled"))
    offer = replace(signed, kind=Kind.OFFER, assignee="", timestamp="")
    assert unknown_terms.find_blocking(offer) == unknown_terms.find_unclear(offer) != ()
