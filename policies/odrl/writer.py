"""Writes a policy as JSON-LD that is valid against the DSP 2025-1 schema.

The protocol's context defines few names, so ODRL terms are written with their prefix and all others as full IRIs. Reads
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeAlias

from policies.errors import PolicyUnreadable
from policies.model import ODRL, XSD, ConflictStrategy, Constraint, Duty, Group, Kind, Literal, Policy, Rule

Json: TypeAlias = dict[str, Any]


def write(policy: Policy, *, in_message: bool = False, in_catalog: bool = False) -> Json:
    """Return the policy as JSON-LD for the wire (DSP 2025-1, section 5).

    Offers in a catalogue carry no target (`in_catalog`); offers in a message must (`in_message`); agreements carry
    target, parties and timestamp.

    Raises: PolicyUnreadable naming the missing part.
    """
    _refuse_incomplete(policy, in_message=in_message)
    wire: Json = {"@id": policy.id, "@type": policy.kind.value}
    profiles = policy.profile.split()
    if profiles:
        wire["profile"] = profiles[0] if len(profiles) == 1 else profiles
    for name in ("target", "assigner", "assignee", "timestamp"):
        value = getattr(policy, name)
        if value and not (in_catalog and policy.kind is Kind.OFFER):
            wire[name] = value
    if policy.prohibitions or policy.conflict is not ConflictStrategy.PROHIBIT:
        wire["odrl:conflict"] = {"@id": f"odrl:{policy.conflict.value}"}
    lists: tuple[tuple[str, Iterable[Rule | Duty]], ...] = (
        ("permission", policy.permissions),
        ("prohibition", policy.prohibitions),
        ("obligation", policy.obligations),
    )
    for name, rules in lists:
        written = [_write_rule(rule) for rule in rules]
        if written:
            wire[name] = written
    return wire


def _refuse_incomplete(policy: Policy, *, in_message: bool) -> None:
    needed = {"@id": policy.id}
    if policy.kind is Kind.AGREEMENT:
        needed |= {
            "target": policy.target,
            "assigner": policy.assigner,
            "assignee": policy.assignee,
            "timestamp": policy.timestamp,
        }
    elif in_message:
        needed["target"] = policy.target
    missing = [name for name, value in needed.items() if not value]
    if missing:
        raise PolicyUnreadable(f"expected {', '.join(missing)} in an {policy.kind}, got none; set it before sending")
    if not policy.permissions and not policy.prohibitions:
        raise PolicyUnreadable("expected at least one permission or prohibition; add a rule")


def _write_rule(rule: Rule | Duty) -> Json:
    wire: Json = {"action": _write_name(rule.action)}
    if rule.constraints:
        wire["constraint"] = [_write_constraint(constraint) for constraint in rule.constraints]
    if isinstance(rule, Rule) and rule.duties:
        wire["duty"] = [_write_rule(duty) for duty in rule.duties]
    return wire


def _write_constraint(constraint: Constraint) -> Json:
    if isinstance(constraint, Group):
        return {constraint.connective.value: [_write_constraint(member) for member in constraint.members]}
    right = [_write_literal(literal) for literal in constraint.right]
    return {
        "leftOperand": _write_name(constraint.left),
        "operator": constraint.operator,
        "rightOperand": right if constraint.many or len(right) != 1 else right[0],
    }


def _write_name(iri: str) -> str:
    """`use` is written bare, ODRL terms with prefix, all others in full: the spellings that the context expands."""
    if iri == ODRL + "use":
        return "use"
    return "odrl:" + iri[len(ODRL) :] if iri.startswith(ODRL) else iri


def _write_literal(literal: Literal) -> str | Json:
    if not literal.datatype:
        return literal.text
    datatype = literal.datatype
    return {"@value": literal.text, "@type": "xsd:" + datatype[len(XSD) :] if datatype.startswith(XSD) else datatype}
