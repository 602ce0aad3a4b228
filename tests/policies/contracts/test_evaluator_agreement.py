"""The evaluator and the compiled contract agree about time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.contracts import compile as compiler
from policies.contracts.contract import Column, TableSchema
from policies.errors import ContractUndecided
from policies.evaluation import evaluate, values
from policies.evaluation.facts import Facts
from policies.model import Atom, Kind, Literal, Policy, Rule
from policies.vocabulary import Phase, ds, odrl

SCHEMA = TableSchema((Column("a", "INTEGER"),))
SIGNED = "2027-01-31T12:00:00Z"
MOMENTS = [
    "2027-03-14T09:26:53Z",
    "2027-03-14T09:26:53+05:30",
    "2027-03-14T24:00:00Z",
    "2027-03-14T09:26:53",
    "2027-03-14",
    "2027-03-14-11:00",
    "2028-02-29",
]
SPANS = ["P30D", "P1M", "P2M1D", "PT36H", "P1Y"]
CASES = [("dateTime", op, text) for op in ("lt", "lteq", "gt", "gteq", "eq") for text in MOMENTS] + [
    ("elapsedTime", op, text) for op in ("lt", "lteq", "gt", "gteq", "eq") for text in SPANS
]


def agreement(atom: Atom) -> Policy:
    return Policy(
        kind=Kind.AGREEMENT,
        id="urn:a",
        permissions=(Rule(ds("query"), (atom,)),),
        target="urn:d",
        assigner="did:web:p",
        assignee="did:web:c",
        timestamp=SIGNED,
    )


def edges(name: str, text: str) -> list[float]:
    """Whole seconds around every moment at which an answer could change."""
    if name == "dateTime":
        moment = values.instant(text)
        turning = [moment.start, moment.end]
    else:
        turning = [values.add_duration(values.instant(SIGNED).start, values.duration(text))]
    return [one / values.SECOND + step for one in turning for step in (-86_400, -1, 0, 1, 86_400)]


def in_force(policy: Policy) -> tuple[float, float]:
    """From when to when; a contract that could never be in force is refused when it is compiled."""
    try:
        contract = compiler.compile_contract(policy, SCHEMA, permission=0)
    except ContractUndecided:
        return float("inf"), float("-inf")
    low = float("-inf") if contract.not_before is None else contract.not_before
    return low, float("inf") if contract.not_after is None else contract.not_after


@pytest.mark.parametrize(("name", "op", "text"), CASES)
def test_a_contract_is_in_force_exactly_when_evaluation_permits(name: str, op: str, text: str) -> None:
    policy = agreement(Atom(odrl(name), op, (Literal(text),)))
    low, high = in_force(policy)
    facts = Facts.of({"ds:participant": "did:web:c"})
    for now in edges(name, text):
        permitted = evaluate.permits(policy, facts, action=ds("query"), phase=Phase.TRANSFER, now=now)
        assert permitted is (low <= now <= high), values.format_time(now)


def test_what_the_contract_leaves_to_facts_is_what_evaluation_decides() -> None:
    policy = agreement(Atom(ds("membership"), "eq", (Literal("active"),)))
    (contract,) = compiler.compile_contracts(policy, SCHEMA)
    made = evaluate.evaluate(
        replace(policy), Facts.of({"ds:participant": "did:web:c"}), action=ds("query"), phase=Phase.TRANSFER, now=2e9
    )
    assert contract.requires == tuple(finding.constraint for finding in made.findings if finding.result == "unknown")
