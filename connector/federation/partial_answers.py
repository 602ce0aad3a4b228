"""Which questions still mean something when an owner is missing: `why_not` says what stands against it. Pure.

One SELECT over one dataset of `"all"`, whose answer is put together from the owners' rows, counts, sums and averages:
without an owner it is exactly the answer about the others, who are named. Nothing in it compares one owner's rows with
another's, so no row is there because a row of the missing owner is not (decision 14).
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.model import ALL
from policies.contracts.columns import fold
from policies.sql.allowed_syntax import QUERIES

_ADDING_UP = (exp.Count, exp.Sum, exp.Avg, exp.CountIf)


def why_not(tree: exp.Expr) -> str:
    """What makes an answer without one of its owners misleading; empty where it is not."""
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
    if any(_is_judged(one) for one in tree.find_all(exp.AggFunc)):
        return "it judges figures that the missing owner is part of"
    if tree.args.get("order") is not None and tree.args.get("limit") is not None:
        return "the first rows may be those of the missing owner"
    return ""


def _is_judged(figure: exp.Expr) -> bool:
    """Whether an aggregate is compared with something, or decides between branches of a CASE."""
    node = figure
    while (above := node.parent) is not None and not isinstance(above, exp.Select):
        branching = isinstance(above, exp.If | exp.Case) and node.arg_key == "this"
        if branching or isinstance(above, exp.Predicate | exp.Connector | exp.Not):
            return True
        node = above
    return False
