"""Runs a block whole at each owner, if no group or window partition spans several owners; unites the answers.

That holds if a partition column is a key of every group and window: rows with equal values in it are at one owner. Then
HAVING, DISTINCT aggregates, ranks and aggregates without partial results are final there.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.select_block import BlockSource, SourceGroup
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def apply(select: exp.Select, groups: list[SourceGroup], sources: list[BlockSource], planning: PlanningContext) -> bool:
    """Run the block at each owner; False, and the block unchanged, if that is not possible."""
    if not planning.full or len(groups) != 1 or len(groups[0].members) != len(sources):
        return False
    group = groups[0]
    if group.aggregate_only or len(group.owners) < 2 or len(set(group.owners)) != len(group.owners):
        return False
    if select.args.get("where") is not None or select.args.get("with_") is not None or _has_subquery(select):
        return False
    if not _is_by_partition(select, _partition_columns(group)):
        return False
    _run_at_owners(select, group, planning)
    return True


def _has_subquery(select: exp.Select) -> bool:
    parts = [select.args.get(name) for name in ("having", "qualify", "order", "group")]
    return any(trees.has_query(part) for part in (*select.expressions, *parts) if part is not None)


def _partition_columns(group: SourceGroup) -> set[tuple[str, str]]:
    """(alias, column) of the partition columns of the group's sources."""
    found: set[tuple[str, str]] = set()
    for source in group.sources:
        names = []
        for part in source.parts:
            cut = part.infos[0].partition if len(part.infos) == 1 else None
            column = fold(cut.columns[0]) if cut is not None and len(cut.columns) == 1 else ""
            shown = {name for name, value in part.columns.items() if isinstance(value, exp.Column)
                     and fold(value.name) == column}  # fmt: skip
            names.append(shown if part.columns else {column})
        found |= {(source.alias, name) for name in set.intersection(*names) if name}
    return found


def _is_by_partition(select: exp.Select, cut: set[tuple[str, str]]) -> bool:
    """Whether the block has groups or windows, all with a partition column as key."""
    clause = select.args.get("group")
    if clause is None and trees.aggregates(select):
        return False
    if clause is not None and (trees.grouping_sets(clause) or not _has_partition_key(trees.group_keys(select), cut)):
        return False
    windows = [node for node in trees.in_block(select) if isinstance(node, exp.Window)]
    if not all(_has_partition_key(window.args.get("partition_by") or [], cut) for window in windows):
        return False
    return clause is not None or bool(windows)


def _has_partition_key(keys: list[exp.Expr], cut: set[tuple[str, str]]) -> bool:
    return any(isinstance(key, exp.Column) and (key.table, key.name) in cut for key in keys)


def _run_at_owners(select: exp.Select, group: SourceGroup, planning: PlanningContext) -> None:
    outputs = [(f"c{number}", output.unalias()) for number, output in enumerate(select.expressions)]
    shown = list(outputs)
    order = _add_order_keys(select, shown)
    clauses = {name: select.args.get(name) for name in ("having", "qualify", "distinct")}
    keys = trees.group_keys(select)
    table = planning.draft(
        blocks.shares(group, lambda number: blocks.statement(group, number, shown, keys=keys, clauses=clauses)),
        outputs=[name for name, _ in shown],
        kind="whole",
        pushed=("whole query",),
    )
    names = [output.alias_or_name for output in select.expressions]
    for name in ("joins", "group", "having", "qualify"):
        select.set(name, None)
    columns = [trees.alias_as(trees.column(own, table), name) for (own, _), name in zip(outputs, names, strict=True)]
    select.set("expressions", columns)
    select.set("from_", exp.From(this=exp.Table(this=exp.to_identifier(table))))
    for ordered, own in order:
        ordered.set("this", trees.column(own, table))


def _add_order_keys(select: exp.Select, shown: list[tuple[str, exp.Expr]]) -> list[tuple[exp.Expr, str]]:
    """Add outputs for keys of ORDER BY that are no outputs; returns each such key with its output."""
    clause = select.args.get("order")
    found: list[tuple[exp.Expr, str]] = []
    for ordered in () if clause is None else clause.expressions:
        key = ordered.this
        if isinstance(key, exp.Column) and not key.table:
            continue
        same = next((name for name, value in shown if value == key), None)
        if same is None:
            same = f"c{len(shown)}"
            shown.append((same, key))
        found.append((ordered, same))
    return found
