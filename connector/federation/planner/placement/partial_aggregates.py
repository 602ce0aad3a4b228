"""Owners aggregate their share; the residual merges the partial results.

For a block over one group: GROUP BY what the block still needs outside of its aggregates, and one partial for each
aggregate that can be merged. COUNT and SUM are summed, AVG is a sum and a count, MIN, MAX and the logical and bitwise
aggregates merge by themselves. A DISTINCT aggregate makes its argument one more key and is counted here: merging
counts of distinct values is silently wrong. What has no plain partial (standard deviation, median, any_value) keeps
the whole block as a scan.

Aggregate-only datasets have no other way than this, in the one shape that their owners answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner import sql_text
from connector.federation.planner.context import Planning
from connector.federation.planner.placement import eager_aggregation, scans
from connector.federation.planner.select_block import Group, Source
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees

_SELF_MERGING = (
    exp.Min, exp.Max, exp.LogicalAnd, exp.LogicalOr, exp.BitwiseAndAgg, exp.BitwiseOrAgg, exp.BitwiseXorAgg,
)  # fmt: skip
_TEMPORAL = ("DATE", "TIME", "INTERVAL")


def apply(select: exp.Select, groups: list[Group], sources: list[Source], planning: Planning) -> list[Group]:
    """The groups that were answered by partial aggregates; the block is unchanged if there are none."""
    grid = next((group for group in groups if group.aggregate_only), None)
    aggregates = trees.aggregates(select)
    if not aggregates and select.args.get("group") is None:
        return []
    if not (planning.full or grid):
        return []
    if len(groups) == 1 and len(groups[0].members) == len(sources):
        work = _Partials(select, groups[0], planning)
    elif grid is None and (group := eager_aggregation.choose(select, groups, sources)) is not None:
        work = _Partials(select, group, planning, others=True)
    else:
        return []
    if not all(work.can(node) for node in aggregates) or not work.fits_grid():
        return []
    work.split(aggregates)
    return [work.group]


class _Partials:
    def __init__(self, select: exp.Select, group: Group, planning: Planning, *, others: bool = False) -> None:
        self.select, self.group, self.planning, self.others = select, group, planning, others
        self.types, self.taken = group.types, group.taken(select)
        self.partials: list[tuple[str, exp.Expr]] = []
        self.keys: list[tuple[str, exp.Expr]] = []
        grids = [info.grid for info in group.infos if info.grid is not None]
        self.grid = grids[0] if grids else None
        self.grids = grids

    # what can be split

    def can(self, node: exp.Expr) -> bool:
        """Whether an aggregate has a partial, or can be computed from more keys."""
        function, condition = _function(node)
        if condition is not None and trees.has_query(condition):
            return False
        if trees.has_query(function):
            return False
        if self.grid is not None:
            return self._grid_can(function)
        if self.others and not trees.column_tables(node) & self.group.aliases:
            return True  # of another source: `eager.choose` has looked at it
        found = _is_distinct(function) or isinstance(function, exp.ApproxDistinct)
        found = found or (isinstance(function, exp.Count) and not function.expressions)
        found = found or isinstance(function, (exp.Sum, exp.CountIf, *_SELF_MERGING))
        found = found or (isinstance(function, exp.Avg) and self._numeric(function.this))
        if not found:
            self.planning.note(
                f"{type(function).__name__.lower()} over {self.group.name}", "function", "it has no partial result"
            )
        return found and trees.column_tables(node) <= self.group.aliases

    def _grid_can(self, function: exp.Expr) -> bool:
        measures = {fold(name) for grid in self.grids for name in grid.measures}
        inner = function.this
        if isinstance(function, exp.Count) and isinstance(inner, exp.Star):
            return True
        if _is_distinct(function):
            return isinstance(function, exp.Count) and self._counts_units(inner)
        plain = isinstance(inner, exp.Column) and self._stored(inner) in measures
        return isinstance(function, exp.Count | exp.Sum | exp.Avg) and plain

    def _counts_units(self, inner: exp.Expr) -> bool:
        """COUNT(DISTINCT unit) adds up only where no unit is at two owners, and each answer is one of the owner's."""
        if len(inner.expressions) != 1 or not isinstance(inner.expressions[0], exp.Column):
            return False
        name = self._stored(inner.expressions[0])
        if any(grid.entity is None or fold(grid.entity) != name for grid in self.grids):
            return False
        cut = [info.partition for info in self.group.infos]
        apart = len(self.group.owners) == 1 or all(one is not None and one.columns == (name,) for one in cut)
        if not apart:
            self.planning.note("COUNT(DISTINCT unit)", "policy", "the same unit may be at several owners")
        clause = self.select.args.get("group")
        sets = clause is not None and bool(trees.grouping_sets(clause))
        return apart and not sets and self._reads() <= self._plain_keys()

    def _plain_keys(self) -> set[tuple[str, str]]:
        return {(key.table, key.name) for key in trees.group_keys(self.select) if isinstance(key, exp.Column)}

    def _reads(self) -> set[tuple[str, str]]:
        """Columns of the group outside of aggregates, in WHERE and in FILTER."""
        inside = {id(column) for node in trees.aggregates(self.select)
                  for column in trees.columns(_function(node)[0])}  # fmt: skip
        return {(column.table, column.name) for column in trees.columns(self.select)
                if id(column) not in inside and column.table in self.group.aliases}  # fmt: skip

    def fits_grid(self) -> bool:
        """Whether everything that would become a key is a dimension of each aggregate-only share."""
        if self.grid is None:
            return True
        source = self.group.sources[0]
        for part in source.parts:
            for info in part.infos:
                if info.grid is None:
                    return False
                dimensions = {fold(name) for name in info.grid.dimensions}
                for _, name in self._reads():
                    value = part.columns.get(name, trees.column(name))
                    constant = not any(True for _ in value.find_all(exp.Column))
                    if not constant and not (isinstance(value, exp.Column) and fold(value.name) in dimensions):
                        return False
        return True

    def _stored(self, column: exp.Column) -> str:
        """The column's name at the owners, where all call it the same."""
        values = [part.columns.get(column.name, column) for part in self.group.sources[0].parts]
        names = {fold(value.name) if isinstance(value, exp.Column) else "" for value in values}
        return names.pop() if len(names) == 1 else ""

    def _numeric(self, value: exp.Expr) -> bool:
        if value.find(exp.Interval, exp.DataType) is not None:
            return False
        types = [self.types.get((column.table, column.name), "") for column in trees.columns(value)]
        return all(kind and not kind.startswith(_TEMPORAL) for kind in types)

    # splitting

    def split(self, aggregates: Sequence[exp.Expr]) -> None:
        """Put partials into the fragment and their merging into the block."""
        for node in aggregates:
            new = self._merged(node)
            if new is not None:
                node.replace(new)
        if self.grid is None:
            self._expression_keys()
        group, planning = self.group, self.planning
        needed = scans._needed(self.select, group, planning) if planning.full else self._needed()
        partials = {name for name, _ in (*self.partials, *self.keys)}
        raw = [column for column in needed if not (column.table == group.name and column.name in partials)]
        names = scans.name_outputs(raw)
        keys: list[tuple[str, exp.Expr]] = [*self.keys, *names]
        outputs: list[tuple[str, exp.Expr]] = [*keys, *self.partials] or [("one", exp.Literal.number(1))]
        table = planning.draft(
            blocks.shares(group, lambda number: self._statement(number, keys, outputs)),
            outputs=[name for name, _ in outputs],
            kind="partial",
            pushed=(*scans._pushed(group, False, None), *(self._shown(value) for _, value in self.partials)),
        )
        scans.point(self.select, group, table, {(column.table, column.name): name for name, column in names})

    def _statement(
        self, number: int, keys: list[tuple[str, exp.Expr]], outputs: list[tuple[str, exp.Expr]]
    ) -> exp.Select:
        one = blocks.statement(self.group, number, outputs, keys=[value for _, value in keys])
        if not keys and self.grid is None and (self.others or self.select.args.get("group") is not None):
            some = exp.GT(this=exp.Count(this=exp.Star()), expression=exp.Literal.number(0))
            one.set("having", exp.Having(this=some))
        return self._sorted(one) if keys and self.grid is None else one

    def _needed(self) -> list[exp.Column]:
        found: dict[tuple[str, str], exp.Column] = {}
        for column in trees.columns(self.select):
            if column.table in self.group.aliases:
                found.setdefault((column.table, column.name), column)
        return list(found.values())

    def _shown(self, value: exp.Expr) -> str:
        return f"partial {sql_text.shown(value)}"

    def _merged(self, node: exp.Expr) -> exp.Expr | None:
        """What replaces an aggregate in the residual; None where it stays and its columns become keys."""
        function, condition = _function(node)
        if self.others and not trees.column_tables(node) & self.group.aliases:
            return eager_aggregation.weighed(function, condition, self._weight)
        if self.grid is None and (_is_distinct(function) or isinstance(function, exp.ApproxDistinct)):
            return None
        # An aggregate-only owner takes no FILTER: its columns are dimensions, so it is applied to the groups here.
        inner, outer = (None, condition) if self.grid is not None else (condition, None)

        def partial(value: exp.Expr) -> exp.Expr:
            return self._add(_filtered(value, inner))

        def merged(kind: type[exp.AggFunc], value: exp.Expr) -> exp.Expr:
            return _filtered(kind(this=value), outer)

        return _MERGES.get(type(function), _itself)(self, function, partial, merged)

    @staticmethod
    def _sorted(statement: exp.Select) -> exp.Select:
        """Groups in the order of their first key: that compresses to half of what they take as they come."""
        first = statement.args["group"].expressions[0] if statement.args.get("group") is not None else None
        if isinstance(first, exp.Column):
            statement.set("order", exp.Order(expressions=[exp.Ordered(this=first.copy())]))
        return statement

    def _weight(self) -> exp.Expr:
        """How many rows a row of the fragment stands for; one where an outer join found none."""
        count = self._add(exp.Count(this=exp.Star()))
        if not self.group.sources[0].nullable:
            return count
        return exp.Coalesce(this=count, expressions=[exp.Literal.number(1)])

    def _add(self, value: exp.Expr) -> exp.Column:
        for name, known in self.partials:
            if known == value:
                return trees.column(name, self.group.name)
        name = trees.free_name(f"p{len(self.partials)}", self.taken)
        self.partials.append((name, value.copy()))
        return trees.column(name, self.group.name)

    def _expression_keys(self) -> None:
        """GROUP BY expressions of the group are computed at the owner."""
        for key in trees.group_keys(self.select):
            reads = trees.column_tables(key)
            if isinstance(key, exp.Column) or not reads or not reads <= self.group.aliases or trees.has_query(key):
                continue
            if all(key != known for _, known in self.keys):
                self.keys.append((trees.free_name(f"k{len(self.keys)}", self.taken), key.copy()))
        for name, key in self.keys:
            for node in [one for one in trees.in_block(self.select) if one == key]:
                node.replace(trees.column(name, self.group.name))


Partial = Callable[[exp.Expr], exp.Expr]
Merge = Callable[[type[exp.AggFunc], exp.Expr], exp.Expr]


def _function(node: exp.Expr) -> tuple[exp.Expr, exp.Expr | None]:
    """The aggregate and the condition of its FILTER."""
    if isinstance(node, exp.Filter):
        return node.this, node.expression.this
    return node, None


def _filtered(value: exp.Expr, condition: exp.Expr | None) -> exp.Expr:
    return value if condition is None else exp.Filter(this=value, expression=exp.Where(this=condition.copy()))


def _is_distinct(function: exp.Expr) -> bool:
    return isinstance(function.this, exp.Distinct) and not isinstance(function, exp.Min | exp.Max)


def _count(work: _Partials, function: exp.Expr, partial: Partial, merged: Merge) -> exp.Expr:
    total = merged(exp.Sum, partial(function))
    if work.grid is None:  # where groups may be withheld, nothing is not zero
        total = exp.Coalesce(this=total, expressions=[exp.Literal.number(0)])
    return trees.cast(total, exp.DType.BIGINT)


def _sum(work: _Partials, function: exp.Expr, partial: Partial, merged: Merge) -> exp.Expr:
    """SUM, and COUNT_IF, which is a sum too: NULL where there was nothing to add."""
    return merged(exp.Sum, partial(function))


def _avg(work: _Partials, function: exp.Expr, partial: Partial, merged: Merge) -> exp.Expr:
    total = merged(exp.Sum, partial(exp.Sum(this=function.this.copy())))
    count = merged(exp.Sum, partial(exp.Count(this=function.this.copy())))
    divisor = exp.Nullif(this=count, expression=exp.Literal.number(0))
    total = trees.cast(total, exp.DType.DOUBLE)
    return exp.Paren(this=exp.Div(this=total, expression=divisor, typed=False, safe=False))


def _itself(work: _Partials, function: exp.Expr, partial: Partial, merged: Merge) -> exp.Expr:
    return merged(type(function), partial(function))  # type: ignore[arg-type]  # only aggregates come here


_MERGES: dict[type[exp.Expr], Callable[[_Partials, exp.Expr, Partial, Merge], exp.Expr]] = {
    exp.Count: _count,
    exp.CountIf: _sum,
    exp.Sum: _sum,
    exp.Avg: _avg,
}
