"""Sends ORDER BY and LIMIT to owners: the first k rows of a union are among the first k rows of each share."""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.select_block import BlockSource, SourceGroup
from policies.sql import syntax_tree as trees


@dataclass(frozen=True, slots=True)
class TopK:
    """The number of rows that a share must return, and their order."""

    count: int
    order: tuple[exp.Ordered, ...]

    def on(self, statement: exp.Select, group: SourceGroup, number: int) -> exp.Select:
        """Add the order and limit to a share's statement."""
        columns = {source.alias: source.parts[number].columns for source in group.members}
        order = [one.copy() for one in self.order]
        for ordered in order:
            blocks.write_out(list(ordered.find_all(exp.Column)), columns)
        varying = [one for one in order if one.find(exp.Column) is not None]
        if varying:
            statement.set("order", exp.Order(expressions=varying))
        statement.set("limit", exp.Limit(expression=exp.Literal.number(self.count)))
        return statement


def of(
    select: exp.Select, groups: list[SourceGroup], sources: list[BlockSource], planning: PlanningContext
) -> TopK | None:
    """The top-k of a block over one group, if the block keeps each of its rows; else None."""
    limit = select.args.get("limit")
    if not planning.full or limit is None or len(groups) != 1 or len(groups[0].members) != len(sources):
        return None
    counts = any(select.args.get(name) for name in ("distinct", "group", "having", "where", "qualify"))
    if counts or trees.aggregates(select) or trees.has_window(select):
        return None
    offset = select.args.get("offset")
    count = int(limit.expression.this) + (int(offset.expression.this) if offset is not None else 0)
    order = _order(select, groups[0])
    return None if order is None else TopK(count, order)


def _order(select: exp.Select, group: SourceGroup) -> tuple[exp.Ordered, ...] | None:
    outputs = {output.alias_or_name: output.unalias() for output in select.selects}
    clause, found = select.args.get("order"), []
    for ordered in () if clause is None else clause.expressions:
        key = ordered.this
        if isinstance(key, exp.Column) and not key.table:
            key = outputs.get(key.name)
        if key is None or trees.has_query(key) or not trees.column_tables(key) <= group.aliases:
            return None
        one = ordered.copy()
        one.set("this", key.copy())
        found.append(one)
    return tuple(found)
