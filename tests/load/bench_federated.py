"""TPC-H over three owners, through real connectors with gate and policies on, against one DuckDB over the same files.

    python -m tests.load.bench_federated [--scale 0.1] [--layouts vertical horizontal] [--queries q03 q09]
                                         [--modes pull filter full] [--out figures.json]

For each query: bytes that came from the owners and wall time, for pulling tables, filters and columns only, full
pushdown, and full pushdown with zstd on the wire; next to them one DuckDB that has all files. Every answer is compared
with DuckDB's. Keys that are sent to owners are counted as bytes, too. Times are of one run on this machine, side by
side: read them as ratios.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from tests.support import tpch
from tests.support.federation import difference
from tests.support.federation_tpch import CUT, PLACES, PUBLIC, written_for
from tests.support.ports import free_range
from tests.support.processes import Client, Process

# Passing values on to another owner, to narrow its answer, needs its own permission.
POLICY = {"permission": [{"action": "use"}, {"action": "distribute"}]}
WAYS = {
    "pull": {"mode": "pull", "wire": "none"},
    "filter": {"mode": "filter", "wire": "none"},
    "full": {"mode": "full", "wire": "none"},
    "full zstd": {"mode": "full", "wire": "zstd"},
}
SHARES = {"cut": [{"orders": "o_orderkey", "lineitem": "l_orderkey"}], "copies": list(PUBLIC)}
MEGA = 1e6


@dataclass
class Space:
    """Three owners a, b, c and an asker, each a process; the asker holds an agreement on every dataset."""

    owners: dict[str, Process]
    asker: Process
    kept: ExitStack = field(default_factory=ExitStack)

    def ask(
        self, sql: str, way: dict[str, str], *, shares: bool
    ) -> tuple[list[tuple[Any, ...]], dict[str, Any], float]:
        """Rows, the end record, and the seconds until the last byte."""
        api = Client(self.asker.management_port, token=self.asker.token, prefix="/api/v1", timeout=900)
        body = {"sql": sql, **way, "limits": {"seconds": 800, "bytes": 40 * 2**30}}
        if shares:
            body["shares"] = SHARES
        begun = time.perf_counter()
        data = api.call("POST", "/queries", body)
        seconds = time.perf_counter() - begun
        api.close()
        rows, end = read(data)
        if end.get("status") != "complete":
            raise RuntimeError(f"{end.get('code')}: {end.get('reason')}")
        return rows, end, seconds


def read(data: bytes) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """The rows and the end record of an answer."""
    rows: list[tuple[Any, ...]] = []
    with pa.ipc.open_stream(data) as reader:
        while True:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
            if metadata is not None:
                return rows, json.loads(metadata[b"hanse.end"])
            rows += zip(*(column.to_pylist() for column in batch.columns), strict=True)


def cut(folder: Path, kind: str, target: Path) -> dict[tuple[str, str], Path]:
    """The owners' files of a layout: (owner, dataset) -> Parquet."""
    found: dict[tuple[str, str], Path] = {}
    with duckdb.connect(":memory:") as con:
        for name in tpch.TABLES:
            owners = ["a", "b", "c"] if name in PUBLIC or (kind == "horizontal" and name in CUT) else [PLACES[name]]
            for number, owner in enumerate(owners):
                path = target / owner / f"{name}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                where = f"WHERE {CUT[name]} % 3 = {number}" if kind == "horizontal" and name in CUT else ""
                source = f"SELECT * FROM read_parquet('{folder / name}.parquet') {where}"
                con.execute(f"COPY ({source}) TO '{path}' (FORMAT parquet, COMPRESSION zstd)")
                found[owner, name] = path
    return found


@contextmanager
def space(directory: Path, files: dict[tuple[str, str], Path]) -> Iterator[Space]:
    """The data space, every dataset registered, offered and agreed on."""
    first = free_range(8)
    settings = {"WORKER_MEMORY_MB": "1024", "QUERY_SECONDS": "800", "STREAMS_MAX": "64", "TICKET_SECONDS": "86400"}
    names = ("a", "b", "c", "asker")
    made = {
        name: Process(name, directory / name, first + 2 * place, first + 2 * place + 1, settings=settings)
        for place, name in enumerate(names)
    }
    try:
        for process in made.values():
            process.start()
        for (owner, dataset), path in files.items():
            agree(made[owner], made["asker"], dataset, path)
        yield Space({name: made[name] for name in names[:3]}, made["asker"])
    finally:
        for process in made.values():
            process.kill()


def agree(owner: Process, asker: Process, dataset: str, path: Path) -> None:
    """From a file to a started transfer."""
    api, ours = owner.api(), asker.api()
    place = owner.directory / f"{dataset}.parquet"
    path.replace(place)
    made = api.post("/datasets", {"name": dataset, "path": str(place)})
    offer = api.post("/offers", {"dataset": dataset, "policy": POLICY, "decide": "auto"})
    negotiation = ours.post(
        "/negotiations",
        {
            "counter_party_id": owner.participant,
            "counter_party_address": owner.base,
            "dataset": made["id"],
            "offer_id": offer["id"],
        },
    )
    done = ours.get(f"/negotiations/{negotiation['id']}?wait=30&until=FINALIZED")
    transfer = ours.post("/transfers", {"agreement_id": done["agreement_id"], "format": "HttpData-PULL"})
    started = ours.get(f"/transfers/{transfer['id']}?wait=30&until=STARTED")
    if started["state"] != "STARTED":
        raise RuntimeError(f"{owner.name}.{dataset}: expected a started transfer, came {started['state']}")
    api.close()
    ours.close()


@dataclass
class Figures:
    """One query: bytes and seconds a way, and whether the answers were right."""

    query: str
    central: float
    bytes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def measure(running: Space, kind: str, folder: Path, ways: list[str], queries: list[str]) -> list[Figures]:
    """Every query in every way."""
    found = []
    central = duckdb.connect(":memory:", config={"threads": 2})
    for table in tpch.TABLES:
        central.execute(f"CREATE VIEW {table} AS FROM read_parquet('{folder / table}.parquet')")
    for name, sql in tpch.queries().items():
        if queries and name not in queries:
            continue
        begun = time.perf_counter()
        wanted = central.sql(sql).fetchall()
        figures = Figures(name, time.perf_counter() - begun)
        for way in ways:
            try:
                rows, end, seconds = running.ask(written_for(kind, sql), WAYS[way], shares=True)
            except Exception as error:  # noqa: BLE001  a failure is a figure, too
                figures.wrong.append(f"{way}: {error}")
                continue
            figures.bytes[way] = sum(one["bytes"] + one["keys_bytes"] for one in end["owners"])
            figures.seconds[way] = seconds
            if wrong := difference(rows, wanted):
                figures.wrong.append(f"{way}: {wrong}")
        found.append(figures)
        print(_line(figures, ways), flush=True)
    return found


def _line(figures: Figures, ways: list[str]) -> str:
    parts = [f"{figures.query}  {figures.central:7.2f} s"]
    for way in ways:
        if way in figures.bytes:
            parts.append(f"{figures.bytes[way] / MEGA:10.3f} MB {figures.seconds[way]:7.2f} s")
        else:
            parts.append(" " * 22)
    return "  ".join(parts) + ("" if not figures.wrong else "  WRONG " + "; ".join(figures.wrong)[:200])


def report(kind: str, found: list[Figures], ways: list[str]) -> bool:
    """Sums and ratios; whether every answer was right."""
    print(f"\n{kind}: {sum(not one.wrong for one in found)} of {len(found)} queries right in every way")
    total = {way: sum(one.bytes.get(way, 0) for one in found) for way in ways}
    for way in ways:
        print(f"  {way:10s} {total[way] / MEGA:12.3f} MB")
    if total.get("full"):
        for way in ("filter", "pull"):
            if way in total:
                print(f"  {way} : full = {total[way] / total['full']:.0f} : 1 in bytes")
    if "full zstd" in ways:
        small = sum(one.bytes.get("full zstd", math.inf) < MEGA for one in found)
        print(f"  {small} of {len(found)} queries under 1 MB with zstd")
    for way in [way for way in ways if way.startswith("full")]:
        ratios = [one.seconds[way] / one.central for one in found if way in one.seconds]
        long = [one.seconds[way] / one.central for one in found if way in one.seconds and one.central > 0.1]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            print(f"  {way}: {mean:.2f} times the central DuckDB (geometric mean)", end="")
            print(f"; at worst {max(long):.1f} over queries longer than 100 ms" if long else "")
    return not any(one.wrong for one in found)


def main() -> int:
    """Run it; the exit status is 0 if every answer was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=0.1)
    parser.add_argument("--layouts", nargs="+", default=["vertical", "horizontal"])
    parser.add_argument("--modes", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--queries", nargs="+", default=[])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    right, told = True, {}
    with tempfile.TemporaryDirectory(prefix="hanse-bench-") as held:
        folder = Path(held)
        print(f"TPC-H at scale factor {asked.scale:g} ...", flush=True)
        tpch.generate(folder, scale=asked.scale)
        for kind in asked.layouts:
            print(f"\n{kind}: query, one DuckDB, then bytes and time for {', '.join(asked.modes)}", flush=True)
            files = cut(folder, kind, folder / f"files-{kind}")
            with space(folder / kind, files) as running:
                found = measure(running, kind, folder, asked.modes, asked.queries)
            right = report(kind, found, asked.modes) and right
            told[kind] = [vars(one) for one in found]
    if asked.out:
        asked.out.write_text(json.dumps({"scale": asked.scale, "layouts": told}, indent=1))
    return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
