"""Turns equal derived tables of a fragment into one WITH query, so that the owner computes them once.

Runs last: earlier rules cut, filter and narrow each copy for its own place, and only equal results are shared. Derived
tables that only select and filter rows are not shared, as two scans cost less than keeping the rows.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from connector.federation.planner.context import FragmentDraft, PlanningContext
from connector.federation.planner.rules.deduplicate_fragments import number_sources
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import SETS


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """Returns the residual unchanged. Statements of fragments get WITH queries for equal derived tables."""
    for draft in planning.drafts.values() if planning.full else ():
        if not _is_aggregate_only(draft):
            for statement in {id(share.statement): share.statement for share in draft.shares}.values():
                _share_equal_tables(statement)
    return tree


def _share_equal_tables(statement: exp.Expr) -> None:
    derived = list(_costly_derived_tables(statement))
    if len(derived) < 2 or statement.find(exp.With) is not None:
        return
    alike: dict[exp.Expr, list[exp.Subquery]] = {}
    for one in derived:
        alike.setdefault(number_sources(one.this), []).append(one)
    taken = {table.name for table in trees.tables(statement)} | trees.aliases(statement)
    queries = []
    for places in alike.values():
        if len(places) > 1:
            name = next(name for number in range(len(taken) + 1) if (name := f"once_{number}") not in taken)
            taken.add(name)
            queries.append(exp.CTE(this=places[0].this.copy(), alias=exp.TableAlias(this=exp.to_identifier(name))))
            for place in places:
                place.replace(exp.Table(this=exp.to_identifier(name), alias=place.args["alias"]))
    if queries:
        statement.set("with_", exp.With(expressions=queries))


def _costly_derived_tables(statement: exp.Expr) -> Iterator[exp.Subquery]:
    """The outermost derived tables worth sharing that use no outer column; none if there are fewer than two."""
    stack = [statement] if sum(type(node) is exp.Subquery for node in trees.nodes(statement)) > 1 else []
    while stack:
        node = stack.pop()
        if isinstance(node, exp.Subquery) and _takes_work(node):
            yield node
        else:
            stack.extend(node.iter_expressions(reverse=True))


def _takes_work(source: exp.Subquery) -> bool:
    if not source.alias or not isinstance(source.parent, exp.From | exp.Join):
        return False
    works = isinstance(source.this, SETS) or (isinstance(source.this, exp.Select) and not trees.is_plain(source.this))
    return works and not trees.free_tables(source.this)


def _is_aggregate_only(draft: FragmentDraft) -> bool:
    """Whether a dataset of the draft answers only figures over groups, without WITH."""
    return any(info.aggregate_only for infos in draft.read for info in infos)
