"""Approved query templates (`ds:template`): a query must equal one of them except for the literals it fills in.

A template is SQL with `?` where a literal may be. Trees are compared, so spelling, comments and case of names do not
matter. Must not know contracts beyond their templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import SqlglotError

from policies.contracts.columns import fold
from policies.contracts.coverage import rule_path
from policies.sql.parse import refuse

if TYPE_CHECKING:
    from policies.enforce.gate import GatedDataset


def check(tree: exp.Expr, used: Sequence[GatedDataset], *, brought: bool) -> None:
    """Require that each contract with templates lists this query. `brought`: it reads a table of the caller.

    An owner approves a query over datasets; with the caller's own rows in a dataset's place it would be another query.

    Raises: QueryRefused (`template_not_agreed`).
    """
    for dataset in used:
        templates = dataset.contract.templates
        if templates and brought:
            refuse(
                "template_not_agreed",
                "approved queries read datasets, not tables of the caller; leave these out",
                rule_path(dataset.contract, "template"),
            )
        if templates and not any(matches_template(tree, text) for text in templates):
            refuse(
                "template_not_agreed",
                "only approved queries run under this agreement; fill in one of: " + " | ".join(templates),
                rule_path(dataset.contract, "template"),
            )


def matches_template(tree: exp.Expr, template: str) -> bool:
    """Return whether `tree` is the template with a literal for each `?`. An unreadable template matches nothing."""
    pattern = _read(template)
    return pattern is not None and _is_same_tree(pattern, tree)


def is_readable(template: str) -> bool:
    """Return whether the template is one query that can be parsed."""
    return isinstance(_read(template), exp.Query)


@lru_cache(maxsize=256)
def _read(template: str) -> exp.Expr | None:
    try:
        (tree,) = DuckDB().parse(template)
    except (SqlglotError, RecursionError, ValueError):  # no SQL, or more than one statement
        return None
    return tree


def _is_same_tree(pattern: exp.Expr, tree: exp.Expr) -> bool:
    pairs: list[tuple[object, object]] = [(pattern, tree)]
    while pairs:
        left, right = pairs.pop()
        if isinstance(left, exp.Placeholder):
            if not _is_value(right):
                return False
        elif isinstance(left, exp.Identifier) and isinstance(right, exp.Identifier):
            if fold(left.name) != fold(right.name):
                return False
        elif isinstance(left, exp.Expr) and isinstance(right, exp.Expr):
            if type(left) is not type(right):
                return False
            names = left.args.keys() | right.args.keys()
            pairs.extend((left.args.get(name) or None, right.args.get(name) or None) for name in names)
        elif isinstance(left, list) and isinstance(right, list):
            if len(left) != len(right):
                return False
            pairs.extend(zip(left, right, strict=True))
        elif left != right:
            return False
    return True


def _is_value(node: object) -> bool:
    if isinstance(node, exp.Neg):
        node = node.this
    return isinstance(node, exp.Literal | exp.Boolean | exp.Null)
