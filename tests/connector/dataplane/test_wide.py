"""Rows of more columns than the engine can hold pages of: they come whole, in parts, and as a policy leaves them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import duckdb
import httpx2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from policies.model import Policy
from tests.support import gate, provider, streamed
from tests.support.gate import atom, mask
from tests.support.provider import OPEN, Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

COLUMNS, ROWS, GROUP = 1_200, 24_000, 20_000
NAMES = ["id", *(f"g{number}" for number in range(1, COLUMNS))]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two row groups, the first with 80 kB for each column."""
    rows = np.arange(ROWS)
    columns = [pa.array(rows), *(pa.array((rows * number % 977).astype(np.float32)) for number in range(1, COLUMNS))]
    path = tmp_path_factory.mktemp("data") / "wide.parquet"
    table = pa.table(columns, names=NAMES)
    pq.write_table(table, path, row_group_size=GROUP, use_dictionary=False, compression="lz4")
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=10, memory_mb=128, temp_mb=256) as started:
        yield started


async def answer(running: Provider, path: Path, policy: Policy, name: str, **wanted: str) -> httpx2.Response:
    ticket = running.ticket(await running.agree(policy, name=name, path=path))
    async with httpx2.AsyncClient(base_url=running.url, timeout=120) as client:
        return await client.get(
            f"/data/v1/datasets/{name}/rows", params=wanted, headers={"Authorization": f"Bearer {ticket}"}
        )


async def read(running: Provider, path: Path, policy: Policy = OPEN, name: str = "wide", **wanted: str) -> pa.Table:
    came = await answer(running, path, policy, name, **wanted)
    assert came.status_code == 200, came.text[:200]
    found = streamed.parse(came.content)
    assert (found.end["status"], found.untrue()) == ("complete", "")
    return found.rows


def expected(path: Path, sql: str) -> pa.Table:
    with duckdb.connect() as con:
        con.read_parquet(str(path)).create_view("t")
        return con.sql(sql).to_arrow_table()


HIDDEN = gate.agreement(duties=(mask("null", *NAMES[100:1_100]),), action="odrl:use")
TEN = ", ".join(NAMES[5:1_000:100])
NULLS = ", ".join(f"NULL::FLOAT AS {name}" for name in NAMES[100:1_100])
CASES = {
    "whole": (OPEN, {}, "FROM t"),
    "ten columns": (OPEN, {"columns": TEN.replace(" ", "")}, f"SELECT {TEN} FROM t"),
    "a condition": (OPEN, {"where": "g7 > 970 AND id > 3"}, "FROM t WHERE g7 > 970 AND id > 3"),
    "a condition that nothing meets": (OPEN, {"where": "id < 0"}, "FROM t WHERE id < 0"),
    "blocks": (OPEN, {"blocks": "all"}, "FROM t"),
    "rows of blocks": (OPEN, {"blocks": "all", "where": "g7 > 970"}, "FROM t WHERE g7 > 970"),
    "a policy's rows": (gate.agreement(atom("ds:row/g9", "lt", "5"), action="odrl:use"), {}, "FROM t WHERE g9 < 5"),
    "a policy's masks": (HIDDEN, {}, f"SELECT * REPLACE ({NULLS}) FROM t"),
}


@pytest.mark.parametrize("case", CASES)
async def test_wide_rows_are_those_of_the_engine_alone(running: Provider, path: Path, case: str) -> None:
    policy, wanted, sql = CASES[case]
    assert streamed.unlike(await read(running, path, policy, **wanted), expected(path, sql)) == ""


@pytest.mark.parametrize(("temp_mb", "status"), [(108, 200), (64, 429)], ids=["for a row group", "for none"])
async def test_wide_rows_take_the_disk_of_a_row_group_and_leave_nothing_there(
    tmp_path: Path, path: Path, temp_mb: int, status: int
) -> None:
    async with provider.running(tmp_path, rows=10, memory_mb=128, temp_mb=temp_mb) as running:
        came = await answer(running, path, OPEN, "wide")
        assert came.status_code == status
        if status == 200:
            assert streamed.parse(came.content).end["rows"] == ROWS
        else:
            assert came.json()["code"] == "memory_limit"
        assert list((tmp_path / "work").rglob("aside/*")) == []


async def test_wide_rows_with_a_column_that_the_engine_has_for_their_number_come_as_they_stand(
    running: Provider, tmp_path: Path
) -> None:
    texts = [str(number) for number in range(40)]
    table = pa.table({"File_Row_Number": [number % 3 * 25 for number in range(40)]} | dict.fromkeys(NAMES, texts))
    pq.write_table(table, tmp_path / "own.parquet", row_group_size=10)
    assert (await read(running, tmp_path / "own.parquet", name="own")).to_pylist() == table.to_pylist()
