"""Every keyword of DuckDB as a name without quotes: the gate takes what DuckDB takes, and gives the same rows."""

from __future__ import annotations

from functools import cache
from typing import TypeAlias

import duckdb
import pytest
from sqlglot.dialects.duckdb import DuckDB

from policies.enforce import keywords
from policies.errors import QueryRefused
from policies.sql import parse
from tests.support import gate

Rows: TypeAlias = list[tuple[object, ...]]
# Values and constants, which no column is called as unless it is in quotes.
_VALUES = frozenset({"null", "true", "false"})
# What else these words mean where they stand: `SELECT DISTINCT a`, `GROUP BY ALL`, `avg(a) EXPORT_STATE`.
_MODIFIERS = frozenset({"all", "distinct", "not", "export_state"})


@cache
def categories() -> dict[str, set[str]]:
    """Each of the engine's keywords with its categories."""
    found: dict[str, set[str]] = {}
    rows = duckdb.connect().execute("SELECT keyword_name, keyword_category FROM duckdb_keywords()").fetchall()
    for word, category in rows:
        found.setdefault(word, set()).add(category)
    return found


@cache
def words() -> tuple[str, ...]:
    """The engine's keywords, and what only sqlglot takes for keywords (`list`, `file`, `current_date`)."""
    others = {word.lower() for word in DuckDB.Tokenizer.KEYWORDS if word.isidentifier()}
    return tuple(sorted(({*categories(), *others} - {"div"}) - _VALUES))


class World:
    """A table whose one column has a word as its name, in plain DuckDB and behind the gate."""

    def __init__(self) -> None:
        self.database = duckdb.connect(config={"threads": 1})
        self.benches: dict[str, gate.Bench] = {}

    def bench(self, word: str) -> gate.Bench:
        if word not in self.benches:
            relation = f"of_{word}"
            made = f'SELECT range AS k, 7 - range % 3 AS "{word}" FROM range(5)'
            self.database.execute(f"CREATE TABLE {relation} AS {made}")
            bench = gate.Bench(self.database)
            bench.add("", relation, relation, gate.contract(gate.schema_of(self.database, relation)))
            self.benches[word] = bench
        return self.benches[word]

    def plain(self, sql: str) -> Rows | None:
        """The engine's rows; None where it does not take the statement."""
        try:
            return self.database.execute(sql).fetchall()
        except duckdb.Error:
            return None

    def governed(self, word: str, sql: str) -> Rows | QueryRefused:
        try:
            return self.bench(word).ask(sql)
        except QueryRefused as refused:
            return refused


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_the_reserved_words_are_the_engines() -> None:
    kinds = categories()
    reserved = {word for word, of in kinds.items() if "reserved" in of or of == {"type_function"}}
    assert reserved == keywords.RESERVED, "update policies/enforce/keywords.py from duckdb_keywords()"


def test_the_words_that_need_as_are_the_engines() -> None:
    connection = duckdb.connect()

    def is_alias(word: str) -> bool:
        try:
            connection.execute(f"SELECT 1 {word}").fetchall()
        except duckdb.ParserException:
            return False
        return True

    free = [word for word in categories() if word not in keywords.RESERVED]
    assert {word for word in free if not is_alias(word)} == keywords.NEEDS_AS


QUESTIONS = (
    "SELECT avg({w}) FROM {t}",
    "SELECT {w} FROM {t}",
    "SELECT {w}, k FROM {t}",
    "SELECT k + {w}, -{w}, {w} - 1, {w} * {w} FROM {t}",
    "SELECT t.{w}, max(t.{w}) OVER () FROM {t} t",
    "SELECT k AS {w} FROM {t}",
    "SELECT avg(k) AS {w} FROM {t}",
    "SELECT k {w} FROM {t}",
    "SELECT avg(k) {w}, min(k) FROM {t}",
    "SELECT k FROM {t} WHERE {w} > 5 AND NOT {w} = 6",
    "SELECT k FROM {t} WHERE {w} BETWEEN 6 AND 7 OR {w} IS NULL",
    "SELECT k FROM {t} WHERE {w} IN (6, 7) AND k IN ({w}, 1)",
    "SELECT k FROM {t} WHERE 6 BETWEEN {w} AND {w}",
    "SELECT {w}, count(*) FROM {t} GROUP BY {w}",
    "SELECT k, {w}, count(*) FROM {t} GROUP BY k, {w} HAVING max({w}) > 5",
    "SELECT k FROM {t} ORDER BY {w}, k",
    "SELECT k FROM {t} ORDER BY {w} DESC NULLS LAST, k",
    "SELECT k FROM {t} t ORDER BY t.{w} ASC, k LIMIT 2",
    "SELECT k AS {w} FROM {t} ORDER BY {w}",
    "SELECT {w}.k FROM {t} {w}",
    "SELECT {w}.{w} FROM {t} AS {w}",
    "SELECT q.{w} FROM (SELECT k AS {w} FROM {t}) q",
    "SELECT {w} FROM (SELECT k FROM {t}) AS q ({w})",
    "SELECT m FROM {t} {w} (m, n)",
    "SELECT m FROM {t} AS {w} (m, n)",
    "WITH {w} AS (SELECT k FROM {t}) SELECT {w}.k FROM {w}",
    "WITH c ({w}) AS (SELECT k FROM {t}) SELECT {w} FROM c",
    "SELECT a.k FROM {t} a JOIN {t} b USING ({w})",
    "SELECT a.k FROM {t} a JOIN {t} {w} ON a.{w} = {w}.k",
    "SELECT a.k FROM {t} a LEFT JOIN {t} AS {w} ON a.{w} = {w}.{w}",
    "SELECT count(DISTINCT {w}), sum(k) FILTER (WHERE {w} > 5) FROM {t}",
    "SELECT sum(k) OVER (PARTITION BY {w} ORDER BY {w}, k ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM {t}",
    "SELECT CASE {w} WHEN 6 THEN {w} ELSE {w} END, CASE WHEN {w} = 6 THEN 1 END FROM {t}",
    "SELECT {w}::BIGINT, CAST({w} AS BIGINT), coalesce(k, {w}), ({w}) FROM {t}",
    "SELECT {w} FROM {t} UNION ALL SELECT {w} FROM {t} LIMIT 20",
    "SELECT k FROM {t} t WHERE EXISTS (SELECT 1 FROM {t} u WHERE u.{w} = t.{w})",
)


@pytest.mark.parametrize("question", QUESTIONS)
def test_each_word_is_a_name_where_the_engine_takes_it_for_one(world: World, question: str) -> None:
    wrong = []
    for word in words():
        sql = question.format(w=word, t=f"of_{word}")
        world.bench(word)
        expected, got = world.plain(sql), world.governed(word, sql)
        if word in _MODIFIERS:
            continue
        if isinstance(got, QueryRefused):
            if expected is not None:
                wrong.append((word, str(got)))
        elif expected is None or sorted(map(repr, got)) != sorted(map(repr, expected)):
            wrong.append((word, f"expected {expected}, got {got}"))
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"


def test_a_column_called_all_is_no_order_by_all(world: World) -> None:
    world.bench("all")
    for key in ("t.all", '"all"', 't."all" DESC', "ALL", "ALL DESC"):
        sql = f"SELECT k FROM of_all t ORDER BY {key}"
        assert world.governed("all", sql) == world.plain(sql), sql


@pytest.mark.parametrize("word", ["desc", "asc", "end", "left", "anti", "initially"])
def test_a_reserved_word_is_refused_with_what_to_write_instead(word: str) -> None:
    with pytest.raises(QueryRefused, match="double quotes"):
        parse.parse(f"SELECT avg({word}) FROM t")
    parse.parse(f'SELECT avg("{word}"), t.{word}, 1 AS {word} FROM t')


VALUE_FUNCTIONS = (
    "current_date", "current_time", "current_timestamp", "current_user", "current_role", "current_schema",
    "current_catalog", "session_user", "user", "localtime", "localtimestamp", "current_datetime", "rowid",
)  # fmt: skip


@pytest.mark.parametrize("word", VALUE_FUNCTIONS)
def test_a_word_that_is_no_column_gives_no_value_of_the_engine(world: World, word: str) -> None:
    """DuckDB computes some of these where no column has the name."""
    world.bench("k_only")
    for sql in (
        "SELECT {w} FROM of_k_only",
        "SELECT k FROM of_k_only WHERE {w} IS NULL",
        "SELECT {w}() FROM of_k_only",
    ):
        with pytest.raises(QueryRefused):
            world.bench("k_only").ask(sql.format(w=word))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM t TABLESAMPLE 10 ROWS",
        "SELECT * FROM t USING SAMPLE 3",
        "SELECT * FROM t POSITIONAL JOIN u",
        "SELECT * FROM t NATURAL JOIN u",
        "SELECT * FROM t ASOF JOIN u ON t.a = u.a",
        "SELECT * FROM t LIMIT 10 PERCENT",
        "SELECT * EXCLUDE (a) FROM t",
        "SELECT * REPLACE (a AS b) FROM t",
        "SELECT * RENAME (a AS b) FROM t",
        "SELECT COLUMNS(*) FROM t",
        "WITH RECURSIVE c AS (SELECT 1) SELECT * FROM c",
        "SELECT a FROM t FOR UPDATE",
        "SELECT * FROM t AT (VERSION => 3)",
        "SELECT a::JSON FROM t",
        "SELECT CAST(a AS JSON) FROM t",
        "SELECT TRY_CAST(a AS UUID) FROM t",
        "SELECT JSON '1' FROM t",
        "SELECT UNNEST(a) FROM t",
        "SELECT * FROM UNNEST(a)",
        "SELECT json(a) FROM t",
        "SELECT a OPERATOR(+) 1 FROM t",
        "SELECT MAP {'a': 1} FROM t",
        "VALUES (1)",
        "SELECT * FROM (VALUES (1)) v",
        "DROP TABLE t",
        "SELECT 1; DROP TABLE t",
        "SELECT max(a) OVER w FROM t WINDOW w AS (ORDER BY a)",
        "SELECT k FROM t UNION ALL BY NAME SELECT k FROM t",
        "PIVOT t ON a USING sum(b)",
        "SUMMARIZE t",
        "SET x = 1",
        "SELECT a FROM t INTO u",
    ],
)
def test_syntax_of_these_words_stays_refused(sql: str) -> None:
    with pytest.raises(QueryRefused):
        parse.parse(sql)
