"""Steps 1 and 2 of the gate: from text to a checked tree.

The text is measured (`token_check`) before anything recursive reads it. The tree contains only syntax of the
allow-lists. Must not know contracts or names.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NoReturn

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

from policies.enforce import keywords
from policies.errors import QueryRefused
from policies.sql import allowed_syntax, token_check
from policies.sql.allowed_functions import FUNCTIONS, WINDOW_ONLY
from policies.sql.limits import DEFAULT, Caps, refuse, refuse_type, refused, shorten

__all__ = ["DEFAULT", "Caps", "parse", "refuse", "refused", "unchecked"]


class _Dialect(DuckDB):
    """DuckDB's, without what sqlglot changes: it reads a column `"all"` in ORDER BY as ALL (see `_order_all`)."""

    SUPPORTS_ORDER_BY_ALL = False
    PRESERVE_ORIGINAL_NAMES = True  # of functions, for messages


_DIALECT = _Dialect()
_CHAINS = frozenset(allowed_syntax.CHAINS)


def parse(sql: str, caps: Caps = DEFAULT) -> exp.Expr:
    """Return one SELECT (or UNION, INTERSECT, EXCEPT) as a tree of allowed syntax only; names are not bound yet.

    1. Limits on length, tokens and nesting; exactly one statement; a query at the root.
    2. Every node class, its filled arguments, types, units and literals are on the allow-lists.

      parse("SELECT count(*) FROM north.patients")

    Raises: QueryRefused with the code, the step, and what to write instead.
    """
    tree = unchecked(sql, caps)
    _check(tree, caps)
    return tree


def unchecked(sql: str, caps: Caps = DEFAULT) -> exp.Expr:
    """Return the tree of any syntax, after step 1 only, for callers that inspect it and run nothing.

    Raises: QueryRefused as `parse`.
    """
    words = token_check.read(sql, caps)
    named = keywords.mark_names(words)
    token_check.measure(named, caps)
    try:
        return _tree(named, sql)
    except QueryRefused as error:
        if error.code == "query_unreadable":
            token_check.measure(words, caps)  # a word that cannot be read as a name either is refused as what it is
        raise


def _tree(words: list[Token], sql: str) -> exp.Expr:
    try:
        parsed = _DIALECT.parser().parse(words, sql)
    except RecursionError:
        refuse("query_too_deep", "the query is nested too deeply; flatten it", "depth")
    except (SqlglotError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        refuse("query_unreadable", "the query cannot be read as SQL; compare it with DuckDB's SELECT syntax", "parse")
    if len(parsed) != 1 or parsed[0] is None:
        refuse("one_statement", "exactly one statement is read; remove what follows the first", "statement")
    root = parsed[0]
    while isinstance(root, exp.Subquery) and not root.args.get("alias"):
        if any(root.args.get(name) for name in ("order", "limit", "offset")):
            break
        root = root.this  # parentheses around the whole query
    if not isinstance(root, allowed_syntax.QUERIES):
        refuse("statement_not_allowed", "only SELECT can be asked here; start with SELECT or WITH", "statement")
    root.pop()
    if any(word.token_type is TokenType.ALL for word in words):
        _order_all(root)
    return root


def _order_all(tree: exp.Expr) -> None:
    """ORDER BY ALL as the keyword, told from a column of that name by its quotes."""
    for ordered in list(tree.find_all(exp.Ordered)):
        key = ordered.this
        if type(key) is exp.Column and not key.table and key.name.upper() == "ALL" and not key.this.args.get("quoted"):
            ordered.set("this", exp.Var(this="ALL"))


# 2. nodes


def _check(tree: exp.Expr, caps: Caps) -> None:
    budget = _Growth(caps.growth)
    count = 0
    stack: list[tuple[exp.Expr, int, int]] = [(tree, 0, 0)]  # a node, its depth, its place in a chain of one operator
    while stack:
        node, depth, chain = stack.pop()
        count += 1
        if count > caps.nodes:
            refuse("query_too_large", f"the query has more than {caps.nodes} parts; make it smaller", "length")
        if depth > caps.depth or chain > caps.chain:
            refuse("query_too_deep", f"the query is nested more than {caps.depth} deep; flatten it", "depth")
        kind = type(node)
        children = _node(node)
        if kind is exp.DPipe:
            budget.take(node)
        check = _CHECKS.get(kind)
        if check is not None:
            check(node, caps)
        if kind in _CHAINS:
            for child in children:
                linked = type(child) is kind
                stack.append((child, depth if linked else depth + 1, chain + 1 if linked else 0))
        else:
            stack.extend([(child, depth + 1, 0) for child in children])


def _node(node: exp.Expr) -> list[exp.Expr]:
    """Return the node's children; refuse arguments that its class must not fill."""
    allowed = allowed_syntax.NODES.get(type(node))
    if allowed is None:
        _refuse_node(node)
    children: list[exp.Expr] = []
    for name, value in node.args.items():
        if value is None or value is False:
            continue
        listed = type(value) is list
        if name not in allowed and not (listed and not value):
            _refuse_argument(node, name)
        if listed:
            children.extend([one for one in value if isinstance(one, exp.Expr)])
        elif isinstance(value, exp.Expr):
            children.append(value)
    return children


def _refuse_argument(node: exp.Expr, name: str) -> NoReturn:
    if isinstance(node, exp.Column):
        refuse("syntax_not_allowed", f"{shorten(node.sql())}: write table.column; a struct is read whole", "syntax")
    filled = name.rstrip("_").replace("_", " ").upper()
    instead = _INSTEAD.get((type(node), name), "")
    refuse("syntax_not_allowed", f"{_word(node)} with {filled} is not allowed here{instead}", "syntax")


_INSTEAD: dict[tuple[type[exp.Expr], str], str] = {
    (exp.Star, "except_"): "; name the columns that you want after SELECT",
    (exp.Distinct, "on"): "; write QUALIFY row_number() OVER (PARTITION BY ... ORDER BY ...) = 1",
    (exp.Union, "by_name"): "; name the columns of both sides in the same order",
}


def _refuse_node(node: exp.Expr) -> NoReturn:
    if isinstance(node, exp.Anonymous | exp.AnonymousAggFunc):
        refuse("function_not_allowed", f"the function {shorten(str(node.this))} is not allowed here", "functions")
    if isinstance(node, exp.Func) and not isinstance(node, exp.Connector):
        refuse("function_not_allowed", f"the function {_word(node)} is not allowed here", "functions")
    if isinstance(node, exp.Dot):
        refuse("syntax_not_allowed", "a field of a struct cannot be read alone; a struct is read whole", "syntax")
    if isinstance(node, exp.Command | exp.DDL | exp.DML):
        refuse("statement_not_allowed", "only SELECT can be asked here; start with SELECT or WITH", "statement")
    refuse("syntax_not_allowed", f"{_word(node)} is not allowed here", "syntax")


def _word(node: exp.Expr) -> str:
    if isinstance(node, exp.Func):
        return str(node.meta.get("name") or node.sql_name().lower())
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).upper()


_NUMBER = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)


def _literal(node: exp.Expr, caps: Caps) -> None:
    text = str(node.this)
    if node.args.get("is_string"):
        if len(text) > caps.literal:
            refuse("query_too_large", f"a text has more than {caps.literal} characters; shorten it", "length")
    elif not _NUMBER.fullmatch(text) or len(text) > 60:
        refuse("syntax_not_allowed", f"{shorten(text)} is not a plain number", "syntax")


def _identifier(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.this, str) or not 0 < len(node.this) <= 255:
        refuse("syntax_not_allowed", "a name has 1 to 255 characters", "syntax")
    if not node.args.get("quoted"):
        _unquoted(node, str(node.this))


def _unquoted(node: exp.Expr, name: str) -> None:
    """Refuse what DuckDB does not take for a name; after a dot and after AS, `keywords` has marked each as one."""
    word, alias = name.lower(), isinstance(node.parent, exp.Alias)
    if word in keywords.RESERVED:
        refuse(
            "syntax_not_allowed",
            f"{shorten(name)} is a reserved word of SQL; if it is a name, write it in double quotes",
            "syntax",
        )
    if alias and word in keywords.NEEDS_AS:
        refuse("syntax_not_allowed", f"{shorten(name)} needs AS before it where it names a column", "syntax")


def _column(node: exp.Expr, caps: Caps) -> None:
    star = isinstance(node.this, exp.Star)
    if star and not isinstance(node.parent, exp.Select):
        refuse("syntax_not_allowed", "table.* can only stand in the list after SELECT", "syntax")


def _star(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.parent, exp.Select | exp.Count | exp.Column):
        refuse("syntax_not_allowed", "* can only stand in the list after SELECT and in COUNT(*)", "syntax")


def _table(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.this, exp.Identifier):
        refuse("function_not_allowed", "a table function is not allowed here; name a dataset", "functions")
    if not isinstance(node.parent, exp.From | exp.Join):
        refuse("syntax_not_allowed", "a dataset can only stand after FROM or JOIN", "syntax")


def _table_alias(node: exp.Expr, caps: Caps) -> None:
    if not node.args.get("this"):
        refuse("syntax_not_allowed", "an alias that names columns needs a name of its own", "syntax")


def _join(node: exp.Expr, caps: Caps) -> None:
    side, kind = str(node.args.get("side") or "").upper(), str(node.args.get("kind") or "").upper()
    if side not in allowed_syntax.JOIN_SIDES or kind not in allowed_syntax.JOIN_KINDS or (kind == "OUTER" and not side):
        refuse("syntax_not_allowed", f"{side or kind} JOIN is not allowed here", "syntax")
    if not isinstance(node.this, exp.Table | exp.Subquery):
        refuse("syntax_not_allowed", "only datasets and subqueries can be joined", "syntax")


def _select(node: exp.Expr, caps: Caps) -> None:
    if node.args.get("joins") and not node.args.get("from_"):
        refuse("syntax_not_allowed", "JOIN follows a FROM; name there what is joined", "syntax")


def _from(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.this, exp.Table | exp.Subquery):
        refuse("syntax_not_allowed", "only datasets and subqueries can stand after FROM", "syntax")


def _subquery(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.this, exp.Subquery | exp.Select | exp.Union | exp.Intersect | exp.Except):
        refuse("syntax_not_allowed", "parentheses after FROM hold a SELECT", "syntax")


def _limit(node: exp.Expr, caps: Caps) -> None:
    value = node.args.get("expression")
    if not isinstance(value, exp.Literal) or value.is_string or not str(value.this).isdecimal():
        refuse("syntax_not_allowed", "LIMIT and OFFSET take a whole number", "syntax")
    if len(str(value.this)) > 18:
        refuse("syntax_not_allowed", "LIMIT and OFFSET take a number below 10^18", "syntax")


def _data_type(node: exp.Expr, caps: Caps) -> None:
    if node.this not in allowed_syntax.TYPES or node.args.get("nested") or node.args.get("kind"):
        refuse_type(str(node.args.get("kind") or getattr(node.this, "value", node.this)))


def _type_parameter(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.this, exp.Literal) or not str(node.this.this).isdecimal():
        refuse("type_not_allowed", "a type takes whole numbers, as in DECIMAL(15, 2)", "types")


def _var(node: exp.Expr, caps: Caps) -> None:
    text, parent = str(node.this), node.parent
    if text.upper() == "ALL" and isinstance(parent, exp.Ordered):
        return
    if text.upper() not in allowed_syntax.UNITS or not isinstance(
        parent, exp.Interval | exp.Extract | exp.DateTrunc | exp.TimestampTrunc | exp.DateDiff
    ):
        refuse("syntax_not_allowed", f"{shorten(text)} is not a unit of time that is known here", "syntax")


def _interval(node: exp.Expr, caps: Caps) -> None:
    value, unit = node.args.get("this"), node.args.get("unit")
    amount = value.this if isinstance(value, exp.Neg) else value
    if not isinstance(amount, exp.Literal) or not re.fullmatch(r"-?\d{1,9}", str(amount.this)):
        refuse("syntax_not_allowed", "an interval is a whole number and a unit, as in INTERVAL 3 MONTH", "syntax")
    if not isinstance(unit, exp.Var) or str(unit.this).upper() not in allowed_syntax.INTERVALS:
        refuse("syntax_not_allowed", "an interval is of seconds to years, as in INTERVAL 3 MONTH", "syntax")


def _unit(node: exp.Expr, caps: Caps) -> None:
    """A unit of time must be on this project's list, wherever sqlglot stores it."""
    unit = node.this if isinstance(node, exp.Extract) else node.args.get("unit")
    if unit is not None and str(getattr(unit, "this", "")).upper() not in allowed_syntax.UNITS:
        refuse("syntax_not_allowed", "the unit of time is not known here; use year, month, day, hour ...", "syntax")


def _in(node: exp.Expr, caps: Caps) -> None:
    values = node.args.get("expressions") or ()
    if len(values) > caps.list_items:
        refuse(
            "query_too_large",
            f"IN lists more than {caps.list_items} values; send keys as a table, not as text",
            "length",
        )
    query = node.args.get("query")
    if query is None and not values:
        refuse("query_unreadable", "IN takes values or a subquery in parentheses", "parse")
    if query is not None and not isinstance(query, exp.Subquery):
        refuse("syntax_not_allowed", "IN takes values or a subquery in parentheses", "syntax")


def _like(node: exp.Expr, caps: Caps) -> None:
    """A pattern must be a literal with few wildcards, because matching tries every way to fill them."""
    pattern = node.args.get("expression")
    if not isinstance(pattern, exp.Literal) or not pattern.is_string:
        refuse("syntax_not_allowed", "LIKE takes a pattern written as text", "syntax")
    text = str(pattern.this)
    if text.count("%") > (4 if "_" in text else 16):
        refuse("query_too_large", "a LIKE pattern has too many wildcards; use 4 of % with _, else 16", "length")


def _window_only(node: exp.Expr, caps: Caps) -> None:
    parent = node.parent.parent if isinstance(node.parent, exp.IgnoreNulls) else node.parent
    if not isinstance(parent, exp.Window):
        refuse("syntax_not_allowed", f"{_word(node)} needs OVER (...)", "syntax")


def _window_spec(node: exp.Expr, caps: Caps) -> None:
    kind = str(node.args.get("kind") or "").upper()
    sides = {str(node.args.get(name) or "").upper() for name in ("start_side", "end_side")}
    if kind not in ("ROWS", "RANGE", "") or not sides <= {"", "PRECEDING", "FOLLOWING"}:
        refuse("syntax_not_allowed", "a window frame is ROWS or RANGE with PRECEDING and FOLLOWING", "syntax")
    for name in ("start", "end"):
        bound = node.args.get(name)
        if not isinstance(bound, exp.Literal | exp.Interval) and str(bound or "").upper() not in _BOUNDS:
            refuse("syntax_not_allowed", "a window frame is bounded by numbers or intervals", "syntax")


_BOUNDS = ("", "UNBOUNDED", "CURRENT ROW")


def _window(node: exp.Expr, caps: Caps) -> None:
    inner = node.this
    function = _bare(inner.this if isinstance(inner, exp.Filter) else inner)
    if type(function) not in FUNCTIONS or not isinstance(function, exp.AggFunc | exp.Func):
        refuse("syntax_not_allowed", "OVER follows an aggregate or a window function", "syntax")
    if str(node.args.get("over") or "OVER").upper() != "OVER":
        refuse("syntax_not_allowed", "KEEP is not allowed here", "syntax")


def _bare(node: exp.Expr) -> exp.Expr:
    return node.this if isinstance(node, exp.IgnoreNulls) else node


def _ignore_nulls(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.this, exp.AnyValue | exp.FirstValue | exp.LastValue | exp.Lag | exp.Lead):
        refuse("syntax_not_allowed", "IGNORE NULLS is not allowed here", "syntax")


def _filter(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(_bare(node.this), exp.AggFunc):
        refuse("syntax_not_allowed", "FILTER follows an aggregate", "syntax")


def _cte(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.this, allowed_syntax.QUERIES):
        refuse("syntax_not_allowed", "a WITH clause holds SELECTs only", "syntax")


class _Growth:
    """Limits how much longer than its inputs `||` may make a text.

    Doubling level by level fills memory in calls that cannot be interrupted, and an alias may feed one chain into the
    next, so the growth of all chains is multiplied.
    """

    def __init__(self, limit: int) -> None:
        self.left = limit

    def take(self, node: exp.Expr) -> None:
        if not isinstance(node, exp.DPipe) or isinstance(node.parent, exp.DPipe):
            return
        pieces, chain = 1, [node]
        while chain:
            link = chain.pop()
            pieces += 1
            chain.extend(side for side in (link.this, link.expression) if isinstance(side, exp.DPipe))
        self.left //= pieces
        if self.left < 1:
            refuse("query_too_large", "the query joins too many texts with ||; select the parts instead", "length")


_CHECKS: dict[type[exp.Expr], Callable[[Any, Caps], None]] = {
    exp.Literal: _literal,
    exp.Identifier: _identifier,
    exp.Column: _column,
    exp.Star: _star,
    exp.Table: _table,
    exp.TableAlias: _table_alias,
    exp.Join: _join,
    exp.Select: _select,
    exp.From: _from,
    exp.Subquery: _subquery,
    exp.Limit: _limit,
    exp.Offset: _limit,
    exp.DataType: _data_type,
    exp.DataTypeParam: _type_parameter,
    exp.Var: _var,
    exp.Interval: _interval,
    exp.Extract: _unit,
    exp.DateTrunc: _unit,
    exp.TimestampTrunc: _unit,
    exp.DateDiff: _unit,
    exp.In: _in,
    exp.Like: _like,
    exp.ILike: _like,
    exp.Window: _window,
    exp.WindowSpec: _window_spec,
    exp.Filter: _filter,
    exp.IgnoreNulls: _ignore_nulls,
    exp.CTE: _cte,
    **dict.fromkeys(WINDOW_ONLY, _window_only),
}
