"""Repeats conditions inside derived tables: on grouping columns, and on outputs of DISTINCT and set operations.

The condition stays outside too.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner import expansion_limit
from connector.federation.planner import select_block as blocks
from connector.federation.planner.context import PlanningContext
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import SETS


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with conditions repeated inside derived tables, outermost first."""
    for select in trees.selects(tree):
        joins = select.args.get("joins") or []
        if any(trees.side(join) in ("RIGHT", "FULL") for join in joins) or select.args.get("where") is None:
            continue
        for source, join in trees.entries(select):
            if isinstance(source, exp.Subquery) and (join is None or trees.is_inner(join)):
                if blocks.parts_of(source, planning):
                    continue  # its owners test the condition
                for condition in trees.where_of(select):
                    if trees.column_tables(condition) == {source.alias_or_name} and not trees.has_query(condition):
                        _push(trees.unwrap(source.this), condition, planning, None)
    return tree


def _push(query: exp.Expr, condition: exp.Expr, planning: PlanningContext, names: list[str] | None) -> None:
    """Repeat a condition inside. `names`: the outputs by position, where a set operation renames them."""
    if any(query.args.get(name) for name in ("limit", "offset", "with_")):
        return
    if isinstance(query, SETS):
        sides = [trees.unwrap(query.this), trees.unwrap(query.args["expression"])]
        if blocks.has_same_types(_leaves(query), planning):
            names = names or [output.alias_or_name for output in _leaves(query)[0].selects]
            for side in sides:
                _push(side, condition, planning, names)
    elif isinstance(query, exp.Select):
        _push_select(query, condition, planning, names)


def _leaves(query: exp.Expr) -> list[exp.Select]:
    query = trees.unwrap(query)
    if isinstance(query, SETS):
        return [*_leaves(query.this), *_leaves(query.args["expression"])]
    return [query] if isinstance(query, exp.Select) else []


def _push_select(query: exp.Select, condition: exp.Expr, planning: PlanningContext, names: list[str] | None) -> None:
    own = names or [output.alias_or_name for output in query.selects]
    values = {name: output.unalias() for name, output in zip(own, query.selects, strict=True)}
    used = [values.get(column.name) for column in trees.columns(condition)]
    if trees.is_plain(query) and not names:
        return  # other rules handle a plain query
    if any(value is None or value.find(exp.Column) is None or trees.has_query(value) for value in used):
        return
    if not all(value is not None and _is_fixed_per_row(value, query) for value in used):
        return
    if not planning.may_grow(
        expansion_limit.size(condition) + sum(expansion_limit.size(value) for value in used if value is not None)
    ):
        return
    inside = condition.copy()
    for column in trees.columns(inside):
        new = trees.substitute(values[column.name], column)
        inside = new if column is inside else inside
    trees.set_where(query, [*trees.where_of(query), inside])


def _is_fixed_per_row(value: exp.Expr, query: exp.Select) -> bool:
    """Whether all input rows of one output row have the same value, also within every window's partition."""
    clause = query.args.get("group")
    if any(trees.is_aggregate(node) or isinstance(node, exp.Window) for node in value.walk()):
        return False
    if clause is None and trees.aggregates(query):
        return False
    if clause is not None and (trees.grouping_sets(clause) or value not in trees.group_keys(query)):
        return False
    windows = [node for node in trees.in_block(query) if isinstance(node, exp.Window)]
    return all(value in (window.args.get("partition_by") or []) for window in windows)
