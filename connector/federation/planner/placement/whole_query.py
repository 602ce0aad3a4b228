"""Runs a query whole at the owner of all its datasets, so that only its answer travels."""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner.context import FragmentShare, PlanningContext
from policies.sql import syntax_tree as trees


def apply(node: exp.Expr, planning: PlanningContext, *, root: bool, distinct: bool) -> exp.Expr | None:
    """The SELECT over the fragment's table; None if no single owner can answer the query."""
    found = blocks.find_home(node, planning)
    if found is None or trees.free_tables(node):
        return None
    owner, _ = found
    query = trees.unwrap(node).copy()
    names = trees.output_names(query)
    order = _order(query, names) if root else []
    if distinct and trees.is_plain(query):
        query.set("distinct", exp.Distinct())
    shown = list(dict.fromkeys([*names, *(name for name, _ in order)]))  # the order may name one twice
    table = planning.draft([FragmentShare(owner, query)], outputs=shown, kind="whole", pushed=_pushed(query))
    select = exp.select(*(trees.alias_as(trees.column(name, table), name) for name in names), copy=False)
    select.set("from_", exp.From(this=exp.Table(this=exp.to_identifier(table))))
    if order:
        keys = [exp.Ordered(this=trees.column(name, table), desc=one.args.get("desc"),
                            nulls_first=one.args.get("nulls_first")) for name, one in order]  # fmt: skip
        select.set("order", exp.Order(expressions=keys))
    return select


def _order(query: exp.Expr, names: list[str]) -> list[tuple[str, exp.Ordered]]:
    """The columns by which the answer is ordered. Keys that are no outputs become hidden outputs."""
    clause = query.args.get("order")
    found: list[tuple[str, exp.Ordered]] = []
    for number, ordered in enumerate(() if clause is None else clause.expressions):
        key = ordered.this
        if isinstance(key, exp.Column) and not key.table and key.name in names:
            found.append((key.name, ordered))
            continue
        if not isinstance(query, exp.Select):
            return []
        same = next((one.alias for one in query.selects if isinstance(one, exp.Alias) and one.this == key), None)
        if same is None:
            if query.args.get("distinct"):
                return []
            same = trees.free_name(f"order_{number}", [*names, *(name for name, _ in found)])
            query.append("expressions", trees.alias_as(key.copy(), same))
        found.append((same, ordered))
    return found


def _pushed(query: exp.Expr) -> tuple[str, ...]:
    words = {"joins": "join", "where": "filter", "group": "aggregate", "order": "order", "limit": "limit"}
    found = [word for name, word in words.items() if query.args.get(name)]
    return ("whole query", *found)
