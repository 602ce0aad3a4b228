"""Conflicts of two policies on one dataset, and what their owner reads about them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.contracts import compile, conflicts
from policies.contracts.conflicts import ActivePolicy
from policies.model import Constraint, Policy, Rule
from policies.vocabulary.terms import expand
from tests.support import gate
from tests.support.gate import atom

SCHEMA = gate.schema(id="BIGINT", country="VARCHAR", age="INTEGER", price="DOUBLE", cost="DOUBLE")
LAB, CLINIC = (atom("ds:participant", "eq", f"did:web:{name}.example") for name in ("lab", "clinic"))
GROUP, TENS = atom("ds:minGroupSize", "gteq", "10"), atom("ds:dimension/age", "eq", "10")
PRICE, COST = atom("ds:measure/price", "eq", "0..100"), atom("ds:measure/cost", "eq", "0..9")
COUNTED = (GROUP, TENS, PRICE)
TWENTIES = (GROUP, atom("ds:dimension/age", "eq", "20"), PRICE)
NOISE = (atom("ds:epsilonBudget", "lteq", "1"), TWENTIES[1], PRICE)
HIDING = (atom("ds:columnDeny", "isNoneOf", "age"),)
RESEARCH, MARKETING = (atom("odrl:purpose", "eq", f"dpv:{name}") for name in ("ScientificResearch", "Marketing"))

CASES: dict[str, tuple[tuple[Constraint, ...], tuple[Constraint, ...], list[str]]] = {
    "the same groups": (COUNTED, COUNTED, []),
    "the same groups for other purposes": ((*COUNTED, RESEARCH), (*COUNTED, MARKETING), []),
    "the same measures in another order": ((*COUNTED, COST), (COST, *COUNTED), []),
    "bins that unite the other's": (TWENTIES, COUNTED, ["grids_differ"]),
    "bins that cut the other's": (COUNTED, TWENTIES, ["grids_differ"]),
    "other bins for other purposes": ((*COUNTED, RESEARCH), (*TWENTIES, MARKETING), ["grids_differ"]),
    "another dimension": (COUNTED, (GROUP, atom("ds:dimension/country", "eq", "exact"), PRICE), ["grids_differ"]),
    "no dimension": (COUNTED, (GROUP, PRICE), ["grids_differ"]),
    "a larger group size": (COUNTED, (atom("ds:minGroupSize", "gteq", "20"), TENS, PRICE), ["grids_differ"]),
    "another unit": (COUNTED, (*COUNTED, atom("ds:entityKey", "eq", "id")), ["grids_differ"]),
    "other bounds": (COUNTED, (GROUP, TENS, atom("ds:measure/price", "eq", "0..50")), ["grids_differ"]),
    "one measure more": (COUNTED, (*COUNTED, COST), ["grids_differ"]),
    "fewer rows": (COUNTED, (*COUNTED, atom("ds:row/country", "eq", "DE")), ["grids_differ"]),
    "noise of other bins": (COUNTED, NOISE, []),
    "rows": (COUNTED, (), ["rows_beside_groups"]),
    "groups beside rows": ((), COUNTED, ["rows_beside_groups"]),
    "noise beside rows": ((), NOISE, ["rows_beside_groups"]),
    "rows beside rows": ((), (atom("ds:columnAllow", "eq", "id"),), []),
    "rows that show what others hide": (HIDING, (atom("ds:columnDeny", "isNoneOf", "price"),), ["rows_linked"]),
    "rows that show the same": (HIDING, HIDING, []),
    "rows that show what others hide, for another party": (
        (*HIDING, LAB), (atom("ds:columnDeny", "isNoneOf", "price"), CLINIC), []
    ),
    "other bins for another party": ((*COUNTED, LAB), (*TWENTIES, CLINIC), ["grids_of_two_parties"]),
    "other bins for the same party": ((*COUNTED, LAB), (*TWENTIES, LAB), ["grids_differ"]),
    "other bins for whoever comes": ((*COUNTED, LAB), TWENTIES, ["grids_differ"]),
    "other bins for one of several": (
        (*COUNTED, LAB),
        (*TWENTIES, atom("ds:participant", "isAnyOf", LAB.right[0].text, CLINIC.right[0].text)),
        ["grids_differ"],
    ),
    "other bins where only an alternative names another party": (
        (*COUNTED, LAB),
        (*TWENTIES, gate.either(CLINIC, atom("ds:membership", "eq", "active"))),
        ["grids_differ"],
    ),
    "other bins for parties of another country": (
        (*COUNTED, atom("ds:participantCountry", "eq", "DE")),
        (*TWENTIES, atom("ds:participantCountry", "eq", "FR")),
        ["grids_differ"],  # nobody says that a party has one country only
    ),
    "rows for another party": ((*COUNTED, LAB), (CLINIC,), []),
}  # fmt: skip


def standing(name: str, *constraints: Constraint, **more: object) -> ActivePolicy:
    policy = gate.agreement(*constraints)
    return replace(ActivePolicy(name, policy, compile.compile_contracts(policy, SCHEMA)), **more)


def codes(mine: ActivePolicy, *others: ActivePolicy) -> list[str]:
    return [problem.code for problem in conflicts.find_conflicts(mine, others)]


@pytest.mark.parametrize("case", CASES)
def test_what_may_stand_beside_each_other(case: str) -> None:
    mine, other, expected = CASES[case]
    assert codes(standing("offer one", *mine), standing("offer two", *other)) == expected
    assert codes(standing("offer two", *other), standing("offer one", *mine)) == expected  # whichever comes first


@pytest.mark.parametrize(
    ("constraints", "holder", "over", "expected"),
    [
        (COUNTED, "did:web:lab.example", False, "grids_differ"),
        ((*COUNTED, LAB), "did:web:lab.example", False, "grids_differ"),
        ((*COUNTED, CLINIC), "did:web:lab.example", False, "grids_of_two_parties"),
        (COUNTED, "did:web:lab.example", True, "grids_differed"),
    ],
)
def test_an_agreement_is_held_by_its_party_and_remembered_when_it_is_over(
    constraints: tuple[Constraint, ...], holder: str, over: bool, expected: str
) -> None:
    mine = standing("offer one", *constraints)
    assert codes(mine, standing("agreement two", *TWENTIES, holder=holder, over=over)) == [expected]


def test_rows_are_linked_whose_masks_are_others_although_an_agreement_has_ended() -> None:
    masked = gate.agreement(*HIDING, duties=[gate.mask("hash", "country")])
    other = replace(
        standing("agreement two"), policy=masked, contracts=compile.compile_contracts(masked, SCHEMA), over=True
    )
    assert codes(standing("offer one", atom("ds:columnDeny", "isNoneOf", "price")), other) == ["rows_linked"]
    assert codes(standing("offer one"), other) == []  # shows all by itself


def test_the_owner_is_told_of_both_by_name_and_what_to_do() -> None:
    others = [standing(f"offer urn:{number}", *TWENTIES) for number in range(5)]
    (problem,) = conflicts.find_conflicts(standing("offer urn:new", *COUNTED), others)
    assert (problem.level, problem.path) == ("error", "/permission/0")
    assert "offer urn:new" in problem.message
    assert "offer urn:0, offer urn:1, offer urn:2 and 2 more" in problem.message
    assert "hanse offer withdraw" in problem.message


def test_each_permission_is_held_against_each() -> None:
    rows = gate.agreement(atom("ds:columnAllow", "eq", "id"))
    both: Policy = replace(rows, permissions=(*rows.permissions, Rule(expand("ds:query"), COUNTED)))
    mine = ActivePolicy("offer one", both, compile.compile_contracts(both, SCHEMA))
    found = list(conflicts.find_conflicts(mine, [standing("offer two", *TWENTIES)]))
    assert [(one.code, one.path) for one in found] == [
        ("grids_differ", "/permission/1"),
        ("rows_beside_groups", "/permission/0"),
    ]
