"""No value that a policy hides is in the bytes under a null, whatever lay there before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Relation
from connector.engine.worker.read.batching import cut
from connector.engine.worker.write import arrow_stream
from connector.engine.worker.write.arrow_stream import ArrowStreamWriter
from connector.engine.worker.write.null_scrub import has_union, zero_nulls
from tests.support import data

HIDDEN = 0x5EC4E7  # the number that no answer shows
SIGNS = [np.int64(HIDDEN).tobytes(), np.float64(HIDDEN).tobytes(), b"SECRET"]

# name, what is there where it is shown, what lies under the nulls
KINDS: list[tuple[pa.DataType, Any, Any]] = [
    (pa.int64(), 1, HIDDEN),
    (pa.float64(), 1.5, float(HIDDEN)),
    (pa.timestamp("us", "UTC"), 1, HIDDEN),
    (pa.decimal128(20, 2), 1, HIDDEN),
    (pa.binary(6), b"plain!", b"SECRET"),
    (pa.string(), "shown", "SECRET"),
    (pa.large_string(), "shown", "SECRET"),
    (pa.binary(), b"shown", b"SECRET"),
    (pa.list_(pa.int64()), [1, 2], [HIDDEN] * 3),
    (pa.list_(pa.string()), ["shown", None], ["SECRET"]),
    (pa.list_(pa.int64(), 2), [1, 2], [HIDDEN] * 2),
    (pa.map_(pa.string(), pa.int64()), [("shown", 1)], [("SECRET", HIDDEN)]),
    (pa.struct([("a", pa.int64()), ("b", pa.string())]), {"a": 1, "b": "shown"}, {"a": HIDDEN, "b": "SECRET"}),
    (pa.struct([("l", pa.list_(pa.struct([("a", pa.int64())])))]), {"l": [{"a": 1}]}, {"l": [{"a": HIDDEN}]}),
]


def covered(kind: pa.DataType, shown: Any, below: Any, there: list[bool]) -> pa.Array:
    """An array with the values of `below` under its nulls."""
    whole = pa.array([shown if one else below for one in there], kind)
    bits = pa.array(there, pa.bool_()).buffers()[1]
    if isinstance(whole, pa.StructArray):
        children = [whole.field(number) for number in range(kind.num_fields)]
        return pa.Array.from_buffers(kind, len(there), [bits], children=children)
    if isinstance(whole, pa.MapArray):
        pairs = pa.StructArray.from_arrays([whole.keys, whole.items], fields=[kind.key_field, kind.item_field])
        return pa.Array.from_buffers(kind, len(there), [bits, whole.buffers()[1]], children=[pairs])
    if isinstance(whole, pa.ListArray):
        return pa.Array.from_buffers(kind, len(there), [bits, whole.buffers()[1]], children=[whole.values])
    if isinstance(whole, pa.FixedSizeListArray):
        return pa.Array.from_buffers(kind, len(there), [bits], children=[whole.values])
    return pa.Array.from_buffers(kind, len(there), [bits, *whole.buffers()[1:]])


def sent(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


@pytest.mark.parametrize(("kind", "shown", "below"), KINDS, ids=[str(kind) for kind, _, _ in KINDS])
@settings(deadline=None)
@given(data=st.data())
def test_same_values_and_nothing_below(kind: pa.DataType, shown: Any, below: Any, data: st.DataObject) -> None:
    there = data.draw(st.lists(st.booleans(), min_size=1, max_size=40))
    first = data.draw(st.integers(0, len(there) - 1))
    batch = pa.record_batch({"c": covered(kind, shown, below, there)}).slice(first)
    found = zero_nulls(batch)
    found.validate(full=True)
    assert found.schema == batch.schema
    assert found.to_pylist() == batch.to_pylist()
    assert not any(sign in sent(found) for sign in SIGNS)


def test_the_planted_values_can_be_seen_where_nothing_is_done() -> None:
    for kind, shown, below in KINDS:
        batch = pa.record_batch({"c": covered(kind, shown, below, [True, False] * 8)})
        assert any(sign in sent(batch) for sign in SIGNS) or pa.types.is_decimal(kind), kind


def test_what_the_engine_makes_of_any_type_stays_the_same() -> None:
    sql = """
        SELECT CASE WHEN i % 3 = 0 THEN NULL ELSE i END a, CASE WHEN i % 3 = 1 THEN NULL ELSE i % 2 = 0 END b,
            CASE WHEN i % 4 = 0 THEN NULL ELSE MAP([i], ['v' || i]) END m, CASE WHEN i % 2 = 0 THEN
            union_value(n := i) END u, i::HUGEINT h, CASE WHEN i % 3 > 0 THEN uuid() END uu, NULL nn,
            CASE WHEN i % 3 > 0 THEN i::BIT END bi, CASE WHEN i % 3 > 0 THEN INTERVAL (i) DAY END iv,
            CASE WHEN i % 4 > 0 THEN [i, NULL, 3]::INT[3] END fixed, [[i], NULL, []] nested,
            CASE WHEN i % 4 > 0 THEN {'x': i, 'y': CASE WHEN i % 5 > 0 THEN 'q' || i END} END s
        FROM range(100) t(i)"""
    for batch in duckdb.connect().sql(sql).to_arrow_reader(64):
        for part in (batch, batch.slice(3, 40), batch.slice(5, 0)):
            found = zero_nulls(part)
            found.validate(full=True)
            assert found.schema == part.schema
            assert found.to_pylist() == part.to_pylist()


@pytest.mark.parametrize(("kind", "shown", "below"), KINDS, ids=[str(kind) for kind, _, _ in KINDS])
@pytest.mark.parametrize("before", [0, 1, 2])
def test_a_message_has_nothing_below_however_many_came_without_nulls(
    kind: pa.DataType, shown: Any, below: Any, before: int
) -> None:
    """The first that has nulls is seen by what its own metadata counts."""
    rows = [[True] * 9] * before + [[True, False, True] * 3, [True] * 9]
    batches = [pa.record_batch({"n": range(9), "c": covered(kind, shown, below, there)}) for there in rows]
    messages = ArrowStreamWriter(batches[0].schema, codec="none", digest="none", trailer_room=8)
    sent = [b"".join(map(memoryview, messages.message(batch)[0])) for batch in batches]
    assert not any(sign in one for sign in SIGNS for one in sent)
    with pa.ipc.open_stream(b"".join([messages.head, *sent, messages.trailer])) as reader:
        assert reader.read_all().to_pylist() == pa.Table.from_batches(batches).to_pylist()


@pytest.mark.parametrize("of", [lambda kind: kind, pa.list_, lambda kind: pa.struct([("s", pa.list_(kind))])])
def test_unions_are_looked_at_whatever_is_counted(of: Any) -> None:
    assert has_union(of(pa.dense_union([pa.field("a", pa.int64())])))
    assert not has_union(of(pa.int64()))


def test_what_is_not_where_it_is_looked_for_counts_as_nulls() -> None:
    parts, _ = ArrowStreamWriter(pa.schema([("n", pa.int64())]), codec="none", digest="none", trailer_room=8).message(
        pa.record_batch({"n": [1, 2]})
    )
    assert not arrow_stream._has_nulls(parts)
    assert arrow_stream._has_nulls([b"".join(map(memoryview, parts[:3])), *parts[3:], b""])


def test_nothing_is_copied_without_nulls() -> None:
    batch = pa.record_batch({"a": pa.array([1, 2]), "s": pa.array(["x", "y"])})
    assert zero_nulls(batch) is batch


def _file(path: Path, kind: str) -> Path:
    """Every second row is hidden and holds the signs; the others hold nulls there."""
    hidden = np.arange(100_000) % 2 == 0
    values = np.where(hidden, HIDDEN, 1)
    below = pa.Array.from_buffers(
        pa.int64(), len(hidden), [pa.array(hidden).buffers()[1], pa.array(values).buffers()[1]]
    )
    nothing = pa.Array.from_buffers(pa.int64(), len(hidden), [pa.nulls(len(hidden), pa.int64()).buffers()[0], pa.array(
        np.full(len(hidden), HIDDEN)).buffers()[1]])  # fmt: skip
    text = pa.array([f"SECRET{number:08d}" if one else None for number, one in enumerate(hidden)])
    table = pa.table({"hidden": hidden, "v": below, "n": nothing, "s": text})
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=20_000)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=20_000)
    return path


QUERIES = [
    "SELECT v, s, n FROM (SELECT * FROM t WHERE NOT hidden) q",
    "SELECT q.v, q.s FROM (SELECT * FROM t WHERE NOT hidden) q JOIN range(10) r(i) ON i = 1 ORDER BY v",
    "SELECT CASE WHEN hidden THEN NULL ELSE v END v, CASE WHEN hidden THEN NULL ELSE s END s FROM t",
    "SELECT n FROM t",
    "WITH q AS (SELECT * FROM t WHERE NOT hidden) SELECT q.v, p.s FROM q LEFT JOIN q p USING (v)",
    "SELECT lag(v) OVER (ORDER BY s), max(s) OVER () FROM (SELECT * FROM t WHERE NOT hidden) q",
]


@pytest.mark.parametrize("kind", ["parquet", "arrow_ipc"])
@pytest.mark.parametrize("sql", QUERIES)
@pytest.mark.asyncio(loop_scope="module")
async def test_nothing_hidden_leaves_a_worker(pool: Pool, tmp_path: Path, kind: str, sql: str) -> None:
    file = _file(tmp_path / f"t.{'parquet' if kind == 'parquet' else 'arrow'}", kind)
    relation: Relation = data.relation(kind, file, tmp_path)
    async with pool.run(Job(relations={"t": relation}, sql=sql)) as result:
        raw = b"".join([bytes(frame.payload) async for frame in result])
    assert raw
    assert not [sign for sign in SIGNS if sign in raw]


@pytest.mark.parametrize("apart", [True, False])
def test_nothing_of_the_next_piece_pads_one_that_a_quota_may_end(apart: bool) -> None:
    """Without the copy the writer pads with it: so the test would see."""
    whole = pa.record_batch({"s": pa.array(["a" * 1001, "SECRET" * 200])})
    first = next(cut(whole, 500, apart=apart))
    messages = ArrowStreamWriter(whole.schema, codec="none", digest="none", trailer_room=8)
    sent = b"".join(bytes(memoryview(part)) for part in messages.message(first)[0])
    assert first.num_rows == 1
    assert (b"SECRET" not in sent) is apart
