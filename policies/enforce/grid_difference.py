"""What the difference of two versions under one aggregate-only contract reveals.

A party that has answers from both versions can subtract them. `count_differences` counts, for the OWNER, the groups
whose difference comes from few units. Cells and contributors are defined in `grid`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from sqlglot import exp

from policies.contracts.contract import DataContract, Dimension, Grid
from policies.enforce import policy_view
from policies.enforce.grid import (
    COUNTED,
    IN_ROWS,
    ONE,
    SIZED,
    SUMMED,
    UNITS_COUNTABLE,
    ZERO,
    GridQueries,
    build_grid,
    cells_of,
    column_named,
    contributor_conditions,
    count_names,
    count_star,
    cte,
    differs_from_zero,
    greatest,
    join_cells,
    key_columns,
    named_as,
    none_or_many,
    or_zero,
    require_grid,
    scalar_subquery,
    table_named,
    within_share,
)
from policies.enforce.policy_view import StatementBuilder

_B, _SIGN = "size before and after of measure ", "newer less older"
_DIFFERS_BY_FEW, _NAMES_STABLE, _FIGURES_STABLE = "differs by few", "names last", "names and figures last"


def count_differences(
    contract: DataContract, before: str, after: str, maker: StatementBuilder
) -> tuple[exp.Select, tuple[str, ...]]:
    """Return a query that counts the groups, shown by both versions, whose difference no cell would be allowed to show;
    and the names of its WITH queries.

    The difference of each figure must come from no unit or from at least `min_group` units, each within its permitted
    share. Each group is examined twice: 1. by the change of each named unit; 2. where units may have other names, or no
    names, by the values left after removing those that occur in both versions. Groups are the cells, those of each
    dimension alone, and all cells together, because a unit may appear while others move between cells or into cells
    that the other version lacks. The result counts the kind of group with the most findings.
    """
    grid, old, new = require_grid(contract), build_grid(contract, before, maker), build_grid(contract, after, maker)
    sides, found = maker.token(), []
    units = exp.union(_signed_units(grid, old, -1), _signed_units(grid, new, 1), distinct=False, copy=False)
    ctes: list[tuple[str, exp.Query]] = [*old.ctes[:-1], *new.ctes[:-1], (sides, units)]
    finer: _GroupComparison | None = None
    for dimensions in _kinds(grid.dimensions):
        at = replace(contract, grid=replace(grid, dimensions=dimensions))
        compared = _compare_groups(at, sides, finer, maker)
        ctes += compared.ctes
        shown = (cells_of(require_grid(at), name) for name in (compared.few, old.cells, new.cells))
        in_both = exp.intersect(*shown, distinct=True, copy=False)
        alias = exp.TableAlias(this=exp.to_identifier(maker.token(), quoted=True))
        found.append(scalar_subquery(count_star(), exp.Subquery(this=in_both, alias=alias)))
        finer = finer or compared
    most = found[0] if len(found) == 1 else exp.Anonymous(this="greatest", expressions=found)
    query = exp.select(named_as(most, "cells"), copy=False)
    query.set("with_", exp.With(expressions=[cte(*one) for one in ctes]))
    return query, tuple(name for name, _ in ctes)


def _kinds(dimensions: tuple[Dimension, ...]) -> list[tuple[Dimension, ...]]:
    """The kinds of groups that are compared, cells first."""
    alone = [(one,) for one in dimensions if len(dimensions) > 1]
    return [dimensions, *alone, *([()] if dimensions else [])]


@dataclass(frozen=True, slots=True)
class _GroupComparison:
    """The comparison of one kind of group: names of the queries with groups that differ by few, with the change of each
    unit (empty without an entity), and with what is left by value.
    """

    ctes: tuple[tuple[str, exp.Query], ...]
    few: str
    units: str
    left: str


def _compare_groups(
    contract: DataContract, sides: str, finer: _GroupComparison | None, maker: StatementBuilder
) -> _GroupComparison:
    """Compare one kind of group. `finer`: the cells of these groups, whose changes are summed; None for cells."""
    grid, ctes = require_grid(contract), list[tuple[str, exp.Query]]()
    every, units, named = tuple(range(len(grid.measures))), "", ""
    found: list[exp.Query] = []
    if grid.entity is not None:
        units, named = maker.token(), maker.token()
        changed = _change_by_name(grid, sides) if finer is None else _change_by_group(grid, finer.units)
        ctes += [(units, changed), (named, _judge_changes(contract, units, maker))]  # 1
        found.append(cells_of(grid, named).where(column_named(_DIFFERS_BY_FEW), copy=False))

    def left_of(query: exp.Select, kept: list[exp.Expr]) -> str:
        ctes.append((name := maker.token(), query))
        few = exp.Not(this=exp.Paren(this=exp.and_(*kept, copy=False)))
        found.append(_group_by_cell(grid, cells_of(grid, name)).having(few, copy=False))
        return name

    source = sides if finer is None else finer.left
    left = left_of(_change_by_value(grid, source, every, named), _value_conditions(contract, every, maker))  # 2
    unnamed = left
    if named and len(every) > 1:
        ctes.append((unnamed := maker.token(), _unnamed_changes(grid, left, named)))
    for one in every if len(every) > 1 else ():
        left_of(_change_by_value(grid, unnamed, (one,)), _value_conditions(contract, (one,), maker))
    # There are many pairs: they are compared in the smallest and the largest groups only.
    for pair in combinations(every if finer is None or not grid.dimensions else (), 2):
        left_of(_change_of_two_measures(grid, unnamed, pair), _two_measure_conditions(grid, maker))
    few = found[0] if len(found) == 1 else exp.union(*found, distinct=True, copy=False)
    ctes.append((name := maker.token(), few))
    return _GroupComparison(tuple(ctes), name, units, left)


def _signed_units(grid: Grid, one: GridQueries, sign: int) -> exp.Select:
    """The units of the cells of one version, with sign -1 for the older and 1 for the newer."""
    left, right = f"{one.units}b", f"{one.cells}c"
    names = [*(dimension.column for dimension in grid.dimensions)]
    names += [grid.entity] if grid.entity is not None else []
    names += [IN_ROWS, *(f"{what}{index}" for index in range(len(grid.measures)) for what in (COUNTED, SUMMED, SIZED))]
    shown = [named_as(policy_view.stored_column(name, left), name) for name in names]
    shown += (
        [named_as(policy_view.stored_column(UNITS_COUNTABLE, right), UNITS_COUNTABLE)]
        if grid.entity is not None
        else []
    )
    shown.append(named_as(exp.Literal.number(sign), _SIGN))
    query = exp.select(*shown, copy=False).from_(policy_view.aliased_relation(one.units, left), copy=False)
    return join_cells(query, grid, left, one.cells, right)


def _change_by_name(grid: Grid, sides: str) -> exp.Select:
    """The change of each unit in a cell: presence (1 added, -1 removed), rows, and for each measure its count, sum,
    absolute sum, and the size of the numbers involved.
    """
    sign = column_named(_SIGN)
    countable = exp.Anonymous(this="bool_and", expressions=[column_named(UNITS_COUNTABLE)])

    def change(name: str) -> exp.Expr:
        return exp.Sum(this=exp.Mul(this=sign.copy(), expression=column_named(name)))

    return _change_query(grid, sides, exp.Sum(this=sign.copy()), countable, change, SIZED)


def _change_by_group(grid: Grid, units: str) -> exp.Select:
    """The change of each unit in a group of cells, from `_change_by_name`. The number of groups of a unit is known only
    where it is in one cell of each version.
    """
    sign = column_named(_SIGN)
    gone, come = (exp.CountIf(this=way(this=sign.copy(), expression=ZERO.copy())) for way in (exp.LTE, exp.GTE))
    now, then = (exp.Anonymous(this="least", expressions=[cells, ONE.copy()]) for cells in (come, gone))
    alone = [exp.LTE(this=cells.copy(), expression=ONE.copy()) for cells in (gone, come)]
    countable = exp.and_(
        exp.Anonymous(this="bool_and", expressions=[column_named(UNITS_COUNTABLE)]), *alone, copy=False
    )
    there = exp.Sub(this=now, expression=then)
    return _change_query(grid, units, there, countable, lambda name: exp.Sum(this=column_named(name)), _B)


def _change_query(
    grid: Grid, source: str, there: exp.Expr, countable: exp.Expr, change: Callable[[str], exp.Expr], size: str
) -> exp.Select:
    assert grid.entity is not None
    keys = [*key_columns(grid), column_named(grid.entity)]
    shown = [
        *(key.copy() for key in keys),
        named_as(countable, UNITS_COUNTABLE),
        named_as(there, _SIGN),
        named_as(change(IN_ROWS), IN_ROWS),
    ]
    for index in range(len(grid.measures)):
        summed, scale = change(f"{SUMMED}{index}"), exp.Sum(this=column_named(f"{size}{index}"))
        more = exp.If(this=differs_from_zero(summed, scale), true=summed.copy())
        by = exp.Case(ifs=[more], default=ZERO.copy())
        shown += [named_as(change(f"{COUNTED}{index}"), f"{COUNTED}{index}"), named_as(by, f"{SUMMED}{index}")]
        shown += [named_as(exp.Abs(this=by.copy()), f"{SIZED}{index}"), named_as(scale.copy(), f"{_B}{index}")]
    query = exp.select(*shown, copy=False).from_(table_named(source), copy=False)
    return query.group_by(*keys, copy=False)


def _judge_changes(contract: DataContract, units: str, maker: StatementBuilder) -> exp.Select:
    """For each cell: whether its units changed by too little, by name, and whether unit names stayed stable.

    `_NAMES_STABLE`: at least half of the units of the smaller version are in the cell in both versions.
    `_FIGURES_STABLE`: at least half of them also have the same figures in both.
    """
    grid = require_grid(contract)
    every = range(len(grid.measures))
    sign, rows = column_named(_SIGN), column_named(IN_ROWS)
    conditions = [none_or_many(exp.CountIf(this=exp.NEQ(this=rows, expression=ZERO.copy())), grid)]
    conditions.append(within_share(exp.Abs(this=rows.copy()), grid.dominance, maker))
    conditions += [within_share(column_named(f"{SIZED}{index}"), grid.dominance, maker) for index in every]
    conditions += [
        none_or_many(exp.CountIf(this=one), grid) for one in contributor_conditions(contract, every, _B, maker)
    ]
    of_units = [
        none_or_many(exp.CountIf(this=exp.NEQ(this=sign.copy(), expression=than)), grid)
        for than in (ZERO.copy(), *(column_named(name) for name in count_names(grid)))
    ]
    uncountable = exp.Not(this=exp.Anonymous(this="bool_and", expressions=[column_named(UNITS_COUNTABLE)]))
    conditions.append(exp.Paren(this=exp.Or(this=uncountable, expression=exp.and_(*of_units, copy=False))))
    stays = exp.EQ(this=sign.copy(), expression=ZERO.copy())
    figures = [*count_names(grid), *(f"{SUMMED}{index}" for index in every)]
    same = [exp.EQ(this=column_named(name), expression=ZERO.copy()) for name in figures]
    fewer = exp.Anonymous(
        this="least",
        expressions=[exp.CountIf(this=way(this=sign.copy(), expression=ZERO.copy())) for way in (exp.LTE, exp.GTE)],
    )

    def half(which: exp.Expr) -> exp.Expr:
        twice = exp.Mul(this=exp.CountIf(this=which), expression=exp.Literal.number(2))
        there = exp.GT(this=fewer.copy(), expression=ZERO.copy())
        return exp.And(this=exp.GTE(this=twice, expression=fewer.copy()), expression=there)

    few = exp.Not(this=exp.Paren(this=exp.and_(*conditions, copy=False)))
    shown = [*key_columns(grid), named_as(few, _DIFFERS_BY_FEW), named_as(half(stays), _NAMES_STABLE)]
    shown.append(named_as(half(exp.and_(stays.copy(), *same, copy=False)), _FIGURES_STABLE))
    return _group_by_cell(grid, exp.select(*shown, copy=False).from_(table_named(units), copy=False))


def _change_by_value(grid: Grid, sides: str, measures: Sequence[int], named: str = "") -> exp.Select:
    """What one version has and the other lacks, by the values of these measures and regardless of the unit; only in
    cells that `named` does not report as stable. `_SIGN`: how many more the newer version has.
    """
    left, right = f"{sides}b", f"{named}c"
    names = [IN_ROWS, *(f"{COUNTED}{index}" for index in measures)]
    keys = [policy_view.stored_column(one.column, left) for one in grid.dimensions] + [
        policy_view.stored_column(name, left) for name in names
    ]
    more = exp.Sum(this=policy_view.stored_column(_SIGN, left))
    shown = [*(node.copy() for node in keys), named_as(more, _SIGN)]
    for index in measures:
        summed = policy_view.stored_column(f"{SUMMED}{index}", left)
        # Equal sums may differ by rounding, in the order of addition.
        keys.append(summed if grid.entity is None else policy_view.try_cast(summed, "FLOAT"))
        shown += [
            named_as(exp.Max(this=policy_view.stored_column(name, left)), name)
            for name in (f"{SUMMED}{index}", f"{SIZED}{index}")
        ]
    query = exp.select(*shown, copy=False).from_(policy_view.aliased_relation(sides, left), copy=False)
    if named:
        join_cells(query, grid, left, named, right).where(
            exp.Not(this=policy_view.stored_column(_FIGURES_STABLE, right)), copy=False
        )
    query.group_by(*(node.copy() for node in keys), copy=False)
    return query.having(exp.NEQ(this=more.copy(), expression=ZERO.copy()), copy=False)


def _unnamed_changes(grid: Grid, left: str, named: str) -> exp.Select:
    """What is left by value in groups whose unit names did not stay stable."""
    whose, right = f"{left}b", f"{named}c"
    names = [*(one.column for one in grid.dimensions), IN_ROWS, _SIGN]
    names += [f"{what}{index}" for index in range(len(grid.measures)) for what in (COUNTED, SUMMED, SIZED)]
    shown = [named_as(policy_view.stored_column(name, whose), name) for name in names]
    query = exp.select(*shown, copy=False).from_(policy_view.aliased_relation(left, whose), copy=False)
    return join_cells(query, grid, whose, named, right).where(
        exp.Not(this=policy_view.stored_column(_NAMES_STABLE, right)), copy=False
    )


def _change_of_two_measures(grid: Grid, left: str, pair: tuple[int, int]) -> exp.Select:
    """The change of the difference of two measures, from `_change_by_value`, in the form of one measure."""
    whose = f"{left}b"

    def of_both(what: str, node: type[exp.Sub] | type[exp.Add]) -> exp.Expr:
        first, second = (policy_view.stored_column(f"{what}{index}", whose) for index in pair)
        return exp.Paren(this=node(this=first, expression=second))

    less, counted = of_both(SUMMED, exp.Sub), of_both(COUNTED, exp.Sub)
    apart = exp.If(this=differs_from_zero(less, of_both(SIZED, exp.Add)), true=less.copy())
    # Equal differences of decimals kept as DOUBLE may differ in their last digits.
    by = policy_view.try_cast(exp.Case(ifs=[apart], default=ZERO.copy()), "FLOAT")
    keys = [policy_view.stored_column(dimension.column, whose) for dimension in grid.dimensions] + [counted, by]
    more = exp.Sum(this=policy_view.stored_column(_SIGN, whose))
    shown = [
        *(key.copy() for key in keys[:-2]),
        named_as(counted.copy(), f"{COUNTED}0"),
        named_as(by.copy(), f"{SUMMED}0"),
    ]
    shown += [named_as(exp.Abs(this=by.copy()), f"{SIZED}0"), named_as(more, _SIGN)]
    query = exp.select(*shown, copy=False).from_(policy_view.aliased_relation(left, whose), copy=False)
    query.group_by(*(node.copy() for node in keys), copy=False)
    return query.having(exp.NEQ(this=more.copy(), expression=ZERO.copy()), copy=False)


def _two_measure_conditions(grid: Grid, maker: StatementBuilder) -> list[exp.Expr]:
    """What the result of `_change_of_two_measures` must fulfil in a group."""
    other = [exp.NEQ(this=column_named(f"{what}0"), expression=ZERO.copy()) for what in (COUNTED, SUMMED)]
    share = within_share(column_named(f"{SIZED}0"), grid.dominance, maker, times=exp.Abs(this=column_named(_SIGN)))
    return [*(none_or_many(_fewest_units(one), grid) for one in other), share]


def _value_conditions(contract: DataContract, measures: Sequence[int], maker: StatementBuilder) -> list[exp.Expr]:
    """What the result of `_change_by_value` must fulfil in a cell."""
    grid, sign = require_grid(contract), column_named(_SIGN)
    parts: list[exp.Expr] = [exp.Boolean(this=True), *contributor_conditions(contract, measures, SIZED, maker)]
    sizes = [column_named(IN_ROWS)] if grid.entity is not None else []
    sizes += [column_named(f"{SIZED}{index}") for index in measures]
    found = [none_or_many(_fewest_units(one), grid) for one in parts]
    return found + [within_share(size, grid.dominance, maker, times=exp.Abs(this=sign.copy())) for size in sizes]


def _fewest_units(which: exp.Expr) -> exp.Expr:
    """The fewest units that can differ: a changed unit counts as one removed and one added, like two other units."""
    sign = column_named(_SIGN)
    gone, come = (exp.Mul(this=sign.copy(), expression=exp.Literal.number(way)) for way in (-1, 1))

    def count_where(more: exp.Expr) -> exp.Expr:
        there = exp.And(this=exp.Paren(this=which.copy()), expression=exp.GT(this=more, expression=ZERO.copy()))
        return or_zero(exp.Sum(this=exp.Case(ifs=[exp.If(this=there, true=more.copy())])))

    return greatest(count_where(gone), count_where(come))


def _group_by_cell(grid: Grid, query: exp.Select) -> exp.Select:
    return query.group_by(*key_columns(grid), copy=False) if grid.dimensions else query
