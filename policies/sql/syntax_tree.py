"""Small questions about a bound tree, and small changes to it, that several planner rules need.

A bound tree: aliases of sources are unique over the whole tree, so a column's table says where it comes from
without a look at scopes. Must not know plans.
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
TESTS = ("SEMI", "ANTI")  # joins that add no columns
WINDOW_FUNCTIONS = (
    exp.RowNumber, exp.Rank, exp.DenseRank, exp.PercentRank, exp.CumeDist, exp.Ntile, exp.Lag, exp.Lead,
    exp.FirstValue, exp.LastValue,
)  # fmt: skip


def conjuncts(condition: exp.Expr | None) -> list[exp.Expr]:
    """The members of an AND, outer parentheses taken off."""
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
    """The members of an OR, outer parentheses taken off."""
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
    """The AND of conditions; None of none."""
    whole: exp.Expr | None = None
    for condition in conditions:
        one = exp.Paren(this=condition) if isinstance(condition, exp.Or) else condition
        whole = one if whole is None else exp.And(this=whole, expression=one)
    return whole


def disjoin(conditions: Iterable[exp.Expr]) -> exp.Expr:
    """The OR of at least one condition."""
    members = [exp.Paren(this=one) if isinstance(one, exp.And | exp.Or) else one for one in conditions]
    whole = members[0]
    for one in members[1:]:
        whole = exp.Or(this=whole, expression=one)
    return whole


def where_of(select: exp.Select) -> list[exp.Expr]:
    clause = select.args.get("where")
    return conjuncts(clause.this if clause is not None else None)


def set_where(select: exp.Select, conditions: Iterable[exp.Expr]) -> None:
    """Put these conditions in WHERE; they are taken as they are, so they must stand nowhere else any more."""
    whole = conjoin(conditions)
    select.set("where", None if whole is None else exp.Where(this=whole))


def sources(select: exp.Select) -> list[exp.Expr]:
    """Tables and derived tables after FROM and JOIN, in order."""
    first = select.args.get("from_")
    if first is None:
        return []
    return [first.this, *(join.this for join in select.args.get("joins") or ())]


def entries(select: exp.Select) -> list[tuple[exp.Expr, exp.Join | None]]:
    """What `sources` gives, each with the join that brings it in; nothing for a SELECT without FROM."""
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
    """The query inside parentheses that say nothing else."""
    while isinstance(node, exp.Subquery) and not any(node.args.get(name) for name in ("order", "limit", "offset")):
        node = node.this
    return node


def nodes(node: exp.Expr) -> list[exp.Expr]:
    """What `every` gives, but for the names that tables and columns are made of."""
    return list_nodes(node, closed=_NAMES)


def selects(node: exp.Expr) -> list[exp.Select]:
    """The SELECTs of a tree, outermost first."""
    return [one for one in nodes(node) if type(one) is exp.Select]


def tables(node: exp.Expr) -> list[exp.Table]:
    """Tables anywhere below: datasets, WITH queries, fragments."""
    return [one for one in nodes(node) if type(one) is exp.Table]


def base_tables(node: exp.Expr) -> list[exp.Table]:
    """Datasets anywhere below; names of WITH queries and fragments have no owner."""
    return [table for table in tables(node) if table.db]


def aliases(node: exp.Expr) -> set[str]:
    """Aliases of all sources anywhere below."""
    return _alias_names(nodes(node))


def _alias_names(found: Iterable[exp.Expr]) -> set[str]:
    return {one.alias_or_name for one in found
            if type(one) in _FROM and isinstance(one.parent, exp.From | exp.Join)}  # fmt: skip


def columns(node: exp.Expr) -> list[exp.Column]:
    """Columns of sources anywhere below (those without a table name outputs)."""
    if type(node) is exp.Column:  # most that is asked about is one
        return [node] if node.table else []
    return [one for one in nodes(node) if type(one) is exp.Column and one.table]


def column_tables(node: exp.Expr) -> set[str]:
    return {column.table for column in columns(node)}


def tables_read(found: Iterable[exp.Expr]) -> set[str]:
    """What `column_tables` gives, of nodes that are at hand."""
    return {one.table for one in found if type(one) is exp.Column and one.table}


def free_tables(node: exp.Expr) -> set[str]:
    """Sources outside of `node` that it reads from: what makes it correlated."""
    found = nodes(node)
    return tables_read(found) - _alias_names(found)


def may_fail(node: exp.Expr) -> bool:
    """Whether an expression is an error for rows as there are: where it divides into whole parts, unless by a number
    that is not 0. That numbers grow beyond their type is no reason to have all rows sent in place of their sum."""
    return any(isinstance(one, exp.IntDiv | exp.Mod) and not _is_nonzero_number(one.expression) for one in node.walk())


def _is_nonzero_number(node: exp.Expr) -> bool:
    """Whether it is a number that is written, and not 0."""
    return isinstance(node, exp.Literal) and not node.is_string and bool(float(node.this))


def has_query(node: exp.Expr) -> bool:
    return not _QUERIES.isdisjoint(map(type, nodes(node)))


def nested_queries(node: exp.Expr) -> Iterator[exp.Expr]:
    """The outermost queries below a node that is none itself."""
    stack = [node] if has_query(node) else []
    while stack:
        one = stack.pop()
        if type(one) in _QUERIES:
            yield one
        else:
            stack.extend(one.iter_expressions())


_SOURCES = ("from_", "joins", "with_")
_NOTHING_BELOW = frozenset({*QUERIES, exp.Column, exp.Literal, exp.Identifier})  # but another block, and names
_BEFORE = (*_SOURCES, "where")  # what is done before rows are grouped: no aggregate and no window stands there


def in_block(select: exp.Expr, *, without: Collection[str] = _SOURCES) -> list[exp.Expr]:
    """Nodes of one SELECT, its sources and nested queries left out (the nested query itself is named)."""
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
    """An aggregate of its block: not one that stands before OVER, and no window function."""
    if not isinstance(node, exp.AggFunc) or isinstance(node, WINDOW_FUNCTIONS):
        return False
    above = node.parent
    if isinstance(above, exp.Filter):
        above = above.parent
    return not (isinstance(above, exp.Window) and above.this in (node, node.parent))


def aggregates(select: exp.Select) -> list[exp.Expr]:
    """The block's aggregates, with their FILTER where they have one."""
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
    """SELECT of expressions, FROM, WHERE, and nothing else."""
    if not isinstance(select, exp.Select):
        return False
    if any(select.args.get(name) for name in ("with_", "distinct", "group", "having", "qualify", "order", "limit")):
        return False
    return not select.args.get("offset") and not aggregates(select) and not has_window(select)


def group_keys(select: exp.Select) -> list[exp.Expr]:
    """The expressions of GROUP BY, also those inside grouping sets."""
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
    """ROLLUP, CUBE and GROUPING SETS of a GROUP BY."""
    kinds = (exp.Rollup, exp.Cube, exp.GroupingSets)
    found: list[exp.Expr] = [one for one in clause.expressions if isinstance(one, kinds)]
    for name in ("grouping_sets", "cube", "rollup"):
        found += clause.args.get(name) or []
    return found


def first_select(query: exp.Expr) -> exp.Select:
    """The SELECT whose outputs give a query's their names."""
    while not isinstance(query, exp.Select):
        query = query.this
    return query


def output_names(query: exp.Expr) -> list[str]:
    return [output.alias_or_name for output in first_select(query).expressions]


def is_place(key: exp.Expr) -> bool:
    """Whether a key of ORDER BY or GROUP BY is the place of an output."""
    return isinstance(key, exp.Literal) and key.is_int


def column(name: str, table: str = "") -> exp.Column:
    return exp.column(exp.to_identifier(name), table=exp.to_identifier(table) if table else None, copy=False)


def substitute(value: exp.Expr, place: exp.Expr) -> exp.Expr:
    """A copy of a value in the place of a column, in brackets unless it is one thing wherever it stands. What is there
    now; `place` may be the whole of an expression, which is then this."""
    made = value.copy()
    made = made if parentheses.is_atom(made) else exp.Paren(this=made)
    place.replace(made)
    return made


def cast(value: exp.Expr, kind: exp.DType) -> exp.TryCast:
    """The value as another type; NULL where that cannot be."""
    return exp.TryCast(this=value, to=exp.DataType(this=kind), safe=True)


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, or one like it that is not taken."""
    while name in taken:
        name += "_"
    return name


def alias_as(value: exp.Expr, name: str) -> exp.Alias:
    return exp.Alias(this=value, alias=exp.to_identifier(name))
