"""The planner's rules, one per file, in the order in which they run; each loads on first use.

A rule takes the tree of the whole question and gives back a tree with the same answer (`apply(tree, planning)`).
The last, `place`, cuts it: what goes to owners becomes fragments, what is left reads their tables. Its own parts
are the rules for one SELECT block: whole blocks, joins at one owner, partial aggregates, top-k.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlglot import exp

    from connector.federation.planner.context import Planning

RULES: dict[str, str] = {
    "union_all_owners": 'a dataset of the owner "all" is the union of every owner\'s share',
    "qualify": "every column and source has one name, * is written out",
    "name_outputs": "every output has a name of its own, and ORDER BY names outputs",
    "prune_exists": "EXISTS asks for no column",
    "inline_ctes": "WITH queries stand where they are used, if that cannot change them",
    "simplify_outer_joins": "a LEFT join whose NULL rows WHERE throws away is an inner join",
    "flatten_conditions": "conditions of inner joins stand in WHERE, one by one",
    "merge_subqueries": "a derived table that only joins, computes and filters is part of the block around it",
    "pushdown_predicates": "conditions on what a derived table groups by hold inside, too",
    "infer_predicates": "what WHERE implies is written down where it lets an owner do more",
    "place": "what runs at which owner, and what is left to do here",
    "semi_joins": "fragments are narrowed by keys of others, where the agreements allow it",
    "deduplicate_fragments": "fragments that differ in names alone are asked once",
    "share_subqueries": "what a fragment derives twice is a WITH query of it",
}


def apply(name: str, tree: exp.Expr, planning: Planning) -> exp.Expr:
    """Run one rule of the table."""
    package = "connector.federation.planner.placement" if name == "place" else __name__
    rule: Any = import_module(f"{package}.{name}")
    found: exp.Expr = rule.apply(tree, planning)
    return found
