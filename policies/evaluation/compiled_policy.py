"""Compiles a policy once: its rules and groups as checks that can be evaluated many times.

Implements the four values and their combination. Where the specification leaves a choice,
the result is "no": under a prohibition `or` ranks unknown above deferred, so leaving out a fact never helps; a broad
permission covers training only where the asset is known not to reserve it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import dataclass

from policies import vocabulary
from policies.evaluation.checks import (
    BATCH,
    DEFERRED,
    SATISFIED,
    UNKNOWN,
    UNSATISFIED,
    Check,
    Leaf,
    atom_leaf,
    describe_duty,
    duty_leaf,
    mining_leaf,
)
from policies.evaluation.facts import Moment, parse_start
from policies.model import Atom, ConflictStrategy, Connective, Constraint, Group, Kind, Literal, Policy, Rule
from policies.review import phrases, unknown_terms


@dataclass(frozen=True, slots=True, eq=False)
class RulePart:
    """One member of a rule's conjunction: a constraint or a duty, with its atoms and its phrase."""

    path: str
    said: str
    check: Check
    leaves: tuple[Leaf, ...]


@dataclass(frozen=True, slots=True, eq=False)
class CompiledRule:
    """A compiled permission or prohibition: its path, action, check and parts."""

    path: str
    action: str
    check: Check
    parts: tuple[RulePart, ...]


def _compile_part(constraint: Constraint, path: str, *, strict: bool) -> RulePart:
    leaves: list[Leaf] = []
    check = _compile_node(constraint, path, leaves, strict=strict, claimable=not strict)
    return RulePart(path, phrases.constraint(constraint), check, tuple(leaves))


def _compile_node(constraint: Constraint, path: str, leaves: list[Leaf], *, strict: bool, claimable: bool) -> Check:
    if isinstance(constraint, Atom):
        leaf = atom_leaf(constraint, path, claimable=claimable)
        leaves.append(leaf)
        return leaf.check
    check = _compile_group(constraint, path, leaves, strict=strict, claimable=claimable)
    return _accept_claim(check, path) if claimable and _is_about_answer(constraint) else check


def _compile_group(group: Group, path: str, leaves: list[Leaf], *, strict: bool, claimable: bool) -> Check:
    claimable = claimable and group.connective is not Connective.XONE
    checks = tuple(
        _compile_node(member, f"{path}/{group.connective.value}/{index}", leaves, strict=strict, claimable=claimable)
        for index, member in enumerate(group.members)
    )
    if group.connective is Connective.AND:
        return _all_of(checks)
    if group.connective is Connective.XONE:
        return _exactly_one_of(checks)
    return _any_of(checks, (SATISFIED, UNKNOWN, DEFERRED) if strict else (SATISFIED, DEFERRED, UNKNOWN))


def _is_about_answer(group: Group) -> bool:
    """Whether a group has conditions on the answer only, so that the contract can enforce it as a whole."""
    found = (vocabulary.operand(atom.left) for _, atom in unknown_terms.walk_constraint(group, ""))
    return all(operand is not None and operand.by_engine for operand in found)


def _accept_claim(check: Check, path: str) -> Check:
    def check_claim(moment: Moment) -> int:
        if path in moment.enforced and moment.phase >= BATCH:
            return SATISFIED
        return check(moment)

    return check_claim


def _all_of(checks: tuple[Check, ...]) -> Check:
    """`and`: unsatisfied, then unknown, then deferred."""

    def check(moment: Moment) -> int:
        worst = SATISFIED
        for one in checks:
            code = one(moment)
            if code == UNSATISFIED:
                return UNSATISFIED
            if code == UNKNOWN or (code == DEFERRED and worst == SATISFIED):
                worst = code
        return worst

    return check


def combine_codes(codes: Collection[int]) -> int:
    """Combine known codes as `and` does."""
    for code in (UNSATISFIED, UNKNOWN, DEFERRED):
        if code in codes:
            return code
    return SATISFIED


def _any_of(checks: tuple[Check, ...], ranks: tuple[int, ...]) -> Check:
    """`or`: the first of `ranks` that occurs, otherwise unsatisfied."""

    def check(moment: Moment) -> int:
        seen = {one(moment) for one in checks}
        for code in ranks:
            if code in seen:
                return code
        return UNSATISFIED

    return check


def _exactly_one_of(checks: tuple[Check, ...]) -> Check:
    """`xone`: two satisfied give unsatisfied; otherwise unknown, deferred, exactly one satisfied, in this order."""

    def check(moment: Moment) -> int:
        codes = [one(moment) for one in checks]
        yes = codes.count(SATISFIED)
        if yes > 1:
            return UNSATISFIED
        if UNKNOWN in codes:
            return UNKNOWN
        return DEFERRED if DEFERRED in codes else int(yes == 1)

    return check


def _compile_permission(rule: Rule, path: str) -> CompiledRule:
    parts = [
        _compile_part(one, f"{path}/constraint/{index}", strict=False) for index, one in enumerate(rule.constraints)
    ]
    for index, duty in enumerate(rule.duties):
        leaf = duty_leaf(duty, f"{path}/duty/{index}")
        if leaf is not None:
            parts.append(RulePart(leaf.path, describe_duty(duty), leaf.check, (leaf,)))
    return _compile_rule(path, rule.action, tuple(parts))


def _compile_prohibition(rule: Rule, path: str) -> CompiledRule:
    parts = (
        _compile_part(one, f"{path}/constraint/{index}", strict=True) for index, one in enumerate(rule.constraints)
    )
    return _compile_rule(path, rule.action, tuple(parts))


def _compile_rule(path: str, action: str, parts: tuple[RulePart, ...]) -> CompiledRule:
    return CompiledRule(path, action, _all_of(tuple(part.check for part in parts)), parts)


_MINING = vocabulary.ds("mining")


def _guard_mining(rule: CompiledRule, action: str) -> CompiledRule:
    """A permission that names neither mining nor training covers them only where the asset does not reserve them."""
    reach = vocabulary.action_includes
    if not reach(_MINING, action) or reach(_MINING, rule.action):
        return rule
    leaf = mining_leaf(rule.path)
    part = RulePart(rule.path, "the asset is known not to reserve mining and training", leaf.check, (leaf,))
    return _compile_rule(rule.path, rule.action, (*rule.parts, part))


class CompiledPolicy:
    """A compiled policy: its rules, the reasons for refusing it as a whole, and the start of elapsed time."""

    __slots__ = ("_by_action", "assignee", "conflict", "permissions", "prohibitions", "refused", "start")

    def __init__(self, policy: Policy) -> None:
        self.permissions = [_compile_permission(rule, f"/permission/{i}") for i, rule in enumerate(policy.permissions)]
        self.prohibitions = [
            _compile_prohibition(rule, f"/prohibition/{i}") for i, rule in enumerate(policy.prohibitions)
        ]
        self.conflict = policy.conflict
        self.start = parse_start(policy.timestamp) if policy.timestamp else None
        self.refused = tuple(
            f"{one.path}: {one.message}" for one in unknown_terms.find_blocking(policy)
        ) + _overlap_reasons(policy)
        self.assignee = _assignee_check(policy)
        self._by_action: dict[str, tuple[list[CompiledRule], list[CompiledRule]]] = {}

    def rules_for(self, action: str) -> tuple[list[CompiledRule], list[CompiledRule]]:
        """Return the permissions and prohibitions whose action covers `action`."""
        found = self._by_action.get(action)
        if found is None:
            reach = vocabulary.action_includes
            found = (
                [_guard_mining(rule, action) for rule in self.permissions if reach(rule.action, action)],
                [rule for rule in self.prohibitions if reach(rule.action, action)],
            )
            if len(self._by_action) < 64:  # the caller chooses the action, which could fill memory
                self._by_action[action] = found
        return found


def _overlap_reasons(policy: Policy) -> tuple[str, ...]:
    """With the strategy `invalid`, an overlap of a permission and a prohibition voids the whole policy."""
    if policy.conflict is not ConflictStrategy.INVALID:
        return ()
    reach = vocabulary.action_includes
    for i, allowed in enumerate(policy.permissions):
        for j, forbidden in enumerate(policy.prohibitions):
            if reach(allowed.action, forbidden.action) or reach(forbidden.action, allowed.action):
                return (
                    f"/permission/{i} and /prohibition/{j} conflict, and the policy's strategy is invalid: "
                    "the whole policy is void; state the strategy prohibit",
                )
    return ()


def _assignee_check(policy: Policy) -> Leaf | None:
    """An agreement grants rights to its assignee only."""
    if policy.kind is not Kind.AGREEMENT:
        return None
    return atom_leaf(Atom(vocabulary.ds("participant"), "eq", (Literal(policy.assignee),)), "/assignee")


# Keyed by identity, which is free. The entry holds the policy, so that its id is not reused, and the number of known
# terms, which only grows: terms of a plugin invalidate earlier entries.
_PLANS: OrderedDict[int, tuple[Policy, int, CompiledPolicy]] = OrderedDict()
_MAX_PLANS = 2_048


def compile_policy(policy: Policy) -> CompiledPolicy:
    """Return the compiled policy; the latest 2,048 are cached."""
    entry = _PLANS.get(id(policy))
    words_known = len(vocabulary.OPERANDS) + len(vocabulary.ACTIONS)
    if entry is not None and entry[0] is policy and entry[1] == words_known:
        return entry[2]
    made = CompiledPolicy(policy)
    while len(_PLANS) >= _MAX_PLANS:
        try:
            _PLANS.popitem(last=False)
        except KeyError:  # another thread emptied it
            break
    _PLANS[id(policy)] = (policy, words_known, made)
    return made
