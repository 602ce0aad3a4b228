"""Merges fragments that differ only in their sources' aliases, as copies of one WITH query do.

`PlanningContext.draft` merges only identical statements. Runs after `semi_joins`: fragments narrowed by different keys
have different rows.
"""

from __future__ import annotations

from dataclasses import replace

from sqlglot import exp

from connector.federation.planner.context import FragmentDraft, PlanningContext


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """Remove all but the first of equal fragments; returns the residual that reads the first."""
    if not planning.full:
        return tree
    first: dict[object, list[FragmentDraft]] = {}
    instead: dict[str, str] = {}
    for draft in tuple(planning.drafts.values()):
        like = first.setdefault(_shape_of(draft), [])
        same = next((one for one in like if _numbered_statements(one) == _numbered_statements(draft)), None)
        if same is None:
            like.append(draft)
        else:
            instead[draft.table] = same.table
            del planning.drafts[draft.table]
    for table in tree.find_all(exp.Table) if instead else ():
        if (old := table.name) in instead:
            table.set("this", exp.to_identifier(instead[old]))
            if not table.alias:  # its columns use the old name
                table.set("alias", exp.TableAlias(this=exp.to_identifier(old)))
    for draft in planning.drafts.values():
        draft.keys = [replace(key, source=instead.get(key.source, key.source)) for key in draft.keys]
    return tree


def _shape_of(draft: FragmentDraft) -> object:
    """A cheap key that equal fragments share. A fragment with keys equals no other."""
    narrowed = draft.table if draft.keys else ""
    return draft.kind, draft.outputs, tuple(share.owner for share in draft.shares), narrowed


def _numbered_statements(draft: FragmentDraft) -> list[exp.Expr]:
    """The statements with numbered sources."""
    return [number_sources(share.statement) for share in draft.shares]


def number_sources(statement: exp.Expr) -> exp.Expr:
    """A copy whose sources are numbered in order, so that statements that differ only in aliases are equal."""
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
