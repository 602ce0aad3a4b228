"""Filtered scans, for groups that no other rule handled: only the columns that the block still needs.

The residual reads the fragment's table in place of its sources. If the block does not depend on repeated rows, owners
leave them out.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner import sql_text
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.model import Mode
from connector.federation.planner.placement import computed_columns
from connector.federation.planner.placement.top_k import TopK
from connector.federation.planner.select_block import SourceGroup
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def apply(
    select: exp.Select,
    groups: list[SourceGroup],
    planning: PlanningContext,
    *,
    distinct: bool = False,
    top: TopK | None = None,
) -> None:
    """Make a fragment of every group, and let the block read their tables."""
    for group in groups:
        values = computed_columns.apply(select, group) if planning.full else []
        made = {name for name, _ in values}
        plain = [c for c in _needed(select, group, planning) if not (c.table == group.name and c.name in made)]
        needed = name_outputs(plain)
        outputs: list[tuple[str, exp.Expr]] = [*needed, *values] or [("one", exp.Literal.number(1))]
        asked = partial(_statement, group, outputs=outputs, distinct=distinct and planning.full, top=top)
        table = planning.draft(
            blocks.shares(group, asked),
            outputs=[name for name, _ in outputs],
            kind="join" if len(group.members) > 1 else "scan",
            pushed=_pushed(group, distinct and planning.full, top),
        )
        point(select, group, table, {(column.table, column.name): name for name, column in needed})


def _statement(
    group: SourceGroup, number: int, *, outputs: list[tuple[str, exp.Expr]], distinct: bool, top: TopK | None
) -> exp.Select:
    statement = blocks.statement(group, number, outputs)
    if distinct:
        statement.set("distinct", exp.Distinct())
    return top.on(statement, group, number) if top is not None else statement


def _needed(select: exp.Select, group: SourceGroup, planning: PlanningContext) -> list[exp.Column]:
    """Columns of the group that the block reads outside of the joins in its fragment."""
    if planning.mode is Mode.PULL:
        source = group.sources[0]
        names = list(source.parts[0].columns)
        if not names:
            table = source.node if isinstance(source.node, exp.Table) else source.node.find(exp.Table)
            assert table is not None  # a source with parts reads a table
            names = [fold(column.name) for column in planning.columns(table)]
        return [trees.column(name, source.alias) for name in names]
    taken, aliases = {id(source.join) for source in group.outer}, group.aliases
    found: dict[tuple[str, str], exp.Column] = {}
    for column in _columns(select, taken):
        if column.table in aliases:
            found.setdefault((column.table, column.name), column)
    return list(found.values())


def _columns(select: exp.Select, taken: set[int]) -> Iterable[exp.Column]:
    for name, values in select.args.items():
        for node in values if isinstance(values, list) else [values]:
            if isinstance(node, exp.Expr) and id(node) not in taken and name not in ("from_", "with_"):
                yield from trees.columns(node)


def name_outputs(columns: Iterable[exp.Column]) -> list[tuple[str, exp.Column]]:
    """Each column with a unique name."""
    found: list[tuple[str, exp.Column]] = []
    names: set[str] = set()
    for column in columns:
        name = column.name
        if name in names:
            name = f"{column.table}_{column.name}"
        while name in names:
            name += "_"
        names.add(name)
        found.append((name, column))
    return found


def point(select: exp.Select, group: SourceGroup, table: str, names: dict[tuple[str, str], str]) -> None:
    """Let the block read `table` in place of the group's sources, also in the columns of correlated subqueries."""
    _replace_sources(select, group, table)
    moved = {key: name for key, name in names.items() if key != (group.name, name)}
    for column in [one for one in trees.columns(select) if (one.table, one.name) in moved] if moved else ():
        column.replace(trees.column(moved[column.table, column.name], group.name))


def _replace_sources(select: exp.Select, group: SourceGroup, table: str) -> None:
    first = group.sources[0]
    entry = exp.Table(this=exp.to_identifier(table), alias=exp.TableAlias(this=exp.to_identifier(group.name)))
    first.node.replace(entry)
    gone = {id(source.node) for source in group.members[1:]}
    if not gone:
        return
    joins = [join for join in select.args.get("joins") or () if id(join.this) not in gone]
    if id(select.args["from_"].this) in gone:
        start = next(join for join in joins if join.this is entry)
        joins.remove(start)
        select.set("from_", exp.From(this=entry))
    select.set("joins", joins)


def _pushed(group: SourceGroup, distinct: bool, top: TopK | None) -> tuple[str, ...]:
    # The conditions may be changed: every share has its own copy, and the block does not use them any more.
    found = [f"filter {sql_text.write_readable(condition, spend=True)}" for condition in group.conditions]
    found += ["distinct"] if distinct else []
    return (*found, *(["top-k"] if top is not None else []))
