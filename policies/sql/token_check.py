"""Step 1 of the gate: checks the tokens of a query before anything recursive reads it.

Time and stack of the parser grow with nesting, and for some shapes (joins without ON, types used as functions, words
that may be aliases, joins or functions) exponentially. One pass over the tokens detects all of these. Must not know
contracts, names or trees.
"""

from __future__ import annotations

import re
from typing import NoReturn

from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import SqlglotError
from sqlglot.tokenizer_core import Token, TokenType

from policies.sql import allowed_syntax
from policies.sql.limits import Caps, refuse, refuse_type, shorten

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_DIALECT = DuckDB()


def read(sql: str, caps: Caps) -> list[Token]:
    """Return the tokens of one statement, without semicolons at its end.

    Raises: QueryRefused when the text is too long, cannot be tokenized, or has too many tokens.
    """
    if len(sql) > caps.characters:
        refuse(
            "query_too_long",
            f"the query has {len(sql)} characters, at most {caps.characters} are read; send long lists of keys "
            "as a table, not as text",
            "length",
        )
    if CONTROL.search(sql):
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


def measure(tokens: list[Token], caps: Caps) -> None:
    """Refuse, from tokens alone, what the parser must not see: other statements, unusual syntax, deep nesting.

    Raises: QueryRefused.
    """
    if tokens[0].token_type not in (TokenType.SELECT, TokenType.WITH, TokenType.L_PAREN):
        refuse("statement_not_allowed", "only SELECT can be asked here; start with SELECT or WITH", "statement")
    shape = _Shape(caps)
    for index, token in enumerate(tokens):
        if token.token_type in _SIMPLE:  # most words of a query: names, values, commas
            shape.run = 0
            continue
        if token.token_type in _WORDS:
            shape.word(token.token_type)
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
    if kind in _OPENING and not opens:
        instead = _OPENING[kind]
        refuse("syntax_not_allowed", f"{shorten(token.text)} alone is not allowed here; write {instead}", "syntax")
    if kind is TokenType.ALIAS and (following is None or following.token_type in _NO_NAMES):
        refuse("query_unreadable", f"{shorten(token.text)} is followed by a name", "tokens")
    if kind not in allowed_syntax.TOKENS:
        _refuse_token(token.text, before, opens=opens and kind not in allowed_syntax.CLAUSES)


def _opening(tokens: list[Token], index: int) -> None:
    """Require an operator, a keyword, or a function's name in an operand's place before a parenthesis.

    Otherwise the parser tries each word as an alias, a join and a function in turn, twice for each level.
    """
    before = tokens[index - 1].token_type if index else None
    earlier = tokens[index - 2].token_type if index > 1 else None
    if before in _CLOSED:
        refuse("query_unreadable", "a parenthesis follows a value; a comma or an operator is missing", "tokens")
    if before in allowed_syntax.NAME_TOKENS and earlier is TokenType.JOIN:
        refuse("function_not_allowed", "a table function is not allowed here; name a dataset", "functions")
    if before in allowed_syntax.NAME_TOKENS and (earlier in _CLOSED or earlier in allowed_syntax.NAME_TOKENS):
        _only_names(tokens, index + 1)


def _only_names(tokens: list[Token], index: int) -> None:
    """Require only column names in parentheses after an alias."""
    while index < len(tokens) and tokens[index].token_type is not TokenType.R_PAREN:
        if tokens[index].token_type not in (TokenType.VAR, TokenType.IDENTIFIER, TokenType.COMMA):
            refuse("query_unreadable", "a parenthesis after an alias holds names of columns only", "tokens")
        index += 1


_INSTEAD = {  # what is asked for most of what is not on the lists, and what to write in its place
    "NATURAL": "JOIN ... USING (...)",
    "LATERAL": "a subquery in SELECT, or a join with ON",
    "VALUES": "SELECTs with UNION ALL",
    "PIVOT": "an aggregate with FILTER (WHERE ...) for each value",
    "UNPIVOT": "SELECTs with UNION ALL",
    "ANY": "IN (SELECT ...)",
    "SOME": "IN (SELECT ...)",
    "WINDOW": "OVER (...) in each place",
    "COLLATE": "lower(...)",
    "ASOF": "QUALIFY row_number() OVER (...) = 1 over a join with ON",
}


def _refuse_token(text: str, before: Token | None, *, opens: bool) -> NoReturn:
    word = text[:1].isalpha()
    if before is not None and before.token_type is TokenType.DCOLON:
        refuse_type(text)
    if word and opens:
        refuse("function_not_allowed", f"the function {shorten(text)} is not allowed here", "functions")
    advice = "; if it is the name of a column, write it in double quotes" if word else ""
    if instead := _INSTEAD.get(text.upper()):
        advice = f"; write {instead}{advice.replace('; if', ', or, if')}"
    refuse("syntax_not_allowed", f"{shorten(text)} is not allowed here{advice}", "syntax")


class _Shape:
    """Counts, token by token, what makes a parser slow or deep."""

    def __init__(self, caps: Caps) -> None:
        self.caps = caps
        self.open: list[bool] = [False]  # per level of parentheses: a join still waits for its ON
        self.query: list[bool] = [True]  # per level: it may hold the clauses of a SELECT
        self.cases = self.joins = self.queries = self.run = 0

    def word(self, kind: TokenType) -> None:
        """Count an operator or a word that opens, closes and joins nothing."""
        self._run(kind)
        if self.run > self.caps.prefixes:
            self._too_deep()

    def take(self, token: Token, following: Token | None, before: Token | None) -> None:
        kind = token.token_type
        self._level(kind, following)
        if kind in _CLAUSES and not self.query[-1]:
            refuse("query_unreadable", f"{shorten(token.text)} can only stand in a SELECT", "tokens")
        self._joins(kind, before)
        self._run(kind)
        if kind is TokenType.SELECT:
            self.queries += 1
        if kind in allowed_syntax.TYPE_TOKENS and following is not None and following.token_type is TokenType.L_PAREN:
            self._type(token, before)
        if max(len(self.open) - 1, self.cases) > self.caps.nesting or self.run > self.caps.prefixes:
            self._too_deep()
        if self.joins > self.caps.joins or self.queries > self.caps.queries:
            refuse(
                "query_too_large",
                f"at most {self.caps.joins} joins and {self.caps.queries} SELECTs are read; split the query",
                "length",
            )

    def _too_deep(self) -> NoReturn:
        refuse("query_too_deep", f"the query is nested more than {self.caps.nesting} deep; flatten it", "depth")

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
        """Require each join to name its condition first: a join without ON makes the parser try every nesting."""
        if kind is TokenType.JOIN:
            self.joins += 1
            crossed = before is not None and before.token_type is TokenType.CROSS
            if self.open[-1] and not crossed:
                refuse("syntax_not_allowed", "a JOIN has no ON or USING; write it right after the table", "syntax")
            self.open[-1] = not crossed
        elif kind in (TokenType.ON, TokenType.USING):
            self.open[-1] = False

    def _run(self, kind: TokenType) -> None:
        """Count prefix operators in a row, which recurse in the parser; an operand or a closing parenthesis
        ends the run.
        """
        self.run = 0 if kind in _OPERANDS else self.run + 1

    @staticmethod
    def _type(token: Token, before: Token | None) -> None:
        if before is None or before.token_type not in (TokenType.DCOLON, TokenType.ALIAS):
            refuse(
                "function_not_allowed",
                f"{shorten(token.text)}(...) is not allowed as a function; write CAST(value AS {token.text})",
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
_OPENING = {TokenType.OVER: "OVER (...) in each place", TokenType.FILTER: "FILTER (WHERE ...)"}
_NO_NAMES = frozenset({TokenType.COMMA, TokenType.R_PAREN, TokenType.FROM})
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
# Allowed words that nothing but `_Shape._run` looks at.
_WORDS = (
    allowed_syntax.TOKENS
    - allowed_syntax.TYPE_TOKENS
    - _CLAUSES
    - {TokenType.L_PAREN, TokenType.R_PAREN, TokenType.CASE, TokenType.END, TokenType.SELECT, TokenType.SEMICOLON}
    - {
        TokenType.JOIN,
        TokenType.CROSS,
        TokenType.ON,
        TokenType.USING,
        TokenType.ALIAS,
        TokenType.OVER,
        TokenType.FILTER,
    }
)
