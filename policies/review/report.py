"""What each rule rests on (technical, attested, declared, contractual), and which part of the system enforces it.

Shown to both sides before they sign. Unknown terms are listed as refused. Decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from policies import vocabulary
from policies.model import Atom, Constraint, Duty, Policy, Rule
from policies.review import phrases, unknown_terms
from policies.vocabulary import ENFORCERS, Tier, ds

REFUSED = "refused"
CONTRACT_ONLY = "the contract only: duties are followed up"
_WEAKEST = (REFUSED, Tier.CONTRACTUAL.value, Tier.DECLARED.value, Tier.ATTESTED.value, Tier.TECHNICAL.value)


@dataclass(frozen=True, slots=True)
class ReportLine:
    """One rule or term: its path, its tier (or `refused`), what enforces it, and its sentence."""

    path: str
    tier: str
    enforced_by: str
    text: str

    def to_json(self) -> dict[str, Any]:
        return {"path": self.path, "tier": self.tier, "enforcedBy": self.enforced_by, "text": self.text}


def enforceability(policy: Policy) -> list[ReportLine]:
    """Return one line for each rule and term, in the policy's order."""
    problems = {one.path.removesuffix("/action"): one.message for one in unknown_terms.find_unclear(policy)}
    lines = [ReportLine("/profile", REFUSED, "not enforced", problems["/profile"])] if "/profile" in problems else []
    for path, rule, place in unknown_terms.walk_rules(policy):
        lines.extend(_rule(rule, path, place, problems))
    return lines


def to_json(lines: list[ReportLine]) -> list[dict[str, Any]]:
    return [line.to_json() for line in lines]


def _rule(rule: Rule | Duty, path: str, place: str, problems: dict[str, str]) -> Iterator[ReportLine]:
    text = _SENTENCES[place](rule)
    if path in problems:
        yield ReportLine(path, REFUSED, "not enforced", f"{text} ({problems[path]})")
    else:
        action = vocabulary.ACTIONS[vocabulary.resolve_alias(rule.action)]
        yield ReportLine(path, action.tier.value, _describe_enforcer(action.enforced_by), text)
    if isinstance(rule, Rule):
        for index, constraint in enumerate(rule.constraints):
            yield _constraint(constraint, f"{path}/constraint/{index}", place, problems)
        return
    for index, constraint in enumerate(rule.constraints):
        refused = _weakest_tier(constraint, f"{path}/constraint/{index}", problems)
        if refused[0] == REFUSED:  # a duty's sentence includes its details; refused ones get a line
            yield ReportLine(f"{path}/constraint/{index}", *refused, phrases.constraint(constraint))


def _constraint(constraint: Constraint, path: str, place: str, problems: dict[str, str]) -> ReportLine:
    tier, enforced_by = _weakest_tier(constraint, path, problems)
    phrase = phrases.constraint(constraint)
    if place == "prohibition":
        return ReportLine(path, tier, enforced_by, f"This prohibition applies when {phrase}.")
    if is_about_answer(constraint):
        return ReportLine(path, tier, enforced_by, f"The owner's engine makes sure that {phrase}.")
    return ReportLine(path, tier, enforced_by, f"This holds only if {phrase}.")


def _weakest_tier(constraint: Constraint, path: str, problems: dict[str, str]) -> tuple[str, str]:
    """The weakest tier in a constraint, and what enforces its parts."""
    tiers: list[str] = []
    enforcers: list[str] = []
    for here, atom in unknown_terms.walk_constraint(constraint, path):
        operand = vocabulary.operand(atom.left)
        if here in problems or operand is None:
            return REFUSED, f"not enforced: {problems.get(here, 'unknown term')}"
        tiers.append(operand.tier.value)
        enforcers.append(_describe_enforcer(operand.enforced_by))
    return min(tiers, key=_WEAKEST.index), "; ".join(dict.fromkeys(enforcers))


def _describe_enforcer(enforcer: str) -> str:
    return ENFORCERS.get(enforcer, enforcer) if enforcer else CONTRACT_ONLY


def is_about_answer(constraint: Constraint) -> bool:
    """Whether the owner's engine enforces a constraint by itself, as it shapes each answer."""
    found = (vocabulary.operand(atom.left) for _, atom in unknown_terms.walk_constraint(constraint, ""))
    return all(operand is not None and operand.by_engine for operand in found)


def _permission(rule: Rule | Duty) -> str:
    return f"The party may {phrases.action(rule.action)}."


def _prohibition(rule: Rule | Duty) -> str:
    return f"The party must not {phrases.action(rule.action)}."


def _obligation(rule: Rule | Duty) -> str:
    return f"The party must {phrases.duty(Duty(rule.action, rule.constraints))}."


def _duty(rule: Rule | Duty) -> str:
    if rule.action == ds("mask"):
        details = {part.left: part for part in rule.constraints if isinstance(part, Atom)}
        return f"The owner's engine returns {phrases.mask(details)}."
    return f"Before use, the party must {phrases.duty(Duty(rule.action, rule.constraints))}."


_SENTENCES = {"permission": _permission, "prohibition": _prohibition, "obligation": _obligation, "duty": _duty}
