"""Every keyword of DuckDB as a name without quotes: the planner takes what DuckDB takes, and gives the same rows."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from connector.errors import ConnectorError
from policies.enforce import keywords
from tests.support.federation import Federation, difference

QUESTIONS = (
    "SELECT avg({w}) FROM own.{t}",
    "SELECT t.{w}, sum(k) AS {w} FROM own.{t} t WHERE {w} > 5 GROUP BY t.{w}",
    "SELECT {w}, k AS z FROM own.{t} ORDER BY {w} DESC, k LIMIT 3",
    "SELECT {w}.k FROM (SELECT k, {w} FROM own.{t}) AS {w} JOIN own.{t} b ON {w}.{w} = b.{w} WHERE b.{w} IN (6, 7)",
    "WITH {w} AS (SELECT k {w}x FROM own.{t}) SELECT max({w}x) FROM {w}",
)


def words() -> list[str]:
    found = duckdb.connect().execute("SELECT DISTINCT keyword_name FROM duckdb_keywords() ORDER BY 1").fetchall()
    others = ["list", "file", "uuid", "namespace", "settings", "current_date", "current_user", "format"]
    return [*(word for (word,) in found if word not in keywords.RESERVED), *others]


@pytest.mark.parametrize("part", range(4))
def test_each_word_that_is_not_reserved_is_a_name_in_a_federated_question(part: int) -> None:
    over, wrong, mine = Federation("own"), [], words()[part::4]
    for word in mine:
        table = pa.table({"k": pa.array(range(5)), word: pa.array([7, 6, 5, 7, 6])})
        over.add("own", f"of_{word}", table)
    for word in mine:
        for question in QUESTIONS:
            sql = question.format(w=word, t=f"of_{word}")
            try:
                with over.central.cursor() as plain:
                    expected = plain.execute(sql).fetchall()
            except duckdb.Error:
                if word != "recursive":  # no name of a WITH query
                    raise
                continue
            try:
                found = difference(over.ask(sql).rows, expected, ordered=" ORDER BY " in sql)
            except ConnectorError as refused:
                found = str(refused)
            if found:
                wrong.append((sql, found))
    over.close()
    assert not wrong, f"{len(wrong)}: {wrong[:5]}"


@pytest.mark.parametrize("word", ["desc", "left", "all", "asof"])
def test_a_reserved_word_is_refused_by_its_name(word: str) -> None:
    over = Federation("own")
    over.add("own", "t", pa.table({"k": [1], word: [2]}))
    try:
        with pytest.raises(ConnectorError, match=word):
            over.ask(f"SELECT k + {word} FROM own.t")
        assert over.ask(f'SELECT t.{word}, "{word}" AS b, k AS {word} FROM own.t').rows == [(2, 2, 1)]
    finally:
        over.close()
