"""Decides what runs where: each query runs whole at one owner (`whole_query`), or is cut into blocks.

A fragment returns a superset of the rows that its block needs; conditions that it does not test stay in the residual. A
block that no rule matches becomes one filtered scan for each dataset.
"""

from __future__ import annotations

from sqlglot import exp

from connector.errors import Denied
from connector.federation.planner.context import FragmentShare, PlanningContext
from connector.federation.planner.placement import (
    colocated_query,
    owner_joins,
    partial_aggregates,
    scans,
    top_k,
    whole_query,
)
from connector.federation.planner.select_block import BlockSource, SourceGroup
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import SETS


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The residual query. The fragments are in `planning`."""
    return _query(tree, planning, root=True)


def _query(node: exp.Expr, planning: PlanningContext, *, root: bool = False, distinct: bool = False) -> exp.Expr:
    """The residual of one query. `distinct`: the query around it does not depend on repeated rows."""
    distinct = distinct and not any(node.args.get(name) for name in ("limit", "offset"))  # these count rows
    found = whole_query.apply(node, planning, root=root, distinct=distinct) if planning.full else None
    if found is not None:
        return found
    clause = node.args.get("with_")
    for cte in () if clause is None else clause.expressions:
        cte.set("this", _query(cte.this, planning))
    if isinstance(node, exp.Subquery):
        node.set("this", _query(node.this, planning, distinct=distinct))
    elif isinstance(node, SETS):
        # EXCEPT ALL depends on the number of equal rows.
        only = bool(node.args.get("distinct")) or (distinct and not isinstance(node, exp.Except))
        node.set("this", _query(node.this, planning, distinct=only))
        node.set("expression", _query(node.args["expression"], planning, distinct=only))
    elif isinstance(node, exp.Select):
        _block(node, planning, distinct=distinct)
    return node


def _block(select: exp.Select, planning: PlanningContext, *, distinct: bool) -> None:
    sources = owner_joins.read_sources(select, planning)
    for source in sources:
        if source.local and isinstance(source.node, exp.Subquery):
            source.node.set("this", _query(source.node.this, planning))
    before = select.copy() if any(source.aggregate_only for source in sources) else None
    groups = owner_joins.groups(select, sources, planning)
    _place_nested(select, planning)
    only = distinct and trees.is_plain(select)
    if colocated_query.apply(select, groups, sources, planning):
        return
    done = partial_aggregates.apply(select, groups, sources, planning)
    groups = [group for group in groups if group not in done]
    if done:
        scans.apply(select, groups, planning)
        return
    if before is not None and _as_it_is(select, before, groups, sources, planning):
        return
    _refuse_aggregate_only(groups)
    top_k_of = top_k.of(select, groups, sources, planning)
    scans.apply(select, groups, planning, distinct=only or _is_distinct(select), top=top_k_of)


def _is_distinct(select: exp.Select) -> bool:
    """Whether it is a SELECT DISTINCT whose answer does not depend on repeated rows of a source."""
    return bool(select.args.get("distinct")) and not trees.has_window(select) and not (
        trees.aggregates(select) or select.args.get("group")
    )  # fmt: skip


def _place_nested(select: exp.Select, planning: PlanningContext) -> None:
    """Plan subqueries that no fragment contains as queries of their own. Correlated ones keep their conditions."""
    parts: list[exp.Expr] = [node for name, values in select.args.items() if name not in ("from_", "with_", "joins")
             for node in (values if isinstance(values, list) else [values]) if isinstance(node, exp.Expr)]  # fmt: skip
    parts += [join.args["on"] for join in select.args.get("joins") or () if join.args.get("on") is not None]
    for part in parts:
        for query in list(trees.nested_queries(part)):
            above = query.parent
            holder = above.parent if isinstance(above, exp.Subquery) else above
            exists = isinstance(above, exp.Exists) or isinstance(holder, exp.In)
            new = _query(query, planning, distinct=exists)
            if new is not query:
                query.replace(new)


def _as_it_is(
    select: exp.Select,
    before: exp.Select,
    groups: list[SourceGroup],
    sources: list[BlockSource],
    planning: PlanningContext,
) -> bool:
    """Send a block over one aggregate-only dataset that cannot be split to its owner, which decides; else False."""
    alone = len(sources) == 1 and len(groups) == 1 and len(groups[0].owners) == 1
    if not alone or sources[0].parts[0].columns or trees.free_tables(before) or len(trees.base_tables(before)) > 1:
        return False
    outputs = [output.alias_or_name for output in before.selects]
    table = planning.draft(
        [FragmentShare(groups[0].owners[0], before)], outputs=outputs, kind="whole", pushed=("whole query",)
    )
    for name in [name for name in select.args if name not in ("kind", "hint")]:
        select.set(name, None)
    select.set("expressions", [trees.alias_as(trees.column(name, table), name) for name in outputs])
    select.set("from_", exp.From(this=exp.Table(this=exp.to_identifier(table))))
    return True


def _refuse_aggregate_only(groups: list[SourceGroup]) -> None:
    for group in groups:
        if group.aggregate_only:
            raise refusal(group.members)


def refusal(sources: list[BlockSource]) -> Denied:
    """The error for a query that an aggregate-only dataset does not answer."""
    info = next(info for source in sources for info in source.infos if info.grid is not None)
    assert info.grid is not None
    return Denied(
        f"{info.quoted_name} gives aggregates only: COUNT, SUM and AVG of {', '.join(info.grid.measures) or 'nothing'} "
        f"by {', '.join(info.grid.dimensions) or 'nothing'}, {info.grid.describe_group_size()} at each owner; "
        "it cannot be joined with other datasets, and its rows are not readable. Ask for such an aggregate of it alone",
        code="aggregate_only",
        dataset=info.quoted_name,
    )
