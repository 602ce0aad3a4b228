"""Where the engine evaluates a condition of a consumer's: never on what is stored in a row that the policy hides.

Its time tells of such a row as well as an error does: where all conditions but the policy's hold for it, columns are
read that are not read otherwise, and by that an exact salary was found in fifty questions.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest

from connector.datasets.sources import arrow_ipc
from connector.engine.worker.read.duckdb_engine import _BELIEVED_LESS
from policies.enforce.gate import CallerTable
from tests.support import gate
from tests.support.gate import atom, either, exactly_one

ROWS = """
SELECT i AS id, i * 7 % 1000 AS salary, 'a note ' || i % 300 AS note, i * 0.5::DOUBLE AS weight,
    CASE WHEN i % 3 = 0 THEN 'DE' ELSE 'FR' END AS country, i % 3 AS grp, (i % 3)::DOUBLE AS f
  FROM range(30000) r(i)
"""
THEIRS = ("id", "salary", "note", "weight")  # the policy looks at none of these
FILTERS: dict[str, list[Any]] = {
    "eq": [atom("ds:row/country", "eq", "DE")],
    "neq": [atom("ds:row/country", "neq", "FR")],
    "range": [atom("ds:row/grp", "gteq", "0"), atom("ds:row/grp", "lt", "1")],
    "list": [atom("ds:row/country", "isAnyOf", "DE", "XX")],
    "none of": [atom("ds:row/country", "isNoneOf", "FR", "XX")],
    "float": [atom("ds:row/f", "lt", "0.5")],
    "list of floats": [atom("ds:row/f", "isAnyOf", "0", "7")],
    "or": [either(atom("ds:row/country", "eq", "DE"), atom("ds:row/grp", "lt", "1"))],
    "xone": [exactly_one(atom("ds:row/country", "eq", "DE"), atom("ds:row/f", "gt", "5"))],
}
QUESTIONS = [
    "select * from t where id = 5 and salary >= 7",
    "select id from t where id = 5 and salary >= 7 and note <> 'x'",
    "select id from t where id = 5 and salary >= 7 limit 1",
    "select id from t where id in (5, 7, 900) and note like 'a%'",
    "select id from t where note = 'a note 5' or weight < 0.25",
    "select id from t where salary is not null and weight between 1 and 2",
    "select count(*) from t where salary > 7 and weight < 20",
    "select country, max(salary) from t where id > 7 group by country having country <> 'x'",
    "select distinct note from t where salary > 7",
    "select id from t where salary > 7 order by weight desc limit 3",
    "select a.id from t a join t b on a.id = b.salary where a.salary = 7 and b.note > 'b'",
    "select a.id from t a left join t b on a.id = b.id and b.salary > 7 where a.weight > 3",
    "select a.id from t a, t b where a.id = b.id and a.salary + b.salary > 7",
    "select k.x from k join t on k.x = t.id and t.salary > 7",
    "select k.x from k where exists (select 1 from t where t.id = k.x and t.salary > 7)",
    "with c as (select * from t) select id from c where salary > 7",
    "with c as materialized (select * from t) select id from c where salary > 7 union all select id from c",
    "select id from (select id, salary as s from t) q where s > 7",
    "select x from t as q(x, y, z) where y > 7",
    "select id from t where salary > 7 union all select id from t where note < 'b'",
]
BARE = [
    "select * from t",
    "select id, note from t",
    "select note from t limit 3",
    "select count(*) from t",
]


GROUPS = [
    atom("ds:minGroupSize", "gteq", "5"),
    atom("ds:dimension/note", "eq", "exact"),
    atom("ds:dimension/salary", "eq", "exact"),
    atom("ds:measure/weight", "eq", "0..100"),
]
OF_GROUPS = [
    "select count(*) from t where note = 'a note 5' and salary >= 7",
    "select note, count(*), sum(weight) from t where salary = 7 group by note",
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gate.Bench]:
    made, file = gate.Bench(), tmp_path_factory.mktemp("plans") / "t.parquet"
    for setting, value in _BELIEVED_LESS.items():
        made.connection.execute(f"SET {setting} = {value}")
    made.connection.execute(f"COPY ({ROWS}) TO '{file}' (ROW_GROUP_SIZE 4096)")
    made.connection.execute(f"CREATE VIEW scanned AS FROM read_parquet('{file}')")
    made.connection.execute("CREATE TABLE brought AS SELECT i AS x FROM range(9) r(i)")
    rows = made.connection.table("scanned").to_arrow_table()
    with pa.ipc.new_file(file.with_suffix(".arrow"), rows.schema) as out:
        out.write_table(rows, 4096)
    arrow_ipc.attach(made.connection, "handed", [str(file.with_suffix(".arrow"))], {})
    yield made
    made.connection.close()


@pytest.mark.parametrize(("relation", "name"), list(itertools.product(("scanned", "handed"), FILTERS)))
def test_no_condition_is_evaluated_on_what_a_hidden_row_holds(bench: gate.Bench, relation: str, name: str) -> None:
    under(bench, relation, *FILTERS[name])
    for question in (*QUESTIONS, *BARE):
        raw = [text for text in beside_the_policy(bench, question) if mentions(text, THEIRS)]
        assert not raw, (question, raw)


@pytest.mark.parametrize("name", FILTERS)
def test_no_condition_on_groups_is_evaluated_on_what_a_hidden_row_holds(bench: gate.Bench, name: str) -> None:
    under(bench, "scanned", *FILTERS[name], *GROUPS)
    for question in OF_GROUPS:
        raw = [text for text in beside_the_policy(bench, question) if mentions(text, THEIRS)]
        assert not raw, (question, raw)


def test_conditions_on_groups_are_evaluated_on_the_cells_that_are_shown(bench: gate.Bench) -> None:
    """On the rows of a cell that is withheld their time would tell how large it is."""
    by_owner = [*GROUPS, atom("ds:entityKey", "eq", "id")]
    for constraints, question in itertools.product((GROUPS, by_owner), OF_GROUPS):
        under(bench, "scanned", *constraints)
        prepared = bench.prepare(question)
        found = bench.connection.execute(f"EXPLAIN (FORMAT json) {prepared.sql}", prepared.params).fetchone()
        assert found is not None
        straight = [list(_straight_below(one)) for one in _filtering(json.loads(found[1])[0], "a note 5", "salary = 7")]
        assert straight, question
        assert all("STREAMING_LIMIT" in names for names in straight), (question, straight)


def test_without_a_policy_conditions_are_seen_in_the_scan(bench: gate.Bench) -> None:
    """Else the test above would see nothing anywhere."""
    under(bench, "scanned")
    blind = [one for one in QUESTIONS if not any(mentions(text, THEIRS) for text in beside_the_policy(bench, one))]
    assert len(blind) <= 4


@pytest.mark.parametrize("name", ["eq", "list", "or", "xone"])
def test_columns_that_are_only_given_on_are_read_as_they_are(bench: gate.Bench, name: str) -> None:
    under(bench, "scanned", *FILTERS[name])
    assert all("END AS " not in bench.prepare(question).sql for question in BARE)
    assert '"weight" END AS "weight"' not in (sql := bench.prepare("select weight, id from t where id > 5").sql)
    assert '"id" END AS "id"' in sql


def under(bench: gate.Bench, relation: str, *constraints: Any) -> None:
    bench.datasets.clear()
    bench.add("clinic", "t", relation, gate.contract(gate.schema_of(bench.connection, "scanned"), *constraints))


def beside_the_policy(bench: gate.Bench, question: str) -> list[str]:
    """The conditions of each scan, and of all filters above it up to where rows are joined or put together."""
    prepared = bench.prepare(question, keys=[CallerTable("k", "brought", ("x",))])
    bench.recheck(prepared)
    found = bench.connection.execute(f"EXPLAIN (FORMAT json) {prepared.sql}", prepared.params).fetchone()
    assert found is not None
    return [text for root in json.loads(found[1]) for text in _conditions(root, ())]


def _conditions(node: dict[str, Any], above: Sequence[dict[str, Any]]) -> Iterator[str]:
    for child in node["children"]:
        yield from _conditions(child, (node, *above))
    if node["name"].strip() in ("READ_PARQUET", "PYTHON_ARROW_SCAN"):
        straight = itertools.takewhile(lambda one: one["name"] in ("FILTER", "PROJECTION"), above)
        for one in (node, *straight):
            for told in (one["extra_info"].get("Filters"), one["extra_info"].get("Expression")):
                yield _unguarded(" ".join(told) if isinstance(told, list) else str(told))


def _filtering(node: dict[str, Any], *conditions: str) -> Iterator[dict[str, Any]]:
    """The nodes of a plan that evaluate one of these."""
    told = " ".join(str(node["extra_info"].get(key)) for key in ("Filters", "Expression"))
    if any(one in told for one in conditions):
        yield node
    for child in node["children"]:
        yield from _filtering(child, *conditions)


def _straight_below(node: dict[str, Any]) -> Iterator[str]:
    """The names of the nodes below one, as far as each has one child."""
    while len(node["children"]) == 1:
        node = node["children"][0]
        yield node["name"].strip()


def _unguarded(text: str) -> str:
    """A condition without its texts, and without each CASE in it, from within."""
    text = re.sub(r"'[^']*'", "text", text)
    while (shorter := re.sub(r"\bCASE\b(?:(?!\bCASE\b).)*?\bEND\b", "guarded", text)) != text:
        text = shorter
    return text


def mentions(text: str, names: Sequence[str]) -> bool:
    return any(re.search(rf"\b{name}\b", text) for name in names)


OF_VALUES = [
    "select upper(note) as v from t",
    "select upper(note || 'x') as v from t",
    "select upper(y) as v from (select note as y from t) q",
    "with w as (select note as y from t where id > 7) select upper(y) as v from w",
    "select upper(note) as v from t as q(id, salary, note)",
    "select upper(id) as v from (select note as id from t) q",
    "select upper(id) as v from (select salary as id from t union all select note from t) q",
    "select note as y, upper(y) as v from t",
]


@pytest.mark.parametrize("name", ["eq", "list", "or", "xone"])
def test_no_function_is_computed_of_what_a_dictionary_has_beside(bench: gate.Bench, name: str) -> None:
    """The engine computes it once for each value of a row group's dictionary, hidden ones too, and a tower of functions
    over a long text takes a time that is seen over HTTP."""
    under(bench, "scanned", *FILTERS[name])
    assert {one for question in OF_VALUES for one in kinds_of_vectors(bench, question)} == {"FLAT_VECTOR"}


def test_without_a_policy_values_come_as_a_dictionary(bench: gate.Bench) -> None:
    under(bench, "scanned")
    assert "DICTIONARY_VECTOR" in kinds_of_vectors(bench, OF_VALUES[0])


EVEN = "select note, count(*) from t where salary > 7 or note between 'a' and 'b' group by note having max(id) > 3"
TWO = "select a.id from t a join t b on a.id = b.id where a.note in ('x', 'y') order by a.weight * 2 - a.salary"


@pytest.mark.parametrize(
    ("question", "even"),
    [
        (EVEN, True),
        (TWO, True),
        (EVEN.replace("salary > 7", "length(note) > 7"), False),
        (TWO.replace("a.weight * 2", "length(a.note)"), False),
        (EVEN.replace("max(id) > 3", "max((note > 'b') is null)"), False),
        (EVEN.replace("salary > 7", "(note > 'b') > (id > 1)"), False),
        (f"select n.note from ({EVEN}) n", False),
        (f"{EVEN} union all select note, 1 from t", False),
    ],
)
def test_what_takes_equal_time_for_each_value_is_done_with_values_as_they_lie(
    bench: gate.Bench, question: str, even: bool
) -> None:
    under(bench, "scanned", *FILTERS["eq"])
    assert ("THEN TRY(" not in bench.prepare(question).sql) is even


def kinds_of_vectors(bench: gate.Bench, question: str) -> set[str]:
    """As which the engine hands the argument of `upper` to it."""
    prepared = bench.prepare(question)
    assert "UPPER(" in prepared.sql
    asked = f"SELECT DISTINCT v FROM ({prepared.sql.replace('UPPER(', 'vector_type(')})"
    return {kind for (kind,) in bench.connection.execute(asked, prepared.params).fetchall()}
