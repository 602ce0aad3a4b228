"""Flight's tables from processes of their own, against Arrow here; and what those bear from who means it badly."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import pytest_asyncio

from connector import VERSION
from connector.dataplane.flight import catalogue_tables, protobuf, sqlinfo
from connector.dataplane.flight.catalogue_client import CatalogueClient
from connector.engine.pool.sandbox import memory_of
from connector.errors import ConnectorError, Invalid, Unavailable
from tests.support import waiting
from tests.support.own_name import changed

pytestmark = pytest.mark.asyncio(loop_scope="module")

WIDE = pa.schema([pa.field("a", pa.string(), metadata={"é": "1"}), pa.field("b", pa.list_(pa.int8()), nullable=False)])
DATASETS = [
    {"owner": owner, "name": name, "schema": WIDE.serialize().to_pybytes()}
    for owner, name in (("clinic", "numbers"), ("clinic", "ärzte"), ("mill", "rolls"))
]
ONE = pa.record_batch([pa.array([7]), pa.array(["a"])], names=["0", "1"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def made() -> AsyncIterator[CatalogueClient]:
    async for found in _tables():
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def fresh() -> AsyncIterator[CatalogueClient]:
    async for found in _tables(seconds=2.0):
        yield found


async def _tables(**options: Any) -> AsyncIterator[CatalogueClient]:
    found = CatalogueClient(**options)
    try:
        yield found
    finally:
        await found.close()


def whole(stream: bytes) -> pa.Table:
    """A stream's rows; it has its end and nothing behind that."""
    assert stream.endswith(b"\xff\xff\xff\xff\x00\x00\x00\x00")
    return pa.ipc.open_stream(stream).read_all()


def put(*batches: pa.RecordBatch, **options: Any) -> bytes:
    """What a client puts."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batches[0].schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


async def test_a_statement_that_reads_nothing_has_its_table(made: CatalogueClient) -> None:
    for sql, name, value in (("SELECT 1", "1", 1), ('select 42 AS "is it there";', "is it there", 42)) * 2:
        expected = pa.table({name: pa.array([value], pa.int32())})
        assert whole(await made.constant("lab", sql) or b"") == expected
    assert await made.constant("lab", "SELECT 1 + 1") is None


CATALOGUE: list[tuple[str, list[tuple[int, int | bytes | str]]]] = [
    ("CommandGetCatalogs", []),
    ("CommandGetDbSchemas", []),
    ("CommandGetDbSchemas", [(2, "cl%")]),
    ("CommandGetTableTypes", []),
    ("CommandGetTables", []),
    ("CommandGetTables", [(3, "_rzte"), (5, 1)]),
    ("CommandGetTables", [(1, "other"), (5, 1)]),
    ("CommandGetTables", [(4, "VIEW")]),
    ("CommandGetSqlInfo", []),
    ("CommandGetSqlInfo", [(1, b"\x01\xf8\x03"), (1, 3), (1, 70_000)]),  # two packed
    ("CommandGetPrimaryKeys", [(3, "numbers")]),
    ("CommandGetExportedKeys", [(3, "numbers")]),
    ("CommandGetImportedKeys", [(3, "numbers")]),
    ("CommandGetCrossReference", [(3, "numbers"), (5, "clinic"), (6, "ärzte")]),
]


@pytest.mark.parametrize(("name", "fields"), CATALOGUE, ids=str)
async def test_the_catalogue_comes_as_it_is_made(
    made: CatalogueClient, name: str, fields: list[tuple[int, int | bytes | str]]
) -> None:
    command = protobuf.write(fields)
    expected = catalogue_tables.catalogue(name, protobuf.read(command), DATASETS)
    assert whole(await made.catalogue("lab", name, command, DATASETS)) == expected
    for _ in range(2):
        schema = await made.catalogue_schema("lab", name, command)
        assert schema == expected.schema.serialize().to_pybytes()


async def test_what_a_server_says_of_itself_is_what_was_asked_for() -> None:
    found = sqlinfo.table([0, 1, 3, 504, 999]).to_pylist()
    told = [(0, "Hanse"), (1, VERSION), (3, True), (504, '"')]
    assert [(one["info_name"], one["value"]) for one in found] == told
    whole = sqlinfo.table(())
    whole.validate(full=True)
    assert whole["info_name"].to_pylist() == sorted(sqlinfo.infos())


async def test_no_dataset_has_keys() -> None:
    for name in ("CommandGetPrimaryKeys", "CommandGetImportedKeys"):
        assert catalogue_tables.catalogue(name, {}, DATASETS).num_rows == 0


@pytest.mark.parametrize("command", [b"\x0b", protobuf.write([(2, 1), (5, b"x")])])
async def test_a_garbled_command_is_bad_input(made: CatalogueClient, command: bytes) -> None:
    pids = made.pids
    name = "CommandGetTables"
    for asked in (made.catalogue("lab", name, command, []), made.catalogue_schema("lab", name, command)):
        with pytest.raises(Invalid) as told:
            await asked
        assert told.value.code == "request_invalid"
    assert pids[0] in (0, made.pids[0])


@pytest.mark.parametrize("count", [1, 3, 1000])
async def test_parameters_of_which_nobody_knows_more_are_fields_without_a_type(
    made: CatalogueClient, count: int
) -> None:
    expected = pa.schema([pa.field(str(number), pa.null()) for number in range(count)])
    assert pa.ipc.read_schema(pa.py_buffer(await made.parameters("lab", [""] * count))) == expected


async def test_parameters_of_a_kind_have_its_type(made: CatalogueClient) -> None:
    expected = pa.schema([("0", pa.int64()), ("1", pa.null()), ("2", pa.timestamp("ms", "UTC"))])
    assert pa.ipc.read_schema(pa.py_buffer(await made.parameters("lab", ["int", "", "timestamptz"]))) == expected


async def test_no_parameters_are_no_schema(made: CatalogueClient) -> None:
    assert await made.parameters("lab", []) == b""


async def test_values_that_a_client_has_put_are_read(made: CatalogueClient) -> None:
    expected = [["int", "7"], ["text", "a"]]
    assert await made.values("lab", put(ONE)) == expected
    assert await made.values("lab", put(ONE.slice(0, 0), ONE, compression="zstd")) == expected
    zoned = pa.record_batch([pa.array([0], pa.timestamp("ns", "Europe/Rome"))], names=["0"])
    assert await made.values("lab", put(zoned)) == [["timestamptz", "1970-01-01 01:00:00+01:00"]]


def views() -> bytes:
    """A list of a million views of one long text, in a few kilobytes."""
    many, size = 1_000_000, 2**22
    said = pa.py_buffer(((size).to_bytes(4, "little") + bytes(12)) * many)
    texts = pa.Array.from_buffers(pa.string_view(), many, [None, said, pa.py_buffer(bytes(size))])
    offsets = pa.array([0, many], pa.int32()).buffers()[1]
    row = pa.Array.from_buffers(pa.list_(pa.string_view()), 1, [None, offsets], children=[texts])
    return put(pa.record_batch([row], names=["0"]), compression="zstd")


def zeros(size: int) -> pa.RecordBatch:
    """One text of so many zeros: a few kilobytes on the way."""
    ends = pa.array([0, size]).buffers()[1]
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, ends, pa.py_buffer(bytes(size))])
    return pa.record_batch([text], names=["0"])


def bomb(size: int, **options: Any) -> bytes:
    return put(zeros(size), compression="zstd", **options)


def hollow(size: int, count: int) -> bytes:
    """So many batches that say to have no rows, and unfold to so much each."""
    schema, batch = pa.ipc.MessageReader.open_stream(bomb(size))
    one = batch.serialize().to_pybytes()
    rows = (1).to_bytes(8, "little")
    assert one[:200].count(rows) == 2  # of the batch, and of its column
    return bytes(schema.serialize().to_pybytes() + one.replace(rows, bytes(8), 2) * count)


NO_TEXT = pa.Array.from_buffers(
    pa.string(), 1, [None, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"\xff\xfe")]
)
HOSTILE: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "no stream": lambda: b"ARROW1\x00\x00" * 100,
    "a schema alone": lambda: ONE.schema.serialize().to_pybytes(),
    "cut off": lambda: put(ONE)[:-40],
    "two rows": lambda: put(ONE, ONE),
    "a list": lambda: put(pa.record_batch([pa.array([[1]])], names=["0"])),
    "a text that is none": lambda: put(pa.record_batch([NO_TEXT], names=["0"])),
    "a year beyond all": lambda: put(pa.record_batch([pa.array([2**62], pa.timestamp("s"))], names=["0"])),
    "a zone of nowhere": lambda: put(pa.record_batch([pa.array([1], pa.timestamp("s", "No/Where"))], names=["0"])),
    "a type with a long name": lambda: put(pa.record_batch([pa.array([{"x" * 10_000: 1}])], names=["0"])),
    "a list of a million views": views,
    "a dictionary": lambda: put(pa.record_batch([pa.array(["a"]).dictionary_encode()], names=["0"])),
    "a schema and another": lambda: put(ONE)[:-8] + put(ONE),
    "a format of old": lambda: put(ONE, metadata_version=pa.ipc.MetadataVersion.V4),
    "many thousand rows": lambda: put(pa.record_batch([pa.array(range(10**6))], names=["0"]), compression="zstd"),
    "a megabyte too many": lambda: bomb(2**21),
    "half a gigabyte of zeros": lambda: bomb(500_000_000),
    "two gigabytes of zeros": lambda: bomb(2_000_000_000),
    "too many bytes": lambda: bytes(17 * 2**20),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_what_is_no_row_of_values_is_bad_input(made: CatalogueClient, name: str) -> None:
    raw = await asyncio.to_thread(HOSTILE[name])
    with pytest.raises(Invalid, match="expected") as told:
        await made.values("lab", raw)
    assert told.value.code == "request_invalid"
    assert len(told.value.message) <= 300
    assert await made.values("lab", put(ONE)) == [["int", "7"], ["text", "a"]]
    assert memory_of(made.pids[1]).own < 200 * 2**20


async def test_batches_of_no_rows_are_never_unfolded(fresh: CatalogueClient) -> None:
    """Thirty gigabytes, in a megabyte."""
    raw = await asyncio.to_thread(hollow, 200_000_000, 150)
    assert len(raw) < 2**20
    await fresh.values("lab", put(ONE))
    pid = fresh.pids[1]
    with pytest.raises(Invalid, match="got none"):
        await fresh.values("lab", raw)
    assert fresh.pids[1] == pid  # it was no work


async def test_who_makes_waits_for_nothing_that_is_read(fresh: CatalogueClient) -> None:
    await fresh.values("lab", put(ONE))
    os.kill(fresh.pids[1], signal.SIGSTOP)
    reading = asyncio.ensure_future(fresh.values("lab", put(ONE)))
    await asyncio.sleep(0.05)
    assert await fresh.constant("lab", "SELECT 1")
    assert not reading.done()
    with pytest.raises(Invalid, match="in time"):
        await reading


async def test_consumers_take_turns(made: CatalogueClient) -> None:
    order: list[str] = []

    async def ask(consumer: str) -> None:
        await made.values(consumer, put(ONE))
        order.append(consumer)

    await asyncio.gather(*map(ask, ["lab"] * 30 + ["mill", "museum"]))
    assert order[:4] == ["lab", "lab", "mill", "museum"]


async def test_who_waits_for_too_long_is_told_so() -> None:
    async for tables in _tables(seconds=2.0, wait_seconds=0.2):
        await tables.values("lab", put(ONE))
        os.kill(tables.pids[1], signal.SIGSTOP)
        asked = (tables.values("lab", put(ONE)), tables.values("mill", put(ONE)))
        first, second = await asyncio.gather(*asked, return_exceptions=True)
        assert isinstance(first, Invalid)
        assert isinstance(second, Unavailable)
        assert second.code == "queue_timeout"


async def test_damaged_values_are_read_or_bad_input_and_nothing_else(made: CatalogueClient) -> None:
    dice, whole = random.Random(3), put(ONE, compression="lz4")
    for _ in range(400):
        raw = bytearray(whole)
        for _ in range(dice.randrange(1, 5)):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        try:
            row = await made.values("lab", bytes(raw[: dice.choice((len(raw), dice.randrange(len(raw))))]))
        except Invalid:
            continue
        assert len(row) <= 2


ASKED: dict[str, tuple[int, Callable[[CatalogueClient], Awaitable[Any]], type[ConnectorError]]] = {
    "what is made": (0, lambda one: one.parameters("lab", [""] * 5), Unavailable),
    "what is read": (1, lambda one: one.values("lab", put(ONE)), Invalid),
}


@pytest.mark.parametrize("name", ASKED)
async def test_a_process_that_dies_costs_one_answer(fresh: CatalogueClient, name: str) -> None:
    which, asked, expected = ASKED[name]
    await fresh.parameters("lab", [""] * 1)
    await fresh.values("lab", put(ONE))
    os.kill(fresh.pids[which], signal.SIGSTOP)
    asking = [asyncio.ensure_future(asked(fresh)) for _ in range(2)]
    await asyncio.sleep(0.05)
    os.kill(fresh.pids[which], signal.SIGKILL)
    with pytest.raises(expected):
        await asking[0]
    assert await asking[1]


@pytest.mark.parametrize("name", ASKED)
async def test_a_process_that_takes_too_long_is_ended(fresh: CatalogueClient, name: str) -> None:
    which, asked, expected = ASKED[name]
    await fresh.parameters("lab", [""] * 1)
    await fresh.values("lab", put(ONE))
    pid = fresh.pids[which]
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(expected):
        await asked(fresh)
    assert await asked(fresh)
    assert not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240


async def test_a_process_that_died_meanwhile_is_followed_by_another(fresh: CatalogueClient) -> None:
    await fresh.parameters("lab", [""] * 1)
    os.kill(fresh.pids[0], signal.SIGKILL)
    await waiting.until(lambda: not fresh.pids[0])
    assert await fresh.parameters("lab", [""] * 2)


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05])
async def test_who_leaves_leaves_no_answer_to_the_next(fresh: CatalogueClient, seconds: float) -> None:
    """At the start of a process, or in the midst of a question."""
    for number in range(5):
        asking = asyncio.ensure_future(fresh.parameters("lab", [""] * (number + 1)))
        await asyncio.sleep(seconds)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    assert len(pa.ipc.read_schema(pa.py_buffer(await fresh.parameters("lab", [""] * 9)))) == 9
    os.kill(fresh.pids[0], signal.SIGSTOP)
    asking = asyncio.ensure_future(fresh.parameters("lab", [""] * 100))
    await asyncio.sleep(0.01)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    assert whole(await fresh.constant("lab", "SELECT 8") or b"").to_pylist() == [{"8": 8}]
    assert len(pa.ipc.read_schema(pa.py_buffer(await fresh.parameters("lab", [""] * 50)))) == 50


@pytest.mark.parametrize("name", ASKED)
async def test_who_leaves_takes_the_process_from_nobody(fresh: CatalogueClient, name: str) -> None:
    """As it starts, and in the midst of a question."""
    which, asked, _ = ASKED[name]
    leaving = asyncio.ensure_future(asked(fresh))
    await waiting.until(lambda: bool(fresh.pids[which]))
    pid = fresh.pids[which]
    for _ in range(3):
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert await asked(fresh)
        os.kill(pid, signal.SIGSTOP)
        again = fresh.values("lab", put(ONE)) if which else fresh.catalogue("lab", "CommandGetTables", b"", DATASETS)
        leaving = asyncio.ensure_future(again)
        await asyncio.sleep(0.05)
        os.kill(pid, signal.SIGCONT)
    assert await leaving
    assert fresh.pids[which] == pid


async def test_many_who_ask_at_once_get_each_their_own(made: CatalogueClient) -> None:
    told = await asyncio.gather(*(made.constant("lab", f"SELECT {number}") for number in range(1000, 1100)))
    assert [whole(one or b"").column_names for one in told] == [[str(number)] for number in range(1000, 1100)]


async def test_a_process_is_shut_in(made: CatalogueClient) -> None:
    await made.parameters("lab", [""] * 1)
    told = Path("/proc", str(made.pids[0]))
    assert "NoNewPrivs:\t1\n" in (told / "status").read_text()
    limits = [line.split()[-3:-1] for line in (told / "limits").read_text().splitlines()]
    assert ["1073741824"] * 2 in limits  # address space


async def test_who_asks_as_it_ends_is_told(fresh: CatalogueClient) -> None:
    await fresh.parameters("lab", [""] * 1)
    os.kill(fresh.pids[0], signal.SIGSTOP)
    asking = asyncio.ensure_future(fresh.parameters("lab", [""] * 2))
    starting = asyncio.ensure_future(fresh.values("lab", put(ONE)))
    await asyncio.sleep(0.01)
    await fresh.close()
    for one in (asking, starting, fresh.parameters("lab", [""] * 3)):
        with pytest.raises(Unavailable):
            await one
    assert fresh.pids == (0, 0)


async def test_a_process_that_cannot_be_started_is_started_with_the_next_question(
    fresh: CatalogueClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(
            "connector.dataplane.flight.catalogue_client.asyncio", changed(asyncio, create_subprocess_exec=fails)
        )
        for asked in (fresh.parameters("lab", [""] * 1), fresh.values("lab", put(ONE))):
            with pytest.raises(Unavailable):
                await asked
    assert await fresh.parameters("lab", [""] * 1)
