"""Compiles an agreement and a table schema to data contracts, one for each permission.

Every constraint is lowered (`lowering.LOWER`), listed in `requires` because facts decide it, or refused as undecided
with its path. Pure; must not know SQL, clocks or facts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from policies.contracts import columns, lowering, masks
from policies.contracts.contract import (
    PERIODS,
    Column,
    Connected,
    DataContract,
    Grid,
    Mask,
    MaskKind,
    Obligation,
    Privacy,
    RowFilter,
    Scalar,
    TableSchema,
)
from policies.contracts.lowering import ContractDraft, undecided_error
from policies.errors import ContractUndecided
from policies.evaluation.values import DAY, SECOND, decimal, duration, instant, is_below
from policies.model import HANSE, ODRL, Atom, Connective, Constraint, Duty, Group, Policy, Rule
from policies.vocabulary import ACTIONS, Phase, action_includes, column_of, compact, expand, operand, resolve_alias

_EXACT = 2**53  # integers that a float holds exactly
_MASK = HANSE + "mask"
_FACTS = frozenset({Phase.CATALOGUE, Phase.NEGOTIATION, Phase.AGREEMENT, Phase.TRANSFER})


def fingerprint(schema: TableSchema) -> str:
    """Return the SHA-256 of names and types in order: a renamed, dropped or retyped column changes it."""
    listed = [[column.name, column.type] for column in schema.columns]
    return hashlib.sha256(json.dumps(listed, separators=(",", ":")).encode()).hexdigest()


def compile_contracts(
    policy: Policy, schema: TableSchema, *, concluded: float | None = None, new: bool = False
) -> tuple[DataContract, ...]:
    """Return one contract for each permission of the policy, in its order.

    `concluded`: the assumed time of signing (UTC seconds) of an offer, which has no timestamp. `new`: the policy is not
    signed yet, so imprecise values that signed agreements keep are refused (`columns.parse_bin_width`).

      compile_contracts(policy, TableSchema((Column("age", "BIGINT"),)), concluded=time.time())[0].columns

    Raises: ContractUndecided, naming the rule, when a rule of any permission is left undecided.
    """
    if not policy.permissions:
        raise undecided_error("/permission", "the policy permits nothing; add a permission")
    made = tuple(
        compile_contract(policy, schema, permission=index, concluded=concluded, new=new)
        for index in range(len(policy.permissions))
    )
    refuse_mixed_grids(made)
    return made


def refuse_mixed_grids(made: Sequence[DataContract]) -> None:
    """Require that all exact aggregates of a policy count the same groups and the same rows as its row permissions.

    Two different grids reveal small groups by subtraction, although each alone hides them (decision 4).

    Raises: ContractUndecided.
    """
    counted = [contract for contract in made if is_exact(contract)]
    if not counted:
        return
    first = counted[0]
    for other in made:
        if other.grid is None and other.row_filter != first.row_filter:
            _raise_mixed_grids(other, f"it gives other rows than {first.permission} counts", "both the same row filter")
        if count_differently(first, other):
            same = "both the same dimensions, bins, measures, group size, entity key, masks and row filter"
            _raise_mixed_grids(other, f"it counts other groups or other rows than {first.permission}", same)


def _raise_mixed_grids(other: DataContract, how: str, same: str) -> NoReturn:
    sentence = f"{how}, and the difference of two answers shows single units; give {same}, or keep one"
    raise undecided_error(other.permission, sentence)


def is_exact(contract: DataContract) -> bool:
    """Return whether the contract answers with exact aggregates, not with rows or noise."""
    return contract.grid is not None and contract.grid.privacy is None


def count_differently(one: DataContract, other: DataContract) -> bool:
    """Return whether both contracts give exact aggregates, but of different groups or rows."""
    return is_exact(one) and is_exact(other) and _grouping_key(one) != _grouping_key(other)


def _grouping_key(contract: DataContract) -> tuple[object, ...]:
    """Everything that decides which rows are counted and which groups are withheld; measures withhold some, too."""
    grid = contract.grid
    assert grid is not None
    masked = {mask for mask in contract.masks if mask.column in contract.columns}
    return (
        contract.row_filter,
        grid.min_group,
        grid.entity,
        frozenset(grid.dimensions),
        frozenset(grid.measures),
        frozenset(masked),
    )


def compile_contract(
    policy: Policy,
    schema: TableSchema,
    *,
    permission: int,
    concluded: float | None = None,
    partial: bool = False,
    new: bool = False,
) -> DataContract:
    """Return the contract of permission number `permission` for a table of this schema; options as `compile_contracts`.

    `partial` keeps undecided rules in `residual`, for reports; such a contract is never served.

    Raises: ContractUndecided, naming the rule, when it cannot be enforced here or is left undecided.
    """
    path = f"/permission/{permission}"
    rule = policy.permissions[permission]
    pass_ = _Compilation(ContractDraft(schema, _start_time(policy, concluded), new=new), path)
    pass_.constraints(rule.constraints, f"{path}/constraint")
    pass_.duties(rule.duties)
    actions = pass_.actions(rule, policy.prohibitions)
    made = _build_contract(policy, pass_, actions)
    if made.residual and not partial:
        raise ContractUndecided(
            f"these rules can neither be enforced nor decided: {'; '.join(made.residual)}. Remove them or use "
            "terms of docs/policy-words.md",
            rule=made.residual[0].partition(" ")[0],
        )
    return made


def _start_time(policy: Policy, concluded: float | None) -> int | None:
    if policy.timestamp:
        try:
            when = instant(policy.timestamp)
        except ValueError as wrong:
            raise undecided_error("/timestamp", str(wrong)) from None
        if when.loose:
            raise undecided_error("/timestamp", f"expected a time with its zone, got {policy.timestamp!r}")
        return when.start
    return None if concluded is None else round(concluded * SECOND)


@dataclass(slots=True)
class _Compilation:
    """The compilation of one permission: the draft and the rules that remain."""

    draft: ContractDraft
    path: str
    requires: list[str] = field(default_factory=list)
    residual: list[str] = field(default_factory=list)
    contractual: list[str] = field(default_factory=list)

    def constraints(self, members: Sequence[Constraint], path: str) -> None:
        """Decide each member of a conjunction on its own."""
        for index, member in enumerate(members):
            here = f"{path}/{index}"
            if isinstance(member, Atom):
                self._atom(member, here)
            elif member.connective is Connective.AND or len(member.members) == 1:
                self.constraints(member.members, f"{here}/{member.connective}")
            else:
                self._alternative(member, here)

    def _atom(self, atom: Atom, path: str) -> None:
        if lowering.lower_atom(self.draft, atom, path):
            return
        if _is_decided_by_facts(atom) and atom.left not in lowering.LOWER:
            self.requires.append(path)
        else:  # a lowered term in another form would be checked at the start only
            self.residual.append(f"{path} {compact(atom.left)} {atom.operator}")

    def _alternative(self, group: Group, path: str) -> None:
        """Compile `or` and `xone`: row filters or facts about the party; refuse whatever else would change the
        query.
        """
        atoms = tuple(_atoms(group))
        if all(column_of(atom.left) and atom.left.startswith(HANSE + "row/") for atom in atoms):
            self.draft.filters.append(_compile_row_filter(self.draft, group, path))
            self.draft.reasons.append(("row", path))
        elif all(_is_decided_by_facts(atom) and atom.left not in lowering.LOWER for atom in atoms):
            self.requires.append(path)
        else:
            shape = next((a for a in atoms if a.left in lowering.LOWER or column_of(a.left)), atoms[0])
            raise undecided_error(
                path,
                f"{compact(shape.left)} stands under {group.connective}; only row filters, or only facts about "
                "the party, may be alternatives. Write two permissions instead",
            )

    def duties(self, duties: Sequence[Duty]) -> None:
        """Compile masks; every other duty before use becomes a fact for evaluation."""
        for index, duty in enumerate(duties):
            here = f"{self.path}/duty/{index}"
            known = ACTIONS.get(duty.action)
            if duty.action == _MASK:
                _compile_mask(self.draft, duty, here)
                self.draft.reasons.append(("mask", here))
            elif known is not None and known.duty:
                self.requires.append(here)
            else:
                self.residual.append(f"{here} {compact(duty.action)}")

    def actions(self, rule: Rule, prohibitions: Sequence[Rule]) -> tuple[str, ...]:
        """Return the actions that the permission covers, without those that a prohibition removes."""
        covered = [name for name, action in ACTIONS.items() if action.use and action_includes(rule.action, name)]
        if not covered:
            raise undecided_error(
                self.path, f"the action {compact(rule.action)} is not known; use ds:query or ds:stream"
            )
        covered.sort(key=lambda name: (name != resolve_alias(rule.action), name))
        for index, prohibition in enumerate(prohibitions):
            covered = self._prohibit(prohibition, f"/prohibition/{index}", covered)
        if not covered:
            raise undecided_error(
                self.path, "a prohibition covers everything that this permission permits; remove one of them"
            )
        return tuple(covered)

    def _prohibit(self, rule: Rule, path: str, covered: list[str]) -> list[str]:
        hit = [name for name in covered if action_includes(rule.action, name)]
        if resolve_alias(rule.action) not in ACTIONS:
            self.residual.append(f"{path} {compact(rule.action)}")
        elif not hit:
            self.contractual.append(f"{compact(rule.action)} prohibited")
        elif not rule.constraints:
            self.contractual.append(f"{compact(rule.action)} prohibited")
            self.draft.reasons.append(("prohibition", path))
            return [name for name in covered if name not in hit]
        elif not self._purposes_only(rule, path):
            self._narrow(rule, path)
        return covered

    def _purposes_only(self, rule: Rule, path: str) -> bool:
        """Apply a prohibition for named purposes by refusing these purposes."""
        atom = rule.constraints[0]
        if len(rule.constraints) != 1 or not isinstance(atom, Atom) or atom.left != ODRL + "purpose":
            return False
        if atom.operator not in ("isAnyOf", "eq"):
            return False
        opposite = Atom(atom.left, "isNoneOf", atom.right, many=True)
        return lowering.lower_atom(self.draft, opposite, f"{path}/constraint/0")

    def _narrow(self, rule: Rule, path: str) -> None:
        """Leave a prohibition that depends on facts to evaluation; refuse those that depend on the answer."""
        atoms = [atom for member in rule.constraints for atom in _atoms(member)]
        if all(_is_decided_by_facts(atom) for atom in atoms):
            self.requires.append(path)
        else:
            self.residual.append(f"{path} {compact(rule.action)} with {compact(atoms[0].left)}")


def _is_decided_by_facts(atom: Atom) -> bool:
    """Whether evaluation decides the atom from facts before the query runs."""
    known = operand(atom.left)
    return known is not None and known.phase in _FACTS and atom.operator in known.ops and not known.by_engine


def _atoms(constraint: Constraint) -> Iterator[Atom]:
    if isinstance(constraint, Atom):
        yield constraint
    else:
        for member in constraint.members:
            yield from _atoms(member)


def _compile_row_filter(draft: ContractDraft, constraint: Constraint, path: str) -> RowFilter:
    if isinstance(constraint, Atom):
        return lowering.lower_comparison(draft, constraint, path)
    members = tuple(
        _compile_row_filter(draft, member, f"{path}/{constraint.connective}/{index}")
        for index, member in enumerate(constraint.members)
    )
    return members[0] if len(members) == 1 else Connected(str(constraint.connective), members)


def _compile_mask(draft: ContractDraft, duty: Duty, path: str) -> None:
    given: dict[str, tuple[str, ...]] = {}
    for constraint in duty.constraints:
        if not isinstance(constraint, Atom) or constraint.operator not in ("eq", "isAnyOf"):
            raise undecided_error(
                path, "a mask names ds:column, ds:method and ds:argument by eq or isAnyOf, nothing else"
            )
        if constraint.left not in (HANSE + "column", HANSE + "method", HANSE + "argument"):
            raise undecided_error(
                path, f"a mask has no {compact(constraint.left)}; use ds:column, ds:method, ds:argument"
            )
        if constraint.left in given:
            raise undecided_error(path, f"a mask names {compact(constraint.left)} once")
        given[constraint.left] = tuple(literal.text for literal in constraint.right)
    named, methods = given.get(HANSE + "column", ()), given.get(HANSE + "method", ())
    arguments = given.get(HANSE + "argument", ())
    if not named or len(methods) != 1 or len(arguments) > 1:
        raise undecided_error(path, "a mask needs ds:column, one ds:method and at most one ds:argument")
    for name in named:
        made = _compile_column_mask(draft, name, methods[0], arguments[0] if arguments else None, path)
        if draft.masks.setdefault(made.column, made) != made:
            raise undecided_error(path, f"{made.column} is masked twice in different ways; keep one mask")


def _compile_column_mask(draft: ContractDraft, name: str, method: str, argument: str | None, path: str) -> Mask:
    found = lowering.require_column(draft, name, path)
    if (word := masks.MASKS.get(method)) is not None:
        return _compile_plugin_mask(word, found, argument, path)
    if method not in set(MaskKind):
        raise undecided_error(path, f"the mask {method} is not known; use {', '.join(masks.mask_names())}")
    kind, family = MaskKind(method), columns.family(found.type)
    if family == columns.OTHER and kind is not MaskKind.NULL:
        raise undecided_error(path, f"{found.name} ({found.type}) can only be masked by null")
    try:
        read = _parse_argument(kind, found.type, argument, new=draft.new)
        if _changes_nothing(kind, found.type, read):
            raise ValueError("changes no value of this column; make it coarser or leave it out")
        return Mask(found.name, kind, read)
    except ValueError as wrong:
        raise undecided_error(path, f"mask {method} of {found.name} ({found.type}): {wrong}") from None


def _compile_plugin_mask(word: masks.MaskWord, found: Column, argument: str | None, path: str) -> Mask:
    if columns.family(found.type) not in word.families:
        raise undecided_error(path, f"{found.name} ({found.type}) cannot be masked by {word.name}")
    try:
        return Mask(found.name, word.name, word.argument(argument))
    except ValueError as wrong:
        raise undecided_error(path, f"mask {word.name} of {found.name} ({found.type}): {wrong}") from None


def _parse_argument(kind: MaskKind, type_: str, argument: str | None, *, new: bool) -> Scalar:
    """Return the typed argument of a mask.

    Raises: ValueError when it is missing, superfluous or does not fit the type.
    """
    family = columns.family(type_)
    if kind in (MaskKind.NULL, MaskKind.HASH):
        if argument is not None:
            raise ValueError("takes no argument")
        return None
    if argument is None:
        raise ValueError("needs ds:argument")
    if kind is MaskKind.TRUNCATE:
        return _parse_bounded(argument, low=0, high=1000, what="characters to keep")
    if kind is MaskKind.ROUND:
        if family not in columns.NUMERIC:
            raise ValueError("only numbers can be rounded")
        return _parse_bounded(argument, low=-30, high=30, what="digits after the point")
    if family in columns.TEMPORAL:
        if argument not in PERIODS:
            raise ValueError(f"expected one of {', '.join(PERIODS)}, got {argument!r}")
        return argument
    if family not in columns.NUMERIC:
        raise ValueError("only numbers, days and times can be generalised; use truncate for texts")
    digits = None if family == columns.FLOAT else columns.decimal_scale(type_)
    return columns.parse_bin_width(type_, argument, new=new, digits=digits)  # edges of bins have no more digits


def _changes_nothing(kind: MaskKind, type_: str, argument: Scalar) -> bool:
    """Whether rounding or generalising changes no value that a column of this type can hold."""
    family = columns.family(type_)
    if family == columns.DATE:
        return kind is MaskKind.GENERALISE and argument in ("day", "hour")
    if family not in (columns.INTEGER, columns.DECIMAL) or isinstance(argument, str | None):
        return False
    digits = columns.decimal_scale(type_)
    return argument >= digits if kind is MaskKind.ROUND else kind is MaskKind.GENERALISE and argument <= 10.0**-digits


def _parse_bounded(text: str, *, low: int, high: int, what: str) -> int:
    number = decimal(text)
    if number != number.to_integral_value() or not low <= number <= high:
        raise ValueError(f"expected {what} between {low} and {high}, got {text!r}")
    return int(number)


def _build_contract(policy: Policy, pass_: _Compilation, actions: tuple[str, ...]) -> DataContract:
    from policies.odrl.reader import digest  # here, so that this module loads without the JSON-LD contexts

    draft, path = pass_.draft, pass_.path
    _refuse_contradictions(draft, path)
    grid = _build_grid(draft, path)
    return DataContract(
        policy_digest=digest(policy),
        schema_fingerprint=fingerprint(draft.schema),
        permission=path,
        actions=actions,
        purposes=draft.purposes or (),
        purposes_refused=draft.purposes_refused,
        columns=_visible_columns(draft, grid, path),
        schema=draft.schema,
        not_before=None if draft.not_before == -math.inf else draft.not_before,
        not_after=None if draft.not_after == math.inf else draft.not_after,
        row_filter=_join_filters(draft.filters),
        masks=tuple(draft.masks.values()),
        grid=grid,
        limits=draft.limits,
        joins=draft.joins,
        templates=draft.templates or (),
        obligations=tuple(_compile_obligation(duty, index) for index, duty in enumerate(policy.obligations)),
        contractual=tuple(dict.fromkeys(pass_.contractual)),
        requires=tuple(pass_.requires),
        together=tuple(draft.together),
        residual=tuple(pass_.residual),
        reasons=tuple(draft.reasons),
    )


def _refuse_contradictions(draft: ContractDraft, path: str) -> None:
    if draft.purposes is not None:
        draft.purposes = tuple(
            one for one in draft.purposes if not any(is_below(one, bad) for bad in draft.purposes_refused)
        )
        if not draft.purposes:
            raise undecided_error(path, "the rules have no purpose in common; it could never be used")
    if draft.not_before > draft.not_after:
        raise undecided_error(path, "the times exclude each other; it could never be used")


def _join_filters(filters: list[RowFilter]) -> RowFilter | None:
    if not filters:
        return None
    return filters[0] if len(filters) == 1 else Connected("and", tuple(filters))


def _build_grid(draft: ContractDraft, path: str) -> Grid | None:
    privacy = _build_privacy(draft, path)
    coarse = draft.min_group is not None or draft.dimensions or draft.measures or privacy
    if not coarse and draft.kind != "aggregate":
        if draft.entity is not None:
            raise undecided_error(path, "ds:entityKey needs ds:minGroupSize, the number of units in a group; add it")
        return None
    if draft.kind == "rows":
        raise undecided_error(path, "ds:resultKind rows contradicts a smallest group, dimensions or measures")
    for column in {draft.entity, *draft.measures} & set(draft.masks):
        raise undecided_error(path, f"{column} is masked and at the same time counted or summed; keep one of the two")
    return Grid(
        min_group=1 if privacy else draft.min_group or lowering.USUAL_GROUP,
        entity=draft.entity,
        dimensions=tuple(draft.dimensions.values()),
        measures=tuple(draft.measures.values()),
        privacy=privacy,
    )


def _build_privacy(draft: ContractDraft, path: str) -> Privacy | None:
    """Return the privacy budget, if any. Noise replaces cells: withholding by true counts would leak them."""
    if draft.epsilon is None:
        if draft.delta is not None or draft.rows_per_entity is not None:
            raise undecided_error(path, "ds:deltaBudget and ds:rowsPerEntity need ds:epsilonBudget; add it")
        return None
    if draft.min_group is not None:
        raise undecided_error(
            path, "ds:epsilonBudget and ds:minGroupSize are two ways to hide one person; groups withheld by their true "
            "size would give away what the noise hides. Keep one of the two",
        )  # fmt: skip
    if unbounded := [one.column for one in draft.measures.values() if one.low is None]:
        raise undecided_error(path, f"noise depends on the bounds of {unbounded[0]}; give it bounds low..high")
    rows = draft.rows_per_entity or 1
    for one in draft.measures.values():
        if max(abs(one.low or 0), abs(one.high or 0)) * rows > _EXACT:
            raise undecided_error(path, f"the bounds of {one.column} are too wide for exact noise; narrow them")
    if draft.rows_per_entity is not None and draft.entity is None:
        raise undecided_error(path, "ds:rowsPerEntity needs ds:entityKey, the column that identifies a unit; add it")
    return Privacy(draft.epsilon, draft.delta or lowering.USUAL_DELTA, rows)


def _visible_columns(draft: ContractDraft, grid: Grid | None, path: str) -> tuple[str, ...]:
    """Return the columns that a query may name, in table order; under a grid its dimensions and measures."""
    allowed = draft.schema.names() if draft.allowed is None else draft.allowed
    named = [name for name in draft.schema.names() if name in allowed and name not in draft.denied]
    if grid is not None:
        shown = [*draft.dimensions, *draft.measures]
        for name in shown:
            if name not in named:
                raise undecided_error(
                    path, f"{name} is a dimension or measure but not an allowed column; allow it or leave it out"
                )
        if draft.entity in shown:
            raise undecided_error(path, f"{draft.entity} identifies a unit; it cannot be a dimension or measure")
        if set(draft.dimensions) & set(draft.measures):
            raise undecided_error(path, "a column is either a dimension or a measure, not both")
        return tuple(name for name in named if name in shown)
    if not named:
        raise undecided_error(path, "no readable column is left; allow at least one")
    return tuple(named)


def _compile_obligation(duty: Duty, index: int) -> Obligation:
    within, event, details = None, "", []
    for constraint in duty.constraints:
        if not isinstance(constraint, Atom) or not constraint.right:
            raise undecided_error(
                f"/obligation/{index}", "an obligation holds plain constraints; write two obligations"
            )
        text = constraint.right[0].text
        if constraint.left == ODRL + "delayPeriod":
            within = _delay_seconds(text, index)
        elif constraint.left == ODRL + "event":
            event = expand(text)
        else:
            details.append((compact(constraint.left), ", ".join(literal.text for literal in constraint.right)))
    return Obligation(duty.action, within, event, tuple(details))


def _delay_seconds(text: str, index: int) -> int:
    """Return a delay in seconds. A month counts 28 days, so a duty is due early, never late."""
    try:
        span = duration(text)
    except ValueError as wrong:
        raise undecided_error(f"/obligation/{index}", str(wrong)) from None
    return (span.months * 28 * DAY + span.nanoseconds) // SECOND
