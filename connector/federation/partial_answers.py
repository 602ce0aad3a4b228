"""Rules for partial answers: which questions stay meaningful without one of their owners (decision 14). Pure.

Permitted: one SELECT over one dataset of `"all"`, built from the owners' rows, counts, sums and averages. Without an
owner it is exactly the answer for the other owners, which are named. It never compares rows of different owners, so no
row appears because a row of the missing owner is absent.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.model import ALL
from policies.contracts.columns import fold
from policies.sql.allowed_syntax import QUERIES

_ADDING_UP = (exp.Count, exp.Sum, exp.Avg, exp.CountIf)


def explain_misleading(tree: exp.Expr) -> str:
    """Return why an answer without one of its owners would mislead; empty if it would not."""
    if not isinstance(tree, exp.Select) or len(list(tree.find_all(*QUERIES))) > 1:
        return "it asks more than one query, and what one of them lacks may put rows into another"
    tables = list(tree.find_all(exp.Table))
    if len(tables) != 1 or fold(tables[0].db) != ALL:
        return f'it reads something other than one dataset of "{ALL}"'
    if tree.find(exp.Window) is not None or tree.args.get("qualify") is not None:
        return "ranks and windows look at rows of every owner"
    if tree.args.get("having") is not None:
        return "HAVING judges figures that the missing owner is part of"
    if tree.args.get("offset") is not None:
        return "which rows come first, and are passed over, depends on the missing owner"
    if other := next((one for one in tree.find_all(exp.AggFunc) if not isinstance(one, _ADDING_UP)), None):
        return f"{type(other).__name__.upper()} may be decided by the missing owner; COUNT, SUM and AVG may stand"
    if any(_is_compared(one) for one in tree.find_all(exp.AggFunc)):
        return "it judges figures that the missing owner is part of"
    if tree.args.get("order") is not None and tree.args.get("limit") is not None:
        return "the first rows may be those of the missing owner"
    return ""


def _is_compared(figure: exp.Expr) -> bool:
    """Whether an aggregate is compared with something, or decides between branches of a CASE."""
    node = figure
    while (above := node.parent) is not None and not isinstance(above, exp.Select):
        branching = isinstance(above, exp.If | exp.Case) and node.arg_key == "this"
        if branching or isinstance(above, exp.Predicate | exp.Connector | exp.Not):
            return True
        node = above
    return False
