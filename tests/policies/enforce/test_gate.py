"""What `prepare` returns and refuses: names, columns, joins, templates, tables of the caller."""

from __future__ import annotations

import gc
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace

import pytest

from policies.enforce.gate import DEFAULT, CallerTable, GatedDataset, PreparedQuery, prepare
from policies.errors import QueryRefused
from policies.vocabulary.terms import expand
from tests.support import clinic, gate
from tests.support.gate import atom


@pytest.fixture(scope="module")
def bench() -> Iterator[gate.Bench]:
    made = clinic.bench()
    yield made
    made.connection.close()


def _one(*constraints: object, **extra: object) -> gate.Bench:
    made = gate.Bench()
    made.connection.execute("CREATE TABLE src_t AS SELECT i AS id, i % 3 AS g FROM range(9) r(i)")
    made.connection.execute("CREATE TABLE src_u AS SELECT i AS id FROM range(4) r(i)")
    contract = gate.contract(gate.schema_of(made.connection, "src_t"), *constraints)  # type: ignore[arg-type]  # rows of a table
    made.add("clinic", "t", "src_t", replace(contract, **extra))  # type: ignore[arg-type]  # the same
    made.add("clinic", "u", "src_u", gate.contract(gate.schema_of(made.connection, "src_u")))
    return made


def test_only_the_datasets_that_are_read_are_reported(bench: gate.Bench) -> None:
    prepared = bench.prepare("select p.id from people p, people q where p.id = q.id")
    assert [dataset.name for dataset in prepared.datasets] == [("clinic", "people")]
    assert prepared.names == ("src_people",)
    assert not prepared.aggregate
    assert prepared.min_group is None


def test_random_names_differ_from_query_to_query(bench: gate.Bench) -> None:
    first, second = (bench.prepare("with w as (select * from visits) select id from w") for _ in range(2))
    assert set(first.names).isdisjoint(set(second.names) - {"src_visits"})


WIDE = ", ".join(f"c{number:02}" for number in range(40))


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("select nope from t", "no column nope can be read here; readable columns: id, g"),
        ("select ssn from t", "no column ssn can be read here; readable columns: id, g"),
        ("select t.nope from t join u using (id)", "no column t.nope can be read here; readable columns: id, g"),
        ("select nope from t join u using (id)", "readable columns: id, g"),
        ("select nope from (select id as k from u) x", "readable columns: k"),
        ("select id from t union select id from u order by nope", "readable columns: id"),
        ("select x.id from t join u on true", "expected a source in FROM (t, u), got x"),
        (f"select nope from t as t({WIDE[:8]}), (select {', '.join(['1'] * 40)}) as w({WIDE})", "c29 and 10 more"),
        ("select nope", "readable columns: none"),
        ("select g.x from t", "g is a column; a struct is read whole, not by its fields"),
    ],
)
def test_a_column_that_is_not_there_or_hidden_is_refused_with_those_that_are(sql: str, says: str) -> None:
    made = _one()
    made.connection.execute("ALTER TABLE src_t ADD COLUMN ssn VARCHAR")
    shown = gate.contract(gate.schema_of(made.connection, "src_t"), atom("ds:columnDeny", "isNoneOf", "ssn"))
    made.datasets[0] = replace(made.datasets[0], contract=shown, position="r_random")
    with pytest.raises(QueryRefused) as refused:
        made.prepare(sql)
    assert refused.value.code == "column_unknown"
    assert says in str(refused.value)
    assert "r_random" not in str(refused.value)


def test_only_asked_columns_are_read(bench: gate.Bench) -> None:
    prepared = bench.prepare("select age from people where country = 'DE'")
    assert '"name"' not in prepared.sql
    assert "SHA256" not in prepared.sql
    assert prepared.params == {"p0": "DE", "p1": "FR"}


PEOPLE = ("id", "name", "phone", "country", "age", "salary", "joined", "note")
VISITS = ("id", "person_id", "ward", "remark", "code")


@pytest.mark.parametrize(
    ("sql", "columns"),
    [
        ("select * from people", PEOPLE),
        ("select p.*, 1 as one from people p", (*PEOPLE, "one")),
        ("select id, count(*), sum(age) s, age + 1 from people group by id, age", ("id", "COUNT(*)", "s", "age + 1")),
        ("select * from visits a join visits b using (id)", (*VISITS, *VISITS[1:])),
        ("select * from visits a join visits b using (id), visits c", (*VISITS, *VISITS[1:], *VISITS)),
        ("select * from visits c, visits a join visits b using (id)", (*VISITS, *VISITS, *VISITS[1:])),
        ("select * from visits v semi join people p on p.id = v.id", VISITS),
        ("select id as x from people union select id from visits", ("x",)),
        ("with w(a, b) as (select id, age from people) select * from w", ("a", "b")),
        ("select * from (select id, age from people) x(k)", ("k", "age")),
        ("select * from (select id, ID, age, id_1 from (select id, age id_1, age from people)) x",
         ("id", "ID_1", "age", "id_1_1")),
        ("with w(age) as (select id, age from people) select age_1, age from w order by all", ("age_1", "age")),
    ],
)  # fmt: skip
def test_the_columns_of_the_answer_are_known_before_it_runs(
    bench: gate.Bench, sql: str, columns: tuple[str, ...]
) -> None:
    prepared = bench.prepare(sql)
    assert prepared.columns == columns
    described = bench.connection.execute(prepared.sql, prepared.params).description
    assert len(described) == len(columns)


@pytest.mark.parametrize(
    ("sql", "people", "visits"),
    [
        ("select age as harmless from people", "age", None),
        ("select count(*) as x from people where name = 'a'", "name", None),
        ("select count(*) from people", "", None),
        ("select * from people", " ".join(PEOPLE), None),
        ("select p.*, v.ward w from people p join visits v on p.id = v.person_id", " ".join(PEOPLE), "person_id ward"),
        ("select 1 from people p join visits v using (id)", "id", "id"),
        ("select id from people p join visits v using (id)", "id", "id"),
        ("select v.ward from visits v semi join people p on p.phone = v.remark", "phone", "ward remark"),
        ("select k from (select age as k, name from people) x", "name age", None),
        ("with w(a) as (select age from people where salary > 1) select sum(a) from w", "age salary", None),
        ("select u.b from people as u(a, b)", "name", None),
        ("select u.a from people as u(a, b) where note = 'x'", "id note", None),
        ("select (select max(ward) from visits where person_id = p.id) from people p", "id", "person_id ward"),
        ("select 1 from people p where exists (select * from visits v where v.person_id = p.age)", "age", "person_id"),
        ("select id from people union select ward from visits order by 1", "id", "ward"),
        ("select 1 from people group by country having max(age) > 3 order by min(note)", "country age note", None),
        ("select AGE from people qualify row_number() over (partition by NAME order by id) = 1", "id name age", None),
        ("select a.age from people a, people b where a.name = b.note", "name age note", None),
        ("select distinct note as ward from people order by ward", "note", None),
        ("select id as salary from people order by salary", "id", None),
        ("select id as salary from people order by salary + 1", "id salary", None),
        ("select id from people where id in (select ward age from visits union select 1 order by age)", "id", "ward"),
        ("select id from people where (select 1 age from (select 1 one) m having max(age) > 3) = 1", "id age", None),
        ("select (select count(*) from visits v semi join people p on p.id = v.id join (select 1 as one) on note > 'a')"
         " from (select ward as note from visits) t", "id", "id ward"),
        ("select id from people p where exists (select 1 from (select 1) a semi join (select ward note from visits) v"
         " on true join (select 2 as two) b on note > 'a')", "id note", "ward"),
        ("select (select max(z) from visits semi join people on true join (select age as z) q on true) from people",
         "age", ""),
        ("select (select 1 as age from visits qualify max(age) over () > 3 limit 1) q from people", "age", ""),
        ("select age as id from people where exists (select *, code as age from visits where age > 3)", "age", "code"),
    ],
)  # fmt: skip
def test_of_each_dataset_it_is_told_which_of_its_own_columns_are_read(
    bench: gate.Bench, sql: str, people: str, visits: str | None
) -> None:
    told = {("clinic", "people"): tuple(people.split())}
    if visits is not None:
        told["clinic", "visits"] = tuple(visits.split())
    assert {name: tuple(sorted(read)) for name, read in bench.prepare(sql).read.items()} == {
        name: tuple(sorted(read)) for name, read in told.items()
    }


@pytest.mark.parametrize(
    "sql",
    [
        "select 1 as people, people from people",
        "select 1 as x, x from people as x(a, b, c)",
        "select age as x, count(x) from people as x group by age",
        "select age as x from people x order by x is null",
        "select age as x, max(age) from people x group by age having max(x) is not null",
        "select age as x from people x group by age having count(*) filter (where x is not null) > 0",
        "select age as x from people x qualify rank() over (order by x) = 1",
        "select age as x from people where exists (select 1 from visits as x(a) where x is not null)",
        "select x.age from people x where exists (select 1 as v, v from visits as v(a) where v.ward = x.name)",
        "select 1 as x from people x where exists "
        "(select max(age) from (select code as age, ward from visits) group by ward having cast(x as text) > '3')",
    ],
)
def test_a_table_is_read_as_a_column_under_no_name(bench: gate.Bench, sql: str) -> None:
    """The engine takes `x` for the table, before an output: all columns would leave, and none be told."""
    with pytest.raises(QueryRefused, match="is also a table here") as refused:
        bench.prepare(sql)
    assert refused.value.code == "column_unknown"


@pytest.mark.parametrize(
    "inside",
    [
        "select max(clinic.i) from clinic.i",
        "select max(k) from i where clinic.i > 7",
        "select max(x) from i, (select clinic.i as x) q",
    ],
)
def test_a_source_with_the_name_of_an_owner_has_no_column_named_like_its_table(inside: str) -> None:
    """The engine reads the rows of `clinic.i` as structs, unless that table has an alias."""
    made = gate.Bench()
    made.connection.execute("CREATE TABLE src_o AS SELECT 1 AS k, 100 AS i")
    made.connection.execute("CREATE TABLE src_i AS SELECT 5 AS k")
    for name in ("o", "i"):
        made.add("clinic", name, f"src_{name}", gate.contract(gate.schema_of(made.connection, f"src_{name}")))
    with pytest.raises(QueryRefused, match=r"clinic\.i is also a table here; give that table an alias") as refused:
        made.prepare(f"select ({inside}) from o clinic")
    assert refused.value.code == "column_unknown"
    prepared = made.prepare("select (select max(clinic.i) from clinic.i x) from o clinic")
    assert prepared.read == {("clinic", "o"): ("i",), ("clinic", "i"): ()}
    assert made.run(prepared) == [(100,)]
    made.connection.close()


@pytest.mark.parametrize(
    "sql",
    [
        "select age as x, name from people x order by x, name",
        "select country, count(*) as people from people group by country having people > 0",
        "select age from people as age order by age",
        "select age as v from people semi join visits v on v.id = people.id where v > 0",
        "select age from people x where exists (select count(*) as x from visits group by ward having x > 0)",
    ],
)
def test_an_output_may_be_called_as_a_table(bench: gate.Bench, sql: str) -> None:
    assert bench.ask(sql)


@pytest.mark.parametrize(
    "read",
    [
        "people p, (select age as z from visits v) q",
        "people p, (select p.age as z from visits v) q",
        "people p join (select id as i from visits) i on true left join (select age as z from visits v) q on true",
        "people p, (with w as (select age as z from visits v) select 1 as z union all select z from w) q",
        "(select age from people), (select z from (select (select age) as z from visits v)) q",
    ],
)
def test_a_derived_table_reads_nothing_of_what_stands_beside_it(bench: gate.Bench, read: str) -> None:
    """The engine takes the `age` of people there, and of the query around it the owner was told."""
    with pytest.raises(QueryRefused, match="a derived table cannot use") as refused:
        bench.prepare(f"select (select max(z) from {read}) from (select code as age from visits) p")
    assert refused.value.code == "column_unknown"


def test_a_table_of_the_query_around_is_not_called_as_a_column_inside() -> None:
    """Of a struct the engine takes its field there, and `o` would be told of in its place."""
    made = gate.Bench()
    made.connection.execute("CREATE TABLE src_o AS SELECT 1 AS k, 100 AS f")
    made.connection.execute("CREATE TABLE src_i AS SELECT 1 AS k, {'f': 7} AS a")
    for name in ("o", "i"):
        made.add("clinic", name, f"src_{name}", gate.contract(gate.schema_of(made.connection, f"src_{name}")))
    for inside in (
        "select max(a.f) from i",
        "select 1 from i where (select count(*) from (select 1 as one) where a.f = 7) = 1",
    ):
        with pytest.raises(QueryRefused, match="a is also a column here; give the table another alias"):
            made.prepare(f"select ({inside}) from o a, (select 1 as a) q where q.a = 1")
    assert made.ask("select (select max(x.f + i.k) from i) from o x") == [(101,)]
    made.connection.close()


def test_each_column_is_written_with_the_generated_name_of_its_source(bench: gate.Bench) -> None:
    """So the engine cannot look it up in another source."""
    sql = "select id, x.age from people x where exists (select max(code) from visits v where v.id = x.id)"
    found = re.fullmatch(
        r'SELECT ("t\w+")\."id", \1\."age" FROM \(.*\) AS \1 WHERE EXISTS'
        r'\(SELECT MAX\(("t\w+")\."code"\) .* AS \2 WHERE \2\."id" = \1\."id"\)',
        bench.prepare(sql).sql,
    )
    assert found is not None
    assert found[1] != found[2]


def test_a_key_of_order_by_keeps_the_output_that_the_engine_takes_for_it() -> None:
    """Of two outputs of a name, the engine takes the one whose spelling differs from the stored column."""
    made = gate.Bench()
    made.connection.execute("CREATE TABLE src_x AS SELECT * FROM (VALUES (1), (2)) q(k)")
    made.connection.execute("CREATE TABLE src_y AS SELECT * FROM (VALUES (2)) q(k)")
    for name in ("x", "y"):
        made.add("o", name, f"src_{name}", gate.contract(gate.schema_of(made.connection, f"src_{name}")))
    sql = "select x.k, y.{} from {}x x left join {}y y using (k) order by k desc nulls last"
    for spelled in ("K", "k"):
        plain = made.connection.execute(sql.format(spelled, "src_", "src_")).fetchall()
        assert made.ask(sql.format(spelled, "", "")) == plain
    made.connection.close()


def test_a_column_that_using_merges_twice_is_ambiguous(bench: gate.Bench) -> None:
    twice = "people a join people b using (id), people c join people d using (id)"
    with pytest.raises(QueryRefused, match="id is in several sources") as refused:
        bench.prepare(f"select id from {twice}")
    assert refused.value.code == "column_ambiguous"


def test_stars_that_multiply_columns_are_refused_in_little_time(bench: gate.Bench) -> None:
    steps = ", ".join(f"w{n + 1} as (select * from w{n} a cross join w{n} b)" for n in range(30))
    with pytest.raises(QueryRefused, match="expected at most 50000 columns") as refused:
        bench.prepare(f"with w0 as (select * from people), {steps} select 1 from w30")
    assert refused.value.code == "query_too_large"


@pytest.mark.parametrize(
    "having",
    [
        "having cast(x.id as text) > '3'",
        "group by x.ward having x.id > 3",
        "group by ward, x.code having id in (select 3)",
        "group by all having exists (select 1 from people y where y.id = x.id)",
    ],
)
def test_in_having_a_column_is_of_no_table_around_that_is_called_alike(bench: gate.Bench, having: str) -> None:
    """The engine takes the `id` of the one around for it, where rows are not grouped by it."""
    with pytest.raises(QueryRefused, match="HAVING: id is not in GROUP BY") as refused:
        bench.prepare(f"select name from people x where exists (select max(x.code) from visits x {having})")
    assert refused.value.code == "column_unknown"


@pytest.mark.parametrize(
    "asked",
    [
        "select x.id from visits x group by x.id having x.id > 3",
        "select id from visits x group by all having id > 3",
        "select id + 1 from visits x group by 1 having id + 1 > 3",
        "select id as a from visits x group by a having x.id > 3",
        "select id as a from visits x group by rollup (id) having x.id > 3",
        "select max(id) from visits x having count(*) filter (where id > 3) > 1 and sum(x.id) > 3",
        "select count(*) as id from visits x group by code having id > 3",
    ],
)
def test_what_rows_are_grouped_by_is_in_having_of_the_table_inside(bench: gate.Bench, asked: str) -> None:
    bench.prepare(f"select name from people x where id in ({asked})")


@pytest.mark.parametrize(
    "asked",
    [
        "select distinct * from visits where id < 9 offset 1",
        "select *, 7 as age from visits where age = 7",
        "select * from visits order by 2",
        "select *, sum(code) as age from visits group by all having age > 150",
        "select *, rank() over (order by id) as age from visits qualify age > 2",
    ],
)
def test_exists_with_a_star_asks_what_it_asks_without(bench: gate.Bench, asked: str) -> None:
    """`*` is left out where nothing else looks at it; what stands beside it stays."""
    assert len(bench.ask(f"select id from people where exists ({asked})")) == 400


def test_before_a_comma_no_table_is_called_as_a_struct_behind_it() -> None:
    """In ON, the engine takes the field of what is joined there."""
    made = gate.Bench()
    made.connection.execute("CREATE TABLE src_o AS SELECT 1 AS k, 100 AS f")
    made.connection.execute("CREATE TABLE src_i AS SELECT 1 AS k, {'f': 7} AS a")
    for name in ("o", "i"):
        made.add("north", name, f"src_{name}", gate.contract(gate.schema_of(made.connection, f"src_{name}")))
    with pytest.raises(QueryRefused, match="a is also a column here; give the table another alias"):
        made.prepare("select count(*) from o a, o x join i on i.k = a.f")
    with pytest.raises(QueryRefused, match="HAVING: f is not in GROUP BY"):
        made.prepare("select k from i where exists (select count(*) from o a having f > 3)")
    assert made.ask("select count(*) from o a, o x join i on i.k = x.k") == [(1,)]
    assert made.ask("select count(*) from o x join o a on true join i on i.k = a.k") == [(1,)]
    made.connection.close()


def test_a_query_without_from_may_group(bench: gate.Bench) -> None:
    assert len(bench.ask("select id from people where exists (select 1 group by 1)")) == 400


def test_names_that_callers_make_up_are_not_kept() -> None:
    made = gate.Bench()
    made.connection.execute(f"CREATE TABLE src AS SELECT {', '.join(f'{i} AS column_{i}' for i in range(300))}")
    made.add("clinic", "wide", "src", gate.contract(gate.schema_of(made.connection, "src")))
    made.prepare("select 1 from wide as w(a)")
    tracemalloc.start()
    try:
        for index in range(100):
            made.prepare(f"select 1 from wide as w(a{index})")
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("mode", ["purpose", "action", "residual"])
def test_the_contract_is_asked_before_the_query_runs(mode: str) -> None:
    made = _one(atom("odrl:purpose", "eq", "dpv:Marketing"))
    if mode == "residual":
        made.datasets[0] = replace(made.datasets[0], contract=replace(made.datasets[0].contract, residual=("/x y",)))
    codes = {"purpose": "purpose_not_agreed", "action": "action_not_agreed", "residual": "contract_undecided"}
    with pytest.raises(QueryRefused) as refused:
        prepare(
            "select id from t",
            made.datasets,
            action=expand("ds:stream") if mode == "action" else gate.QUERY,
            purpose=None,
            token=made.token,
            mask_key=gate.KEY,
        )
    assert refused.value.code == codes[mode]


def test_a_dataset_that_is_not_read_does_not_need_to_agree() -> None:
    made = _one(atom("odrl:purpose", "eq", "dpv:Marketing"))
    assert made.ask("select count(*) from u") == [(4,)]


JOINS = [
    ((), "select * from t, u", "join_not_agreed"),
    ((), "select * from t a, t b", "join_not_agreed"),
    ((), "select * from t where id in (select id from u)", "join_not_agreed"),
    ((), "select id from t union select id from u", "join_not_agreed"),
    ((), "with w as (select id from t) select count(*) from w a join w b on a.id = b.id", "join_not_agreed"),
    ((), "with w as (select * from t), v as (select * from w) select count(*) from v a, v b", "join_not_agreed"),
    ((), "with w as (select id from t) select id from w where id in (select id from w)", "join_not_agreed"),
    ((), "select * from (with w as (select id from t) select a.id from w a, w b) q", "join_not_agreed"),
    (("urn:clinic:u",), "with w as (select * from t) select count(*) from w a, w b, u", "join_not_agreed"),
    ((), "select id from t", None),
    ((), "with w as (select id from t) select id from w", None),
    (("urn:clinic:u", "urn:clinic:t"), "with w as (select * from t) select count(*) from w a, w b, u", None),
    (("urn:clinic:u",), "select count(*) from t, u", None),
    (("clinic.u",), "select count(*) from t, u", None),
    (("u",), "select count(*) from t, u", None),
    (("urn:clinic:u",), "select count(*) from t a, t b, u", "join_not_agreed"),
    (("urn:clinic:u", "urn:clinic:t"), "select count(*) from t a, t b, u", None),
    (("urn:other",), "select count(*) from t, u", "join_not_agreed"),
]


@pytest.mark.parametrize(("allowed", "sql", "code"), JOINS)
def test_a_dataset_is_joined_only_with_those_agreed(allowed: tuple[str, ...], sql: str, code: str | None) -> None:
    made = _one(joins=allowed)
    if code is None:
        assert made.ask(sql)
        return
    with pytest.raises(QueryRefused) as refused:
        made.ask(sql)
    assert refused.value.code == code


def test_keys_of_the_caller_can_be_joined_and_are_no_dataset() -> None:
    made = _one()
    made.connection.execute("CREATE TABLE keys_1 AS SELECT 2 AS k UNION ALL SELECT 5")
    keys = [CallerTable("keys", "keys_1", ("k",))]
    assert made.ask("select id from t where id in (select k from keys) order by id", keys=keys) == [(2,), (5,)]
    assert made.ask("select t.id from t semi join keys on t.id = keys.k order by 1", keys=keys) == [(2,), (5,)]
    with pytest.raises(QueryRefused) as refused:
        made.ask("select k from keys", keys=keys)
    assert refused.value.code == "dataset_missing"
    with pytest.raises(QueryRefused) as refused:
        _one(joins=()).ask("select t.id from t join keys on t.id = keys.k", keys=keys)
    assert refused.value.code == "join_not_agreed"


TEMPLATES = (
    "SELECT g, count(*) AS n FROM t WHERE id > ? GROUP BY g ORDER BY g",
    "select max(id) from t where g in (?, ?)",
)


@pytest.mark.parametrize(
    ("sql", "runs"),
    [
        ("select g, count(*) as n from t where id > 3 group by g order by g", True),
        ('SELECT "g", COUNT(*) AS N FROM T WHERE ID > -3 GROUP BY g ORDER BY g; -- mine', True),
        ("select max(id) from t where g in (1, 2)", True),
        ("select g, count(*) as n from t where id > 3 group by g order by g limit 5", False),
        ("select g, count(*) as n from t where id >= 3 group by g order by g", False),
        ("select g, count(*) as n from t where id > g group by g order by g", False),
        ("select g, count(*) as n from t where id > (select 3) group by g order by g", False),
        ("select max(id) from t where g in (1, 2, 3)", False),
        ("select * from t", False),
    ],
)
def test_only_approved_templates_run_where_any_are_named(sql: str, runs: bool) -> None:
    made = _one(templates=TEMPLATES)
    if runs:
        assert made.ask(sql) is not None
        return
    with pytest.raises(QueryRefused) as refused:
        made.ask(sql)
    assert refused.value.code == "template_not_agreed"
    assert TEMPLATES[0] in str(refused.value)


def test_a_table_of_the_callers_own_stands_for_no_dataset_of_an_approved_query() -> None:
    made = _one(templates=("SELECT t.id FROM t JOIN cohort ON t.id = cohort.id", TEMPLATES[1]))
    made.connection.execute("CREATE TABLE mine AS SELECT 2 AS id")
    with pytest.raises(QueryRefused) as refused:
        made.ask("SELECT t.id FROM t JOIN cohort ON t.id = cohort.id", keys=[CallerTable("cohort", "mine", ("id",))])
    assert refused.value.code == "template_not_agreed"
    assert made.ask("select max(id) from t where g in (1, 2)", keys=[CallerTable("cohort", "mine", ("id",))])


def test_an_unreadable_template_matches_nothing() -> None:
    made = _one(templates=("select ((",))
    with pytest.raises(QueryRefused, match="only approved queries"):
        made.ask("select * from t")


def test_caps_reach_the_parser(bench: gate.Bench) -> None:
    with pytest.raises(QueryRefused) as refused:
        prepare(
            "select id from people",
            bench.datasets,
            action=gate.QUERY,
            purpose=None,
            token=bench.token,
            mask_key=gate.KEY,
            caps=replace(DEFAULT, characters=5),
        )
    assert refused.value.code == "query_too_long"


def test_names_that_need_quotes_stay_names() -> None:
    made = gate.Bench()
    odd = 'a"b; drop'
    quoted = odd.replace('"', '""')
    made.connection.execute(f'CREATE TABLE "src_{quoted}" AS SELECT 1 AS "{quoted}", \'x\' AS "select", 2 AS "Größe"')
    contract = gate.contract(
        gate.schema_of(made.connection, f"src_{quoted}"),
        gate.Atom(gate.expand("ds:row/") + "select", "eq", (gate.Literal("x"),)),
    )
    made.datasets.append(GatedDataset(("an owner", odd), f"src_{odd}", contract))
    assert made.ask(f'select * from "an owner"."{quoted}"') == [(1, "x", 2)]
    assert made.ask(f'select "{quoted}" as k, größe from "{quoted}" where "select" = \'x\'') == [(1, 2)]


def test_dates_times_and_decimals_of_a_policy_are_bound_not_written(bench: gate.Bench) -> None:
    made = gate.Bench()
    made.connection.execute("CREATE TABLE src_t AS SELECT DATE '2026-01-01' AS d, 1.10::DECIMAL(9,2) AS p")
    contract = gate.contract(
        gate.schema_of(made.connection, "src_t"), atom("ds:row/d", "lteq", "2026-01-01"), atom("ds:row/p", "eq", "1.1")
    )
    made.add("clinic", "t", "src_t", contract)
    prepared = made.prepare("select p from t")
    assert "2026" not in prepared.sql
    assert prepared.params == {"p0": "2026-01-01", "p1": "1.1"}
    assert len(made.run(prepared)) == 1


@pytest.mark.parametrize(
    ("sql", "plain"),
    [
        ("select g, sum(id), avg(id) from t group by g", 2),
        ("select t.g, sum(t.id) as id from t join u on t.id = u.id group by t.g having sum(t.id) > 0", 2),
        ("select g from t group by g order by avg(id)", 1),
        ("select sum(id) from t", 0),  # one group needs no places
        ("select g, sum(id + 1), count(id), sum(distinct id), max(id) from t group by g", 0),
        ("select g + 1 as id, sum(id) from t group by g", 0),  # an output of that name may be meant
        ("select g, sum(n) from (select g, id * 2 as n from t) d group by g", 0),
        ("with d as (select g, id * 2 as n from t) select g, sum(n) from d group by g", 0),
        ("select g, (select sum(u.id) from u) from t group by g", 0),
    ],
)
def test_grouped_sums_take_the_values_of_tables_and_never_hide_an_error(sql: str, plain: int) -> None:
    prepared = _one().prepare(sql)
    assert prepared.sql.count("TRY(") == plain


STREAMS = {
    "select * from t": "",
    "select id, g as n from clinic.t where id > 1 and g + 1 < 9 limit 3": "",
    "select t.* from t": "",
    "select count(*) from t": "shape",
    "select sum(id) from t group by g": "shape",
    "select id + 1 as id from t": "shape",
    "select (select max(id) from t) as m": "shape",
    "select distinct g from t": "shape",
    "select id from t order by id": "shape",
    "select id from t limit 3 offset 1": "shape",
    "select row_number() over (order by id) as n from t": "shape",
    "select id from t qualify row_number() over (order by id) = 1": "shape",
    "select t.id from t join u using (id)": "shape",
    "select t.id from t, u": "shape",
    "select id from t where id in (select id from u)": "shape",
    "select id from t where exists (select 1 from u where u.id = t.id)": "shape",
    "select id from (select id from t) s": "shape",
    "with w as (select id from t) select id from w": "shape",
    "select id from t union all select id from t": "shape",
}


@pytest.mark.parametrize("sql", STREAMS)
def test_what_is_declared_a_stream_is_one(sql: str) -> None:
    """Else who may only stream would ask what he likes, and call it a stream."""
    made, stream = _one(), expand("ds:stream")
    made.datasets = [replace(one, contract=replace(one.contract, actions=(stream,))) for one in made.datasets]

    def prepared() -> PreparedQuery:
        return prepare(sql, made.datasets, action=stream, purpose=None, token=made.token, mask_key=gate.KEY)

    if STREAMS[sql]:
        with pytest.raises(QueryRefused) as refused:
            prepared()
        assert refused.value.code == "not_a_stream"
    else:
        made.run(prepared())


BARE = {
    "SELECT id, image FROM images": {"id", "image"},
    "SELECT * FROM images": {"id", "image", "thumb"},
    "SELECT * FROM images WHERE id > 3 LIMIT 4": {"image", "thumb"},
    'SELECT "IMAGE" FROM images WHERE id > 3': {"image"},
    "SELECT image, thumb FROM images WHERE thumb IS NULL": {"image"},
    "SELECT image, id AS thumb FROM images": {"image"},
    "SELECT image AS thumb, thumb AS image FROM images": set(),
    "SELECT * FROM (SELECT image, id FROM images WHERE id > 2) AS x WHERE id < 9": set(),
    "WITH x AS (SELECT image, id FROM images) SELECT image FROM x WHERE id < 9": set(),
    "SELECT DISTINCT image FROM images": set(),
    "SELECT image FROM images ORDER BY 1": set(),
    "SELECT image, count(*) FROM images GROUP BY image": set(),
    "SELECT image FROM images UNION SELECT thumb FROM images": set(),
    "SELECT max(image) FROM images": set(),
    "SELECT a.image FROM images AS a JOIN images AS b USING (image)": set(),
    "SELECT image FROM images WHERE image IN (SELECT thumb FROM images)": set(),
    "SELECT image, thumb FROM images WHERE (SELECT image) = thumb": set(),
    "SELECT image FROM images WHERE EXISTS (SELECT image)": set(),
    "SELECT image FROM images QUALIFY row_number() OVER (ORDER BY image) = 1": set(),
}


@pytest.mark.parametrize("sql", BARE)
def test_only_columns_that_a_stream_passes_on_stay_bare_in_hidden_rows(sql: str) -> None:
    """Nothing else in the answer may depend on the values of such a column."""
    made = gate.Bench()
    made.connection.execute(
        "CREATE TABLE src AS SELECT i AS id, i::VARCHAR::BLOB AS image, (9 - i)::VARCHAR::BLOB AS thumb "
        "FROM range(9) r(i)"
    )
    schema = gate.schema_of(made.connection, "src")
    made.add("clinic", "images", "src", gate.contract(schema, gate.atom("ds:row/id", "gteq", "0")))
    prepared = made.prepare(sql)
    guarded = {name for name in ("id", "image", "thumb") if f'END AS "{name}"' in prepared.sql}
    (read,) = prepared.read.values()
    assert set(read) - guarded == BARE[sql]
    before = made.connection.sql(prepared.sql, params=prepared.params or None).fetchall()
    for column in BARE[sql] - {"id"}:
        made.connection.execute(f"UPDATE src SET {column} = NULL")
    after = made.connection.sql(prepared.sql, params=prepared.params or None).fetchall()
    at = [number for number, name in enumerate(prepared.columns) if name.casefold() not in BARE[sql] - {"id"}]
    assert [[row[number] for number in at] for row in after] == [[row[number] for number in at] for row in before]
