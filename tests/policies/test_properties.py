"""Properties of usage-policies, section 10, over random policies."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies import vocabulary
from policies.authoring import convert
from policies.evaluation import evaluate, values
from policies.evaluation.facts import Facts
from policies.model import ConflictStrategy, Group, Kind, Policy, Rule
from policies.odrl import reader
from policies.vocabulary import Phase, ds, odrl
from tests.support import dsp_schemas
from tests.support import policy_strategies as random

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
DEEP = settings(QUICK, max_examples=400)
PHASES = st.sampled_from([Phase.CATALOGUE, Phase.NEGOTIATION, Phase.TRANSFER, Phase.QUERY, Phase.BATCH])
FEW = st.sampled_from(random.FEW_USES)
MOMENTS = st.sampled_from([1.7e9, 1.8e9, 1.83e9, 1.9e9])
ACTIONS = st.sampled_from([*random.USES, odrl("sell"), ds("mining")])
CONFLICTS = st.sampled_from(list(ConflictStrategy))


@st.composite
def spelled(draw: st.DrawFn) -> tuple[Policy, dict[str, Any]]:
    policy = draw(random.policies(conflict=CONFLICTS))
    return policy, random.Spelling(draw).policy(reader.write(policy, in_message=True))


@QUICK
@given(spelled())
def test_every_spelling_of_a_policy_has_one_digest(pair: tuple[Policy, dict[str, Any]]) -> None:
    policy, wire = pair
    read = reader.read(wire)
    assert reader.digest(read) == reader.digest(policy)
    assert reader.rules_equal(read, policy)
    assert reader.read([wire]) == read


def _less(policy: Policy) -> Iterator[Policy]:
    """The policy without one of its parts, for each part that says something of its own."""
    for name in ("permissions", "prohibitions", "obligations"):
        rules = getattr(policy, name)
        for index, rule in enumerate(rules):
            rest = (*rules[:index], *rules[index + 1 :])
            yield replace(policy, **{name: rest})
            for part in ("constraints", "duties"):
                for dropped in _without_one(getattr(rule, part, ())):
                    changed = replace(rule, **{part: dropped})
                    yield replace(policy, **{name: (*rules[:index], changed, *rules[index + 1 :])})


def _without_one(parts: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    for index, part in enumerate(parts):
        if not isinstance(part, Group):  # what a group says may stand beside it too
            yield (*parts[:index], *parts[index + 1 :])


def _spoken(policy: Policy) -> Any:
    """All that a policy says, as sets: a second way of telling whether two mean the same."""

    def rule(one: Any) -> Any:
        action = vocabulary.ACTION_ALIASES.get(one.action, one.action)
        duties = frozenset(map(rule, getattr(one, "duties", ())))
        return action, frozenset(map(constraint, one.constraints)), duties

    def constraint(one: Any) -> Any:
        if isinstance(one, Group):
            return one.connective, tuple(sorted(map(repr, map(constraint, one.members))))
        operand = vocabulary.operand(one.left)
        assert operand is not None
        canonical = (values.canonical_text(operand.type, v.text, v.datatype, operand.levels) for v in one.right)
        return one.left, one.operator, frozenset(canonical)

    kinds = (policy.permissions, policy.prohibitions, policy.obligations)
    return tuple(frozenset(map(rule, rules)) for rules in kinds)


@DEEP
@given(random.policies(conflict=CONFLICTS))
def test_a_policy_without_one_of_its_parts_has_another_digest(policy: Policy) -> None:
    for less in _less(policy):
        grouped = any(isinstance(one, Group) for rule in _all_rules(policy) for one in rule.constraints)
        if _spoken(less) != _spoken(policy) and not grouped:
            assert reader.digest(less) != reader.digest(policy)


def _all_rules(policy: Policy) -> tuple[Any, ...]:
    return (*policy.permissions, *policy.prohibitions, *policy.obligations)


@QUICK
@given(random.policies(conflict=CONFLICTS))
def test_what_is_written_reads_back_and_fits_the_published_schema(policy: Policy) -> None:
    message = reader.write(policy, in_message=True)
    dsp_schemas.validate("negotiation/contract-offer-message-schema.json", dsp_schemas.offer_message(message))
    assert reader.read(message) == policy
    catalog = reader.write(policy, in_catalog=True)
    assert "target" not in catalog
    dsp_schemas.validate_definition("Offer", catalog)
    agreement = replace(
        policy,
        kind=Kind.AGREEMENT,
        assigner="did:web:p.example",
        assignee="did:web:c.example",
        timestamp="2027-01-01T00:00:00Z",
    )
    dsp_schemas.validate_definition("Agreement", reader.write(agreement))
    assert reader.digest(agreement) == reader.digest(policy)


@settings(QUICK, max_examples=40)
@given(random.policies(conflict=CONFLICTS))
def test_an_independent_json_ld_reader_finds_the_same_policy_in_a_message(policy: Policy) -> None:
    message = dsp_schemas.offer_message(reader.write(policy, in_message=True))
    assert reader.digest(reader.read(dsp_schemas.through_rdf(message, "offer"))) == reader.digest(policy)


def test_an_independent_json_ld_reader_finds_the_parties_of_an_agreement() -> None:
    policy = replace(
        convert.to_policy(convert.read_form(convert.template("health-data-permit"))),
        kind=Kind.AGREEMENT,
        assigner="did:web:p.example",
        assignee="did:web:c.example",
        timestamp="2027-01-01T00:00:00Z",
    )
    message = {
        "@type": "ContractAgreementMessage",
        "providerPid": "urn:uuid:1",
        "consumerPid": "urn:uuid:2",
        "agreement": reader.write(policy),
    }
    read = reader.read(dsp_schemas.through_rdf(message, "agreement"))
    assert reader.rules_equal(read, policy)
    for name in ("kind", "id", "target", "assigner", "assignee", "timestamp", "profile"):
        assert getattr(read, name) == getattr(policy, name)


@QUICK
@given(random.policies())
def test_only_names_that_the_context_expands_are_written(policy: Policy) -> None:
    for name in _names(reader.write(policy, in_message=True)):
        assert name == "use" or name.startswith("odrl:") or "://" in name


def _names(node: Any) -> list[str]:
    if isinstance(node, list):
        return [name for one in node for name in _names(one)]
    if not isinstance(node, dict):
        return []
    own = [node[key] for key in ("action", "leftOperand") if key in node]
    return own + [name for key, value in node.items() if key != "rightOperand" for name in _names(value)]


@QUICK
@given(random.policies(conflict=CONFLICTS), st.randoms(use_true_random=False))
def test_order_never_matters_to_the_digest(policy: Policy, shuffle: Any) -> None:
    assert reader.digest(_shuffled(policy, shuffle)) == reader.digest(policy)


@DEEP
@given(random.few_policies(), random.few_facts(), FEW, PHASES, MOMENTS, st.randoms(use_true_random=False))
def test_order_never_matters_to_a_decision(
    policy: Policy, given_facts: dict[str, Any], action: str, phase: Phase, now: float, shuffle: Any
) -> None:
    facts = Facts.of(given_facts)
    a, b = (evaluate.as_granting_set(one) for one in (policy, _shuffled(policy, shuffle)))
    assert evaluate.permits(a, facts, action=action, phase=phase, now=now) == evaluate.permits(
        b, facts, action=action, phase=phase, now=now
    )


@QUICK
@given(random.policies(conflict=CONFLICTS), random.facts(), ACTIONS, PHASES, MOMENTS)
def test_the_explained_decision_is_the_plain_one(
    policy: Policy, given_facts: dict[str, Any], action: str, phase: Phase, now: float
) -> None:
    facts, tried = Facts.of(given_facts), evaluate.as_granting_set(policy)
    decision = evaluate.evaluate(tried, facts, action=action, phase=phase, now=now)
    assert decision.permitted == evaluate.permits(tried, facts, action=action, phase=phase, now=now)
    assert (decision.permission is not None) == decision.permitted
    assert decision.reasons
    again = evaluate.evaluate(replace(tried), facts, action=action, phase=phase, now=now)
    assert again.to_json() == decision.to_json()


@DEEP
@given(random.few_policies(), random.few_facts(), FEW, PHASES, MOMENTS)
def test_leaving_out_a_fact_never_permits(
    policy: Policy, given_facts: dict[str, Any], action: str, phase: Phase, now: float
) -> None:
    tried = evaluate.as_granting_set(policy)
    facts = Facts.of(given_facts)
    if evaluate.permits(tried, facts, action=action, phase=phase, now=now):
        return
    for key in facts:
        assert not evaluate.permits(tried, facts.without(key), action=action, phase=phase, now=now), key


@DEEP
@given(random.few_policies(), random.few_constraints(), random.few_facts(), FEW, PHASES, MOMENTS)
def test_one_more_constraint_on_a_permission_never_permits(
    policy: Policy, extra: Any, given_facts: dict[str, Any], action: str, phase: Phase, now: float
) -> None:
    facts = Facts.of(given_facts)
    before = evaluate.permits(evaluate.as_granting_set(policy), facts, action=action, phase=phase, now=now)
    for index, rule in enumerate(policy.permissions):
        narrowed = replace(rule, constraints=(*rule.constraints, extra))
        permissions = (*policy.permissions[:index], narrowed, *policy.permissions[index + 1 :])
        tried = evaluate.as_granting_set(replace(policy, permissions=permissions))
        assert before or not evaluate.permits(tried, facts, action=action, phase=phase, now=now)


@DEEP
@given(random.few_policies(), random.few_rules(duty=False), random.few_facts(), FEW, MOMENTS)
def test_one_more_prohibition_never_permits(
    policy: Policy, extra: Rule, given_facts: dict[str, Any], action: str, now: float
) -> None:
    facts = Facts.of(given_facts)
    more = replace(policy, prohibitions=(*policy.prohibitions, extra))
    for phase in Phase:
        before = evaluate.permits(evaluate.as_granting_set(policy), facts, action=action, phase=phase, now=now)
        after = evaluate.permits(evaluate.as_granting_set(more), facts, action=action, phase=phase, now=now)
        assert before or not after


@DEEP
@given(random.policies(conflict=CONFLICTS))
def test_a_policy_survives_the_short_form(policy: Policy) -> None:
    form = convert.from_policy(policy)
    text = convert.write_form(form)
    read = convert.read_form(text)
    assert reader.rules_equal(convert.to_policy(read), policy), text
    assert convert.to_policy(read).target == policy.target
    assert convert.write_form(convert.from_policy(convert.to_policy(read))) == text


def _shuffled(policy: Policy, shuffle: Any) -> Policy:
    def mixed(items: tuple[Any, ...]) -> tuple[Any, ...]:
        listed = [_mixed(one, mixed) for one in items]
        shuffle.shuffle(listed)
        return tuple(listed)

    return replace(
        policy,
        permissions=mixed(policy.permissions),
        prohibitions=mixed(policy.prohibitions),
        obligations=mixed(policy.obligations),
    )


def _mixed(one: Any, mixed: Any) -> Any:
    if isinstance(one, Group):
        return replace(one, members=mixed(one.members))
    if isinstance(one, Rule):
        return replace(one, constraints=mixed(one.constraints), duties=mixed(one.duties))
    return replace(one, constraints=mixed(one.constraints)) if hasattr(one, "constraints") else one


@pytest.mark.parametrize("name", convert.TEMPLATES)
def test_every_template_survives_both_ways(name: str) -> None:
    form = convert.read_form(convert.template(name))
    policy = convert.to_policy(form)
    assert convert.from_policy(policy, decide=form.decide) == form
    assert convert.read_form(convert.write_form(form)) == form
    assert form.odrl is None
