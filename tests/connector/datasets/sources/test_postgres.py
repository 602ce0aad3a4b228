"""Tables of a real PostgreSQL as datasets: every type comes over exactly, or the column is refused by name."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import resource
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
import yaml

from connector.errors import Absent, ConnectorError, Invalid, SourceUnreadable, Unavailable, WrongState
from tests.support import postgres
from tests.support.owner import Owner, owning

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECRET = "canary-of-the-database"
UTC = dt.UTC
XML = '<?xml version="1.0" encoding="UTF-8"?><a/>'
ROW: dict[str, tuple[str, str, str, Any]] = {  # column: type, a literal, the type it becomes, its value
    "b": ("boolean", "true", "BOOLEAN", True),
    "i2": ("smallint", "-32768", "SMALLINT", -32768),
    "i4": ("integer", "2147483647", "INTEGER", 2147483647),
    "i8": ("bigint", "9223372036854775807", "BIGINT", 2**63 - 1),
    "f4": ("real", "0.1", "FLOAT", pytest.approx(0.1, rel=1e-7)),
    "f8": ("double precision", "0.1", "DOUBLE", 0.1),
    "nan": ("double precision", "'Infinity'", "DOUBLE", float("inf")),
    "n": ("numeric(38,10)", "1234567890123456789012345678.0123456789", "DECIMAL(38,10)",
          Decimal("1234567890123456789012345678.0123456789")),
    "n2": ("numeric(5,2)", "-0.10", "DECIMAL(5,2)", Decimal("-0.10")),
    "free": ("numeric", "1e-20", "VARCHAR", "0.00000000000000000001"),
    "t": ("text", "E'a \"quoted\", line\\r\\nand \\\\N ü 😀'", "VARCHAR", 'a "quoted", line\r\nand \\N ü 😀'),
    "empty": ("text", "''", "VARCHAR", ""),
    "marker": ("text", "E'\\\\N'", "VARCHAR", "\\N"),
    "v": ("varchar(10)", "'x'", "VARCHAR", "x"),
    "c": ("char(3)", "'x'", "VARCHAR", "x  "),
    "u": ("uuid", "'00000000-0000-0000-0000-0000000000ff'", "UUID", str(uuid.UUID(int=255))),
    "by": ("bytea", "'\\x00ff22'", "BLOB", b"\x00\xff\x22"),
    "d": ("date", "'1969-02-28'", "DATE", dt.date(1969, 2, 28)),
    "tm": ("time", "'23:59:59.999999'", "TIME", dt.time(23, 59, 59, 999999)),
    "ts": ("timestamp", "'2024-02-29 12:00:00.000001'", "TIMESTAMP", dt.datetime(2024, 2, 29, 12, 0, 0, 1)),
    "tz": ("timestamptz", "'2024-07-01 12:00:00+02'", "TIMESTAMP WITH TIME ZONE",
           dt.datetime(2024, 7, 1, 10, tzinfo=UTC)),
    "j": ("jsonb", "'{\"a\": [1, null]}'", "VARCHAR", '{"a": [1, null]}'),
    "e": ("mood", "'so, so'", "VARCHAR", "so, so"),
    "dom": ("positive", "7", "INTEGER", 7),
    "ai": ("integer[]", "'{1,NULL,3}'", "INTEGER[]", [1, None, 3]),
    "ac": ("char(5)[]", "ARRAY['ab', NULL, 'a,\"\\ ', '', 'NULL']", "VARCHAR[]",
           ["ab   ", None, 'a,"\\ ', "     ", "NULL "]),
    "ad": ("code[]", "'{ab}'", "VARCHAR[]", ["ab   "]),
    "at": ("text[]", "ARRAY['a,b', NULL, '', '\"', 'ü']", "VARCHAR[]", ["a,b", None, "", '"', "ü"]),
    "an": ("numeric(4,2)[]", "'{1.10,2.00}'", "DECIMAL(4,2)[]", [Decimal("1.10"), Decimal("2.00")]),
    "az": ("timestamptz[]", "ARRAY['2024-07-01 12:00:00+02'::timestamptz]", "TIMESTAMP WITH TIME ZONE[]",
           [dt.datetime(2024, 7, 1, 10, tzinfo=UTC)]),
    "ab": ("bytea[]", "ARRAY['\\x00ff'::bytea]", "BLOB[]", [b"\x00\xff"]),
    "none": ("integer[]", "'{}'", "INTEGER[]", []),
    "iv": ("interval", "'1 year 2 days 3.5 seconds'", "VARCHAR", "P1Y2DT3.5S"),
    "ip": ("inet", "'10.0.0.1/8'", "VARCHAR", "10.0.0.1/8"),
    "host": ("inet", "'10.0.0.1'", "VARCHAR", "10.0.0.1"),
    "hosts": ("inet[]", "'{10.0.0.1,NULL,::1,10.0.0.1/8}'", "VARCHAR[]", ["10.0.0.1", None, "::1", "10.0.0.1/8"]),
    "net": ("cidr", "'10.0.0.1/32'", "VARCHAR", "10.0.0.1/32"),
    "nets": ("cidr[]", "'{10.0.0.1/32,::/0}'", "VARCHAR[]", ["10.0.0.1/32", "::/0"]),
    "truths": ("boolean[]", "'{t,f}'", "BOOLEAN[]", [True, False]),
    "x": ("xml", f"'{XML}'", "VARCHAR", XML),
    "xs": ("xml[]", f"ARRAY['{XML}'::xml]", "VARCHAR[]", [XML]),
    "r": ("int4range", "'[1,5)'", "VARCHAR", "[1,5)"),
    'we"ird größe': ("integer", "1", "INTEGER", 1),
}  # fmt: skip


@pytest.fixture(scope="module")
def url(postgres_cluster: postgres.Cluster) -> Iterator[str]:
    with postgres_cluster.database() as made:
        plain = made.replace("postgresql+psycopg", "postgresql")
        run(plain, *PREPARED)
        yield plain


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(url: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    folder = tmp_path_factory.mktemp("registry")
    path = folder / "connections.yaml"
    path.touch(mode=0o600)
    databases = {
        "registry": {"url": url, "schemas": ["public", "other"]},
        "limited": {"url": url.replace("hanse@", "reader@")},
        "set": {"url": url.replace("hanse@", "set_apart@"), "schemas": ["public", "other"]},
        "gone": {"url": f"postgresql://reader:{SECRET}@127.0.0.1:9/none"},
    }
    path.write_text(yaml.safe_dump({"databases": databases}))
    async with owning(folder, path) as running:
        yield running


def run(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True) as con:
        for statement in statements:
            con.execute(statement.encode())


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("database", ["registry", "set"])
async def test_every_type_comes_over_exactly(url: str, owner: Owner, database: str) -> None:
    columns = ", ".join(f"{quoted(name)} {kind}" for name, (kind, _, _, _) in ROW.items())
    values = ", ".join(literal for _, literal, _, _ in ROW.values())
    run(
        url,
        "DROP TABLE IF EXISTS every",
        f"CREATE TABLE every ({columns})",
        f"INSERT INTO every VALUES ({values})",
        "INSERT INTO every DEFAULT VALUES",
        "GRANT SELECT ON every TO set_apart",
    )
    version = await owner.add(f"every_{database}", f"postgres://{database}/every")
    whole, nulls = (await owner.rows(version)).to_pylist()
    assert {column["name"]: column["type"] for column in version.schema} == {n: v[2] for n, v in ROW.items()}
    assert whole == {name: value for name, (_, _, _, value) in ROW.items()}
    assert nulls == dict.fromkeys(ROW)
    report = {column["name"]: column for column in version.source["report"]["columns"]}
    assert report["free"]["note"].startswith("a numeric without a fixed scale")
    assert report["tz"]["was"] == "timestamp with time zone"
    assert not list(owner.outside.drafts.iterdir())


PREPARED = (
    "CREATE TYPE mood AS ENUM ('good', 'so, so')",
    "CREATE DOMAIN positive AS integer CHECK (VALUE > 0)",
    "CREATE DOMAIN code AS char(5)",
    "CREATE SCHEMA other",
    "CREATE TABLE private (id integer)",
    'CREATE TABLE twice (id integer, "ID" integer)',
    "CREATE VIEW failing AS SELECT 1 / (i - i) AS n FROM generate_series(1, 2) i",
    "CREATE FUNCTION looking() RETURNS bigint LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT count(*) FROM twice); END'",
    "CREATE VIEW unqualified AS SELECT looking() AS n",
    f"CREATE FUNCTION raising() RETURNS integer LANGUAGE plpgsql AS 'BEGIN RAISE ''{SECRET}''; END'",
    "CREATE VIEW raised AS SELECT raising() AS n",
    f"CREATE FUNCTION raising(code text) RETURNS integer LANGUAGE plpgsql AS "
    f"'BEGIN RAISE EXCEPTION USING ERRCODE = code, MESSAGE = ''{SECRET}''; END'",
    "CREATE VIEW withheld AS SELECT raising('42501') AS n",
    "CREATE VIEW misnamed AS SELECT raising('42703') AS n",
    f"CREATE TABLE names AS SELECT '{SECRET}'::text AS person",
    "CREATE FUNCTION counted(p text) RETURNS bigint LANGUAGE plpgsql AS "
    "'DECLARE n bigint; BEGIN EXECUTE ''SELECT count(*) FROM public.\"'' || p || ''\"'' INTO n; RETURN n; END'",
    "CREATE VIEW built AS SELECT counted(person) AS n FROM names",
    "CREATE VIEW cast_to_role AS SELECT person::regrole AS n FROM names",
    "CREATE VIEW looked_up AS SELECT current_setting(person) AS n FROM names",
    "CREATE FUNCTION planned() RETURNS bigint LANGUAGE plpgsql IMMUTABLE AS "
    "'BEGIN RETURN (SELECT person::regclass::oid FROM public.names); END'",
    "CREATE VIEW of_the_plan AS SELECT planned() AS n",
    "CREATE FUNCTION kept_back() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    "REVOKE EXECUTE ON FUNCTION kept_back FROM public",
    "CREATE VIEW calling AS SELECT kept_back() AS n",
    "CREATE TABLE other.shut (n integer)",
    "CREATE TABLE guarded (n integer)",
    "ALTER TABLE guarded ENABLE ROW LEVEL SECURITY",
    "DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    "DO $$ BEGIN CREATE ROLE set_apart LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    "ALTER ROLE set_apart SET array_nulls = off",
    "ALTER ROLE set_apart SET bytea_output = escape",
    "ALTER ROLE set_apart SET datestyle = 'German'",
    "ALTER ROLE set_apart SET row_security = off",
    "GRANT SELECT ON calling, guarded, other.shut TO set_apart",
)
UNMAPPABLE = {  # type, a literal, and what the owner is told that it may be
    "infinite date": ("date", "'infinity'", "odd (infinity, dates before Christ)"),
    "infinite moment": ("timestamptz", "'-infinity'", "odd (infinity, times before Christ or after the year 294246)"),
    "before Christ": ("date", "'0044-03-15 BC'", "dates before Christ"),
    "far ahead": ("timestamp", "'294250-01-01'", "after the year 294246"),
    "a matrix": ("integer[]", "'{{1,2},{3,4}}'", "odd (arrays of several dimensions)"),
    "a matrix of text": ("text[]", "'{{a,b},{c,d}}'", "odd (arrays of several dimensions)"),
    "not a number": ("numeric(5,2)", "'NaN'", "odd (infinity, NaN)"),
    "the end of a day": ("time", "'24:00'", "odd (the time 24:00)"),
    "ends of days": ("time[]", "ARRAY['12:00'::time, '24:00'::time]", "odd (the time 24:00, arrays of several"),
}


@pytest.mark.parametrize("name", list(UNMAPPABLE))
async def test_a_value_without_an_exact_form_names_its_column(url: str, owner: Owner, name: str) -> None:
    kind, literal, told = UNMAPPABLE[name]
    table = "odd_" + name.replace(" ", "_").lower()
    run(url, f"CREATE TABLE {table} (fine integer, odd {kind})", f"INSERT INTO {table} VALUES (1, {literal})")
    with pytest.raises(SourceUnreadable) as raised:
        await owner.add(table, f"postgres://registry/public/{table}")
    assert (raised.value.code, raised.value.facts["columns"]) == ("value_unmappable", ["odd"])
    assert told in raised.value.message
    assert not list(owner.outside.drafts.iterdir())


async def test_a_free_numeric_gets_the_scale_that_its_owner_says_and_is_never_rounded(url: str, owner: Owner) -> None:
    run(url, "CREATE TABLE free (n numeric)", "INSERT INTO free VALUES (1.5), (2), (3.1400)")
    version = await owner.add("free", "postgres://registry/free", numeric_scale=2)
    assert (await owner.rows(version))["n"].to_pylist() == [Decimal("1.50"), Decimal("2.00"), Decimal("3.14")]
    told = "more than 37 digits before the point or the 1 after it of numeric_scale"
    with pytest.raises(SourceUnreadable, match=told) as raised:
        await owner.add("free1", "postgres://registry/free", numeric_scale=1)
    assert raised.value.facts["columns"] == ["n"]


@pytest.mark.parametrize("scale", [-2, 39])
async def test_a_scale_that_no_decimal_has_is_refused(owner: Owner, scale: int) -> None:
    with pytest.raises(Invalid, match="expected numeric_scale to be -1 to 38") as raised:
        await owner.add("scaled", "postgres://registry/free", numeric_scale=scale)
    assert raised.value.code == "option_invalid"


async def test_a_dataset_with_a_scale_of_before_it_was_checked_is_renewed_as_text(
    url: str, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(url, "CREATE TABLE scaled (n numeric)", "INSERT INTO scaled VALUES (1.50)")
    with monkeypatch.context() as before:
        before.setattr("connector.datasets.registry.check_options", lambda kind, given: None)
        await owner.add("scaled_before", "postgres://registry/scaled", numeric_scale=39)
    run(url, "INSERT INTO scaled VALUES (2)")
    _, version = await owner.registry.renew("scaled_before", "", by="test")
    assert (await owner.rows(version))["n"].to_pylist() == ["1.50", "2"]


async def test_a_new_version_is_a_new_snapshot_with_what_changed(url: str, owner: Owner) -> None:
    run(
        url, "CREATE TABLE t (id integer, x double precision)", "INSERT INTO t SELECT i, i FROM generate_series(1, 9) i"
    )
    first = await owner.add("t", "postgres://registry/t")
    run(url, "UPDATE t SET x = NULL WHERE id = 3", "INSERT INTO t VALUES (10, 10)")
    assert (await owner.rows(first)).num_rows == 9
    _, second = await owner.registry.renew("t", "", by="test")
    assert (await owner.rows(second)).num_rows == 10
    changes = second.source["changes"]
    assert changes["rows"] == {"before": 9, "after": 10}
    assert changes["columns"]["x"]["null_share"] == {"before": 0.0, "after": 0.1}
    run(url, "ALTER TABLE t ADD COLUMN y text, ALTER COLUMN id TYPE bigint")
    with pytest.raises(WrongState, match=r"id is BIGINT and was INTEGER; y \(VARCHAR\) is new"):
        await owner.registry.renew("t", "", by="test")


async def test_a_view_an_empty_table_and_one_of_200_columns_are_tables_too(url: str, owner: Owner) -> None:
    wide = ", ".join(f"c{number} integer" for number in range(200))
    run(
        url,
        "CREATE VIEW other.seen AS SELECT i AS id FROM generate_series(1, 5) i",
        "CREATE TABLE none (id integer, name text)",
        f"CREATE TABLE wide ({wide})",
        "INSERT INTO wide (c7) VALUES (7)",
    )
    seen = await owner.add("seen", "postgres://registry/other/seen")
    assert (await owner.rows(seen))["id"].to_pylist() == [1, 2, 3, 4, 5]
    none = await owner.add("none", "postgres://registry/none")
    assert (none.profile["rows"], [c["type"] for c in none.schema]) == (0, ["INTEGER", "VARCHAR"])
    wide_version = await owner.add("wide", "postgres://registry/wide")
    assert (await owner.rows(wide_version, "SELECT c7 FROM t"))["c7"].to_pylist() == [7]


async def test_an_owner_is_told_that_the_database_may_have_left_out_rows(url: str, owner: Owner) -> None:
    run(
        url,
        "CREATE TABLE wards AS SELECT i AS n FROM generate_series(1, 9) i",
        "CREATE POLICY few ON wards USING (n < 4)",
        "CREATE VIEW all_wards AS SELECT n FROM wards",
        "CREATE FUNCTION of_wards() RETURNS SETOF wards LANGUAGE plpgsql AS "
        "'BEGIN RETURN QUERY SELECT * FROM public.wards; END'",
        "CREATE VIEW made_wards AS SELECT generate_series(1, 9000) AS n UNION ALL SELECT n FROM of_wards()",
        "ALTER TABLE wards ENABLE ROW LEVEL SECURITY",
        "GRANT SELECT ON wards, all_wards, made_wards TO reader",
    )
    told = {}
    for path in ("limited/wards", "registry/wards", "limited/all_wards", "limited/made_wards", "registry/made_wards"):
        version = await owner.add(path.replace("/", "_"), f"postgres://{path}")
        told[path] = version.profile["rows"], "row-level" in version.source["report"].get("note", "")
    assert told == {
        "limited/wards": (3, True),
        "registry/wards": (9, False),
        "limited/all_wards": (9, False),
        "limited/made_wards": (9003, True),
        "registry/made_wards": (9009, False),
    }


ASKED_OF_P = (
    "LANGUAGE plpgsql STABLE AS 'BEGIN RETURN (SELECT tenant FROM public.p WHERE p.id = tenant_of.id); {0} END'"
)


@pytest.mark.parametrize("function", ["EXCEPTION WHEN OTHERS THEN RETURN NULL;", ""])
async def test_rows_are_those_that_policies_leave_whatever_a_function_makes_of_a_refusal(
    url: str, owner: Owner, function: str
) -> None:
    run(
        url,
        "DROP TABLE IF EXISTS p",
        "DROP FUNCTION IF EXISTS tenant_of CASCADE",
        "CREATE TABLE p AS SELECT * FROM (VALUES (1, 'a'), (2, 'b'), (3, 'a')) AS p (id, tenant)",
        "CREATE POLICY own ON p USING (tenant = 'a')",
        "ALTER TABLE p ENABLE ROW LEVEL SECURITY",
        f"CREATE FUNCTION tenant_of(id integer) RETURNS text {ASKED_OF_P.format(function)}",
        "CREATE VIEW tenants AS SELECT id, tenant_of(id) AS tenant FROM generate_series(1, 3) id",
        "GRANT SELECT ON p, tenants TO reader",
    )
    version = await owner.add(f"tenants_{len(function)}", "postgres://limited/tenants")
    assert (await owner.rows(version))["tenant"].to_pylist() == ["a", None, "a"]
    assert version.source["report"].get("note", "").startswith("row-level") is not bool(function)


REFUSED: dict[str, tuple[str, type[ConnectorError], str]] = {
    "no such table": ("postgres://registry/nothing", Absent, "not_found"),
    "a schema that nobody allowed": ("postgres://registry/pg_catalog/pg_authid", ConnectorError, "schema_not_allowed"),
    "a database that nobody knows": ("postgres://other/t", ConnectorError, "database_unknown"),
    "no table": ("postgres://registry/", ConnectorError, "bad_input"),
    "nobody there": ("postgres://gone/t", SourceUnreadable, "database_unreachable"),
    "not readable": ("postgres://limited/private", SourceUnreadable, "database_refused"),
    "a view that fails": ("postgres://registry/failing", SourceUnreadable, "view_failed"),
    "a view whose function names no schema": ("postgres://registry/unqualified", SourceUnreadable, "view_failed"),
    "a view that withholds": ("postgres://registry/withheld", SourceUnreadable, "database_refused"),
    "a view that names what is not there": ("postgres://registry/misnamed", SourceUnreadable, "view_failed"),
    "a view that builds a statement": ("postgres://registry/built", SourceUnreadable, "view_failed"),
    "a view of roles that are none": ("postgres://registry/cast_to_role", SourceUnreadable, "view_failed"),
    "a view of settings that are none": ("postgres://registry/looked_up", SourceUnreadable, "view_failed"),
    "a view that fails for its plan": ("postgres://registry/of_the_plan", SourceUnreadable, "view_failed"),
    "a view that raises": ("postgres://registry/raised", SourceUnreadable, "view_failed"),
    "names that differ in case": ("postgres://registry/twice", SourceUnreadable, "columns_repeated"),
    "a name that would be SQL": ('postgres://registry/t"; DROP TABLE private; --', Absent, "not_found"),
}


@pytest.mark.parametrize("name", list(REFUSED))
async def test_what_cannot_be_taken_is_refused_by_code_without_a_secret(
    owner: Owner, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level(logging.DEBUG)
    path, kind, code = REFUSED[name]
    with pytest.raises(kind) as raised:
        await owner.add("refused", path)
    kept = b"".join(part.read_bytes() for part in _database(owner.folder))
    assert raised.value.code == code
    told = f"{raised.value!r} {raised.value.problem()} {raised.value.private} {caplog.text}"
    assert SECRET not in told
    assert "127.0.0.1" not in told
    assert SECRET.encode() not in kept


async def test_a_view_whose_function_names_no_schema_is_told_what_to_do(owner: Owner) -> None:
    with pytest.raises(SourceUnreadable, match=r"42P01: UndefinedTable\); write the schema"):
        await owner.add("unqualified", "postgres://registry/unqualified")


LACKING = {  # what the server says that the role lacks
    "limited/private": "permission denied for table private",
    "set/calling": "permission denied for function kept_back",
    "set/other/shut": "permission denied for schema other",
    "set/guarded": 'query would be affected by row-level security policy for table "guarded"',
}


@pytest.mark.parametrize("path", list(LACKING))
async def test_an_owner_is_told_what_the_role_lacks(owner: Owner, path: str) -> None:
    with pytest.raises(SourceUnreadable, match=LACKING[path]) as raised:
        await owner.add("lacking", f"postgres://{path}")
    assert raised.value.code == "database_refused"


async def test_a_table_that_others_lock_is_told_as_that(
    url: str, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.datasets.sources.postgres._LOCK_SECONDS", 1)
    with psycopg.connect(url) as con:
        con.execute("LOCK TABLE private IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(SourceUnreadable, match="locked by others for the 1 seconds") as raised:
            await owner.add("locked", "postgres://registry/private")
    assert raised.value.code == "table_locked"


STOCKED = (  # 100 rows each
    "DROP TABLE IF EXISTS stock, parted CASCADE",
    "CREATE TABLE stock AS SELECT i AS n FROM generate_series(1, 100) i",
    "CREATE TABLE parted (y integer, n integer) PARTITION BY LIST (y)",
    "CREATE TABLE parted_2 PARTITION OF parted FOR VALUES IN (2)",
    "INSERT INTO parted SELECT 2, n FROM stock",
    "CREATE VIEW stock_over AS SELECT n FROM parted JOIN stock USING (n)",
    "CREATE MATERIALIZED VIEW kept AS SELECT n FROM stock",
)
RELOADED = "TRUNCATE {0}; INSERT INTO {0} SELECT 2, i FROM generate_series(1, 50) i"
REPLACED = {  # what is registered, what others do to it meanwhile, and the rows that are there then
    "a table": ("stock", "TRUNCATE stock; INSERT INTO stock SELECT i FROM generate_series(1, 50) i", 50),
    "a table with one column more": ("stock", "ALTER TABLE stock ADD at timestamptz DEFAULT clock_timestamp()", 100),
    "a table with partitions": ("parted", RELOADED.format("parted_2"), 50),
    "a view": ("stock_over", RELOADED.format("parted_2"), 50),
    "a view that is refreshed": ("kept", "DELETE FROM stock WHERE n > 50; REFRESH MATERIALIZED VIEW kept", 50),
}  # fmt: skip


@pytest.mark.parametrize("name", list(REPLACED))
async def test_what_is_replaced_while_a_registration_waits_for_it_is_read_as_it_is_then(
    url: str, owner: Owner, name: str
) -> None:
    path, replacing, rows = REPLACED[name]
    run(url, *STOCKED)
    with psycopg.connect(url) as con:
        con.execute(replacing.encode())
        work = asyncio.ensure_future(owner.add(name.replace(" ", "_"), f"postgres://registry/{path}"))
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hanse' AND wait_event_type = 'Lock'"
        async with asyncio.timeout(60):
            while not _asked(url, waiting):
                await asyncio.sleep(0.02)
    assert (await work).profile["rows"] == rows


async def test_a_table_that_is_reloaded_again_and_again_has_all_its_rows_each_time(url: str, owner: Owner) -> None:
    run(url, *STOCKED)
    done = threading.Event()

    def reload() -> None:
        with psycopg.connect(url, autocommit=True) as con:
            while not done.is_set():
                con.execute(
                    "BEGIN; TRUNCATE stock; INSERT INTO stock SELECT generate_series(1, 100); "
                    "SELECT pg_catalog.pg_sleep(0.1); COMMIT"
                )

    reloading = asyncio.ensure_future(asyncio.to_thread(reload))
    try:
        found = [await owner.add(f"reloaded_{number}", "postgres://registry/stock") for number in range(6)]
    finally:
        done.set()
        await reloading
    assert [version.profile["rows"] for version in found] == [100] * 6


async def test_a_draft_for_which_there_is_no_room_is_told_as_that_and_gone(url: str, owner: Owner) -> None:
    run(url, "CREATE TABLE large AS SELECT repeat('x', 1000) AS t FROM generate_series(1, 40000)")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 2**20, before[1]))
    try:
        with pytest.raises(Unavailable, match="make room on the disk") as raised:
            await owner.add("large", "postgres://registry/large")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (raised.value.code, _drafts(owner)) == ("disk_full", [])


def _asked(url: str, question: str) -> Any:
    with psycopg.connect(url) as con:
        return (con.execute(question.encode()).fetchone() or (None,))[0]


def _database(folder: Path) -> list[Path]:
    return list(folder.glob("owner.db*"))


async def test_a_cancelled_snapshot_leaves_nothing(url: str, owner: Owner) -> None:
    run(url, "CREATE VIEW endless AS SELECT generate_series(1, 1000000000) AS i")
    work = asyncio.ensure_future(owner.add("endless", "postgres://registry/endless"))
    async with asyncio.timeout(60):
        while not any(part.stat().st_size for part in _drafts(owner)):
            await asyncio.sleep(0.02)
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await work
    assert not _drafts(owner)
    with psycopg.connect(url, autocommit=True) as con:  # inside one transaction the view does not change
        asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'hanse' AND state <> 'idle'"
        async with asyncio.timeout(60):
            while (con.execute(asked).fetchone() or (1,))[0]:
                await asyncio.sleep(0.05)


def _drafts(owner: Owner) -> list[Path]:
    return list(owner.outside.drafts.glob("*"))
