"""The planner's rules, one for each file, in the order in which they run. Each is imported on first use.

A rule takes the tree of the whole query and returns a tree with the same answer (`apply(tree, planning)`). `place`
cuts the tree: parts for owners become fragments, and the residual reads their tables. Its own rules in `placement` are
for one SELECT block: whole queries, joins at one owner, partial aggregates, top-k. The docs list them all in
`docs/federated-query.md`, under "What runs where".
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlglot import exp

    from connector.federation.planner.context import PlanningContext

RULES: dict[str, str] = {
    "union_all_owners": 'a dataset of the owner "all" is the union of every owner\'s share',
    "qualify": "give every column its source and every source a unique alias, expand *",
    "name_outputs": "give every output of a query a unique name, let ORDER BY use output names",
    "prune_exists": "select no columns in EXISTS",
    "inline_ctes": "replace references to WITH queries by the queries, if that keeps the answer",
    "simplify_outer_joins": "turn a LEFT join into an inner join if WHERE removes its NULL rows",
    "flatten_conditions": "move conditions of inner joins to WHERE",
    "merge_subqueries": "merge derived tables that only join, compute and filter into the outer block",
    "pushdown_predicates": "repeat conditions on grouping columns inside derived tables",
    "infer_predicates": "add conditions that WHERE implies, if they let an owner do more",
    "place": "decide what runs at which owner and what stays here",
    "semi_joins": "narrow fragments by keys of others, where the agreements allow it",
    "deduplicate_fragments": "ask fragments that differ only in names once",
    "share_subqueries": "compute equal derived tables of a fragment once, as a WITH query",
}


def apply(name: str, tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """Run one rule of the table."""
    package = "connector.federation.planner.placement" if name == "place" else __name__
    rule: Any = import_module(f"{package}.{name}")
    found: exp.Expr = rule.apply(tree, planning)
    return found
