"""Which datasets a statement draws on in a way that may put several rows of them into one row of the answer.

Rows are counted as they leave only where each row of the answer stands for one row of the dataset, which is there. What
combines rows tells of several, and so does what asks that there be none: `NOT EXISTS` over a table of guesses that the
caller brought answers, in a single row, which of a million guesses about all rows is right. `OFFSET` within it asks
whether there are so many.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlglot import exp

from policies.enforce import rewrite
from policies.enforce.bind import Bound
from policies.enforce.functions import AGGREGATES, WINDOW_ONLY

_COMBINING: tuple[type[exp.Expr], ...] = (
    exp.Group,
    exp.Window,
    exp.With,
    exp.Union,
    exp.Intersect,
    exp.Except,
    *AGGREGATES,
    *WINDOW_ONLY,
)


def drawn(tree: exp.Expr, bound: Bound, counted: Collection[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Of these datasets (owner, table), those that are drawn on so, and how often each stands in the statement."""
    if not counted:
        return {}
    combines = any(isinstance(node, _COMBINING) for node in rewrite.every(tree))
    places: dict[tuple[str, str], list[exp.Table]] = {name: [] for name in counted}
    for node, entry in bound.tables:
        if (entry.owner, entry.table) in places:
            places[entry.owner, entry.table].append(node)
    return {
        name: len(nodes) for name, nodes in places.items() if combines or len(nodes) > 1 or not all(map(_there, nodes))
    }


def _there(table: exp.Expr) -> bool:
    """Whether each row of the answer stands for a row of this table: one that is joined, or that EXISTS or IN finds, as
    a condition that all rows of the answer meet."""
    node: exp.Expr | None = table
    while node is not None and (parent := node.parent) is not None:
        if isinstance(node, exp.Select) and node.args.get("offset") is not None:
            return False
        if isinstance(parent, exp.From | exp.Join):
            if not _keeps(parent, node):
                return False
            node = parent.parent
        elif isinstance(parent, exp.Exists) or (isinstance(parent, exp.In) and node.arg_key == "query"):
            if (where := _condition(parent)) is None:
                return False
            node = where.parent
        elif isinstance(parent, exp.Subquery):
            node = parent
        else:
            return False
    return True


def _keeps(source: exp.From | exp.Join, node: exp.Expr) -> bool:
    """Whether only rows for which the source has one come out of the joins of its SELECT."""
    if node.arg_key != "this" or _word(source, "side") in ("LEFT", "FULL") or _word(source, "kind") == "ANTI":
        return False
    assert source.parent is not None
    joins = source.parent.args.get("joins") or ()
    later = joins[joins.index(source) + 1 :] if isinstance(source, exp.Join) else joins
    return all(_word(join, "side") not in ("RIGHT", "FULL") for join in later)


def _word(node: exp.Expr, name: str) -> str:
    return str(node.args.get(name) or "").upper()


def _condition(node: exp.Expr) -> exp.Where | None:
    """The WHERE that has this as a condition by itself, beside others at most."""
    while isinstance(node.parent, exp.And | exp.Paren):
        node = node.parent
    return node.parent if isinstance(node.parent, exp.Where) else None
