"""Aggregate-only answers: the pre-binned grid that queries read, and the shapes of query that may read it.

A threshold on the answer alone is beaten by differencing, padding and encoding (federated-query, section 7).
So the wrap yields whole cells of at least k units and nothing below, and a query is a plain sum over
cells: every filter and group is a union of cells. Both halves are needed. Must not know purposes or time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp

from policies import columns
from policies.contract import DataContract, Dimension, Grid, Measure
from policies.enforce import wrap
from policies.enforce.statement import refuse
from policies.enforce.wrap import Maker

# the grid


@dataclass(frozen=True, slots=True)
class Layers:
    """The WITH queries of one grid, in order, and the name of the last, which queries read."""

    ctes: tuple[tuple[str, exp.Select, bool], ...]  # name, query, materialised
    name: str
    base: str
    cells: str


def layers(contract: DataContract, relation: str, maker: Maker) -> Layers:
    """Rows of whole cells with at least `min_group` units, none of which dominates; binned and clamped.

    base: rows through the filter, binned and clamped, without rows of unknown units.
    cells: the cells that may be shown. grid: the rows of base that lie in them.
    """
    base, units, cells, grid = (maker.token() for _ in range(4))
    barrier = not wrap.plain(contract.row_filter)
    asked = _grid(contract)
    made = [(base, _base(contract, relation, maker), barrier)]
    if asked.entity is not None:
        made.append((units, _units(asked, base), False))
    source = units if asked.entity is not None else base
    made.append((cells, _cells(asked, source, maker), False))
    made.append((grid, _rows(asked, base, cells), False))
    return Layers(tuple(made), grid, base, cells)


def _grid(contract: DataContract) -> Grid:
    if contract.grid is None:
        raise ValueError("this contract is not aggregate-only; there is no grid")
    return contract.grid


def _base(contract: DataContract, relation: str, maker: Maker) -> exp.Select:
    grid, source = _grid(contract), maker.token()
    shown = [_as(_binned(contract, one, source, maker), one.column) for one in grid.dimensions]
    shown += [_as(_clamped(contract, one, source, maker), one.column) for one in grid.measures]
    if grid.entity is not None:
        shown.append(_as(wrap.stored(grid.entity, source), grid.entity))
    if not shown:
        shown = [_as(exp.Literal.number(1), source)]
    query = exp.select(*shown, copy=False).from_(wrap.relation_of(relation, source), copy=False)
    condition = wrap.condition_of(contract, source, maker)
    if condition is not None:
        query.where(condition, copy=False)
    if grid.entity is not None:
        query.where(exp.Not(this=_is_null(wrap.stored(grid.entity, source))), copy=False)
    return query


def _binned(contract: DataContract, one: Dimension, source: str, maker: Maker) -> exp.Expr:
    value = wrap.masked(contract, one.column, source, maker)
    if one.width is None:
        return value
    edge = wrap.binned(value, one.width, maker)
    type_ = wrap.type_of(contract, one.column)
    whole = columns.family(type_) == columns.INTEGER and float(one.width).is_integer()
    return wrap.try_cast(edge, "BIGINT") if whole else edge


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
    keys: list[exp.Expr] = [_column(one.column) for one in grid.dimensions]
    shown: list[exp.Expr] = [*keys, _column(grid.entity), _as(_count_star(), _N)]
    for index, one in enumerate(grid.measures):
        shown.append(_as(exp.Sum(this=_size(one)), f"{_A}{index}"))
        shown.append(_as(exp.Count(this=_column(one.column)), f"{_C}{index}"))
    query = exp.select(*(node.copy() for node in shown), copy=False).from_(_named(base), copy=False)
    return query.group_by(*(node.copy() for node in (*keys, _column(grid.entity))), copy=False)


def _cells(grid: Grid, source: str, maker: Maker) -> exp.Select:
    keys: list[exp.Expr] = [_column(one.column) for one in grid.dimensions]
    shown = keys or [_as(exp.Literal.number(1), _N)]
    query = exp.select(*(node.copy() for node in shown), copy=False).from_(_named(source), copy=False)
    if keys:
        query.group_by(*(node.copy() for node in keys), copy=False)
    return query.having(exp.and_(*shown_if(grid, maker), copy=False), copy=False)


def shown_if(grid: Grid, maker: Maker) -> list[exp.Expr]:
    """What a cell must fulfil, in terms of `_units` (or of base rows, where each row is a unit).

    1. At least k units. 2. No unit makes more than its share of the rows or of a measure.
    3. The units that have a measure, and those that lack it, are none or at least k: COUNT(x) beside
       COUNT(*) would otherwise tell of fewer.
    """
    conditions: list[exp.Expr] = [_at_least(_count_star(), grid.min_group)]  # 1
    if grid.entity is not None:
        conditions.append(_share(_column(_N), grid.dominance, maker))  # 2
    for index, one in enumerate(grid.measures):
        size = _size(one) if grid.entity is None else _column(f"{_A}{index}")
        conditions.append(_share(size, grid.dominance, maker))  # 2
        for units in _holding(grid, index, one):  # 3
            none = exp.EQ(this=units, expression=exp.Literal.number(0))
            conditions.append(exp.Paren(this=exp.Or(this=none, expression=_at_least(units.copy(), grid.min_group))))
    return conditions


def _holding(grid: Grid, index: int, one: Measure) -> tuple[exp.Expr, exp.Expr]:
    """How many units have a value of the measure, and how many have a row without one."""
    if grid.entity is None:
        with_value: exp.Expr = exp.Count(this=_column(one.column))
        return with_value, exp.Paren(this=exp.Sub(this=_count_star(), expression=with_value.copy()))
    counted = _column(f"{_C}{index}")
    has = exp.GT(this=counted, expression=exp.Literal.number(0))
    lacks = exp.LT(this=counted.copy(), expression=_column(_N))
    return exp.CountIf(this=has), exp.CountIf(this=lacks)


def _share(size: exp.Expr, dominance: float, maker: Maker) -> exp.Expr:
    """The largest contribution is at most `dominance` of the sum; with nothing to sum there is no doubt."""
    part = exp.Mul(this=maker.parameters.add(dominance), expression=exp.Sum(this=size.copy()))
    within = exp.LTE(this=exp.Max(this=size), expression=part)
    return exp.Coalesce(this=within, expressions=[exp.Boolean(this=True)])


def _rows(grid: Grid, base: str, cells: str) -> exp.Select:
    left, right = f"{base}b", f"{base}c"
    names = [one.column for one in grid.dimensions] + [one.column for one in grid.measures]
    names += [grid.entity] if grid.entity is not None else []
    shown = [_as(wrap.stored(name, left), name) for name in names] or [_as(exp.Literal.number(1), _N)]
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
    grid, made = _grid(contract), layers(contract, relation, maker)
    # In the report rows without a unit count too; in the grid they are left out.
    everything = maker.token()
    unit = _count_star() if grid.entity is None else _distinct(_column(grid.entity))
    filtered = exp.select(_as(exp.Literal.number(1), _N), copy=False).from_(
        wrap.relation_of(relation, everything), copy=False
    )
    condition = wrap.condition_of(contract, everything, maker)
    if condition is not None:
        filtered.where(condition, copy=False)
    total = maker.token()
    ctes = [*made.ctes, (total, filtered, False)]
    figures = {
        "cells": _scalar(_count_star(), _distinct_cells(grid, made.base, maker)),
        "cells_shown": _scalar(_count_star(), _named(made.cells)),
        "units": _scalar(unit, _named(made.base)),
        "units_shown": _scalar(unit, _named(made.name)),
        "rows": _scalar(_count_star(), _named(total)),
        "rows_shown": _scalar(_count_star(), _named(made.name)),
        "rows_with_unit": _scalar(_count_star(), _named(made.base)),
    }
    query = exp.select(*(_as(value, name) for name, value in figures.items()), copy=False)
    query.set("with_", exp.With(expressions=[_cte(*one) for one in ctes]))
    return query, tuple(name for name, _, _ in ctes)


def _scalar(value: exp.Expr, source: exp.Expr) -> exp.Subquery:
    return exp.Subquery(this=exp.select(value.copy(), copy=False).from_(source, copy=False))


def _distinct_cells(grid: Grid, base: str, maker: Maker) -> exp.Expr:
    columns_: list[exp.Expr] = [_column(one.column) for one in grid.dimensions]
    keys = columns_ or [_as(exp.Literal.number(1), _N)]
    query = exp.select(*keys, copy=False).from_(_named(base), copy=False)
    query.set("distinct", exp.Distinct())
    return exp.Subquery(this=query, alias=exp.TableAlias(this=exp.to_identifier(maker.token(), quoted=True)))


def _cte(name: str, query: exp.Select, materialised: bool) -> exp.CTE:
    alias = exp.TableAlias(this=exp.to_identifier(name, quoted=True))
    return exp.CTE(this=query, alias=alias, materialized=materialised or None)


_N, _A, _C = "rows of unit", "size of measure ", "count of measure "  # no column of a table is called that


def _as(value: exp.Expr, name: str) -> exp.Expr:
    return exp.alias_(value, name, quoted=True, copy=False)


def _column(name: str) -> exp.Column:
    return exp.column(exp.to_identifier(name, quoted=True))


def _named(cte: str) -> exp.Table:
    return exp.Table(this=exp.to_identifier(cte, quoted=True))


def _count_star() -> exp.Count:
    return exp.Count(this=exp.Star(), big_int=True)


def _is_null(value: exp.Expr) -> exp.Is:
    return exp.Is(this=value, expression=exp.Null())


def _at_least(value: exp.Expr, number: int) -> exp.GTE:
    return exp.GTE(this=value, expression=exp.Literal.number(number))


def _size(one: Measure) -> exp.Expr:
    """The absolute value as DOUBLE: the smallest whole number of a type has no positive one."""
    return exp.Abs(this=wrap.try_cast(_column(one.column), "DOUBLE"))


# the query


def check(tree: exp.Expr, contract: DataContract, shown_as: str) -> None:
    """Refuse (`rows_not_given`, `aggregate_shape`) any query that is not a plain aggregate over cells.

    One block: SELECT dimensions, COUNT(*), COUNT(DISTINCT unit), COUNT, SUM, AVG of measures; WHERE an AND of
    comparisons of dimensions with literals; GROUP BY dimensions; ORDER BY and LIMIT on outputs.
    """
    rules = _Rules(contract, shown_as)
    rules.block(tree)
    assert isinstance(tree, exp.Select)
    outputs = rules.outputs(tree)
    rules.where(tree.args.get("where"))
    rules.group(tree.args.get("group"), outputs)
    rules.order(tree.args.get("order"), outputs)


def guard(tree: exp.Select, contract: DataContract) -> None:
    """A second fence behind the grid: groups under k are dropped after aggregation, in place.

    Where units lie in several cells, COUNT(DISTINCT unit) over a union tells how many lie in more than one;
    that number, too, is none or at least k.
    """
    grid = _grid(contract)
    unit = _count_star() if grid.entity is None else _distinct(_column(grid.entity))
    conditions: list[exp.Expr] = [_at_least(unit, grid.min_group)]
    if grid.entity is not None and grid.dimensions and any(one.find(exp.Distinct) for one in tree.expressions):
        cells = exp.Tuple(expressions=[_column(one.column) for one in grid.dimensions] + [_column(grid.entity)])
        several = exp.Paren(this=exp.Sub(this=_distinct(cells), expression=unit.copy()))
        none = exp.EQ(this=several, expression=exp.Literal.number(0))
        conditions.append(exp.Paren(this=exp.Or(this=none, expression=_at_least(several.copy(), grid.min_group))))
    tree.set("having", exp.Having(this=exp.and_(*conditions, copy=False)))


def _distinct(value: exp.Expr) -> exp.Count:
    return exp.Count(this=exp.Distinct(expressions=[value]), big_int=True)


class _Rules:
    def __init__(self, contract: DataContract, shown_as: str) -> None:
        grid = _grid(contract)
        self.grid = grid
        self.shown_as = shown_as
        self.rule = next(
            (path for name, path in contract.reasons if name in ("minGroupSize", "resultKind", "dimension", "measure")),
            contract.permission,
        )
        self.dimensions = {one.column.casefold() for one in grid.dimensions}
        self.measures = {one.column.casefold() for one in grid.measures}
        self.entity = "" if grid.entity is None else grid.entity.casefold()

    def help(self) -> str:
        units = self.grid.entity or "rows"
        dimensions = ", ".join(one.column for one in self.grid.dimensions) or "nothing (totals only)"
        measures = ", ".join(one.column for one in self.grid.measures) or "none"
        counted = f", COUNT(DISTINCT {self.grid.entity})" if self.grid.entity else ""
        return (
            f"only aggregates over at least {self.grid.min_group} {units}; ask for COUNT(*){counted}, COUNT, SUM, AVG "
            f"of {measures}, grouped and filtered by {dimensions}"
        )

    def rows(self) -> None:
        refuse(
            "rows_not_given",
            f"rows of {self.shown_as} are not given out under this agreement, {self.help()}",
            self.rule,
        )

    def shape(self, problem: str) -> None:
        refuse("aggregate_shape", f"{problem}: {self.shown_as} gives {self.help()}", self.rule)

    def block(self, tree: exp.Expr) -> None:
        if not isinstance(tree, exp.Select):
            self.shape("UNION, INTERSECT and EXCEPT are not answered")
        for name, word in _REFUSED.items():
            if tree.args.get(name):
                self.shape(f"{word} is not answered")
        source = tree.args["from_"].this if tree.args.get("from_") else None
        if not isinstance(source, exp.Table) or source.args["alias"].args.get("columns"):
            self.shape("a subquery or renamed columns are not answered")

    def outputs(self, tree: exp.Select) -> set[str]:
        names: set[str] = set()
        aggregates = 0
        for output in tree.expressions:
            value = output.this if isinstance(output, exp.Alias) else output
            name = output.alias_or_name.casefold()
            known = self.dimensions | self.measures | {self.entity}
            if isinstance(output, exp.Alias) and name in known and not _is_column(value, name):
                self.shape(f"an output cannot be called {output.alias}, which is a column")
            if value.is_star or (isinstance(value, exp.Column) and value.name.casefold() not in self.dimensions):
                self.rows()
            if not isinstance(value, exp.Column):
                self.aggregate(value)
                aggregates += 1
            names.add(name)
        if not aggregates:
            self.rows()
        return names

    def aggregate(self, value: exp.Expr) -> None:
        inner = value.this
        if isinstance(value, exp.Count) and not value.expressions:
            if isinstance(inner, exp.Star) or self._measure(inner):
                return
            if isinstance(inner, exp.Distinct) and len(inner.expressions) == 1:
                if _is_column(inner.expressions[0], self.entity):
                    return
                self.shape("COUNT(DISTINCT ...) counts units only")
        if isinstance(value, exp.Sum | exp.Avg) and self._measure(inner):
            return
        self.shape("an output is a dimension, COUNT(*), or COUNT, SUM, AVG of one measure")

    def _measure(self, value: object) -> bool:
        return isinstance(value, exp.Column) and value.name.casefold() in self.measures

    def _dimension(self, value: object) -> bool:
        return isinstance(value, exp.Column) and value.name.casefold() in self.dimensions

    def where(self, clause: exp.Expr | None) -> None:
        stack = [] if clause is None else [clause.this]
        while stack:
            condition = stack.pop()
            if isinstance(condition, exp.Paren):
                stack.append(condition.this)
            elif isinstance(condition, exp.And):
                stack.extend((condition.this, condition.expression))
            elif not self._condition(condition):
                self.shape("WHERE is an AND of comparisons, IN or BETWEEN of dimensions with literals")

    def _condition(self, node: exp.Expr) -> bool:
        if isinstance(node, exp.EQ | exp.NEQ | exp.LT | exp.LTE | exp.GT | exp.GTE):
            sides = (node.this, node.expression)
            return any(self._dimension(one) and _is_literal(other) for one, other in (sides, sides[::-1]))
        if isinstance(node, exp.In) and not node.args.get("query"):
            return self._dimension(node.this) and all(_is_literal(value) for value in node.expressions)
        if isinstance(node, exp.Between):
            return self._dimension(node.this) and _is_literal(node.args["low"]) and _is_literal(node.args["high"])
        return False

    def group(self, clause: exp.Expr | None, outputs: set[str]) -> None:
        if clause is None:
            return
        if any(clause.args.get(name) for name in ("grouping_sets", "cube", "rollup", "all")):
            self.shape("GROUP BY lists dimensions, without ALL, sets, CUBE or ROLLUP")
        for key in clause.expressions:
            if not self._dimension(key) and not _is_position(key):
                self.shape("GROUP BY lists dimensions")

    def order(self, clause: exp.Expr | None, outputs: set[str]) -> None:
        for ordered in () if clause is None else clause.expressions:
            key = ordered.this
            named = isinstance(key, exp.Column) and not key.table and key.name.casefold() in outputs
            if not named and not _is_position(key):
                self.shape("ORDER BY names outputs")


_REFUSED = {
    "with_": "WITH",
    "joins": "a join",
    "distinct": "SELECT DISTINCT",
    "having": "HAVING",
    "qualify": "QUALIFY",
}


def _is_column(value: object, folded: str) -> bool:
    return isinstance(value, exp.Column) and value.name.casefold() == folded


def _is_position(value: object) -> bool:
    return isinstance(value, exp.Literal) and not value.is_string


def _is_literal(value: object) -> bool:
    while isinstance(value, exp.Cast | exp.Neg):  # DATE '2026-01-01', -5
        value = value.this
    return isinstance(value, exp.Literal | exp.Boolean)


def asked_columns(names: Sequence[str], grid: Grid) -> tuple[str, ...]:
    """The columns that a query may name at all: what is visible, and the unit, which may be counted."""
    return tuple(names) if grid.entity is None else (*names, grid.entity)
