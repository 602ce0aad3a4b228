"""Whether a contract covers a request: action, purpose, time; each refusal names the rule and what is agreed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from policies.contracts import coverage
from policies.contracts.contract import DataContract
from policies.errors import QueryRefused
from policies.vocabulary.terms import expand
from tests.support import gate

SCHEMA = gate.schema(id="BIGINT", country="VARCHAR")
RESEARCH, MARKETING = expand("dpv:ScientificResearch"), expand("dpv:Marketing")
QUERY, STREAM = expand("ds:query"), expand("ds:stream")


def _contract(*constraints: object) -> DataContract:
    return gate.contract(SCHEMA, *constraints)  # type: ignore[arg-type]  # rows of a table


FOR_RESEARCH = _contract(gate.atom("ds:membership", "eq", "active"), gate.atom("odrl:purpose", "isAnyOf", RESEARCH))
NOT_MARKETING = _contract(gate.atom("odrl:purpose", "isNoneOf", MARKETING))


@pytest.mark.parametrize(
    ("contract", "purpose", "says"),
    [
        (FOR_RESEARCH, RESEARCH, None),
        (FOR_RESEARCH, MARKETING, "purpose dpv:Marketing is not agreed; agreed: dpv:ScientificResearch"),
        (FOR_RESEARCH, "ScientificResearch", "is not agreed (did you mean dpv:ScientificResearch?); agreed: dpv:Sci"),
        (FOR_RESEARCH, "dpv:SientificResearch", "is not agreed (did you mean dpv:ScientificResearch?); agreed: dpv:S"),
        (FOR_RESEARCH, "urn:x:ScientificResearch", "purpose urn:x:ScientificResearch is not agreed; agreed"),
        (FOR_RESEARCH, "Research" * 30, "is not agreed; agreed"),
        (FOR_RESEARCH, None, "the request names no purpose; agreed: dpv:ScientificResearch"),
        (FOR_RESEARCH, "", "the request names no purpose"),
        (FOR_RESEARCH, "dpv:ScientificResearch#", "is not agreed"),
        (NOT_MARKETING, RESEARCH, None),
        (NOT_MARKETING, MARKETING, "any but dpv:Marketing"),
        (NOT_MARKETING, None, "names no purpose"),
        (NOT_MARKETING, "", "names no purpose"),
        (_contract(), None, None),
        (_contract(), MARKETING, None),
    ],
)
def test_purpose_is_agreed_or_the_agreed_ones_are_named(
    contract: DataContract, purpose: str | None, says: str | None
) -> None:
    if says is None:
        coverage.check_purpose(contract, purpose)
        return
    with pytest.raises(QueryRefused) as refused:
        coverage.check_purpose(contract, purpose)
    assert says in str(refused.value)
    assert refused.value.code == "purpose_not_agreed"
    assert refused.value.rule == (
        "/permission/0/constraint/1" if contract is FOR_RESEARCH else "/permission/0/constraint/0"
    )


def test_action_is_agreed_or_refused_by_name() -> None:
    coverage.check_action(FOR_RESEARCH, QUERY)
    with pytest.raises(QueryRefused, match="ds:stream is not agreed; agreed: ds:query") as refused:
        coverage.check_action(FOR_RESEARCH, STREAM)
    assert (refused.value.code, refused.value.rule) == ("action_not_agreed", "/permission/0")


def test_a_contract_with_anything_left_open_serves_nothing() -> None:
    with pytest.raises(QueryRefused) as refused:
        coverage.check_action(replace(FOR_RESEARCH, residual=("/permission/0/constraint/3 ds:x eq",)), QUERY)
    assert (refused.value.code, refused.value.rule) == ("contract_undecided", "/permission/0/constraint/3")


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (0.0, "not in force before 1970-01-01T00:01:40"),
        (99.9, "not in force before"),
        (100.0, None),
        (200.0, None),
        (200.1, "ended 1970-01-01T00:03:20"),
    ],
)
def test_time_is_within_the_agreement_or_its_ends_are_named(now: float, says: str | None) -> None:
    contract = replace(FOR_RESEARCH, not_before=100.0, not_after=200.0)
    if says is None:
        coverage.check_time(contract, now)
        return
    with pytest.raises(QueryRefused, match=says) as refused:
        coverage.check_time(contract, now)
    assert refused.value.code == "not_in_force"


def test_an_open_end_never_comes_and_a_far_one_can_be_shown() -> None:
    coverage.check_time(FOR_RESEARCH, 1e18)
    with pytest.raises(QueryRefused, match="the end of time"):
        coverage.check_time(replace(FOR_RESEARCH, not_before=1e30), 0.0)


def test_the_request_selects_the_permissions_that_cover_it() -> None:
    stream = replace(_contract(), actions=(STREAM,), permission="/permission/1")
    marketing = replace(_contract(gate.atom("odrl:purpose", "eq", MARKETING)), permission="/permission/2")
    all_three = [FOR_RESEARCH, stream, marketing]
    assert coverage.find_covering(all_three, action=QUERY, purpose=RESEARCH) == [FOR_RESEARCH]
    assert coverage.find_covering(all_three, action=STREAM, purpose=None) == [stream]
    assert coverage.find_covering(all_three, action=QUERY, purpose=MARKETING) == [marketing]
    both = [replace(stream, permission="/permission/3"), stream]
    assert coverage.find_covering(both, action=STREAM, purpose=None) == both


def test_the_refusal_of_the_closest_permission_is_told() -> None:
    stream = replace(_contract(), actions=(STREAM,))
    with pytest.raises(QueryRefused) as refused:
        coverage.find_covering([stream, FOR_RESEARCH], action=QUERY, purpose=MARKETING)
    assert refused.value.code == "purpose_not_agreed"
    late = replace(FOR_RESEARCH, not_after=5.0)
    with pytest.raises(QueryRefused) as refused:
        coverage.find_covering([stream, late], action=QUERY, purpose=RESEARCH, now=9.0)
    assert refused.value.code == "not_in_force"
    with pytest.raises(QueryRefused, match="negotiate one"):
        coverage.find_covering([], action=QUERY, purpose=None)
