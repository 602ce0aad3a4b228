"""The fast way gives what the engine gives, row for row, and is taken only where it is faster."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.query import scan
from connector.query.job import Job, Relation
from connector.query.pool import Pool
from tests.support import data

ROWS = 20_000
NUMBERS = np.random.default_rng(1).random((20, ROWS), np.float32)
FLOATS = pa.table({"id": np.arange(ROWS)} | {f"f{number}": column for number, column in enumerate(NUMBERS)})
IMAGES = pa.table(
    {
        "name": [f"image-{n}" for n in range(300)],
        "image": pa.array([bytes([n % 256]) * (20_000 + 97 * n) for n in range(300)], pa.binary()),
    }
)
TEXT = data.table(1000)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("table", [FLOATS, IMAGES, TEXT], ids=["floats", "images", "text"])
async def test_both_ways_give_the_same_rows_and_schema(pool: Pool, tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=5000)
    relation: Relation = data.relation("parquet", tmp_path / "t.parquet", tmp_path)
    columns = ", ".join(reversed(table.column_names))
    found = []
    for way in ("", "t"):
        job = Job(relations={"t": relation}, sql=f"SELECT {columns} FROM t", scan=way, batch_bytes=2**20)
        async with pool.run(job) as result:
            parts = [bytes(frame.payload) async for frame in result]
        assert max(map(len, parts)) < 2 * 2**20 + 2**16
        with pa.ipc.open_stream(b"".join((result.schema, *parts))) as reader:
            found.append(reader.read_all())
    assert found[0].schema.equals(found[1].schema)
    assert found[0].equals(found[1])
    assert found[0].num_rows == table.num_rows


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (IMAGES, True),
        (IMAGES.select(["image"]), True),
        (FLOATS, False),
        (TEXT, False),
        (IMAGES.select(["name"]), False),
    ],
    ids=["images with names", "images", "floats", "text", "names"],
)
def test_the_fast_way_is_for_blobs(tmp_path: Path, table: pa.Table, expected: bool) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    assert scan.faster(table.schema, [str(path)], "parquet") is expected


def test_other_types_names_or_kinds_go_through_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(IMAGES, path)
    for schema, paths, kind in (
        (pa.schema([("image", pa.large_binary())]), [str(path)], "parquet"),
        (pa.schema([("IMAGE", pa.binary())]), [str(path)], "parquet"),
        (IMAGES.schema, [str(path)], "hive"),
        (IMAGES.schema, [], "parquet"),
    ):
        assert not scan.faster(schema, paths, kind)
