"""Terms in groups: each ready-made offer, permissions with different conditions, names of times and purposes."""

from __future__ import annotations

import pytest

from policies.authoring import convert
from policies.review import report
from policies.review.grouped_terms import group_terms, plain_time


def texts(yaml: str) -> dict[str, list[str]]:
    groups = group_terms(convert.to_policy(convert.read_form(yaml)))
    return {group.kind: [term.text for term in group.terms] for group in groups}


def test_terms_read_like_a_contract() -> None:
    assert texts(convert.template("ai-training")) == {
        "may": ["query the data", "stream the data", "train models on the data"],
        "only_if": [
            "the party's membership in the data space is active",
            "the declared purpose is scientific research",
            "the time of use is no later than 31 December 2028 +01:00",
        ],
        "limits": ["person_id replaced by a keyed hash in every answer"],
        "never": [
            "train generative models on the data",
            "release weights of models trained on the data",
            "distribute the data to third parties",
        ],
        "must": [
            "register every model trained on the data",
            "delete every model trained on the data whenever access is revoked",
            "delete all copies within 30 days after the agreement ends",
        ],
    }


@pytest.mark.parametrize("name", convert.TEMPLATES)
def test_no_term_is_lost_and_each_keeps_what_it_rests_on(name: str) -> None:
    policy = convert.to_policy(convert.read_form(convert.template(name)))
    shown = [term for group in group_terms(policy) for term in group.terms]
    lines = report.enforceability(policy)
    assert {(term.tier, term.enforced_by) for term in shown} == {(line.tier, line.enforced_by) for line in lines}
    repeated = (len(policy.permissions) - 1) * (
        len(policy.permissions[0].constraints) + len(policy.permissions[0].duties)
    )
    assert len(shown) == len(lines) - repeated


def test_permissions_with_other_conditions_stand_apart() -> None:
    purpose = {"leftOperand": "odrl:purpose", "operator": "eq", "rightOperand": "dpv:ScientificResearch"}
    rules = [{"action": "ds:query", "constraint": [purpose]}, {"action": "ds:stream"}]
    policy = convert.reader.read({"@type": "Offer", "@id": "urn:x:o", "target": "urn:x:d", "permission": rules})
    found = [(group.kind, len(group.terms)) for group in group_terms(policy)]
    assert found == [("may", 1), ("only_if", 1), ("may", 1)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2028-12-31", "31 December 2028"),
        ("2028-12-31T23:59:59Z", "31 December 2028 UTC"),
        ("2028-02-01T14:30:00+01:00", "1 February 2028, 14:30 +01:00"),
        ("2028-02-01T14:30:00", "1 February 2028, 14:30"),
        ("2028-13-31", "2028-13-31"),
        ("soon", "soon"),
    ],
)
def test_times_are_written_as_people_write_them(text: str, said: str) -> None:
    assert plain_time(text) == said
