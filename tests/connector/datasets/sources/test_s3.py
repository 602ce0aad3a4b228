"""Datasets in an object store, against a real S3 server: found, pinned, read in blocks by workers without a network."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from pydantic import SecretStr

from connector.dataplane.job_builder import version_to_relation
from connector.datasets import object_store
from connector.datasets.connections import Connections, Database
from connector.datasets.object_store import Objects
from connector.engine.pool.protocol import Job, Limits, Range, Ranges
from connector.errors import Absent, ConnectorError, Invalid, SourceUnreadable, VersionChanged
from tests.support import data, objectstore
from tests.support.owner import Owner, owning

module = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def archive(s3: objectstore.Server, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    folder = tmp_path_factory.mktemp("archive")
    async with owning(folder, s3.connections(folder)) as running:
        yield running


def put(s3: objectstore.Server, key: str, table: pa.Table, **options: Any) -> str:
    sink = io.BytesIO()
    pq.write_table(table, sink, **options)
    obstore.put(s3.bucket(), key, sink.getvalue())
    return f"s3://{objectstore.BUCKET}/{key}"


@module
async def test_an_object_gives_the_rows_that_were_put(s3: objectstore.Server, archive: Owner) -> None:
    version = await archive.add("single", put(s3, "single/t.parquet", data.table(3000)))
    assert (version.source["kind"], version.source["options"]["store"]) == ("s3", "archive")
    assert version.source["files"][0]["etag"]
    assert version.profile["rows"] == 3000
    assert (await archive.rows(version)).to_pylist() == data.table(3000).to_pylist()


@module
async def test_folders_below_a_prefix_become_columns_whatever_they_are_called(
    s3: objectstore.Server, archive: Owner
) -> None:
    names = ["plain", "it's", "größe", "a*b", "[x]", "a b"]
    for number, name in enumerate(names):
        put(s3, f"hive/kind={name}/part.parquet", data.table(100 + number))
    put(s3, "hive/kind=plain/_hidden.parquet", data.table(5))
    obstore.put(s3.bucket(), "hive/_SUCCESS", b"")
    version = await archive.add("hive", f"s3://{objectstore.BUCKET}/hive/")
    table = await archive.rows(version, "SELECT kind, count(*) AS n FROM t GROUP BY kind")
    assert {row["kind"]: row["n"] for row in table.to_pylist()} == {n: 100 + i for i, n in enumerate(names)}


@module
async def test_few_columns_of_one_partition_bring_few_bytes(s3: objectstore.Server, archive: Owner) -> None:
    wide = pa.table({f"c{number}": np.random.default_rng(number).random(200_000) for number in range(12)})
    for number in range(3):
        put(s3, f"wide/part={number}/t.parquet", wide, compression="none", use_dictionary=False)
    version = await archive.add("wide", f"s3://{objectstore.BUCKET}/wide/")
    whole = sum(file["size"] for file in version.source["files"])
    assert whole > 50 * 2**20
    assert archive.outside.blocks.used <= 64 * 2**20
    async with owning(archive.folder / "fresh", s3.connections(archive.folder)) as fresh:
        before = fresh.outside.blocks.misses
        table = await fresh.rows(version, "SELECT sum(c3) AS s FROM t WHERE part = 1")
        assert table["s"][0].as_py() == pytest.approx(float(np.sum(wide["c3"].to_numpy())))
        assert (fresh.outside.blocks.misses - before) * 2**20 < whole / 8


@module
async def test_a_dataset_larger_than_the_cache_is_read_within_it(s3: objectstore.Server, archive: Owner) -> None:
    table = pa.table({"x": np.random.default_rng(0).random(6_000_000)})
    path = put(s3, "large/t.parquet", table, compression="none", use_dictionary=False, row_group_size=500_000)
    folder = archive.folder / "small"
    async with owning(folder, s3.connections(archive.folder), cache_mb=16) as small:
        version = await small.add("large", path)
        assert version.profile["bytes"] > 40 * 2**20
        assert (await small.rows(version, "SELECT count(*) AS n, sum(x) AS s FROM t")).to_pylist() == [
            {"n": 6_000_000, "s": pytest.approx(float(np.sum(table["x"].to_numpy())))}
        ]
        assert small.outside.blocks.used <= 16 * 2**20
        kept = list((folder / "outside").rglob("cache-*/*"))
        assert kept
        assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in kept)
    assert not list((folder / "outside").rglob("cache-*"))


CHANGES = {
    "overwritten": lambda s3: put(s3, "changing/t.parquet", data.table(2001)),
    "overwritten with the same size": lambda s3: obstore.put(s3.bucket(), "changing/t.parquet", _flipped(s3)),
    "deleted": lambda s3: obstore.delete(s3.bucket(), "changing/t.parquet"),
}


def _database(folder: Path) -> list[Path]:
    return list(folder.glob("owner.db*"))


def _flipped(s3: objectstore.Server) -> bytes:
    body = bytearray(bytes(obstore.get(s3.bucket(), "changing/t.parquet").bytes()))
    body[100] ^= 1
    return bytes(body)


@module
@pytest.mark.parametrize("name", list(CHANGES))
async def test_an_object_that_is_another_one_now_is_refused_also_from_the_cache(
    s3: objectstore.Server, archive: Owner, name: str
) -> None:
    version = await archive.add(f"c_{name.split()[-1]}", put(s3, "changing/t.parquet", data.table(2000)))
    assert (await archive.rows(version)).num_rows == 2000
    CHANGES[name](s3)
    with pytest.raises(VersionChanged):
        await archive.rows(version)


@module
async def test_an_object_that_changes_in_mid_read_ends_the_read(s3: objectstore.Server, archive: Owner) -> None:
    table = pa.table({"x": np.random.default_rng(0).random(4_000_000)})
    path = put(s3, "mid/t.parquet", table, compression="none", use_dictionary=False, row_group_size=200_000)
    folder = archive.folder / "mid"
    async with owning(folder, s3.connections(archive.folder), cache_mb=16) as small:
        version = await small.add("mid", path)
        seen: list[int] = []

        async def read() -> None:
            async with small.pool.run(small.job(version, "SELECT * FROM t", batch_bytes=2**19)) as result:
                async for frame in result:
                    if not seen:
                        put(s3, "mid/t.parquet", table.slice(0, 100))
                    seen.append(frame.rows)

        with pytest.raises(VersionChanged):
            await read()
        assert 0 < sum(seen) < 4_000_000


@module
async def test_many_objects_are_checked_by_one_listing(s3: objectstore.Server, archive: Owner) -> None:
    for number in range(60):
        put(s3, f"many/n={number:02}/t.parquet", data.table(10))
    version = await archive.add("many", f"s3://{objectstore.BUCKET}/many")
    assert (await archive.rows(version, "SELECT count(*) AS n FROM t"))["n"].to_pylist() == [600]
    obstore.delete(s3.bucket(), "many/n=31/t.parquet")
    with pytest.raises(VersionChanged):
        await archive.rows(version, "SELECT count(*) AS n FROM t WHERE n = 1")


@module
async def test_a_reader_that_leaves_stops_the_borrowing(s3: objectstore.Server, archive: Owner) -> None:
    version = await archive.add("left", put(s3, "left/t.parquet", data.table(100_000)))
    async with archive.pool.run(archive.job(version, "SELECT * FROM t", batch_bytes=2**16)) as result:
        await anext(result)
    async with asyncio.timeout(60):
        while any(worker.results for worker in archive.pool._busy):
            await asyncio.sleep(0.02)
    assert (await archive.rows(version, "SELECT count(*) AS n FROM t"))["n"].to_pylist() == [100_000]


REFUSED: dict[str, tuple[str, dict[str, Any], type[ConnectorError], str]] = {
    "no such object": ("s3://research/none/t.parquet", {}, Absent, "not_found"),
    "no such prefix": ("s3://research/none/", {}, Absent, "not_found"),
    "a bucket that nobody allowed": ("s3://other/t.parquet", {}, Invalid, "bucket_not_allowed"),
    "a store that nobody knows": ("s3://research/t.parquet", {"store": "x"}, Invalid, "store_unknown"),
    "a key with steps upwards": ("s3://research/one/../one/t.parquet", {}, Invalid, "bad_input"),
    "a key with an empty part": ("s3://research/one//t.parquet", {}, Invalid, "bad_input"),
    "a prefix with an empty part": ("s3://research/one//", {}, Invalid, "bad_input"),
    "no bucket": ("s3:///t.parquet", {"store": "archive"}, Invalid, "bad_input"),
    "not parquet": ("s3://research/probe", {}, SourceUnreadable, "not_parquet"),
}


@module
@pytest.mark.parametrize("name", list(REFUSED))
async def test_what_cannot_be_registered_is_refused_by_code(s3: objectstore.Server, archive: Owner, name: str) -> None:
    path, options, kind, code = REFUSED[name]
    with pytest.raises(kind) as raised:
        await archive.add("refused", path, "s3", **options)
    assert raised.value.code == code
    assert "--kind" not in raised.value.message  # an object has none but its own


@pytest.mark.parametrize("unfit", ["p/a//b.parquet", "p//_SUCCESS", "p/./b.parquet", "p/../b", 'p/"/a\nb'])
async def test_an_object_that_cannot_be_listed_is_named_and_ends_no_read_of_others(tmp_path: Path, unfit: str) -> None:
    keys = {f"p/{number:02}.parquet" for number in range(40)}
    with objectstore.naming(keys) as store:
        objects = Objects(Connections(store.connections(tmp_path)))
        name, refs = await objects.find(f"s3://{objectstore.BUCKET}/p/", store="", suffixes=(".parquet",))
        keys.add(unfit)
        await objects.check(refs, store=name)
        with pytest.raises(Invalid, match=re.escape(f"came {unfit!r}; rename that object")) as raised:
            await objects.find(f"s3://{objectstore.BUCKET}/p/", store="", suffixes=(".parquet",))
        assert raised.value.code == "bad_input"
        keys.remove("p/39.parquet")
        with pytest.raises(VersionChanged):
            await objects.check(refs, store=name)


@pytest.mark.parametrize(("path", "below"), [("p/", "t.parquet/"), ("p/t.parquet/", "")])
async def test_what_stands_for_a_folder_is_no_object(tmp_path: Path, path: str, below: str) -> None:
    with objectstore.naming({"p/t.parquet/", "p/t.parquet/none.parquet/", "p/t.parquet/part.parquet"}) as store:
        objects = Objects(Connections(store.connections(tmp_path)))
        _, refs = await objects.find(f"s3://{objectstore.BUCKET}/{path}", store="", suffixes=(".parquet",))
    assert [ref.name for ref in refs] == [f"{below}part.parquet"]


@pytest.mark.parametrize("status", [301, 400])
@pytest.mark.parametrize("key", ["t.parquet", "p/"])
async def test_a_store_of_another_region_is_told_as_one(tmp_path: Path, status: int, key: str) -> None:
    with objectstore.elsewhere(status) as store:
        objects = Objects(Connections(store.connections(tmp_path)))
        with pytest.raises(SourceUnreadable, match="region is the one of this bucket") as raised:
            await objects.find(f"s3://{objectstore.BUCKET}/{key}", store="", suffixes=(".parquet",))
    assert raised.value.code == "store_refused"


@pytest.mark.parametrize(
    ("wrong", "code"),
    [({"secret": "another-canary-secret"}, "store_refused"), ({"endpoint": "http://127.0.0.1:9"}, "store_unreachable")],
    ids=["wrong secret", "nobody there"],
)
@pytest.mark.parametrize("key", ["single/t.parquet", "single/"])
async def test_no_secret_and_no_address_is_told(
    s3: objectstore.Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    key: str,
    wrong: dict[str, str],
    code: str,
) -> None:
    caplog.set_level(logging.DEBUG)
    connections = s3.connections(tmp_path, **wrong)
    async with owning(tmp_path, connections) as running:
        with pytest.raises(SourceUnreadable) as raised:
            await running.add("secret", f"s3://{objectstore.BUCKET}/{key}")
        told = [repr(raised.value), str(raised.value.problem()), raised.value.private, caplog.text]
        kept = b"".join(path.read_bytes() for path in _database(tmp_path))
    assert raised.value.__suppress_context__  # the library's words do not follow it into a traceback
    assert raised.value.code == code
    for secret in (objectstore.SECRET, "another-canary-secret", objectstore.KEY, "127.0.0.1:9"):
        assert secret not in " ".join(told)
        assert secret.encode() not in kept


@pytest.mark.parametrize(
    ("kind", "code"),
    [("PermissionDeniedError", "store_refused"), ("GenericError", "store_unreachable"),
     ("PreconditionError", "version_changed")],
)  # fmt: skip
@module
async def test_what_the_store_does_not_give_is_no_damaged_file(
    s3: objectstore.Server, archive: Owner, monkeypatch: pytest.MonkeyPatch, kind: str, code: str
) -> None:
    """As a role that may list and not read, or a store that fails after it has listed."""
    path = put(s3, "refusing/t.parquet", data.table(10))

    async def fails(*_: Any, **__: Any) -> Any:
        raise getattr(obstore.exceptions, kind)("no")

    monkeypatch.setattr(object_store, "_get", fails)
    with pytest.raises(ConnectorError) as raised:
        await archive.add("refusing", path)
    assert raised.value.code == code


@module
async def test_a_rotated_key_works_at_once(s3: objectstore.Server, tmp_path: Path) -> None:
    async with owning(tmp_path, s3.connections(tmp_path, secret="old")) as running:
        path = put(s3, "rotated/t.parquet", data.table(10))
        with pytest.raises(SourceUnreadable):
            await running.add("rotated", path)
        s3.connections(tmp_path)
        assert (await running.add("rotated", path)).profile["rows"] == 10


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("stores: {a: {endpoint: 'http://x', buckets: [b]}}", 0o600, "insecure_http"),
        ("stores: {a: {endpoint: 'https://u:pass@x', buckets: [b]}}", 0o600, "stores.a.endpoint"),
        ("stores: {a: {endpoint: 'https://x', buckets: []}}", 0o600, "stores.a.buckets"),
        ("stores: {a: {endpoint: 'https://x', buckets: [b], secret: canary}}", 0o600, "stores.a.secret"),
        ("databases: {a: {url: 'mysql://u:canary@x/d'}}", 0o600, "databases.a.url: expected postgresql://"),
        ("databases: {a: {url: 'postgresql://u:can ary@x/d'}}", 0o600, "databases.a.url"),
        ("stores: [", 0o600, "not YAML"),
        ("stores: {}", 0o644, "chmod 600"),
    ],
)
async def test_a_connections_file_that_does_not_fit_is_told_by_place_and_not_by_content(
    tmp_path: Path, text: str, mode: int, told: str
) -> None:
    path = tmp_path / "connections.yaml"
    path.write_text(text)
    os.chmod(path, mode)
    async with owning(tmp_path, path) as running:
        with pytest.raises(SourceUnreadable, match=told) as raised:
            await running.add("any", "s3://b/t.parquet")
    assert "canary" not in str(raised.value)
    assert "pass@" not in str(raised.value)


@module
async def test_a_worker_stays_within_its_memory_while_it_borrows(s3: objectstore.Server, archive: Owner) -> None:
    version = await archive.add("bounded", put(s3, "bounded/t.parquet", data.table(300_000)))
    limits = Limits(memory_mb=64)
    table = await archive.rows(version, "SELECT count(*) AS n FROM t WHERE id % 2 = 0", limits=limits)
    assert table["n"].to_pylist() == [150_000]


@module
async def test_any_rows_of_any_object_can_be_read_by_their_place(s3: objectstore.Server, archive: Owner) -> None:
    for number in range(2):
        put(s3, f"placed/p={number}/t.parquet", data.table(1000), row_group_size=300)
    version = await archive.add("placed", f"s3://{objectstore.BUCKET}/placed")
    plan = await archive.pool.ask(
        Job(
            kind="plan",
            relations={"t": version_to_relation(version)},
            sql="SELECT * FROM t",
            arguments={"groups": True},
        )
    )
    assert [[rows for rows, _ in file] for file in plan["groups"]] == [[300, 300, 300, 100]] * 2
    only = Ranges((Range(0, 1, 250, 650),), key="00" * 32)
    table = await archive.rows(version, "SELECT * FROM t", only=only)
    assert table["id"].to_pylist() == list(range(250, 650))
    assert set(table["p"].to_pylist()) == {1}


@pytest.mark.parametrize("url", [" host=h dbname=d\n", "postgresql://u:p%40@h/d ", "postgres://", "host\t= h"])
def test_an_address_that_a_server_can_be_reached_by_is_taken_with_what_is_around_it(url: str) -> None:
    assert Database(url=SecretStr(url)).url.get_secret_value() == url
