"""TPC-H over three owners, through real connectors with gate and policies on, against one DuckDB over the same files.

    python -m benchmarks.bench_federated [--scale 1] [--layouts vertical horizontal] [--queries q03 q09]
                                         [--modes pull filter full] [--repeat 3] [--memory 320] [--out figures.json]
                                         [--plans]

For each query: bytes that came from the owners and wall time, for pulling tables, filters and columns only, full
pushdown, and full pushdown with lz4 and zstd on the wire; next to them one DuckDB over the same files. Every answer is
compared with DuckDB's. Keys that are sent to owners are counted as bytes, too. Times are the best of `--repeat`, side
by side on this machine: read them as ratios; pulling and filtering, whose bytes are what counts, run once. Also: what
the same plan takes by itself, in plain DuckDB without connectors (`benchmarks.plan_alone`), the planner's processor
time, in milliseconds and as a ratio to a fixed piece of work next to it (`benchmarks.yardstick`), and the most memory
that each connector took with its workers (proportional set size).
Beyond scale factor 3 the default is full pushdown with zstd, once. Without `--memory` the engine in each worker has
what the settings give it. The files stay in var/bench for the next run.

`--plans`: only the planner's processor time, in this process and in a minute: the median of `--repeat` (30) plans of
each query, from its text, once every query has been planned before. Each plan is followed by the fixed piece of work,
so both meet the same load: their ratio holds on a busy machine, milliseconds do not.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from benchmarks.plan_alone import Alone
from benchmarks.yardstick import yardstick
from connector.federation.planner import sql_text
from connector.federation.planner.model import Tables
from connector.federation.planner.planner import plan
from tests.support import tpch
from tests.support.cpu import Used
from tests.support.federation import difference
from tests.support.federation_tpch import CUT, PLACES, PUBLIC, layout, written_for
from tests.support.memory import watched
from tests.support.ports import free_range
from tests.support.processes import Client, Process

# Passing values on to another owner, to narrow its answer, needs its own permission.
POLICY = {"permission": [{"action": "use"}, {"action": "distribute"}]}
WAYS = {
    "pull": {"mode": "pull", "wire": "none"},
    "filter": {"mode": "filter", "wire": "none"},
    "full": {"mode": "full", "wire": "none"},
    "full lz4": {"mode": "full", "wire": "lz4"},
    "full zstd": {"mode": "full", "wire": "zstd"},
}
SHARES = {"cut": [{"orders": "o_orderkey", "lineitem": "l_orderkey"}], "copies": list(PUBLIC)}
MEGA = 1e6
ONCE = ("pull", "filter")
SETTLED = 0.3  # seconds after an answer in which what it left to do is done: records, engines for the next one
_LONG = 0.1  # seconds
LARGE = 3  # scale factors beyond this are run for their memory
# What the ratios of a layout should be (federated-query, section 9.6): of bytes, of queries under 1 MB, of times, of a
# plan's processor time to the yardstick's; and megabytes of memory.
BARS = {"filter": 40, "pull": 250, "small": 19, "mean": 1.5, "worst": 4.0, "planning": 1.5, "memory": 1000}


@dataclass
class Space:
    """Three owners a, b, c and an asker, each a process; the asker holds an agreement on every dataset."""

    owners: dict[str, Process]
    asker: Process

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
    """The owners' files of a layout: (owner, dataset) -> Parquet; what one owner has whole is the very file."""
    found: dict[tuple[str, str], Path] = {}
    with duckdb.connect(":memory:") as con:
        for name in tpch.TABLES:
            owners = ["a", "b", "c"] if name in PUBLIC or (kind == "horizontal" and name in CUT) else [PLACES[name]]
            for number, owner in enumerate(owners):
                path = found[owner, name] = target / owner / f"{name}.parquet"
                if path.exists():
                    continue
                path.parent.mkdir(parents=True, exist_ok=True)
                if len(owners) == 1:
                    path.hardlink_to(folder / f"{name}.parquet")
                    continue
                draft = path.with_suffix(".part")
                where = f"WHERE {CUT[name]} % 3 = {number}" if kind == "horizontal" and name in CUT else ""
                source = f"SELECT * FROM read_parquet('{folder / name}.parquet') {where}"
                con.execute(f"COPY ({source}) TO '{draft}' (FORMAT parquet, COMPRESSION zstd)")
                draft.replace(path)
    return found


@contextmanager
def space(directory: Path, files: dict[tuple[str, str], Path], *, memory: int | None) -> Iterator[Space]:
    """The data space, every dataset registered, offered and agreed on."""
    first = free_range(8)
    settings = {"QUERY_SECONDS": "800", "STREAMS_MAX": "64"}
    if memory is not None:
        settings["WORKER_MEMORY_MB"] = str(memory)
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
    place.hardlink_to(path)
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
    alone: float = math.inf  # the plan by itself
    planning: float = math.inf  # milliseconds of processor time
    yardstick: float = math.inf  # the same of the fixed piece of work, next to the plans
    central_cpu: float = math.inf
    cpu: dict[str, float] = field(default_factory=dict)  # seconds of processor time a way, of owners and asker
    bytes: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def measure(
    running: Space,
    kind: str,
    files: Mapping[tuple[str, str], Path],
    ways: list[str],
    queries: list[str],
    *,
    repeat: int,
) -> list[Figures]:
    """Every query in every way."""
    found = []
    central, alone = over_all(files), Alone(kind, files)
    running.ask(written_for(kind, "SELECT count(*) FROM region"), WAYS["full"], shares=True)  # loads the planner
    used = Used(_leaders(running).values())
    for name, sql in tpch.queries().items():
        if queries and name not in queries:
            continue
        figures = Figures(name, math.inf)
        for turn in range(repeat):
            begun, worked = time.perf_counter(), time.process_time()
            wanted = central.sql(sql).fetchall()
            figures.central = min(figures.central, time.perf_counter() - begun)
            figures.central_cpu = min(figures.central_cpu, time.process_time() - worked)
            figures.alone = min(figures.alone, alone.ask(written_for(kind, sql))[1])
            for way in ways:
                if turn == 0 or way not in ONCE:
                    _one(running, figures, way, written_for(kind, sql), wanted, used)
        found.append(figures)
        print(_line(figures, ways), flush=True)
    return found


def over_all(files: Mapping[tuple[str, str], Path]) -> duckdb.DuckDBPyConnection:
    """One DuckDB over the owners' very files; of what every owner has a copy of, over one."""
    central = duckdb.connect(":memory:")
    for table in tpch.TABLES:
        paths = [str(path) for (_, name), path in files.items() if name == table]
        central.execute(f"CREATE VIEW {table} AS FROM read_parquet({paths[:1] if table in PUBLIC else paths})")
    return central


def _one(running: Space, figures: Figures, way: str, sql: str, wanted: list[tuple[Any, ...]], used: Used) -> None:
    """Ask once, and keep the best time."""
    worked = used.seconds()
    try:
        rows, end, seconds = running.ask(sql, WAYS[way], shares=True)
    except Exception as error:  # noqa: BLE001  a failure is a figure, too
        figures.wrong.append(f"{way}: {error}")
        return
    figures.yardstick = min(figures.yardstick, yardstick())
    figures.bytes[way] = sum(one["bytes"] + one["keys_bytes"] for one in end["owners"])
    figures.seconds[way] = min(seconds, figures.seconds.get(way, math.inf))
    time.sleep(SETTLED)
    figures.cpu[way] = min(used.seconds() - worked, figures.cpu.get(way, math.inf))
    if WAYS[way]["mode"] == "full":
        figures.planning = min(end["planning_ms"], figures.planning)
    if wrong := difference(rows, wanted):
        figures.wrong.append(f"{way}: {wrong}")


def plans(data: Path, kinds: list[str], queries: list[str], *, repeat: int) -> int:
    """Processor time for the plan of each query; 0 if all keep the bar."""
    folder, most = generated(data / "tpch-0.01", 0.01), Ratio(0.0, math.inf)
    for kind in kinds:
        tables = layout(kind, folder).tables
        asked = {name: written_for(kind, sql) for name, sql in tpch.queries().items() if name in (queries or [name])}
        for sql in asked.values():
            _planned(sql, tables)
        gc.collect()
        gc.freeze()  # as a connector does with what it starts with
        taken = {name: _ratio(sql, tables, repeat) for name, sql in asked.items()}
        print(
            f"{kind}: " + ", ".join(f"{name} {one.ms:.1f} ms {one.times:.2f}" for name, one in taken.items()),
            flush=True,
        )
        most = max(most, *taken.values(), key=lambda one: one.times)
    _say_planning(most)
    return 0 if most.times <= BARS["planning"] else 1


@dataclass(frozen=True, slots=True)
class Ratio:
    """Processor time of a plan and of the yardstick next to it, in milliseconds."""

    ms: float
    yardstick_ms: float

    @property
    def times(self) -> float:
        return self.ms / self.yardstick_ms


def _ratio(sql: str, tables: Tables, repeat: int) -> Ratio:
    """The pair of median ratio among `repeat` plans, each followed by the yardstick."""
    pairs = [Ratio(_planned(sql, tables), yardstick()) for _ in range(repeat)]
    return sorted(pairs, key=lambda one: one.times)[len(pairs) // 2]


def _say_planning(most: Ratio) -> None:
    took = f"{most.ms:.1f} ms to {most.yardstick_ms:.1f} ms"
    _say(
        f"processor time of a plan to that of a fixed piece of work, worst query ({took})", most.times, BARS["planning"]
    )


def _planned(sql: str, tables: Tables) -> float:
    """Milliseconds of processor time for a plan, as a connector counts them."""
    begun = time.thread_time()
    tree = sql_text.read(sql)
    sql_text.datasets(tree)
    plan(sql, tables, tree=tree, across_agreements=True)
    return (time.thread_time() - begun) * 1000


def _line(figures: Figures, ways: list[str]) -> str:
    central = f"{figures.central:7.2f} s {figures.central_cpu:7.2f} {figures.alone:7.2f} s"
    planning = f"{figures.planning:5.1f} ms {figures.planning / figures.yardstick:5.2f}"
    parts = [f"{figures.query}  {central}", planning]
    for way in ways:
        if way in figures.bytes:
            parts.append(f"{figures.bytes[way] / MEGA:10.3f} MB {figures.seconds[way]:7.2f} s {figures.cpu[way]:7.2f}")
        else:
            parts.append(" " * 30)
    return "  ".join(parts) + ("" if not figures.wrong else "  WRONG " + "; ".join(figures.wrong)[:200])


def report(kind: str, found: list[Figures], ways: list[str], memory: dict[str, int], *, scale: float) -> bool:
    """Sums and ratios beside what they should be; whether every answer was right."""
    print(f"\n{kind}: {sum(not one.wrong for one in found)} of {len(found)} queries right in every way")
    total = {way: sum(one.bytes.get(way, 0) for one in found) for way in ways}
    seconds = {way: sum(one.seconds.get(way, 0) for one in found) for way in ways}
    print(f"  {'one DuckDB':10s} {'':15s} {sum(one.central for one in found):8.2f} s")
    for way in ways:
        print(f"  {way:10s} {total[way] / MEGA:12.3f} MB {seconds[way]:8.2f} s")
    for way in [way for way in ONCE if way in total and total.get("full")]:
        _say(f"{way} : full in bytes", total[way] / total["full"], BARS[way], least=True)
    if "full zstd" in ways and scale == 1:
        small = sum(one.bytes.get("full zstd", math.inf) < MEGA for one in found)
        _say(f"queries of {len(found)} under 1 MB with zstd", small, BARS["small"], least=True)
    long = [one.alone / one.central for one in found if one.central > _LONG]
    if long:
        print(f"  {_mean(long):10.2f}  the plan by itself: times one DuckDB, over queries longer than 100 ms")
    for way in [way for way in ways if way.startswith("full")]:
        _times(way, found)
    if planned := [Ratio(one.planning, one.yardstick) for one in found if one.planning < math.inf]:
        _say_planning(max(planned, key=lambda one: one.times))
    for name, size in memory.items():
        _say(f"MB of memory at most, {name} with its workers", size / MEGA, BARS["memory"])
    return not any(one.wrong for one in found)


def _times(way: str, found: list[Figures]) -> None:
    ratios = {one.query: one.seconds[way] / one.central for one in found if way in one.seconds}
    long = {one.query: ratios[one.query] for one in found if way in one.seconds and one.central > _LONG}
    if ratios:
        _say(f"{way}: times one DuckDB, geometric mean of all", _mean(ratios.values()), BARS["mean"])
    if long:
        name = max(long, key=lambda query: long[query])
        _say(f"{way}: the same over queries longer than 100 ms", _mean(long.values()), BARS["mean"])
        _say(f"{way}: at worst over those ({name})", long[name], BARS["worst"])
    if worked := [one.cpu[way] / one.central_cpu for one in found if way in one.cpu]:
        print(f"  {_mean(worked):10.2f}  {way}: the same of processor time, owners and asker together")


def _mean(ratios: Collection[float]) -> float:
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def _say(what: str, figure: float, bar: float, *, least: bool = False) -> None:
    """A figure and what it should be at least or at most."""
    kept = figure >= bar if least else figure <= bar
    print(f"  {figure:10.2f}  {what} ({'at least' if least else 'at most'} {bar:g}{'' if kept else ': MISSED'})")


def main() -> int:
    """Run it; the exit status is 0 if every answer was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--layouts", nargs="+", default=["vertical", "horizontal"])
    parser.add_argument("--modes", nargs="+", choices=list(WAYS))
    parser.add_argument("--queries", nargs="+", default=[])
    parser.add_argument("--repeat", type=int)
    parser.add_argument("--memory", type=int, help="MB for the engine in one worker")
    parser.add_argument("--data", type=Path, default=Path("var/bench"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plans", action="store_true", help="only what planning takes")
    asked = parser.parse_args()
    if asked.plans:
        return plans(asked.data.resolve(), asked.layouts, asked.queries, repeat=asked.repeat or 30)
    large = asked.scale > LARGE
    asked.modes = asked.modes or (["full zstd"] if large else list(WAYS))
    asked.repeat = asked.repeat or (1 if large else 3)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the connectors end with us
    right, told = True, {}
    folder = generated(asked.data.resolve() / f"tpch-{asked.scale:g}", asked.scale)
    for kind in asked.layouts:
        told_of = "bytes, time and processor seconds for"
        print(
            f"\n{kind}: query, one DuckDB (time, processor seconds), the plan by itself, planning (also to the fixed "
            f"piece of work), {told_of} "
            f"{', '.join(asked.modes)}",
            flush=True,
        )
        files = cut(folder, kind, folder / kind)
        with (
            tempfile.TemporaryDirectory(prefix="owners-", dir=folder) as held,
            space(Path(held), files, memory=asked.memory) as running,
            watched(_leaders(running)) as most,
        ):
            found = measure(running, kind, files, asked.modes, asked.queries, repeat=asked.repeat)
        right = report(kind, found, asked.modes, most, scale=asked.scale) and right
        told[kind] = {"queries": [vars(one) for one in found], "memory": most}
    if asked.out:
        asked.out.write_text(json.dumps({"scale": asked.scale, "layouts": told}, indent=1))
    return 0 if right else 1


def generated(folder: Path, scale: float) -> Path:
    """The eight tables as Parquet; made once."""
    if not folder.exists():
        print(f"TPC-H at scale factor {scale:g} ...", flush=True)
        draft = folder.with_suffix(".part")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        tpch.generate(draft, scale=scale)
        draft.rename(folder)
    return folder


def _leaders(running: Space) -> dict[str, int]:
    made = {**running.owners, "asker": running.asker}
    return {name: process.running.pid for name, process in made.items() if process.running is not None}


if __name__ == "__main__":
    sys.exit(main())
