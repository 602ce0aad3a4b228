"""Parsing in the gate: sizes, nesting and unusual shapes are refused before anything slow or deep runs."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlglot import exp

from policies.errors import QueryRefused
from policies.sql import parse
from policies.sql.allowed_functions import FUNCTIONS
from policies.sql.allowed_syntax import NODES
from policies.sql.parse import Caps
from tests.support import tpch

N = 3000
TOO_MUCH: dict[str, tuple[str, str]] = {
    "long text": ("select 1 from t -- " + "x" * 70_000, "query_too_long"),
    "many words": ("select " + "a," * 9_000 + "a from t", "query_too_large"),
    "parentheses": ("select " + "(" * N + "1" + ")" * N, "query_too_deep"),
    "parentheses within reach": ("select " + "(" * 60 + "1" + ")" * 60, "query_too_deep"),
    "subqueries": ("select * from " * 200 + "t", "query_too_large"),
    "nested subqueries": ("select * from (" * 60 + "t" + ")" * 60, "query_too_deep"),
    "minus": ("select " + "- " * N + "1", "query_too_deep"),
    "not": ("select " + "not " * N + "true", "query_too_deep"),
    "mixed prefixes": ("select " + "not - " * 40 + "1", "query_too_deep"),
    "case": ("select " + "case when " * N + "1", "query_too_deep"),
    "interval": ("select " + "interval " * N + "'1' day", "query_too_deep"),
    "functions": ("select " + "abs(" * N + "1" + ")" * N, "query_too_deep"),
    "types as functions": ("select " + "date(" * 20 + "1" + ")" * 20, "function_not_allowed"),
    "structs": ("select " + "struct(" * 20 + "1" + ")" * 20, "function_not_allowed"),
    "an outer join without a side": ("select 1 from a outer join b on true", "syntax_not_allowed"),
    "joins without on": ("select 1 from a " + "join b " * 40, "syntax_not_allowed"),
    "joins with on at the end": ("select 1 from a " + "join b " * 3 + "on true " * 3, "syntax_not_allowed"),
    "joins": ("select 1 from a " + "join b on true " * 65, "query_too_large"),
    "cross joins": ("select 1 from a " + "cross join b " * 65, "query_too_large"),
    "unions": (" union all ".join(["select 1 from t"] * 65), "query_too_large"),
    "chain of and": ("select 1 from t where " + " and ".join(["a"] * 600), "query_too_deep"),
    "chain of plus": ("select " + "+".join(["1"] * 600) + " from t", "query_too_deep"),
    "chain of casts": ("select a" + "::int" * 200 + " from t", "query_too_deep"),
    "chain of powers": ("select " + "**".join(["a"] * 200) + " from t", "syntax_not_allowed"),
    "chain of divisions": ("select " + "/".join(["a"] * 200) + " from t", "query_too_deep"),
    "chain of is null": ("select a" + " is null" * 200 + " from t", "query_too_deep"),
    "dots": ("select a" + ".b" * 200 + " from t", "syntax_not_allowed"),
    "long list": ("select 1 from t where a in (" + "1," * 5_001 + "1)", "query_too_large"),
    "long literal": ("select '" + "x" * 5_000 + "' from t", "query_too_large"),
    "doubling": ("select " + ", ".join(f"a||a||a||a as a{i}" for i in range(8)) + " from t", "query_too_large"),
    "doubling by level": (
        "select a||a as a from (" * 15 + "select a from t" + ") x" * 15,
        "query_too_large",
    ),
    # Shapes on which the parser tries every way of reading, found by random search.
    "aliases that might be joins": ("select " + "first right( " * 20 + "1" + ")" * 20, "query_unreadable"),
    "joins of functions": ("select " + "first join substring( " * 20 + "1" + ")" * 20, "function_not_allowed"),
    "joins in expressions": ("select " + "left join end , ( int " * 20 + "1" + ")" * 20, "query_unreadable"),
    "value before parenthesis": ("select " + "1 ( " * 20 + "1" + ")" * 20, "query_unreadable"),
    "wildcards": ("select 1 from t where a like '" + "%a" * 20 + "'", "query_too_large"),
    "wildcards with underscore": ("select 1 from t where a like '%a%b%c%d_e%'", "query_too_large"),
}  # fmt: skip


@cache
def ordinary() -> float:
    """Processor seconds for reading all 22 TPC-H queries, the best of five: what a moment is on this machine."""

    def once() -> float:
        before = time.thread_time()
        for sql in tpch.queries().values():
            parse.parse(sql)
        return time.thread_time() - before

    return min(once() for _ in range(5))


@contextmanager
def moment(times: int = 20) -> Iterator[None]:
    """What is done in it takes no more of the processor than so many times the ordinary."""
    gc.disable()  # a collection over what thousands of other tests have left is not the parser's work
    try:
        before = time.thread_time()  # nor is what other threads of the suite do meanwhile
        yield
        spent = time.thread_time() - before
    finally:
        gc.enable()
    assert spent < times * ordinary()


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_would_be_slow_or_deep_is_refused_in_a_moment(name: str) -> None:
    sql, code = TOO_MUCH[name]
    with moment(), pytest.raises(QueryRefused) as refused:
        parse.parse(sql)
    assert refused.value.code == code, str(refused.value)
    assert refused.value.rule.startswith("gate/")
    assert len(str(refused.value)) < 300


WITHIN: dict[str, str] = {
    "nesting": "select " + "(" * 30 + "1" + ")" * 30 + " from t",
    "joins": "select 1 from a " + "join b on true " * 60,
    "unions": " union all ".join(["select 1 from t"] * 60),
    "chain": "select 1 from t where " + " and ".join(["a = 1"] * 500),
    "list": "select 1 from t where a in (" + "1," * 4_900 + "1)",
    "texts": "select a || ' ' || b || ' ' || c || ' ' || d from t",
    "wildcards": "select 1 from t where a like '%x%y%z%'",
    "parentheses around": "((select 1 from t))",
}


@pytest.mark.parametrize("name", WITHIN)
def test_sizes_that_people_write_pass(name: str) -> None:
    assert parse.parse(WITHIN[name]) is not None


@pytest.mark.parametrize("name", tpch.queries())
def test_tpch_stays_well_within_the_caps(name: str) -> None:
    half = Caps(characters=8_192, tokens=2_048, nodes=2_000, depth=48, chain=64, nesting=12, prefixes=6, joins=16)
    assert parse.parse(tpch.queries()[name], half) is not None


def test_caps_are_an_argument() -> None:
    with pytest.raises(QueryRefused, match="more than 3 words"):
        parse.parse("select a from t", Caps(tokens=3))
    with pytest.raises(QueryRefused, match="more than 2 parts"):
        parse.parse("select a from t", Caps(nodes=2))


_TEXT = (
    "select from where group by order limit with as union all except intersect join left on using case when then "
    "end not and or in exists like between is null distinct having over partition ( ) , . * + - / % || :: = < > ; "
    "a b t 1 2.5 'x' \"q\" count sum cast date interval day extract substring row_number filter values lateral "
    "unnest pivot read_csv getenv $p ? @ # [ ] { } -> -- /* */ recursive sample natural asof semi anti struct int "
    "date( int( struct( cast( decimal("
)
_WORDS = _TEXT.split()


def _parsed(text: str) -> exp.Expr | None:
    """The tree, or None when it is refused; any other error is a failure."""
    try:
        return parse.parse(text)
    except QueryRefused:
        return None


@settings(max_examples=300)
@given(st.lists(st.sampled_from(_WORDS), max_size=60).map(" ".join))
def test_any_sequence_of_words_is_parsed_or_refused_quickly(text: str) -> None:
    with moment(200):
        tree = _parsed("select " + text)
    assert tree is None or all(type(node) in NODES for node in tree.walk())


@settings(max_examples=200)
@given(st.text(max_size=80))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for whole in (text, "select " + text, f"select '{text}' from t", f'select "{text}" from t'):
        with moment(200):
            _parsed(whole)


FORBIDDEN = (
    "repeat lpad rpad range generate_series list array_agg string_agg replace regexp_replace concat format printf "
    "error sleep getenv current_setting getvariable random uuid now strptime read_csv read_parquet query unnest "
    "list_value sha256 md5 hash first last arg_max quantile_cont histogram to_json"
)


def test_no_function_that_builds_reads_or_fails_is_on_the_list() -> None:
    names = {name for _, engine in FUNCTIONS.values() for name in engine}
    assert names.isdisjoint(FORBIDDEN.split())


@pytest.mark.parametrize("unit", ["century", "decade", "epoch", "dow", "doy"])
def test_an_interval_is_of_a_unit_that_the_engine_makes_one_of(unit: str) -> None:
    with pytest.raises(QueryRefused, match="INTERVAL 3 MONTH"):
        parse.parse(f"select d + interval 1 {unit} from t")


@pytest.mark.parametrize("sql", ["select t.st.x from t", "select (st).x from t", "select (t.st).x.y from t"])
def test_a_field_of_a_struct_is_refused_with_the_reason(sql: str) -> None:
    with pytest.raises(QueryRefused, match="a struct is read whole") as refused:
        parse.parse(sql)
    assert refused.value.code == "syntax_not_allowed"


@pytest.mark.parametrize(
    ("sql", "instead"),
    [
        ("select * exclude (a) from t", "name the columns"),
        ("select distinct on (a) a, b from t", "QUALIFY row_number"),
        ("select 1 from t natural join u", "USING"),
        ("select sum(a) over w from t window w as (order by a)", "OVER"),
        ("select a from t where a = any (select b from u)", "IN"),
        ("select a from t union by name select a from u", "same order"),
    ],
)
def test_what_is_asked_for_most_is_refused_with_what_to_write_instead(sql: str, instead: str) -> None:
    with pytest.raises(QueryRefused, match=f"not allowed here; .*{instead}"):
        parse.parse(sql)
