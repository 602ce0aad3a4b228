"""`make soak-stream`: memory stays where it was while much is streamed, to a slow reader, and to many at once.

    python -m benchmarks.soak_stream [--size 10] [--slow-seconds 60] [--readers 32]

Two connectors and every reader are real processes. Memory is the proportional set size of a process and all below it:
what several of them share counts once. Idle is a connector at rest after a first read, and a reader that has connected
and read nothing. One read carries the whole size: the dataset is a directory of hard links to one file, so the disk
holds that file only. The exit status is 1 if anything went more than 150 MB above idle.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import duckdb
from hanse.loaders import Loader
from rich.console import Console
from rich.progress import DownloadColumn, Progress, TransferSpeedColumn
from rich.table import Table

from benchmarks.stream.usage import Tree
from tests.load.resume.readers import Source, source
from tests.support import processes
from tests.support.children import forked
from tests.support.processes import Process

AIM_MB = 150.0
_FILE_BYTES = 2**30  # of one file, as Arrow
_ROW_BYTES = 116
_EVERY = 0.25
_TELL = 8_000_000  # bytes between two words of a reader
_SETTINGS = {"STREAMS_MAX": "128", "TICKET_SECONDS": "86400", "QUERY_SECONDS": "3600"}
_IMPORTED = "hanse.stream", "tests.load.resume.readers", "rich.progress", "rich.table"  # what no reader takes time for


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the soak: how many readers take how many bytes each, at most how fast."""

    name: str
    readers: int
    nbytes: int
    rate: float = 0.0  # bytes a second, 0: as fast as they come


@dataclass(slots=True)
class Watched:
    """The memory of one process and those below it, in MB."""

    name: str
    tree: Tree
    idle: float = 0.0
    peak: float = 0.0

    def rest(self) -> None:
        self.idle = self.peak = self.tree.memory_mb()

    def look(self) -> None:
        self.peak = max(self.peak, self.tree.memory_mb())

    @property
    def above(self) -> float:
        return self.peak - self.idle


@dataclass(slots=True)
class Found:
    """What a part has shown."""

    part: Part
    seconds: float
    nbytes: int
    watched: list[Watched] = field(default_factory=list)


def write(folder: Path, nbytes: int) -> tuple[Path, int]:
    """A directory of files with `nbytes` as Arrow between them, and about how many that are."""
    folder.mkdir(parents=True)
    count = max(1, round(nbytes / _FILE_BYTES))
    rows = min(nbytes, _FILE_BYTES) // _ROW_BYTES
    first = folder / "part-0000.parquet"
    with duckdb.connect(":memory:") as con:
        con.execute("SET enable_progress_bar = false")
        con.execute(
            f"""COPY (SELECT i AS id, hash(i) // 3 AS a, hash(i + 1) % 1000 AS b, (i % 10_007) / 7.0 AS c,
                (hash(i) % 100_000_000)::DECIMAL(15, 2) AS d, DATE '2020-01-01' + (i % 2_000)::INT AS e,
                'a text of row ' || i AS f, md5(i::VARCHAR) AS g FROM range({rows}) t(i))
                TO '{first}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122_880)"""
        )
    for number in range(1, count):
        os.link(first, folder / f"part-{number:04d}.parquet")
    return folder, count * rows * _ROW_BYTES


def _child(given: Source, part: Part, told: Connection) -> None:
    """Read `part.nbytes`, drop them, and say now and then how many came."""
    loader = Loader(given.open())  # it waits where all workers are taken
    told.send(0)
    told.recv()
    begun, came, said = time.monotonic(), 0, 0
    while came < part.nbytes:
        for batch in loader:
            came += batch.nbytes
            if came - said > _TELL:
                told.send(said := came)
            if part.rate:
                time.sleep(max(0.0, begun + came / part.rate - time.monotonic()))
            if came >= part.nbytes:
                break
    told.send(came)
    told.send(None)
    told.recv()


@contextmanager
def readers(given: Source, part: Part) -> Iterator[dict[Connection, Any]]:
    """The part's readers, connected and waiting for leave to read."""
    made: dict[Connection, Any] = {}
    started = forked(*_IMPORTED)
    try:
        for _ in range(part.readers):
            ours, theirs = started.Pipe()
            made[ours] = started.Process(target=_child, args=(given, part, theirs), daemon=True)
            made[ours].start()
            theirs.close()
        for pipe in made:
            pipe.recv()
        yield made
    finally:
        for child in made.values():
            child.kill()
            child.join()


@contextmanager
def looking(watched: Sequence[Watched]) -> Iterator[None]:
    """Look at everybody's memory until the block ends."""
    done = threading.Event()

    def look() -> None:
        while not done.wait(_EVERY):
            for one in watched:
                one.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def carry_out(part: Part, given: Source, connectors: Sequence[Watched], bar: Progress) -> Found:
    """Run the part; its figures. A reader that fails ends the soak."""
    with readers(given, part) as running:
        clients = [Watched("client", Tree(child.pid)) for child in running.values()]
        time.sleep(3)
        for one in (*connectors, *clients):
            one.rest()
        begun, came = time.monotonic(), dict.fromkeys(running, 0)
        for pipe in running:
            pipe.send(None)
        task = bar.add_task(part.name, total=part.readers * part.nbytes)
        reading = set(running)
        with looking([*connectors, *clients]):
            while reading:
                for pipe in [pipe for pipe in reading if pipe in wait(list(reading))]:
                    if (said := pipe.recv()) is None:
                        reading.discard(pipe)
                    else:
                        came[pipe] = said
                bar.update(task, completed=sum(came.values()))
        seconds = time.monotonic() - begun
    kept = [Watched(one.name, one.tree, one.idle, one.peak) for one in connectors]
    return Found(part, seconds, sum(came.values()), [*kept, max(clients, key=lambda one: one.above)])


def table(found: Sequence[Found]) -> Table:
    """A line for each process of each part."""
    shown = Table("part", "process", box=None)
    for name in ("GB", "s", "idle MB", "peak MB", "above", ""):
        shown.add_column(name, justify="right")
    for one in found:
        for watched in one.watched:
            judged = "met" if watched.above <= AIM_MB else "MISSED"
            figures = (one.nbytes / 1e9, one.seconds, watched.idle, watched.peak, watched.above)
            digits = (2, 0, 0, 0, 0)
            cells = [f"{figure:,.{places}f}" for figure, places in zip(figures, digits, strict=True)]
            shown.add_row(one.part.name, watched.name, *cells, judged)
    return shown


def agreed(north: Process, south: Process, name: str, path: Path) -> Source:
    """A dataset of the owner that the readers may read."""
    dataset, offer = north.offer(name, path)
    agreement, transfer = south.agree(north, dataset, offer)
    url = f"http://127.0.0.1:{south.management_port}"
    return source(url, south.token, name=name, dataset=dataset, agreement=agreement, transfer=transfer)


def soak(folder: Path, parts: Mapping[str, Sequence[Part]], *, size: int, tell: Callable[[str], None]) -> list[Found]:
    """The parts, by the dataset that they read: `whole` (of the size), and `again`, which fits what is prepared."""
    with (
        processes.two(folder, **_SETTINGS) as (north, south),
        Progress(
            *Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True)
        ) as bar,
    ):
        path, nbytes = write(north.directory / "data" / "whole", size)
        tell(f"{nbytes / 1e9:.1f} GB in one read, {shutil.disk_usage(folder).free / 1e9:.0f} GB free on the disk")
        again, _ = write(north.directory / "data" / "again", min(size // 10, 500_000_000))
        sources = {"whole": agreed(north, south, "whole", path), "again": agreed(north, south, "again", again)}
        assert north.running is not None
        assert south.running is not None
        connectors = [Watched("owner", Tree(north.running.pid)), Watched("consumer", Tree(south.running.pid))]
        first = Part("first read", 1, min(size, 100_000_000))
        carry_out(first, sources["again"], connectors, bar)
        return [carry_out(part, sources[name], connectors, bar) for name in parts for part in parts[name]]


def parts_of(size: int, *, slow_seconds: float, many: int) -> dict[str, list[Part]]:
    """The soak of a size in bytes."""
    return {
        "whole": [
            Part("whole", 1, size),
            Part("slow, 1 MB/s", 1, int(slow_seconds * 1e6), rate=1e6),
            Part(f"{many} readers", many, size // many),
        ],
        "again": [Part("prepared", 1, size // 4)],
    }


def main() -> int:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=10.0, help="GB, as Arrow")
    parser.add_argument("--slow-seconds", type=float, default=60.0)
    parser.add_argument("--readers", type=int, default=32)
    given = parser.parse_args()
    size = int(given.size * 1e9)
    parts = parts_of(size, slow_seconds=given.slow_seconds, many=given.readers)
    with tempfile.TemporaryDirectory(prefix="hanse-soak-") as folder:
        found = soak(Path(folder), parts, size=size, tell=print)
    Console(width=120).print(table(found))
    most = max(watched.above for one in found for watched in one.watched)
    print(f"at most {most:.0f} MB above idle (aim: {AIM_MB:.0f})")
    return 1 if most > AIM_MB else 0


if __name__ == "__main__":
    sys.exit(main())
