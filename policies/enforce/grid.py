"""The pre-binned grid that aggregate-only queries read (federated-query, section 7): whole cells of at least k units.

A threshold on the answer alone is beaten by differencing, padding and encoding; the grid holds no smaller cell
to begin with. `layers` builds it as WITH queries over the relation, `guard` is a second fence behind it, and
`report` tells the owner what it keeps back. The shapes of query that may read it are in `aggregate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from sqlglot import exp

from policies import columns
from policies.contract import DataContract, Dimension, Grid, Measure
from policies.enforce import wrap
from policies.enforce.wrap import Maker
from policies.masks import texts
from policies.values import plain


@dataclass(frozen=True, slots=True)
class Layers:
    """The WITH queries of one grid, in order, and the name of the last, which queries read."""

    ctes: tuple[tuple[str, exp.Select], ...]  # name, query
    name: str
    base: str
    cells: str


def layers(contract: DataContract, relation: str, maker: Maker) -> Layers:
    """Rows of whole cells with at least `min_group` units, none of which dominates; binned and clamped.

    base: rows through the filter, binned and clamped, without rows of unknown units.
    cells: the cells that may be shown. grid: the rows of base that lie in them.
    """
    base, units, cells, grid = (maker.token() for _ in range(4))
    asked = of(contract)
    made = [(base, base_rows(contract, relation, maker))]
    if asked.entity is not None:
        made.append((units, _units(asked, base)))
    source = units if asked.entity is not None else base
    made.append((cells, _cells(asked, source, maker)))
    made.append((grid, _rows(asked, base, cells)))
    return Layers(tuple(made), grid, base, cells)


def of(contract: DataContract) -> Grid:
    """The contract's grid; ValueError when it gives rows."""
    if contract.grid is None:
        raise ValueError("this contract is not aggregate-only; there is no grid")
    return contract.grid


def base_rows(contract: DataContract, relation: str, maker: Maker) -> exp.Select:
    """Rows through the filter: dimensions masked and binned, measures clamped, none of an unknown unit."""
    grid, source = of(contract), maker.token()
    shown = [named_as(_binned(contract, one, source, maker), one.column) for one in grid.dimensions]
    shown += [named_as(_clamped(contract, one, source, maker), one.column) for one in grid.measures]
    if grid.entity is not None:
        shown.append(named_as(wrap.stored(grid.entity, source), grid.entity))
    query = wrap.let_through(shown, relation, source, wrap.condition_of(contract, source, maker), maker)
    if grid.entity is not None:
        query.where(exp.Not(this=_is_null(column_named(grid.entity))), copy=False)
    return query


def type_seen(contract: DataContract, one: Dimension) -> str:
    """The type of a dimension's values as a query sees them: hashes and shortened values are texts, edges of bins
    numbers."""
    type_ = wrap.type_of(contract, one.column)
    if one.width is not None:
        return _of_edges(type_, one.width)
    return "VARCHAR" if one.column in texts(contract.masks) else type_


def _of_edges(type_: str, width: float) -> str:
    """One number for each bin: two edges that are one DOUBLE would be one group."""
    if columns.family(type_) != columns.INTEGER or not float(width).is_integer():
        return wrap.edges_in(type_, width) or "DOUBLE"
    return type_ if columns.extent(type_)[1] > columns.extent("BIGINT")[1] else "BIGINT"


def _binned(contract: DataContract, one: Dimension, source: str, maker: Maker) -> exp.Expr:
    value, type_ = wrap.masked(contract, one.column, source, maker), wrap.type_of(contract, one.column)
    if one.width is None:
        return wrap.one_zero(value, type_)
    shown = _of_edges(type_, one.width)
    edge = wrap.try_cast(wrap.binned(value, one.width, type_, maker), shown)
    if columns.family(shown) == columns.FLOAT:
        return wrap.one_zero(edge, type_)
    return _lowest(edge, value, type_, shown, one.width) or edge


def _lowest(edge: exp.Expr, value: exp.Expr, type_: str, shown: str, width: float) -> exp.Expr | None:
    """The edge, or the least number of its type for the bin that begins below it, whose values are not unknown ones;
    None where no bin does."""
    step, least = Fraction(str(width)), _least(shown)
    if Fraction(_least(type_)) // step * step >= Fraction(least):
        return None
    lowest = wrap.try_cast(exp.Literal.string(plain(least)), shown)
    there = exp.If(this=exp.Not(this=_is_null(value.copy())), true=lowest)
    return exp.Coalesce(this=edge, expressions=[exp.Case(ifs=[there])])


def _least(type_: str) -> Decimal:
    return Decimal(f"{columns.extent(type_)[0]}E-{columns.decimal_scale(type_)}")


def _clamped(contract: DataContract, one: Measure, source: str, maker: Maker) -> exp.Expr:
    """The measure within its bounds; NULL stays NULL (the engine's least and greatest would not keep it)."""
    type_ = wrap.type_of(contract, one.column)
    value = wrap.stored(one.column, source)
    ifs = []
    if columns.family(type_) == columns.FLOAT:
        ifs.append(exp.If(this=exp.Anonymous(this="isnan", expressions=[value.copy()]), true=exp.Null()))
    for bound, node in ((one.low, exp.LT), (one.high, exp.GT)):
        if bound is not None:
            edge = _bound(bound, type_, maker)
            ifs.append(exp.If(this=node(this=value.copy(), expression=edge), true=edge.copy()))
    return exp.Case(ifs=ifs, default=value) if ifs else value


def _bound(bound: float, type_: str, maker: Maker) -> exp.Expr:
    if columns.family(type_) == columns.FLOAT:
        return maker.parameters.add(bound)
    # Bounds are whole where the type is: a sum of whole numbers must stay one.
    return wrap.try_cast(maker.parameters.add(int(bound) if bound.is_integer() else bound), type_)


def _units(grid: Grid, base: str) -> exp.Select:
    """One row for each unit and cell: how many rows, and how much of each measure."""
    assert grid.entity is not None
    keys: list[exp.Expr] = [column_named(one.column) for one in grid.dimensions]
    shown: list[exp.Expr] = [*keys, column_named(grid.entity), named_as(count_star(), _N)]
    for index, one in enumerate(grid.measures):
        shown.append(named_as(exp.Sum(this=_size(one)), f"{_A}{index}"))
        shown.append(named_as(exp.Count(this=column_named(one.column)), f"{_C}{index}"))
    query = exp.select(*(node.copy() for node in shown), copy=False).from_(table_named(base), copy=False)
    return query.group_by(*(node.copy() for node in (*keys, column_named(grid.entity))), copy=False)


def _cells(grid: Grid, source: str, maker: Maker) -> exp.Select:
    keys: list[exp.Expr] = [column_named(one.column) for one in grid.dimensions]
    shown = keys or [named_as(exp.Literal.number(1), _N)]
    query = exp.select(*(node.copy() for node in shown), copy=False).from_(table_named(source), copy=False)
    if grid.entity is not None:
        query.select(named_as(_units_may_be_told(grid), _T), copy=False)
    if keys:
        query.group_by(*(node.copy() for node in keys), copy=False)
    query.having(exp.and_(*shown_if(grid, maker), copy=False), copy=False)
    return query.limit(exp.Literal.number(_ALL), copy=False)


def shown_if(grid: Grid, maker: Maker) -> list[exp.Expr]:
    """What a cell must fulfil, in terms of `_units` (or of base rows, where each row is a unit).

    1. At least k units. 2. No unit makes more than its share of the rows or of a measure.
    3. The units that have a measure, and those that lack it, are none or at least k: COUNT(x) beside
       COUNT(*) would otherwise tell of fewer.
    4. The units that have one measure more often than another are none or at least k: COUNT(x) beside COUNT(y)
       would otherwise tell of fewer.
    """
    conditions: list[exp.Expr] = [_at_least(count_star(), grid.min_group)]  # 1
    if grid.entity is not None:
        conditions.append(_share(column_named(_N), grid.dominance, maker))  # 2
    for index, one in enumerate(grid.measures):
        size = _size(one) if grid.entity is None else column_named(f"{_A}{index}")
        conditions.append(_share(size, grid.dominance, maker))  # 2
        conditions += [_none_or_many(units, grid) for units in _holding(grid, index, one)]  # 3
        conditions += [_none_or_many(_differing(grid, index, other), grid) for other in range(index)]  # 4
    return conditions


def _none_or_many(units: exp.Expr, grid: Grid) -> exp.Expr:
    none = exp.EQ(this=units, expression=exp.Literal.number(0))
    return exp.Paren(this=exp.Or(this=none, expression=_at_least(units.copy(), grid.min_group)))


def _differing(grid: Grid, one: int, other: int) -> exp.Expr:
    """How many units have the one measure more or less often than the other."""
    if grid.entity is not None:
        return exp.CountIf(this=exp.NEQ(this=column_named(f"{_C}{one}"), expression=column_named(f"{_C}{other}")))
    there = [exp.Paren(this=_is_null(column_named(grid.measures[index].column))) for index in (one, other)]
    return exp.CountIf(this=exp.NEQ(this=there[0], expression=there[1]))


def _units_may_be_told(grid: Grid) -> exp.Expr:
    """Whether COUNT(DISTINCT unit) of a cell tells of nobody beside its other counts: the units with several rows, or
    several values of a measure, are none or at least k."""
    several = [exp.GT(this=column_named(name), expression=exp.Literal.number(1)) for name in _counts(grid)]
    return exp.and_(*(_none_or_many(exp.CountIf(this=one), grid) for one in several), copy=False)


def _counts(grid: Grid) -> list[str]:
    return [_N, *(f"{_C}{index}" for index in range(len(grid.measures)))]


def _holding(grid: Grid, index: int, one: Measure) -> tuple[exp.Expr, exp.Expr]:
    """How many units have a value of the measure, and how many have a row without one."""
    if grid.entity is None:
        with_value: exp.Expr = exp.Count(this=column_named(one.column))
        return with_value, exp.Paren(this=exp.Sub(this=count_star(), expression=with_value.copy()))
    counted = column_named(f"{_C}{index}")
    has = exp.GT(this=counted, expression=exp.Literal.number(0))
    lacks = exp.LT(this=counted.copy(), expression=column_named(_N))
    return exp.CountIf(this=has), exp.CountIf(this=lacks)


def _share(size: exp.Expr, dominance: float, maker: Maker) -> exp.Expr:
    """The largest contribution is at most `dominance` of the sum, which is finite: half of what is not is as large as
    all of it. With nothing to sum there is no doubt."""
    total = exp.Sum(this=size.copy())
    part = exp.Mul(this=maker.parameters.add(dominance), expression=total)
    finite = exp.LT(this=total.copy(), expression=wrap.try_cast(exp.Literal.string("inf"), "DOUBLE"))
    within = exp.And(this=exp.LTE(this=exp.Max(this=size), expression=part), expression=finite)
    return exp.Coalesce(this=exp.Paren(this=within), expressions=[exp.Boolean(this=True)])


def _rows(grid: Grid, base: str, cells: str) -> exp.Select:
    left, right = f"{base}b", f"{base}c"
    names = [one.column for one in grid.measures] + ([grid.entity] if grid.entity is not None else [])
    shown = [named_as(wrap.stored(one.column, right), one.column) for one in grid.dimensions]
    shown += [named_as(wrap.stored(name, left), name) for name in names]
    shown = shown or [named_as(exp.Literal.number(1), _N)]
    shown += [named_as(wrap.stored(_T, right), _T)] if grid.entity is not None else []
    query = exp.select(*shown, copy=False).from_(wrap.relation_of(base, left), copy=False)
    same: list[exp.Expr] = [
        exp.NullSafeEQ(this=wrap.stored(one.column, left), expression=wrap.stored(one.column, right))
        for one in grid.dimensions
    ]
    join = exp.Join(this=wrap.relation_of(cells, right))
    if same:
        join.set("on", exp.and_(*same, copy=False))
    else:
        join.set("kind", "CROSS")
    query.append("joins", join)
    return query


def report(contract: DataContract, relation: str, maker: Maker) -> tuple[exp.Select, tuple[str, ...]]:
    """One row of figures about what the grid keeps back, and the names of its WITH queries."""
    grid, made = of(contract), layers(contract, relation, maker)
    # In the report rows without a unit count too; in the grid they are left out.
    everything = maker.token()
    unit = count_star() if grid.entity is None else distinct_count(column_named(grid.entity))
    filtered = exp.select(named_as(exp.Literal.number(1), _N), copy=False).from_(
        wrap.relation_of(relation, everything), copy=False
    )
    condition = wrap.condition_of(contract, everything, maker)
    if condition is not None:
        filtered.where(condition, copy=False)
    total = maker.token()
    ctes = [*made.ctes, (total, filtered)]
    figures = {
        "cells": _scalar(count_star(), _distinct_cells(grid, made.base, maker)),
        "cells_shown": _scalar(count_star(), table_named(made.cells)),
        "units": _scalar(unit, table_named(made.base)),
        "units_shown": _scalar(unit, table_named(made.name)),
        "rows": _scalar(count_star(), table_named(total)),
        "rows_shown": _scalar(count_star(), table_named(made.name)),
        "rows_with_unit": _scalar(count_star(), table_named(made.base)),
    }
    query = exp.select(*(named_as(value, name) for name, value in figures.items()), copy=False)
    query.set("with_", exp.With(expressions=[cte(*one) for one in ctes]))
    return query, tuple(name for name, _ in ctes)


def changes(contract: DataContract, before: str, after: str, maker: Maker) -> tuple[exp.Select, tuple[str, ...]]:
    """How many cells that both versions show differ by fewer than `min_group` units, and the names of its WITH queries.

    Whoever asked the older version and asks the newer would learn of those few by subtraction.
    """
    grid, old, new = of(contract), layers(contract, before, maker), layers(contract, after, maker)
    keys = [column_named(one.column) for one in grid.dimensions]
    shown: list[exp.Expr] = [*keys, *(column_named(one.column) for one in grid.measures)]
    shown += [column_named(grid.entity)] if grid.entity is not None else []
    shown = shown or [named_as(exp.Literal.number(1), _N)]
    gone, come, changed, both, few, came = (maker.token() for _ in range(6))
    unit = _fewest_rows(came) if grid.entity is None else distinct_count(column_named(grid.entity))
    few_of = exp.select(named_as(unit.copy(), _N), copy=False).from_(table_named(changed), copy=False)
    # Each by a name of its own: one behind the other, SQL takes set operations from the left.
    ctes: list[tuple[str, exp.Query]] = [*old.ctes, *new.ctes]
    ctes += [(gone, _minus(shown, old.name, new.name)), (come, _minus(shown, new.name, old.name))]
    either = (
        exp.select(exp.Star(), named_as(exp.Literal.number(number), came)).from_(table_named(name))
        for number, name in enumerate((gone, come))
    )
    ctes.append((changed, exp.union(*either, distinct=False, copy=False)))
    if keys:
        cells = [exp.select(*(key.copy() for key in keys)).from_(table_named(name)) for name in (old.cells, new.cells)]
        ctes.append((both, exp.Intersect(this=cells[0], expression=cells[1], distinct=True)))
        same = exp.and_(
            *(
                exp.NullSafeEQ(this=wrap.stored(one.column, changed), expression=wrap.stored(one.column, both))
                for one in grid.dimensions
            )
        )
        few_of.append("joins", exp.Join(this=table_named(both), on=same))
        few_of.group_by(*(wrap.stored(one.column, changed) for one in grid.dimensions), copy=False)
    few_of.having(exp.GT(this=unit.copy(), expression=exp.Literal.number(0)), copy=False)
    few_of.having(exp.LT(this=unit.copy(), expression=exp.Literal.number(grid.min_group)), copy=False)
    ctes.append((few, few_of))
    query = exp.select(named_as(_scalar(count_star(), table_named(few)), "cells"), copy=False)
    query.set("with_", exp.With(expressions=[cte(*one) for one in ctes]))
    return query, tuple(name for name, _ in ctes)


def _fewest_rows(came: str) -> exp.Expr:
    """The fewest rows that can differ: one that was changed is gone and has come, and nobody can tell it from two."""
    new = exp.Sum(this=column_named(came))
    return greatest(new, exp.Sub(this=count_star(), expression=new.copy()))


def _minus(shown: Sequence[exp.Expr], one: str, other: str) -> exp.Except:
    """The rows of one grid that the other lacks, each as often as it is missing."""
    left, right = (exp.select(*(node.copy() for node in shown)).from_(table_named(name)) for name in (one, other))
    return exp.Except(this=left, expression=right, distinct=False)


def _scalar(value: exp.Expr, source: exp.Expr) -> exp.Subquery:
    return exp.Subquery(this=exp.select(value.copy(), copy=False).from_(source, copy=False))


def _distinct_cells(grid: Grid, base: str, maker: Maker) -> exp.Expr:
    columns_: list[exp.Expr] = [column_named(one.column) for one in grid.dimensions]
    keys = columns_ or [named_as(exp.Literal.number(1), _N)]
    query = exp.select(*keys, copy=False).from_(table_named(base), copy=False)
    query.set("distinct", exp.Distinct())
    return exp.Subquery(this=query, alias=exp.TableAlias(this=exp.to_identifier(maker.token(), quoted=True)))


def cte(name: str, query: exp.Query, *, materialised: bool = False) -> exp.CTE:
    alias = exp.TableAlias(this=exp.to_identifier(name, quoted=True))
    return exp.CTE(this=query, alias=alias, materialized=materialised or None)


# More than there are: no engine takes a condition through a limit, whatever the limit.
_ALL = 2**62

# No column of a table is called that.
_N, _A, _C, _T = "rows of unit", "size of measure ", "count of measure ", "units may be told"


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


def _size(one: Measure) -> exp.Expr:
    """The absolute value as DOUBLE: the smallest whole number of a type has no positive one."""
    return exp.Abs(this=wrap.try_cast(column_named(one.column), "DOUBLE"))


def guard(tree: exp.Select, contract: DataContract, name: str) -> None:
    """A second fence behind the grid: groups under k are dropped after aggregation, in place.

    All other aggregates of a union of cells are sums of what each cell tells by itself, so that no union tells more
    than its cells do. COUNT(DISTINCT unit) is one only for one cell, or where no unit lies in two: elsewhere a group
    is left out that counts them. Whether units do is decided for the whole grid: decided for each union, it would tell
    which cells have somebody in common. `name` is the grid's.
    """
    grid = of(contract)
    unit = count_star() if grid.entity is None else distinct_count(column_named(grid.entity))
    conditions: list[exp.Expr] = [_at_least(unit, grid.min_group)]
    if counts_units(tree):
        conditions.append(exp.Anonymous(this="bool_and", expressions=[column_named(_T)]))
        if grid.dimensions:
            conditions.append(exp.Paren(this=exp.Or(this=_one_cell(grid), expression=_apart(grid, name))))
    tree.set("having", exp.Having(this=exp.and_(*conditions, copy=False)))
    settle(tree)


def settle(tree: exp.Select) -> None:
    """Order the groups of an answer by all that they show, where the question leaves their order open, in place.

    An engine gives groups in the order in which it met them: that tells which of them has the first row.
    """
    order = tree.args.get("order") or exp.Order(expressions=[])
    for place in range(1, len(tree.expressions) + 1):
        order.append("expressions", exp.Ordered(this=exp.Literal.number(place)))
    tree.set("order", order)


def counts_units(tree: exp.Expr) -> bool:
    """Whether a checked query has COUNT(DISTINCT unit)."""
    return any(one.find(exp.Distinct) for one in tree.args["expressions"])


def _one_cell(grid: Grid) -> exp.Expr:
    return exp.EQ(this=distinct_count(_cell(grid)), expression=exp.Literal.number(1))


def _apart(grid: Grid, name: str) -> exp.Expr:
    """Whether no unit lies in two cells of the grid."""
    assert grid.entity is not None
    places = distinct_count(_cell(grid, column_named(grid.entity)))
    same = exp.EQ(this=places, expression=distinct_count(column_named(grid.entity)))
    return exp.Subquery(this=exp.select(same, copy=False).from_(table_named(name), copy=False))


def _cell(grid: Grid, *more: exp.Expr) -> exp.Tuple:
    """A cell as one value; never NULL, and never one column in brackets, which could be."""
    return exp.Tuple(expressions=[*(column_named(one.column) for one in grid.dimensions), *more, exp.Literal.number(1)])


def distinct_count(value: exp.Expr) -> exp.Count:
    return exp.Count(this=exp.Distinct(expressions=[value]), big_int=True)


def asked_columns(names: Sequence[str], grid: Grid) -> tuple[str, ...]:
    """The columns that a query may name at all: what is visible, and the unit, which may be counted."""
    return tuple(names) if grid.entity is None else (*names, grid.entity)
