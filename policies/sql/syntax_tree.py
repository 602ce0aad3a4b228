"""Questions about bound sqlglot trees and small changes to them, for the gate and planner rules.

In a bound tree, aliases of sources are unique over the whole tree, so a column's table name identifies its source. Must
not know plans.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from sqlglot import exp

from policies.sql import parentheses
from policies.sql.allowed_syntax import QUERIES
from policies.sql.rewrite import list_nodes

_QUERIES = frozenset(QUERIES)
_FROM = frozenset({exp.Table, exp.Subquery})
WHOLE = frozenset(("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"))
_NAMES = frozenset({exp.Table, exp.Column, exp.Literal, exp.Identifier})  # below them are names only
AGGREGATES = (exp.AggFunc, exp.Filter, exp.WithinGroup, exp.Window)  # with all that is computed inside them
TESTS = ("SEMI", "ANTI")  # joins that add no columns
WINDOW_FUNCTIONS = (
    exp.RowNumber, exp.Rank, exp.DenseRank, exp.PercentRank, exp.CumeDist, exp.Ntile, exp.Lag, exp.Lead,
    exp.FirstValue, exp.LastValue,
)  # fmt: skip


def conjuncts(condition: exp.Expr | None) -> list[exp.Expr]:
    """Return the members of an AND, without outer parentheses."""
    if condition is None:
        return []
    found: list[exp.Expr] = []
    stack = [condition]
    while stack:
        node = stack.pop()
        while isinstance(node, exp.Paren):
            node = node.this
        if isinstance(node, exp.And):
            stack.extend((node.expression, node.this))
        else:
            found.append(node)
    return found


def disjuncts(condition: exp.Expr) -> list[exp.Expr]:
    """Return the members of an OR, without outer parentheses."""
    found: list[exp.Expr] = []
    stack = [condition]
    while stack:
        node = stack.pop()
        while isinstance(node, exp.Paren):
            node = node.this
        if isinstance(node, exp.Or):
            stack.extend((node.expression, node.this))
        else:
            found.append(node)
    return found


def conjoin(conditions: Iterable[exp.Expr]) -> exp.Expr | None:
    """Return the AND of conditions; None without any."""
    whole: exp.Expr | None = None
    for condition in conditions:
        one = exp.Paren(this=condition) if isinstance(condition, exp.Or) else condition
        whole = one if whole is None else exp.And(this=whole, expression=one)
    return whole


def disjoin(conditions: Iterable[exp.Expr]) -> exp.Expr:
    """Return the OR of at least one condition."""
    members = [exp.Paren(this=one) if isinstance(one, exp.And | exp.Or) else one for one in conditions]
    whole = members[0]
    for one in members[1:]:
        whole = exp.Or(this=whole, expression=one)
    return whole


def where_of(select: exp.Select) -> list[exp.Expr]:
    clause = select.args.get("where")
    return conjuncts(clause.this if clause is not None else None)


def set_where(select: exp.Select, conditions: Iterable[exp.Expr]) -> None:
    """Set WHERE to these conditions. They are moved, not copied: they must not be part of another tree."""
    whole = conjoin(conditions)
    select.set("where", None if whole is None else exp.Where(this=whole))


def sources(select: exp.Select) -> list[exp.Expr]:
    """Return the tables and derived tables of FROM and JOIN, in order."""
    first = select.args.get("from_")
    if first is None:
        return []
    return [first.this, *(join.this for join in select.args.get("joins") or ())]


def entries(select: exp.Select) -> list[tuple[exp.Expr, exp.Join | None]]:
    """Return each of `sources` with the join that adds it (None for FROM); empty without FROM."""
    found = sources(select)
    joins: list[exp.Join | None] = [None, *(select.args.get("joins") or ())] if found else []
    return list(zip(found, joins, strict=True))


def side(join: exp.Expr) -> str:
    return str(join.args.get("side") or "").upper()


def kind(join: exp.Expr) -> str:
    return str(join.args.get("kind") or "").upper()


def is_inner(join: exp.Expr) -> bool:
    return not side(join) and kind(join) in ("", "INNER", "CROSS")


def unwrap(node: exp.Expr) -> exp.Expr:
    """Return the query inside redundant parentheses."""
    while isinstance(node, exp.Subquery) and not any(node.args.get(name) for name in ("order", "limit", "offset")):
        node = node.this
    return node


def nodes(node: exp.Expr) -> list[exp.Expr]:
    """Return `list_nodes` without the identifiers of tables and columns."""
    return list_nodes(node, closed=_NAMES)


def selects(node: exp.Expr) -> list[exp.Select]:
    """Return the SELECTs of a tree, outermost first."""
    return [one for one in nodes(node) if type(one) is exp.Select]


def tables(node: exp.Expr) -> list[exp.Table]:
    """Return all tables below the node: datasets, WITH queries, fragments."""
    return [one for one in nodes(node) if type(one) is exp.Table]


def base_tables(node: exp.Expr) -> list[exp.Table]:
    """Return all datasets below the node; names of WITH queries and fragments have no owner."""
    return [table for table in tables(node) if table.db]


def aliases(node: exp.Expr) -> set[str]:
    """Return the aliases of all sources below the node."""
    return _alias_names(nodes(node))


def _alias_names(found: Iterable[exp.Expr]) -> set[str]:
    return {one.alias_or_name for one in found
            if type(one) in _FROM and isinstance(one.parent, exp.From | exp.Join)}  # fmt: skip


def columns(node: exp.Expr) -> list[exp.Column]:
    """Return all columns of sources below the node; a column without table names an output."""
    if type(node) is exp.Column:  # the most frequent case
        return [node] if node.table else []
    return [one for one in nodes(node) if type(one) is exp.Column and one.table]


def column_tables(node: exp.Expr) -> set[str]:
    return {column.table for column in columns(node)}


def tables_read(found: Iterable[exp.Expr]) -> set[str]:
    """Return the tables of the columns among these nodes."""
    return {one.table for one in found if type(one) is exp.Column and one.table}


def free_tables(node: exp.Expr) -> set[str]:
    """Return the sources outside `node` that it reads; non-empty when it is correlated."""
    found = nodes(node)
    return tables_read(found) - _alias_names(found)


def may_fail(node: exp.Expr) -> bool:
    """Return whether an expression may raise an error on ordinary rows: an integer division, except by a nonzero
    number.

    Overflow is not counted: it does not justify fetching all rows instead of their sum.
    """
    return any(isinstance(one, exp.IntDiv | exp.Mod) and not _is_nonzero_number(one.expression) for one in node.walk())


def _is_nonzero_number(node: exp.Expr) -> bool:
    return isinstance(node, exp.Literal) and not node.is_string and bool(float(node.this))


def has_query(node: exp.Expr) -> bool:
    return not _QUERIES.isdisjoint(map(type, nodes(node)))


def nested_queries(node: exp.Expr) -> Iterator[exp.Expr]:
    """Yield the outermost queries below a node that is not a query."""
    stack = [node] if has_query(node) else []
    while stack:
        one = stack.pop()
        if type(one) in _QUERIES:
            yield one
        else:
            stack.extend(one.iter_expressions())


_SOURCES = ("from_", "joins", "with_")
_NOTHING_BELOW = frozenset({*QUERIES, exp.Column, exp.Literal, exp.Identifier})  # except other SELECTs and names
_BEFORE = (*_SOURCES, "where")  # evaluated before grouping: without aggregates and windows


def in_block(select: exp.Expr, *, without: Collection[str] = _SOURCES) -> list[exp.Expr]:
    """Return the nodes of one SELECT without its sources and the inside of nested queries."""
    stack: list[exp.Expr] = []
    found: list[exp.Expr] = []
    for name, values in select.args.items():
        if name not in without:
            stack += [v for v in (values if isinstance(values, list) else [values]) if isinstance(v, exp.Expr)]
    while stack:
        node = stack.pop()
        found.append(node)
        if type(node) not in _NOTHING_BELOW:
            stack.extend(node.iter_expressions())
    return found


def is_aggregate(node: exp.Expr) -> bool:
    """Return whether the node is an aggregate of its SELECT, not part of a window function."""
    if not isinstance(node, exp.AggFunc) or isinstance(node, WINDOW_FUNCTIONS):
        return False
    above = node.parent
    if isinstance(above, exp.Filter):
        above = above.parent
    return not (isinstance(above, exp.Window) and above.this in (node, node.parent))


def is_in_aggregate(node: exp.Expr) -> bool:
    """Return whether a node is inside an aggregate of its SELECT, the aggregate's FILTER, or a window."""
    return isinstance(node.find_ancestor(*AGGREGATES, exp.Select), AGGREGATES)


def sees_outputs_of_having(node: exp.Expr) -> bool:
    """Return whether a name in HAVING may mean an output, which names in aggregates and subqueries may not."""
    return isinstance(node.find_ancestor(*AGGREGATES, exp.Select, exp.Having), exp.Having)


def aggregates(select: exp.Select) -> list[exp.Expr]:
    """Return the aggregates of the SELECT, with their FILTER."""
    found: list[exp.Expr] = []
    for node in in_block(select, without=_BEFORE):
        if isinstance(node, exp.AggFunc) and is_aggregate(node):
            found.append(node.parent if isinstance(node.parent, exp.Filter) and node.parent.this is node else node)
    return found


def has_window(select: exp.Select) -> bool:
    if select.args.get("qualify") is not None:
        return True
    return any(isinstance(node, exp.Window) for node in in_block(select, without=_BEFORE))


def is_plain(select: exp.Expr) -> bool:
    """Return whether the query is SELECT, FROM and WHERE only."""
    if not isinstance(select, exp.Select):
        return False
    if any(select.args.get(name) for name in ("with_", "distinct", "group", "having", "qualify", "order", "limit")):
        return False
    return not select.args.get("offset") and not aggregates(select) and not has_window(select)


def group_keys(select: exp.Select) -> list[exp.Expr]:
    """Return the expressions of GROUP BY, including those inside grouping sets."""
    clause = select.args.get("group")
    found: list[exp.Expr] = []
    stack = [] if clause is None else grouping_sets(clause) + list(clause.expressions)
    while stack:
        one = stack.pop(0)
        if isinstance(one, exp.Rollup | exp.Cube | exp.GroupingSets | exp.Tuple):
            stack = [*one.expressions, *stack]
        elif isinstance(one, exp.Paren):
            stack.insert(0, one.this)
        else:
            found.append(one)
    return found


def grouping_sets(clause: exp.Expr) -> list[exp.Expr]:
    """Return ROLLUP, CUBE and GROUPING SETS of a GROUP BY."""
    kinds = (exp.Rollup, exp.Cube, exp.GroupingSets)
    found: list[exp.Expr] = [one for one in clause.expressions if isinstance(one, kinds)]
    for name in ("grouping_sets", "cube", "rollup"):
        found += clause.args.get(name) or []
    return found


def first_select(query: exp.Expr) -> exp.Select:
    """Return the SELECT whose outputs name the columns of a query."""
    while not isinstance(query, exp.Select):
        query = query.this
    return query


def output_names(query: exp.Expr) -> list[str]:
    return [output.alias_or_name for output in first_select(query).expressions]


def is_place(key: exp.Expr) -> bool:
    """Return whether a key of ORDER BY or GROUP BY is the position of an output."""
    return isinstance(key, exp.Literal) and key.is_int


def column(name: str, table: str = "") -> exp.Column:
    return exp.column(exp.to_identifier(name), table=exp.to_identifier(table) if table else None, copy=False)


def substitute(value: exp.Expr, place: exp.Expr) -> exp.Expr:
    """Replace `place` by a copy of `value`, in parentheses where needed, and return the new node.

    `place` may be the root of an expression; the returned node is then the expression.
    """
    made = value.copy()
    made = made if parentheses.is_atom(made) else exp.Paren(this=made)
    place.replace(made)
    return made


def cast(value: exp.Expr, kind: exp.DType) -> exp.TryCast:
    """Return the value as TRY_CAST to another type; NULL when it does not fit."""
    return exp.TryCast(this=value, to=exp.DataType(this=kind), safe=True)


def free_name(name: str, taken: Collection[str]) -> str:
    """Return the name, or a variant of it that is not in `taken`."""
    while name in taken:
        name += "_"
    return name


def alias_as(value: exp.Expr, name: str) -> exp.Alias:
    return exp.Alias(this=value, alias=exp.to_identifier(name))
