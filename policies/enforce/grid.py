"""The grid that aggregate-only queries read: binned cells of at least k units.

A threshold on the answer alone can be defeated by differencing, padding and encoding, so small cells are removed before
the query. `build_grid` makes the grid as WITH queries over the relation, `guard` is a second check on the answer, and
`withheld_report` tells the owner what is withheld. Allowed query shapes are in `aggregate_shapes`; differences between
versions in `grid_difference`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from sqlglot import exp

from policies.contracts import columns
from policies.contracts.contract import DataContract, Dimension, Grid, Measure
from policies.contracts.masks import text_columns
from policies.enforce import policy_view
from policies.enforce.policy_view import StatementBuilder
from policies.evaluation.values import format_decimal


@dataclass(frozen=True, slots=True)
class GridQueries:
    """The WITH queries of one grid, in order, and the name of the last, which queries read."""

    ctes: tuple[tuple[str, exp.Select], ...]  # name, query
    name: str
    base: str
    units: str
    cells: str


def build_grid(contract: DataContract, relation: str, maker: StatementBuilder) -> GridQueries:
    """Return the queries for whole cells of at least `min_group` units without a dominant unit, binned and clamped.

    base: filtered rows, binned and clamped, without rows of unknown units. units: the contribution of each unit to its
    cells. cells: the cells that may be shown. grid: the rows of base in these cells.
    """
    base, units, cells, grid = (maker.token() for _ in range(4))
    asked = require_grid(contract)
    made = (
        (base, base_rows(contract, relation, maker)),
        (units, _units_query(asked, base)),
        (cells, _cells_query(contract, units, maker)),
        (grid, _rows_query(asked, base, cells)),
    )
    return GridQueries(made, grid, base, units, cells)


def require_grid(contract: DataContract) -> Grid:
    """Return the contract's grid.

    Raises: ValueError for a contract that gives rows.
    """
    if contract.grid is None:
        raise ValueError("expected an aggregate-only contract, got one that gives rows")
    return contract.grid


def base_rows(contract: DataContract, relation: str, maker: StatementBuilder) -> exp.Select:
    """Return the filtered rows: dimensions masked and binned, measures clamped, without unknown units."""
    grid, source = require_grid(contract), maker.token()
    shown = [named_as(_binned_value(contract, one, source, maker), one.column) for one in grid.dimensions]
    shown += [named_as(_clamped_value(contract, one, source, maker), one.column) for one in grid.measures]
    if grid.entity is not None:
        shown.append(named_as(policy_view.stored_column(grid.entity, source), grid.entity))
    query = policy_view.select_permitted(
        shown, relation, source, policy_view.filter_condition(contract, source, maker), maker
    )
    if grid.entity is not None:
        query.where(exp.Not(this=_is_null(column_named(grid.entity))), copy=False)
    return query


def visible_type(contract: DataContract, one: Dimension) -> str:
    """Return the type of a dimension in queries: texts when hashed or truncated, numbers for bin edges."""
    type_ = policy_view.column_type(contract, one.column)
    if one.width is not None:
        return _edge_type(type_, one.width)
    return "VARCHAR" if one.column in text_columns(contract.masks) else type_


def _edge_type(type_: str, width: float) -> str:
    """The type of bin edges. Each bin needs its own number: two edges that are equal as DOUBLE would merge groups."""
    if columns.family(type_) != columns.INTEGER or not float(width).is_integer():
        return policy_view.edge_type(type_, width) or "DOUBLE"
    return type_ if columns.value_range(type_)[1] > columns.value_range("BIGINT")[1] else "BIGINT"


def _binned_value(contract: DataContract, one: Dimension, source: str, maker: StatementBuilder) -> exp.Expr:
    value, type_ = (
        policy_view.masked_column(contract, one.column, source, maker),
        policy_view.column_type(contract, one.column),
    )
    if one.width is None:
        return policy_view.unsigned_zero(value, type_)
    shown = _edge_type(type_, one.width)
    edge = policy_view.try_cast(policy_view.bin_edge(value, one.width, type_, maker), shown)
    if columns.family(shown) == columns.FLOAT:
        return policy_view.unsigned_zero(edge, type_)
    return _lowest_edge(edge, value, type_, shown, one.width) or edge


def _lowest_edge(edge: exp.Expr, value: exp.Expr, type_: str, shown: str, width: float) -> exp.Expr | None:
    """The edge, replaced by the smallest number of its type for the bin that starts below it; None when no bin does."""
    step, least = Fraction(str(width)), _least_number(shown)
    if Fraction(_least_number(type_)) // step * step >= Fraction(least):
        return None
    lowest = policy_view.try_cast(exp.Literal.string(format_decimal(least)), shown)
    there = exp.If(this=exp.Not(this=_is_null(value.copy())), true=lowest)
    return exp.Coalesce(this=edge, expressions=[exp.Case(ifs=[there])])


def _least_number(type_: str) -> Decimal:
    return Decimal(f"{columns.value_range(type_)[0]}E-{columns.decimal_scale(type_)}")


def _clamped_value(contract: DataContract, one: Measure, source: str, maker: StatementBuilder) -> exp.Expr:
    """The measure within its bounds. NULL stays NULL, which the engine's least and greatest would not ensure."""
    type_ = policy_view.column_type(contract, one.column)
    value = policy_view.stored_column(one.column, source)
    ifs = []
    if columns.family(type_) == columns.FLOAT:
        ifs.append(exp.If(this=exp.Anonymous(this="isnan", expressions=[value.copy()]), true=exp.Null()))
    for bound, node in ((one.low, exp.LT), (one.high, exp.GT)):
        if bound is not None:
            edge = _bound(bound, type_, maker)
            ifs.append(exp.If(this=node(this=value.copy(), expression=edge), true=edge.copy()))
    return exp.Case(ifs=ifs, default=value) if ifs else value


def _bound(bound: float, type_: str, maker: StatementBuilder) -> exp.Expr:
    if columns.family(type_) == columns.FLOAT:
        return maker.parameters.add(bound)
    # Bounds are integers where the type is, so that sums stay integers.
    return policy_view.try_cast(maker.parameters.add(int(bound) if bound.is_integer() else bound), type_)


def _units_query(grid: Grid, base: str) -> exp.Select:
    """One row for each unit and cell: its rows, and for each measure its values, their sum and their absolute sum.

    Without an entity each row is a unit.
    """
    shown = key_columns(grid) + ([column_named(grid.entity)] if grid.entity is not None else [])
    keys, grouped = [node.copy() for node in shown], grid.entity is not None
    shown.append(named_as(count_star() if grouped else exp.Literal.number(1), IN_ROWS))
    for index, one in enumerate(grid.measures):
        value, size = _number(one), exp.Abs(this=_number(one))
        there = exp.Case(ifs=[exp.If(this=_is_null(column_named(one.column)), true=ZERO.copy())], default=ONE.copy())
        counted = exp.Count(this=column_named(one.column)) if grouped else there
        shown.append(named_as(counted, f"{COUNTED}{index}"))
        shown.append(named_as(or_zero(exp.Sum(this=value) if grouped else value), f"{SUMMED}{index}"))
        shown.append(named_as(or_zero(exp.Sum(this=size) if grouped else size), f"{SIZED}{index}"))
    query = exp.select(*shown, copy=False).from_(table_named(base), copy=False)
    return query.group_by(*keys, copy=False) if grouped else query


def _cells_query(contract: DataContract, units: str, maker: StatementBuilder) -> exp.Select:
    grid = require_grid(contract)
    keys = key_columns(grid)
    shown = keys or [named_as(ONE.copy(), IN_ROWS)]
    query = exp.select(*(node.copy() for node in shown), copy=False).from_(table_named(units), copy=False)
    if grid.entity is not None:
        query.select(named_as(_units_countable(grid), UNITS_COUNTABLE), copy=False)
    if keys:
        query.group_by(*(node.copy() for node in keys), copy=False)
    query.having(exp.and_(*cell_conditions(contract, maker), copy=False), copy=False)
    return query.limit(exp.Literal.number(_ALL), copy=False)


def cell_conditions(contract: DataContract, maker: StatementBuilder) -> list[exp.Expr]:
    """Return what a cell must fulfil, in terms of `_units_query`.

    1. At least k units.
    2. No unit contributes more than its share of the rows or of a measure.
    3. Each figure, and each difference of two figures, comes from no unit or from at least k units
    (`contributor_conditions`).
    """
    grid = require_grid(contract)
    every = range(len(grid.measures))
    conditions: list[exp.Expr] = [_at_least(count_star(), grid.min_group)]  # 1
    if grid.entity is not None:
        conditions.append(within_share(column_named(IN_ROWS), grid.dominance, maker))  # 2
    conditions += [within_share(column_named(f"{SIZED}{index}"), grid.dominance, maker) for index in every]  # 2
    conditions += [
        none_or_many(exp.CountIf(this=one), grid) for one in contributor_conditions(contract, every, SIZED, maker)
    ]  # 3
    return conditions


def contributor_conditions(
    contract: DataContract, measures: Sequence[int], size: str, maker: StatementBuilder
) -> Iterator[exp.Expr]:
    """Yield one condition on a unit for each figure other than COUNT(*), and for each difference of two figures:
    whether the unit contributes to it.

    Of a measure: the units with a value, with a row without one, that change its sum, and that move the sum away from a
    bound (when all but two units are at the bound, the sum reveals these two). Of two measures: the units whose counts
    differ and whose sums differ. `size`: the columns with the absolute sums.
    """
    for index in measures:
        counted, summed = column_named(f"{COUNTED}{index}"), column_named(f"{SUMMED}{index}")
        scale = column_named(f"{size}{index}")
        yield exp.NEQ(this=counted, expression=ZERO.copy())
        yield exp.NEQ(this=counted.copy(), expression=column_named(IN_ROWS))
        yield differs_from_zero(summed, scale)
        for bound in _bounds(contract, index, maker):
            at_bound = exp.Mul(this=bound, expression=counted.copy())
            yield differs_from_zero(exp.Paren(this=exp.Sub(this=summed.copy(), expression=at_bound)), scale.copy())
        for other in measures:
            if other < index:
                yield exp.NEQ(this=counted.copy(), expression=column_named(f"{COUNTED}{other}"))
                less = exp.Sub(this=summed.copy(), expression=column_named(f"{SUMMED}{other}"))
                both = exp.Add(this=scale.copy(), expression=column_named(f"{size}{other}"))
                yield differs_from_zero(exp.Paren(this=less), exp.Paren(this=both))


def differs_from_zero(value: exp.Expr, scale: exp.Expr) -> exp.Expr:
    """Whether a sum differs from zero by more than rounding: other order of addition, or decimals kept as DOUBLE."""
    lost = exp.Mul(this=exp.Literal.number(repr(_LOST)), expression=scale)
    return exp.GT(this=exp.Abs(this=value), expression=lost)


def _bounds(contract: DataContract, index: int, maker: StatementBuilder) -> list[exp.Expr]:
    """The bounds of a measure in clamped rows, 0 for a bound that its type cannot hold; without 0, where a value adds
    nothing.
    """
    one = require_grid(contract).measures[index]
    type_ = policy_view.column_type(contract, one.column)
    given = [bound for bound in (one.low, one.high) if bound]
    return [or_zero(policy_view.try_cast(_bound(bound, type_, maker), "DOUBLE")) for bound in given]


def none_or_many(units: exp.Expr, grid: Grid) -> exp.Expr:
    """Return the condition that a number of units is 0 or at least k."""
    few = exp.Between(this=units, low=ONE.copy(), high=exp.Literal.number(grid.min_group - 1))
    return exp.Not(this=exp.Paren(this=few))


def _units_countable(grid: Grid) -> exp.Expr:
    """Whether COUNT(DISTINCT unit) of a cell reveals nothing: the number of units with several rows, or with several
    values of a measure, is 0 or at least k.
    """
    several = [exp.GT(this=column_named(name), expression=ONE.copy()) for name in count_names(grid)]
    return exp.and_(*(none_or_many(exp.CountIf(this=one), grid) for one in several), copy=False)


def count_names(grid: Grid) -> list[str]:
    """Return the columns of `_units_query` that are counts."""
    return [IN_ROWS, *(f"{COUNTED}{index}" for index in range(len(grid.measures)))]


def within_share(
    size: exp.Expr, dominance: float, maker: StatementBuilder, *, times: exp.Expr | None = None
) -> exp.Expr:
    """Return the condition that the largest contribution is at most `dominance` of a finite sum; true for an empty sum.

    `times`: how often each contribution occurs.
    """
    total = exp.Sum(this=size.copy() if times is None else exp.Mul(this=size.copy(), expression=times))
    part = exp.Mul(this=maker.parameters.add(dominance), expression=total)
    finite = exp.LT(this=total.copy(), expression=policy_view.try_cast(exp.Literal.string("inf"), "DOUBLE"))
    within = exp.And(this=exp.LTE(this=exp.Max(this=size), expression=part), expression=finite)
    return exp.Coalesce(this=exp.Paren(this=within), expressions=[exp.Boolean(this=True)])


def _rows_query(grid: Grid, base: str, cells: str) -> exp.Select:
    left, right = f"{base}b", f"{base}c"
    names = [one.column for one in grid.measures] + ([grid.entity] if grid.entity is not None else [])
    shown = [named_as(policy_view.stored_column(one.column, right), one.column) for one in grid.dimensions]
    shown += [named_as(policy_view.stored_column(name, left), name) for name in names]
    shown = shown or [named_as(exp.Literal.number(1), IN_ROWS)]
    shown += (
        [named_as(policy_view.stored_column(UNITS_COUNTABLE, right), UNITS_COUNTABLE)]
        if grid.entity is not None
        else []
    )
    query = exp.select(*shown, copy=False).from_(policy_view.aliased_relation(base, left), copy=False)
    return join_cells(query, grid, left, cells, right)


def withheld_report(
    contract: DataContract, relation: str, maker: StatementBuilder
) -> tuple[exp.Select, tuple[str, ...]]:
    """Return a query with one row of figures about what the grid withholds, and the names of its WITH queries."""
    grid, made = require_grid(contract), build_grid(contract, relation, maker)
    # Rows without a unit count in the report, but not in the grid.
    everything = maker.token()
    unit = count_star() if grid.entity is None else distinct_count(column_named(grid.entity))
    filtered = exp.select(named_as(exp.Literal.number(1), IN_ROWS), copy=False).from_(
        policy_view.aliased_relation(relation, everything), copy=False
    )
    condition = policy_view.filter_condition(contract, everything, maker)
    if condition is not None:
        filtered.where(condition, copy=False)
    total = maker.token()
    ctes = [*made.ctes, (total, filtered)]
    figures = {
        "cells": scalar_subquery(count_star(), _distinct_cells(grid, made.base, maker)),
        "cells_shown": scalar_subquery(count_star(), table_named(made.cells)),
        "units": scalar_subquery(unit, table_named(made.base)),
        "units_shown": scalar_subquery(unit, table_named(made.name)),
        "rows": scalar_subquery(count_star(), table_named(total)),
        "rows_shown": scalar_subquery(count_star(), table_named(made.name)),
        "rows_with_unit": scalar_subquery(count_star(), table_named(made.base)),
        "rows_of_largest": scalar_subquery(
            or_zero(exp.Max(this=column_named(IN_ROWS))), _withheld_cells(grid, made, maker)
        ),
    }
    query = exp.select(*(named_as(value, name) for name, value in figures.items()), copy=False)
    query.set("with_", exp.With(expressions=[cte(*one) for one in ctes]))
    return query, tuple(name for name, _ in ctes)


def join_cells(query: exp.Select, grid: Grid, left: str, cells: str, right: str) -> exp.Select:
    """Join each row with its cell."""
    same: list[exp.Expr] = [
        exp.NullSafeEQ(
            this=policy_view.stored_column(one.column, left), expression=policy_view.stored_column(one.column, right)
        )
        for one in grid.dimensions
    ]
    join = exp.Join(this=policy_view.aliased_relation(cells, right))
    if same:
        join.set("on", exp.and_(*same, copy=False))
    else:
        join.set("kind", "CROSS")
    query.append("joins", join)
    return query


def scalar_subquery(value: exp.Expr, source: exp.Expr) -> exp.Subquery:
    """Return one figure of a source as a scalar subquery."""
    return exp.Subquery(this=exp.select(value.copy(), copy=False).from_(source, copy=False))


def cells_of(grid: Grid, table: str) -> exp.Select:
    """Return the cells of the rows of a table."""
    shown = key_columns(grid) or [named_as(ONE.copy(), IN_ROWS)]
    return exp.select(*shown, copy=False).from_(table_named(table), copy=False)


def _withheld_cells(grid: Grid, made: GridQueries, maker: StatementBuilder) -> exp.Expr:
    """The withheld cells with their rows."""
    all_, shown = (_counted_cells(grid, table) for table in (made.base, made.name))
    query = exp.Except(this=all_, expression=shown, distinct=True)
    return exp.Subquery(this=query, alias=exp.TableAlias(this=exp.to_identifier(maker.token(), quoted=True)))


def _counted_cells(grid: Grid, table: str) -> exp.Select:
    keys = key_columns(grid)
    query = exp.select(*keys, named_as(count_star(), IN_ROWS), copy=False).from_(table_named(table), copy=False)
    return query.group_by(*(column_named(one.column) for one in grid.dimensions), copy=False) if keys else query


def _distinct_cells(grid: Grid, base: str, maker: StatementBuilder) -> exp.Expr:
    query = cells_of(grid, base)
    query.set("distinct", exp.Distinct())
    return exp.Subquery(this=query, alias=exp.TableAlias(this=exp.to_identifier(maker.token(), quoted=True)))


def cte(name: str, query: exp.Query, *, materialised: bool = False) -> exp.CTE:
    alias = exp.TableAlias(this=exp.to_identifier(name, quoted=True))
    return exp.CTE(this=query, alias=alias, materialized=materialised or None)


# More than there can be: no engine pushes a condition through a limit, whatever its size.
_ALL = 2**62

# Not names of table columns.
IN_ROWS, COUNTED, SUMMED, SIZED = "rows of unit", "count of measure ", "sum of measure ", "size of measure "
UNITS_COUNTABLE = "units may be told"
ZERO, ONE = exp.Literal.number(0), exp.Literal.number(1)
_LOST = 2.0**-40  # the share of a sum of some thousand numbers that rounding may lose


def named_as(value: exp.Expr, name: str) -> exp.Expr:
    return exp.alias_(value, name, quoted=True, copy=False)


def column_named(name: str) -> exp.Column:
    return exp.column(exp.to_identifier(name, quoted=True))


def table_named(cte: str) -> exp.Table:
    return exp.Table(this=exp.to_identifier(cte, quoted=True))


def greatest(left: exp.Expr, right: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this="greatest", expressions=[left, right])


def count_star() -> exp.Count:
    return exp.Count(this=exp.Star(), big_int=True)


def _is_null(value: exp.Expr) -> exp.Is:
    return exp.Is(this=value, expression=exp.Null())


def _at_least(value: exp.Expr, number: int) -> exp.GTE:
    return exp.GTE(this=value, expression=exp.Literal.number(number))


def key_columns(grid: Grid) -> list[exp.Expr]:
    """Return the dimensions, by which cells are grouped."""
    return [column_named(one.column) for one in grid.dimensions]


def _number(one: Measure) -> exp.Expr:
    """The value as DOUBLE: sums of integers may overflow, and the smallest integer has no absolute value."""
    return policy_view.try_cast(column_named(one.column), "DOUBLE")


def or_zero(value: exp.Expr) -> exp.Expr:
    return exp.Coalesce(this=value, expressions=[ZERO.copy()])


def guard(tree: exp.Select, contract: DataContract, name: str) -> None:
    """Drop groups under k after aggregation, in place, as a second check behind the grid. `name` is the grid's.

    Every other aggregate over a union of cells is a sum over cells, so a union reveals no more than its cells.
    COUNT(DISTINCT unit) is such a sum only for one cell, or when no unit is in two cells; otherwise groups that count
    units are dropped. This is decided for the whole grid: a decision for each union would reveal which cells share
    units.
    """
    grid = require_grid(contract)
    unit = count_star() if grid.entity is None else distinct_count(column_named(grid.entity))
    conditions: list[exp.Expr] = [_at_least(unit, grid.min_group)]
    if counts_units(tree):
        conditions.append(exp.Anonymous(this="bool_and", expressions=[column_named(UNITS_COUNTABLE)]))
        if grid.dimensions:
            conditions.append(exp.Paren(this=exp.Or(this=_one_cell(grid), expression=_no_shared_unit(grid, name))))
    tree.set("having", exp.Having(this=exp.and_(*conditions, copy=False)))
    fix_group_order(tree)


def fix_group_order(tree: exp.Select) -> None:
    """Order the groups of an answer by all outputs where the query leaves the order open, in place.

    Without it the engine returns groups in the order in which it met them, which reveals the order of rows.
    """
    order = tree.args.get("order") or exp.Order(expressions=[])
    for place in range(1, len(tree.expressions) + 1):
        order.append("expressions", exp.Ordered(this=exp.Literal.number(place)))
    tree.set("order", order)


def counts_units(tree: exp.Expr) -> bool:
    """Return whether a checked query uses COUNT(DISTINCT unit)."""
    return any(one.find(exp.Distinct) for one in tree.args["expressions"])


def _one_cell(grid: Grid) -> exp.Expr:
    return exp.EQ(this=distinct_count(_cell(grid)), expression=exp.Literal.number(1))


def _no_shared_unit(grid: Grid, name: str) -> exp.Expr:
    """Whether no unit is in two cells of the grid."""
    assert grid.entity is not None
    places = distinct_count(_cell(grid, column_named(grid.entity)))
    same = exp.EQ(this=places, expression=distinct_count(column_named(grid.entity)))
    return exp.Subquery(this=exp.select(same, copy=False).from_(table_named(name), copy=False))


def _cell(grid: Grid, *more: exp.Expr) -> exp.Tuple:
    """A cell as one value: never NULL, and never a single column in parentheses, which could be NULL."""
    return exp.Tuple(expressions=[*(column_named(one.column) for one in grid.dimensions), *more, exp.Literal.number(1)])


def distinct_count(value: exp.Expr) -> exp.Count:
    return exp.Count(this=exp.Distinct(expressions=[value]), big_int=True)


def queryable_columns(names: Sequence[str], grid: Grid) -> tuple[str, ...]:
    """Return the columns that a query may name: the visible ones and the unit, which may be counted."""
    return tuple(names) if grid.entity is None else (*names, grid.entity)
