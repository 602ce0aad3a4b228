"""The pre-binned grid that aggregate-only queries read (federated-query, section 7): whole cells of at least k units.

A threshold on the answer alone is beaten by differencing, padding and encoding; the grid holds no smaller cell
to begin with. `layers` builds it as WITH queries over the relation, `guard` is a second fence behind it, and
`report` tells the owner what it keeps back. The shapes of query that may read it are in `aggregate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction
from itertools import combinations

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
    units: str
    cells: str


def layers(contract: DataContract, relation: str, maker: Maker) -> Layers:
    """Rows of whole cells with at least `min_group` units, none of which dominates; binned and clamped.

    base: rows through the filter, binned and clamped, without rows of unknown units. units: what each unit adds to the
    figures of its cells. cells: the cells that may be shown. grid: the rows of base that lie in them.
    """
    base, units, cells, grid = (maker.token() for _ in range(4))
    asked = of(contract)
    made = (
        (base, base_rows(contract, relation, maker)),
        (units, _units(asked, base)),
        (cells, _cells(contract, units, maker)),
        (grid, _rows(asked, base, cells)),
    )
    return Layers(made, grid, base, units, cells)


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
    """One row for each unit and cell: how many rows it has, how many with each measure, their sum, and their size.

    Without an entity each row is a unit.
    """
    shown = _keys(grid) + ([column_named(grid.entity)] if grid.entity is not None else [])
    keys, grouped = [node.copy() for node in shown], grid.entity is not None
    shown.append(named_as(count_star() if grouped else exp.Literal.number(1), _N))
    for index, one in enumerate(grid.measures):
        value, size = _number(one), exp.Abs(this=_number(one))
        there = exp.Case(ifs=[exp.If(this=_is_null(column_named(one.column)), true=_ZERO.copy())], default=_ONE.copy())
        counted = exp.Count(this=column_named(one.column)) if grouped else there
        shown.append(named_as(counted, f"{_C}{index}"))
        shown.append(named_as(_or_zero(exp.Sum(this=value) if grouped else value), f"{_S}{index}"))
        shown.append(named_as(_or_zero(exp.Sum(this=size) if grouped else size), f"{_A}{index}"))
    query = exp.select(*shown, copy=False).from_(table_named(base), copy=False)
    return query.group_by(*keys, copy=False) if grouped else query


def _cells(contract: DataContract, units: str, maker: Maker) -> exp.Select:
    grid = of(contract)
    keys = _keys(grid)
    shown = keys or [named_as(_ONE.copy(), _N)]
    query = exp.select(*(node.copy() for node in shown), copy=False).from_(table_named(units), copy=False)
    if grid.entity is not None:
        query.select(named_as(_units_may_be_told(grid), _T), copy=False)
    if keys:
        query.group_by(*(node.copy() for node in keys), copy=False)
    query.having(exp.and_(*shown_if(contract, maker), copy=False), copy=False)
    return query.limit(exp.Literal.number(_ALL), copy=False)


def shown_if(contract: DataContract, maker: Maker) -> list[exp.Expr]:
    """What a cell must fulfil, in terms of `_units`.

    1. At least k units. 2. No unit makes more than its share of the rows or of a measure.
    3. The units that a figure, or the difference of two, is made of are none or at least k (`_parts`): it would
       otherwise tell of fewer.
    """
    grid = of(contract)
    every = range(len(grid.measures))
    conditions: list[exp.Expr] = [_at_least(count_star(), grid.min_group)]  # 1
    if grid.entity is not None:
        conditions.append(_share(column_named(_N), grid.dominance, maker))  # 2
    conditions += [_share(column_named(f"{_A}{index}"), grid.dominance, maker) for index in every]  # 2
    conditions += [_none_or_many(exp.CountIf(this=one), grid) for one in _parts(contract, every, _A, maker)]  # 3
    return conditions


def _parts(contract: DataContract, measures: Sequence[int], size: str, maker: Maker) -> Iterator[exp.Expr]:
    """Whether a unit is one of those that a figure beside COUNT(*) is made of, or the difference of two figures: one
    condition for each of these. `size`: the columns that say how large the numbers were that a sum was made of.

    Of a measure: who has a value, who has a row without one, who adds to its sum, and who adds to what the sum is above
    or below its bounds: where all but two have the bound, the sum tells of these two. Of two measures: who has one more
    often than the other, and of whom there are different sums.
    """
    for index in measures:
        counted, summed = column_named(f"{_C}{index}"), column_named(f"{_S}{index}")
        scale = column_named(f"{size}{index}")
        yield exp.NEQ(this=counted, expression=_ZERO.copy())
        yield exp.NEQ(this=counted.copy(), expression=column_named(_N))
        yield _apart_by(summed, scale)
        for bound in _bounds(contract, index, maker):
            at_bound = exp.Mul(this=bound, expression=counted.copy())
            yield _apart_by(exp.Paren(this=exp.Sub(this=summed.copy(), expression=at_bound)), scale.copy())
        for other in measures:
            if other < index:
                yield exp.NEQ(this=counted.copy(), expression=column_named(f"{_C}{other}"))
                less = exp.Sub(this=summed.copy(), expression=column_named(f"{_S}{other}"))
                both = exp.Add(this=scale.copy(), expression=column_named(f"{size}{other}"))
                yield _apart_by(exp.Paren(this=less), exp.Paren(this=both))


def _apart_by(value: exp.Expr, scale: exp.Expr) -> exp.Expr:
    """Whether a sum is another than zero, by more than what is lost where numbers of this size are added in another
    order, or decimals are kept as DOUBLE."""
    lost = exp.Mul(this=exp.Literal.number(repr(_LOST)), expression=scale)
    return exp.GT(this=exp.Abs(this=value), expression=lost)


def _bounds(contract: DataContract, index: int, maker: Maker) -> list[exp.Expr]:
    """The bounds of a measure as they stand in clamped rows, zero for one that its type does not hold; but for zero, at
    which a value adds nothing anyway."""
    one = of(contract).measures[index]
    type_ = wrap.type_of(contract, one.column)
    given = [bound for bound in (one.low, one.high) if bound]
    return [_or_zero(wrap.try_cast(_bound(bound, type_, maker), "DOUBLE")) for bound in given]


def _none_or_many(units: exp.Expr, grid: Grid) -> exp.Expr:
    few = exp.Between(this=units, low=_ONE.copy(), high=exp.Literal.number(grid.min_group - 1))
    return exp.Not(this=exp.Paren(this=few))


def _units_may_be_told(grid: Grid) -> exp.Expr:
    """Whether COUNT(DISTINCT unit) of a cell tells of nobody beside its other counts: the units with several rows, or
    several values of a measure, are none or at least k."""
    several = [exp.GT(this=column_named(name), expression=_ONE.copy()) for name in _counts(grid)]
    return exp.and_(*(_none_or_many(exp.CountIf(this=one), grid) for one in several), copy=False)


def _counts(grid: Grid) -> list[str]:
    return [_N, *(f"{_C}{index}" for index in range(len(grid.measures)))]


def _share(size: exp.Expr, dominance: float, maker: Maker, *, times: exp.Expr | None = None) -> exp.Expr:
    """The largest contribution is at most `dominance` of the sum, which is finite: half of what is not is as large as
    all of it. With nothing to sum there is no doubt. `times`: how often each contribution is there."""
    total = exp.Sum(this=size.copy() if times is None else exp.Mul(this=size.copy(), expression=times))
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
    return _joined(query, grid, left, cells, right)


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
    """How many groups that both versions show differ by what no cell would show, and the names of its WITH queries.

    Whoever asked the older version and asks the newer has the difference of each figure, each by itself: it must be
    made of nobody or of at least `min_group` units, none of which makes more than its share. Of each group two things
    are looked at: 1. what has changed of each unit by its name; 2. where names may be others than before, or there are
    none, what is left of either version when all that is the same in both is taken away.

    Groups are the cells, those of each dimension alone, and all cells together: one unit may have come where others
    have gone from one cell to another, or into cells that the other version does not have. Counted are those of the
    kind of which most are found.
    """
    grid, old, new = of(contract), layers(contract, before, maker), layers(contract, after, maker)
    sides, found = maker.token(), []
    units = exp.union(_side(grid, old, -1), _side(grid, new, 1), distinct=False, copy=False)
    ctes: list[tuple[str, exp.Query]] = [*old.ctes[:-1], *new.ctes[:-1], (sides, units)]
    finer: _Compared | None = None
    for dimensions in _kinds(grid.dimensions):
        at = replace(contract, grid=replace(grid, dimensions=dimensions))
        compared = _compared(at, sides, finer, maker)
        ctes += compared.ctes
        shown = (_cells_of(of(at), name) for name in (compared.few, old.cells, new.cells))
        in_both = exp.intersect(*shown, distinct=True, copy=False)
        alias = exp.TableAlias(this=exp.to_identifier(maker.token(), quoted=True))
        found.append(_scalar(count_star(), exp.Subquery(this=in_both, alias=alias)))
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
class _Compared:
    """The groups of one kind in two versions: the names of the queries of which groups differ by few, of what has
    changed of each unit (empty without an entity), and of what is left by value."""

    ctes: tuple[tuple[str, exp.Query], ...]
    few: str
    units: str
    left: str


def _compared(contract: DataContract, sides: str, finer: _Compared | None, maker: Maker) -> _Compared:
    """`finer`: the cells of which these groups consist, if they are no cells; what has changed is made of theirs."""
    grid, ctes = of(contract), list[tuple[str, exp.Query]]()
    every, units, named = tuple(range(len(grid.measures))), "", ""
    found: list[exp.Query] = []
    if grid.entity is not None:
        units, named = maker.token(), maker.token()
        changed = _by_name(grid, sides) if finer is None else _united(grid, finer.units)
        ctes += [(units, changed), (named, _judged(contract, units, maker))]  # 1
        found.append(_cells_of(grid, named).where(column_named(_FEW), copy=False))

    def left_of(query: exp.Select, kept: list[exp.Expr]) -> str:
        ctes.append((name := maker.token(), query))
        few = exp.Not(this=exp.Paren(this=exp.and_(*kept, copy=False)))
        found.append(_by_cell(grid, _cells_of(grid, name)).having(few, copy=False))
        return name

    source = sides if finer is None else finer.left
    left = left_of(_by_value(grid, source, every, named), _left_if(contract, every, maker))  # 2
    unnamed = left
    if named and len(every) > 1:
        ctes.append((unnamed := maker.token(), _unnamed(grid, left, named)))
    for one in every if len(every) > 1 else ():
        left_of(_by_value(grid, unnamed, (one,)), _left_if(contract, (one,), maker))
    # Pairs are many: they are looked at in the smallest groups and in the largest.
    for pair in combinations(every if finer is None or not grid.dimensions else (), 2):
        left_of(_by_difference(grid, unnamed, pair), _difference_left_if(grid, maker))
    few = found[0] if len(found) == 1 else exp.union(*found, distinct=True, copy=False)
    ctes.append((name := maker.token(), few))
    return _Compared(tuple(ctes), name, units, left)


def _side(grid: Grid, one: Layers, sign: int) -> exp.Select:
    """The units of the cells that one version shows, with -1 for the older and 1 for the newer."""
    left, right = f"{one.units}b", f"{one.cells}c"
    names = [*(dimension.column for dimension in grid.dimensions)]
    names += [grid.entity] if grid.entity is not None else []
    names += [_N, *(f"{what}{index}" for index in range(len(grid.measures)) for what in (_C, _S, _A))]
    shown = [named_as(wrap.stored(name, left), name) for name in names]
    shown += [named_as(wrap.stored(_T, right), _T)] if grid.entity is not None else []
    shown.append(named_as(exp.Literal.number(sign), _SIGN))
    query = exp.select(*shown, copy=False).from_(wrap.relation_of(one.units, left), copy=False)
    return _joined(query, grid, left, one.cells, right)


def _joined(query: exp.Select, grid: Grid, left: str, cells: str, right: str) -> exp.Select:
    """With the one of these cells in which each row lies."""
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


def _by_name(grid: Grid, sides: str) -> exp.Select:
    """What has changed of each unit in a cell: where it is (1: come, -1: gone), its rows, and of each measure how often
    it has one, their sum, its size, and how large the numbers were that it was made of."""
    sign = column_named(_SIGN)
    told = exp.Anonymous(this="bool_and", expressions=[column_named(_T)])

    def change(name: str) -> exp.Expr:
        return exp.Sum(this=exp.Mul(this=sign.copy(), expression=column_named(name)))

    return _changed(grid, sides, exp.Sum(this=sign.copy()), told, change, _A)


def _united(grid: Grid, units: str) -> exp.Select:
    """The same of each unit in a group of cells, of what `_by_name` says of each cell. In how many groups a unit is, is
    told where it is in one cell of each version."""
    sign = column_named(_SIGN)
    gone, come = (exp.CountIf(this=way(this=sign.copy(), expression=_ZERO.copy())) for way in (exp.LTE, exp.GTE))
    now, then = (exp.Anonymous(this="least", expressions=[cells, _ONE.copy()]) for cells in (come, gone))
    alone = [exp.LTE(this=cells.copy(), expression=_ONE.copy()) for cells in (gone, come)]
    told = exp.and_(exp.Anonymous(this="bool_and", expressions=[column_named(_T)]), *alone, copy=False)
    there = exp.Sub(this=now, expression=then)
    return _changed(grid, units, there, told, lambda name: exp.Sum(this=column_named(name)), _B)


def _changed(
    grid: Grid, source: str, there: exp.Expr, told: exp.Expr, change: Callable[[str], exp.Expr], size: str
) -> exp.Select:
    assert grid.entity is not None
    keys = [*_keys(grid), column_named(grid.entity)]
    shown = [*(key.copy() for key in keys), named_as(told, _T), named_as(there, _SIGN), named_as(change(_N), _N)]
    for index in range(len(grid.measures)):
        summed, scale = change(f"{_S}{index}"), exp.Sum(this=column_named(f"{size}{index}"))
        more = exp.If(this=_apart_by(summed, scale), true=summed.copy())
        by = exp.Case(ifs=[more], default=_ZERO.copy())
        shown += [named_as(change(f"{_C}{index}"), f"{_C}{index}"), named_as(by, f"{_S}{index}")]
        shown += [named_as(exp.Abs(this=by.copy()), f"{_A}{index}"), named_as(scale.copy(), f"{_B}{index}")]
    query = exp.select(*shown, copy=False).from_(table_named(source), copy=False)
    return query.group_by(*keys, copy=False)


def _judged(contract: DataContract, units: str, maker: Maker) -> exp.Select:
    """Of each cell whether what has changed of its units by name is too little; and whether names are what they were:
    half of the fewer units of a version lie in the cell in both (`_LASTS`), with the same figures (`_SAME`)."""
    grid = of(contract)
    every = range(len(grid.measures))
    sign, rows = column_named(_SIGN), column_named(_N)
    conditions = [_none_or_many(exp.CountIf(this=exp.NEQ(this=rows, expression=_ZERO.copy())), grid)]
    conditions.append(_share(exp.Abs(this=rows.copy()), grid.dominance, maker))
    conditions += [_share(column_named(f"{_A}{index}"), grid.dominance, maker) for index in every]
    conditions += [_none_or_many(exp.CountIf(this=one), grid) for one in _parts(contract, every, _B, maker)]
    of_units = [
        _none_or_many(exp.CountIf(this=exp.NEQ(this=sign.copy(), expression=than)), grid)
        for than in (_ZERO.copy(), *(column_named(name) for name in _counts(grid)))
    ]
    untold = exp.Not(this=exp.Anonymous(this="bool_and", expressions=[column_named(_T)]))
    conditions.append(exp.Paren(this=exp.Or(this=untold, expression=exp.and_(*of_units, copy=False))))
    stays = exp.EQ(this=sign.copy(), expression=_ZERO.copy())
    figures = [*_counts(grid), *(f"{_S}{index}" for index in every)]
    same = [exp.EQ(this=column_named(name), expression=_ZERO.copy()) for name in figures]
    fewer = exp.Anonymous(
        this="least",
        expressions=[exp.CountIf(this=way(this=sign.copy(), expression=_ZERO.copy())) for way in (exp.LTE, exp.GTE)],
    )

    def half(which: exp.Expr) -> exp.Expr:
        twice = exp.Mul(this=exp.CountIf(this=which), expression=exp.Literal.number(2))
        there = exp.GT(this=fewer.copy(), expression=_ZERO.copy())
        return exp.And(this=exp.GTE(this=twice, expression=fewer.copy()), expression=there)

    few = exp.Not(this=exp.Paren(this=exp.and_(*conditions, copy=False)))
    shown = [*_keys(grid), named_as(few, _FEW), named_as(half(stays), _LASTS)]
    shown.append(named_as(half(exp.and_(stays.copy(), *same, copy=False)), _SAME))
    return _by_cell(grid, exp.select(*shown, copy=False).from_(table_named(units), copy=False))


def _by_value(grid: Grid, sides: str, measures: Sequence[int], named: str = "") -> exp.Select:
    """What one version has and the other has not, by what is there of these measures, whoever it belongs to; only of
    cells where `named` does not say that names and figures are what they were. `_SIGN`: how many more there are in the
    newer."""
    left, right = f"{sides}b", f"{named}c"
    names = [_N, *(f"{_C}{index}" for index in measures)]
    keys = [wrap.stored(one.column, left) for one in grid.dimensions] + [wrap.stored(name, left) for name in names]
    more = exp.Sum(this=wrap.stored(_SIGN, left))
    shown = [*(node.copy() for node in keys), named_as(more, _SIGN)]
    for index in measures:
        summed = wrap.stored(f"{_S}{index}", left)
        # Sums of several numbers are the same but for the order in which they were added.
        keys.append(summed if grid.entity is None else wrap.try_cast(summed, "FLOAT"))
        shown += [named_as(exp.Max(this=wrap.stored(name, left)), name) for name in (f"{_S}{index}", f"{_A}{index}")]
    query = exp.select(*shown, copy=False).from_(wrap.relation_of(sides, left), copy=False)
    if named:
        _joined(query, grid, left, named, right).where(exp.Not(this=wrap.stored(_SAME, right)), copy=False)
    query.group_by(*(node.copy() for node in keys), copy=False)
    return query.having(exp.NEQ(this=more.copy(), expression=_ZERO.copy()), copy=False)


def _unnamed(grid: Grid, left: str, named: str) -> exp.Select:
    """What is left by value in groups where names are not what they were."""
    whose, right = f"{left}b", f"{named}c"
    names = [*(one.column for one in grid.dimensions), _N, _SIGN]
    names += [f"{what}{index}" for index in range(len(grid.measures)) for what in (_C, _S, _A)]
    shown = [named_as(wrap.stored(name, whose), name) for name in names]
    query = exp.select(*shown, copy=False).from_(wrap.relation_of(left, whose), copy=False)
    return _joined(query, grid, whose, named, right).where(exp.Not(this=wrap.stored(_LASTS, right)), copy=False)


def _by_difference(grid: Grid, left: str, pair: tuple[int, int]) -> exp.Select:
    """The same of one measure less another, of what `_by_value` finds of all, as if it were one measure."""
    whose = f"{left}b"

    def of_both(what: str, node: type[exp.Sub] | type[exp.Add]) -> exp.Expr:
        first, second = (wrap.stored(f"{what}{index}", whose) for index in pair)
        return exp.Paren(this=node(this=first, expression=second))

    less, counted = of_both(_S, exp.Sub), of_both(_C, exp.Sub)
    apart = exp.If(this=_apart_by(less, of_both(_A, exp.Add)), true=less.copy())
    # Decimals that are kept as DOUBLE differ by as much but for their last digits.
    by = wrap.try_cast(exp.Case(ifs=[apart], default=_ZERO.copy()), "FLOAT")
    keys = [wrap.stored(dimension.column, whose) for dimension in grid.dimensions] + [counted, by]
    more = exp.Sum(this=wrap.stored(_SIGN, whose))
    shown = [*(key.copy() for key in keys[:-2]), named_as(counted.copy(), f"{_C}0"), named_as(by.copy(), f"{_S}0")]
    shown += [named_as(exp.Abs(this=by.copy()), f"{_A}0"), named_as(more, _SIGN)]
    query = exp.select(*shown, copy=False).from_(wrap.relation_of(left, whose), copy=False)
    query.group_by(*(node.copy() for node in keys), copy=False)
    return query.having(exp.NEQ(this=more.copy(), expression=_ZERO.copy()), copy=False)


def _difference_left_if(grid: Grid, maker: Maker) -> list[exp.Expr]:
    """What must be true of all that `_by_difference` finds of a group."""
    other = [exp.NEQ(this=column_named(f"{what}0"), expression=_ZERO.copy()) for what in (_C, _S)]
    share = _share(column_named(f"{_A}0"), grid.dominance, maker, times=exp.Abs(this=column_named(_SIGN)))
    return [*(_none_or_many(_fewest(one), grid) for one in other), share]


def _left_if(contract: DataContract, measures: Sequence[int], maker: Maker) -> list[exp.Expr]:
    """What must be true of all that `_by_value` finds of a cell."""
    grid, sign = of(contract), column_named(_SIGN)
    parts: list[exp.Expr] = [exp.Boolean(this=True), *_parts(contract, measures, _A, maker)]
    sizes = [column_named(_N)] if grid.entity is not None else []
    sizes += [column_named(f"{_A}{index}") for index in measures]
    found = [_none_or_many(_fewest(one), grid) for one in parts]
    return found + [_share(size, grid.dominance, maker, times=exp.Abs(this=sign.copy())) for size in sizes]


def _fewest(which: exp.Expr) -> exp.Expr:
    """The fewest units that can differ: one that was changed is gone and has come, and nobody can tell it from two."""
    sign = column_named(_SIGN)
    gone, come = (exp.Mul(this=sign.copy(), expression=exp.Literal.number(way)) for way in (-1, 1))

    def counted(more: exp.Expr) -> exp.Expr:
        there = exp.And(this=exp.Paren(this=which.copy()), expression=exp.GT(this=more, expression=_ZERO.copy()))
        return _or_zero(exp.Sum(this=exp.Case(ifs=[exp.If(this=there, true=more.copy())])))

    return greatest(counted(gone), counted(come))


def _cells_of(grid: Grid, table: str) -> exp.Select:
    shown = _keys(grid) or [named_as(_ONE.copy(), _N)]
    return exp.select(*shown, copy=False).from_(table_named(table), copy=False)


def _by_cell(grid: Grid, query: exp.Select) -> exp.Select:
    return query.group_by(*_keys(grid), copy=False) if grid.dimensions else query


def _scalar(value: exp.Expr, source: exp.Expr) -> exp.Subquery:
    return exp.Subquery(this=exp.select(value.copy(), copy=False).from_(source, copy=False))


def _distinct_cells(grid: Grid, base: str, maker: Maker) -> exp.Expr:
    query = exp.select(*(_keys(grid) or [named_as(_ONE.copy(), _N)]), copy=False).from_(table_named(base), copy=False)
    query.set("distinct", exp.Distinct())
    return exp.Subquery(this=query, alias=exp.TableAlias(this=exp.to_identifier(maker.token(), quoted=True)))


def cte(name: str, query: exp.Query, *, materialised: bool = False) -> exp.CTE:
    alias = exp.TableAlias(this=exp.to_identifier(name, quoted=True))
    return exp.CTE(this=query, alias=alias, materialized=materialised or None)


# More than there are: no engine takes a condition through a limit, whatever the limit.
_ALL = 2**62

# No column of a table is called that.
_N, _C, _S, _A = "rows of unit", "count of measure ", "sum of measure ", "size of measure "
_T, _B, _SIGN = "units may be told", "size before and after of measure ", "newer less older"
_FEW, _LASTS, _SAME = "differs by few", "names last", "names and figures last"
_ZERO, _ONE = exp.Literal.number(0), exp.Literal.number(1)
_LOST = 2.0**-40  # the share of a sum of some thousand numbers that may be lost as they are added


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


def _keys(grid: Grid) -> list[exp.Expr]:
    return [column_named(one.column) for one in grid.dimensions]


def _number(one: Measure) -> exp.Expr:
    """The value as DOUBLE: sums of whole numbers may be larger than any, and the smallest has no positive one."""
    return wrap.try_cast(column_named(one.column), "DOUBLE")


def _or_zero(value: exp.Expr) -> exp.Expr:
    return exp.Coalesce(this=value, expressions=[_ZERO.copy()])


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
