"""Hostile input is read or refused with a reason, and whatever is read passes every later step."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from policies.authoring import convert, row_filter
from policies.errors import PolicyError
from policies.evaluation import evaluate
from policies.evaluation.facts import Facts
from policies.model import Policy
from policies.odrl import reader as policy_reader
from policies.review import diff, explain, lint, report
from policies.vocabulary import Phase, column_term, ds, odrl

QUICK = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])

TERMS = [
    "use",
    "odrl:read",
    "ds:query",
    "ds:mask",
    "ds:row/a",
    "ds:row/",
    "dateTime",
    "ds:column",
    "count",
    "x",
    "a:b",
    "",
]
VALUES = ["10", "", "2027-01-01", "P1D", "true", "\x00", "é" * 40, "{", "ds:region/EEA", "NaN", "1e9", "\udfff"]
KEYS = [
    "@id",
    "@type",
    "@value",
    "@list",
    "@set",
    "@graph",
    "@context",
    "permission",
    "prohibition",
    "obligation",
    "duty",
    "constraint",
    "action",
    "target",
    "assignee",
    "leftOperand",
    "operator",
    "rightOperand",
    "and",
    "or",
    "xone",
    "profile",
    "odrl:conflict",
    "odrl:permission",
    "refinement",
    "timestamp",
    "uid",
]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from([*TERMS, *VALUES]), st.text(max_size=5)
)
anything = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(KEYS), inner, max_size=4)),
    max_leaves=12,
)


@st.composite
def nearly(draw: st.DrawFn) -> dict[str, Any]:
    """Something with the shape of an offer, and anything at all in its places."""

    def atom() -> Any:
        return {
            "leftOperand": draw(st.sampled_from(TERMS)),
            "operator": draw(st.sampled_from(["eq", "lteq", "isAnyOf", "isPartOf", "like", "odrl:gt"])),
            "rightOperand": draw(
                st.one_of(st.sampled_from(VALUES), st.lists(st.sampled_from(VALUES), max_size=3), anything)
            ),
        }

    def rule() -> Any:
        found: dict[str, Any] = {"action": draw(st.sampled_from(TERMS))}
        if draw(st.booleans()):
            found["constraint"] = [draw(st.one_of(st.builds(atom), anything)) for _ in range(draw(st.integers(0, 2)))]
        if draw(st.booleans()):
            found["duty"] = [{"action": draw(st.sampled_from(TERMS)), "constraint": [atom()]}]
        return found

    return {
        "@id": draw(st.sampled_from(["urn:x", "", "a b"])),
        "@type": "Offer",
        "permission": [rule() for _ in range(draw(st.integers(0, 2)))],
        "prohibition": [rule() for _ in range(draw(st.integers(0, 1)))],
        "obligation": [{"action": draw(st.sampled_from(TERMS)), "constraint": [atom()]}],
    }


@QUICK
@given(st.one_of(anything, nearly()))
@example({"@context": [[]]})
@example({"@type": "Offer", "permission": {"@set": [{"@list": []}]}})
def test_any_json_is_read_or_refused(wire: Any) -> None:
    refused = refusal(policy_reader.read, wire)
    if refused is None:
        _handle(policy_reader.read(wire))
    else:
        assert len(refused) > 20


def refusal(reader: Callable[[Any], object], text: Any) -> str | None:
    """Why it was refused, or None where it was read."""
    try:
        reader(text)
    except PolicyError as refused:
        return str(refused)
    return None


def _handle(policy: Policy) -> None:
    """Everything that may be done with a policy that was read."""
    digest = policy_reader.digest(policy)
    for action in (odrl("use"), ds("query"), ""):
        for phase in Phase:
            arguments = {"action": action, "phase": phase, "now": 1.8e9}
            tried = evaluate.as_granting_set(policy)
            made = evaluate.evaluate(tried, Facts.of({"ds:row/a": 1}), **arguments)  # type: ignore[arg-type]  # a table
            json.dumps(made.to_json())
            assert explain.decision(made)
    assert len(explain.sentences(policy)) == len(report.enforceability(policy))
    lint.lint(policy)
    assert diff.diff(policy, policy, now=1.8e9).same
    if policy.id and (policy.permissions or policy.prohibitions):
        assert policy_reader.digest(policy_reader.read(policy_reader.write(policy))) == digest
        text = convert.write_form(convert.from_policy(policy))
        if ":" in policy.id:
            assert policy_reader.digest(convert.to_policy(convert.read_form(text))) == digest


@QUICK
@given(st.text(max_size=60))
def test_any_text_is_a_policy_a_form_a_filter_or_refused(text: str) -> None:
    for reader in (policy_reader.read, convert.read_form, row_filter.parse):
        assert refusal(reader, text) != ""


FORM = convert.template("health-data-permit") + convert.template("clean-room").partition("\n")[2]


@QUICK
@given(st.integers(0, len(FORM)), st.integers(0, 12), st.text(alphabet="abn:{}[]#&*!|>'\",\n -0189", max_size=4))
def test_a_form_with_a_slip_is_read_or_refused_and_what_is_read_is_a_policy(at: int, cut: int, put: str) -> None:
    text = FORM[:at] + put + FORM[at + cut :]
    refused = refusal(convert.read_form, text)
    if refused is not None:
        assert "expected" in refused
        return
    form = convert.read_form(text)
    policy = convert.to_policy(form)
    assert policy_reader.rules_equal(convert.to_policy(convert.read_form(convert.write_form(form))), policy)


@QUICK
@given(
    st.text(min_size=1, max_size=12), st.sampled_from(["eq", "neq", "isAnyOf", "isNoneOf", "lt"]), st.text(max_size=12)
)
def test_any_column_and_value_survive_the_row_filter_and_the_form(column: str, operator: str, value: str) -> None:
    many = operator.startswith("is")
    wire = {
        "@id": "urn:hanse:offer:x",
        "@type": "Offer",
        "permission": [
            {
                "action": "ds:query",
                "constraint": [
                    {
                        "leftOperand": column_term("row", column),
                        "operator": operator,
                        "rightOperand": [value] if many else value,
                    }
                ],
            }
        ],
    }
    policy = policy_reader.read(wire)
    text = convert.write_form(convert.from_policy(policy))
    assert policy_reader.rules_equal(convert.to_policy(convert.read_form(text)), policy), text
