"""Arrow that somebody else wrote: valid streams are measured, damaged ones are a coded error, whatever they do to a
parser. One worker takes them all: a crash would show as another code."""

from __future__ import annotations

import hashlib
import io
import json
import random
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import xxhash

from connector.datasets.sources.source_files import own_ref
from connector.engine.pool.error_codes import Coded, error_of
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import IN_PLACE, LOADED, TRAILER_KEY, Job, Limits, Relation
from connector.engine.worker.inspect import untrusted_arrow
from connector.errors import ConnectorError
from tests.support import data
from tests.support.digested import digest_before

pytestmark = pytest.mark.asyncio(loop_scope="module")
_DAMAGED = 500


def written(*tables: pa.Table) -> bytes:
    """A stream of one batch a table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, tables[0].schema) as writer:
        for table in tables:
            writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def stream(*, end: dict[str, object] | None = None, after: bool = False, last: int = 0) -> bytes:
    """The test table as a stream of several batches, with an end record where asked, on a batch of `last` rows."""
    table = data.table(2000)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.to_batches(max_chunksize=500):
            writer.write_batch(batch)
        if end is not None:
            writer.write_batch(
                table.slice(0, 500).to_batches()[0].slice(0, last), custom_metadata={TRAILER_KEY: json.dumps(end)}
            )
        if after:
            writer.write_batch(table.to_batches()[0])
    return bytes(sink.getvalue().to_pybytes())


async def test_a_valid_stream_is_measured_and_lies_ready_for_the_engine(pool: Pool, folder: Path) -> None:
    whole = stream(end={"status": "complete", "rows": 2000})
    expected = [row["id"] for row in data.table(2000).select(["id", "gap"]).to_pylist() if row["gap"] == 2]
    for name, blobs in (("came in a file", ()), ("came as a blob", (whole,))):
        path = folder / name
        if not blobs:
            path.write_bytes(whole)
        found = await pool.ask(Job(kind="check_arrow", arguments={"path": str(path), "once": True}, blobs=blobs))
        assert (found["rows"], found["batches"], found["end"]) == (2000, 4, {"status": "complete", "rows": 2000})
        assert found["bytes"] == pytest.approx(data.table(2000).nbytes, rel=0.01)
        assert [column["name"] for column in found["columns"]] == data.table(1).column_names
        relations = {"t": Relation("", (own_ref(str(path), folder=folder).to_json(),))}
        sql = "SELECT count(*), sum(id) FROM t WHERE gap = 2"
        answer = await pool.ask(Job(kind="report", relations=relations, sql=sql, once=True))
        assert answer["rows"] == [[len(expected), str(sum(expected))]]


async def test_unions_that_are_empty_are_measured(pool: Pool) -> None:
    """Arrow looks for what they do not have where it counts their bytes."""
    union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
    lists = pa.ListArray.from_arrays(pa.array([0, 0, 0], pa.int32()), union.slice(0, 0))
    batch = pa.RecordBatch.from_arrays([union, lists], ["u", "l"])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        for one in (batch, batch.slice(0, 0)):
            writer.write_batch(one)
    found = await pool.ask(Job(kind="check_arrow", blobs=(sink.getvalue().to_pybytes(),)))
    assert (found["rows"], found["batches"]) == (2, 2)


@pytest.mark.parametrize("deltas", [False, True])
async def test_dictionaries_that_change_are_not_for_the_engine(pool: Pool, folder: Path, deltas: bool) -> None:
    parts = [pa.array(["a", "b"]).dictionary_encode(), pa.array(["a", "b", "c"]).dictionary_encode()]
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(emit_dictionary_deltas=deltas)
    with pa.ipc.new_stream(sink, pa.schema({"a": parts[0].type}), options=options) as writer:
        for part in parts:
            writer.write_batch(pa.record_batch({"a": part}))
    blobs, arguments = (sink.getvalue().to_pybytes(),), {"path": str(folder / "no"), "once": True}
    assert (await pool.ask(Job(kind="check_arrow", blobs=blobs)))["rows"] == 5
    with pytest.raises(ConnectorError) as raised:
        await pool.ask(Job(kind="check_arrow", blobs=blobs, arguments=arguments))
    assert raised.value.code == "arrow_invalid"
    assert not (folder / "no").exists()


async def test_a_stream_without_its_end_record_is_told_from_a_whole_one(pool: Pool) -> None:
    found = await pool.ask(Job(kind="check_arrow", blobs=(stream(),)))
    assert (found["rows"], found["end"]) == (2000, None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not arrow",
        stream(end={"a": 1}, after=True),
        stream(end={"a": 1}, last=3),
        stream()[:-1000],
        b"\xff" * 64,
        stream() + b"x",
    ],
    ids=[
        "empty",
        "text",
        "rows after the end",
        "rows in the end record",
        "cut in a batch",
        "ones",
        "bytes after the end",
    ],
)
async def test_what_is_not_a_whole_stream_is_refused(pool: Pool, body: bytes) -> None:
    with pytest.raises(ConnectorError) as raised:
        await pool.ask(Job(kind="check_arrow", blobs=(body,)))
    assert raised.value.code == "arrow_invalid"


@pytest.mark.parametrize(("name", "made"), [("xxh3", xxhash.xxh3_128), ("sha256", hashlib.sha256), ("crc", None)])
async def test_the_digest_is_that_of_every_byte_before_the_end_record(pool: Pool, name: str, made: Any) -> None:
    whole = stream(end={"digest": f"{name}:00"})
    with pa.ipc.open_stream(source := pa.BufferReader(whole)) as reader:
        for _ in range(4):
            reader.read_next_batch()
        before = source.tell()
    found = await pool.ask(Job(kind="check_arrow", blobs=(whole,), arguments={"digest": True}))
    assert found["digest"] == (f"{name}:{made(whole[:before]).hexdigest()}" if made else "")
    assert (await pool.ask(Job(kind="check_arrow", blobs=(whole,))))["digest"] == ""


async def test_more_rows_than_allowed_are_not_read(pool: Pool) -> None:
    with pytest.raises(ConnectorError) as raised:
        await pool.ask(Job(kind="check_arrow", blobs=(stream(),), limits=Limits(rows=700)))
    assert raised.value.code == "rows_limit"


async def test_damaged_streams_never_take_the_worker_with_them_unnoticed(pool: Pool) -> None:
    """Each mutation is read whole or refused; one that crashes or bloats a parser costs a worker and has a code."""
    whole, chance = stream(end={"status": "complete"}), random.Random(7)
    codes = set()
    for _ in range(_DAMAGED):
        body = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            body[chance.randrange(len(body) if chance.random() < 0.3 else 2000)] = chance.randrange(256)
        try:
            await pool.ask(Job(kind="check_arrow", blobs=(bytes(body),), limits=Limits(seconds=10, memory_mb=256)))
        except ConnectorError as error:
            codes.add(error.code)
    assert "arrow_invalid" in codes
    assert codes <= {"arrow_invalid", "worker_crashed", "memory_limit", "engine_failed"}
    assert (await pool.ask(Job(kind="check_arrow", blobs=(whole,))))["rows"] == 2000


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([3, None, 1, 3, 1, 2]), [1, 2, 3]),
        (pa.array([1, 1, 2, 3, 3]), [1, 2, 3]),
        (pa.array([2**63 - 1, -(2**63), 2**63 - 1]), [-(2**63), 2**63 - 1]),
        (pa.array([2**64 - 1, 0], pa.uint64()), [0, 2**64 - 1]),
        (pa.array(["b", "", None, "b"]), ["", "b"]),
        (pa.array([Decimal("2.50"), Decimal("-1.00"), None]), [Decimal("-1.00"), Decimal("2.50")]),
        (pa.array([None, None], pa.int64()), []),
        (pa.array([1.5, 2.5]), None),  # what equals what is for the engine to say
        (pa.array([[1], [2]]), None),
    ],
    ids=["numbers", "in order", "as far as they go", "unsigned", "texts", "decimals", "nulls only", "floats", "lists"],
)
async def test_the_distinct_values_of_a_column_are_kept_for_others(
    pool: Pool, folder: Path, values: pa.Array, expected: list[Any] | None
) -> None:
    table = pa.table({"other": pa.nulls(len(values), pa.int8()), "key": values})
    path = folder / "keys.stream"
    found = await pool.ask(
        Job(
            kind="check_arrow",
            blobs=(written(table.slice(0, 2), table.slice(2)),),
            arguments={"keys": [(1, str(path))]},
        )
    )
    assert found["keys"] == ([] if expected is None else [str(path)])
    if expected is not None:
        assert pa.ipc.open_stream(path.read_bytes()).read_all().to_pydict() == {"k": expected}


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ([pa.array([3, 1]), pa.array([2, 3]), pa.array([], pa.int64())], [1, 2, 3]),
        ([pa.array(["b"]), pa.array(["a", "b"])], ["a", "b"]),
        ([pa.array([1]), pa.array(["1"])], None),  # what equals what is for the engine to say
        ([pa.array([1], pa.int32()), pa.array([1], pa.int64())], None),
    ],
    ids=["numbers", "texts", "two types", "two widths"],
)
async def test_the_distinct_values_of_several_answers_are_united(
    pool: Pool, folder: Path, shares: list[pa.Array], expected: list[Any] | None
) -> None:
    paths = [folder / f"{number}.keys" for number in range(len(shares))]
    for path, values in zip(paths, shares, strict=True):
        path.write_bytes(written(pa.table({"k": values})))
    saved = folder / "united.keys"
    arguments = {"paths": [str(path) for path in paths], "save": str(saved)}
    assert await pool.ask(Job(kind="unite_keys", arguments=arguments)) is (expected is not None)
    if expected is not None:
        assert pa.ipc.open_stream(saved.read_bytes()).read_all().to_pydict() == {"k": expected}


def _nothing(table: pa.Table) -> pa.RecordBatch:
    """No rows of it, with the dictionaries that it begins with."""
    return pa.RecordBatch.from_arrays([column.chunk(0).slice(0, 0) for column in table.columns], schema=table.schema)


def answer(table: pa.Table, **end: object) -> bytes:
    """What an owner answers: its rows in two batches, and the end record."""
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.slice(0, 2))
        writer.write_table(table.slice(2))
        told = {"status": "complete", "rows": len(table), "digest": digest_before(sink, table.schema)} | end
        writer.write_batch(_nothing(table), custom_metadata={TRAILER_KEY: json.dumps(told)})
    return sink.getvalue()


SHARES = [pa.table({"Id": [3, 1, 3], "v": ["abc", "b", "c"]}), pa.table({"Id": [2], "v": ["d"]})]


def reading(folder: Path, *blobs: bytes, names: tuple[str, ...] = ("id", "V")) -> Job:
    keys = [(0, str(folder / "both.keys"))]
    return Job(kind="read_answers", blobs=blobs, arguments={"columns": [names] * len(blobs), "keys": keys})


async def test_answers_of_several_owners_are_read_together(pool: Pool, folder: Path) -> None:
    found = await pool.ask(reading(folder, *(answer(share, policy=["masked"]) for share in SHARES)))
    assert [one["rows"] for one in found["answers"]] == [3, 1]
    assert [one["end"]["policy"] for one in found["answers"]] == [["masked"], ["masked"]]
    assert all(one["bytes"] > 0 for one in found["answers"])
    assert found["keys"] == [str(folder / "both.keys")]
    assert pa.ipc.open_stream((folder / "both.keys").read_bytes()).read_all().to_pydict() == {"k": [1, 2, 3]}


_CHANGING = [pa.array(["a", "b"]).dictionary_encode(), pa.array(["c"]).dictionary_encode()]
DICTIONARIES = pa.table({"id": pa.chunked_array(_CHANGING), "v": [1, 2, 3]})
UNSOUND = [
    ("no end record", written(SHARES[0]), "answer_unsound"),
    ("fewer rows than it counts", answer(SHARES[0], rows=4), "answer_unsound"),
    ("rows counted as text", answer(SHARES[0], rows="3"), "answer_unsound"),
    ("stopped", answer(SHARES[0], status="revoked"), "answer_unsound"),
    ("a column less", answer(SHARES[0].select(["Id"])), "answer_unsound"),
    ("columns in another order", answer(SHARES[0].select(["v", "Id"])), "answer_unsound"),
    ("dictionaries that change", answer(DICTIONARIES), "arrow_invalid"),
    ("bytes after the end", answer(SHARES[0]) + b"x", "arrow_invalid"),
    ("nothing", b"", "arrow_invalid"),
    ("half a letter", answer(SHARES[0]).replace(b"abc", b"\xffbc"), "arrow_invalid"),
]


@pytest.mark.parametrize(("body", "code"), [case[1:] for case in UNSOUND], ids=[case[0] for case in UNSOUND])
async def test_one_answer_that_is_not_whole_fails_all_that_are_read_with_it(
    pool: Pool, folder: Path, body: bytes, code: str
) -> None:
    with pytest.raises(ConnectorError) as raised:
        await pool.ask(reading(folder, answer(SHARES[1]), body))
    assert raised.value.code == code
    relations = {name: Relation("", answers=(blob,), columns=("id", "v")) for blob, name in enumerate(("good", "bad"))}
    job = Job(relations=relations, sql="SELECT 1", blobs=(answer(SHARES[1]), body), once=True)
    with pytest.raises(ConnectorError) as raised:
        async with pool.run(job):
            pass
    assert raised.value.code == code


WIDER = pa.table({"id": pa.array([2], pa.int32()), "v": ["d"]})
CODED = pa.table({"id": [2], "v": pa.array(["d"]).dictionary_encode()})


@pytest.mark.parametrize("taken", [IN_PLACE, LOADED])
@pytest.mark.parametrize("other", [SHARES[1], WIDER, CODED], ids=["alike", "another width", "a dictionary"])
@pytest.mark.parametrize("apart", [False, True])
async def test_answers_are_read_by_the_job_that_joins_them(
    pool: Pool, taken: str, other: pa.Table, apart: bool
) -> None:
    blobs, columns = (answer(other, policy=["b"]), answer(SHARES[0], policy=["a"])), ("ID", "v")
    relations = {"f0": Relation("", answers=(1, 0), columns=columns, taken=taken)}
    if apart:
        relations = {f"f{blob}": Relation("", answers=(blob,), columns=columns, taken=taken) for blob in range(2)}
    rows = " UNION ALL ".join(f"FROM {name}" for name in relations)
    sql = f"SELECT sum(id)::BIGINT AS s, string_agg(v, '' ORDER BY v) AS v FROM ({rows})"
    for _ in range(2):  # the second finds the engine of the first, and nothing in it
        async with pool.run(Job(relations=relations, sql=sql, blobs=blobs, once=True)) as result:
            assert [(one["rows"], one["end"]["policy"]) for one in result.answers] == [(1, ["b"]), (3, ["a"])]
            batches = [bytes(frame.payload) async for frame in result]
            schema = result.schema
        assert pa.ipc.open_stream(schema + b"".join(batches)).read_all().to_pylist() == [{"s": 9, "v": "abcbcd"}]


async def test_rows_without_bytes_of_a_table_that_is_brought_along_are_counted() -> None:
    assert untrusted_arrow.read_blob(data.rows_without_bytes(2**24)).num_rows == 2**24
    for blob in (data.rows_without_bytes(2**62), data.rows_without_bytes(2**23 + 1, batches=2)):
        with pytest.raises(Coded) as raised:
            untrusted_arrow.read_blob(blob)
        assert raised.value.code == "arrow_too_large"


async def test_small_answers_that_unfold_to_much_are_not_held(pool: Pool, folder: Path) -> None:
    sink = io.BytesIO()
    rows = pa.table({"id": pa.repeat(0, 1_000_000)})
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        for _ in range(3):
            writer.write_table(rows)
        end = {"status": "complete", "rows": 3_000_000, "digest": digest_before(sink, rows.schema)}
        writer.write_batch(_nothing(rows), custom_metadata={TRAILER_KEY: json.dumps(end)})
    body = sink.getvalue()
    assert len(body) < 2**17
    relations = {"t": Relation("", answers=(0,), columns=("id",))}
    with pytest.raises(ConnectorError) as raised:
        async with pool.run(Job(relations=relations, sql="SELECT 1", blobs=(body,), once=True)):
            pass
    assert raised.value.code == "arrow_too_large"
    with pytest.raises(ConnectorError) as raised:
        await pool.ask(reading(folder, body, names=("id",)))
    assert raised.value.code == "arrow_too_large"


async def test_what_unfolds_to_more_than_a_job_may_have_is_too_much_and_not_damaged(pool: Pool, folder: Path) -> None:
    sink = pa.BufferOutputStream()
    rows = pa.record_batch({"id": pa.repeat(0, 60_000_000)})  # half a gigabyte
    with pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_batch(rows)
    body = bytes(sink.getvalue().to_pybytes())
    assert len(body) < 2**15
    for job in (Job(kind="check_arrow", blobs=(body,)), reading(folder, body, names=("id",))):
        with pytest.raises(ConnectorError) as raised:
            await pool.ask(replace(job, limits=Limits(memory_mb=64)))
        assert raised.value.code == "memory_limit"


async def test_a_column_that_did_not_come_keeps_nothing(pool: Pool, folder: Path) -> None:
    job = Job(kind="check_arrow", blobs=(stream(),), arguments={"keys": [(7, str(folder / "none.stream"))]})
    with pytest.raises(ConnectorError, match="damaged"):
        await pool.ask(job)


@pytest.mark.parametrize(
    "arguments", [{"path": "/dev/full", "once": True}, {"keys": [(0, "/dev/full")]}], ids=["rows", "keys"]
)
async def test_a_full_disk_is_not_the_stream_s_fault(arguments: dict[str, Any]) -> None:
    job = Job(kind="check_arrow", blobs=(stream(end={"status": "complete"}),), arguments=arguments)
    with pytest.raises(Coded) as caught:
        untrusted_arrow.check(job, check=lambda: None)
    told = error_of(caught.value.code, {})
    assert (told.code, "make room" in told.message) == ("disk_full", True)
