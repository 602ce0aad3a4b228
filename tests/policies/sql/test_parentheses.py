"""Assembled trees become SQL that both parsers read back as the same tree."""

from __future__ import annotations

import json
from typing import Any

import duckdb
from hypothesis import given
from hypothesis import strategies as st
from sqlglot import exp, parse_one

from policies.sql import parentheses
from policies.sql.allowed_syntax import OPERATORS, SETS
from policies.sql.engine_recheck import RECHECK_SQL

_CHAINS = (exp.And, exp.Or)
_TWO = [kind for kind, filled in OPERATORS.items() if {"this", "expression"} <= filled]
_PLAIN = [kind for kind in _TWO if kind not in (exp.Is, exp.Like, exp.ILike, exp.Escape)]


def _operators(inner: st.SearchStrategy[exp.Expr]) -> st.SearchStrategy[exp.Expr]:
    text = st.just("x%").map(exp.Literal.string)
    end = st.booleans().map(lambda null: exp.Null() if null else exp.Boolean(this=True))
    like = st.builds(lambda kind, this, word: kind(this=this, expression=word),
                     st.sampled_from([exp.Like, exp.ILike]), inner, text)  # fmt: skip
    return st.one_of(
        st.builds(lambda kind, one, other: kind(this=one, expression=other), st.sampled_from(_PLAIN), inner, inner),
        st.builds(lambda kind, one: kind(this=one), st.sampled_from([exp.Not, exp.Neg]), inner),
        st.builds(lambda this, word: exp.Is(this=this, expression=word), inner, end),
        like,
        st.builds(lambda this: exp.Escape(this=this, expression=exp.Literal.string("!")), like),
        st.builds(lambda this, low, high: exp.Between(this=this, low=low, high=high), inner, inner, inner),
        st.builds(lambda this, one: exp.In(this=this, expressions=[one]), inner, inner),
        st.builds(lambda this, query: exp.In(this=this, query=query), inner, st.builds(_select, inner)),
        st.builds(lambda one: exp.Coalesce(this=one, expressions=[exp.Literal.number(1)]), inner),
        st.builds(lambda one: exp.TryCast(this=one, to=exp.DataType.build("INT"), safe=True), inner),
        st.builds(lambda one, other: exp.Case(ifs=[exp.If(this=one, true=other)]), inner, inner),
    )


def _select(value: exp.Expr) -> exp.Expr:
    return exp.Select(expressions=[value])


_LEAVES = st.one_of(
    st.sampled_from("abc").map(exp.column),
    st.integers(-3, 3).map(exp.Literal.number),
    st.just(3).map(lambda days: exp.Interval(this=exp.Literal.string(str(days)), unit=exp.var("DAY"))),
)
_VALUES = st.recursive(_LEAVES, _operators, max_leaves=8)


def _sets(inner: st.SearchStrategy[exp.Expr]) -> st.SearchStrategy[exp.Expr]:
    limit = st.sampled_from([None, exp.Limit(expression=exp.Literal.number(1))])
    return st.builds(
        lambda kind, one, other, first: kind(this=one, expression=other, distinct=True, limit=first and first.copy()),
        st.sampled_from(SETS), inner, inner, limit,
    )  # fmt: skip


_QUERIES = st.recursive(_VALUES.map(_select), _sets, max_leaves=5)


def _said(node: Any) -> Any:
    """What a tree says: brackets left out, and with them the order in which members of AND and OR were put together."""
    while isinstance(node, exp.Paren) or (isinstance(node, exp.Subquery) and not node.alias):
        node = node.this
    if isinstance(node, _CHAINS):
        return type(node).__name__, *_members(node, type(node))
    if isinstance(node, exp.Expr):
        filled = {name: value for name, value in node.args.items() if value is not None and not isinstance(value, bool)}
        return type(node).__name__, *((name, _said(filled[name])) for name in sorted(filled) if filled[name] != [])
    return [_said(one) for one in node] if isinstance(node, list) else str(node)


def _members(node: exp.Expr, kind: type[exp.Expr]) -> list[Any]:
    while isinstance(node, exp.Paren):
        node = node.this
    return [*_members(node.this, kind), *_members(node.expression, kind)] if type(node) is kind else [_said(node)]


def _all_bracketed(tree: exp.Expr) -> exp.Expr:
    """A copy with every operand in brackets, needed or not, but for members of a chain and what must have none."""
    found = tree.copy()
    for node in list(found.walk()):
        holder = node.parent
        operand = isinstance(holder, tuple(OPERATORS)) and not isinstance(node, (exp.Literal, exp.Boolean, exp.Null))
        kept = type(node) is type(holder) and isinstance(node, _CHAINS)
        if operand and not kept and not isinstance(holder, exp.Escape) and not isinstance(node, exp.Subquery):
            place = exp.Paren()
            node.replace(place)
            place.set("this", node)
    return parentheses.add_brackets(found)


_DUCKDB = duckdb.connect()


def _engine(sql: str) -> Any:
    """What the engine's parser reads, without the places in the text."""

    def drop(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: drop(value) for name, value in part.items() if not name.startswith("query_location")}
        return [drop(one) for one in part] if isinstance(part, list) else part

    read = json.loads(_DUCKDB.execute(RECHECK_SQL, [sql]).fetchall()[0][0])
    assert read["error"] is False, (sql, read)
    return drop(read)


@given(_VALUES)
def test_what_is_written_of_an_expression_is_read_as_it_was(value: exp.Expr) -> None:
    tree = _select(value)
    text = parentheses.write(tree)
    assert _said(parse_one(text, read="duckdb")) == _said(tree), text
    assert _engine(text) == _engine(_all_bracketed(tree).sql(dialect="duckdb", identify=True)), text


@given(_QUERIES)
def test_what_is_written_of_set_operations_is_read_as_it_was(tree: exp.Expr) -> None:
    text = parentheses.write(tree)
    assert _said(parse_one(text, read="duckdb")) == _said(tree), text
    assert text == parentheses.write(parse_one(text, read="duckdb"))
