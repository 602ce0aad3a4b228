"""Rewrites a checked query before the policy is inserted: casts that cannot fail, functions by their own name.

Afterwards the engine's parser sees the same functions as the gate, and no cast except TRY_CAST. Must not know
contracts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from sqlglot import exp

from policies.contracts.columns import fold
from policies.sql.parse import refuse

_LEAVES = frozenset({exp.Identifier})  # after the gate an identifier holds only a text


def list_nodes(tree: exp.Expr, *, closed: Collection[type[exp.Expr]] = _LEAVES) -> list[exp.Expr]:
    """Return the nodes of a tree, parents first, as a list, so they can be changed while iterating.

    `closed`: classes whose children are skipped. Twice as fast as `walk`.
    """
    found = [tree]
    for node in found:  # grows while iterating
        if type(node) in closed:
            continue
        for value in node.args.values():
            if isinstance(value, exp.Expr):
                found.append(value)
            elif type(value) is list:
                for one in value:
                    if isinstance(one, exp.Expr):
                        found.append(one)
    return found


def make_safe(nodes: Sequence[exp.Expr]) -> set[str] | None:
    """Rewrite a tree in place, given as its `list_nodes`; return the folded names of the columns that it mentions.

    Returns None when it reads all columns by `*`, or renames a table's columns by position.
    """
    names: set[str] = set()
    everything = False
    for node in nodes:
        kind = type(node)
        if kind is exp.Column:
            names.add(fold(node.name))
        elif kind is exp.Table and (alias := node.args.get("alias")) is not None and alias.args.get("columns"):
            everything = True
        elif kind is exp.Star:
            everything = everything or not isinstance(node.parent, exp.Count)
        elif kind is exp.Join:
            names.update(fold(column.name) for column in node.args.get("using") or ())
        else:
            change = _CHANGES.get(kind)
            if change is not None:
                change(node)
    return None if everything else names


def avoid_dictionaries(nodes: Sequence[exp.Expr], tables: Sequence[exp.Expr]) -> None:
    """Make grouped sums over columns of `tables` read plain values instead of dictionary positions.

    DuckDB 2.0 keeps 8 bytes for each value of each dictionary that such a sum has met, outside its memory limit, until
    the sum ends. A Parquet file has a dictionary for each column and row group, hundreds of MB for a large file. TRY
    yields plain values, but also turns errors into NULL, and the engine may evaluate a subquery's column inside it; so
    it is used only where all sources are tables, whose columns cannot fail.
    """
    known = set(map(id, tables))
    outputs: dict[int, set[str]] = {}  # by SELECT that groups rows of tables only
    for group in nodes:
        select = group.parent
        if type(group) is exp.Group and isinstance(select, exp.Select) and _reads_only(select, known):
            named = (output for output in select.expressions if isinstance(output, exp.Alias))
            outputs[id(select)] = {fold(output.alias) for output in named}
    for node in nodes if outputs else ():
        value = node.this if type(node) is exp.Sum or type(node) is exp.Avg else None
        if not isinstance(value, exp.Column) or (taken := outputs.get(id(node.find_ancestor(exp.Select)))) is None:
            continue
        if value.table or fold(value.name) not in taken:  # otherwise it may be the alias of an output
            node.set("this", exp.Try(this=value))


def _reads_only(select: exp.Select, tables: set[int]) -> bool:
    first = select.args.get("from_")
    clauses = (first, *(select.args.get("joins") or ())) if first is not None else ()
    return bool(clauses) and all(id(clause.this) in tables for clause in clauses)


def check_relations(tree: exp.Expr, names: Sequence[str]) -> frozenset[str]:
    """Return the functions that the policy view added to the finished tree by name.

    Raises: QueryRefused unless every relation in the tree is one of `names`: the policy's relations and WITH queries.
    """
    written: set[str] = set()
    for node in list_nodes(tree):
        kind = type(node)
        if kind is exp.Anonymous:
            written.add(str(node.this).lower())
        elif kind is exp.Table and (node.args.get("db") or node.name not in names):
            refuse("dataset_unknown", "the query reads something that is not part of the agreement", "wrap")
    return frozenset(written)


def _cast(node: exp.Expr) -> None:
    """Use TRY_CAST: an error would quote the value and reveal a hidden row."""
    node.replace(exp.TryCast(this=node.this, to=node.args["to"], safe=True))


def _interval(node: exp.Expr) -> None:
    """Write INTERVAL '3' MONTH as to_months(3): the engine's parser would insert plain casts into the former."""
    unit = str(node.args["unit"].this).lower().rstrip("s")
    amount = node.this
    if isinstance(amount, exp.Literal):
        amount = exp.Literal.number(str(amount.this))
    elif isinstance(amount.this, exp.Literal):  # a negative amount has a minus node
        amount = exp.Neg(this=exp.Literal.number(str(amount.this.this)))
    node.replace(exp.Anonymous(this=f"to_{unit}s", expressions=[amount]))


def _is(node: exp.Expr) -> None:
    """Write `x IS TRUE` without the cast that the engine's parser inserts."""
    if isinstance(node.expression, exp.Boolean):
        value = exp.TryCast(this=node.this, to=exp.DataType(this=exp.DType.BOOLEAN), safe=True)
        node.replace(exp.Paren(this=exp.NullSafeEQ(this=value, expression=node.expression)))


def hide_bounds(value: exp.Expr) -> exp.Expr:
    """Return a date or time unchanged, but hidden from the engine's planner.

    DuckDB 2.0 evaluates `date_trunc('week', x)` for the minimum and maximum of the column, hidden rows included, before
    it runs a query; a hidden date at the end of the calendar made every such query fail and so revealed it.
    """
    return exp.Paren(this=exp.Add(this=value, expression=exp.Anonymous(this="to_days", expressions=[_ZERO.copy()])))


_ZERO = exp.Literal.number(0)


def _trunc(node: exp.Expr) -> None:
    if str(node.args["unit"].this).upper().startswith("WEEK") and not isinstance(node.this, exp.Literal):
        node.set("this", hide_bounds(node.this))


def _rename_to(name: str) -> Callable[[exp.Expr], None]:
    """Return a rewrite to the function's own name, without the cast that the generator inserts."""

    def change(node: exp.Expr) -> None:
        node.replace(exp.Anonymous(this=name, expressions=[node.this]))

    return change


_CHANGES: dict[type[exp.Expr], Callable[[exp.Expr], None]] = {
    exp.Cast: _cast,
    exp.Interval: _interval,
    exp.Is: _is,
    exp.DateTrunc: _trunc,
    exp.TimestampTrunc: _trunc,
    exp.LogicalAnd: _rename_to("bool_and"),
    exp.LogicalOr: _rename_to("bool_or"),
}
