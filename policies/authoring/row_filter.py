"""The language of `rows:` in the short form: `country in (DE, FR) or consent = broad`.

    filter      = conjunction { "or" conjunction }
    conjunction = part { "and" part }
    part        = "(" filter ")" | "xone" "(" filter { "," filter } ")" | comparison
    comparison  = column ("=" | "!=" | "<" | "<=" | ">" | ">=") value | column ["not"] "in" "(" value {"," value} ")"

Columns may be in double quotes, values in single quotes (doubled inside). Converts text to a constraint and back
without loss; knows no tables or engines.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from policies.contracts.columns import quote_identifier
from policies.errors import PolicyUnreadable
from policies.evaluation.values import is_text
from policies.model import Atom, Connective, Constraint, Group, Literal
from policies.vocabulary import column_of, column_term

MAX_TEXT = 16_000
MAX_DEPTH = 10
_SIGNS = {"=": "eq", "!=": "neq", "<>": "neq", "<": "lt", "<=": "lteq", ">": "gt", ">=": "gteq", "==": "eq"}
_OF = {operator: sign for sign, operator in _SIGNS.items() if sign not in ("<>", "==")}
_KEYWORDS = frozenset({"and", "or", "not", "in", "xone"})
_TOKEN = re.compile(
    r"\s*(?:(?P<sign><=|>=|!=|<>|==|[=<>(),])|'(?P<value>(?:[^']|'')*)'|\"(?P<column>(?:[^\"]|\"\")*)\""
    r"|(?P<word>[^\s'\"(),=<>!]+))"
)
_BARE_COLUMN = re.compile(r"[^\W\d]\w*")
_BARE_VALUE = re.compile(r"[\w.:/+#@%-]+")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # sign, value, column, word, end
    text: str
    at: int

    def is_word(self, word: str) -> bool:
        return self.kind == "word" and self.text.lower() == word

    def is_sign(self, sign: str) -> bool:
        return self.kind == "sign" and self.text == sign


def parse(text: str) -> Constraint:
    """Return the constraint that a row filter means.

      parse("age >= 18 and ward in (A, B)")

    Raises: PolicyUnreadable with the position of the first mistake.
    """
    if len(text) > MAX_TEXT or not is_text(text):
        raise PolicyUnreadable(
            f"expected a row filter of at most {MAX_TEXT} characters, got {len(text)} or broken ones"
        )
    parser = _Parser(_split_tokens(text))
    found = parser.disjunction(0)
    parser.expect_end()
    return found


def render(constraint: Constraint) -> str:
    """Return the text of a row filter; `parse(render(c))` means the same as `c`."""
    return _render(constraint, top=True)


def _split_tokens(text: str) -> list[_Token]:
    found, position = [], 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            raise PolicyUnreadable(
                f"row filter, character {position + 1}: expected a column, a value or a sign, "
                f"got {text[position:][:20]!r}; put values with special characters in single quotes"
            )
        kind = str(match.lastgroup)
        quote = {"value": "'", "column": '"'}.get(kind, "")
        raw = match.group(kind)
        found.append(_Token(kind, raw.replace(quote * 2, quote) if quote else raw, match.start(kind) + 1))
        position = match.end()
    return [*found, _Token("end", "the end", len(text) + 1)]


@dataclass(slots=True)
class _Parser:
    tokens: list[_Token]
    position: int = field(default=0)

    @property
    def now(self) -> _Token:
        return self.tokens[self.position]

    def take(self) -> _Token:
        token = self.now
        self.position += token.kind != "end"
        return token

    def fail(self, expected: str) -> PolicyUnreadable:
        return PolicyUnreadable(
            f"row filter, character {self.now.at}: expected {expected}, got {self.now.text!r}; "
            "write for example: country in (DE, FR) or consent = broad"
        )

    def expect(self, sign: str) -> None:
        if not self.now.is_sign(sign):
            raise self.fail(f"{sign!r}")
        self.take()

    def expect_end(self) -> None:
        if self.now.kind != "end":
            raise self.fail("and, or, or the end")

    def disjunction(self, depth: int) -> Constraint:
        if depth > MAX_DEPTH:
            raise self.fail(f"brackets at most {MAX_DEPTH} deep")
        return self._chain("or", Connective.OR, depth)

    def _conjunction(self, depth: int) -> Constraint:
        return self._chain("and", Connective.AND, depth)

    def _chain(self, word: str, connective: Connective, depth: int) -> Constraint:
        inner = self._conjunction if connective is Connective.OR else self._part
        members = [inner(depth)]
        while self.now.is_word(word):
            self.take()
            members.append(inner(depth))
        return members[0] if len(members) == 1 else Group(connective, tuple(members))

    def _part(self, depth: int) -> Constraint:
        if self.now.is_sign("("):
            self.take()
            found = self.disjunction(depth + 1)
            self.expect(")")
            return found
        if self.now.is_word("xone"):
            self.take()
            return self._xone(depth)
        return self._comparison()

    def _xone(self, depth: int) -> Constraint:
        self.expect("(")
        members = [self.disjunction(depth + 1)]
        while self.now.is_sign(","):
            self.take()
            members.append(self.disjunction(depth + 1))
        self.expect(")")
        return Group(Connective.XONE, tuple(members))

    def _comparison(self) -> Constraint:
        column = self._column()
        negated = self.now.is_word("not")
        if negated:
            self.take()
        if self.now.is_word("in"):
            self.take()
            return self._membership(column, negated=negated)
        if negated or self.now.kind != "sign" or self.now.text not in _SIGNS:
            raise self.fail("in" if negated else "one of = != < <= > >= in, not in")
        operator = _SIGNS[self.take().text]
        return Atom(column_term("row", column), operator, (Literal(self._value()),))

    def _membership(self, column: str, *, negated: bool) -> Constraint:
        self.expect("(")
        found = [self._value()]
        while self.now.is_sign(","):
            self.take()
            found.append(self._value())
        self.expect(")")
        operator = "isNoneOf" if negated else "isAnyOf"
        return Atom(column_term("row", column), operator, tuple(map(Literal, found)), many=True)

    def _column(self) -> str:
        bare = self.now.kind == "word" and self.now.text.lower() not in _KEYWORDS
        if not (self.now.kind == "column" and self.now.text) and not (bare and _BARE_COLUMN.fullmatch(self.now.text)):
            raise self.fail("a column")
        return self.take().text

    def _value(self) -> str:
        bare = self.now.kind == "word" and self.now.text.lower() not in _KEYWORDS
        if not bare and self.now.kind not in ("value", "column"):
            raise self.fail("a value")
        return self.take().text


def _render(constraint: Constraint, *, top: bool) -> str:
    if isinstance(constraint, Atom):
        return _render_atom(constraint)
    if constraint.connective is Connective.XONE:
        return f"xone({', '.join(_render(member, top=True) for member in constraint.members)})"
    if len(constraint.members) == 1:
        return _render(constraint.members[0], top=top)
    text = f" {constraint.connective.value} ".join(_render(member, top=False) for member in constraint.members)
    return text if top else f"({text})"


def _render_atom(atom: Atom) -> str:
    column = column_of(atom.left)
    if not _BARE_COLUMN.fullmatch(column) or column.lower() in _KEYWORDS:
        column = quote_identifier(column)
    found = [_quote_value(literal.text) for literal in atom.right]
    if atom.operator in _OF:
        return f"{column} {_OF[atom.operator]} {found[0]}"
    return f"{column} {'not in' if atom.operator == 'isNoneOf' else 'in'} ({', '.join(found)})"


def _quote_value(text: str) -> str:
    if _BARE_VALUE.fullmatch(text) and text.lower() not in _KEYWORDS:
        return text
    return "'" + text.replace("'", "''") + "'"
