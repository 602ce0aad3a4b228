"""Values of tens of megabytes: they come whole each time, for several at once too, or are refused in plain words."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio

from tests.support import provider
from tests.support.own_name import changed
from tests.support.provider import Provider

pytestmark = pytest.mark.asyncio(loop_scope="module")

MB, ROWS = 2**20, 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=10, memory_mb=320, temp_mb=256) as started:
        yield started


def blobs(size: int) -> pa.Array:
    return pa.array([bytes(size)] * ROWS, pa.binary())


def parquet(path: Path, values: pa.Array, **how: str) -> None:
    """A row group for each value. The first of a group is in its dictionary, as pyarrow writes them."""
    pq.write_table(pa.table({"v": values}), path, row_group_size=1, **{"compression": "zstd"} | how)


def arrow(path: Path, values: pa.Array) -> None:
    how = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path, pa.schema({"v": values.type}), options=how) as out:
        for one in range(ROWS):
            out.write_batch(pa.record_batch({"v": values.slice(one, 1)}))


def in_lists(size: int) -> pa.Array:
    return pa.ListArray.from_arrays(list(range(ROWS + 1)), blobs(size))


CASES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "stored": ("parquet", lambda path: parquet(path, blobs(48 * MB), compression="none")),
    "compressed": ("parquet", lambda path: parquet(path, blobs(48 * MB))),
    "lists": ("parquet", lambda path: parquet(path, in_lists(32 * MB))),
    "arrow": ("arrow_ipc", lambda path: arrow(path, blobs(32 * MB))),
}


async def ends(running: Provider, name: str, path: Path, kind: str) -> str:
    """How a read of all rows under a fresh agreement ends: the last words of what comes."""
    ticket = running.ticket(await running.agree(name=name, path=path, kind=kind))
    last = b""
    async with (
        httpx2.AsyncClient(base_url=running.url, timeout=120) as client,
        client.stream("GET", f"/data/v1/datasets/{name}/rows", headers={"Authorization": f"Bearer {ticket}"}) as came,
    ):
        async for piece in came.aiter_bytes():
            last = (last + piece)[-4096:]
    return last.decode(errors="replace")


@pytest.mark.parametrize("case", CASES)
async def test_large_values_come_each_time(
    running: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """On a machine of two processors, where a lone reader has both, and each of several has one."""
    monkeypatch.setattr("connector.dataplane.job_builder.os", changed(os, cpu_count=lambda: 2))
    kind, write = CASES[case]
    write(path := tmp_path / "large")
    alone = [await ends(running, case, path, kind) for _ in range(2)]
    together = await asyncio.gather(*(ends(running, case, path, kind) for _ in range(2)))
    assert [one for one in (*alone, *together) if f'"complete","rows":{ROWS},' not in one.replace(" ", "")] == []


async def test_rows_that_take_more_memory_than_there_is_are_refused_before_the_first(
    running: Provider, tmp_path: Path
) -> None:
    parquet(path := tmp_path / "larger", in_lists(96 * MB))
    refused = [await ends(running, "larger", path, "parquet") for _ in range(2)]
    assert all('"memory_limit"' in one and "ask for columns without large values" in one for one in refused)
