"""The data plane side by side with what else could carry the bytes: `make bench-stream`.

    python -m benchmarks.bench_stream [--scale 1] [--rounds 5] [--tables lineitem floats images] [--only WORD ...]
                                      [--folder var/bench] [--out figures.json]

Three tables (TPC-H lineitem, wide floats, images as bytes), every way of reading them in rotated rounds, medians of
ratios within a round. The owner is a real connector, as an operator starts it, with a second one as the consumer that
negotiates; every reader is a process of its own. All over loopback on this machine: read figures as ratios.
Then what stops a stream, a client that does not read, and the aims with what was reached.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from benchmarks.stream import aims, ground, stops
from benchmarks.stream.clients import Took, measured
from benchmarks.stream.space import Space, running
from benchmarks.stream.tables import Table, tables
from benchmarks.stream.usage import Tree

ONE = "hanse, one batch"  # what a read costs besides its bytes


@dataclass
class Way:
    """One way of reading a table: what the client does, and the processes that serve it."""

    name: str
    does: str
    given: tuple[Any, ...]
    served_by: Tree | None = None
    nbytes: int = 0
    took: list[Took] = field(default_factory=list)
    server_cpu: list[float] = field(default_factory=list)
    server_mb: float = 0.0

    def run(self, room: int) -> None:
        """Once more, with so many bytes of memory at hand."""
        ground.warm(room)
        if self.served_by is not None:
            self.served_by.mark()
        found = measured(self.does, *self.given)
        self.took.append(found)
        if self.served_by is not None:
            self.server_cpu.append(self.served_by.cpu_since_mark())
            self.server_mb = max(self.server_mb, self.served_by.peak_mb())

    @property
    def failed(self) -> str:
        return next((took.failed for took in self.took if took.failed), "")


def ways_of(table: Table, number: int, space: Space) -> list[Way]:
    """Every way, in the order of the report."""
    path, wanted = str(table.parquet), table.filtered
    condition, columns = (wanted.column, wanted.operator, wanted.value), list(wanted.columns)
    files = f"http://127.0.0.1:{space.ports['files']}/{table.parquet.name}"
    picked = "?" + urlencode({"columns": ",".join(columns)})

    def ours(name: str, does: str, dataset: str, query: str = "") -> Way:
        url, token = space.address(dataset)
        return Way(name, does, (url + query, token), space.tree(dataset))

    def other(name: str, server: str, does: str, *given: Any) -> Way:
        return Way(name, does, given, space.trees[server])

    certificate = str(space.certificate)
    flight, secure = f"grpc://127.0.0.1:{space.ports['flight']}", f"grpc+tls://127.0.0.1:{space.ports['flight-tls']}"
    return [
        other("raw socket", "raw", "raw", space.ports["raw"], number, ""),
        ours("hanse, in memory", "hanse", f"{table.name}_memory"),
        ours("hanse, prepared", "hanse", f"{table.name}_ready"),
        ours(ONE, "hanse", f"{table.name}_one"),
        other("flight", "flight", "flown", flight, str(number)),
        Way(
            "hanse, flight", "governed_flight", space.flight(f"{table.name}_memory"), space.tree(f"{table.name}_memory")
        ),
        ours("urllib3 + open_stream", "plain_urllib3", f"{table.name}_memory"),
        ours("requests + open_stream", "plain_requests", f"{table.name}_memory"),
        other("raw TLS socket", "raw-tls", "raw", space.ports["raw-tls"], number, certificate),
        ours("hanse, TLS", "hanse", f"{table.name}_secure"),
        other("flight TLS", "flight-tls", "flown", secure, str(number), "", certificate),
        Way(
            "hanse, flight TLS",
            "governed_flight",
            (*space.flight(f"{table.name}_secure"), certificate),
            space.tree(f"{table.name}_secure"),
        ),
        Way("local iter", "local_iter", (path,)),
        Way("local scanner", "local_scanner", (path, [], None)),
        Way("local whole", "local_whole", (path, [], None)),
        Way("local duckdb", "local_duckdb", (path, [], None)),
        ours("hanse, parquet", "hanse", f"{table.name}_open"),
        other("bare", "bare", "hanse", f"http://127.0.0.1:{space.ports['bare']}/{number}", ""),
        ours("hanse, masked", "hanse", f"{table.name}_masked"),
        Way("local scanner, filtered", "local_scanner", (path, columns, condition)),
        Way("local whole, filtered", "local_whole", (path, columns, condition)),
        Way("local duckdb, filtered", "local_duckdb", (path, columns, condition)),
        ours("hanse, filtered", "hanse", f"{table.name}_filtered", picked),
        ours("hanse, prepared filtered", "hanse", f"{table.name}_ready_filtered", picked),
        other("http ranges to table", "files", "ranged_table", files, [], None),
        other("http download to table", "files", "downloaded_table", files, [], None),
        ours("hanse to table", "hanse_table", f"{table.name}_open"),
        other("http ranges to table, filtered", "files", "ranged_table", files, columns, condition),
        other("http download to table, filtered", "files", "downloaded_table", files, columns, condition),
        ours("hanse to table, filtered", "hanse_table", f"{table.name}_filtered", picked),
    ]


def measure(ways: list[Way], rounds: int, room: int) -> None:
    """Everything once to warm up, then in rounds, each beginning some places further, every other one backwards: no way
    comes after the same one each time, and what is compared in one round stands close together."""
    for way in ways:
        way.run(room)
        if way.failed:
            print(f"  {way.name}: {way.failed[:300]}", flush=True)
        way.took.clear()
        way.server_cpu.clear()
    for number in range(rounds):
        at = number * 3 % len(ways)
        turned = ways[at:] + ways[:at]
        for way in turned[::-1] if number % 2 else turned:
            way.run(room)


def report(table: Table, ways: list[Way]) -> None:
    """GB/s of Arrow bytes, time to the first batch, processor seconds per GB and peak memory of both sides."""
    print(
        f"\n{table.name}: {table.nbytes / 1e6:.0f} MB as Arrow, {table.parquet.stat().st_size / 1e6:.0f} MB as Parquet"
    )
    print(
        f"  {'':34}{'GB/s':>7}{'first ms':>10}{'CPU s/GB server':>17}{'client':>8}{'peak MB server':>16}{'client':>8}"
    )
    for way in ways:
        if way.failed:
            print(f"  {way.name:34} failed: {way.failed[:80]}")
            continue
        if way.name == ONE:
            print(f"  {way.name:34}{_fixed(way)}")
            continue
        size = way.nbytes / 1e9
        server = statistics.median(way.server_cpu) / size if way.server_cpu else 0.0
        print(
            f"  {way.name:34}{size / statistics.median(t.seconds for t in way.took):7.2f}"
            f"{statistics.median(t.first for t in way.took) * 1e3:10.0f}{server:17.2f}"
            f"{statistics.median(t.cpu for t in way.took) / size:8.2f}{way.server_mb:16.0f}"
            f"{max(t.peak_mb for t in way.took):8.0f}"
        )


def _fixed(way: Way) -> str:
    """What is the same for a read of any length; means, as one such read is about a tick of the kernel's clock."""
    first, client = (statistics.median(getattr(t, name) for t in way.took) * 1e3 for name in ("first", "cpu"))
    server = statistics.fmean(way.server_cpu) * 1e3
    return f"a read's own: first batch after {first:.0f} ms; CPU server {server:.0f} ms, client {client:.0f} ms"


def sized(table: Table, ways: list[Way]) -> None:
    """The Arrow bytes behind each way: all of the table, or those of the filtered answer."""
    import duckdb

    with duckdb.connect(":memory:") as con:
        con.execute("SET enable_progress_bar = false")
        small = con.sql(table.filtered.sql(f"read_parquet('{table.parquet}')")).to_arrow_table().nbytes
    for way in ways:
        way.nbytes = small if "filtered" in way.name else table.nbytes


def main() -> int:
    """Run it and print the aims; the exit status is 0: this measures, it does not judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tables", nargs="+", default=["lineitem", "floats", "images"])
    parser.add_argument("--only", nargs="+", default=[], help="ways whose name holds one of these words")
    parser.add_argument("--no-stops", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("var/bench"))
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    begun = time.monotonic()
    print(f"load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores, scale {asked.scale:g}", flush=True)
    made = tables(asked.folder.resolve(), scale=asked.scale, only=asked.tables)
    found: dict[str, dict[str, Way]] = {}
    with tempfile.TemporaryDirectory(prefix="hanse-bench-") as held, running(Path(held), made) as space:
        for number, table in enumerate(made):
            ways = [w for w in ways_of(table, number, space) if not asked.only or any(o in w.name for o in asked.only)]
            sized(table, ways)
            measure(ways, asked.rounds, 2 * table.nbytes)
            report(table, ways)
            found[table.name] = {way.name: way for way in ways if not way.failed}
        stopped = {} if asked.no_stops else stops.measure(space, made[0])
    aims.table(found, stopped)
    print(f"load {os.getloadavg()[0]:.1f} at the end, {time.monotonic() - begun:.0f} s in all")
    if asked.out:
        told = {
            name: {way.name: [asdict(t) for t in way.took] for way in ways.values()} for name, ways in found.items()
        }
        asked.out.write_text(json.dumps({"scale": asked.scale, "tables": told, "stops": stopped}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
