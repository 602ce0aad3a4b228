"""DuckDB's keywords: which words are names without quotes, and tokens that say so before the parser reads them.

sqlglot knows other keywords than DuckDB and takes some of them for syntax wherever they stand (`temp`, `json`,
`interval`). The lists are DuckDB's own; a test compares them with the engine. Must not import DuckDB. Data and one
pass over tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlglot.dialects.duckdb import DuckDB
from sqlglot.tokenizer_core import Token, TokenType

from policies.sql import allowed_syntax

# duckdb_keywords(): "reserved", and "type_function" where it is not "column_name" too.
_RESERVED = (
    "all analyse analyze and any array as asc asymmetric both case cast check collate column constraint create"
    " default deferrable desc describe distinct do else end except false fetch for foreign from group having in"
    " initially intersect into lambda lateral leading limit not null offset on only or order pivot pivot_longer"
    " pivot_wider placing primary qualify references returning select show some summarize symmetric table then to"
    " trailing true union unique unpivot using variadic when where window with"
    " anti asof at authorization binary by collation concurrently cross freeze full glob ilike inner is isnull"
    " join left like natural notnull outer overlaps positional right semi similar tablesample unpack verbose"
)
# Names everywhere else, but no alias of a column without AS: `SELECT avg(k) year`. Asked of the engine by the test.
_NEEDS_AS = (
    "centuries century day days decade decades escape exclude export_state filter hour hours ignore microsecond"
    " microseconds millennia millennium millisecond milliseconds minute minutes month months over precision quarter"
    " quarters rename replace respect second seconds varying week weeks within without year years"
)
RESERVED: frozenset[str] = frozenset(_RESERVED.split())
NEEDS_AS: frozenset[str] = frozenset(_NEEDS_AS.split())


def mark_names(tokens: list[Token]) -> list[Token]:
    """The tokens, each word that stands as a name marked as one (`IDENTIFIER`), as if it were in quotes.

    A word is marked where DuckDB takes it for a name: after a dot, after AS in SELECT, and anywhere if it is not
    reserved and no syntax that the gate allows can start with it there.
    """
    marked: list[Token] = []
    place = _Place()
    for index, token in enumerate(tokens):
        kind = token.token_type
        if _is_word(token) and _is_name(tokens, marked, index, place):
            kind = TokenType.IDENTIFIER
            token = Token(kind, token.text, token.line, token.col, token.start, token.end, token.comments)
        place.take(kind, marked[-1] if marked else None)
        marked.append(token)
    return marked


@dataclass(frozen=True, slots=True)
class _Level:
    """One level of parentheses: the clause that was begun last, and whether it is the bracket of a CAST."""

    clause: TokenType | None = None
    cast: bool = False


class _Place:
    """The clause and the CAST around the token that comes next."""

    def __init__(self) -> None:
        self.levels = [_Level()]

    @property
    def now(self) -> _Level:
        return self.levels[-1]

    def take(self, kind: TokenType, before: Token | None) -> None:
        if kind is TokenType.L_PAREN:
            self.levels.append(_Level(cast=before is not None and before.text.lower() in ("cast", "try_cast")))
        elif kind is TokenType.R_PAREN and len(self.levels) > 1:
            self.levels.pop()
        elif kind in _CLAUSES and not (kind is TokenType.FROM and _kind(before) is TokenType.DISTINCT):
            self.levels[-1] = _Level(kind, self.now.cast)


def _is_word(token: Token) -> bool:
    """Whether a token is a word of the text, and no text of any form (`$$temp$$`), number or quoted name."""
    return token.token_type is TokenType.VAR or _WORDS.get(token.text.upper()) is token.token_type


def _is_name(tokens: list[Token], marked: list[Token], index: int, place: _Place) -> bool:
    kind, word = tokens[index].token_type, tokens[index].text.lower()
    before = _kind(marked[-1] if marked else None)
    after = _kind(tokens[index + 1] if index + 1 < len(tokens) else None)
    opens = after is TokenType.L_PAREN
    if before is TokenType.DOT:
        return not opens and (kind is not TokenType.VAR or word in RESERVED)
    if before is TokenType.DCOLON or (before is TokenType.ALIAS and place.now.cast):
        return False  # a type
    if before is TokenType.ALIAS and place.now.clause is TokenType.SELECT:
        return kind is not TokenType.VAR or word in RESERVED or word in NEEDS_AS
    if word in RESERVED or (word in _AFTER and marked[-1].text.lower() == _AFTER[word]):
        return False
    if opens:
        aliased = (
            kind not in allowed_syntax.TOKENS or kind in allowed_syntax.TYPE_TOKENS or place.now.clause in _SOURCES
        )
        return aliased and (before in _COMPLETE or before is TokenType.ALIAS)  # FROM t x (a, b)
    if word in NEEDS_AS and before in _COMPLETE and place.now.clause is TokenType.SELECT:
        return False  # an alias without AS
    if word in _UNLESS_OPENED:
        return True
    if word in _AS_OPERATORS:
        return _AS_OPERATORS[word](tokens, before, index)
    return kind not in allowed_syntax.TOKENS and after is not TokenType.STRING


def _is_column_between(tokens: list[Token], before: TokenType | None, index: int) -> bool:
    after = _kind(tokens[index + 1] if index + 1 < len(tokens) else None)
    return before not in _BEFORE_BETWEEN or after in _AFTER_OPERAND


def _is_column_escape(tokens: list[Token], before: TokenType | None, index: int) -> bool:
    return _kind(tokens[index + 1] if index + 1 < len(tokens) else None) is not TokenType.STRING


def _is_column_interval(tokens: list[Token], before: TokenType | None, index: int) -> bool:
    """Whether no amount follows: `INTERVAL 3 DAY`, `INTERVAL '3' DAY`, `INTERVAL -3 DAY`."""
    following = [_kind(token) for token in tokens[index + 1 : index + 4]]
    if following[:1] == [TokenType.DASH]:
        return following[1:] not in ([TokenType.NUMBER, TokenType.VAR], [TokenType.NUMBER, TokenType.YEAR])
    return following[:1] not in ([TokenType.NUMBER], [TokenType.STRING], [TokenType.INTERVAL])


def _kind(token: Token | None) -> TokenType | None:
    return None if token is None else token.token_type


_WORDS = {word: kind for word, kind in DuckDB.Tokenizer.KEYWORDS.items() if word.isidentifier()}
_UNLESS_OPENED = frozenset({"cube", "exists", "filter", "if", "over", "partitioned_by", "rollup"})
_AFTER = {"recursive": "with", "row": "current"}  # WITH RECURSIVE, CURRENT ROW
_AS_OPERATORS = {"between": _is_column_between, "escape": _is_column_escape, "interval": _is_column_interval}
_CLAUSES = frozenset(
    {TokenType.SELECT, TokenType.FROM, TokenType.JOIN, TokenType.WHERE, TokenType.GROUP_BY, TokenType.HAVING}
    | {TokenType.QUALIFY, TokenType.ORDER_BY, TokenType.LIMIT, TokenType.OFFSET, TokenType.WITH, TokenType.ON}
)
_SOURCES = frozenset({TokenType.FROM, TokenType.JOIN})
_COMPLETE = frozenset(
    {TokenType.VAR, TokenType.R_PAREN, TokenType.END, TokenType.NULL, TokenType.TRUE, TokenType.FALSE}
    | {TokenType.IDENTIFIER, TokenType.STRING, TokenType.NUMBER}
    | allowed_syntax.NAME_TOKENS
)  # after these an operand is complete
_BEFORE_BETWEEN = _COMPLETE | {TokenType.NOT, TokenType.ROWS, TokenType.RANGE}
_AFTER_OPERAND = frozenset(
    {None, TokenType.COMMA, TokenType.R_PAREN, TokenType.DOT, TokenType.DCOLON, TokenType.SEMICOLON, TokenType.ALIAS}
    | {TokenType.EQ, TokenType.NEQ, TokenType.LT, TokenType.LTE, TokenType.GT, TokenType.GTE, TokenType.IS}
    | {TokenType.ASC, TokenType.DESC, TokenType.UNION, TokenType.JOIN, TokenType.ON, TokenType.USING}
    | (_CLAUSES - {TokenType.SELECT})
)
