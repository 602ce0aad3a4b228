"""What enforcement costs a query and a stream: `python -m benchmarks.bench_worker [scale]`.

1. A query through gate, worker and re-check against the same query written by hand in plain DuckDB: the same Parquet
   files, the policy's conditions in a view, one thread on both sides, Arrow batches read to the end. In turns; medians.
   Aims: at most 1.1 times on scans, at most 10 ms more on a trivial query.
2. A stream through everything that stands before a transport, and the same stream with the gate and the accounting
   before each batch taken out. Aim: at most 1 % more CPU time of connector and worker, found in two ways. Added up:
   what stands before a batch, and the note of progress that a stream writes each second, measured by themselves. And
   side by side: rounds of the stream as it is and twice the bare one, in every order, each begun when all is quiet;
   the bare one against itself shows what the machine makes of no difference at all (on a busy one 2 % and more).
   Intervals hold the median with 95 %. Missed is what the sum, or all of the interval, says.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from unittest import mock

import duckdb

from benchmarks.bench_gate import FILTERS
from connector.dataplane import admission, governed_stream
from connector.dataplane.read_request import ACTIONS, ReadRequest
from connector.dataplane.tickets import Ticket
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Recheck
from connector.engine.pool.worker_process import Frame
from tests.support import data, gate, provider, tpch

VIEWS = {
    "lineitem": "WHERE l_quantity <= 100 AND l_shipdate >= DATE '1990-01-01'",
    "orders": "WHERE o_orderdate >= DATE '1990-01-01'",
}
SCANS = {
    "scan, four columns": "SELECT l_orderkey, l_quantity, l_extendedprice, l_shipdate FROM lineitem",
    "scan, half of the rows": "SELECT l_orderkey, l_extendedprice FROM lineitem WHERE l_shipdate < DATE '1995-06-17'",
    "sum over all rows": "SELECT count(*), sum(l_extendedprice * (1 - l_discount)) FROM lineitem",
    "TPC-H 1": tpch.queries()["q01"],
    "TPC-H 6": tpch.queries()["q06"],
    "a function of each row": "SELECT count(*) FROM lineitem WHERE lower(l_shipmode) LIKE '%ai%'",
}
# Conditions wait for the policy's filter, so that their time tells of no hidden row (decision 45): no aim.
SELECTIVE = {
    "a row by its key": "SELECT l_orderkey, l_extendedprice FROM lineitem WHERE l_orderkey = 7777",
    "the first five": "SELECT l_orderkey FROM lineitem ORDER BY l_extendedprice DESC LIMIT 5",
    "a join with few rows": "SELECT l_tax FROM lineitem JOIN orders ON l_orderkey = o_orderkey WHERE o_custkey < 99",
}
TRIVIAL = {
    "one row": "SELECT r_name FROM region WHERE r_regionkey = 1",
    "count of a small table": "SELECT count(*) FROM nation",
}
REPEATS = 16
REST = 0.2
MORE = 0.01  # what gate and accounting may cost a stream


async def answers(bench: gate.Bench, pool: Pool, files: Path) -> None:
    """Part 1."""
    plain = duckdb.connect(config={"threads": 1})
    relations = {}
    for table in tpch.TABLES:
        file = files / f"{table}.parquet"
        plain.execute(f"CREATE VIEW {table} AS SELECT * FROM read_parquet('{file}') {VIEWS.get(table, '')}")
        plain.execute(f"CREATE VIEW src_{table} AS SELECT * FROM read_parquet('{file}')")
        made = gate.contract(gate.schema_of(plain, f"src_{table}"), *FILTERS.get(table, ()))
        bench.add("clinic", table, f"src_{table}", made)
        relations[f"src_{table}"] = data.relation("parquet", file, files)

    async def ours(sql: str) -> None:
        prepared = bench.prepare(sql)
        job = Job(
            relations={name: relations[name] for name in prepared.names if name in relations},
            sql=prepared.sql,
            params=prepared.params,
            recheck=Recheck(prepared.names, tuple(sorted(prepared.functions))),
        )
        async with pool.run(job) as result:
            async for _ in result:
                pass

    async def theirs(sql: str) -> None:
        for _ in plain.sql(sql).to_arrow_reader(100_000):
            pass

    def cpu() -> float:
        return _cpu(*(worker.process.pid for worker in (*pool._idle, *pool._busy)))

    print(f"{'query through the worker':<26}{'ours ms':>9}{'plain ms':>10}{'ratio':>7}{'more ms':>9}{'CPU':>7}   aim")
    for name, sql in (*SCANS.items(), *SELECTIVE.items(), *TRIVIAL.items()):
        turns = [await one_turn(lambda s=sql: ours(s), lambda s=sql: theirs(s), cpu) for _ in range(REPEATS)]  # type: ignore[misc]  # bound at once
        mine, hand, my_cpu, hand_cpu = (statistics.median(column) * 1e3 for column in zip(*turns[1:], strict=True))
        aim = "1.10" if name in SCANS else "10 ms more" if name in TRIVIAL else ""
        print(f"{name:<26}{mine:9.1f}{hand:10.1f}{mine / hand:7.2f}{mine - hand:9.1f}{my_cpu / hand_cpu:7.2f}   {aim}")


async def one_turn(
    first: Callable[[], Awaitable[None]], second: Callable[[], Awaitable[None]], cpu: Callable[[], float]
) -> tuple[float, float, float, float]:
    """Wall seconds of both and CPU seconds of both, one after the other: the machine is shared."""
    walls, cpus = [], []
    for work in (first, second):
        await asyncio.sleep(REST)  # the worker opens its next engine while nobody waits
        begun, spent = time.perf_counter(), cpu()
        await work()
        walls.append(time.perf_counter() - begun)
        cpus.append(cpu() - spent)
    return walls[0], walls[1], cpus[0], cpus[1]


class _Ungated(governed_stream.GovernedStream):
    """The same stream without what stands before each batch."""

    async def _count_frame(self, frame: Frame) -> str | None:
        self._digest = frame.digest
        return None


class _Timed(governed_stream.GovernedStream):
    """The stream as it is, with the CPU time of what stands before each batch added up."""

    inside = 0.0

    async def _count_frame(self, frame: Frame) -> str | None:
        begun = time.thread_time()
        stop = await super()._count_frame(frame)
        self.inside += time.thread_time() - begun
        return stop


class Stream:
    """One stream after the other, each read to its end; `once` gives wall and CPU seconds and the read."""

    def __init__(self, running: provider.Provider, agreement: str) -> None:
        number = agreement.rsplit(":", 1)[-1]
        ticket = Ticket(
            provider=provider.PROVIDER, consumer=provider.CONSUMER, agreement=agreement,
            transfer=f"urn:transfer:{number}", generation=0, purpose="", expires=time.time() + 3600,
        )  # fmt: skip
        sql = f'SELECT * FROM "{provider.OWNER}".{provider.DATASET}'
        self.running = running
        self.asked = ReadRequest(tickets=(ticket,), sql=sql, action=ACTIONS["stream"], plain_scan=True)

    async def once(
        self, kind: type[governed_stream.GovernedStream]
    ) -> tuple[float, float, governed_stream.GovernedStream]:
        await self.quiet()
        with mock.patch.object(admission, "GovernedStream", kind):  # the only difference between the sides
            async with self.running.reads.open(self.asked) as read:
                worker = read._result._worker.process.pid
                wall, cpu = time.perf_counter(), _cpu(worker)
                async for _ in read.frames():
                    pass
                return time.perf_counter() - wall, _cpu(worker) - cpu, read

    async def quiet(self) -> None:
        """Until nothing of the stream before is left to do: its end is written, its worker has its next engine."""
        await provider.settled(self.running)
        gc.collect()
        await asyncio.sleep(REST)

    async def note(self) -> float:
        """CPU seconds of one note of progress, in the loop and in the thread that writes."""
        begun = time.process_time()
        await self.running.reads.note({"0" * 32: (1, 1)})
        return time.process_time() - begun


async def streams(folder: Path, *, rounds: int) -> None:
    """Part 2."""
    async with provider.running(folder, rows=4_000_000) as running:
        one = Stream(running, await running.agree())
        await one.once(_Ungated)
        await added_up(one)
        await side_by_side(one, rounds=rounds)


async def added_up(one: Stream) -> None:
    """What stands before each batch and once a second, by itself."""
    found = [await one.once(_Timed) for _ in range(5)]
    share = statistics.median(read.inside / cpu for _, cpu, read in found if isinstance(read, _Timed))
    note = statistics.median([await one.note() for _ in range(50)])
    batches = found[0][2].batches
    each = share * statistics.median(cpu for _, cpu, _ in found) / batches
    # Against the second with the least of the stream's own work in it: the most that a note can be.
    noted = note / min(cpu / wall for wall, cpu, _ in found)
    print(f"gate and accounting before each of {batches} batches of a stream")
    print(f"  by itself: {each * 1e6:.1f} us a batch, {share * 100:.2f} % of the stream's CPU; a note each second")
    missed = "" if share + noted <= MORE else ": MISSED"
    print(
        f"  of {note * 1e3:.1f} ms, {noted * 100:.2f} %; together {(share + noted) * 100:.2f} % (at most 1 %{missed})"
    )


async def side_by_side(one: Stream, *, rounds: int) -> None:
    """The stream as it is against the bare one, and the bare one against itself."""
    legs: dict[str, type[governed_stream.GovernedStream]] = {
        "gated": governed_stream.GovernedStream, "bare": _Ungated, "again": _Ungated,
    }  # fmt: skip
    orders = itertools.cycle(itertools.permutations(legs))
    taken = [{leg: (await one.once(legs[leg]))[:2] for leg in next(orders)} for _ in range(rounds)]
    for number, name in enumerate(("wall", "CPU")):
        gated = [2 * each["gated"][number] / (each["bare"][number] + each["again"][number]) for each in taken]
        itself = [each["again"][number] / each["bare"][number] for each in taken]
        missed = ": MISSED" if name == "CPU" and _between(gated)[0] > 1 + MORE else ""
        aim = f" (at most +1 %{missed})" if name == "CPU" else ""
        print(f"  {rounds} rounds, {name}: {_share(gated)}{aim}; the bare stream against itself {_share(itself)}")


def _between(ratios: list[float]) -> tuple[float, float]:
    """Where the median is with 95 %, whatever the distribution (by ranks: those of a binomial of one half)."""
    rank = max(0, math.floor(len(ratios) / 2 - 0.98 * len(ratios) ** 0.5))
    return sorted(ratios)[rank], sorted(ratios)[-1 - rank]


def _share(ratios: list[float]) -> str:
    """How much more the median is, and the interval that holds it."""
    low, high = _between(ratios)
    middle = statistics.median(ratios)
    return f"{(middle - 1) * 100:+.2f} % ({(low - 1) * 100:+.2f} to {(high - 1) * 100:+.2f})"


def _cpu(*workers: int) -> float:
    """CPU seconds of this process and of these, their threads that have ended among them (clock_getcpuclockid(3))."""
    spent = time.process_time()
    for worker in workers:
        with suppress(OSError):  # it has just ended
            spent += time.clock_gettime((~worker << 3) | 2)
    return spent


async def main(arguments: list[str]) -> None:
    """Both parts."""
    scale = float(arguments[0]) if arguments else 1.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = tpch.generate(folder / "tpch", scale=scale)
        async with Pool(folder / "work", size=2, warm=2) as pool:
            await answers(gate.Bench(), pool, files)
        (folder / "stream").mkdir()
        await streams(folder / "stream", rounds=60)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
