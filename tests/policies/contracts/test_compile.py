"""Compiling agreements to contracts, from tests/cases/contracts.yaml; no rule is ignored."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.contracts import columns
from policies.contracts import compile as compiler
from policies.contracts.contract import Column, Comparison, TableSchema, from_json, to_json
from policies.errors import ContractUndecided
from policies.model import Atom, Connective, Constraint, Duty, Group, Kind, Policy, Rule
from policies.review import lint
from policies.vocabulary.terms import expand
from tests.support import gate

SCHEMA = TableSchema(
    tuple(
        Column(name, type_)
        for name, type_ in {
            "id": "BIGINT",
            "name": "VARCHAR",
            "country": "VARCHAR",
            "age": "INTEGER",
            "price": "DECIMAL(9,2)",
            "score": "DOUBLE",
            "joined": "DATE",
            "seen": "TIMESTAMP",
            "open": "BOOLEAN",
            "tags": "VARCHAR[]",
        }.items()
    )
)
CASES: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parents[2] / "cases" / "contracts.yaml").read_text())


def _constraint(raw: Any) -> Constraint:
    if isinstance(raw, list):
        return gate.atom(*raw)
    ((word, members),) = raw.items()
    return Group(Connective(word), tuple(_constraint(member) for member in members))


def _policy(case: dict[str, Any]) -> Policy:
    duties = [
        gate.mask(mask["method"], *mask["columns"], argument=mask.get("argument")) for mask in case.get("duties", ())
    ]
    duties += [Duty(expand(action)) for action in case.get("other_duties", ())]
    return gate.agreement(
        *(_constraint(raw) for raw in case.get("constraints", ())),
        duties=duties,
        prohibitions=[
            Rule(expand(raw["action"]), tuple(_constraint(one) for one in raw.get("constraints", ())))
            for raw in case.get("prohibitions", ())
        ],
        obligations=[
            Duty(expand(raw["action"]), tuple(_constraint(one) for one in raw.get("constraints", ())))
            for raw in case.get("obligations", ())
        ],
        action=case.get("action", "ds:query"),
    )


def _plain(value: Any) -> Any:
    """Tuples as lists and prefixed names as IRIs, to compare with YAML."""
    if isinstance(value, dict):
        return {key: _plain(member) for key, member in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(member) for member in value]
    return expand(value) if isinstance(value, str) else value


@pytest.mark.parametrize("case", [c for c in CASES if "gives" in c], ids=lambda case: case["name"])
def test_agreement_compiles_to(case: dict[str, Any]) -> None:
    made = compiler.compile_contract(_policy(case), SCHEMA, permission=0)
    found = _plain(asdict(made))
    for name, wanted in case["gives"].items():
        if name == "not_after_below":
            assert made.not_after == math.nextafter(wanted, -math.inf)
        elif name == "covers":
            assert set(_plain(wanted)) <= set(made.actions)
        elif name == "covers_not":
            assert set(_plain(wanted)).isdisjoint(made.actions)
        elif name == "contractual":
            assert list(made.contractual) == wanted
        else:
            assert found[name] == _plain(wanted), name
    assert made.residual == ()


@pytest.mark.parametrize("case", [c for c in CASES if "refused" in c], ids=lambda case: case["name"])
def test_agreement_is_refused_by_name(case: dict[str, Any]) -> None:
    with pytest.raises(ContractUndecided) as refused:
        compiler.compile_contract(_policy(case), SCHEMA, permission=0)
    assert refused.value.rule == case["refused"]["rule"], str(refused.value)
    assert case["refused"]["says"] in str(refused.value)


@pytest.mark.parametrize("case", [c for c in CASES if "gives" in c], ids=lambda case: case["name"])
def test_contract_survives_json_unchanged(case: dict[str, Any]) -> None:
    made = compiler.compile_contract(_policy(case), SCHEMA, permission=0)
    text = to_json(made)
    assert from_json(text) == made
    assert to_json(from_json(text)) == text
    assert hash(from_json(text)) == hash(made)


@pytest.mark.parametrize(
    ("type_", "text", "says"),
    [
        ("TIMESTAMP", "2026-01-05", "a time, got the day '2026-01-05'; write"),
        ("TIMESTAMP WITH TIME ZONE", "2026-01-05", "such as 2026-01-05T00:00:00Z"),
        ("TIMESTAMP_S", "2026-01-05T00:00:00.6", "at most 0 digits after the second"),
        ("TIMESTAMP_MS", "2026-01-05T00:00:00.0006", "at most 3 digits"),
        ("TIMESTAMP", "2026-01-05T00:00:00.0000009", "at most 6 digits"),
        ("TIMESTAMP_NS", "2026-01-05T00:00:00.000000700", "at most 6 digits"),
        ("FLOAT", "16777217", "no more digits than FLOAT holds"),
        ("FLOAT", "1" + "0" * 39, "no more digits than FLOAT holds"),
        ("DOUBLE", "9007199254740993", "no more digits than DOUBLE holds"),
        ("UHUGEINT", "-1", "a number from 0 for UHUGEINT"),
    ],
)  # fmt: skip
def test_what_the_column_would_round_is_refused(type_: str, text: str, says: str) -> None:
    with pytest.raises(ContractUndecided, match=re.escape(says)):
        gate.contract(gate.schema(x=type_), gate.atom("ds:row/x", "gteq", text))


@pytest.mark.parametrize("operator", ["eq", "neq", "isAnyOf", "isNoneOf"])
def test_a_uuid_is_compared_with_uuids_in_one_spelling(operator: str) -> None:
    """Any other text would be unknown to every row, and hide it."""
    good, table = "123e4567-e89b-12d3-a456-426614174000", gate.schema(x="UUID")
    comparison = gate.contract(table, gate.atom("ds:row/x", operator, good.upper())).row_filter
    assert isinstance(comparison, Comparison)
    assert comparison.values == (good,)
    with pytest.raises(ContractUndecided, match="ds:row/x cannot be compared: expected a UUID, got 'zzz'"):
        gate.contract(table, gate.atom("ds:row/x", operator, "zzz"))


def test_a_float_is_compared_as_its_column_stores_it() -> None:
    found = [columns.parse_value(Column("x", type_), "0.1") for type_ in ("FLOAT", "DOUBLE")]
    assert found == [0.10000000149011612, 0.1]
    assert columns.parse_value(Column("x", "TIMESTAMP_S"), "2026-01-05T00:00:00.000") == "2026-01-05T00:00:00"


def test_of_two_columns_that_fold_to_one_name_the_one_that_is_named_is_meant() -> None:
    both = gate.schema(straße="VARCHAR", strasse="VARCHAR", x="VARCHAR")
    for named, left in (("strasse", "straße"), ("STRASSE", "straße"), ("straße", "strasse")):
        made = gate.contract(both, gate.atom("ds:columnDeny", "isNoneOf", named))
        assert made.columns == (left, "x")


@pytest.mark.parametrize(
    ("there", "named"), [("Ärzte", "ärzte"), ("ärzte", "ÄRZTE"), ("straße", "STRASSE"), ("SSN", "ssn"), ("É", "é")]
)
def test_a_policy_means_a_column_whatever_the_case_of_its_letters(there: str, named: str) -> None:
    """The engine tells some of these names apart; what is hidden by one of them is hidden all the same."""
    table = gate.schema(**{there: "VARCHAR", "x": "VARCHAR"})
    assert gate.contract(table, gate.atom("ds:columnDeny", "isNoneOf", named)).columns == ("x",)
    masked = gate.contract(table, duties=[gate.mask("null", named)])
    assert [mask.column for mask in masked.masks] == [there]


def test_a_name_that_may_mean_either_of_two_columns_means_none() -> None:
    both = gate.schema(straße="VARCHAR", strasse="VARCHAR")
    with pytest.raises(ContractUndecided, match="no column"):
        gate.contract(both, gate.atom("ds:columnDeny", "isNoneOf", "STRA\N{LATIN CAPITAL LETTER SHARP S}E"))


def test_each_permission_becomes_its_own_contract() -> None:
    one = gate.agreement(gate.atom("ds:columnAllow", "eq", "id"))
    both = replace(
        one, permissions=(*one.permissions, Rule(expand("ds:stream"), (gate.atom("ds:columnDeny", "isNoneOf", "id"),)))
    )
    first, second = compiler.compile_contracts(both, SCHEMA)
    assert (first.columns, first.permission) == (("id",), "/permission/0")
    assert "id" not in second.columns
    assert second.permission == "/permission/1"
    assert (first.actions, second.actions) == ((expand("ds:query"),), (expand("ds:stream"),))


COUNTED = [gate.atom("ds:minGroupSize", "gteq", "10"), gate.atom("ds:dimension/age", "eq", "10")]


@pytest.mark.parametrize(
    ("other", "same"),
    [
        (COUNTED, True),
        ([*COUNTED, gate.atom("odrl:purpose", "eq", "dpv:Marketing")], True),
        ([COUNTED[0], gate.atom("ds:dimension/age", "eq", "7")], False),
        ([COUNTED[0], gate.atom("ds:dimension/country", "eq", "exact")], False),
        ([*COUNTED, gate.atom("ds:dimension/country", "eq", "exact")], False),
        ([gate.atom("ds:minGroupSize", "gteq", "20"), COUNTED[1]], False),
        ([*COUNTED, gate.atom("ds:entityKey", "eq", "id")], False),
        ([*COUNTED, gate.atom("ds:row/country", "eq", "DE")], False),
        ([*COUNTED, gate.atom("ds:measure/price", "eq", "0..100")], False),
        ([gate.atom("ds:columnAllow", "eq", "age")], True),
        ([gate.atom("ds:columnAllow", "eq", "age"), gate.atom("ds:row/country", "eq", "DE")], False),
        ([gate.atom("ds:epsilonBudget", "lteq", "1"), gate.atom("ds:row/country", "eq", "DE")], True),
        ([gate.atom("ds:epsilonBudget", "lteq", "1"), gate.atom("ds:dimension/age", "eq", "7")], True),
    ],
)
def test_the_exact_aggregates_of_a_policy_count_the_same_groups(other: list[Constraint], same: bool) -> None:
    one = gate.agreement(*COUNTED)
    both = replace(one, permissions=(*one.permissions, Rule(expand("ds:query"), tuple(other))))
    found = [problem for problem in lint.lint(both, SCHEMA) if problem.level == "error"]
    assert [problem.code for problem in found] == ([] if same else ["grids_differ"])
    if same:
        assert len(compiler.compile_contracts(both, SCHEMA)) == 2
    else:
        with pytest.raises(ContractUndecided, match=r"/permission/1: it (counts other groups|gives other rows)"):
            compiler.compile_contracts(both, SCHEMA)


@pytest.mark.parametrize("text", ["SELECT FROM WHERE (", "monthly-report", "SELECT 1; SELECT 2"])
def test_lint_names_a_template_that_cannot_be_read(text: str) -> None:
    found = lint.lint(gate.agreement(gate.atom("ds:template", "isAnyOf", "SELECT 1", text)))
    assert [problem.code for problem in found] == ["template_unreadable"]


def test_lint_names_all_columns_that_the_table_lacks() -> None:
    filters = gate.atom("ds:row/contry", "eq", "DE"), gate.atom("ds:columnAllow", "isAnyOf", "age", "naem", "zpi")
    found = lint.lint(gate.agreement(*filters), SCHEMA)
    assert [one.message.partition(";")[0] for one in found if one.level == "error"] == [
        "the table has no column contry", "the table has no column naem, zpi",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "code"),
    [
        (("gteq", "18"), ("lt", "10"), ["no_rows"]),
        (("gteq", "18"), ("lt", "18"), ["no_rows"]),
        (("gteq", "18"), ("lteq", "18"), []),
        (("gt", "9"), ("lt", "10"), []),
        (("gt", "b"), ("lt", "a"), []),
    ],
)
def test_lint_warns_of_a_row_filter_that_no_number_passes(
    low: tuple[str, str], high: tuple[str, str], code: list[str]
) -> None:
    found = lint.lint(gate.agreement(*(gate.atom("ds:row/age", *bound) for bound in (low, high))))
    assert [one.code for one in found if one.level == "warning"] == code


def test_lint_warns_of_a_column_that_is_shown_and_hidden() -> None:
    allow, deny = gate.atom("ds:columnAllow", "isAnyOf", "age", "name"), gate.atom("ds:columnDeny", "isNoneOf", "NAME")
    found = lint.lint(gate.agreement(allow, deny))
    assert [(one.level, one.code, one.message[:5]) for one in found] == [("warning", "shown_and_hidden", "name ")]


def test_lint_warns_of_what_only_an_absent_source_could_say() -> None:
    member, role = gate.atom("ds:membership", "eq", "active"), gate.atom("ds:role", "isAnyOf", "research")
    found = lint.lint(gate.agreement(member, role), absent={"register": "which is not here"})
    assert [(one.level, one.code) for one in found] == [("warning", "source_absent")]
    assert "ds:membership comes from the operator" in found[0].message


def test_one_undecided_permission_refuses_them_all() -> None:
    one = gate.agreement()
    both = replace(
        one, permissions=(*one.permissions, Rule(expand("ds:stream"), (gate.atom("ds:moonPhase", "eq", "1"),)))
    )
    with pytest.raises(ContractUndecided, match="/permission/1/constraint/0 ds:moonPhase"):
        compiler.compile_contracts(both, SCHEMA)
    partial = compiler.compile_contract(both, SCHEMA, permission=1, partial=True)
    assert partial.residual == ("/permission/1/constraint/0 ds:moonPhase eq",)


def test_a_policy_without_permissions_gives_nothing() -> None:
    with pytest.raises(ContractUndecided, match="permits nothing"):
        compiler.compile_contracts(replace(gate.agreement(), permissions=()), SCHEMA)


def test_elapsed_time_of_an_offer_needs_a_moment_of_conclusion() -> None:
    offer = replace(gate.agreement(gate.atom("odrl:elapsedTime", "lteq", "P1D")), kind=Kind.OFFER, timestamp="")
    with pytest.raises(ContractUndecided, match="agreement's timestamp"):
        compiler.compile_contracts(offer, SCHEMA)
    (made,) = compiler.compile_contracts(offer, SCHEMA, concluded=1000.0)
    assert made.not_after == 1000.0 + 86_400


def test_a_timestamp_without_a_zone_is_refused() -> None:
    with pytest.raises(ContractUndecided, match="with its zone"):
        compiler.compile_contracts(replace(gate.agreement(), timestamp="2026-01-01T00:00:00"), SCHEMA)


def test_the_fingerprint_follows_names_types_and_order() -> None:
    def with_columns(*pairs: tuple[str, str]) -> str:
        return compiler.fingerprint(TableSchema(tuple(Column(*pair) for pair in pairs)))

    a, b = ("a", "INTEGER"), ("b", "VARCHAR")
    prints = [
        with_columns(a, b),
        with_columns(b, a),
        with_columns(a),
        with_columns(a, ("b", "BIGINT")),
        with_columns(a, ("c", "VARCHAR")),
    ]
    assert len(set(prints)) == len(prints)
    assert with_columns(a, b) == with_columns(a, b)


NAMED: list[Constraint] = [
    gate.atom("ds:row/country", "eq", "DE"),
    gate.atom("ds:columnDeny", "isNoneOf", "name"),
    gate.atom("ds:rowQuota", "lteq", "10"),
    gate.atom("odrl:purpose", "isAnyOf", "https://w3id.org/dpv#Marketing"),
    gate.atom("odrl:dateTime", "lteq", "2027-01-01T00:00:00Z"),
    gate.atom("ds:minGroupSize", "gteq", "10"),
    gate.atom("ds:dimension/country", "eq", "exact"),
    gate.atom("ds:membership", "eq", "active"),
    gate.atom("ds:joinWith", "isAnyOf", "urn:a"),
]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(NAMED), unique=True), st.sampled_from(NAMED))
def test_one_more_constraint_never_widens_a_contract(constraints: list[Atom], more: Atom) -> None:
    try:
        less_said = compiler.compile_contract(gate.agreement(*constraints), SCHEMA, permission=0)
        more_said = compiler.compile_contract(gate.agreement(*constraints, more), SCHEMA, permission=0)
    except ContractUndecided:
        return
    if less_said.grid is None:  # a further dimension of a grid is the one thing that adds a view
        assert set(more_said.columns) <= set(less_said.columns)
    assert (more_said.not_after or math.inf) <= (less_said.not_after or math.inf)
    assert (more_said.limits.rows or math.inf) <= (less_said.limits.rows or math.inf)
    assert not (less_said.grid and not more_said.grid)
    assert not (less_said.row_filter and not more_said.row_filter)
    assert not (less_said.purposes and not set(more_said.purposes) <= set(less_said.purposes))
    assert set(less_said.requires) <= set(more_said.requires)


@settings(max_examples=40, deadline=None)
@given(st.permutations(NAMED[:5]))
def test_the_order_of_constraints_does_not_matter(constraints: list[Atom]) -> None:
    made = compiler.compile_contract(gate.agreement(*constraints), SCHEMA, permission=0)
    again = compiler.compile_contract(gate.agreement(*NAMED[:5]), SCHEMA, permission=0)
    unnamed = {"reasons": (), "requires": ()}
    assert replace(made, **unnamed) == replace(again, **unnamed)
