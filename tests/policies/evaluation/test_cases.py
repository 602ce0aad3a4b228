"""One test over all case tables: policy, facts, expected decision."""

from __future__ import annotations

from typing import Any

import pytest

from policies import duties, vocabulary
from policies.evaluation import evaluate
from policies.evaluation.facts import Facts
from policies.model import Kind
from policies.odrl import reader
from policies.review import phrases, unknown_terms
from policies.vocabulary import Phase
from policies.vocabulary.terms import RULE
from tests.support import policy_cases as cases

ALL = list(cases.cases())
DUTIES = [(entry, one) for entry in cases.load("after_use") for one in entry["cases"]]


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_a_case_is_decided_as_written(case: Any) -> None:
    facts = Facts.of(case.facts, source="test")
    arguments = {"action": case.action, "phase": Phase(case.phase), "now": case.now}
    decision = evaluate.evaluate(case.policy, facts, **arguments)
    assert decision.permitted is case.permitted, decision.to_json()
    assert evaluate.permits(case.policy, facts, **arguments) is case.permitted
    assert decision.reasons, "every decision says why"
    if "because" in case.extra:
        assert case.extra["because"] in " | ".join(decision.reasons)
    if "permission" in case.extra:
        assert decision.permission == case.extra["permission"]
    if "carried" in case.extra:
        assert set(case.extra["carried"]) <= set(decision.carried)


@pytest.mark.parametrize("case", [case for case in ALL if case.name == "missing fact"], ids=lambda case: case.id)
def test_a_missing_fact_is_named_in_the_reasons(case: Any) -> None:
    decision = evaluate.evaluate(case.policy, Facts(), action=case.action, phase=Phase(case.phase), now=case.now)
    missing = {finding.left for finding in decision.findings if finding.result == "unknown"}
    assert missing
    assert all(any(name in reason for reason in decision.reasons) for name in missing)


def test_every_word_of_a_rule_has_its_three_cases() -> None:
    seen: set[str] = set()
    for file in ("party", "quantity", "shape", "time", "training"):
        for entry in cases.load(file):
            for rule in cases.policy(entry).permissions:
                for _, atom in unknown_terms.walk_atoms(rule.constraints, ""):
                    operand = vocabulary.operand(atom.left)
                    assert operand is not None
                    seen.add(operand.name)
    needed = {name for name, operand in vocabulary.OPERANDS.items() if RULE in operand.where}
    assert needed <= seen, sorted(map(vocabulary.compact, needed - seen))


@pytest.mark.parametrize(("entry", "one"), DUTIES, ids=lambda part: part.get("pattern") or part.get("name"))
def test_a_duty_stands_where_the_case_says(entry: dict[str, Any], one: dict[str, Any]) -> None:
    policy = reader.read(
        {"@id": "urn:case", "@type": "Set", "permission": [{"action": "use"}], "obligation": [entry["duty"]]},
        kind=Kind.SET,
    )
    (duty,) = policy.obligations
    assert phrases.duty(duty) == entry["says"]
    fulfilled = cases.seconds(one["fulfilled"]) if "fulfilled" in one else None
    events = {name: cases.seconds(when) for name, when in one.get("events", {}).items()}
    found = duties.duty_state(duty, events=events, fulfilled_at=fulfilled, now=cases.seconds(one["now"]))
    assert found == one["state"]
