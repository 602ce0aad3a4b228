"""Tests [NOT] EXISTS over a co-located dataset at each owner.

Rows with equal partition columns are at one owner. If the subquery compares these columns by `=`, all matches of a row
are at the row's own owner.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.context import PlanningContext
from connector.federation.planner.select_block import BlockSource, SourceGroup
from policies.sql import syntax_tree as trees


def take_condition(group: SourceGroup, condition: exp.Expr, planning: PlanningContext) -> bool:
    """Add the subquery's source to the group, if it can test the condition in each share; False otherwise."""
    from connector.federation.planner.placement import owner_joins  # it imports this module

    query = _plain_exists(condition)
    if (
        query is None
        or not planning.full
        or group.aggregate_only
        or not owner_joins.about(group, trees.free_tables(condition))
    ):
        return False
    source = owner_joins.source_of(trees.sources(query)[0], None, planning)
    if not _has_same_owners(group, source):
        return False
    if not owner_joins.together(group, SourceGroup([source]), trees.where_of(query), planning, fixed=True):
        return False
    group.nested.append(source)
    return True


def _plain_exists(condition: exp.Expr) -> exp.Select | None:
    """The subquery of a plain [NOT] EXISTS over one source; else None."""
    inner = condition.this if isinstance(condition, exp.Not) else condition
    while isinstance(inner, exp.Paren):
        inner = inner.this
    query = trees.unwrap(inner.this) if isinstance(inner, exp.Exists) else None
    if not isinstance(query, exp.Select) or not trees.is_plain(query) or len(trees.sources(query)) != 1:
        return None
    return None if any(trees.has_query(one) for one in trees.where_of(query)) else query


def _has_same_owners(group: SourceGroup, source: BlockSource) -> bool:
    """Whether the group has several owners, and the source has one share at each of them."""
    owners = tuple(part.owner for part in source.parts)
    return len(owners) > 1 and owners == group.owners and len(set(owners)) == len(owners) and not source.aggregate_only
