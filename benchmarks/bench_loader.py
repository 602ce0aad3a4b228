"""PyTorch's loader side by side with the SDK's plain batches: `make bench-loader`, in the environment of the loaders.

    python -m benchmarks.bench_loader [--scale 0.25] [--rounds 3] [--tables floats images] [--folder var/bench]
                                      [--later]

One owner as an operator starts it, one consumer that negotiated; each reader is a process of its own, in rotated
rounds, and every batch is dropped as it comes. Ways:

    plain             `Dataset.stream()`: Arrow batches
    loader            `Dataset.loader(batch_size=...)`: the same in an order, read ahead in a thread
    torch, here       `to_torch` in one process: a dict of tensors; the recommended way, which the aim is about, at
                      least 0.85 of plain
    torch, 2 workers  the same by a DataLoader with two workers
    2, tensors        the same, and bytes as tensors over the memory that they came in: as plain batches have them

With `--later` every pass is a later epoch of one job, in an order of its own: the owner has kept what left before.

Printed for each: MB of Arrow a second from the first batch to the last (what a job has that runs for hours), and with
the start, which for workers is their start too. The aim is held against the first. Tables without PyTorch's types
(decimals, texts) become Python values there, so the aim is for numbers and for blobs: floats and images.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hanse
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset

from benchmarks.stream import ground
from benchmarks.stream.tables import Table, tables
from benchmarks.stream.usage import Tree
from tests.support.ports import free_range
from tests.support.processes import Process

_BATCH_ROWS = {"lineitem": 8192, "floats": 4096, "images": 64}
_AIM = 0.85
_JUDGED = "torch, here"


@dataclass
class Took:
    """Seconds to the first batch and to the last; processor seconds of the reader and its workers."""

    first: float
    seconds: float
    cpu: float
    batches: int
    owner_cpu: float = 0.0


@dataclass
class Way:
    name: str
    read: Callable[..., Iterable[Any]]
    took: list[Took] = field(default_factory=list)


def _torch(dataset: Any, rows: int, workers: int, **order: Any) -> Iterable[Any]:
    from torch.utils.data import DataLoader

    return DataLoader(dataset.to_torch(batch_size=rows, **order), batch_size=None, num_workers=workers)


def _plain(dataset: Any, _: int, **__: Any) -> Iterable[Any]:
    found: Iterable[Any] = dataset.stream()
    return found


def _loader(dataset: Any, rows: int, **order: Any) -> Iterable[Any]:
    found: Iterable[Any] = dataset.loader(batch_size=rows, **order)
    return found


def _here(dataset: Any, rows: int, **order: Any) -> Iterable[Any]:
    return _torch(dataset, rows, 0, **order)


def _workers(dataset: Any, rows: int, **order: Any) -> Iterable[Any]:
    return _torch(dataset, rows, 2, **order)


def _tensors(dataset: Any, rows: int, **order: Any) -> Iterable[Any]:
    return _torch(dataset, rows, 2, blobs="tensors", **order)


WAYS = {"plain": _plain, "loader": _loader, "torch, here": _here, "torch, 2 workers": _workers}
BLOB_WAYS = {"2, tensors": _tensors}


def _read(
    way: str, url: str, token: str, access: TransferAccess, rows: int, order: dict[str, Any], room: int, answer: Any
) -> None:
    """In a process of its own: one read, everything loaded before the clock runs."""
    importlib.import_module("hanse.loaders.torch.batches")  # not at the top: whoever measures needs no PyTorch

    with hanse.connect(url, token) as space:
        multiprocessing.set_start_method("fork", force=True)  # as in a job: we were spawned, and it would be for us too
        dataset = Dataset(space, access)
        ground.warm(room)
        cpu = _cpu()
        begun, first, count = time.perf_counter(), 0.0, 0
        for _ in (WAYS | BLOB_WAYS)[way](dataset, rows, **order):
            first = first or time.perf_counter() - begun
            count += 1
        seconds = time.perf_counter() - begun
    answer.put(Took(first, seconds, _cpu() - cpu, count))


def _cpu() -> float:
    """Processor seconds of this process and the workers that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _measured(*given: Any) -> Took:
    context = multiprocessing.get_context("spawn")
    answer = context.SimpleQueue()
    process = context.Process(target=_read, args=(*given, answer))
    process.start()
    process.join(600)
    if process.exitcode != 0:
        raise RuntimeError(f"expected a read of {given[0]} to end well, came exit code {process.exitcode}")
    found: Took = answer.get()
    return found


def report(table: Table, ways: list[Way]) -> bool:
    """Print the table; whether the aim is met."""
    size, plain = table.nbytes / 1e6, ways[0]
    print(f"\n{table.name}: {size:.0f} MB as Arrow, batches of {_BATCH_ROWS[table.name]} rows")
    heads = ("of plain", 10), ("with start", 12), ("of plain", 10), ("first ms", 10), ("CPU s/GB", 10), ("owner", 8)
    print(f"  {'':20}{'MB/s':>8}{''.join(head.rjust(width) for head, width in heads)}")
    ratios = {}
    for way in ways:
        pairs = list(zip(plain.took, way.took, strict=True))
        ratios[way.name] = ratio = statistics.median((p.seconds - p.first) / (w.seconds - w.first) for p, w in pairs)
        whole = statistics.median(p.seconds / w.seconds for p, w in pairs)
        print(
            f"  {way.name:20}{size / statistics.median(t.seconds - t.first for t in way.took):8.0f}{ratio:10.2f}"
            f"{size / statistics.median(t.seconds for t in way.took):12.0f}{whole:10.2f}"
            f"{statistics.median(t.first for t in way.took) * 1e3:10.0f}"
            f"{statistics.median(t.cpu for t in way.took) / size * 1e3:10.2f}"
            f"{statistics.median(t.owner_cpu for t in way.took) / size * 1e3:8.2f}"
        )
    met = (ratio := ratios[_JUDGED]) >= _AIM
    print(f"  aim: {_JUDGED} at least {_AIM} of plain: {ratio:.2f}, {'met' if met else 'MISSED'}")
    return met


def main() -> int:
    """The exit status is 0: this measures, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", default=["floats", "images"], choices=list(_BATCH_ROWS))
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--later", action="store_true", help="epochs after the first, which the owner has kept")
    asked = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, scale {asked.scale:g}", flush=True)
    made = tables(asked.folder.resolve(), scale=asked.scale, only=asked.tables)
    with tempfile.TemporaryDirectory(prefix="hanse-bench-") as held:
        first = free_range(4)
        room = "20000" if asked.later else "0"
        settings = {"SOURCE_ROOTS": str(made[0].parquet.parent), "PREPARED_MB": room, "STREAMS_MAX": "64"}
        north = Process("north", Path(held) / "north", first, first + 1, settings=settings)
        south = Process("south", Path(held) / "south", first + 2, first + 3)
        try:
            north.start()
            south.start()
            for table in made:
                dataset, offer = north.offer(table.name, table.parquet)
                access = TransferAccess(Name("north", table.name), dataset, *south.agree(north, dataset, offer), "")
                known = WAYS | (BLOB_WAYS if table.name == "images" else {})
                ways = [Way(name, read) for name, read in known.items()]
                _rounds(access, ways, (north, south), asked.rounds, 2 * table.nbytes, later=asked.later)
                report(table, ways)
        finally:
            north.kill()
            south.kill()
    return 0


def _rounds(
    access: TransferAccess, ways: list[Way], two: tuple[Process, Process], rounds: int, room: int, *, later: bool
) -> None:
    north, south = two
    url, rows = f"http://127.0.0.1:{south.management_port}", _BATCH_ROWS[access.name.dataset]
    assert north.running is not None
    for number in range(-1, rounds):  # the first warms up
        at = max(0, number) % len(ways)
        for epoch, way in enumerate(ways[at:] + ways[:at], (number + 1) * len(ways)):
            before = Tree(north.running.pid).cpu()
            order = {"seed": 7, "epoch": epoch} if later else {}
            found = _measured(way.name, url, south.token, access, rows, order, room)
            found.owner_cpu = Tree(north.running.pid).cpu() - before
            if number >= 0:
                way.took.append(found)


if __name__ == "__main__":
    sys.exit(main())
