"""Evaluates a policy against facts: four values for each constraint, one decision for the whole (usage-policies,
section 4).

Pure: the same policy, facts, time and engine version give the same decision, so an auditor can replay it. Before its
phase an operand is deferred whatever the facts, so leaving out a fact never helps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from policies import vocabulary
from policies.evaluation import values
from policies.evaluation.checks import (
    BATCH,
    DEFERRED,
    RESULTS,
    SATISFIED,
    TRANSFER,
    UNKNOWN,
    UNSATISFIED,
    ConstraintFinding,
    Leaf,
)
from policies.evaluation.compiled_policy import CompiledPolicy, CompiledRule, RulePart, combine_codes, compile_policy
from policies.evaluation.facts import Fact, Facts, Moment, Observed, parse_start
from policies.evaluation.values import format_time
from policies.model import Atom, ConflictStrategy, Kind, Policy
from policies.review import phrases, unknown_terms
from policies.vocabulary import Counting, Phase, compact, expand

__all__ = [
    "ENGINE",
    "RESULTS",
    "ConstraintFinding",
    "Decision",
    "Fact",
    "Facts",
    "Observed",
    "as_granting_set",
    "evaluate",
    "evaluate_offer",
    "next_change",
    "permits",
]

ENGINE = "hanse-policies/5"  # recorded for replays: change it when a decision could change


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an action is permitted, by which permission, and why.

    `carried`: paths that a later phase still decides. `lacking`: for each permission that only unknown facts prevent,
    the keys of these facts.
    """

    permitted: bool
    permission: str | None
    findings: tuple[ConstraintFinding, ...] = ()
    reasons: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()
    action: str = ""
    phase: Phase = Phase.TRANSFER
    lacking: tuple[frozenset[str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the decision as JSON for replies, the log and pages."""
        return {
            "permitted": self.permitted,
            "permission": self.permission,
            "action": compact(self.action),
            "phase": self.phase.value,
            "reasons": list(self.reasons),
            "carried": list(self.carried),
            "findings": [finding.to_json() for finding in self.findings],
            "engine": ENGINE,
        }


class _Outcome(NamedTuple):
    permitted: bool
    active: CompiledRule | None
    hit: CompiledRule | None  # a prohibition that applies, or can no longer be decided
    carried: tuple[CompiledRule, ...]  # prohibitions for a later phase


def _rules_for(plan: CompiledPolicy, action: str, only: str) -> tuple[list[CompiledRule], list[CompiledRule]]:
    """Return the permissions and prohibitions that cover `action`; with `only`, that permission alone."""
    permissions, prohibitions = plan.rules_for(action)
    if only:
        permissions = [rule for rule in permissions if rule.path == only]
    return permissions, prohibitions


def _decide(
    rules: tuple[list[CompiledRule], list[CompiledRule]],
    conflict: ConflictStrategy,
    code_of: Callable[[CompiledRule], int],
    *,
    last: bool,
) -> _Outcome:
    """Decide with `code_of`, which gives the code of a rule and is called for as few rules as needed."""
    permissions, prohibitions = rules
    hit, carried = None, []
    for rule in prohibitions:
        code = code_of(rule)
        if code in (SATISFIED, UNKNOWN) or (code == DEFERRED and last):
            hit = rule
            break
        if code == DEFERRED:
            carried.append(rule)
    if hit is not None and conflict is not ConflictStrategy.PERM:
        return _Outcome(False, None, hit, ())
    active = _active_permission(permissions, code_of, last=last)
    if active is None:
        return _Outcome(False, None, hit, ())
    return _Outcome(True, active, None, () if conflict is ConflictStrategy.PERM else tuple(carried))


def _active_permission(
    permissions: list[CompiledRule], code_of: Callable[[CompiledRule], int], *, last: bool
) -> CompiledRule | None:
    for rule in permissions:
        code = code_of(rule)
        if code == SATISFIED or (code == DEFERRED and not last):
            return rule
    return None


def permits(
    policy: Policy,
    facts: Facts,
    *,
    action: str,
    phase: Phase,
    now: float,
    permission: str = "",
) -> bool:
    """Return whether `evaluate` permits, without the explanation. Arguments as `evaluate`."""
    plan = compile_policy(policy)
    order = phase.order
    if plan.refused or (policy.kind is Kind.OFFER and order >= TRANSFER):
        return False
    moment = Moment(facts, phase=order, now=now, start=plan.start)
    if plan.assignee is not None and plan.assignee.check(moment) != SATISFIED:
        return False
    rules = _rules_for(plan, expand(action), permission)
    return _decide(rules, plan.conflict, lambda rule: rule.check(moment), last=order >= BATCH).permitted


def evaluate(
    policy: Policy,
    facts: Facts,
    *,
    action: str,
    phase: Phase,
    now: float,
    permission: str = "",
) -> Decision:
    """Decide whether `action` (IRI) is permitted in `phase` at `now` (UTC seconds); ODRL 2.2, section 2.

    `permission` names one permission by path (`/permission/0`): the decision is then whether this permission is active.
    Columns and rows belong to one permission, so a server asks about the permission that it serves. Prohibitions always
    count. Only Sets and Agreements grant; an Offer is evaluated for phases up to the agreement. An Agreement requires
    the fact `ds:participant` to be its assignee. Never raises on policy content.

      facts = Facts.of({"odrl:purpose": "dpv:ScientificResearch"})
      evaluate(policy, facts, action=ds("query"), phase=Phase.QUERY, now=now).permitted
    """
    plan = compile_policy(policy)
    action = expand(action)
    refused = plan.refused
    if not refused and policy.kind is Kind.OFFER and phase.order >= TRANSFER:
        refused = ("an offer grants nothing; conclude an agreement first",)
    if refused:
        return Decision(False, None, (), refused, (), action, phase)
    moment = Moment(facts, phase=phase.order, now=now, start=plan.start)
    if plan.assignee is not None and plan.assignee.check(moment) != SATISFIED:
        finding = plan.assignee.make_finding(moment, "/assignee", phase.value, plan.assignee.check(moment))
        reason = f"the agreement is with {policy.assignee}, and the caller is not known to be that party"
        return Decision(False, None, (finding,), (reason,), (), action, phase)
    rules = _rules_for(plan, action, permission)
    look = _Inspection(rules, moment, phase.value)
    outcome = _decide(rules, plan.conflict, look.rule, last=moment.phase >= BATCH)
    active = outcome.active.path if outcome.active else None
    reasons = tuple(_list_reasons(outcome, rules[0], action, look))
    carried = _deferred_paths(outcome, look.findings)
    lacking = () if outcome.permitted else tuple(_missing_facts(rules, plan.conflict, look))
    return Decision(outcome.permitted, active, tuple(look.findings), reasons, carried, action, phase, lacking)


def evaluate_offer(policy: Policy, facts: Facts, *, phase: Phase, now: float) -> Decision:
    """Decide whether a permission of an offer could become active for this party, to show it or negotiate it.

    Returns the decision of the first permission that passes for its own action. Otherwise returns the decision with the
    fewest obstacles, with the reasons of each permission.
    """
    refusals: list[tuple[str, Decision]] = []
    for index, rule in enumerate(policy.permissions):
        path = f"/permission/{index}"
        decision = evaluate(policy, facts, action=rule.action, permission=path, phase=phase, now=now)
        if decision.permitted:
            return decision
        refusals.append((path, decision))
    if not refusals:
        return Decision(False, None, (), ("the policy holds no permission, so nothing can be agreed",), (), "", phase)
    refusals.sort(key=lambda refusal: (not refusal[1].lacking, len(refusal[1].reasons)))
    lacking = tuple(facts for _, one in refusals for facts in one.lacking)
    return replace(refusals[0][1], reasons=_join_reasons(refusals), lacking=lacking)


def _join_reasons(refusals: Sequence[tuple[str, Decision]]) -> tuple[str, ...]:
    """Return the reasons once where all permissions share them; otherwise one line for each permission."""
    grouped: dict[tuple[str, ...], tuple[str, tuple[str, ...]]] = {}
    for path, decision in refusals:
        same = tuple(reason.removeprefix(path) for reason in decision.reasons)  # without the permission's path
        grouped.setdefault(same, (path, decision.reasons))
    if len(grouped) == 1:
        return next(iter(grouped.values()))[1]
    lines = [f"under {path}: {'; '.join(reasons)}" for path, reasons in grouped.values()]
    return (lines[0], *(f"or {one}" for one in lines[1:]))


def next_change(policy: Policy, *, action: str, now: float) -> float:
    """Return the time (UTC seconds) when the clock alone may next change what prohibitions of `action` decide; infinity
    if never.

    Permissions end with their contracts, but a contract does not know when a prohibition begins.
    """
    if not any(rule.constraints for rule in policy.prohibitions):
        return math.inf
    start, moment = parse_start(policy.timestamp) if policy.timestamp else None, values.nanoseconds(now)
    turns = [
        turn
        for index, rule in enumerate(policy.prohibitions)
        if vocabulary.action_includes(rule.action, expand(action))
        for _, atom in unknown_terms.walk_atoms(rule.constraints, f"/prohibition/{index}")
        for turn in _boundaries(atom, start)
        if turn >= moment
    ]
    return min(turns, default=math.inf) / values.SECOND


def _boundaries(atom: Atom, start: int | None) -> tuple[int, ...]:
    operand = vocabulary.operand(atom.left)
    counting = operand.counting if operand is not None else None
    if counting is Counting.CLOCK:
        found = values.instant(atom.right[0].text, atom.right[0].datatype)
        return found.start, found.end
    if counting is Counting.ELAPSED and start is not None:
        return (values.add_duration(start, values.duration(atom.right[0].text)),)
    return ()


def as_granting_set(policy: Policy, *, at: float | None = None) -> Policy:
    """Return the policy's rules as a Set, which grants without parties: to try an offer before publishing it.

    `at` (UTC seconds) is the assumed time of signing, where elapsed time starts; without it elapsed time is unknown.
    """
    timestamp = policy.timestamp if at is None else format_time(at)
    return replace(policy, kind=Kind.SET, timestamp=timestamp)


class _Inspection:
    """The findings of every constraint, and the code of each part of each rule."""

    __slots__ = ("codes", "findings", "moment", "phase")

    def __init__(self, rules: tuple[list[CompiledRule], list[CompiledRule]], moment: Moment, phase: str) -> None:
        self.moment, self.phase = moment, phase
        self.findings: list[ConstraintFinding] = []
        permissions, prohibitions = rules
        self.codes = {rule: [self._at(part, rule.path) for part in rule.parts] for rule in permissions + prohibitions}

    def rule(self, rule: CompiledRule) -> int:
        """Return the code of the whole rule."""
        return combine_codes(self.codes[rule])

    def _at(self, part: RulePart, rule: str) -> int:
        for leaf in part.leaves:
            code = leaf.check(self.moment)
            self.findings.append(leaf.make_finding(self.moment, rule, self.phase, code))
            if leaf.check is part.check:  # not a group: the part has the code of its only leaf
                return code
        return part.check(self.moment)

    def unknown(self, rule: CompiledRule) -> frozenset[str]:
        """Return the keys of the facts that keep a rule from being decided."""
        waiting = [part for part, code in zip(rule.parts, self.codes[rule], strict=True) if code == UNKNOWN]
        return frozenset(leaf.left for part in waiting for leaf in part.leaves if leaf.check(self.moment) == UNKNOWN)


def _missing_facts(
    rules: tuple[list[CompiledRule], list[CompiledRule]], conflict: ConflictStrategy, look: _Inspection
) -> Iterator[frozenset[str]]:
    """Yield, for each permission that only unknown facts prevent, the keys of these facts."""
    permissions, prohibitions = rules
    never = (UNSATISFIED, DEFERRED) if look.moment.phase >= BATCH else (UNSATISFIED,)
    forbidding: frozenset[str] = frozenset()
    for rule in prohibitions if conflict is not ConflictStrategy.PERM else ():
        code = look.rule(rule)
        if code == SATISFIED or (code == DEFERRED and code in never):
            return
        forbidding |= look.unknown(rule) if code == UNKNOWN else frozenset()
    for rule in permissions:
        missing = forbidding | look.unknown(rule)
        if missing and look.rule(rule) not in never:
            yield missing


def _deferred_paths(outcome: _Outcome, findings: list[ConstraintFinding]) -> tuple[str, ...]:
    if outcome.active is None:
        return ()
    waiting = {outcome.active.path, *(rule.path for rule in outcome.carried)}
    return tuple([found.constraint for found in findings if found.result == "deferred" and found.rule in waiting])


def _list_reasons(outcome: _Outcome, permissions: list[CompiledRule], action: str, look: _Inspection) -> Iterator[str]:
    """Yield the reasons in words: the permission that permits, the prohibition that forbids, or all that is missing."""
    if outcome.active is not None:
        yield f"{outcome.active.path} permits to {phrases.action(outcome.active.action)}"
    elif outcome.hit is not None:
        yield _prohibition_reason(outcome.hit, look.moment)
    else:
        fine = (SATISFIED,) if look.moment.phase >= BATCH else (SATISFIED, DEFERRED)
        if not permissions:
            yield f"no permission covers {compact(action)}; what is not permitted is denied"
        for rule in permissions:
            for part, code in zip(rule.parts, look.codes[rule], strict=True):
                if code not in fine:
                    yield _missing_reason(part, code, look.moment)


def _prohibition_reason(rule: CompiledRule, moment: Moment) -> str:
    unknown = [leaf.left for part in rule.parts for leaf in part.leaves if leaf.check(moment) in (UNKNOWN, DEFERRED)]
    why = f"; not known, so it counts as met: {', '.join(unknown)}" if unknown else ""
    return f"{rule.path} forbids to {phrases.action(rule.action)}{why}"


def _supplier_note(names: Iterable[str]) -> str:
    """Return who can supply the missing facts, for the reader of the refusal."""
    found = dict.fromkeys(who for name in names if (who := vocabulary.describe_suppliers(expand(name))))
    return f"; it can come from {' or '.join(found)}" if found else ""


def _missing_reason(part: RulePart, code: int, moment: Moment) -> str:
    return f"{part.path}: needed: {part.said}; {_unmet_reason(part, code, moment)}"


def _unmet_reason(part: RulePart, code: int, moment: Moment) -> str:
    if code == DEFERRED:
        return "nothing decided it in time"
    if code == UNKNOWN:
        names = dict.fromkeys(leaf.left for leaf in part.leaves if leaf.check(moment) == UNKNOWN)
        return f"no fact is known for {', '.join(names)}{_supplier_note(names)}"
    if part.leaves and all(leaf.op == "duty" for leaf in part.leaves):
        return f"no evidence of it is recorded{_supplier_note(['ds:fulfilled'])}"
    seen = [text for leaf in part.leaves for text in _observed_values(leaf, moment)]
    return f"observed {', '.join(seen)}" if seen else "it is not so"


def _observed_values(leaf: Leaf, moment: Moment) -> list[str]:
    observed = leaf.make_finding(moment, "", "", leaf.check(moment)).observed
    return [text + values.purpose_hint(text) if leaf.left == "odrl:purpose" else text for text in observed]
