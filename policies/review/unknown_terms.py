"""Finds unknown terms of a policy, and walks over its parts with their paths.

An unregistered operand, operator, action or profile is an error when authoring, a refusal when negotiating, and a
denial in a signed agreement.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from policies import vocabulary
from policies.errors import PolicyUnreadable, TermUnknown
from policies.evaluation import values
from policies.evaluation.operators import ONE_VALUE
from policies.model import Atom, Connective, Constraint, Duty, Group, Kind, Policy, Rule
from policies.vocabulary import Operand, ValueType, compact
from policies.vocabulary.terms import DUTY, RULE

# Events that the ledger of duties records.
EVENTS = tuple(f"ds:event/{name}" for name in ("end", "revoked", "transferStarted", "transferCompleted", "breach"))


@dataclass(frozen=True, slots=True)
class UnclearTerm:
    """One term that cannot be acted on: its path, a code for machines, a sentence for people.

    `spare`: other values of the same list are known, and any one of them suffices.
    """

    path: str
    code: str
    message: str
    spare: bool = False


def walk_rules(policy: Policy) -> Iterator[tuple[str, Rule | Duty, str]]:
    """Yield every permission, prohibition, duty and obligation with its path and its kind."""
    for index, rule in enumerate(policy.permissions):
        yield f"/permission/{index}", rule, "permission"
        for number, duty in enumerate(rule.duties):
            yield f"/permission/{index}/duty/{number}", duty, "duty"
    for index, rule in enumerate(policy.prohibitions):
        yield f"/prohibition/{index}", rule, "prohibition"
        for number, duty in enumerate(rule.duties):
            yield f"/prohibition/{index}/duty/{number}", duty, "duty"
    for index, duty in enumerate(policy.obligations):
        yield f"/obligation/{index}", duty, "obligation"


def walk_atoms(constraints: tuple[Constraint, ...], path: str) -> Iterator[tuple[str, Atom]]:
    """Yield every atom of a rule's constraints with its path (`<rule>/constraint/0/or/1`)."""
    for index, constraint in enumerate(constraints):
        yield from walk_constraint(constraint, f"{path}/constraint/{index}")


def walk_constraint(constraint: Constraint, path: str) -> Iterator[tuple[str, Atom]]:
    """Yield every atom of the constraint at `path`."""
    if isinstance(constraint, Atom):
        yield path, constraint
        return
    for index, member in enumerate(constraint.members):
        yield from walk_constraint(member, f"{path}/{constraint.connective.value}/{index}")


def walk_required(members: tuple[Constraint, ...], path: str) -> Iterator[tuple[str, Atom]]:
    """Yield the atoms that must all hold, without those of alternatives."""
    for index, member in enumerate(members):
        here = f"{path}/{index}"
        if isinstance(member, Atom):
            yield here, member
        elif member.connective is Connective.AND:
            yield from walk_required(member.members, f"{here}/and")


def walk_groups(constraints: tuple[Constraint, ...], path: str) -> Iterator[tuple[str, Group]]:
    """Yield every logical constraint of a rule, outermost first."""
    for index, constraint in enumerate(constraints):
        if isinstance(constraint, Group):
            here = f"{path}/constraint/{index}"
            yield here, constraint
            yield from _walk_nested_groups(constraint, here)


def _walk_nested_groups(group: Group, path: str) -> Iterator[tuple[str, Group]]:
    for index, member in enumerate(group.members):
        if isinstance(member, Group):
            here = f"{path}/{group.connective.value}/{index}"
            yield here, member
            yield from _walk_nested_groups(member, here)


def find_unclear(policy: Policy) -> tuple[UnclearTerm, ...]:
    """Return every term that is not registered or that its operand does not accept."""
    found: list[UnclearTerm] = []
    for profile in policy.profile.split():
        if profile not in vocabulary.PROFILES:
            found.append(
                UnclearTerm(
                    "/profile", "profile_unknown", f"profile {profile} is not registered; remove it or install it"
                )
            )
    for path, rule, place in walk_rules(policy):
        found.extend(_check_action(rule.action, path, place))
        where = RULE if place in ("permission", "prohibition") else DUTY
        for atom_path, atom in walk_atoms(rule.constraints, path):
            problem = _check_atom(atom, atom_path, where)
            if problem:
                found.append(problem)
        found.extend(_check_duty(rule, path, place))
    return tuple(found)


def find_blocking(policy: Policy) -> tuple[UnclearTerm, ...]:
    """Return the unclear terms that prevent use of the policy; in an agreement, spare values do not."""
    signed = policy.kind is Kind.AGREEMENT
    return tuple(one for one in find_unclear(policy) if not (signed and one.spare))


def refuse_unclear(policy: Policy) -> None:
    """Refuse a policy with an unclear term, naming the first and the number of others.

    Raises: TermUnknown; PolicyUnreadable for a bad value.
    """
    found = find_unclear(policy)
    if not found:
        return
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    error = TermUnknown if found[0].code.endswith("_unknown") else PolicyUnreadable
    raise error(found[0].message + more, rule=found[0].path)


def _check_action(name: str, path: str, place: str) -> Iterator[UnclearTerm]:
    action = vocabulary.action(name)
    path = f"{path}/action"
    if action is None:
        yield UnclearTerm(path, "action_unknown", f"action {compact(name)} is not registered; use a known action")
    elif place in ("permission", "prohibition") and not action.use:
        yield UnclearTerm(path, "action_misplaced", f"{compact(name)} is a duty; put it under duty or obligation")
    elif place in ("duty", "obligation") and not action.duty:
        yield UnclearTerm(
            path, "action_misplaced", f"{compact(name)} is not a duty; put it under permission or prohibition"
        )
    elif place == "obligation" and action.by_engine:
        yield UnclearTerm(
            path, "action_misplaced", f"{compact(name)} changes the answers of one permission; put it under its duty"
        )


def _check_duty(rule: Rule | Duty, path: str, place: str) -> Iterator[UnclearTerm]:
    """Duties in places where they have no effect, and details that a duty cannot have."""
    if place == "prohibition" and isinstance(rule, Rule) and rule.duties:
        yield UnclearTerm(
            f"{path}/duty/0", "duty_misplaced", "a duty under a prohibition has no effect; put it under obligation"
        )
    action = vocabulary.ACTIONS.get(rule.action)
    if isinstance(rule, Duty) and (action is None or not action.by_engine):
        seen: set[str] = set()
        for index, constraint in enumerate(rule.constraints):
            here = f"{path}/constraint/{index}"
            if isinstance(constraint, Group):
                yield UnclearTerm(here, "detail_grouped", "a duty takes plain details; write two duties")
            elif constraint.left in seen:
                yield UnclearTerm(
                    here, "detail_twice", f"{compact(constraint.left)} occurs twice in one duty; keep one"
                )
            else:
                seen.add(constraint.left)
                yield from _check_detail(constraint, here)


def _check_detail(atom: Atom, path: str) -> Iterator[UnclearTerm]:
    operand, name = vocabulary.operand(atom.left), compact(atom.left)
    if operand is not None and operand.by_engine:
        yield UnclearTerm(path, "operand_misplaced", f"{name} has no meaning outside of ds:mask")
    if name == "odrl:dateTime" and atom.operator not in ("eq", "lt", "lteq"):
        yield UnclearTerm(
            path, "operator_unfit", f"in a duty {name} is a deadline and takes eq, lt, lteq; got {atom.operator}"
        )
    if name == "odrl:event":
        for one in (compact(vocabulary.expand(literal.text)) for literal in atom.right):
            if one not in EVENTS:
                yield UnclearTerm(
                    path, "event_unknown", f"the event {one} is not recorded here; use {', '.join(EVENTS)}"
                )


def _check_atom(atom: Atom, path: str, where: str) -> UnclearTerm | None:
    operand = vocabulary.operand(atom.left)
    name = compact(atom.left)
    if operand is None:
        return UnclearTerm(path, "operand_unknown", f"operand {name} is not registered; use a known operand")
    if where not in operand.where:
        place = "a permission or prohibition" if where == RULE else "a duty or obligation"
        return UnclearTerm(path, "operand_misplaced", f"{name} has no meaning in {place}")
    if atom.operator not in vocabulary.OPERATORS:
        return UnclearTerm(path, "operator_unknown", f"operator {compact(atom.operator)} is not registered")
    if atom.operator not in operand.ops:
        allowed = ", ".join(sorted(operand.ops))
        return UnclearTerm(path, "operator_unfit", f"{name} takes {allowed}; got {atom.operator}")
    if atom.operator in ONE_VALUE and len(atom.right) != 1:
        return UnclearTerm(
            path, "value_many", f"{name} {atom.operator} takes one value; got {len(atom.right)}; use isAnyOf"
        )
    for literal in atom.right:
        try:
            values.parse(operand.type, literal.text, literal.datatype, operand.levels)
        except ValueError as problem:
            return UnclearTerm(path, "value_unreadable", f"{name}: {problem}", spare=bool(known_choices(operand, atom)))
    return None


def known_choices(operand: Operand, atom: Atom) -> tuple[str, ...]:
    """Return the known values of an `isAnyOf` list over a closed choice; empty for everything else."""
    if operand.type is not ValueType.CHOICE or atom.operator != "isAnyOf":
        return ()
    return tuple(literal.text for literal in atom.right if literal.text in operand.levels)
