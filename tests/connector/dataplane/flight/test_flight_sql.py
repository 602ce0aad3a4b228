"""Flight SQL as the ADBC driver speaks it, which is what notebooks and BI tools bring: nothing of ours there."""

from __future__ import annotations

import asyncio
import datetime
import threading
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import adbc_driver_manager
import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from connector import VERSION
from connector.dataplane.flight import flightsql, parameters, sqlinfo
from connector.dataplane.flight.listener import FlightServer
from connector.dataplane.http import schemas as request_schemas
from policies.sql.allowed_functions import SCALARS
from tests.support import data, flying, gate
from tests.support.beats import beats
from tests.support.flying import flyer
from tests.support.gate import atom
from tests.support.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

NUMBERS = '"clinic".numbers'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ticket(running: Provider) -> str:
    return running.ticket(await running.agree())


async def use(front: FlightServer, ticket: str, work: Callable[[Any], Any], **options: str) -> Any:
    """What `work` finds with a cursor of a fresh connection, in a thread."""

    def go() -> Any:
        with flying.connect(front, ticket, **options) as connection, connection.cursor() as cursor:
            return work(cursor)

    return await asyncio.to_thread(go)


async def test_a_query_comes_as_arrow_and_as_rows(front: FlightServer, ticket: str) -> None:
    def work(cursor: Any) -> tuple[pa.Table, list[Any]]:
        cursor.execute(f"SELECT id, name FROM {NUMBERS} WHERE id < 3 ORDER BY id")
        table = cursor.fetch_arrow_table()
        cursor.execute(f"SELECT count(*) FROM {NUMBERS} WHERE gap IS NULL")
        return table, cursor.fetchall()

    table, rows = await use(front, ticket, work)
    assert table.to_pylist() == [{"id": n, "name": f"name-{n}"} for n in range(3)]
    assert rows == [(data.ROWS // 10,)]


async def test_a_column_that_is_asked_for_twice_comes_twice(front: FlightServer, ticket: str) -> None:
    """The driver holds what comes against what it was told would come."""

    def work(cursor: Any) -> pa.Table:
        cursor.execute(f"SELECT id, id FROM {NUMBERS} WHERE id < 3")
        return cursor.fetch_arrow_table()

    table = await use(front, ticket, work)
    assert table.column_names == ["id", "id"]
    assert table.column(1).to_pylist() == [0, 1, 2]


BOUND = {
    "a number": ("gap = ?", (1,), 40_000),
    "text with quotes": ("name = ?", ("it's -- /* '",), 0),
    "text": ("name = ?", ("name-3",), 2062),
    "a date": ("day = ?", (datetime.date(1970, 1, 2),), 55),
    "a float": ("x < ?", (0.1,), 200),
    "a decimal": ("x < CAST(? AS DOUBLE)", (Decimal("0.10"),), 200),
    "a decimal beyond ten digits": ("x < CAST(? AS DOUBLE)", (Decimal("0.00000000004"),), 200),
    "a decimal of many digits": ("id < ?", (Decimal("12345678901234567890123456789"),), data.ROWS),
    "another one": ("id <> ?", (Decimal("12345678901234567890123456789"),), data.ROWS),
    "nothing": ("gap = ?", (None,), 0),
    "long texts of other letters": (f"name IN (?{', ?' * 15})", ("\u4e2d" * 2900,) * 16, 0),
    "a moment": ("CAST(day AS TIMESTAMP) <= ?", (datetime.datetime(1970, 1, 2),), 110),
    "several, in their order": ("id >= ? AND id < ? AND name <> ?", (10, 20, "name-11"), 9),
    "a negative one": ("id > ?", (-1,), data.ROWS),
}


@pytest.mark.parametrize("name", BOUND)
async def test_parameters_of_prepared_statements_are_values_and_nothing_else(
    front: FlightServer, ticket: str, name: str
) -> None:
    condition, values, expected = BOUND[name]

    def work(cursor: Any) -> Any:
        cursor.execute(f"SELECT count(*) FROM {NUMBERS} WHERE {condition} AND '?' <> ''", parameters=values)
        return cursor.fetchone()[0]

    assert await use(front, ticket, work) == expected


async def test_a_decimal_comes_back_as_it_was_bound(front: FlightServer, ticket: str) -> None:
    def work(cursor: Any) -> Any:
        cursor.execute(f"SELECT ? AS v FROM {NUMBERS} LIMIT 1", parameters=(Decimal("0.123456789012"),))
        return cursor.fetchone()[0]

    assert await use(front, ticket, work) == Decimal("0.123456789012")


async def test_a_decimal_that_the_engine_has_not_is_refused(front: FlightServer, ticket: str) -> None:
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="parameter_type: expected a decimal of at most 38"):
        await use(front, ticket, lambda cursor: cursor.execute(f"SELECT ? FROM {NUMBERS}", (Decimal(10) ** 60,)))


async def test_a_prepared_statement_runs_again_with_other_values(front: FlightServer, ticket: str) -> None:
    def work(cursor: Any) -> list[Any]:
        found = []
        for most in (5, 7):
            cursor.execute(f"SELECT count(*) FROM {NUMBERS} WHERE id < ?", parameters=(most,))
            found.append(cursor.fetchone()[0])
        return found

    assert await use(front, ticket, work) == [5, 7]


@pytest.mark.parametrize(
    ("sql", "name", "value"),
    [("SELECT 1", "1", 1), ("select 1 as x;", "x", 1), ('SELECT 42 AS "is it there"', "is it there", 42)],
)
async def test_a_client_may_ask_whether_its_connection_lives(
    running: Provider, front: FlightServer, ticket: str, sql: str, name: str, value: int
) -> None:
    """It reads nothing, so that nothing is counted."""

    def work(cursor: Any) -> tuple[pa.Table, pa.Table]:
        cursor.execute(sql)
        found = cursor.fetch_arrow_table()
        cursor.adbc_prepare(sql)
        cursor.execute(sql)
        return found, cursor.fetch_arrow_table()

    before = len(running.of_kind("ReadStarted"))
    expected = pa.table({name: pa.array([value], pa.int32())})
    assert await use(front, ticket, work) == (expected, expected)
    assert len(running.of_kind("ReadStarted")) == before


async def test_a_connection_whose_agreement_has_ended_does_not_live(running: Provider, front: FlightServer) -> None:
    agreement = await running.agree()
    ticket = running.ticket(agreement)
    await running.revoke(agreement, "consent withdrawn")
    with pytest.raises(adbc_driver_manager.Error, match="consent withdrawn"):
        await use(front, ticket, lambda cursor: cursor.execute("SELECT 1"))


async def test_long_texts_of_one_consumer_are_looked_at_in_a_few_threads(
    front: FlightServer, ticket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Statements with parameters, their handles, and envelopes: each took a tenth of a second of everybody."""
    seen: list[str] = []

    def noted(work: Callable[..., Any]) -> Callable[..., Any]:
        def go(*given: Any) -> Any:
            seen.append(threading.current_thread().name)
            return work(*given)

        return go

    monkeypatch.setattr(parameters, "bound", noted(parameters.bound))
    monkeypatch.setattr(parameters, "kinds", noted(parameters.kinds))
    monkeypatch.setattr(request_schemas, "parse_envelope", noted(request_schemas.parse_envelope))
    monkeypatch.setattr(flightsql, "unhandle", noted(flightsql.unhandle))
    sql = f"SELECT id FROM {NUMBERS} WHERE id IN (?{', 1' * 1000})"

    def go() -> None:
        with flyer(front, ticket) as client:
            client.info(sql=sql.replace("?", "1"))

    await use(front, ticket, lambda cursor: cursor.execute(sql, parameters=(1,)))
    await asyncio.to_thread(go)
    assert len(seen) >= 5
    assert threading.main_thread().name not in seen


REFUSED = {
    "a function": ("SELECT version()", "function_not_allowed"),
    "a sum of nothing": ("SELECT 1 + 1", "dataset_missing"),
    "constants from nowhere": ("SELECT 1 AS x UNION SELECT 2", "dataset_missing"),
    "a column that is not there": (f"SELECT nope FROM {NUMBERS}", "column_unknown"),
    "a dataset that is not agreed": ("SELECT * FROM other", "dataset_unknown"),
    "a file": ("SELECT * FROM read_parquet('/etc/passwd')", "not_allowed"),
    "a change": (f"DELETE FROM {NUMBERS}", "statement_not_allowed"),
    "two statements": (f"SELECT 1 FROM {NUMBERS}; SELECT 2", "one_statement"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_refused_statements_come_back_as_errors_of_the_driver_with_their_reason(
    running: Provider, front: FlightServer, ticket: str, name: str
) -> None:
    sql, code = REFUSED[name]
    before = len(running.of_kind("ReadRefused"))
    with pytest.raises(adbc_driver_manager.ProgrammingError, match=code) as caught:
        await use(front, ticket, lambda cursor: cursor.execute(sql))
    assert ".py" not in str(caught.value)
    assert len(running.of_kind("ReadRefused")) == before + 1


async def test_clients_are_told_of_which_types_parameters_are(front: FlightServer, ticket: str) -> None:
    """Arrow's JDBC driver sets none of a type that it does not know."""

    def work(cursor: Any) -> tuple[pa.Schema, list[Any]]:
        sql = f"SELECT id FROM {NUMBERS} WHERE id < ? AND name <> ? AND nullif(name, 'n') <> ? ORDER BY 1 LIMIT ?"
        schema = cursor.adbc_prepare(sql)
        cursor.execute(sql, (10, "n1", "n2", 2))
        return schema, cursor.fetchall()

    schema, rows = await use(front, ticket, work)
    assert schema.types == [pa.int64(), pa.string(), pa.null(), pa.int64()]
    assert len(rows) == 2


def prepared(cursor: Any) -> list[Any]:
    """The types of the parameters that are compared with a number and a date."""
    return list(cursor.adbc_prepare(f"SELECT name FROM {NUMBERS} WHERE id = ? AND day = ?").types)


async def revoked(running: Provider) -> str:
    agreement = await running.agree()
    await running.revoke(agreement, "enough")
    return running.ticket(agreement)


async def transferred_no_more(running: Provider) -> str:
    agreement = await running.agree()

    def work(tx: Any) -> None:
        tx.transfers.get(agreement.replace("agreement", "transfer")).generation += 1

    await running.store.write(work)
    return running.ticket(agreement)


async def ended(running: Provider) -> str:
    return running.ticket(await running.agree(gate.agreement(atom("odrl:dateTime", "lt", "2026-01-02T00:00:00Z"))))


async def another_purpose(running: Provider) -> str:
    research = "https://w3id.org/dpv#ResearchAndDevelopment"
    agreement = await running.agree(gate.agreement(atom("odrl:purpose", "eq", research)))
    return running.ticket(agreement, purpose="https://w3id.org/dpv#Marketing")


@pytest.mark.parametrize("given", [revoked, transferred_no_more, ended, another_purpose])
async def test_who_may_ask_nothing_is_told_no_types(
    front: FlightServer, running: Provider, given: Callable[[Provider], Awaitable[str]]
) -> None:
    assert await use(front, await given(running), prepared) == [pa.null(), pa.null()]


SHOWN = {
    "hashed": (gate.agreement(duties=[gate.mask("hash", "id")]), [pa.string(), pa.date32()]),
    "shortened": (gate.agreement(duties=[gate.mask("truncate", "id", "day", argument="4")]), [pa.string()] * 2),
}


@pytest.mark.parametrize("what", SHOWN)
async def test_the_types_of_columns_are_those_that_are_shown(front: FlightServer, running: Provider, what: str) -> None:
    policy, expected = SHOWN[what]
    assert await use(front, running.ticket(await running.agree(policy)), prepared) == expected


@pytest.mark.parametrize("what", SHOWN)
async def test_listed_columns_have_the_types_that_a_read_gives(
    front: FlightServer, running: Provider, what: str
) -> None:
    policy, _ = SHOWN[what]
    ticket = running.ticket(await running.agree(policy))

    def go() -> tuple[pa.Schema, pa.Schema]:
        with flyer(front, ticket) as client:
            (info,) = client.client.list_flights(options=client.options)
            with flying.connect(front, ticket) as connection, connection.cursor() as cursor:
                cursor.execute(f"SELECT id, day FROM {NUMBERS} LIMIT 1")
                return info.schema, cursor.fetch_arrow_table().schema

    listed, read = await asyncio.to_thread(go)
    assert [listed.field(name).type for name in read.names] == read.types


async def test_columns_of_one_name_that_are_numbers_in_every_dataset_are_numbers(
    front: FlightServer, running: Provider, ticket: str, tmp_path: Path
) -> None:
    """With several tickets: `id` of 64 bits in one, of 32 in the other."""
    pq.write_table(pa.table({"id": pa.array([1], pa.int32()), "day": ["a"]}), tmp_path / "few.parquet")
    other = running.ticket(await running.agree(name="few", path=tmp_path / "few.parquet"))
    further = {"adbc.flight.sql.rpc.call_header.hanse-ticket": other}
    assert await use(front, ticket, prepared, **further) == [pa.int64(), pa.null()]


async def test_several_rows_of_parameters_are_told_to_come_one_at_a_time(front: FlightServer, ticket: str) -> None:
    sql = f"SELECT id FROM {NUMBERS} WHERE id = ?"
    with pytest.raises(adbc_driver_manager.Error, match="one row of parameters at a time"):
        await use(front, ticket, lambda cursor: cursor.executemany(sql, [(1,), (2,)]))


async def test_a_text_that_is_bound_for_a_number_is_told(front: FlightServer, ticket: str) -> None:
    def work(cursor: Any) -> Any:
        cursor.execute(f"SELECT count(*) FROM {NUMBERS} WHERE id = ?", parameters=("a",))
        return cursor.fetchall()

    with pytest.raises(adbc_driver_manager.Error, match="one that is bound as a parameter"):
        await use(front, ticket, work)


async def test_a_parameter_that_is_not_bound_is_told(front: FlightServer, ticket: str) -> None:
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="parameters_unbound"):
        await use(front, ticket, lambda cursor: cursor.execute(f"SELECT id FROM {NUMBERS} WHERE id = ?"))


async def test_catalogue_calls_show_what_the_contract_shows(running: Provider, front: FlightServer) -> None:
    policy = gate.agreement(atom("ds:columnDeny", "isNoneOf", "x", "tags"), action="odrl:use")
    ticket = running.ticket(await running.agree(policy))

    def work(cursor: Any) -> tuple[Any, ...]:
        connection = cursor.connection
        return (
            connection.adbc_get_objects(depth="all").read_all().to_pylist(),
            connection.adbc_get_table_schema("numbers", db_schema_filter="clinic"),
            connection.adbc_get_table_types(),
            connection.adbc_get_objects(depth="tables", table_name_filter="other%").read_all().to_pylist(),
        )

    objects, schema, kinds, none = await use(front, ticket, work)
    (schemas,) = [one["catalog_db_schemas"] for one in objects]
    (table,) = schemas[0]["db_schema_tables"]
    assert (schemas[0]["db_schema_name"], table["table_name"], table["table_type"]) == ("clinic", "numbers", "TABLE")
    assert [one["column_name"] for one in table["table_columns"]] == ["id", "name", "day", "gap"]
    assert (schema.names, kinds) == (["id", "name", "day", "gap"], ["TABLE"])
    assert not any(one["db_schema_tables"] for found in none for one in found["catalog_db_schemas"])


async def test_an_aggregate_only_dataset_has_a_schema_and_answers_about_groups_only(
    running: Provider, front: FlightServer
) -> None:
    policy = gate.agreement(
        atom("ds:minGroupSize", "gteq", "3000"), atom("ds:dimension/gap", "eq", "exact"), action="odrl:use"
    )
    ticket = running.ticket(await running.agree(policy))

    def work(cursor: Any) -> tuple[Any, Any]:
        schema = cursor.connection.adbc_get_table_schema("numbers", db_schema_filter="clinic")
        cursor.execute(f"SELECT gap, count(*) AS n FROM {NUMBERS} GROUP BY gap")
        return schema, cursor.fetch_arrow_table()

    schema, table = await use(front, ticket, work)
    assert "gap" in schema.names
    assert set(table["gap"].to_pylist()) <= {0, 1, 2, 3, 4, None}

    def too_small(cursor: Any) -> None:
        cursor.execute(f"SELECT gap, count(*) AS n FROM {NUMBERS} WHERE gap = 77 GROUP BY gap")
        cursor.fetchall()

    with pytest.raises((adbc_driver_manager.Error, OSError, pa.ArrowException), match="min_group_size"):
        await use(front, ticket, too_small)


async def test_partitions_are_executed_by_somebody_else(front: FlightServer, ticket: str) -> None:
    def plan(cursor: Any) -> list[bytes]:
        partitions, schema = cursor.adbc_execute_partitions(f"SELECT id FROM {NUMBERS}")
        assert schema.names == ["id"]
        return list(partitions)

    partitions = await use(front, ticket, plan)
    rows = 0
    for partition in partitions:

        def read(cursor: Any, partition: bytes = partition) -> int:
            cursor.adbc_read_partition(partition)
            return int(cursor.fetch_arrow_table().num_rows)

        rows += await use(front, ticket, read)
    assert rows == data.ROWS


async def test_what_is_not_there_is_unimplemented_and_never_empty(front: FlightServer, ticket: str) -> None:
    def go() -> None:
        with flyer(front, ticket) as client:
            client.act("BeginTransaction", b"")

    with pytest.raises(NotImplementedError, match="unimplemented"):
        await asyncio.to_thread(go)


async def test_a_driver_is_told_who_answers(front: FlightServer, ticket: str) -> None:
    info = await use(front, ticket, lambda cursor: cursor.connection.adbc_get_info())  # asks GetSqlInfo
    assert info["driver_name"] == "ADBC Flight SQL Driver - Go"
    assert (info["vendor_name"], info["vendor_version"]) == ("Hanse", VERSION)


async def test_a_password_does_as_well_as_a_bearer_token(front: FlightServer, ticket: str) -> None:
    def go() -> int:
        with fl.connect(f"grpc+tcp://127.0.0.1:{front.port}") as client:
            header = client.authenticate_basic_token("token", ticket)
            return len(list(client.list_flights(options=fl.FlightCallOptions(headers=[header]))))

    assert await asyncio.to_thread(go) == 1


async def test_revocation_in_mid_stream_is_an_error_of_the_driver_at_once(
    running: Provider, front: FlightServer
) -> None:
    agreement = await running.agree()
    loop = asyncio.get_running_loop()
    begun: list[float] = []

    def work(cursor: Any) -> None:
        cursor.execute(f"SELECT a.id, b.x FROM {NUMBERS} a CROSS JOIN {NUMBERS} b")
        reader = cursor.fetch_record_batch()
        reader.read_next_batch()
        begun.append(clock())
        loop.call_soon_threadsafe(lambda: running.grants.stop(agreement_id=agreement, reason="consent withdrawn"))
        for _ in reader:
            pass

    async with beats() as clock:
        with pytest.raises((adbc_driver_manager.Error, OSError, pa.ArrowException), match="consent withdrawn"):
            await use(front, running.ticket(agreement), work)
        assert clock() - begun[0] < 3  # by itself the statement goes on and on


async def test_a_connection_that_is_open_for_longer_than_its_ticket_says_what_to_do(
    running: Provider, front: FlightServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreement = await running.agree()
    old, fresh = (running.ticket(agreement, seconds=seconds) for seconds in (600, 6000))

    def work(cursor: Any) -> list[Any]:
        cursor.execute(f"SELECT id FROM {NUMBERS} WHERE id = 7")
        return list(cursor.fetchall())

    def idle(cursor: Any) -> list[Any]:
        assert work(cursor) == [(7,)]
        monkeypatch.setattr(running.addresses, "clock", lambda: time.time() + 1000)
        return work(cursor)

    with pytest.raises(adbc_driver_manager.ProgrammingError) as told:
        await use(front, old, idle)
    assert "ticket_expired: the ticket has expired" in str(told.value)
    assert "GET /api/v1/transfers/{id}/address) and repeat the request with it, over Flight on a new connection" in str(
        told.value
    )
    assert await use(front, fresh, work) == [(7,)]
    again = {"adbc.flight.sql.rpc.call_header.authorization": f"Bearer {fresh}"}
    with pytest.raises(adbc_driver_manager.ProgrammingError, match="expected one header"):
        await use(front, fresh, work, **again)


# What `sqlinfo` says of statements, each of them asked.
SAID: dict[str, str] = {
    "515, 518": f"SELECT n.id AS it FROM {NUMBERS} AS n",
    "520": f"SELECT id FROM {NUMBERS} ORDER BY id % 3",
    "521": f"SELECT name FROM {NUMBERS} ORDER BY id",
    "522": f"SELECT count(*) FROM {NUMBERS} GROUP BY id % 2",
    "522, beyond": f"SELECT id, count(*) FROM {NUMBERS} GROUP BY id, name",
    "523": f"SELECT id FROM {NUMBERS} WHERE name LIKE 'a!%' ESCAPE '!'",
    "528": f"SELECT a.id FROM {NUMBERS} a FULL JOIN {NUMBERS} b ON a.id = b.id + 1",
    "538, comparisons": f"SELECT id FROM {NUMBERS} WHERE id = (SELECT max(id) FROM {NUMBERS})",
    "538, 539": f"SELECT id FROM {NUMBERS} a WHERE EXISTS (SELECT 1 FROM {NUMBERS} b WHERE b.id = a.id + 1)",
    "538, IN": f"SELECT id FROM {NUMBERS} WHERE id IN (SELECT id + 1 FROM {NUMBERS})",
    "540": f"SELECT id FROM {NUMBERS} UNION SELECT id + 1 FROM {NUMBERS}",
    "540, ALL": f"SELECT id FROM {NUMBERS} UNION ALL SELECT id + 1 FROM {NUMBERS}",
    "ANTI": f"SELECT a.id FROM {NUMBERS} a ANTI JOIN {NUMBERS} b ON a.id = b.id + 1",
    "ILIKE": f"SELECT id FROM {NUMBERS} WHERE name ILIKE 'N%'",
    "QUALIFY": f"SELECT id FROM {NUMBERS} QUALIFY row_number() OVER (ORDER BY id) < 3",
    "SEMI": f"SELECT a.id FROM {NUMBERS} a SEMI JOIN {NUMBERS} b ON a.id = b.id + 1",
}


@pytest.mark.parametrize("what", SAID)
async def test_what_is_said_of_statements_is_so(front: FlightServer, ticket: str, what: str) -> None:
    def work(cursor: Any) -> int:
        cursor.execute(SAID[what])
        return int(cursor.fetch_arrow_table().num_columns)

    assert await use(front, ticket, work) > 0


async def test_null_joined_is_null_and_comes_last(front: FlightServer, ticket: str) -> None:
    def work(cursor: Any) -> list[Any]:
        cursor.execute(f"SELECT 'a' || nullif(id, 1) FROM {NUMBERS} WHERE id < 3 ORDER BY 1")
        return [row[0] for row in cursor.fetchall()]

    assert await use(front, ticket, work) == ["a0", "a2", None]


async def test_functions_that_are_told_are_those_that_may_be_called() -> None:
    told = {one.lower() for one in (*sqlinfo.NUMERIC, *sqlinfo.STRING, *sqlinfo.SYSTEM, *sqlinfo.DATES)}
    assert told == {name for _, names in SCALARS.values() for name in names}
