"""Values that go from Parquet files straight to where they are sent from: the same bytes as by Arrow, or not so."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Range, Ranges, Relation
from connector.engine.worker.read import parquet_scan
from connector.engine.worker.read.file_values import File, Stored
from connector.engine.worker.write.arrow_stream import ArrowStreamWriter
from connector.errors import VersionChanged
from tests.support import data
from tests.support.digested import messages
from tests.support.images import POOL, blobs, images, write

TARGET = 2**20


def left(path: str) -> list[set[str]]:
    """The columns of each row group whose values may stay in the file."""
    footer, file, stored = pq.read_metadata(path), File(path), Stored()
    names = [column.name for column in pq.read_schema(path) if column.type == pa.binary()]
    return [
        {*stored.columns(file, footer, group, names, at_least=1)} for group in range(footer.num_row_groups)
    ]  # fmt: skip


def sent(
    batches: Callable[..., Iterator[pa.RecordBatch]], schema: pa.Schema, stored: Stored | None
) -> tuple[pa.Table, list[bytes]]:
    """What leaves by one of the two ways: rows, and the bytes of each message."""
    messages, payloads = ArrowStreamWriter(schema, codec="none", digest="xxh3", trailer_room=8), []
    for batch in batches(rows=256, target=TARGET, stored=stored):
        parts, _ = messages.message(batch)
        found = [part if stored is None or (one := stored.find(part)) is None else one.read() for part in parts]
        payloads.append(b"".join(map(bytes, found)))
    with pa.ipc.open_stream(b"".join((messages.head, *payloads))) as reader:
        return reader.read_all(), payloads


def ways(paths: Sequence[str], schema: pa.Schema) -> list[tuple[pa.Table, list[bytes]]]:
    def batches(**how: Any) -> Iterator[pa.RecordBatch]:
        return parquet_scan.batches(paths, schema, **how)

    return [sent(batches, schema, None), sent(batches, schema, Stored())]


@pytest.fixture(autouse=True)
def tells(tmp_path: Path) -> None:
    """Only where the file system tells what is in memory: elsewhere everything goes by Arrow."""
    (tmp_path / "probe").write_bytes(b"in memory")
    try:
        with (tmp_path / "probe").open("rb") as file:
            os.preadv(file.fileno(), [bytearray(4)], 0, os.RWF_NOWAIT)
    except OSError as error:
        pytest.skip(f"this file system does not say what is in memory: {error}")


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("nullable", [True, False], ids=["optional", "required"])
@pytest.mark.parametrize(
    ("how", "rows"),
    [({}, 150), ({"data_page_size": 2**16, "write_batch_size": 3}, 150), ({}, 61), ({"row_group_size": 400}, 300)],
    ids=["one page", "many pages", "a last row alone", "batches in a group"],
)
def test_the_same_bytes_leave_by_both_ways(
    tmp_path: Path, version: str, nullable: bool, how: dict[str, Any], rows: int
) -> None:
    table = images(rows, nullable=nullable)
    path = write(tmp_path / "t.parquet", table, data_page_version=version, **how)
    assert all(found == {"image"} for found in left(path))
    plain, stored = ways([path], table.schema)
    assert stored[0].equals(plain[0])
    assert stored[0].equals(table)
    # What is too small is not joined with what comes before; of a group a batch is padded with what follows in it.
    if rows == 150:
        assert stored[1] == plain[1]


def test_files_groups_without_rows_and_columns_in_any_order(tmp_path: Path) -> None:
    table = images(90)
    with pq.ParquetWriter(tmp_path / "gaps.parquet", table.schema, compression="none", use_dictionary=["id"]) as out:
        for part in (table.slice(0, 0), table.slice(0, 40), table.slice(0, 0), table.slice(40)):
            out.write_table(part)
    paths = [write(tmp_path / "a.parquet", table), str(tmp_path / "gaps.parquet"), write(tmp_path / "b", table)]
    for names in (["image"], ["name", "image", "note"], ["note", "id", "image", "name"]):
        schema = table.select(names).schema
        plain, stored = ways(paths, schema)
        assert stored[1] == plain[1]
        assert stored[0].num_rows == 270


def test_empty_values_beside_large_ones_and_two_columns(tmp_path: Path) -> None:
    table = images(120, values=blobs(120, empty=3)).append_column("more", [blobs(120, 60_000, empty=2)])
    path = write(tmp_path / "t.parquet", table)
    assert left(path) == [{"image", "more"}] * 2
    plain, stored = ways([path], table.schema)
    assert stored[1] == plain[1]
    assert stored[0].equals(table)


@pytest.mark.parametrize(
    ("values", "how"),
    [
        (blobs(60), {"compression": "snappy"}),
        (blobs(60), {"use_dictionary": True}),
        (blobs(60), {"use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}}),
        ([*blobs(59), None], {}),
        ([None, *blobs(59)], {"data_page_version": "2.0"}),
        (blobs(60, 2000), {}),
        ([b""] * 60, {}),
    ],
    ids=["compressed", "dictionary", "other encoding", "a null", "a null, other pages", "small", "empty"],
)
def test_other_columns_are_read_by_arrow(tmp_path: Path, values: list[bytes], how: dict[str, Any]) -> None:
    table = images(60, values=values)
    path = write(tmp_path / "t.parquet", table, **how)
    assert left(path) == [set()]
    plain, stored = ways([path], table.schema)
    assert stored == plain
    assert stored[0].equals(table)


def test_a_group_that_is_not_in_memory_is_read_by_arrow(tmp_path: Path) -> None:
    table = images(60)
    path = write(tmp_path / "t.parquet", table)
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    assert left(path) == [set()]
    Path(path).read_bytes()
    assert left(path) == [{"image"}]


def test_groups_far_smaller_than_a_batch_are_joined_by_arrow(tmp_path: Path) -> None:
    table = images(60)
    path = write(tmp_path / "t.parquet", table, row_group_size=2)
    plain, stored = ways([path], table.schema)
    assert stored == plain
    assert len(stored[1]) < 20


@pytest.mark.parametrize(("first", "stop"), [(0, 150), (17, 140), (59, 61), (70, 71), (60, 120)])
def test_rows_between(tmp_path: Path, first: int, stop: int) -> None:
    table = images(150)
    path = write(tmp_path / "t.parquet", table)

    def batches(**how: Any) -> Iterator[pa.RecordBatch]:
        return parquet_scan.rows_between(path, table.schema, first, stop, **how)

    plain, stored = sent(batches, table.schema, None), sent(batches, table.schema, Stored())
    assert stored[0].equals(plain[0])
    assert stored[0].equals(table.slice(first, stop - first))


def test_a_column_is_forgotten_with_its_last_batch(tmp_path: Path) -> None:
    path, stored = write(tmp_path / "t.parquet", images(150)), Stored()
    descriptors = len(os.listdir("/proc/self/fd"))
    batches = list(parquet_scan.batches([path], pq.read_schema(path), rows=256, target=TARGET, stored=stored))
    values = batches[0].column("image").buffers()[2]
    assert stored.find(values) is not None
    assert stored.find(batches[0].column("id").buffers()[1]) is None
    assert stored.find(b"bytes") is None
    kept = stored._columns
    del batches
    assert [one() is not None for one in kept] == [True, False, False]
    del values
    assert not any(one() for one in kept)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    for _ in parquet_scan.batches([path], pq.read_schema(path), rows=256, target=TARGET, stored=stored):
        assert len(stored._columns) <= 2


def test_a_file_that_is_cut_off_while_it_is_read_has_changed(tmp_path: Path) -> None:
    path, stored = write(tmp_path / "t.parquet", images(60)), Stored()
    batches = list(parquet_scan.batches([path], pq.read_schema(path), rows=256, target=TARGET, stored=stored))
    os.truncate(path, 1_000_000)
    values = stored.find(batches[-1].column("image").buffers()[2])
    assert values is not None
    with pytest.raises(VersionChanged, match="changed"):
        values.read()


# What follows goes through a worker.


async def frames(pool: Pool, path: Path, table: pa.Table, **more: Any) -> tuple[pa.Table, list[int]]:
    """The rows of a scan in a worker, after a look at the digest of each batch; and the batches' sizes."""
    relation: Relation = data.relation("parquet", path, path.parent)
    names = ", ".join(table.column_names)
    job = Job(relations={"t": relation}, sql=f"SELECT {names} FROM t", scan="t", batch_bytes=TARGET, **more)
    parts = await messages(pool, job)
    with pa.ipc.open_stream(b"".join(parts)) as reader:
        return reader.read_all(), list(map(len, parts[1:]))


def cut_off(path: Path) -> None:
    os.truncate(path, 3_000_000)


def write_over(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(20_000_000)
        file.write(bytes(1000))


@pytest.mark.asyncio(loop_scope="module")
async def test_a_worker_sends_them(pool: Pool, tmp_path: Path) -> None:
    table = images(300)
    path = Path(write(tmp_path / "t.parquet", table))
    found, sizes = await frames(pool, path, table)
    assert found.equals(table)
    _, (_, *expected) = ways([str(path)], table.schema)
    assert sizes == list(map(len, expected[0]))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
async def test_compressed_and_other_formats_are_read_by_arrow(pool: Pool, tmp_path: Path, codec: str) -> None:
    table = images(90)
    path = Path(write(tmp_path / "t.parquet", table))
    assert (await frames(pool, path, table, codec=codec))[0].equals(table)
    relation = data.relation("parquet", path, tmp_path)
    job = Job(relations={"t": relation}, sql="SELECT * FROM t", scan="t", batch_bytes=TARGET, format="parquet")
    async with pool.run(job) as result:
        whole = b"".join([bytes(result.schema), *[bytes(frame.payload) async for frame in result]])
    assert pq.read_table(pa.BufferReader(whole)).equals(table)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_batch_that_no_slot_holds_goes_over_the_socket(pool: Pool, tmp_path: Path) -> None:
    table = images(40, values=[*blobs(30), POOL * 6, *blobs(9)])
    found, sizes = await frames(pool, Path(write(tmp_path / "t.parquet", table)), table)
    assert found.equals(table)
    assert max(sizes) > 6 * 2**20


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("threads", [1, 2])
async def test_ranges_of_a_file(pool: Pool, tmp_path: Path, threads: int) -> None:
    table = images(400)
    path = Path(write(tmp_path / "t.parquet", table))
    rows = [(130, 190), (5, 66), (240, 330), (60, 180), (0, 240), (330, 400)]
    only = Ranges([Range(number, 0, *one) for number, one in enumerate(rows)], "")
    found, _ = await frames(pool, path, table, only=only, limits=Limits(threads=threads))
    assert found.equals(pa.concat_tables([table.slice(first, stop - first) for first, stop in rows]))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("change", [cut_off, write_over])
async def test_a_file_that_changes_while_it_is_sent_ends_the_read(
    pool: Pool, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    path = Path(write(tmp_path / "t.parquet", images(600)))
    relation = data.relation("parquet", path, tmp_path)
    job = Job(relations={"t": relation}, sql="SELECT id, image FROM t", scan="t", batch_bytes=TARGET)

    async def read() -> None:
        async with pool.run(job) as result:
            async for _ in result:
                change(path)

    with pytest.raises(VersionChanged):
        await read()


# What follows is written by somebody who means us no good.

I32, BINARY, STRUCT = 5, 8, 12


def varint(number: int) -> bytes:
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def struct(fields: dict[int, int | bool | bytes | dict[int, Any]]) -> bytes:
    """A struct in Thrift's compact protocol."""
    found, last = b"", 0
    for number, value in fields.items():
        if isinstance(value, bool):
            kind, body = 1 if value else 2, b""
        elif isinstance(value, int):
            kind, body = I32, varint(value << 1 ^ value >> 63)
        elif isinstance(value, bytes):
            kind, body = BINARY, varint(len(value)) + value
        else:
            kind, body = STRUCT, struct(value)
        found += bytes([(number - last) << 4 | kind]) + body
        last = number
    return found + b"\0"


def header(size: int, count: int, **other: Any) -> bytes:
    """A data page's, of version 1, or 2 where the length of its levels is told."""
    if "levels" in other:
        inner = {1: count, 2: 0, 3: count, 4: 0, 5: other["levels"], 6: 0, 7: False} | other.get("inner", {})
        return struct({1: other.get("kind", 3), 2: size, 3: size, 8: inner})
    inner = {1: count, 2: other.get("encoding", 0), 3: 3, 4: 3} | other.get("inner", {})
    compressed = other.get("sign", 1) * size - other.get("less", 0)
    return struct({1: other.get("kind", 0), 2: size - other.get("less_plain", 0), 3: compressed, 5: inner})


def levels(count: int, run: bytes | None = None) -> bytes:
    body = varint(count << 1) + b"\1" if run is None else run
    return len(body).to_bytes(4, "little") + body


def values(lengths: Sequence[int], told: Sequence[int] | None = None) -> bytes:
    pairs = zip(lengths, told or lengths, strict=True)
    return b"".join(claimed.to_bytes(4, "little") + POOL[:size] for size, claimed in pairs)


ROWS = 6


def page(size: int, count: int = ROWS, run: bytes | None = None, **other: Any) -> bytes:
    """A page of so many bytes in all, with values of equal size but for the last."""
    before = levels(count, run)["levels" in other and 4 :]
    body = size - len(header(size, count, **other))  # as long as it will be: its numbers have as many digits
    rest = body - len(before) - 4 * count
    sizes = [rest // count] * (count - 1)
    made = header(body, count, **other) + before + values([*sizes, rest - sum(sizes)])
    assert len(made) == size
    return made


def crafted(path: Path, make: Callable[[int], bytes], *, more: int = 0) -> str:
    """A file whose only column chunk is what `make` gives for its size, `more` than the honest footer says: then the
    footer says so, too."""
    table = pa.table({"image": pa.array(blobs(ROWS), pa.binary())})
    write(path, table, use_dictionary=False, write_statistics=False)
    chunk = pq.read_metadata(path).row_group(0).column(0)
    at, size = chunk.data_page_offset, chunk.total_compressed_size
    whole, made = path.read_bytes(), make(size + more)
    assert len(made) == size + more
    path.write_bytes(whole[:at] + made[:size] + whole[at + size :])
    patch(path, varint(size << 1), varint(size + more << 1))
    return str(path)


def patch(path: Path, old: bytes, new: bytes) -> None:
    """Other bytes in the footer."""
    whole = path.read_bytes()
    start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    footer = whole[start:-8].replace(old, new)
    path.write_bytes(whole[:start] + footer + len(footer).to_bytes(4, "little") + whole[-4:])


def outcome(path: str, *, stored: Stored | None) -> pa.Table | None:
    """The rows by one of the two ways; None for an error, and where the engine reads it."""
    schema = pa.schema([("image", pa.binary())])
    try:
        if not parquet_scan.faster(schema, [path], "parquet"):
            return None
        return sent(lambda **how: parquet_scan.batches([path], schema, **how), schema, stored)[0]
    except (pa.ArrowException, OSError, VersionChanged, ValueError):
        return None


def same(path: str) -> bool:
    """Whether both ways give the same rows, or both an error."""
    plain, found = outcome(path, stored=None), outcome(path, stored=Stored())
    return found is None if plain is None else plain.equals(found)


@pytest.mark.parametrize(
    "run",
    [None, b"\x03\x3f", b"\x05\xff\xff", varint(4 << 1) + b"\1" + varint(2 << 1) + b"\1", varint(4 << 1) + b"\1\x03\3"],
    ids=["a run", "bits", "more bits", "two runs", "a run and bits"],
)
@pytest.mark.parametrize("version", [1, 2])
def test_all_ways_to_say_that_no_value_is_null(tmp_path: Path, run: bytes | None, version: int) -> None:
    more = {} if version == 1 else {"levels": len(levels(ROWS, run)) - 4}
    path = crafted(tmp_path / "t.parquet", lambda size: page(size, run=run, **more))
    assert left(path) == [{"image"}]
    assert outcome(path, stored=None) is not None
    assert same(path)


def _split(size: int, *counts: int) -> bytes:
    """Pages with so many values each; of the last one only what is left."""
    each = size // len(counts)
    sizes = [each] * (len(counts) - 1)
    return b"".join(page(one, count) for one, count in zip([*sizes, size - sum(sizes)], counts, strict=True))


def _hidden(size: int) -> bytes:
    """Two pages, the first with bytes behind its values that begin another one, which covers the second."""
    half = ROWS // 2
    second = page(size // 2, half)[:-8] + bytes(8)
    hidden = header(10_000, half) + levels(half)
    own = size - len(second)
    first = page(own - len(hidden) - 4, half)
    body = first[first.index(levels(half)) :]
    told = header(len(body) + len(hidden) + 4, half)
    spare = len(first) - len(told) - len(body)  # none, as the numbers have as many digits
    inner = len(second) + len(levels(half)) + 4
    hidden = header(inner, half) + levels(half) + (len(second) - 8).to_bytes(4, "little")
    assert spare == 0
    return told + body + hidden + second


def _lie(size: int, told: Callable[[list[int]], list[int]]) -> bytes:
    """A page whose values are not as long as they say."""
    honest = page(size)
    body = size - honest.index(levels(ROWS)) - len(levels(ROWS))
    rest = body - 4 * ROWS
    sizes = [rest // ROWS] * (ROWS - 1)
    sizes.append(rest - sum(sizes))
    return honest[: size - body] + values(sizes, told(sizes))


HOSTILE: dict[str, Callable[[int], bytes]] = {
    "a length of everything": lambda size: _lie(size, lambda sizes: [2**32 - 1, *sizes[1:]]),
    "a length beyond the page": lambda size: _lie(size, lambda sizes: [*sizes[:-1], sizes[-1] + 1]),
    "a length short of the page": lambda size: _lie(size, lambda sizes: [*sizes[:-1], sizes[-1] - 1]),
    "lengths that overlap": lambda size: _lie(size, lambda sizes: [sizes[0] - 1000, *sizes[1:]]),
    "nothing but zeros": bytes,
    "nothing but ones": lambda size: b"\xff" * size,
    "an endless varint": lambda size: (b"\x15" + b"\x80" * size)[:size],
    "structs in structs": lambda size: (b"\x1c" * size)[:size],
    "a negative size": lambda size: page(size, sign=-1),
    "sizes that differ": lambda size: page(size, less=1),
    "more values than rows": lambda size: page(size, ROWS + 1),
    "fewer values than rows": lambda size: page(size, ROWS - 1),
    "pages with too many": lambda size: _split(size, ROWS - 1, 2),
    "pages with too few": lambda size: _split(size, ROWS - 3, 2),
    "a negative count": lambda size: page(size, inner={1: -ROWS}),
    "a count of everything": lambda size: page(size, inner={1: 2**31 - 1}),
    "no count": lambda size: (struct({1: 0, 2: size, 3: size, 5: {}}) + bytes(size))[:size],
    "another kind of page": lambda size: page(size, kind=1),
    "a dictionary": lambda size: page(size, kind=2),
    "an unknown kind": lambda size: page(size, kind=77),
    "another encoding": lambda size: page(size, encoding=6),
    "a dictionary's encoding": lambda size: page(size, encoding=8),
    "other levels": lambda size: page(size, inner={3: 4}),
    "a null among bits": lambda size: page(size, run=b"\x03\x3d"),
    "a run of nulls": lambda size: page(size, run=varint(ROWS << 1) + b"\0"),
    "levels of another value": lambda size: page(size, run=varint(ROWS << 1) + b"\3"),
    "too few levels": lambda size: page(size, run=varint(4 << 1) + b"\1"),
    "bits that are not there": lambda size: page(size, run=varint(2**30 << 1 | 1) + b"\xff"),
    "runs of nothing": lambda size: page(size, run=b"\0" * 100),
    "no levels": lambda size: page(size, run=b""),
    "a run of nothing": lambda size: page(size, run=b"\0\1" + varint(ROWS << 1) + b"\1"),
    "another size decoded": lambda size: page(size, less_plain=1),
    "a page of nothing": lambda size: (empty := header(6, 0) + levels(0)) + page(size - len(empty)),
    "a page in a page": _hidden,
    "version 2, nulls": lambda size: page(size, levels=2, inner={2: 1}),
    "version 2, a run of nulls": lambda size: page(size, levels=2, run=varint(ROWS << 1) + b"\0"),
    "version 2, other rows": lambda size: page(size, levels=2, inner={3: ROWS - 1}),
    "version 2, another encoding": lambda size: page(size, levels=2, inner={4: 6}),
    "version 2, levels of nothing": lambda size: page(size, levels=0),
    "version 2, negative levels": lambda size: page(size, levels=-2),
    "version 2, levels of everything": lambda size: page(size, levels=2**30),
    "version 2, repeated": lambda size: page(size, levels=2, inner={6: 1}),
    "version 2, an unknown kind": lambda size: page(size, levels=2, kind=77),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_file_says_is_not_believed(tmp_path: Path, name: str) -> None:
    path = crafted(tmp_path / "t.parquet", HOSTILE[name])
    assert left(path) == [set()]
    assert same(path)


@pytest.mark.parametrize("by", [-1, 1, 700_000, -(2**17)])
@pytest.mark.parametrize("what", ["data_page_offset", "total_compressed_size"])
def test_a_footer_that_lies(tmp_path: Path, what: str, by: int) -> None:
    path = tmp_path / "t.parquet"
    table = pa.table({"image": pa.array(blobs(3 * ROWS), pa.binary())})
    write(path, table, use_dictionary=False, row_group_size=ROWS)
    true = getattr(pq.read_metadata(path).row_group(1).column(0), what)
    assert len(varint(true << 1)) == len(varint(true + by << 1))
    patch(path, varint(true << 1), varint(true + by << 1))
    assert getattr(pq.read_metadata(path).row_group(1).column(0), what) == true + by
    assert left(str(path)) == [{"image"}, set(), {"image"}]
    assert same(str(path))


def test_a_chunk_that_goes_on_behind_the_end_of_the_file(tmp_path: Path) -> None:
    path = crafted(tmp_path / "t.parquet", page, more=5000)
    assert left(path) == [set()]
    assert same(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"image\x15\0", b"image\x15\2"), (b"\x26\x08\x49", b"\x26\x08\x26\4\x29")],
    ids=["compressed", "with a dictionary"],
)
def test_a_chunk_that_is_said_to_be_other(tmp_path: Path, old: bytes, new: bytes) -> None:
    path = Path(crafted(tmp_path / "t.parquet", page))
    assert left(str(path)) == [{"image"}]
    whole = path.read_bytes()
    patch(path, old, new)
    assert path.read_bytes() != whole
    assert left(str(path)) == [set()]
    assert same(str(path))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("seed", range(3))
def test_bytes_that_are_other_ones(tmp_path: Path, version: str, seed: int) -> None:
    """Changed where pages say something of themselves: both ways give the same rows, or both an error."""
    random, path = Random(seed), tmp_path / "t.parquet"
    table = pa.table({"image": pa.array(blobs(2 * ROWS, 17_000), pa.binary())})
    write(path, table, use_dictionary=False, data_page_version=version, data_page_size=40_000, write_batch_size=1)
    whole = path.read_bytes()
    starts = [whole.index(one) for one in table["image"].to_pylist()]
    told = [at for start in starts for at in range(max(4, start - 40), start)]  # a header, levels, a length
    for _ in range(120):
        changed = bytearray(whole)
        for at in random.choices(told, k=random.choice((1, 1, 2, 3))):
            changed[at] = random.choice((changed[at] ^ 1 << random.randrange(8), random.randrange(256)))
        path.write_bytes(changed)
        assert same(str(path)), [(at, one) for at, one in enumerate(changed) if one != whole[at]]
