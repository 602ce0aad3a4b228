"""What a fragment derives in two places in the same words, its owner computes once: copies of a WITH query are one.

Runs last: before, each copy is cut, filtered and narrowed for its own place, and only those that came out alike go
together. Of rows that are only picked and filtered two scans cost less than keeping them.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from connector.federation.planner.context import Draft, Planning
from connector.federation.planner.rules.deduplicate_fragments import numbered
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import SETS


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The same residual; statements of fragments have WITH queries where something stood twice."""
    for draft in planning.drafts.values() if planning.full else ():
        if not _aggregate_only(draft):
            for statement in {id(share.statement): share.statement for share in draft.shares}.values():
                _once(statement)
    return tree


def _once(statement: exp.Expr) -> None:
    derived = list(_derived(statement))
    if len(derived) < 2 or statement.find(exp.With) is not None:
        return
    alike: dict[exp.Expr, list[exp.Subquery]] = {}
    for one in derived:
        alike.setdefault(numbered(one.this), []).append(one)
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


def _derived(statement: exp.Expr) -> Iterator[exp.Subquery]:
    """The outermost derived tables that take work and read from nothing around them; none where there are not two."""
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


def _aggregate_only(draft: Draft) -> bool:
    """Such answer one shape of question only."""
    return any(info.aggregate_only for infos in draft.read for info in infos)
