"""The planner: each rule by its cases, every plan against one DuckDB with all the data, and what it refuses."""

from __future__ import annotations

import pkgutil
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock
from xml.etree import ElementTree

import duckdb
import pyarrow as pa
import pytest
import sqlglot
import yaml
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset, Space

from connector.errors import ConnectorError, Denied, QueryInvalid
from connector.federation import plan_text
from connector.federation.planner import placement, sql_text
from connector.federation.planner.model import DataLayout, Mode, TableColumn, TableInfo
from connector.federation.planner.planner import plan
from connector.federation.planner.rules import RULES
from policies.contracts.contract import Dimension
from policies.sql.limits import DEFAULT
from tests.oracles.federated import check, federation, wrong
from tests.oracles.outcome import Outcome
from tests.support import plan_cases, tpch
from tests.support.federation import Federation, difference
from tests.support.federation_tpch import layout, written_for

CASES = list(plan_cases.cases())
DOCS = Path(__file__).parents[4] / "docs/federated-query.md"
RATIO = 100  # of planning to reading a query: 10 ms is the aim, reading takes about half of one


@pytest.mark.parametrize("case", CASES, ids=[f"{case.rule}: {case.name}" for case in CASES])
def test_a_rule_makes_of_its_case_what_the_case_says(case: plan_cases.Case) -> None:
    got = {label: plan_cases.canonical(sql) for label, sql in plan_cases.outcome(case).items()}
    assert got == {label: plan_cases.canonical(sql) for label, sql in case.after.items()}


@pytest.mark.parametrize("word", ["order", "json", "uuid", "table", "user", "all", "flights"])
def test_a_dataset_is_named_so_that_sql_can_be_written_with_it(word: str) -> None:
    """A dataset may be called as a word of SQL is."""
    shown = TableInfo("north", word, (), agreement="").quoted_name
    assert sql_text.datasets(sql_text.read(f"SELECT count(*) AS n FROM {shown}")) == (("north", word),)
    assert Dataset(Space("http://localhost", ""), TransferAccess(Name("north", word), "", "", "", "")).sql_name == shown


@pytest.mark.parametrize(("count", "told"), [(1, "1 row expected"), (2, "2 rows expected")])
def test_a_plan_says_one_of_what_there_is_one_of(count: int, told: str) -> None:
    tables = {("north", "t"): TableInfo("north", "t", (TableColumn("id", "BIGINT"),), rows=count)}
    shown = plan_text.text(plan('SELECT id FROM "north".t', tables))
    assert "1 fragment;" in shown
    assert f"1 column, about {told}" in shown


_ID = (TableColumn("id", "BIGINT"),)
_PATIENTS = TableInfo("clinic", "patients", _ID, "a", "did:web:clinic", rows=10)
_PRICES = TableInfo("clinic", "prices", _ID, "b", "did:web:rival", rows=10, takes_keys=True)
_SHARED = [
    "SELECT count(*) FROM clinic.prices q JOIN clinic.patients x ON x.id = q.id",
    "SELECT count(*) FROM clinic.patients x JOIN clinic.prices q ON x.id = q.id",
    "SELECT max(q.id) FROM clinic.prices q WHERE q.id IN (SELECT id FROM clinic.patients)",
    "SELECT id FROM clinic.prices UNION ALL SELECT id FROM clinic.patients",
]


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("sql", _SHARED)
def test_datasets_of_two_participants_are_never_one_owners(sql: str, mode: Mode) -> None:
    """A participant chooses its name: one that calls itself as another does is sent neither tickets nor keys of it."""
    tables = {(info.owner, info.dataset): info for info in (_PATIENTS, _PRICES)}
    with pytest.raises(QueryInvalid, match="did:web:clinic and did:web:rival") as caught:
        plan(sql, tables, mode=mode, across_agreements=True)
    assert caught.value.code == "owner_ambiguous"


def test_the_parts_of_owners_with_long_names_have_names_of_their_own() -> None:
    """That of a read has 64 letters for question, part and attempt: what is cut off there is missed in an audit."""
    owners = ["north", *("n" * 62 + letter for letter in "ab")]
    tables = {(owner, "p"): TableInfo(owner, "p", _ID, owner, f"did:web:{owner}", rows=10) for owner in owners}
    found = [one.id for one in plan('SELECT count(*) FROM "all".p', tables).fragments]
    assert len(set(found)) == 3
    assert "f0.north" in found
    assert max(len(f"{'0' * 16}.{one}.2") for one in found) <= 64


@pytest.mark.parametrize("sql", _SHARED)
def test_what_names_do_not_tell_apart_identifiers_do(sql: str) -> None:
    prices = replace(_PRICES, owner="did:web:rival")
    tables = {(info.owner, info.dataset): info for info in (_PATIENTS, prices)}
    made = plan(sql.replace("clinic.prices", '"did:web:rival".prices'), tables, across_agreements=True)
    sent = {one.participant: (one.agreements, one.keys) for one in made.fragments}
    assert sent == {"did:web:clinic": (("a",), ()), "did:web:rival": (("b",), ())}


@pytest.mark.parametrize("known", [False, True])
def test_keys_that_keys_have_narrowed_are_of_what_those_are_of(known: bool) -> None:
    """Which values of the open list there are tells of the hidden dataset that narrowed it at their common owner."""
    columns = (*_ID, TableColumn("g", "BIGINT"), TableColumn("v", "BIGINT"))
    tables = {
        (owner, dataset): TableInfo(owner, dataset, columns, dataset, f"did:web:{owner}", rows=rows, takes_keys=True,
                                    shares_keys=shares, joins=("others",) if dataset == "open" else None)
        for owner, dataset, rows, shares in [
            ("clinic", "hidden", 1_000, known), ("clinic", "open", 10**6, True), ("rival", "big", 10**8, False),
        ]
    }  # fmt: skip
    sql = (
        "SELECT count(*) FROM clinic.hidden s JOIN clinic.open l ON l.id = s.id JOIN rival.big b ON b.id = l.g "
        "WHERE s.v = 1"
    )
    made = plan(sql, tables, across_agreements=True)
    to = {one.datasets[0]: [key.source for key in one.keys] for one in made.fragments}
    assert to["open"] == ["f0"]  # its own owner's, back to it
    assert to["big"] == (["f1"] if known else [])


def test_every_rule_has_cases() -> None:
    planner = Path(plan_cases.__file__).parents[2] / "connector/federation/planner"
    rules = {path.stem for folder in ("rules", "placement") for path in (planner / folder).glob("*.py")}
    assert rules - {"__init__", "place"} <= {case.rule for case in CASES}
    assert set(RULES) <= rules


@pytest.fixture(scope="module")
def small() -> Iterator[Federation]:
    found = federation()
    yield found
    found.close()


ONCE_WRONG = yaml.safe_load((plan_cases.FOLDER / "once_wrong.yaml").read_text())


@pytest.mark.parametrize("case", ONCE_WRONG, ids=[case["why"] for case in ONCE_WRONG])
def test_questions_that_were_answered_wrongly_once_are_right(small: Federation, case: dict[str, str]) -> None:
    for bold in (True, False):
        assert not wrong(small, case["sql"], bold=bold), case["sql"]


def _outputs(steps: int) -> str:
    return "k + k AS a0" + "".join(f", a{n} + a{n} AS a{n + 1}" for n in range(steps))


def _chain(first: str, steps: int, step: str) -> str:
    made = "".join(f", w{n + 1} AS ({step.format(n)})" for n in range(steps))
    return f"WITH w0 AS ({first}){made}"


MULTIPLYING = {
    "outputs of outputs": f"SELECT {_outputs(60)} FROM north.orders",
    "outputs of outputs in WHERE": f"SELECT {_outputs(8)} FROM north.orders WHERE " + " + ".join(["a8"] * 99) + " > 3",
    "outputs of outputs in ORDER BY": f"SELECT {_outputs(8)} FROM north.orders ORDER BY " + " + ".join(["a8"] * 99),
    "keys by their places": f"SELECT {_outputs(8)} FROM north.orders GROUP BY " + ", ".join(["9"] * 99),
    "every column of two copies": _chain("SELECT * FROM north.orders", 30, "SELECT * FROM w{0} a CROSS JOIN w{0} b")
    + "SELECT * FROM w30",
}


@pytest.mark.parametrize("sql", MULTIPLYING.values(), ids=MULTIPLYING.keys())
def test_names_that_multiply_are_refused_before_they_are_written_out(small: Federation, sql: str) -> None:
    begun = time.thread_time()
    with pytest.raises(QueryInvalid, match=r"after output names are expanded|from all `\*`") as caught:
        plan(sql, small.tables, across_agreements=True)
    assert caught.value.code == "query_too_large"
    assert time.thread_time() - begun < 1


_WIDE = (TableColumn("id", "BIGINT"), *(TableColumn(f"c{number}", "DOUBLE") for number in range(399)))
WIDE = {(f"o{number}", "wide"): TableInfo(f"o{number}", "wide", _WIDE, rows=10) for number in range(14)}
LINEAR = {
    "shares written one by one": " UNION ALL ".join(f"SELECT * FROM {owner}.wide" for owner, _ in WIDE),
    "derived tables": "SELECT * FROM (" * 13
    + "SELECT * FROM o0.wide"
    + "".join(f") q{n} WHERE c1 > {n}" for n in range(13)),
    "conditions that there is a row": "SELECT id FROM o0.wide a WHERE "
    + " AND ".join(f"EXISTS (SELECT *, b.*, b.* FROM o1.wide b WHERE b.id = a.id + {n})" for n in range(60)),
}


@pytest.mark.parametrize("sql", LINEAR.values(), ids=LINEAR.keys())
def test_every_column_of_wide_datasets_may_be_asked_for_in_many_places(sql: str) -> None:
    assert plan(sql, WIDE).fragments


def _nested(levels: int) -> str:
    return f"SELECT k - k // 3 AS k FROM ({_nested(levels - 1)}) t{levels}" if levels else 'SELECT k FROM "all".visits'


_STEP = "SELECT id, k - (k // 3) AS k FROM w{0}"
STEPS = {
    "of a dataset of one owner": _chain("SELECT id, k FROM north.orders", 12, _STEP)
    + "SELECT w12.id, w12.k, i.s FROM w12 JOIN south.items i ON i.k = w12.k",
    "of shares": _chain('SELECT id, k FROM "all".visits', 12, _STEP)
    + "SELECT k, count(*) AS n FROM w12 WHERE k > 1 GROUP BY k",
    "nested": _nested(28),
}


@pytest.mark.parametrize("sql", STEPS.values(), ids=STEPS.keys())
def test_many_steps_that_each_name_a_column_twice_are_answered(small: Federation, sql: str) -> None:
    begun = time.thread_time()
    made = plan(sql, small.tables, across_agreements=True)
    assert time.thread_time() - begun < 5
    assert max(len(one.sql) for one in made.fragments) < DEFAULT.characters
    assert not wrong(small, sql)


LOST = [
    'SELECT coalesce(t.n, 1.25) AS v FROM (SELECT sum(k) AS n, f FROM "south".items GROUP BY f) t '
    "FULL JOIN north.people p ON p.id = t.n",
    'SELECT coalesce(sum(k), 0.5) AS v, count_if(f) // 2 AS n FROM "all".visits GROUP BY s',
    'SELECT sum(CASE WHEN f THEN 1 ELSE 0 END) / 2 AS v FROM "all".visits',
    'SELECT coalesce(max(t.n), 0.5) AS v FROM (SELECT sum(id) AS n FROM "all".cases GROUP BY d) t '
    "LEFT JOIN south.items i ON i.k = t.n GROUP BY i.f",
    "SELECT coalesce(t.n, 0.5) AS v "
    "FROM (SELECT sum(id) AS n FROM north.orders UNION ALL SELECT id FROM south.items) t",
]


@pytest.mark.parametrize("sql", LOST)
def test_types_that_arrow_does_not_carry_come_back(small: Federation, sql: str) -> None:
    assert not wrong(small, sql)


@pytest.fixture(scope="module")
def tpch_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tpch.generate(tmp_path_factory.mktemp("tpch"), scale=0.002)


@pytest.fixture(scope="module", params=["vertical", "horizontal"])
def owners_of_tpch(request: pytest.FixtureRequest, tpch_files: Path) -> Iterator[tuple[str, Federation]]:
    found = layout(request.param, tpch_files)
    yield request.param, found
    found.close()


@pytest.mark.parametrize("name", list(tpch.queries()))
def test_tpch_is_right_over_three_owners(owners_of_tpch: tuple[str, Federation], name: str) -> None:
    kind, federation = owners_of_tpch
    sql = written_for(kind, tpch.queries()[name])
    assert difference(federation.ask(sql).rows, federation.expected(sql)[1]) == ""


def test_full_pushdown_moves_far_less_than_filters_and_columns(owners_of_tpch: tuple[str, Federation]) -> None:
    kind, federation = owners_of_tpch
    names = ("q01", "q03", "q06", "q12", "q17", "q19")
    sqls = [written_for(kind, tpch.queries()[name]) for name in names]
    full = sum(federation.ask(sql).nbytes for sql in sqls)
    filtered = sum(federation.ask(sql, mode=Mode.FILTER).nbytes for sql in sqls)
    assert full * 5 < filtered


def test_planning_takes_little_time(owners_of_tpch: tuple[str, Federation]) -> None:
    kind, federation = owners_of_tpch
    sqls = [written_for(kind, sql) for sql in tpch.queries().values()]

    def spent(work: Callable[[str], object]) -> float:
        """Processor seconds of this thread, the best of three."""
        times = []
        for _ in range(3):
            begun = time.thread_time()
            for sql in sqls:
                work(sql)
            times.append(time.thread_time() - begun)
        return min(times)

    planning = spent(lambda sql: plan(sql, federation.tables, across_agreements=True))
    assert planning < RATIO * spent(lambda sql: sqlglot.parse_one(sql, dialect="duckdb"))


def test_shares_that_differ_in_their_owner_alone_are_written_once() -> None:
    sql = 'SELECT ward, count(*) AS n FROM "all".patients GROUP BY ward'
    with mock.patch.object(sql_text, "write", wraps=sql_text.write) as write:
        made = plan(sql, plan_cases.schema(), across_agreements=True)
    assert [one.owner for one in made.fragments] == ["north", "south", "west"]
    assert len({one.sql for one in made.fragments}) == 1
    assert write.call_count == 2  # their statement and the residual


def test_what_is_counted_by_the_row_is_asked_for_few_however_small_it_is() -> None:
    sql = "SELECT t.dose, v.cost FROM south.trials t, north.visits v WHERE v.patient = t.patient AND t.dose = 9"
    tables = dict(plan_cases.schema())
    tables["north", "visits"] = replace(tables["north", "visits"], rationed=True)
    for known, keys in ((plan_cases.schema(), []), (tables, ["keys_f0_1"])):
        _, visits = plan(sql, known, across_agreements=True).fragments
        assert [key.name for key in visits.keys] == keys


REFUSED = [
    (
        "SELECT age FROM north.census c JOIN north.drugs d ON d.drug = c.age",
        Denied,
        "aggregate_only",
        "cannot be joined",
    ),
    ('SELECT age, income FROM "all".census', Denied, "aggregate_only", "aggregates only"),
    ('SELECT max(income) FROM "all".census', Denied, "aggregate_only", "COUNT, SUM and AVG of income"),
    ('SELECT count(*) FROM "all".census WHERE income > 3', Denied, "aggregate_only", "by age, sex"),
    ('SELECT count(DISTINCT person) FROM "all".census', QueryInvalid, "column_unknown", "asked alone"),
    ("SELECT a.x FROM north.drugs a", QueryInvalid, "column_unknown", "x"),
    ("SELECT drug FROM north.drugs, south.trials", QueryInvalid, "column_unknown", "drug"),
    (
        "SELECT n FROM (SELECT d.drug, t.drug, dose AS n FROM north.drugs d JOIN south.trials t ON d.drug < t.drug "
        "ORDER BY drug LIMIT 2)",
        QueryInvalid,
        "column_unknown",
        "drug is in several sources; write table.drug",
    ),
    (
        "SELECT -dose AS drug, * FROM north.drugs FULL JOIN south.trials USING (drug) ORDER BY drug",
        QueryInvalid,
        "column_unknown",
        "expected one output of that name, got 2",
    ),
    (
        "SELECT d.drug FROM north.drugs d, (SELECT dose FROM south.trials t WHERE t.drug = d.drug) q",
        QueryInvalid,
        "column_unknown",
        "a derived table cannot use d; write the condition in ON or WHERE",
    ),
    (
        "SELECT drug IN (SELECT t.drug FROM south.trials t) AS tried, count(*) FROM north.drugs GROUP BY tried "
        "HAVING tried",
        QueryInvalid,
        "syntax_not_allowed",
        "compute it in a derived table",
    ),
    (
        "SELECT drug IN (SELECT t.drug FROM south.trials t) AS tried, count(*) FROM north.drugs GROUP BY tried "
        "ORDER BY tried IS NULL",
        QueryInvalid,
        "syntax_not_allowed",
        "compute it in a derived table",
    ),
    ("SELECT x.drug FROM north.drugs x, south.trials x", QueryInvalid, "name_taken", "give one of them an alias"),
    (
        "SELECT t, t.dose FROM south.trials t JOIN north.drugs d USING (drug)",
        QueryInvalid,
        "column_unknown",
        "no column t",
    ),
    ("SELECT dose AS t, t FROM south.trials t", QueryInvalid, "column_unknown", "t is also a table here"),
    ("SELECT dose AS t, t + 1 AS u FROM south.trials t", QueryInvalid, "column_unknown", "t is also a table here"),
    ("SELECT dose AS t FROM south.trials t WHERE CAST(t AS TEXT) > 'a'", QueryInvalid, "column_unknown", "a table"),
    (
        "SELECT q.t FROM (SELECT dose AS t FROM south.trials t QUALIFY rank() OVER (ORDER BY t) = 1) q",
        QueryInvalid,
        "column_unknown",
        "a table",
    ),
    (
        "SELECT u FROM (SELECT 1 AS t, t AS u FROM south.trials t ANTI JOIN (SELECT 1 AS t, 2 AS d) d ON dose = d) q",
        QueryInvalid,
        "column_unknown",
        "a table",
    ),
    (
        "SELECT q.t FROM (SELECT dose AS t FROM south.trials) q "
        "WHERE EXISTS (SELECT 1 FROM north.drugs t WHERE t IS NULL)",
        QueryInvalid,
        "column_unknown",
        "a table",
    ),
    (
        "SELECT drug FROM north.drugs WHERE EXISTS (SELECT 1 FROM south.trials a, south.trials b WHERE drug = 1)",
        QueryInvalid,
        "column_unknown",
        "drug is in several sources; write table.drug",
    ),
    (
        "SELECT a.drug AS drug, drug + 1 AS next FROM north.drugs a, south.trials b",
        QueryInvalid,
        "column_unknown",
        "drug is in several sources; write table.drug",
    ),
    (
        "SELECT drug FROM north.drugs d SEMI JOIN south.trials t USING (drug) WHERE t.dose > 1",
        QueryInvalid,
        "column_unknown",
        "t is the source of a SEMI or ANTI JOIN",
    ),
    (
        "SELECT drug, count(*) AS n FROM south.trials GROUP BY ALL HAVING dose > 1",
        QueryInvalid,
        "column_unknown",
        "dose is no output that GROUP BY ALL groups by",
    ),
    ("SELECT dose.mg FROM south.trials", QueryInvalid, "column_unknown", "a struct is read whole, not by its fields"),
    (
        "SELECT (SELECT max(t.dose) FROM south.trials t) AS most, most FROM north.drugs ORDER BY 2",
        QueryInvalid,
        "syntax_not_allowed",
        "most is a subquery, so other outputs cannot use its name",
    ),
    (
        "SELECT drug FROM north.drugs UNION SELECT drug FROM south.trials ORDER BY drugs.drug",
        QueryInvalid,
        "column_unknown",
        "expected a source in FROM (none), got drugs",
    ),
    (
        "SELECT name FROM north.drugs WHERE 1 IN (SELECT a.dose FROM south.trials a, south.trials b ORDER BY drug)",
        QueryInvalid,
        "column_unknown",
        "drug is in several sources; write table.drug",
    ),
    (
        "SELECT name FROM north.drugs UNION SELECT dose AS name FROM south.trials ORDER BY dose",
        QueryInvalid,
        "column_unknown",
        "no column dose can be read here; readable columns: name",
    ),
    (
        "SELECT drug AS d FROM north.drugs WHERE 1 IN (SELECT q.x FROM south.trials t, (SELECT dose AS x) q)",
        QueryInvalid,
        "column_unknown",
        "a derived table cannot use t; write the condition in ON or WHERE",
    ),
    (
        "SELECT t.drug FROM north.drugs t WHERE 1 IN (SELECT x FROM south.trials t, (SELECT t.drug AS x) q)",
        QueryInvalid,
        "column_unknown",
        "a derived table cannot use t; write the condition in ON or WHERE",
    ),
    (
        "SELECT drug FROM north.drugs t WHERE 1 IN (SELECT max(t.dose) FROM south.trials t HAVING t.drug > 1)",
        QueryInvalid,
        "column_unknown",
        "HAVING: drug is not in GROUP BY",
    ),
    (
        "SELECT 1 FROM north.makers drug, south.trials t JOIN north.drugs d ON d.maker = drug.maker",
        QueryInvalid,
        "column_unknown",
        "drug is also a column here; give the table another alias",
    ),
    (
        "SELECT (SELECT min(north.drugs) FROM north.drugs) FROM (SELECT dose AS drugs FROM south.trials) AS north",
        QueryInvalid,
        "column_unknown",
        "north.drugs is also a table here; give that table an alias",
    ),
    (
        'SELECT (SELECT min("all".visits) FROM "all".visits) FROM (SELECT dose AS visits FROM south.trials) AS "all"',
        QueryInvalid,
        "column_unknown",
        "all.visits is also a table here; give that table an alias",
    ),
    (
        "SELECT -price AS drug, Drug FROM north.drugs ORDER BY drug",
        QueryInvalid,
        "column_unknown",
        "ORDER BY drug: expected one output of that name, got 2; write table.drug, or its place",
    ),
    (
        "SELECT x.drug, y.Drug FROM north.drugs x LEFT JOIN south.trials y USING (drug) ORDER BY drug",
        QueryInvalid,
        "column_unknown",
        "ORDER BY drug: expected one output of that name, got 2; write table.drug, or its place",
    ),
    (
        "SELECT dose, (SELECT count(*) AS dose FROM north.drugs HAVING sum(dose) > 1) FROM south.trials",
        QueryInvalid,
        "syntax_not_allowed",
        "an aggregate in a subquery reads only columns of an outer query (dose); compute it in a derived table",
    ),
    (
        "SELECT (SELECT max(t.dose) FROM north.drugs) FROM south.trials t GROUP BY ALL",
        QueryInvalid,
        "syntax_not_allowed",
        "an aggregate in a subquery reads only columns of an outer query (dose); compute it in a derived table",
    ),
    (
        "SELECT 1 FROM north.drugs WHERE EXISTS (SELECT (SELECT max(t.dose)) FROM south.trials t WHERE t.dose > 9)",
        QueryInvalid,
        "syntax_not_allowed",
        "an aggregate in a subquery reads only columns of an outer query (dose); compute it in a derived table",
    ),
    (
        "SELECT price + 1 AS n FROM north.drugs GROUP BY price HAVING sum(drug) FILTER (WHERE n > 1) > 1",
        QueryInvalid,
        "column_unknown",
        "HAVING: an aggregate does not see the output n; name a column, or use a derived table",
    ),
    (
        "SELECT price + 1 AS n FROM north.drugs GROUP BY price HAVING sum(n) > 1",
        QueryInvalid,
        "column_unknown",
        "HAVING: an aggregate does not see the output n; name a column, or use a derived table",
    ),
    ("SELECT 1 JOIN north.drugs USING (drug)", QueryInvalid, "syntax_not_allowed", "JOIN follows a FROM"),
    ('SELECT 1 FROM "east".drugs', QueryInvalid, "agreement_missing", "negotiate an agreement"),
    ('SELECT 1 FROM "all".nothing', QueryInvalid, "agreement_missing", "no agreement in force covers a dataset"),
    (
        "SELECT 1 FROM north.drugs FULL JOIN south.trials USING (drug) JOIN north.drugs d USING (drug)",
        QueryInvalid,
        "syntax_not_allowed",
        "write ON",
    ),
    (
        "SELECT 1 FROM north.drugs, north.makers JOIN south.trials USING (drug)",
        QueryInvalid,
        "column_unknown",
        "a comma begins another FROM; write ON",
    ),
    (
        "SELECT drug FROM north.drugs JOIN south.trials USING (drug), north.drugs a JOIN south.trials b USING (drug)",
        QueryInvalid,
        "column_unknown",
        "drug is in several sources; write table.drug",
    ),
]


@pytest.mark.parametrize(("sql", "kind", "code", "words"), REFUSED, ids=[sql for sql, *_ in REFUSED])
def test_what_cannot_be_planned_is_refused_with_the_reason(
    sql: str, kind: type[ConnectorError], code: str, words: str
) -> None:
    with pytest.raises(kind) as refused:
        plan(sql, plan_cases.schema(), across_agreements=True)
    assert refused.value.code == code
    assert words in refused.value.message


def test_a_question_for_rows_of_one_aggregate_only_dataset_is_left_to_its_owner() -> None:
    made = plan("SELECT age, income FROM north.census", plan_cases.schema())
    assert [one.kind for one in made.fragments] == ["whole"]
    assert made.fragments[0].aggregate_only


def test_owners_whose_columns_have_different_types_are_no_union() -> None:
    tables = dict(plan_cases.schema())
    info = tables["south", "patients"]
    columns = tuple(replace(c, type="VARCHAR") if c.name == "age" else c for c in info.columns)
    tables["south", "patients"] = replace(info, columns=columns)
    with pytest.raises(QueryInvalid) as refused:
        plan('SELECT age FROM "all".patients', tables)
    assert refused.value.code == "schema_differs"
    assert "south: VARCHAR" in refused.value.message


def test_a_column_that_not_every_owner_shows_is_left_out_and_said_so() -> None:
    tables = dict(plan_cases.schema())
    info = tables["south", "patients"]
    tables["south", "patients"] = replace(info, columns=info.columns[:3])
    made = plan('SELECT * FROM "all".patients', tables)
    assert made.columns == ("id", "age", "ward")
    assert any("weight" in note.what for note in made.notes)


def test_fragments_of_several_agreements_are_made_only_where_owners_take_them() -> None:
    sql = "SELECT d.name, m.country FROM north.drugs d JOIN north.makers m ON m.maker = d.maker"
    apart = plan(sql, plan_cases.schema(), across_agreements=False)
    assert [one.datasets for one in apart.fragments] == [("drugs",), ("makers",)]
    together = plan(sql, plan_cases.schema(), across_agreements=True)
    assert [one.datasets for one in together.fragments] == [("drugs", "makers")]


def test_without_fragments_of_several_agreements_the_answer_is_the_same() -> None:
    owners, outcome = federation(across=False), Outcome()
    for seed in range(500, 530):
        check(owners, seed, outcome)
    owners.close()
    assert outcome.found == []
    assert outcome.ended["equal"] >= 25


def test_a_dataset_that_names_its_partners_is_joined_at_its_owner_with_no_other() -> None:
    sql = "SELECT d.name, m.country FROM north.drugs d JOIN north.makers m ON m.maker = d.maker"
    tables = dict(plan_cases.schema())
    for joins, expected in ((("makers",), 1), (("north.makers",), 1), (("other",), 2), ((), 2)):
        tables["north", "drugs"] = replace(plan_cases.schema()["north", "drugs"], joins=joins)
        assert len(plan(sql, tables, across_agreements=True).fragments) == expected, joins


def test_what_the_asker_knows_of_the_cut_lets_owners_join_their_shares() -> None:
    sql = 'SELECT p.ward, v.cost FROM "all".patients p JOIN "all".visits v ON v.patient = p.id'
    plain = {key: replace(info, partition=None) for key, info in plan_cases.schema().items()}
    assert {one.kind for one in plan(sql, plain, across_agreements=True).fragments} == {"scan"}
    known = DataLayout(cut=((("patients", "id"), ("visits", "patient")),)).apply_to(plain)
    assert {one.kind for one in plan(sql, known, across_agreements=True).fragments} == {"join"}


def test_a_table_of_the_query_around_is_not_called_as_a_struct_inside() -> None:
    """The engine takes its field there."""
    made = Federation("north")
    made.add("north", "o", pa.table({"k": [1], "f": [100]}))
    made.add("north", "i", pa.table({"k": [1], "a": [{"f": 7}]}))
    with pytest.raises(QueryInvalid, match="a is also a column here; give the table another alias"):
        made.ask("SELECT (SELECT max(a.f + i.k) FROM north.i) AS n FROM north.o a")
    assert made.ask("SELECT (SELECT max(x.f + i.k) FROM north.i) AS n FROM north.o x").rows == [(101,)]
    made.close()


FIELD_OF_A_NUMBER = [
    "SELECT t FROM north.o AS s WHERE (SELECT min(s.s + t) FROM north.o) > 0",
    "SELECT t FROM north.o AS s WHERE (SELECT min(s.s + u.t) FROM north.i AS u) > 0",
    "SELECT t FROM north.o AS s WHERE t IN (SELECT s.t FROM north.i u)",
    "SELECT t, (SELECT s.s FROM north.i LIMIT 1) AS one FROM north.o AS s",
    "SELECT t, (SELECT min(u.t) FILTER (WHERE s.s > 0) FROM north.i u) AS one FROM north.o AS s",
    "SELECT t FROM north.o AS s WHERE EXISTS (SELECT 1 FROM north.i u GROUP BY s.s)",
    "SELECT t FROM north.o AS s WHERE EXISTS (SELECT 1 FROM north.i u GROUP BY u.t HAVING min(s.s + u.t) > 0)",
    "SELECT t FROM north.o AS s WHERE EXISTS (SELECT u.t FROM north.i u ORDER BY s.s LIMIT 1)",
    "SELECT t FROM north.o AS s WHERE EXISTS (SELECT 1 FROM north.i u, north.i v WHERE s.s = u.t)",
    "SELECT t FROM north.o AS s WHERE EXISTS (SELECT 1 FROM north.i u JOIN north.i v ON s.s = v.t)",
]


@pytest.mark.parametrize("sql", FIELD_OF_A_NUMBER)
def test_an_outer_table_named_like_an_inner_number_is_refused_as_the_engine_does(sql: str) -> None:
    made = _make_number_tables()
    with pytest.raises(duckdb.BinderException):
        made.central.execute(sql)
    with pytest.raises(QueryInvalid, match="s is also a column here; give the table another alias"):
        made.ask(sql)
    made.close()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT t FROM north.o AS s WHERE EXISTS (SELECT 1 FROM north.i u WHERE s.s = u.t)",
        "SELECT t, (SELECT min(u.t) FROM north.i u WHERE s.s >= u.t) AS one FROM north.o AS s",
        "SELECT t FROM north.o AS s WHERE EXISTS (SELECT 1 FROM north.i u WHERE u.t IN (SELECT s.s FROM north.w))",
    ],
)
def test_an_outer_table_named_like_an_inner_number_is_read_in_where(sql: str) -> None:
    made = _make_number_tables()
    assert made.ask(sql).rows == made.central.execute(sql).fetchall() != []
    made.close()


def _make_number_tables() -> Federation:
    """Tables with a number `s`, and one without."""
    made = Federation("north")
    made.add("north", "o", pa.table({"t": [4], "s": [3]}))
    made.add("north", "i", pa.table({"t": [3], "s": [1]}))
    made.add("north", "w", pa.table({"x": [1]}))
    return made


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT (SELECT min(north.i + x.k) FROM north.i AS x) FROM north.o AS north (k, i)", [(101,)]),
        ("SELECT north.i FROM north.i, (SELECT 7 AS i) AS north", [(7,)]),
        ("SELECT (WITH w AS (SELECT max(north.i + f) AS m FROM north.o) SELECT m FROM w, north.i) "
         "FROM north.o AS north (k, i)",
         [(200,)]),
    ],
)  # fmt: skip
def test_a_source_may_have_the_name_of_an_owner(sql: str, rows: list[tuple[int]]) -> None:
    made = Federation("north")
    made.add("north", "o", pa.table({"k": [1], "f": [100]}))
    made.add("north", "i", pa.table({"k": [1]}))
    assert made.ask(sql).rows == rows
    made.unite()
    assert made.central.execute(sql).fetchall() == rows
    made.close()


NAMES = [
    ("SELECT Name, count(*), max(price) AS Top FROM north.drugs GROUP BY Name", ("Name", "count_star()", "Top")),
    ("SELECT * FROM north.makers", ("maker", "country")),
    ("SELECT price + 1 FROM north.drugs", ("price + 1",)),
    ("SELECT drug AS a, drug AS a FROM north.drugs", ("a", "a")),
]


@pytest.mark.parametrize(("sql", "names"), NAMES, ids=[sql for sql, _ in NAMES])
def test_outputs_are_called_as_they_were_written(sql: str, names: tuple[str, ...]) -> None:
    assert plan(sql, plan_cases.schema()).columns == names


PASSED = [
    ("SELECT name, count(*) AS n FROM north.drugs GROUP BY name ORDER BY n DESC, name LIMIT 3", True),
    ("SELECT Name FROM north.drugs", True),
    ("SELECT name FROM north.drugs ORDER BY price", False),  # the price does not leave
    ("SELECT drug AS a, drug AS a FROM north.drugs", False),
    ('SELECT ward FROM "all".patients', False),
]


@pytest.mark.parametrize(("sql", "passed"), PASSED, ids=[sql for sql, _ in PASSED])
def test_what_one_owner_answers_whole_is_passed_on(sql: str, passed: bool) -> None:
    assert plan(sql, plan_cases.schema()).passed is passed


@pytest.mark.parametrize(
    ("sql", "once", "twice"),
    [
        ("SELECT p.id FROM south.patients p JOIN north.visits v ON v.patient = p.id", 2, 0),
        ("SELECT v.day FROM north.visits v WHERE v.cost > (SELECT avg(w.cost) FROM west.visits w WHERE w.day = v.day)",
         2, 0),
        ("WITH v AS (SELECT v.patient, p.age FROM north.visits v JOIN south.patients p ON p.id = v.patient LIMIT 5) "
         "SELECT a.age FROM v a JOIN v b ON b.patient = a.patient", 0, 2),
    ],
)  # fmt: skip
def test_the_plan_knows_which_tables_are_read_in_one_place(sql: str, once: int, twice: int) -> None:
    found = plan(sql, plan_cases.schema())
    assert (len(found.once), len(found.tables.keys() - found.once)) == (once, twice)


def test_the_plan_in_words_says_what_runs_where_and_what_stays() -> None:
    made = plan(
        "SELECT d.name, sum(t.dose) AS s FROM north.drugs d JOIN south.trials t ON t.drug = d.drug "
        "WHERE d.price > 2 GROUP BY d.name ORDER BY s DESC LIMIT 5",
        plan_cases.schema(),
    )
    told = plan_text.text(made, actual=[{"fragment": "f0", "rows": 3, "bytes": 4000, "ms": 5}])
    for words in (
        "at north: scan of drugs",
        "filter d.price > 2",
        "at south: partial of trials",
        "partial SUM(t.dose)",
        "came 3 result rows, 4,000 bytes",
        "keys: drug from f1.drug",
        "two_owners",
    ):
        assert words in told
    machine = plan_text.to_json(made)
    assert [one["owner"] for one in machine["fragments"]] == ["south", "north"]


def test_the_plan_in_words_says_what_a_condition_on_bins_compares() -> None:
    tables = plan_cases.schema()
    census = tables["north", "census"]
    assert census.grid is not None
    binned = replace(census, grid=replace(census.grid, bins=(Dimension("age", 2.5),)))
    made = plan("SELECT age, count(*) AS n FROM north.census GROUP BY age", {**tables, ("north", "census"): binned})
    note = "age in bins of 2.5, each named by its lower edge: a condition on it compares that edge"
    assert f"    {note}" in plan_text.text(made).splitlines()
    assert [one["bins"] for one in plan_text.to_json(made)["fragments"]] == [[note]]


def test_the_docs_list_each_rule_by_its_file_in_the_order_of_the_rules() -> None:
    table = DOCS.read_text().split("| rule | what it does |")[1].split("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    placed = {one.name for one in pkgutil.iter_modules(placement.__path__)} - {"place"}
    after = listed.index("place") + 1
    assert [name for name in listed if name not in placed] == list(RULES)
    assert sorted(listed[after : after + len(placed)]) == sorted(placed)
    assert {path.stem for path in plan_cases.FOLDER.glob("*.sql")} == {*listed} - {"place"}


def test_the_plan_that_the_docs_show_is_the_one_that_is_made() -> None:
    made = plan(
        "SELECT d.name, sum(t.dose) AS s FROM north.drugs d JOIN south.trials t ON t.drug = d.drug "
        "WHERE d.price > 2 GROUP BY d.name ORDER BY s DESC LIMIT 5",
        plan_cases.schema(),
        across_agreements=True,
    )
    actual = [
        {"fragment": "f0", "rows": 50, "bytes": 1216, "ms": 31},
        {"fragment": "f1", "rows": 112, "bytes": 1792, "ms": 18},
    ]
    assert f"```\n{plan_text.text(made, actual=actual)}\n```" in DOCS.read_text()


def test_the_plan_is_a_picture_of_owners_keys_and_figures() -> None:
    made = plan(
        "SELECT d.name, sum(t.dose) AS s FROM north.drugs d JOIN south.trials t ON t.drug = d.drug "
        "WHERE d.price > 2 GROUP BY d.name",
        plan_cases.schema(),
    )
    told = plan_text.to_json(made)
    drawn = ElementTree.fromstring(told["svg"])
    words = " ".join(text for text in drawn.itertext())
    for word in ("north · drugs", "south · trials", "partial sums", "keys", "expected", "here: one answer"):
        assert word in words
    assert told["bytes_estimate"] > 0
    ran = plan_text.to_json(made, actual=[{"fragment": "f0", "rows": 3, "bytes": 4000, "ms": 5}])
    assert "came 3 result rows, 4 kB, 5 ms" in ran["svg"]


def test_planning_loads_neither_the_engine_nor_arrow() -> None:
    import subprocess

    code = (
        "import sys, connector.federation.coordinator, connector.management.queries;"
        "assert not {'duckdb', 'pyarrow', 'sqlglot'} & set(sys.modules);"
        "from connector.federation.planner.planner import plan;"
        "assert not {'duckdb', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
