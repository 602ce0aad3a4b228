"""Merges derived tables that only join, compute and filter into the outer block.

Their sources can then go to their owners together with those of the block. A derived table stays if it has aggregates,
DISTINCT, LIMIT or windows, if an outer join adds it, if an output reads none of its own columns, or if its outputs are
used so often that the query would become very long.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner import expansion_limit
from connector.federation.planner.context import PlanningContext
from policies.sql import syntax_tree as trees


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with such derived tables merged, innermost first."""
    for select in reversed(trees.selects(tree)):
        for source in trees.sources(select):
            if isinstance(source, exp.Subquery) and _can_merge(select, source):
                _merge(select, source, planning)
    return tree


def _can_merge(select: exp.Select, source: exp.Subquery) -> bool:
    query = trees.unwrap(source.this)
    joins = select.args.get("joins") or []
    if not isinstance(query, exp.Select) or not trees.is_plain(query) or not trees.sources(query):
        return False
    if any(trees.side(join) in ("RIGHT", "FULL") for join in (*joins, *(query.args.get("joins") or ()))):
        return False
    place = source.parent
    if isinstance(place, exp.Join):
        inner = query.args.get("joins") or ()
        if not trees.is_inner(place) or place.args.get("on") is not None or not all(map(_is_plain_join, inner)):
            return False
    values, here = [output.unalias() for output in query.selects], trees.aliases(query)
    return all(trees.column_tables(value) & here and not trees.has_query(value) for value in values)


def _is_plain_join(join: exp.Expr) -> bool:
    return trees.is_inner(join) and join.args.get("on") is None


def _merge(select: exp.Select, source: exp.Subquery, planning: PlanningContext) -> None:
    query = trees.unwrap(source.this)
    assert isinstance(query, exp.Select)
    values = {output.alias_or_name: output.unalias() for output in query.selects}
    alias, conditions = source.alias_or_name, trees.where_of(query)
    places = [one for one in trees.columns(select) if one.table == alias]
    sizes = {name: expansion_limit.size(value) for name, value in values.items()}
    if not planning.may_grow(max(0, sum(sizes[one.name] for one in places) - sum(sizes.values()))):
        return
    first, joins = query.args["from_"].this, list(query.args.get("joins") or [])
    _splice_from(select, source, first, joins)
    for column in places:
        trees.substitute(values[column.name], column)
    trees.set_where(select, [*conditions, *trees.where_of(select)])


def _splice_from(select: exp.Select, source: exp.Subquery, first: exp.Expr, joins: list[exp.Expr]) -> None:
    """Put the derived table's own FROM in its place."""
    outer = select.args.get("joins") or []
    place = source.parent
    at = 0 if isinstance(place, exp.From) else next(n for n, join in enumerate(outer) if join is place) + 1
    source.replace(first)
    select.set("joins", [*outer[:at], *joins, *outer[at:]])
