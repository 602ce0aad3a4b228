"""What enforcement costs a query and a stream: `python -m tests.load.bench_worker [scale]`.

1. A query through gate, worker and re-check against the same query written by hand in plain DuckDB: the same Parquet
   files, the policy's conditions in a view, one thread on both sides, Arrow batches read to the end. In turns; medians.
   Aims: at most 1.1 times on scans, at most 10 ms more on a trivial query.
2. A stream through everything that stands before a transport, and the same stream with the gate and the accounting
   before each batch taken out. In turns; wall time, and the CPU time of connector and worker. Aim: at most 1 % more.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import duckdb

from connector.dataplane import stream
from connector.dataplane.asked import ACTIONS, Asked
from connector.dataplane.tickets import Ticket
from connector.query.job import Job, Recheck
from connector.query.pool import Frame, Pool
from tests.load.bench_gate import FILTERS
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
}
TRIVIAL = {
    "one row": "SELECT r_name FROM region WHERE r_regionkey = 1",
    "count of a small table": "SELECT count(*) FROM nation",
}
REPEATS = 8
REST = 0.2


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
    for name, sql in (*SCANS.items(), *TRIVIAL.items()):
        turns = [await one_turn(lambda s=sql: ours(s), lambda s=sql: theirs(s), cpu) for _ in range(REPEATS)]  # type: ignore[misc]  # bound at once
        mine, hand, my_cpu, hand_cpu = (statistics.median(column) * 1e3 for column in zip(*turns[1:], strict=True))
        aim = "10 ms more" if name in TRIVIAL else "1.10"
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


class _Ungated(stream.GovernedStream):
    """The same stream without what stands before each batch."""

    async def _pass(self, frame: Frame) -> str | None:
        self._digest = frame.digest
        return None


class _Timed(stream.GovernedStream):
    """The stream as it is, with the CPU time of what stands before each batch added up."""

    inside = 0.0

    async def _pass(self, frame: Frame) -> str | None:
        begun = time.thread_time()
        stop = await super()._pass(frame)
        self.inside += time.thread_time() - begun
        return stop


async def streams(folder: Path, *, pairs: int) -> None:
    """Part 2."""
    async with provider.running(folder, rows=4_000_000) as running:
        agreement = await running.agree()
        number = agreement.rsplit(":", 1)[-1]
        ticket = Ticket(
            provider=provider.PROVIDER, consumer=provider.CONSUMER, agreement=agreement,
            transfer=f"urn:transfer:{number}", generation=0, purpose="", expires=time.time() + 3600,
        )  # fmt: skip
        sql = f'SELECT * FROM "{provider.OWNER}".{provider.DATASET}'
        asked = Asked(tickets=(ticket,), sql=sql, action=ACTIONS["stream"], plain_scan=True)

        async def once(kind: type[stream.GovernedStream]) -> tuple[float, float, stream.GovernedStream]:
            stream.GovernedStream = kind  # type: ignore[misc]  # the only difference between the two sides
            async with running.reads.open(asked) as read:
                worker = read._result._worker.process.pid
                wall, cpu = time.perf_counter(), _cpu(worker)
                async for _ in read.frames():
                    pass
                return time.perf_counter() - wall, _cpu(worker) - cpu, read

        gated, bare = stream.GovernedStream, _Ungated
        await once(bare)
        walls, cpus = [], []
        for number in range(pairs):
            order = (gated, bare) if number % 2 else (bare, gated)
            taken = {kind: await once(kind) for kind in order}
            walls.append(taken[gated][0] / taken[bare][0])
            cpus.append(taken[gated][1] / taken[bare][1])
        _, spent, timed = await once(_Timed)
        assert isinstance(timed, _Timed)
        stream.GovernedStream = gated  # type: ignore[misc]  # as it was
        print(f"gate and accounting before each of {timed.batches} batches, {pairs} pairs, against the stream without:")
        print(f"  wall {_share(walls)}; CPU {_share(cpus)}   aim at most +1 %")
        each = timed.inside / timed.batches
        print(f"  measured inside: {each * 1e6:.1f} us a batch, {timed.inside / spent * 100:.3f} % of the stream's CPU")


def _share(ratios: list[float]) -> str:
    """The median of the pairs and how sure it is (half the distance of the quartiles over the root of their number)."""
    low, middle, high = statistics.quantiles(ratios, n=4)
    return f"{(middle - 1) * 100:+.2f} % (+- {(high - low) / 2 / len(ratios) ** 0.5 * 100:.2f})"


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
        await streams(folder / "stream", pairs=20)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
