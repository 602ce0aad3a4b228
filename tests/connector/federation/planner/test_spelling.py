"""Messages show names as the question or the owner writes them, at the gate and in the planner."""

from __future__ import annotations

import re
from collections.abc import Iterator

import duckdb
import pyarrow as pa
import pytest

from connector.errors import ConnectorError
from policies.contracts.columns import fold
from policies.errors import QueryRefused
from tests.support import gate
from tests.support.federation import Federation

WRONG = (
    "SELECT Wron FROM {t}",
    "SELECT x.Wron FROM {t} AS x",
    "SELECT Xy.TeMp FROM {t} AS x",
    "SELECT TeMp FROM {t} AS Aa, {t} AS Bb",
    "SELECT Aa.TeMp FROM {t} AS Aa, {t} AS aA",
    "SELECT 1 FROM {t} Aa JOIN {t} Bb USING (Nope)",
    "SELECT * FROM {t} AS Aa, (SELECT TeMp FROM {t} WHERE Key_ = Aa.Key_) AS Bb",
    "SELECT TeMp AS Foo FROM {t} WHERE Foo > Bar",
    "SELECT Aa FROM {t} AS Aa",
    "SELECT TeMp FROM {t} UNION SELECT TeMp FROM {t} ORDER BY Wron",
    "SELECT TeMp FROM {t} AS Aa (Xx)",
    "SELECT Aa.* FROM {t} Bb",
    "SELECT Aa.TeMp FROM {t} Aa SEMI JOIN {t} Bb ON Aa.Key_ = Bb.Key_ WHERE Bb.TeMp > 1",
    "SELECT Cc.TeMp FROM {t} Aa JOIN {t} Bb USING (TeMp)",
    "SELECT TeMp FROM {t} Aa JOIN {t} Bb ON Aa.Key_ = Bb.Key_",
    "SELECT TeMp FROM {t} ORDER BY Nn",
    "SELECT stddev(TeMp) FILTER (WHERE Zz) FROM {t}",
    "SELECT Current_Date FROM {t}",
    "SELECT Desc FROM {t}",
    "SELECT TeMp Year FROM {t}",
    "SELECT TeMp::Foobar FROM {t}",
    "SELECT Varchar(TeMp) FROM {t}",
    "SELECT Myfun(TeMp) FROM {t}",
    "SELECT StrpTime(TeMp, 'x') FROM {t}",
)


@pytest.fixture(scope="module")
def federation() -> Iterator[Federation]:
    made = Federation("own")
    made.add("own", "weather", pa.table({"TeMp": pa.array([1, 2]), "Key_": pa.array([1, 2])}))
    yield made
    made.close()


@pytest.fixture(scope="module")
def bench() -> gate.Bench:
    database = duckdb.connect(config={"threads": 1})
    database.execute('CREATE TABLE src AS SELECT 1 AS "TeMp", 2 AS "Key_"')
    made = gate.Bench(database)
    made.add("own", "weather", "src", gate.contract(gate.schema_of(database, "src")))
    return made


def respelled(message: str, sql: str) -> list[str]:
    """The words of a message that are a name of the question or the dataset, but for their case."""
    names = {*re.findall(r"\w+", sql), "TeMp", "Key_", "weather", "own"}
    known = {fold(name) for name in names if not name.isupper()}
    return [word for word in re.findall(r"\w+", message) if fold(word) in known and word not in names]


@pytest.mark.parametrize("question", WRONG)
def test_a_refusal_shows_names_as_they_are_written(bench: gate.Bench, federation: Federation, question: str) -> None:
    sql = question.format(t="own.weather")
    told = []
    for ask in (bench.ask, federation.ask):
        with pytest.raises((QueryRefused, ConnectorError)) as refused:
            ask(sql)
        told.append(str(refused.value))
    assert [respelled(message, sql) for message in told] == [[], []], told


def test_a_name_that_is_stored_in_small_letters_stays_so() -> None:
    over = Federation("own")
    over.add("own", "weather", pa.table({"temp": pa.array([1])}))
    try:
        with pytest.raises(ConnectorError, match=r"Wron.* readable columns: temp$"):
            over.ask("SELECT TEMP FROM own.weather WHERE Wron > 1")
    finally:
        over.close()
