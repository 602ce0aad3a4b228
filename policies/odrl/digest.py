"""The normal form of a policy and its digest: equal for every spelling and order of the same rules.

Ids, parties, target and timestamp are left out; values are compared by their type.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from policies import vocabulary
from policies.evaluation import values
from policies.model import Atom, Connective, Constraint, Duty, Literal, Policy, Rule


def digest(policy: Policy) -> str:
    """Return `sha256:<hex>` over the rules of the policy.

    Ids, parties, target, timestamp and the name of this project's own profile are left out, so an agreement has the
    digest of the offer that it came from.
    """
    return "sha256:" + hashlib.sha256(json.dumps(_normalise_policy(policy)).encode()).hexdigest()


def rules_equal(a: Policy, b: Policy) -> bool:
    """Return whether two policies have the same rules, for example an agreement and its offer."""
    return bool(_normalise_policy(a) == _normalise_policy(b))


def _normalise_policy(policy: Policy) -> list[Any]:
    foreign = sorted(set(policy.profile.split()) - vocabulary.PROFILES)
    # Without both kinds of rule no conflict is possible, and the strategy has no effect.
    conflict = policy.conflict.value if policy.permissions and policy.prohibitions else ""
    return [
        "hanse-policy-1",
        foreign,
        conflict,
        _sort_unique(_normalise_rule(rule) for rule in policy.permissions),
        _sort_unique(_normalise_rule(rule) for rule in policy.prohibitions),
        _sort_unique(_normalise_rule(rule) for rule in policy.obligations),
    ]


def _normalise_rule(rule: Rule | Duty) -> list[Any]:
    duties = _sort_unique(_normalise_rule(duty) for duty in rule.duties) if isinstance(rule, Rule) else []
    action = vocabulary.resolve_alias(rule.action)
    return [action, _flatten_conjunction(rule.constraints), duties]


def _flatten_conjunction(constraints: Iterable[Constraint]) -> list[Any]:
    """The members of an `and`, with nested `and` groups flattened."""
    found: list[Any] = []
    for one in map(_normalise_constraint, constraints):
        found.extend(one[1] if one[0] == "and" else [one])
    return _sort_unique(found)


def _normalise_constraint(constraint: Constraint) -> list[Any]:
    if isinstance(constraint, Atom):
        return _normalise_atom(constraint)
    if constraint.connective is Connective.AND:
        members = _flatten_conjunction(constraint.members)
        return members[0] if len(members) == 1 else ["and", members]
    members = [_normalise_constraint(member) for member in constraint.members]
    if constraint.connective is Connective.OR:
        members = _sort_unique(inner for one in members for inner in (one[1] if one[0] == "or" else [one]))
    else:
        members = sorted(members, key=json.dumps)  # in xone a repeated member changes the meaning
    return members[0] if len(members) == 1 else [constraint.connective.value, members]


def _normalise_atom(atom: Atom) -> list[Any]:
    operand = vocabulary.operand(atom.left)
    return [
        "atom",
        atom.left,
        atom.operator,
        _sort_unique(_normalise_value(literal, operand) for literal in atom.right),
    ]


def _normalise_value(literal: Literal, operand: vocabulary.Operand | None) -> str:
    if operand is None:
        return f"{literal.text}^^{literal.datatype}"
    try:
        return values.canonical_text(operand.type, literal.text, literal.datatype, operand.levels)
    except ValueError:  # unreadable values are refused elsewhere; here they only need to differ
        return f"{literal.text}^^{literal.datatype}"


def _sort_unique(items: Iterable[Any]) -> list[Any]:
    found = {json.dumps(item): item for item in items}
    return [found[key] for key in sorted(found)]
