"""Keys that a caller sends as an Arrow blob: few bytes must not stand for many values."""

from __future__ import annotations

import io

import pyarrow as pa
import pytest

from connector.engine.pool.error_codes import Coded
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Relation
from connector.engine.worker.inspect import untrusted_arrow
from connector.errors import ConnectorError


def _keys(column: pa.Array) -> bytes:
    """A compressed stream of one column."""
    sink, schema = io.BytesIO(), pa.schema({"k": column.type})
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([column], schema=schema))
    return sink.getvalue()


RUNS = pa.RunEndEncodedArray.from_arrays(pa.array([2**31 - 1], pa.int32()), pa.array([7], pa.int32()))
LONG = pa.array(["x" * 2**20])
REPEATING: dict[str, tuple[pa.Array, str]] = {
    "runs": (RUNS, "arrow_repeats"),
    "runs in a struct": (pa.StructArray.from_arrays([RUNS.slice(0, 3)], ["k"]), "arrow_repeats"),
    "runs in a list": (pa.ListArray.from_arrays(pa.array([0, 3], pa.int32()), RUNS.slice(0, 3)), "arrow_repeats"),
    "views of a text": (LONG.cast(pa.string_view()), "arrow_repeats"),
    "views of bytes": (LONG.cast(pa.binary()).cast(pa.binary_view()), "arrow_repeats"),
    "views of a list": (
        pa.ListViewArray.from_arrays(pa.array([0] * 9, pa.int32()), pa.array([3] * 9, pa.int32()), pa.array([1, 2, 3])),
        "arrow_repeats",
    ),
    "words of runs": (
        pa.StructArray.from_arrays([pa.array(["a"]).dictionary_encode()], ["k"]), "arrow_repeats",
    ),
    "long words": (
        pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int8()), LONG), "arrow_too_large",
    ),
    "rows without bytes": (pa.nulls(2**24 + 1), "arrow_too_large"),
    "bytes of no length": (pa.array([b""] * 4).cast(pa.binary(0)).take(pa.array([0] * (2**24 + 1))), "arrow_too_large"),
}  # fmt: skip


@pytest.mark.parametrize(("column", "code"), REPEATING.values(), ids=REPEATING)
def test_few_bytes_of_keys_stand_for_few_values(column: pa.Array, code: str) -> None:
    body = _keys(column)
    assert len(body) < 2**17
    before = pa.total_allocated_bytes()
    with pytest.raises(Coded) as raised:
        untrusted_arrow.read_blob(body, columns=("k",))
    assert raised.value.code == code
    assert pa.total_allocated_bytes() - before < 2**25


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", "b", None]).dictionary_encode(), pa.array([1, 2, 1]).dictionary_encode(), pa.array([1, 2, 3]),
        pa.array([[1], [2, 3], None]), pa.nulls(3), pa.array([b"abc", b"abd", None]), pa.array([], pa.string()),
        pa.array([], pa.string()).dictionary_encode(),
    ],
    ids=lambda column: f"{len(column)} {column.type}",
)  # fmt: skip
def test_keys_of_plain_types_are_read_as_they_are(column: pa.Array) -> None:
    assert untrusted_arrow.read_blob(_keys(column), columns=("k",))["k"].to_pylist() == column.to_pylist()


@pytest.mark.asyncio(loop_scope="module")
async def test_runs_of_keys_are_refused_by_a_worker(pool: Pool) -> None:
    body = _keys(RUNS)
    assert len(body) < 600
    job = Job(relations={"k": Relation("", blob=0, columns=("k",))}, sql="SELECT count(*) FROM k", blobs=(body,))
    with pytest.raises(ConnectorError) as raised:
        async with pool.run(job):
            pass
    assert (raised.value.status, raised.value.code) == (400, "arrow_repeats")
