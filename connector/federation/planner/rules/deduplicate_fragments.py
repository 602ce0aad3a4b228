"""Fragments that differ in their sources' names alone are one: a WITH query that two places read is asked once.

`Planning.draft` knows what is equal to the letter. Copies of a WITH query are not: each source of a question has a name
of its own. Runs when keys have their places: what is narrowed by other keys has other rows.
"""

from __future__ import annotations

from dataclasses import replace

from sqlglot import exp

from connector.federation.planner.context import Draft, Planning


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The residual, reading the first of equal fragments; the others are gone."""
    if not planning.full:
        return tree
    first: dict[object, list[Draft]] = {}
    instead: dict[str, str] = {}
    for draft in tuple(planning.drafts.values()):
        like = first.setdefault(_shape(draft), [])
        same = next((one for one in like if _plain(one) == _plain(draft)), None)
        if same is None:
            like.append(draft)
        else:
            instead[draft.table] = same.table
            del planning.drafts[draft.table]
    for table in tree.find_all(exp.Table) if instead else ():
        if (old := table.name) in instead:
            table.set("this", exp.to_identifier(instead[old]))
            if not table.alias:  # its columns go by the name that it had
                table.set("alias", exp.TableAlias(this=exp.to_identifier(old)))
    for draft in planning.drafts.values():
        draft.keys = [replace(key, source=instead.get(key.source, key.source)) for key in draft.keys]
    return tree


def _shape(draft: Draft) -> object:
    """What equal fragments have in common, and costs nothing to see; no two of those with keys are equal."""
    narrowed = draft.table if draft.keys else ""
    return draft.kind, draft.outputs, tuple(share.owner for share in draft.shares), narrowed


def _plain(draft: Draft) -> list[exp.Expr]:
    """The statements with their sources numbered."""
    return [numbered(share.statement) for share in draft.shares]


def numbered(statement: exp.Expr) -> exp.Expr:
    """A copy with its sources numbered in their order: what differs in their names alone is equal."""
    tree = statement.copy()
    names: dict[str, str] = {}
    for source in tree.find_all(exp.Table, exp.Subquery):
        if source.alias:
            new = names.setdefault(source.alias, f"s{len(names)}")
            source.set("alias", exp.TableAlias(this=exp.to_identifier(new)))
    for column in tree.find_all(exp.Column):
        if column.table in names:
            column.set("table", exp.to_identifier(names[column.table]))
    return tree
