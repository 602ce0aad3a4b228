"""What a checked query is changed into before the policy stands in it: casts that cannot fail, plain words.

One pass over the tree. Afterwards the engine's parser sees the same functions as the gate, and no cast but
TRY_CAST. Must not know contracts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from sqlglot import exp

from policies.contracts.columns import fold
from policies.sql.parse import refuse

_LEAVES = frozenset({exp.Identifier})  # the gate lets through none that holds more than a text


def list_nodes(tree: exp.Expr, *, closed: Collection[type[exp.Expr]] = _LEAVES) -> list[exp.Expr]:
    """The nodes of a tree, parents first, as a list: they may be changed on the way. `closed`: classes of nodes that
    are not looked into. Twice as quick as `walk`."""
    found = [tree]
    for node in found:  # which grows on the way
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
    """Rewrite a tree in place, given as `every` node of it; folded names of the columns that it mentions, None when
    it asks for all by `*`, or renames a table's columns by their places."""
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
    """Grouped sums over columns of `tables` take their values one by one, not as places in a file's dictionary.

    DuckDB 2.0 keeps 8 bytes for each value of each dictionary that such a sum has met, until it ends and beside its
    memory limit. A Parquet file has a dictionary for each column and row group: a large one hundreds of MB of them.
    TRY gives plain values. It also gives NULL in place of an error, and the engine may compute a subquery's column
    inside of it: so only where all sources are tables, whose columns are there or masked, which cannot fail.
    """
    known = set(map(id, tables))
    outputs: dict[int, set[str]] = {}  # of each SELECT that groups rows of tables only
    for group in nodes:
        select = group.parent
        if type(group) is exp.Group and isinstance(select, exp.Select) and _reads_only(select, known):
            named = (output for output in select.expressions if isinstance(output, exp.Alias))
            outputs[id(select)] = {fold(output.alias) for output in named}
    for node in nodes if outputs else ():
        value = node.this if type(node) is exp.Sum or type(node) is exp.Avg else None
        if not isinstance(value, exp.Column) or (taken := outputs.get(id(node.find_ancestor(exp.Select)))) is None:
            continue
        if value.table or fold(value.name) not in taken:  # else it may stand for an output's expression
            node.set("this", exp.Try(this=value))


def _reads_only(select: exp.Select, tables: set[int]) -> bool:
    first = select.args.get("from_")
    clauses = (first, *(select.args.get("joins") or ())) if first is not None else ()
    return bool(clauses) and all(id(clause.this) in tables for clause in clauses)


def check_relations(tree: exp.Expr, names: Sequence[str]) -> frozenset[str]:
    """The functions that the wrap wrote into the finished tree by name.

    Raises QueryRefused unless every relation in it is one of `names`: what the policy put there, or a WITH query.
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
    """An error would quote the value, and tell of a row that the answer hides."""
    node.replace(exp.TryCast(this=node.this, to=node.args["to"], safe=True))


def _interval(node: exp.Expr) -> None:
    """INTERVAL '3' MONTH as to_months(3): the engine's parser would read the former through plain casts."""
    unit = str(node.args["unit"].this).lower().rstrip("s")
    amount = node.this
    if isinstance(amount, exp.Literal):
        amount = exp.Literal.number(str(amount.this))
    elif isinstance(amount.this, exp.Literal):  # a minus before it
        amount = exp.Neg(this=exp.Literal.number(str(amount.this.this)))
    node.replace(exp.Anonymous(this=f"to_{unit}s", expressions=[amount]))


def _is(node: exp.Expr) -> None:
    """`x IS TRUE` without the cast that the engine's parser puts in."""
    if isinstance(node.expression, exp.Boolean):
        value = exp.TryCast(this=node.this, to=exp.DataType(this=exp.DType.BOOLEAN), safe=True)
        node.replace(exp.Paren(this=exp.NullSafeEQ(this=value, expression=node.expression)))


def hide_bounds(value: exp.Expr) -> exp.Expr:
    """A day or time as it is, of which the engine's planner knows no bounds.

    DuckDB 2.0 works out `date_trunc('week', x)` for the least and greatest x of a whole column, hidden rows included,
    before it runs anything: a hidden date at the end of the calendar made every such query fail, which tells of it.
    """
    return exp.Paren(this=exp.Add(this=value, expression=exp.Anonymous(this="to_days", expressions=[_ZERO.copy()])))


_ZERO = exp.Literal.number(0)


def _trunc(node: exp.Expr) -> None:
    if str(node.args["unit"].this).upper().startswith("WEEK") and not isinstance(node.this, exp.Literal):
        node.set("this", hide_bounds(node.this))


def _rename_to(name: str) -> Callable[[exp.Expr], None]:
    """The function by its own name, without the cast that the generator puts in."""

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
