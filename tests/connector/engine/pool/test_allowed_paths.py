"""A directory of data may be another one while the connector runs: what lies there now is read, in no other process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from connector.engine.pool import allowed_paths
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job
from tests.support import data
from tests.support.waiting import until

ROWS = 40_000


async def rows(pool: Pool, job: Job) -> int:
    async with pool.run(job) as result:
        return sum([frame.rows async for frame in result])


def scan(root: Path, count: int = ROWS) -> Job:
    """Of a file that is written there now."""
    relation = data.relation("parquet", data.parquet(root / "t.parquet", count), root)
    return Job(relations={"t": relation}, sql="SELECT * FROM t", scan="t", shared=True, batch_rows=1000)


def moved(root: Path) -> None:
    root.rename(root.with_name("old"))
    root.mkdir()


def made_again(root: Path) -> None:
    (root / "t.parquet").unlink()
    root.rmdir()
    root.mkdir()


def linked(root: Path) -> None:
    root.rename(root.with_name("v1"))
    root.symlink_to("v1")


def linked_elsewhere(root: Path) -> None:
    root.with_name("v2").mkdir()
    root.with_name("link").symlink_to("v2")
    root.with_name("link").rename(root)


@pytest.mark.parametrize("change", [moved, made_again, linked_elsewhere], ids=lambda change: str(change.__name__))
async def test_what_lies_in_another_directory_is_read(tmp_path: Path, change: Callable[[Path], None]) -> None:
    root = tmp_path / "data"
    root.mkdir()
    if change is linked_elsewhere:
        linked(root)
    async with Pool(tmp_path / "work", size=2, warm=2, readable=[root]) as pool:
        await until(lambda: len(pool._idle) == 2)
        assert await rows(pool, scan(root)) == ROWS
        change(root)
        for count in (7, 8):
            assert await rows(pool, scan(root, count)) == count


async def test_a_directory_that_is_not_there_is_told_and_read_once_it_is(tmp_path: Path) -> None:
    root = tmp_path / "data"
    with capture_logs() as logs:
        async with Pool(tmp_path / "work", size=1, warm=1, readable=[tmp_path, root]) as pool:
            await until(lambda: pool._idle)
    assert [line["path"] for line in logs if "is not there" in line["event"]] == [str(root)]
    async with Pool(tmp_path / "work", size=1, warm=1, readable=[root]) as pool:
        await until(lambda: pool._idle)
        root.mkdir()
        assert await rows(pool, scan(root)) == ROWS


async def test_who_reads_from_the_directory_of_before_goes_on_and_nobody_joins(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    async with Pool(tmp_path / "work", size=2, warm=1, readable=[root]) as pool:
        async with pool.run(scan(root)) as result:
            first = await anext(result)
            moved(root)
            assert await rows(pool, scan(root, 7)) == 7
            assert first.rows + sum([frame.rows async for frame in result]) == ROWS
        before = result._worker
        assert await rows(pool, scan(root, 8)) == 8
        await until(lambda: not before.alive() or before in pool._idle)


async def test_workers_that_rest_are_replaced_before_somebody_needs_them(tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    async with Pool(tmp_path / "work", size=1, warm=1, idle_seconds=0.4, readable=[root]) as pool:
        await until(lambda: pool._idle)
        worker = pool._idle[0]
        moved(root)
        await until(lambda: pool._idle and pool._idle[0] is not worker)
        assert not worker.alive()


async def test_a_disk_that_hangs_holds_up_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    over, look = threading.Event(), allowed_paths.directories
    async with Pool(tmp_path / "work", size=1, warm=1, readable=[tmp_path]) as pool:
        await until(lambda: pool._idle)
        monkeypatch.setattr(allowed_paths, "directories", lambda paths: look(paths) if over.wait() else ())
        try:
            for count in (7, 8):
                assert await rows(pool, scan(tmp_path, count)) == count
        finally:
            over.set()


@pytest.mark.skipif(
    tuple(map(int, os.uname().release.split(".")[:2])) < (6, 8),
    reason="needs Linux 6.8, whose mounts have unique numbers",
)
def test_each_mount_has_its_number() -> None:
    """By which a disk that is mounted again, with the same device and inodes, is another."""
    process, top, again = allowed_paths.directories(["/proc", "/", "/proc"])
    assert process == again
    assert 0 not in (process[2], top[2])
    assert process[2] != top[2]
