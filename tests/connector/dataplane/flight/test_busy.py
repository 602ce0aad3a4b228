"""Flight where no worker is free, or a dataset's files are not what they were: what is asked about says so, and never
that a dataset has no columns."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import adbc_driver_manager
import pyarrow as pa
import pyarrow.flight as fl
import pytest

from connector.dataplane import admission
from connector.dataplane.flight import flightsql
from connector.dataplane.flight.listener import FlightServer
from tests.support import data, flying, provider
from tests.support.flying import Flyer, flyer
from tests.support.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

SQL = 'SELECT count(*) AS n FROM "clinic".numbers'
PATH = fl.FlightDescriptor.for_path("clinic", "numbers")
STATED = fl.FlightDescriptor.for_command(flightsql.pack("CommandStatementQuery", [(1, SQL)]))
REFUSED = (fl.FlightUnavailableError, OSError, adbc_driver_manager.Error)  # the second of pyarrow's GetSchema
ENVELOPE = fl.FlightDescriptor.for_command(json.dumps({"sql": SQL}).encode())


@asynccontextmanager
async def all_taken(running: Provider, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[str]]:
    """No worker is free while the block runs; who has waited for one meanwhile."""
    turns, waited = running.pool._turns, list[str]()
    take = turns.take

    async def seen(consumer: str, **limit: Any) -> None:
        waited.append(consumer)
        await take(consumer, **limit)

    for _ in range(2):
        await take("others")
    monkeypatch.setattr(turns, "_wait_seconds", 0.2)
    monkeypatch.setattr(admission, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(turns, "take", seen)
    try:
        yield waited
    finally:
        for _ in range(2):
            turns.give_back("others")


def adbc(work: Callable[[Any], object]) -> Callable[[FlightServer, str], object]:
    def go(front: FlightServer, ticket: str) -> object:
        with flying.connect(front, ticket) as connection:
            return work(connection)

    return go


def arrow(work: Callable[[Flyer], object]) -> Callable[[FlightServer, str], object]:
    def go(front: FlightServer, ticket: str) -> object:
        with flyer(front, ticket) as client:
            return work(client)

    return go


def described(connection: Any) -> object:
    with connection.cursor() as cursor:
        return cursor.adbc_execute_schema(SQL)


ASKED = {
    "ListFlights": arrow(lambda client: list(client.client.list_flights(options=client.options))),
    "a path": arrow(lambda client: client.client.get_flight_info(PATH, client.options)),
    "a statement": arrow(lambda client: client.client.get_flight_info(STATED, client.options)),
    "an envelope": arrow(lambda client: client.client.get_flight_info(ENVELOPE, client.options)),
    "the schema of a path": arrow(lambda client: client.client.get_schema(PATH, client.options)),
    "a prepared statement": adbc(described),
    "all objects": adbc(lambda connection: connection.adbc_get_objects(depth="all").read_all()),
    "the schema of a table": adbc(lambda connection: connection.adbc_get_table_schema("numbers")),
}


@pytest.mark.parametrize("what", ASKED)
async def test_where_no_worker_is_free_that_is_said_and_waited_for_once(
    running: Provider, front: FlightServer, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running.reads, "_columns", type(running.reads._columns)())
    running.reads.plans._schemas.clear()
    ticket = running.ticket(await running.agree())
    async with all_taken(running, monkeypatch) as waited:
        with pytest.raises(REFUSED, match=r"queue_timeout: no worker .*; try again later.*(?i:unavail)"):
            await asyncio.to_thread(ASKED[what], front, ticket)
        assert waited == [provider.CONSUMER]


@pytest.mark.parametrize("what", ["ListFlights", "all objects", "the schema of a table"])
async def test_columns_that_were_told_before_need_no_worker(
    running: Provider, front: FlightServer, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await asyncio.to_thread(ASKED[what], front, running.ticket(await running.agree()))
    other = running.ticket(await running.agree())  # which shows the same
    async with all_taken(running, monkeypatch):
        assert await asyncio.to_thread(ASKED[what], front, other) == first


async def test_a_dataset_whose_file_has_gone_keeps_nobody_from_seeing_the_others(
    running: Provider, front: FlightServer, tmp_path: Path
) -> None:
    gone = data.parquet(tmp_path / "gone.parquet", 10)
    second = running.ticket(await running.agree(name="gone", path=gone))
    gone.unlink()
    ticket = running.ticket(await running.agree())

    def go() -> tuple[dict[str, int], Any]:
        with flying.connect(front, ticket, **{"adbc.flight.sql.rpc.call_header.hanse-ticket": second}) as connection:
            (catalog,) = connection.adbc_get_objects(depth="all").read_all().to_pylist()
            (schema,) = catalog["catalog_db_schemas"]
            found = {one["table_name"]: len(one["table_columns"]) for one in schema["db_schema_tables"]}
            with pytest.raises(adbc_driver_manager.Error, match=r"file_unavailable|version_changed"):
                _read(connection, 'SELECT * FROM "clinic".gone')
            return found, connection.adbc_get_table_schema("gone", db_schema_filter="clinic")

    found, schema = await asyncio.to_thread(go)
    assert found == {"gone": 0, "numbers": len(data.table().column_names)}
    assert schema == pa.schema([])


def _read(connection: Any, sql: str) -> pa.Table:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetch_arrow_table()
