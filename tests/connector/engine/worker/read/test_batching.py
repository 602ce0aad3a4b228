"""Where a batch ends tells nothing of rows that are hidden: neither how many there are, nor where, nor how large."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Range, Ranges, Relation
from connector.engine.worker.read import batching
from tests.support import data
from tests.support.images import blobs, images

SHOWN = 60_000
GROUP = 8192
HIDDEN = {
    "none": [],
    "some at the start": range(700),
    "a few everywhere": range(0, SHOWN, 97),
    "a group": [GROUP] * 9000,
}


@st.composite
def chunked(draw: st.DrawFn) -> tuple[pa.RecordBatch, list[int], list[int]]:
    """Rows of any size, and two ways in which they come."""
    sizes = draw(st.lists(st.integers(0, 3000), max_size=1500))
    text = pa.array(["x" * size for size in sizes], pa.string())
    rows = pa.RecordBatch.from_arrays([pa.array(range(len(sizes)), pa.int64()), text], names=["n", "t"])
    cuts = st.lists(st.integers(0, len(sizes)), max_size=12).map(sorted)
    return rows, draw(cuts), draw(cuts)


@given(given=chunked(), target=st.sampled_from([1, 4096, 2**16, 2**20]), rows=st.sampled_from([0, 1, 7, 300]))
def test_batches_end_where_the_rows_say_however_they_come(
    given: tuple[pa.RecordBatch, list[int], list[int]], target: int, rows: int
) -> None:
    whole, *ways = given
    found = []
    for cuts in ways:
        edges = [0, *cuts, whole.num_rows]
        pieces = [whole.slice(at, stop - at) for at, stop in pairwise(edges)]
        found.append(list(batching.evenly(iter(pieces), target, rows=rows)))
    first, second = ([batch.num_rows for batch in one] for one in found)
    assert first == second
    for one in found:
        assert pa.Table.from_batches(one, whole.schema).equals(pa.Table.from_batches([whole]))
        assert all(batch.nbytes <= 2 * target or batch.num_rows == 1 for batch in one)
        assert not rows or all(batch.num_rows <= rows for batch in one)


def _mixed(shown: pa.Table, hidden: pa.Table, places: Any) -> pa.Table:
    """The rows of `shown`, and before those at `places` one of `hidden`, with `kept` false."""
    both = pa.concat_tables(
        [shown.append_column("kept", pa.array([True] * len(shown))), hidden.append_column("kept", pa.array([False]))]
    )
    order = np.insert(np.arange(len(shown)), np.asarray(list(places), int), len(shown))
    return both.take(order)


def _file(path: Path, kind: str, table: pa.Table, group: int) -> Path:
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=group, use_dictionary=False)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=group)
    return path


async def _ends(pool: Pool, relation: Relation, rows: int, how: str) -> list[int]:
    """Rows of each batch that leaves."""
    more: dict[str, Any] = {}
    columns = "id, t"
    if how == "places":
        columns = 'id, t, "place"'
        more["only"] = Ranges([Range(-1, 0, 0, rows)], "00" * 32, "place")
    elif how == "of some rows":
        more["batch_rows"] = 1000
    sql = f"SELECT {columns} FROM t WHERE kept"
    job = Job(relations={"t": relation}, sql=sql, even=True, shared=True, ordered=True, limits=Limits(threads=2),
              batch_bytes=2**18, **more)  # fmt: skip
    async with pool.run(job) as result:
        return [frame.rows async for frame in result]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("kind", "how"), [("parquet", ""), ("parquet", "places"), ("parquet", "of some rows"), ("arrow_ipc", "")]
)
async def test_the_same_rows_leave_in_the_same_batches_whatever_is_hidden_beside_them(
    pool: Pool, tmp_path: Path, kind: str, how: str
) -> None:
    shown = pa.table({"id": range(SHOWN), "t": [f"text {number}" for number in range(SHOWN)]})
    hidden = pa.table({"id": [-1], "t": ["a long one " * 50]})
    found = {}
    for name, places in HIDDEN.items():
        table = _mixed(shown, hidden, places)
        path = _file(tmp_path / f"{name}.{kind}", kind, table, GROUP)
        found[name] = await _ends(pool, data.relation(kind, path, tmp_path), len(table), how)
    assert {sum(ends) for ends in found.values()} == {SHOWN}
    assert len({tuple(ends) for ends in found.values()}) == 1
    assert len(found["none"]) > 5


@pytest.mark.asyncio(loop_scope="module")
async def test_large_values_leave_in_batches_that_tell_nothing_either(pool: Pool, tmp_path: Path) -> None:
    shown, found = images(600, values=blobs(600, 20_000)).select(["id", "image"]), []
    hidden = pa.table({"id": [-1], "image": pa.array([b"x" * 200_000], pa.binary())}, schema=shown.schema)
    for number, places in enumerate(([], [*[5] * 60, *range(0, 600, 9)])):
        path = _file(tmp_path / f"{number}.parquet", "parquet", _mixed(shown, hidden, places), 100)
        relation: Relation = data.relation("parquet", path, tmp_path)
        job = Job(relations={"t": relation}, sql="SELECT id, image FROM t WHERE kept", even=True,
                  shared=True, ordered=True, limits=Limits(threads=2), batch_bytes=2**20)  # fmt: skip
        async with pool.run(job) as result:
            found.append([frame.rows async for frame in result])
    assert found[0] == found[1]
    assert sum(found[0]) == 600
