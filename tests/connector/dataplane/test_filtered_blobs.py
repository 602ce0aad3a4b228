"""Reads of blobs under a row filter or a condition, as a client sees them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import duckdb
import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from connector.engine.pool.protocol import Job
from policies.model import Policy
from tests.support import gate, provider
from tests.support.gate import atom, mask
from tests.support.images import images, write
from tests.support.provider import OPEN, Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROWS = 250


def under(*constraints: Any, **more: Any) -> Policy:
    return gate.agreement(*constraints, action="odrl:use", **more)


FEW = atom("ds:row/id", "lt", "90")
WITHOUT = mask("null", "image")
EITHER = gate.either(atom("ds:row/id", "lt", "20"), atom("ds:row/note", "gt", "200"))
# The policy, the condition, and the same in plain DuckDB.
READS: dict[str, tuple[Policy, str, str]] = {
    "a filter": (under(FEW), "", "id < 90"),
    "a condition": (OPEN, "name LIKE '%7'", "name LIKE '%7'"),
    "both": (under(FEW), "note >= 30", "id < 90 AND note >= 30"),
    "an alternative": (under(EITHER), "", "id < 20 OR note > 200"),
    "an alternative and a condition": (under(EITHER), "id > 9", "(id < 20 OR note > 200) AND id > 9"),
    "another column masked": (under(FEW, duties=[mask("null", "name")]), "", "id < 90"),
    "the column looked at": (under(FEW), "image IS NOT NULL", "id < 90"),
    "the column masked": (under(FEW, duties=[WITHOUT]), "", "id < 90"),
    "no condition": (OPEN, "", "true"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    folder = tmp_path_factory.mktemp("images")
    async with provider.running(folder, rows=1000) as started:
        started.path = folder / "images.parquet"
        write(started.path, images(ROWS))
        yield started


@pytest.fixture
def jobs(running: Provider, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """What the workers are asked for."""
    seen: list[Job] = []
    run = running.pool.run
    monkeypatch.setattr(running.pool, "run", lambda job, **more: (seen.append(job), run(job, **more))[1])
    return seen


async def read(running: Provider, agreement: str, dataset: str = "images", **parameters: str) -> pa.Table:
    headers = {"authorization": f"Bearer {running.ticket(agreement)}"}
    async with httpx2.AsyncClient(base_url=running.url, headers=headers, timeout=30) as session:
        answer = await session.get(f"/data/v1/datasets/{dataset}/rows", params=parameters)
    assert answer.status_code == 200, answer.text
    with pa.ipc.open_stream(answer.content) as reader:
        return reader.read_all()


@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "by blocks"])
@pytest.mark.parametrize("name", READS)
async def test_what_leaves_is_what_the_policy_lets_out(
    running: Provider, jobs: list[Job], name: str, blocks: bool
) -> None:
    policy, where, condition = READS[name]
    agreement = await running.agree(policy, name="images", path=running.path)
    found = await read(
        running, agreement, **({"where": where} if where else {}), **({"blocks": "all"} if blocks else {})
    )
    whole = pq.read_table(running.path)
    hidden = {"the column masked": "image", "another column masked": "name"}.get(name, "")
    shown = ", ".join(f"NULL AS {one}" if one == hidden else one for one in whole.column_names)
    expected = duckdb.connect().sql(f"SELECT {shown} FROM whole WHERE {condition}")
    assert found.to_pylist() == expected.to_arrow_table().to_pylist()
    assert (" END AS " in jobs[-1].sql) is (where != "" and policy is not OPEN)  # it is NULL to the condition


async def test_a_column_asked_for_twice_comes_twice(running: Provider) -> None:
    agreement = await running.agree(under(FEW), name="images", path=running.path)
    found = await read(running, agreement, columns="image,image,id")
    expected = pq.read_table(running.path).slice(0, 90)
    assert found.num_columns == 3
    for at, name in enumerate(("image", "image", "id")):
        assert found.column(at).to_pylist() == expected[name].to_pylist()


async def test_names_that_the_engine_has_for_places_are_the_owner_s(running: Provider, tmp_path: Path) -> None:
    """The numbers in such a column lead to rows that the policy hides."""
    table = images(ROWS).append_column("file_row_number", [list(range(ROWS))[::-1]])
    write(tmp_path / "own.parquet", table)
    agreement = await running.agree(under(FEW), name="own", path=tmp_path / "own.parquet")
    for _ in range(2):
        found = await read(running, agreement, dataset="own")
        assert found.to_pylist() == table.slice(0, 90).to_pylist()


async def test_rows_that_many_values_choose_come_in_their_order(running: Provider, tmp_path: Path) -> None:
    """A cursor stands for all rows before it."""
    table = pa.table({"id": range(4000), "text": ["x" * 200] * 4000})
    pq.write_table(table, tmp_path / "many.parquet", row_group_size=30)
    wanted = [0, 1, 26, 96, 175, 258, 334, 1500, 1800, 2300, 2900, 3700, 3800, 3900]
    policy = under(atom("ds:row/id", "isAnyOf", *map(str, wanted)))
    agreement = await running.agree(policy, name="many", path=tmp_path / "many.parquet")
    for parameters in ({}, {"blocks": "all"}) * 4:
        found = await read(running, agreement, dataset="many", **parameters)
        assert found["id"].to_pylist() == wanted


async def test_the_few_rows_at_the_end_of_a_group_come_before_those_of_the_next(
    running: Provider, tmp_path: Path
) -> None:
    """The engine keeps few rows that come out of a join until there are more, also with one thread."""
    table = pa.table({"id": range(21_000), "k": [number % 100 for number in range(21_000)]})
    pq.write_table(table, tmp_path / "tails.parquet", row_group_size=2100)
    wanted = (51, 55, 57, 59, 61, 63, 67, 71)
    policy = under(atom("ds:row/k", "isAnyOf", *map(str, wanted)))
    agreement = await running.agree(policy, name="tails", path=tmp_path / "tails.parquet")
    for parameters in ({}, {"blocks": "all"}, {"where": f"k IN {wanted}"}):
        found = await read(running, agreement, dataset="tails", **parameters)
        assert found["id"].to_pylist() == [number for number in range(21_000) if number % 100 in wanted]


@pytest.mark.parametrize("name", ["note", "file_index"], ids=["alone", "beside a name of places"])
async def test_few_rows_that_many_values_choose_do_not_wait_until_many_have_passed(
    running: Provider, tmp_path: Path, name: str
) -> None:
    table = pa.table({"id": range(900), "kind": [one * one for one in range(900)], name: range(900)})
    with pq.ParquetWriter(tmp_path / "kinds.parquet", table.schema) as file:
        for group in (table.slice(0, 40), table.slice(40)):
            file.write_table(group)
    wanted = [3, 26, 30, 35, 96, 175, 258, 334, 500, 600, 700, 800]
    squares = [str(one * one) for one in wanted]
    policy = under(atom("ds:row/kind", "isAnyOf", *squares))
    agreement = await running.agree(policy, name=f"kinds-{name}", path=tmp_path / "kinds.parquet")
    for parameters in ({}, {"blocks": "all"}, {"where": f"kind IN ({', '.join(squares)})"}):
        found = await read(running, agreement, dataset=f"kinds-{name}", **parameters)
        assert found["id"].to_pylist() == wanted
