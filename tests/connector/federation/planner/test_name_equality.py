"""Names that are one: the engine, the owner's gate and the planner say the same of any two."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import duckdb
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from connector.datasets.sources.source_files import quote_name
from connector.errors import QueryInvalid
from connector.federation.planner.model import GridInfo, TableColumn, TableInfo
from connector.federation.planner.planner import plan
from policies.contracts.columns import fold
from policies.errors import QueryRefused
from tests.support import gate
from tests.support.federation import Federation

# Letters whose other case is one of ASCII, is longer, is several, or depends on where they stand.
_LETTERS = "aAkKsSiI_1 äÄßẞſ\N{KELVIN SIGN}\N{ANGSTROM SIGN}åÅıİσςΣéÉ\N{COMBINING ACUTE ACCENT}ǅ中"
NAMES = st.text(_LETTERS, min_size=1, max_size=4) | st.text(
    st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8
)
CHANGES: list[Callable[[str], str]] = [str, str.lower, str.upper, str.swapcase, str.casefold, fold]


@st.composite
def pairs(draw: st.DrawFn) -> tuple[str, str]:
    """The name of a column, and one that may be asked for in its place."""
    stored = draw(NAMES)
    return stored, draw(st.sampled_from(CHANGES))(stored) if draw(st.booleans()) else draw(NAMES)


def unlike(test: Callable[..., None]) -> Callable[..., None]:
    """With the pairs that fold alike in some ways and not in others."""
    for pair in (("Ärzte", "ärzte"), ("Ärzte", "ÄRZTE"), ("straße", "STRASSE"), ("\N{KELVIN SIGN}", "k")):
        test = example(pair)(test)
    return given(pairs())(test)


@settings(max_examples=100, deadline=None)
@unlike
def test_names_fold_as_the_engine_folds_them(names: tuple[str, str]) -> None:
    stored, asked = names
    assert (fold(stored) == fold(asked)) is _of_the_engine(stored, asked)


@settings(max_examples=15, deadline=None)
@unlike
def test_gate_and_planner_take_the_same_names_for_one(names: tuple[str, str]) -> None:
    one = _of_the_engine(*names)
    assert _answers(lambda: _of_the_gate(*names)) is one
    assert _answers(lambda: _of_the_planner(*names)) is one


def _of_the_engine(stored: str, asked: str) -> bool:
    with duckdb.connect() as there:
        there.execute(f"CREATE TABLE t AS SELECT 7 AS {quote_name(stored)}")
        return _answers(lambda: there.execute(f"SELECT {quote_name(asked)} FROM t").fetchall())


def _answers(ask: Callable[[], list[tuple[int]]]) -> bool:
    """Whether a column of that name gives its only value; False where there is none of that name."""
    try:
        return ask() == [(7,)]
    except (duckdb.BinderException, QueryRefused, QueryInvalid) as error:
        assert isinstance(error, duckdb.BinderException) or error.code == "column_unknown"  # noqa: PT017  one of three
        return False


def _of_the_gate(stored: str, asked: str) -> list[tuple[int]]:
    bench = gate.Bench()
    bench.connection.execute(f"CREATE TABLE src AS SELECT 7 AS {quote_name(stored)}")
    bench.add("north", "t", "src", gate.contract(gate.schema_of(bench.connection, "src")))
    return bench.ask(f'SELECT {quote_name(asked)} FROM "north".t')


def _of_the_planner(stored: str, asked: str) -> list[tuple[int]]:
    federation = Federation("north")
    try:
        federation.add("north", "t", pa.table({stored: [7]}))
        return federation.ask(f'SELECT {quote_name(asked)} FROM "north".t').rows
    finally:
        federation.close()


@pytest.fixture
def clinics() -> Iterator[Federation]:
    federation = Federation("north", "south")
    federation.add("north", "k", pa.table({"Ärzte": [4, 5], "Größe": ["a", "b"]}))
    federation.add("south", "k", pa.table({"Ärzte": [6], "GRÖßE": ["c"]}))
    yield federation
    federation.close()


@pytest.mark.parametrize(
    ("sql", "columns", "rows"),
    [
        ('SELECT * FROM "north".k ORDER BY 1', ["Ärzte", "Größe"], [(4, "a"), (5, "b")]),
        ('SELECT sum(Ärzte) AS s FROM "all".k', ["s"], [(15,)]),
        ('SELECT größe FROM "north".k WHERE Ärzte = 4', ["größe"], [("a",)]),
        ('SELECT * FROM "south".k', ["Ärzte", "GRÖßE"], [(6, "c")]),
        ('SELECT n.größe, s.grÖße FROM "north".k n JOIN "south".k s ON n.Ärzte + 1 = s.Ärzte', None, [("b", "c")]),
        ('SELECT Ärzte, count(*) AS n FROM "all".k GROUP BY ALL ORDER BY Ärzte DESC LIMIT 1', None, [(6, 1)]),
        ('WITH Ämter AS (SELECT ÄRZTE AS Ä FROM "south".k) SELECT ä, Ä FROM (SELECT 1 AS ä, Ä FROM ÄMTER)', None, None),
    ],
)
def test_columns_with_letters_outside_ascii_are_asked_for_as_any_others(
    clinics: Federation, sql: str, columns: list[str] | None, rows: list[tuple[object, ...]] | None
) -> None:
    ran = clinics.ask(sql)
    assert columns in (None, ran.columns)
    assert ran.rows == (rows or [(1, 6)])


def test_figures_over_groups_are_asked_for_by_such_names() -> None:
    columns = tuple(TableColumn(name, "BIGINT") for name in ("Ämter", "Ärzte", "Öl"))
    grid = GridInfo(("Ämter",), ("Ärzte",), 5, entity="Öl")
    sql = 'SELECT Ämter, count(DISTINCT Öl), avg(Ärzte) FROM "north".k WHERE Ämter > 3 GROUP BY Ämter'
    (fragment,) = plan(sql, {("north", "k"): TableInfo("north", "k", columns, grid=grid)}).fragments
    assert fragment.aggregate_only
    assert "GROUP BY" in fragment.sql


def test_a_column_that_differs_in_such_a_letter_is_unknown_and_those_that_are_there_are_told(
    clinics: Federation,
) -> None:
    with pytest.raises(QueryInvalid, match="Ärzte") as raised:
        clinics.ask('SELECT ärzte FROM "north".k')
    assert raised.value.code == "column_unknown"
