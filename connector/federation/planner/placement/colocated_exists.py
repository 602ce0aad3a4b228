"""EXISTS over a dataset whose shares were cut like the group's own is judged at each owner.

Rows that agree in what both were cut by are at one owner. So where the subquery asks for equality there, a row's
partners are at the row's own owner or nowhere, for EXISTS as for NOT EXISTS.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.context import Planning
from connector.federation.planner.select_block import Group, Source
from policies.sql import syntax_tree as trees


def take(group: Group, condition: exp.Expr, planning: Planning) -> bool:
    """Whether the group can judge the condition share by share; then it knows the subquery's source."""
    from connector.federation.planner.placement import owner_joins  # it asks us, and we ask it what is co-located

    query = _exists(condition)
    if (
        query is None
        or not planning.full
        or group.aggregate_only
        or not owner_joins.about(group, trees.free_tables(condition))
    ):
        return False
    source = owner_joins.source_of(trees.sources(query)[0], None, planning)
    if not _alike(group, source):
        return False
    if not owner_joins.together(group, Group([source]), trees.where_of(query), planning, fixed=True):
        return False
    group.nested.append(source)
    return True


def _exists(condition: exp.Expr) -> exp.Select | None:
    """The subquery of a plain [NOT] EXISTS over one source."""
    inner = condition.this if isinstance(condition, exp.Not) else condition
    while isinstance(inner, exp.Paren):
        inner = inner.this
    query = trees.unwrap(inner.this) if isinstance(inner, exp.Exists) else None
    if not isinstance(query, exp.Select) or not trees.is_plain(query) or len(trees.sources(query)) != 1:
        return None
    return None if any(trees.has_query(one) for one in trees.where_of(query)) else query


def _alike(group: Group, source: Source) -> bool:
    """Whether the source has one share at each owner of the group, and the group more than one owner."""
    owners = tuple(part.owner for part in source.parts)
    return len(owners) > 1 and owners == group.owners and len(set(owners)) == len(owners) and not source.aggregate_only
