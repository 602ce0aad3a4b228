"""Size limits of a query, and the function that refuses one. Must not import sqlglot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NoReturn

from policies.errors import QueryRefused


@dataclass(frozen=True, slots=True)
class Caps:
    """The size limits of a query; the defaults allow every TPC-H query with room to spare."""

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
    """Return the refusal, for callers that raise it themselves."""
    return QueryRefused(sentence, rule=rule if rule.startswith("/") else GATE + rule, code=code)


def refuse_type(text: str) -> NoReturn:
    """Refuse a type that queries must not use.

    Raises: QueryRefused (`type_not_allowed`).
    """
    refuse(
        "type_not_allowed",
        f"the type {shorten(text)} is not allowed here; use numbers, texts, days and times",
        "types",
    )


def shorten(text: str) -> str:
    """Return a text of the query for a message, cut after 40 characters."""
    return text if len(text) <= 40 else text[:40] + "..."
