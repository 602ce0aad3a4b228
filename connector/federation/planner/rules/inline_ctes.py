"""Replaces references to WITH queries by the queries, so that owners can run them together with the outer query.

A WITH query stays if it is used more than once and two runs might differ (LIMIT, ranks with ties, any_value), or if
copies would make the query very long. Equal fragments of copies are merged later.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner import expansion_limit
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.rules import qualify
from policies.sql import syntax_tree as trees

_NODES_MAX = 4_000  # nodes in all copies of one WITH query
_ROOM = 16_000  # nodes in all copies of one query, as copies of copies multiply
_UNSTABLE = (exp.Limit, exp.Offset, exp.AnyValue, exp.Window, exp.ApproxDistinct)


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with as few WITH queries as possible."""
    changed, room = False, _ROOM
    clauses = [node for node in trees.nodes(tree) if isinstance(node, exp.With)]
    for clause in reversed(clauses):  # innermost first: a name means its nearest definition
        changed_here, room = _inline(clause, room)
        changed = changed_here or changed
    return qualify.rename(tree) if changed else tree


def _inline(clause: exp.With, room: int) -> tuple[bool, int]:
    """Inline one WITH clause; returns whether it changed, and the nodes that copies may still add."""
    owner, kept, changed = clause.parent, [], False
    assert owner is not None
    ctes = list(clause.expressions)
    for number, cte in enumerate(ctes):
        places = [*(later.this for later in ctes[number + 1 :]), owner]
        uses = {id(table): table for place in places for table in _uses(place, cte, clause)}
        parts = len(uses) * expansion_limit.size(cte.this) if len(uses) > 1 else 0
        if len(uses) > 1 and (_is_unstable(cte.this) or parts > min(room, _NODES_MAX)):
            _rename(cte, f"w{number}_{cte.alias}", list(uses.values()))
            kept.append(cte)
            changed = True
            continue
        room -= parts
        for table in uses.values():
            table.replace(exp.Subquery(this=cte.this.copy(), alias=table.args["alias"].copy()))
        changed = True
    if kept:
        clause.set("expressions", kept)
    else:
        owner.set("with_", None)
    return changed, room


def _rename(cte: exp.CTE, name: str, uses: list[exp.Table]) -> None:
    """Rename a WITH query, so that no fragment's table has its name."""
    cte.args["alias"].set("this", exp.to_identifier(name))
    for table in uses:
        table.set("this", exp.to_identifier(name))


def _uses(place: exp.Expr, cte: exp.CTE, clause: exp.With) -> list[exp.Table]:
    found = []
    for table in place.find_all(exp.Table):
        if not table.db and table.name == cte.alias and not _is_inside(table, clause, place):
            found.append(table)
    return found


def _is_inside(table: exp.Table, clause: exp.With, place: exp.Expr) -> bool:
    """Whether the table is inside the WITH clause, whose definitions are searched one by one."""
    above: exp.Expr | None = table
    while above is not None and above is not place:
        if above is clause:
            return True
        above = above.parent
    return False


def _is_unstable(query: exp.Expr) -> bool:
    return query.find(*_UNSTABLE) is not None
