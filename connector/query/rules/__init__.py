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

    from connector.query.planning import Planning

RULES: dict[str, str] = {
    "all_owners": 'a dataset of the owner "all" is the union of every owner\'s share',
    "names": "every column and source has one name, * is written out",
    "outputs": "every output has a name of its own, and ORDER BY names outputs",
    "exists": "EXISTS asks for no column",
    "inline_ctes": "WITH queries stand where they are used, if that cannot change them",
    "outer_to_inner": "a LEFT join whose NULL rows WHERE throws away is an inner join",
    "conjuncts": "conditions of inner joins stand in WHERE, one by one",
    "merge_derived": "a derived table that only joins, computes and filters is part of the block around it",
    "push_filters": "conditions on what a derived table groups by hold inside, too",
    "implied": "what WHERE implies is written down where it lets an owner do more",
    "place": "what runs at which owner, and what is left to do here",
    "semi_joins": "fragments are narrowed by keys of others, where the agreements allow it",
    "asked_once": "fragments that differ in names alone are asked once",
    "computed_once": "what a fragment derives twice is a WITH query of it",
}


def apply(name: str, tree: exp.Expr, planning: Planning) -> exp.Expr:
    """Run one rule of the table."""
    rule: Any = import_module(f"{__name__}.{name}")
    found: exp.Expr = rule.apply(tree, planning)
    return found
