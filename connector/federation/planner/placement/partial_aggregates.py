"""Partial aggregates: owners aggregate their shares, and the residual merges the results.

For a block over one group, owners group by the columns that the block needs outside of aggregates, and return a partial
result for each aggregate. COUNT and SUM are summed, AVG is a sum and a count, MIN, MAX and the logical and bitwise
aggregates merge by themselves. A DISTINCT aggregate makes its argument one more key and is computed here, as counts of
distinct values cannot be summed. An aggregate without a partial (standard deviation, median, any_value) keeps the whole
block as a scan.

Aggregate-only datasets are read only in this way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner import sql_text
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.placement import eager_aggregation, scans
from connector.federation.planner.select_block import BlockSource, SourceGroup
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees

_SELF_MERGING = (
    exp.Min, exp.Max, exp.LogicalAnd, exp.LogicalOr, exp.BitwiseAndAgg, exp.BitwiseOrAgg, exp.BitwiseXorAgg,
)  # fmt: skip
_TEMPORAL = ("DATE", "TIME", "INTERVAL")


def apply(
    select: exp.Select, groups: list[SourceGroup], sources: list[BlockSource], planning: PlanningContext
) -> list[SourceGroup]:
    """The groups that partial aggregates answer; if empty, the block is unchanged."""
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
    if not all(work.can_split(node) for node in aggregates) or not work.fits_grid():
        return []
    work.split(aggregates)
    return [work.group]


class _Partials:
    def __init__(
        self, select: exp.Select, group: SourceGroup, planning: PlanningContext, *, others: bool = False
    ) -> None:
        self.select, self.group, self.planning, self.others = select, group, planning, others
        self.types, self.taken = group.types, group.used_names(select)
        self.partials: list[tuple[str, exp.Expr]] = []
        self.keys: list[tuple[str, exp.Expr]] = []
        grids = [info.grid for info in group.infos if info.grid is not None]
        self.grid = grids[0] if grids else None
        self.grids = grids

    # Checks

    def can_split(self, node: exp.Expr) -> bool:
        """Whether an aggregate has a partial, or can be computed from more keys."""
        function, condition = _split_filter(node)
        if condition is not None and trees.has_query(condition):
            return False
        if trees.has_query(function):
            return False
        if self.grid is not None:
            return self._is_allowed_by_grid(function)
        if self.others and not trees.column_tables(node) & self.group.aliases:
            return True  # an aggregate of another source, checked by `eager_aggregation.choose`
        found = _is_distinct(function) or isinstance(function, exp.ApproxDistinct)
        found = found or (isinstance(function, exp.Count) and not function.expressions)
        found = found or isinstance(function, (exp.Sum, exp.CountIf, *_SELF_MERGING))
        found = found or (isinstance(function, exp.Avg) and self._is_numeric(function.this))
        if not found:
            self.planning.note(
                f"{type(function).__name__.lower()} over {self.group.name}", "function", "it has no partial result"
            )
        return found and trees.column_tables(node) <= self.group.aliases

    def _is_allowed_by_grid(self, function: exp.Expr) -> bool:
        measures = {fold(name) for grid in self.grids for name in grid.measures}
        inner = function.this
        if isinstance(function, exp.Count) and isinstance(inner, exp.Star):
            return True
        if _is_distinct(function):
            return isinstance(function, exp.Count) and self._can_count_units(inner)
        plain = isinstance(inner, exp.Column) and self._stored_name(inner) in measures
        return isinstance(function, exp.Count | exp.Sum | exp.Avg) and plain

    def _can_count_units(self, inner: exp.Expr) -> bool:
        """Whether COUNT(DISTINCT unit) can be summed: no unit is at two owners, and owners group as the query does."""
        if len(inner.expressions) != 1 or not isinstance(inner.expressions[0], exp.Column):
            return False
        name = self._stored_name(inner.expressions[0])
        if any(grid.entity is None or fold(grid.entity) != name for grid in self.grids):
            return False
        cut = [info.partition for info in self.group.infos]
        apart = len(self.group.owners) == 1 or all(one is not None and one.columns == (name,) for one in cut)
        if not apart:
            self.planning.note("COUNT(DISTINCT unit)", "policy", "the same unit may be at several owners")
        clause = self.select.args.get("group")
        sets = clause is not None and bool(trees.grouping_sets(clause))
        return apart and not sets and self._columns_read() <= self._plain_keys()

    def _plain_keys(self) -> set[tuple[str, str]]:
        return {(key.table, key.name) for key in trees.group_keys(self.select) if isinstance(key, exp.Column)}

    def _columns_read(self) -> set[tuple[str, str]]:
        """Columns of the group that are read outside of aggregates, also in WHERE and FILTER."""
        inside = {id(column) for node in trees.aggregates(self.select)
                  for column in trees.columns(_split_filter(node)[0])}  # fmt: skip
        return {(column.table, column.name) for column in trees.columns(self.select)
                if id(column) not in inside and column.table in self.group.aliases}  # fmt: skip

    def fits_grid(self) -> bool:
        """Whether every column that would become a key is a dimension of each aggregate-only share."""
        if self.grid is None:
            return True
        source = self.group.sources[0]
        for part in source.parts:
            for info in part.infos:
                if info.grid is None:
                    return False
                dimensions = {fold(name) for name in info.grid.dimensions}
                for _, name in self._columns_read():
                    value = part.columns.get(name, trees.column(name))
                    constant = not any(True for _ in value.find_all(exp.Column))
                    if not constant and not (isinstance(value, exp.Column) and fold(value.name) in dimensions):
                        return False
        return True

    def _stored_name(self, column: exp.Column) -> str:
        """The column's name at the owners; "" if it differs or is computed."""
        values = [part.columns.get(column.name, column) for part in self.group.sources[0].parts]
        names = {fold(value.name) if isinstance(value, exp.Column) else "" for value in values}
        return names.pop() if len(names) == 1 else ""

    def _is_numeric(self, value: exp.Expr) -> bool:
        if value.find(exp.Interval, exp.DataType) is not None:
            return False
        types = [self.types.get((column.table, column.name), "") for column in trees.columns(value)]
        return all(kind and not kind.startswith(_TEMPORAL) for kind in types)

    # Splitting

    def split(self, aggregates: Sequence[exp.Expr]) -> None:
        """Add partial results to the fragment, and expressions that merge them to the block."""
        for node in aggregates:
            new = self._merge_aggregate(node)
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
            pushed=(*scans._pushed(group, False, None), *(self._describe_partial(value) for _, value in self.partials)),
        )
        scans.point(self.select, group, table, {(column.table, column.name): name for name, column in names})

    def _statement(
        self, number: int, keys: list[tuple[str, exp.Expr]], outputs: list[tuple[str, exp.Expr]]
    ) -> exp.Select:
        one = blocks.statement(self.group, number, outputs, keys=[value for _, value in keys])
        if not keys and self.grid is None and (self.others or self.select.args.get("group") is not None):
            some = exp.GT(this=exp.Count(this=exp.Star()), expression=exp.Literal.number(0))
            one.set("having", exp.Having(this=some))
        return self._sort_by_first_key(one) if keys and self.grid is None else one

    def _needed(self) -> list[exp.Column]:
        found: dict[tuple[str, str], exp.Column] = {}
        for column in trees.columns(self.select):
            if column.table in self.group.aliases:
                found.setdefault((column.table, column.name), column)
        return list(found.values())

    def _describe_partial(self, value: exp.Expr) -> str:
        return f"partial {sql_text.write_readable(value)}"

    def _merge_aggregate(self, node: exp.Expr) -> exp.Expr | None:
        """The expression that replaces an aggregate in the residual; None if it stays and its columns become keys."""
        function, condition = _split_filter(node)
        if self.others and not trees.column_tables(node) & self.group.aliases:
            return eager_aggregation.weigh_aggregate(function, condition, self._weight)
        if self.grid is None and (_is_distinct(function) or isinstance(function, exp.ApproxDistinct)):
            return None
        # An aggregate-only owner accepts no FILTER. Its columns are dimensions, so it is applied to the groups here.
        inner, outer = (None, condition) if self.grid is not None else (condition, None)

        def partial(value: exp.Expr) -> exp.Expr:
            return self._add_partial(_add_filter(value, inner))

        def merged(kind: type[exp.AggFunc], value: exp.Expr) -> exp.Expr:
            return _add_filter(kind(this=value), outer)

        return _MERGES.get(type(function), _merge_by_itself)(self, function, partial, merged)

    @staticmethod
    def _sort_by_first_key(statement: exp.Select) -> exp.Select:
        """Sort groups by their first key, which halves their compressed size."""
        first = statement.args["group"].expressions[0] if statement.args.get("group") is not None else None
        if isinstance(first, exp.Column):
            statement.set("order", exp.Order(expressions=[exp.Ordered(this=first.copy())]))
        return statement

    def _weight(self) -> exp.Expr:
        """The number of rows for which a row of the fragment stands; 1 for an unmatched row of an outer join."""
        count = self._add_partial(exp.Count(this=exp.Star()))
        if not self.group.sources[0].nullable:
            return count
        return exp.Coalesce(this=count, expressions=[exp.Literal.number(1)])

    def _add_partial(self, value: exp.Expr) -> exp.Column:
        for name, known in self.partials:
            if known == value:
                return trees.column(name, self.group.name)
        name = trees.free_name(f"p{len(self.partials)}", self.taken)
        self.partials.append((name, value.copy()))
        return trees.column(name, self.group.name)

    def _expression_keys(self) -> None:
        """Compute expressions in GROUP BY at the owner."""
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


def _split_filter(node: exp.Expr) -> tuple[exp.Expr, exp.Expr | None]:
    """The aggregate, and the condition of its FILTER if it has one."""
    if isinstance(node, exp.Filter):
        return node.this, node.expression.this
    return node, None


def _add_filter(value: exp.Expr, condition: exp.Expr | None) -> exp.Expr:
    return value if condition is None else exp.Filter(this=value, expression=exp.Where(this=condition.copy()))


def _is_distinct(function: exp.Expr) -> bool:
    return isinstance(function.this, exp.Distinct) and not isinstance(function, exp.Min | exp.Max)


def _merge_count(work: _Partials, function: exp.Expr, partial: Partial, merged: Merge) -> exp.Expr:
    total = merged(exp.Sum, partial(function))
    if work.grid is None:  # if groups may be withheld, a missing count is not zero
        total = exp.Coalesce(this=total, expressions=[exp.Literal.number(0)])
    return trees.cast(total, exp.DType.BIGINT)


def _merge_sum(work: _Partials, function: exp.Expr, partial: Partial, merged: Merge) -> exp.Expr:
    """For SUM and COUNT_IF: NULL if there are no values."""
    return merged(exp.Sum, partial(function))


def _merge_avg(work: _Partials, function: exp.Expr, partial: Partial, merged: Merge) -> exp.Expr:
    total = merged(exp.Sum, partial(exp.Sum(this=function.this.copy())))
    count = merged(exp.Sum, partial(exp.Count(this=function.this.copy())))
    divisor = exp.Nullif(this=count, expression=exp.Literal.number(0))
    total = trees.cast(total, exp.DType.DOUBLE)
    return exp.Paren(this=exp.Div(this=total, expression=divisor, typed=False, safe=False))


def _merge_by_itself(work: _Partials, function: exp.Expr, partial: Partial, merged: Merge) -> exp.Expr:
    return merged(type(function), partial(function))  # type: ignore[arg-type]  # only aggregates reach this


_MERGES: dict[type[exp.Expr], Callable[[_Partials, exp.Expr, Partial, Merge], exp.Expr]] = {
    exp.Count: _merge_count,
    exp.CountIf: _merge_sum,
    exp.Sum: _merge_sum,
    exp.Avg: _merge_avg,
}
