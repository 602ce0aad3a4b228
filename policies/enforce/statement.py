"""The SQL gate's first half: text to a checked tree (federated-query, section 3.4, steps 1 and 2).

Nothing recursive runs before the text has been measured: the parser's time and stack grow with nesting, and
for some shapes (joins without ON, types used as functions) exponentially. What comes out holds only syntax
of the allow-lists. Must not know contracts or names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

from policies.enforce import nodes
from policies.enforce.functions import FUNCTIONS, WINDOW_ONLY
from policies.errors import QueryRefused


@dataclass(frozen=True, slots=True)
class Caps:
    """Sizes that a query must stay within; the defaults take every TPC-H query with room to spare."""

    characters: int = 65_536
    tokens: int = 16_384
    nodes: int = 20_000
    depth: int = 96  # of the tree; chains of AND, OR, +, || and UNION count once
    chain: int = 512  # operands of one such chain
    nesting: int = 32  # parentheses and CASE
    prefixes: int = 12  # operators and keywords in a row without an operand
    joins: int = 64
    queries: int = 64  # SELECTs in one statement
    list_items: int = 5_000  # values of one IN list
    literal: int = 4_096  # characters of one text
    growth: int = 16_384  # how many times longer than its inputs || may make a text, over all levels


DEFAULT = Caps()
GATE = "gate/"


def refuse(code: str, sentence: str, rule: str) -> NoReturn:
    """Raise QueryRefused; `rule` is the gate's step when no policy rule is the reason."""
    raise refused(code, sentence, rule)


def refused(code: str, sentence: str, rule: str) -> QueryRefused:
    """The refusal itself, where it must be raised in sight."""
    return QueryRefused(sentence, rule=rule if rule.startswith("/") else GATE + rule, code=code)


def parse(sql: str, caps: Caps = DEFAULT) -> exp.Expr:
    """One SELECT (or UNION, INTERSECT, EXCEPT) as a tree that holds only allowed syntax.

    1. Caps on length, tokens and nesting; exactly one statement; a query at the root.
    2. Every node class, its filled arguments, types, units and literals are on the allow-lists.
    Raises QueryRefused with the code, the step, and what to write instead. Not yet bound to any name.
    """
    tokens = _tokens(sql, caps)
    _measure(tokens, caps)
    tree = _tree(tokens, sql)
    _check(tree, caps)
    return tree


# 1. text and tokens


_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_DIALECT = DuckDB()


def _tokens(sql: str, caps: Caps) -> list[Token]:
    if len(sql) > caps.characters:
        refuse(
            "query_too_long",
            f"the query has {len(sql)} characters, at most {caps.characters} are read; send long lists of keys "
            "as a table, not as text",
            "length",
        )
    if _CONTROL.search(sql):
        refuse("query_unreadable", "the query holds control characters; remove them", "characters")
    try:
        tokens = _DIALECT.tokenize(sql)
    except (SqlglotError, RecursionError, ValueError):
        refuse("query_unreadable", "the query cannot be read; a text or a name is not closed", "tokens")
    while tokens and tokens[-1].token_type is TokenType.SEMICOLON:
        tokens.pop()
    if not tokens:
        refuse("query_unreadable", "the query is empty; write a SELECT", "tokens")
    if len(tokens) > caps.tokens:
        refuse("query_too_large", f"the query has more than {caps.tokens} words; make it smaller", "length")
    return tokens


def _measure(tokens: list[Token], caps: Caps) -> None:
    """Refuse by tokens alone what the parser must not see: other statements, odd syntax, deep nesting."""
    if tokens[0].token_type not in (TokenType.SELECT, TokenType.WITH, TokenType.L_PAREN):
        refuse("statement_not_allowed", "only SELECT can be asked here; start with SELECT or WITH", "statement")
    shape = _Shape(caps)
    for index, token in enumerate(tokens):
        if token.token_type in _SIMPLE:  # most words of a query: names, values, commas
            shape.run = 0
            continue
        following = tokens[index + 1] if index + 1 < len(tokens) else None
        before = tokens[index - 1] if index else None
        _allowed(token, before, following)
        if token.token_type is TokenType.L_PAREN:
            _opening(tokens, index)
        shape.take(token, following, before)
    shape.close()


def _allowed(token: Token, before: Token | None, following: Token | None) -> None:
    kind = token.token_type
    opens = following is not None and following.token_type is TokenType.L_PAREN
    if kind is TokenType.SEMICOLON:
        refuse("one_statement", "exactly one statement is read; remove what follows the semicolon", "statement")
    if kind is TokenType.STRUCT and token.text.lower() == "row" and not opens:
        return  # CURRENT ROW
    if kind not in nodes.TOKENS:
        _refuse_token(token.text, before, opens=opens and kind not in nodes.CLAUSES)


def _opening(tokens: list[Token], index: int) -> None:
    """What stands before a parenthesis: an operator, a keyword, or a function's name where an operand may stand.

    Otherwise the parser tries each word as an alias, a join and a function in turn, twice over per level.
    """
    before = tokens[index - 1].token_type if index else None
    earlier = tokens[index - 2].token_type if index > 1 else None
    if before in _CLOSED:
        refuse("query_unreadable", "a parenthesis follows a value; a comma or an operator is missing", "tokens")
    if before in nodes.NAME_TOKENS and earlier is TokenType.JOIN:
        refuse("function_not_allowed", "a table function is not allowed here; name a dataset", "functions")
    if before in nodes.NAME_TOKENS and (earlier in _CLOSED or earlier in nodes.NAME_TOKENS):
        _only_names(tokens, index + 1)


def _only_names(tokens: list[Token], index: int) -> None:
    """After an alias, parentheses hold the names of columns and nothing else."""
    while index < len(tokens) and tokens[index].token_type is not TokenType.R_PAREN:
        if tokens[index].token_type not in (TokenType.VAR, TokenType.IDENTIFIER, TokenType.COMMA):
            refuse("query_unreadable", "a parenthesis after an alias holds names of columns only", "tokens")
        index += 1


def _refuse_token(text: str, before: Token | None, *, opens: bool) -> NoReturn:
    word = text[:1].isalpha()
    if before is not None and before.token_type is TokenType.DCOLON:
        _refuse_type(text)
    if word and opens:
        refuse("function_not_allowed", f"the function {_shown(text)} is not allowed here", "functions")
    advice = "; if it is the name of a column, write it in double quotes" if word else ""
    refuse("syntax_not_allowed", f"{_shown(text)} is not allowed here{advice}", "syntax")


def _refuse_type(text: str) -> NoReturn:
    refuse(
        "type_not_allowed",
        f"the type {_shown(text)} is not allowed here; use numbers, texts, days and times",
        "types",
    )


class _Shape:
    """Counts what makes a parser slow or deep, token by token."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.open: list[bool] = [False]  # per level of parentheses: a join still waits for its ON
        self.query: list[bool] = [True]  # per level: it may hold the clauses of a SELECT
        self.cases = self.joins = self.queries = self.run = 0

    def take(self, token: Token, following: Token | None, before: Token | None) -> None:
        kind = token.token_type
        self._level(kind, following)
        if kind in _CLAUSES and not self.query[-1]:
            refuse("query_unreadable", f"{_shown(token.text)} can only stand in a SELECT", "tokens")
        self._joins(kind, before)
        self._run(kind)
        if kind is TokenType.SELECT:
            self.queries += 1
        if kind in nodes.TYPE_TOKENS and following is not None and following.token_type is TokenType.L_PAREN:
            self._type(token, before)
        if max(len(self.open) - 1, self.cases) > self.caps.nesting or self.run > self.caps.prefixes:
            refuse("query_too_deep", f"the query is nested more than {self.caps.nesting} deep; flatten it", "depth")
        if self.joins > self.caps.joins or self.queries > self.caps.queries:
            refuse(
                "query_too_large",
                f"at most {self.caps.joins} joins and {self.caps.queries} SELECTs are read; split the query",
                "length",
            )

    def close(self) -> None:
        if len(self.open) != 1:
            refuse("query_unreadable", "a parenthesis is not closed", "tokens")

    def _level(self, kind: TokenType, following: Token | None) -> None:
        if kind is TokenType.L_PAREN:
            self.open.append(False)
            self.query.append(following is not None and following.token_type in _STARTS)
        elif kind is TokenType.R_PAREN:
            self.open.pop()
            self.query.pop()
            if not self.open:
                refuse("query_unreadable", "a parenthesis is closed that was never opened", "tokens")
        elif kind is TokenType.CASE:
            self.cases += 1
        elif kind is TokenType.END and self.cases:
            self.cases -= 1

    def _joins(self, kind: TokenType, before: Token | None) -> None:
        """A join without ON makes the parser try every way of nesting: each join names its condition first."""
        if kind is TokenType.JOIN:
            self.joins += 1
            crossed = before is not None and before.token_type is TokenType.CROSS
            if self.open[-1] and not crossed:
                refuse("syntax_not_allowed", "a JOIN has no ON or USING; write it right after the table", "syntax")
            self.open[-1] = not crossed
        elif kind in (TokenType.ON, TokenType.USING):
            self.open[-1] = False

    def _run(self, kind: TokenType) -> None:
        """Prefix operators in a row recurse in the parser; an operand or a closing bracket ends the run."""
        self.run = 0 if kind in _OPERANDS else self.run + 1

    @staticmethod
    def _type(token: Token, before: Token | None) -> None:
        if before is None or before.token_type not in (TokenType.DCOLON, TokenType.ALIAS):
            refuse(
                "function_not_allowed",
                f"{_shown(token.text)}(...) is not allowed as a function; write CAST(value AS {token.text.upper()})",
                "functions",
            )


_SIMPLE = frozenset(
    {TokenType.VAR, TokenType.IDENTIFIER, TokenType.STRING, TokenType.NUMBER, TokenType.COMMA, TokenType.NULL}
)
_STARTS = frozenset({TokenType.SELECT, TokenType.WITH, TokenType.L_PAREN})
_CLAUSES = frozenset(
    {TokenType.JOIN, TokenType.CROSS, TokenType.ON, TokenType.USING, TokenType.GROUP_BY, TokenType.HAVING}
    | {TokenType.LIMIT, TokenType.QUALIFY, TokenType.UNION, TokenType.EXCEPT, TokenType.INTERSECT}
)  # these belong to a SELECT, never to an expression in parentheses
_CLOSED = frozenset(
    {TokenType.R_PAREN, TokenType.NUMBER, TokenType.STRING, TokenType.END, TokenType.NULL}
    | {TokenType.TRUE, TokenType.FALSE}
)  # after these an operand is complete
_OPERANDS = frozenset(
    {
        TokenType.VAR,
        TokenType.IDENTIFIER,
        TokenType.STRING,
        TokenType.NUMBER,
        TokenType.R_PAREN,
        TokenType.L_PAREN,  # bounded by nesting
        TokenType.NULL,
        TokenType.TRUE,
        TokenType.FALSE,
        TokenType.STAR,
        TokenType.COMMA,
        TokenType.END,
    }
)


def _tree(tokens: list[Token], sql: str) -> exp.Expr:
    try:
        parsed = _DIALECT.parser().parse(tokens, sql)
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
    if not isinstance(root, nodes.QUERIES):
        refuse("statement_not_allowed", "only SELECT can be asked here; start with SELECT or WITH", "statement")
    root.pop()
    return root


# 2. nodes


def _check(tree: exp.Expr, caps: Caps) -> None:
    budget = _Growth(caps.growth)
    for count, (node, depth, chain) in enumerate(_walk(tree)):
        if count >= caps.nodes:
            refuse("query_too_large", f"the query has more than {caps.nodes} parts; make it smaller", "length")
        if depth > caps.depth or chain > caps.chain:
            refuse("query_too_deep", f"the query is nested more than {caps.depth} deep; flatten it", "depth")
        _node(node)
        kind = type(node)
        if kind is exp.DPipe:
            budget.take(node)
        check = _CHECKS.get(kind)
        if check is not None:
            check(node, caps)


def _walk(tree: exp.Expr) -> Iterator[tuple[exp.Expr, int, int]]:
    """Every node with its depth and its place in a chain of one operator; without recursion."""
    stack = [(tree, 0, 0)]
    while stack:
        node, depth, chain = stack.pop()
        yield node, depth, chain
        kind = type(node)
        chained = kind in nodes.CHAINS
        for child in node.iter_expressions():
            linked = chained and type(child) is kind
            stack.append((child, depth if linked else depth + 1, chain + 1 if linked else 0))


def _node(node: exp.Expr) -> None:
    kind = type(node)
    allowed = nodes.NODES.get(kind)
    if allowed is None:
        _refuse_node(node)
    for name, value in node.args.items():
        if name not in allowed and value is not None and value is not False and value != []:
            refuse(
                "syntax_not_allowed",
                f"{_word(node)} with {name.rstrip('_').replace('_', ' ').upper()} is not allowed here",
                "syntax",
            )


def _refuse_node(node: exp.Expr) -> NoReturn:
    if isinstance(node, exp.Anonymous | exp.AnonymousAggFunc):
        refuse("function_not_allowed", f"the function {_shown(str(node.this))} is not allowed here", "functions")
    if isinstance(node, exp.Func) and not isinstance(node, exp.Connector):
        refuse("function_not_allowed", f"the function {_word(node)} is not allowed here", "functions")
    if isinstance(node, exp.Command | exp.DDL | exp.DML):
        refuse("statement_not_allowed", "only SELECT can be asked here; start with SELECT or WITH", "statement")
    refuse("syntax_not_allowed", f"{_word(node)} is not allowed here", "syntax")


def _word(node: exp.Expr) -> str:
    if isinstance(node, exp.Func):
        return node.sql_name().lower()
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(node).__name__).upper()


def _shown(text: str) -> str:
    return text if len(text) <= 40 else text[:40] + "..."


_NUMBER = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)


def _literal(node: exp.Expr, caps: Caps) -> None:
    text = str(node.this)
    if node.args.get("is_string"):
        if len(text) > caps.literal:
            refuse("query_too_large", f"a text has more than {caps.literal} characters; shorten it", "length")
    elif not _NUMBER.fullmatch(text) or len(text) > 60:
        refuse("syntax_not_allowed", f"{_shown(text)} is not a plain number", "syntax")


def _identifier(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.this, str) or not 0 < len(node.this) <= 255:
        refuse("syntax_not_allowed", "a name has 1 to 255 characters", "syntax")


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


def _join(node: exp.Expr, caps: Caps) -> None:
    side, kind = str(node.args.get("side") or "").upper(), str(node.args.get("kind") or "").upper()
    if side not in nodes.JOIN_SIDES or kind not in nodes.JOIN_KINDS:
        refuse("syntax_not_allowed", f"{side or kind} JOIN is not allowed here", "syntax")
    if not isinstance(node.this, exp.Table | exp.Subquery):
        refuse("syntax_not_allowed", "only datasets and subqueries can be joined", "syntax")


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
    if node.this not in nodes.TYPES or node.args.get("nested") or node.args.get("kind"):
        _refuse_type(str(getattr(node.this, "value", node.this)))


def _type_parameter(node: exp.Expr, caps: Caps) -> None:
    if not isinstance(node.this, exp.Literal) or not str(node.this.this).isdecimal():
        refuse("type_not_allowed", "a type takes whole numbers, as in DECIMAL(15, 2)", "types")


def _var(node: exp.Expr, caps: Caps) -> None:
    text, parent = str(node.this).upper(), node.parent
    if text == "ALL" and isinstance(parent, exp.Ordered):
        return
    if text not in nodes.UNITS or not isinstance(
        parent, exp.Interval | exp.Extract | exp.DateTrunc | exp.TimestampTrunc | exp.DateDiff
    ):
        refuse("syntax_not_allowed", f"{_shown(text)} is not a unit of time that is known here", "syntax")


def _interval(node: exp.Expr, caps: Caps) -> None:
    value, unit = node.args.get("this"), node.args.get("unit")
    amount = value.this if isinstance(value, exp.Neg) else value
    if not isinstance(amount, exp.Literal) or not re.fullmatch(r"-?\d{1,9}", str(amount.this)):
        refuse("syntax_not_allowed", "an interval is a whole number and a unit, as in INTERVAL 3 MONTH", "syntax")
    if not isinstance(unit, exp.Var):
        refuse("syntax_not_allowed", "an interval names its unit, as in INTERVAL 3 MONTH", "syntax")


def _unit(node: exp.Expr, caps: Caps) -> None:
    """A unit of time is a word of our list, wherever sqlglot keeps it."""
    unit = node.this if isinstance(node, exp.Extract) else node.args.get("unit")
    if unit is not None and str(getattr(unit, "this", "")).upper() not in nodes.UNITS:
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
    if query is not None and not isinstance(query, exp.Subquery):
        refuse("syntax_not_allowed", "IN takes values or a subquery in parentheses", "syntax")


def _like(node: exp.Expr, caps: Caps) -> None:
    """Patterns are literals with few wildcards: matching tries every way to fill them in."""
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
    if not isinstance(node.this, nodes.QUERIES):
        refuse("syntax_not_allowed", "a WITH clause holds SELECTs only", "syntax")


class _Growth:
    """How much longer than its inputs `||` may make a text. Doubling level by level fills memory in calls that
    cannot be interrupted, and an alias may feed one chain into the next, so all chains multiply."""

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
    exp.Join: _join,
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
