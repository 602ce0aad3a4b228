"""Finds problems of a policy before it is signed: unknown terms, contradictions, rules that cannot be enforced.

Errors make the policy useless or change its meaning; warnings deserve a second look. With a table schema the policy is
also compiled, so rules that the engine cannot enforce appear as errors. Evaluates no facts, reads no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from types import MappingProxyType
from typing import Literal as OneOf

from policies import vocabulary
from policies.contracts import columns, masks
from policies.contracts import compile as compiler
from policies.contracts.contract import TableSchema
from policies.contracts.lowering import SMALLEST_GROUP
from policies.errors import ContractUndecided, PolicyUnreadable
from policies.evaluation import values
from policies.model import Atom, ConflictStrategy, Connective, Duty, Policy, Rule
from policies.review import unknown_terms
from policies.vocabulary import Operand, Phase, Tier, ValueType, action_includes, compact, ds, odrl
from policies.vocabulary.terms import RULE

_AFTER_USE = frozenset(
    {odrl("delete"), odrl("inform"), odrl("attribute"), ds("log"), ds("registerModel"), ds("deleteModel")}
)
_OF_COLUMNS = frozenset(ds(word) for word in ("columnAllow", "columnDeny", "notTogether", "entityKey", "column"))


@dataclass(frozen=True, slots=True)
class LintProblem:
    """One problem: `error` or `warning`, its path, a code for machines, a sentence for people."""

    level: OneOf["error", "warning"]
    path: str
    code: str
    message: str

    def to_json(self) -> dict[str, str]:
        return {"level": self.level, "path": self.path, "code": self.code, "message": self.message}


def lint(
    policy: Policy, schema: TableSchema | None = None, *, absent: Mapping[str, str] = MappingProxyType({})
) -> list[LintProblem]:
    """Return all problems of a policy, errors first.

    With `schema`, rules that cannot be compiled for that table are errors. `absent`: fact sources that the owner does
    not have at present, with the reason of each.

      [problem.code for problem in lint(policy, schema)]
    """
    found: dict[tuple[str, str], LintProblem] = {}
    for problem in chain(*(check(policy) for check in CHECKS), _find_absent(policy, absent)):
        found.setdefault((problem.path, problem.code), problem)
    unclear = any(problem.level == "error" for problem in found.values())
    if schema is not None and not unclear:
        for problem in _find_uncompiled(policy, schema):
            found.setdefault((problem.path, problem.code), problem)
    return sorted(found.values(), key=lambda problem: problem.level)


def _error(path: str, code: str, message: str) -> LintProblem:
    return LintProblem("error", path, code, message)


def _warning(path: str, code: str, message: str) -> LintProblem:
    return LintProblem("warning", path, code, message)


def _find_uncompiled(policy: Policy, schema: TableSchema) -> Iterator[LintProblem]:
    if missing := list(_find_unknown_columns(policy, schema)):  # the compiler stops at the first
        yield from missing
        return
    made = []
    for index in range(len(policy.permissions)):
        try:
            made.append(compiler.compile_contract(policy, schema, permission=index, concluded=0.0, new=True))
        except (ContractUndecided, PolicyUnreadable) as problem:
            said = str(problem).removeprefix(f"{problem.rule}: ")  # the path is shown separately
            yield _error(problem.rule or f"/permission/{index}", problem.code, said)
    try:
        compiler.refuse_mixed_grids(made)
    except ContractUndecided as problem:
        yield _error(problem.rule, "grids_differ", str(problem))


def _find_unknown_columns(policy: Policy, schema: TableSchema) -> Iterator[LintProblem]:
    for path, atom, _ in _atoms(policy):
        texts = [literal.text for literal in atom.right] if atom.left in _OF_COLUMNS else []
        named = filter(None, (vocabulary.column_of(atom.left), *texts))
        # The compiler reports parts of a column.
        missing = [name for name in named if columns.find_column(schema, name.partition(".")[0]) is None
                   and columns.find_column(schema, name) is None]  # fmt: skip
        if missing:
            yield _error(
                path,
                "contract_undecided",
                f"the table has no column {', '.join(missing)}; correct the name, or the table if it lost the column",
            )


# --- checks ----------------------------------------------------------------------------------------------


def _find_unclear(policy: Policy) -> Iterator[LintProblem]:
    for one in unknown_terms.find_unclear(policy):
        yield _error(one.path, one.code, one.message)


def _find_empty(policy: Policy) -> Iterator[LintProblem]:
    if not policy.permissions:
        yield _error("/permission", "nothing_permitted", "no permission: what is not permitted is denied; add one")


def _find_zoneless(policy: Policy) -> Iterator[LintProblem]:
    for path, atom, operand in _atoms(policy):
        if operand is None or operand.type is not ValueType.INSTANT:
            continue
        for literal in atom.right:
            try:
                if values.instant(literal.text, literal.datatype).loose:
                    yield _error(
                        path,
                        "zone_missing",
                        f"{literal.text} has no zone and could be any moment of 28 hours; write {literal.text}Z "
                        f"or {literal.text}+01:00",
                    )
            except ValueError:
                continue  # reported by `_unclear`


def _find_mixed_groups(policy: Policy) -> Iterator[LintProblem]:
    """Row filters may be alternatives of each other, and so may facts; masks, group sizes and budgets may not."""
    for path, rule, place in unknown_terms.walk_rules(policy):
        if place not in ("permission", "prohibition"):
            continue
        for here, group in unknown_terms.walk_groups(rule.constraints, path):
            if group.connective is Connective.AND:
                continue
            kinds = {_kind(atom) for _, atom in unknown_terms.walk_constraint(group, here)}
            if "shape" in kinds or len(kinds) > 1:
                yield _error(
                    here,
                    "alternative_not_enforceable",
                    f"only row filters, or only facts about the party, may stand under {group.connective.value}; "
                    "write two permissions instead",
                )


def _kind(atom: Atom) -> str:
    operand = vocabulary.operand(atom.left)
    if operand is None or not operand.by_engine:
        return "fact"
    return "row" if operand.name == ds("row/") else "shape"


def _find_mask_problems(policy: Policy) -> Iterator[LintProblem]:
    for path, rule, place in unknown_terms.walk_rules(policy):
        if place != "duty" or rule.action != ds("mask"):
            continue
        given = {atom.left: atom for _, atom in unknown_terms.walk_atoms(rule.constraints, path)}
        method = given.get(ds("method"))
        if ds("column") not in given or method is None:
            yield _error(path, "mask_incomplete", "a mask needs ds:column and ds:method; add what is missing")
        elif method.right[0].text in ("truncate", "round", "generalise") and ds("argument") not in given:
            yield _error(path, "mask_incomplete", f"{method.right[0].text} needs ds:argument; add it")
        elif method.right[0].text not in masks.mask_names():
            known_masks = ", ".join(masks.mask_names())
            yield _error(path, "mask_unknown", f"expected one of {known_masks}, got {method.right[0].text}; choose one")


def _find_blocked(policy: Policy) -> Iterator[LintProblem]:
    for path, rule, place in unknown_terms.walk_rules(policy):
        if place == "duty" and rule.action in _AFTER_USE:
            yield _error(
                path,
                "duty_never_met",
                f"{compact(rule.action)} is done after use, and a duty must be fulfilled before: "
                "it would block for ever; make it an obligation",
            )


def _find_forbidden(policy: Policy) -> Iterator[LintProblem]:
    for i, permission in enumerate(policy.permissions):
        for j, prohibition in enumerate(policy.prohibitions):
            if not prohibition.constraints and action_includes(prohibition.action, permission.action):
                yield _error(
                    f"/permission/{i}",
                    "permission_void",
                    f"/prohibition/{j} forbids {compact(prohibition.action)} without condition, "
                    "so this permission is never active; remove one of the two",
                )


def _find_conflict(policy: Policy) -> Iterator[LintProblem]:
    overlap = any(
        action_includes(allowed.action, denied.action) or action_includes(denied.action, allowed.action)
        for allowed in policy.permissions
        for denied in policy.prohibitions
    )
    if overlap and policy.conflict is ConflictStrategy.INVALID:
        yield _error("/conflict", "policy_void", "strategy invalid and overlapping rules void it all; use prohibit")
    if overlap and policy.conflict is ConflictStrategy.PERM:
        yield _warning("/conflict", "permission_wins", "with strategy perm a permission overrides the prohibitions")


def _find_contradictions(policy: Policy) -> Iterator[LintProblem]:
    """Values and bounds within one conjunction that exclude each other."""
    for _, by_left in _conjunctions(policy):
        for left, found in by_left.items():
            operand = vocabulary.operand(left)
            if operand is not None and len(found) > 1:
                yield from _find_excluded(operand, found)


def _find_empty_bounds(policy: Policy) -> Iterator[LintProblem]:
    """Numeric bounds of a row filter that no row can meet."""
    for _, by_left in _conjunctions(policy):
        for left, found in by_left.items():
            if not left.startswith(ds("row/")):
                continue
            lows = [(number, atom.operator == "gt") for _, atom in found if (number := _bound(atom, "gt")) is not None]
            highs = [(number, atom.operator == "lt") for _, atom in found if (number := _bound(atom, "lt")) is not None]
            if not (lows and highs):
                continue
            (low, open_low), (high, open_high) = max(lows), min(highs, key=lambda one: (one[0], not one[1]))
            if low > high or (low == high and (open_low or open_high)):
                yield _warning(
                    found[-1][0],
                    "no_rows",
                    f"no number is within the bounds of {vocabulary.column_of(left)}: no row would ever be shown",
                )


def _bound(atom: Atom, sign: str) -> Decimal | None:
    """The bound of an atom in this direction (`gt` or `lt`), inclusive or not."""
    if atom.operator not in (sign, f"{sign}eq"):
        return None
    try:
        return values.decimal(atom.right[0].text)
    except ValueError:
        return None


def _find_shown_and_hidden(policy: Policy) -> Iterator[LintProblem]:
    for path, by_left in _conjunctions(policy):
        shown, hidden = (
            {columns.fold(one.text): one.text for _, atom in by_left.get(word, ()) for one in atom.right}
            for word in (ds("columnAllow"), ds("columnDeny"))
        )
        if both := [shown[name] for name in shown if name in hidden]:
            yield _warning(
                path,
                "shown_and_hidden",
                f"{', '.join(both)} may be read by one rule and not by another, and so not at all; name it once",
            )


def _conjunctions(policy: Policy) -> Iterator[tuple[str, dict[str, list[tuple[str, Atom]]]]]:
    """For each permission, the path of its constraints and its required atoms by operand."""
    for index, rule in enumerate(policy.permissions):
        path = f"/permission/{index}/constraint"
        by_left: dict[str, list[tuple[str, Atom]]] = {}
        for here, atom in unknown_terms.walk_required(rule.constraints, path):
            by_left.setdefault(atom.left, []).append((here, atom))
        yield path, by_left


def _find_excluded(operand: Operand, found: list[tuple[str, Atom]]) -> Iterator[LintProblem]:
    low, high = _bounds(operand, found)
    allowed: frozenset[str] | None = None
    for here, atom in found:
        texts = frozenset(_canonical(operand, literal.text) for literal in atom.right)
        if atom.operator in ("eq", "isAnyOf"):
            allowed = texts if allowed is None else allowed & texts
        elif atom.operator in ("neq", "isNoneOf") and allowed is not None:
            allowed = allowed - texts
        if allowed is not None and not allowed and operand.type is not ValueType.IRI and not operand.kinds:
            yield _error(
                here, "contradiction", f"no value of {compact(atom.left)} meets this and the constraints before it"
            )
            return
    if low is not None and high is not None and low > high:
        yield _error(
            found[-1][0],
            "contradiction",
            f"the bounds of {compact(found[0][1].left)} exclude each other; widen one of them",
        )


def _canonical(operand: Operand, text: str) -> str:
    try:
        return values.canonical_text(operand.type, text, "", operand.levels)
    except ValueError:
        return text


def _bounds(operand: Operand, found: list[tuple[str, Atom]]) -> tuple[float | None, float | None]:
    low: float | None = None
    high: float | None = None
    for _, atom in found:
        edges = _edges(operand, atom)
        if edges is None:
            continue
        if atom.operator in ("gt", "gteq"):
            low = edges[0] if low is None else max(low, edges[0])
        elif atom.operator in ("lt", "lteq"):
            high = edges[1] if high is None else min(high, edges[1])
    return low, high


def _edges(operand: Operand, atom: Atom) -> tuple[float, float] | None:
    try:
        literal = atom.right[0]
        value = values.parse(operand.type, literal.text, literal.datatype, operand.levels)
    except ValueError:
        return None
    if isinstance(value, values.Instant):
        return value.start, value.end
    if isinstance(value, values.Duration | str):
        return None
    return float(value), float(value)


def _find_group_problems(policy: Policy) -> Iterator[LintProblem]:
    """Aggregate-only answers: a group size that protects, and columns to protect."""
    for index, rule in enumerate(policy.permissions):
        path = f"/permission/{index}"
        found = {atom.left: (here, atom) for here, atom in unknown_terms.walk_atoms(rule.constraints, path)}
        if ds("epsilonBudget") in found and ds("entityKey") not in found:
            here, _ = found[ds("epsilonBudget")]
            yield _warning(
                here,
                "budget_of_rows",
                "without ds:entityKey noise hides single rows, and one person may have many; add it",
            )
        groups = [found[word][0] for word in (ds("minGroupSize"), ds("epsilonBudget")) if word in found]
        if groups and vocabulary.resolve_alias(rule.action) == ds("stream"):
            yield _warning(
                groups[0],
                "stream_of_groups",
                "a stream gives single rows, but this permission gives groups only, so it permits nothing; "
                "permit ds:query",
            )
        if ds("minGroupSize") not in found:
            continue
        here, atom = found[ds("minGroupSize")]
        try:
            size = values.integer(atom.right[0].text)
        except ValueError:
            continue
        if size < SMALLEST_GROUP:
            yield _error(
                here, "group_too_small", f"groups of {size} do not protect a unit; use at least {SMALLEST_GROUP}"
            )
        if ds("entityKey") not in found:
            yield _warning(
                here,
                "group_counts_rows",
                "without ds:entityKey rows are counted, and one person may fill a group; add it",
            )
        else:
            yield _warning(here, "group_is_costly", "distinct entities are counted exactly: slower by up to ten times")
        if sum("/measure/" in left for left in found) > 1:
            yield _warning(
                here,
                "measures_alike",
                "if two measures are the same but for a few (before and after a discount), or one is zero but for a "
                "few, groups with fewer such units than min_group are withheld, with all their figures; leave one out",
            )
        if not any(vocabulary.column_of(left) and "/dimension/" in left for left in found):
            yield _warning(here, "no_dimension", "no ds:dimension is named, so answers cannot be grouped by anything")


def _find_measure_problems(policy: Policy) -> Iterator[LintProblem]:
    for path, atom, operand in _atoms(policy):
        if operand is None or operand.name != ds("measure/"):
            continue
        if atom.right[0].text == "free":
            yield _warning(path, "measure_unbounded", "without bounds one extreme value shows in a sum; give low..high")
        elif _is_flag(atom.right[0].text) and not _has_noise(policy, path):
            yield _warning(
                path,
                "measure_is_flag",
                f"the sum of {vocabulary.column_of(atom.left)}, if it is 0 or 1, counts who has it: where fewer than a "
                "group have it, or have it not, the whole group is withheld, with all its figures; leave it out where "
                "that is not worth it",
            )


def _find_together(policy: Policy) -> Iterator[LintProblem]:
    """Columns that no query may combine, while rows of each can be read separately."""
    for index, rule in enumerate(policy.permissions):
        found = {
            atom.left: here
            for here, atom in unknown_terms.walk_atoms(rule.constraints, f"/permission/{index}/constraint")
        }
        groups = (ds("minGroupSize"), ds("epsilonBudget"), ds("resultKind"))
        if (here := found.get(ds("notTogether"))) and not any(word in found for word in groups):
            yield _warning(
                here,
                "together_by_order",
                "no query uses these columns together, but rows have one order: answers to separate queries can be "
                "joined row by row. Hide or mask one of the columns, or give groups, where that matters",
            )


def _is_flag(bounds: str) -> bool:
    low, _, high = bounds.partition("..")
    try:
        return values.decimal(low) == 0 and values.decimal(high) == 1
    except ValueError:
        return False


def _has_noise(policy: Policy, path: str) -> bool:
    """Whether the permission at this path answers with noise."""
    index = int(path.split("/")[2])
    rule = policy.permissions[index] if path.startswith("/permission/") else None
    found = unknown_terms.walk_atoms(rule.constraints, "") if rule is not None else ()
    return any(atom.left == ds("epsilonBudget") for _, atom in found)


def _find_repeated(policy: Policy) -> Iterator[LintProblem]:
    for name, rules in (("permission", policy.permissions), ("prohibition", policy.prohibitions)):
        seen: set[Rule | Duty] = set()
        for index, rule in enumerate(rules):
            if rule in seen:
                yield _warning(f"/{name}/{index}", "repeated", "the same rule occurs earlier; remove it")
            seen.add(rule)


def _find_on_trust(policy: Policy) -> Iterator[LintProblem]:
    """Rules that the system cannot enforce: they bind by contract only."""
    for path, rule, place in unknown_terms.walk_rules(policy):
        action = vocabulary.action(rule.action)
        if action is None or action.tier is Tier.TECHNICAL or action.enforced_by:
            continue
        if place in ("prohibition", "obligation"):
            yield _warning(
                path, "on_trust", f"{compact(rule.action)} cannot be enforced; it rests on the contract alone"
            )


def _find_not_enforced(policy: Policy) -> Iterator[LintProblem]:
    """Conditions on the answer that this engine cannot enforce: no agreement with them is concluded."""
    for path, atom, operand in _atoms(policy):
        if operand is not None and operand.by_engine and not operand.enforced_by:
            yield _error(path, "not_enforced", f"{compact(atom.left)} cannot be enforced here; leave it out")


def _find_no_source(policy: Policy) -> Iterator[LintProblem]:
    """Conditions on facts that no source supplies: no request can pass them."""
    for path, atom, operand in _atoms(policy):
        if operand is None or operand.by_engine or RULE not in operand.where or operand.phase is Phase.BATCH:
            continue
        if not vocabulary.describe_suppliers(atom.left):
            named = f" ({', '.join(operand.sources)})" if operand.sources else ""
            yield _error(
                path,
                "no_source",
                f"no source here supplies {compact(atom.left)}{named}: it would stay unknown and refuse every party; "
                "leave it out, or install a source for it",
            )


def _find_absent(policy: Policy, absent: Mapping[str, str]) -> Iterator[LintProblem]:
    """Conditions on facts whose only sources are absent at present."""
    for path, atom, operand in _atoms(policy):
        names = () if operand is None else [name for name in operand.sources if name in vocabulary.SOURCES]
        if names and all(name in absent for name in names):
            yield _warning(
                path,
                "source_absent",
                f"{compact(atom.left)} comes from {vocabulary.SOURCES[names[0]]} ({absent[names[0]]}): "
                "it stays unknown and refuses every party",
            )


def _find_strange_purposes(policy: Policy) -> Iterator[LintProblem]:
    for path, atom, operand in _atoms(policy):
        if operand is None or operand.type is not ValueType.IRI:
            continue
        for literal in atom.right:
            if ":" not in literal.text:
                yield _error(
                    path,
                    "not_an_iri",
                    f"{compact(atom.left)} compares whole IRIs, got {literal.text!r}; write its prefix or IRI"
                    f"{values.purpose_hint(literal.text) if atom.left == odrl('purpose') else ''}",
                )
            elif atom.left == odrl("purpose") and (meant := values.suggest_purpose(literal.text)):
                yield _warning(
                    path,
                    "purpose_unknown",
                    f"{compact(literal.text)} is not in the Data Privacy Vocabulary; did you mean dpv:{meant}?",
                )


def _find_unreadable_templates(policy: Policy) -> Iterator[LintProblem]:
    """Templates that no query can match."""
    for path, atom, _ in _atoms(policy):
        if atom.left != ds("template"):
            continue
        from policies.enforce.template import is_readable  # here: most policies need no parser

        for literal in atom.right:
            if not is_readable(literal.text):
                yield _error(
                    path, "template_unreadable", f"expected one SQL query, got {literal.text!r}; write ? for the values"
                )


def _atoms(policy: Policy) -> Iterator[tuple[str, Atom, Operand | None]]:
    for path, rule, _ in unknown_terms.walk_rules(policy):
        for here, atom in unknown_terms.walk_atoms(rule.constraints, path):
            yield here, atom, vocabulary.operand(atom.left)


CHECKS: tuple[Callable[[Policy], Iterator[LintProblem]], ...] = (
    _find_unclear,
    _find_empty,
    _find_zoneless,
    _find_mixed_groups,
    _find_mask_problems,
    _find_blocked,
    _find_forbidden,
    _find_conflict,
    _find_contradictions,
    _find_empty_bounds,
    _find_shown_and_hidden,
    _find_group_problems,
    _find_measure_problems,
    _find_together,
    _find_repeated,
    _find_on_trust,
    _find_not_enforced,
    _find_no_source,
    _find_strange_purposes,
    _find_unreadable_templates,
)
