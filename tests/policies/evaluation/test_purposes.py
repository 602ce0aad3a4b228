"""A purpose covers itself and narrower ones, never broader ones; evaluator and contract agree."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from policies.contracts import compile as compiler
from policies.contracts import coverage
from policies.errors import ContractUndecided, QueryRefused
from policies.evaluation import evaluate, values
from policies.evaluation.facts import Facts
from policies.model import Kind, Policy
from policies.vocabulary import Phase, expand
from tests.support import gate

SCHEMA = gate.schema(id="BIGINT")
QUERY = expand("ds:query")
SAID = [
    expand(f"dpv:{name}")
    for name in (
        "ResearchAndDevelopment",
        "ScientificResearch",
        "CommercialResearch",
        "CommercialPurpose",
        "Marketing",
        "Advertising",
        "PersonalisedAdvertising",
        "TargetedAdvertising",
        "Personalisation",
        "SomethingNobodyKnows",
    )
]
OPERATORS = ("eq", "neq", "isAnyOf", "isNoneOf", "isAllOf", "isPartOf", "isA")


def permits(policy: Policy, purpose: str) -> bool:
    facts = Facts.of({"odrl:purpose": purpose}, source="request")
    tried = replace(policy, kind=Kind.SET)
    return evaluate.permits(tried, facts, action=QUERY, phase=Phase.QUERY, now=2e9)


def admits(policy: Policy, purpose: str) -> bool:
    try:
        contract = compiler.compile_contract(policy, SCHEMA, permission=0)
        coverage.check_purpose(contract, purpose)
    except (QueryRefused, ContractUndecided):
        return False
    return True


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_contract_and_the_evaluator_agree_on_every_purpose(operator: str) -> None:
    lists = [(one,) for one in SAID]
    lists += list(itertools.combinations(SAID, 2)) if operator not in ("eq", "neq") else []
    verdicts = set()
    for named, purpose in itertools.product(lists, SAID):
        policy = gate.agreement(gate.atom("odrl:purpose", operator, *named))
        verdict = permits(policy, purpose)
        assert admits(policy, purpose) is verdict, (named, purpose)
        verdicts.add(verdict)
    assert verdicts == {True, False}


def test_two_rules_on_purpose_hold_together() -> None:
    for one, other, purpose in itertools.product(SAID[:8], SAID[:8], SAID):
        policy = gate.agreement(gate.atom("odrl:purpose", "isAnyOf", one), gate.atom("odrl:purpose", "isA", other))
        assert admits(policy, purpose) is permits(policy, purpose), (one, other, purpose)


@pytest.mark.parametrize("operator", ["eq", "isAnyOf", "isAllOf", "isPartOf", "isA"])
def test_narrower_is_covered_and_broader_never(operator: str) -> None:
    for agreed, asked in itertools.product(SAID, SAID):
        policy = gate.agreement(gate.atom("odrl:purpose", operator, agreed))
        assert permits(policy, asked) is values.is_below(asked, agreed)


def test_the_shipped_hierarchy_has_no_circle_and_only_known_roots() -> None:
    above = {name: values.ancestors(name) for name in SAID}
    assert expand("dpv:Personalisation") in above[expand("dpv:TargetedAdvertising")]
    assert expand("dpv:Marketing") in above[expand("dpv:TargetedAdvertising")]
    for low, high in itertools.permutations(SAID, 2):
        assert not (values.is_below(low, high) and values.is_below(high, low))


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("dpv:SientificResearch", "ScientificResearch"),
        ("dpv:scientificresearch", "ScientificResearch"),
        ("dpv:AcademicReserach", "AcademicResearch"),
        ("dpv:AcademicResearches", "AcademicResearch"),
        ("dpv:ServicePersonalization", "ServicePersonalisation"),
        ("Marketnig", "Marketing"),
        ("dpv:NonAcademicResearch", ""),
        ("dpv:PersonnelRecordManagement", ""),
        ("dpv:AIMarketing", ""),
        ("dpv:EconomicResearch", ""),
    ],
)
def test_a_name_with_a_word_more_or_less_is_another_purpose(name: str, meant: str) -> None:
    assert values.suggest_purpose(expand(name)) == meant
