"""Planner: from SQL over several owners to fragments for the owners and a residual query for here. Pure.

    plan(sql, tables) -> FederatedPlan

Every rule keeps the answer. A fragment returns a superset of the needed rows; conditions that it does not test stay in
the residual. Owners enforce their policies themselves; the planner only decides what to ask them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner import sql_text, statistics
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.model import FederatedPlan, Fragment, Mode, Tables, TypeCasts
from connector.federation.planner.rules import RULES, apply
from policies.contracts.columns import fold, quote_identifier
from policies.sql import rewrite
from policies.sql import syntax_tree as trees

_WORD = re.compile(r"\w+")


def plan(
    sql: str,
    tables: Tables,
    *,
    tree: exp.Expr | None = None,
    mode: Mode = Mode.FULL,
    across_agreements: bool = False,
    trace: bool = False,
) -> FederatedPlan:
    """Plan one SELECT over `tables`.

    tree: the result of `sql_text.read` for the text; it must not be used again.
    across_agreements: owners accept fragments over datasets of several agreements.
    trace: list the rules that changed something, which takes as long as planning.

    Raises:
        QueryInvalid: the query cannot be planned; with the reason.
    """
    tree = sql_text.read(sql) if tree is None else tree
    spelled = [str(node.this) for node in rewrite.list_nodes(tree) if type(node) is exp.Identifier]
    try:
        return _planned(sql, tables, tree, mode=mode, across_agreements=across_agreements, trace=trace)
    except QueryInvalid as error:
        raise _respelled(error, spelled, tables) from None


def _respelled(error: QueryInvalid, spelled: Sequence[str], tables: Tables) -> QueryInvalid:
    """The error with names as the question writes them: while it is planned they are folded. A name that is stored
    folded stands for itself."""
    columns = {column.name for info in tables.values() for column in info.columns}
    written: dict[str, str] = {}
    for name in (*spelled, *sorted(columns)):
        if (folded := fold(name)) != name and folded not in columns:
            written.setdefault(folded, name)
    said = _WORD.sub(lambda found: written.get(found[0], found[0]), str(error))
    return QueryInvalid(said, code=error.code, private=error.private, **error.facts)


def _planned(
    sql: str, tables: Tables, tree: exp.Expr, *, mode: Mode, across_agreements: bool, trace: bool
) -> FederatedPlan:
    written = _written_names(tree)
    planning = PlanningContext(tables, mode, across_agreements)
    changed, before = [], tree.copy() if trace else tree
    for name in RULES:
        tree = apply(name, tree, planning)
        if trace and tree != before:
            changed.append(name)
            before = tree.copy()
        if name == "qualify":
            names = _output_names(tree, written, planning)
    if not planning.drafts:
        raise QueryInvalid("expected a dataset after FROM, got none; name a dataset", code="dataset_missing")
    residual = _rename_outputs(tree, names)
    nodes = rewrite.list_nodes(residual)
    _note_residual(nodes, planning)
    ctes = tuple(node.alias for node in nodes if isinstance(node, exp.CTE))
    fragments = planning.fragments(lambda draft: statistics.expected(draft, planning))
    return FederatedPlan(
        sql=sql,
        mode=mode,
        fragments=fragments,
        passed=_is_passed_through(residual, fragments),
        residual=_write_residual(residual, nodes),
        columns=tuple(names),
        notes=tuple(planning.notes),
        rules=tuple(changed),
        ctes=ctes,
        once=frozenset() if ctes else _tables_read_once(nodes),  # a WITH query may itself stand in several places
    )


def _tables_read_once(nodes: Sequence[exp.Expr]) -> frozenset[str]:
    found = Counter(node.name for node in nodes if isinstance(node, exp.Table))
    return frozenset(name for name, times in found.items() if times == 1)


def _is_passed_through(residual: exp.Expr, fragments: Sequence[Fragment]) -> bool:
    """Whether one owner answers the whole query, with its order, so that its rows pass through unchanged.

    A query ordered by columns that are no outputs has more outputs at its owner than here.
    """
    if len(fragments) != 1 or fragments[0].kind != "whole" or not isinstance(residual, exp.Select):
        return False
    filled = {name for name, value in residual.args.items() if value}
    columns = [output.unalias() for output in residual.expressions]
    names = [column.name for column in columns if isinstance(column, exp.Column)]
    shown = [output.alias_or_name for output in residual.expressions]
    return (
        filled <= {"expressions", "from_", "order", "kind"}
        and [table.name for table in residual.find_all(exp.Table)] == [fragments[0].table]
        and names == list(fragments[0].outputs)
        and len(columns) == len(set(shown))
    )


def merge_sql(
    found: FederatedPlan,
    others: Mapping[str, TypeCasts],
    *,
    without: Collection[str] = (),
    whole: Collection[str] = (),
) -> str:
    """The residual query as SQL over relations named like the fragments.

    others: fragment id to the casts of its columns.
    without: ids of fragments without an answer.
    whole: tables that are loaded already, with all of their fragments.
    """
    united = []
    for table, fragments in found.tables.items():
        there = [one for one in fragments if one.id not in without]
        if others.get(table) or (table not in whole and [one.id for one in there] != [table]):
            every = " UNION ALL ".join(_select_fragment(one, dict(others.get(one.id, ()))) for one in there)
            united.append(f'"{table}" AS ({every})')
    if not united:
        return found.residual
    start = "WITH " + ", ".join(united)
    if found.residual.startswith("WITH "):
        return f"{start}, {found.residual.removeprefix('WITH ')}"
    return f"{start} {found.residual}"


def _select_fragment(fragment: Fragment, others: Mapping[int, str]) -> str:
    """A SELECT over a fragment's answer, in the engine's types."""
    names = [quote_identifier(name) for name in fragment.outputs]
    outputs = [f"TRY_CAST({name} AS {others[at]}) AS {name}" if at in others else name for at, name in enumerate(names)]
    return f'SELECT {", ".join(outputs) if others else "*"} FROM "{fragment.id}"'  # noqa: S608  names of the plan, quoted


def _written_names(tree: exp.Expr) -> list[str]:
    """The output names as written; "" for `*`."""
    found = []
    for output in trees.first_select(tree).expressions:
        if output.is_star:
            found.append("")
        elif isinstance(output, exp.Alias | exp.Column):
            found.append(output.alias_or_name)
        elif isinstance(output, exp.Count) and isinstance(output.this, exp.Star):
            found.append("count_star()")
        else:
            found.append(fold(output.sql(dialect="duckdb", comments=False)[:60]))
    return found


def _output_names(tree: exp.Expr, written: list[str], planning: PlanningContext) -> list[str]:
    """The output names: as written, and for `*` in the owners' spelling."""
    outputs = trees.output_names(tree)
    if len(outputs) == len(written) and all(written):
        return written
    spelled = {fold(column.name): column.name for info in planning.tables.values() for column in info.columns}
    return [spelled.get(name, name) for name in outputs]


def _rename_outputs(tree: exp.Expr, names: Sequence[str]) -> exp.Expr:
    """The residual with the caller's output names, also in ORDER BY. A name of two outputs becomes a place there."""
    first = trees.first_select(tree)
    times = Counter(map(fold, names))
    new = {
        output.alias_or_name: trees.column(name) if times[fold(name)] == 1 else exp.Literal.number(place)
        for place, (output, name) in enumerate(zip(first.expressions, names, strict=True), 1)
    }
    for output, name in zip(first.expressions, names, strict=True):
        output.set("alias", exp.to_identifier(name)) if isinstance(output, exp.Alias) else output.replace(
            trees.alias_as(output.copy(), name)
        )
    node, orders = tree, [tree.args.get("order")]
    while node is not first:  # a side in parentheses may have its own order
        node = node.this
        orders.append(node.args.get("order"))
    for column in [column for order in orders if order is not None for column in order.find_all(exp.Column)]:
        if not column.table and column.name in new:
            column.replace(new[column.name].copy())
    return tree


def _note_residual(nodes: Sequence[exp.Expr], planning: PlanningContext) -> None:
    """Note the work of the residual, with the reason why no owner does it."""
    if planning.mode is not Mode.FULL:
        planning.note("joins and aggregates", "mode", planning.mode.value)
        return
    for select in [node for node in nodes if isinstance(node, exp.Select)]:
        if len(trees.sources(select)) > 1:
            planning.note(" >< ".join(one.alias_or_name for one in trees.sources(select)), "two_owners", "join")
        if select.args.get("order") is not None and len(planning.drafts) > 1:
            planning.note("ORDER BY", "two_owners")


def _write_residual(residual: exp.Expr, nodes: Sequence[exp.Expr]) -> str:
    """The residual as SQL that the engine's parser reads exactly as the gate did."""
    rewrite.make_safe(nodes)
    return sql_text.write(residual, spend=True)
