"""Statements that take more than their share: refused at the gate, or stopped in the worker while others go on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
import yaml

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Recheck, Relation
from connector.engine.pool.worker_process import WorkerProcess
from connector.errors import ConnectorError
from policies.errors import QueryRefused
from tests.support import data, gate, workers
from tests.support.beats import beats

# The contract (issue 4): stopped within 2 s, with the worker at most 300 MB over its limit.
STOPPED_WITHIN = 2.0
OVER_MB = 300

LIMITS = Limits(seconds=0.6, total_seconds=0.6, memory_mb=256, rows=10_000_000)
PATIENT = replace(LIMITS, seconds=60.0, total_seconds=None)
STOPPED = {"memory_limit", "time_limit", "worker_crashed"}
NEIGHBOUR = "SELECT count(*) AS n FROM t WHERE gap = 3"
THREES = sum(row % 5 == 3 and row % 10 != 0 for row in range(data.ROWS))

GROUPS = yaml.safe_load((Path(__file__).parents[2] / "cases" / "sql" / "resource.yaml").read_text())
ATTACKS: list[dict[str, Any]] = [case for group in GROUPS for case in group["cases"]]
CASES = [pytest.param(case, id=case["what"].replace(" ", "-")) for case in ATTACKS]

pytestmark = pytest.mark.asyncio(loop_scope="module")


def text_of(case: Mapping[str, Any]) -> str:
    """The statement itself."""
    pieces = [
        case["fill"].replace("{n1}", str(number + 1)).replace("{n}", str(number))
        for number in range(case.get("times", 0))
    ]
    return str(case["sql"]).replace("{}", case.get("by", "").join(pieces)) if pieces else str(case["sql"])


@pytest.fixture(scope="module")
def bench() -> Iterator[gate.Bench]:
    """The table of `data` under an open contract, as the engine knows it: `t`."""
    made = gate.Bench()
    made.connection.execute("CREATE TABLE t (id BIGINT, x DOUBLE, name VARCHAR, day DATE, gap TINYINT)")
    made.add("clinic", "t", "t", gate.contract(gate.schema_of(made.connection, "t")))
    yield made
    made.connection.close()


def job_of(case: Mapping[str, Any], bench: gate.Bench, numbers: Relation) -> Job:
    """What a worker gets: as the gate wrote it where it passes, else as it came."""
    limits = replace(LIMITS, temp_mb=case.get("temp_mb", 0))
    job = Job(relations={"t": numbers}, sql=text_of(case), limits=limits, consumer="attacker")
    if case["gate"] != "passes":
        return job
    prepared = bench.prepare(job.sql)
    recheck = Recheck(prepared.names, tuple(sorted(prepared.functions)))
    return replace(job, sql=prepared.sql, params=prepared.params, recheck=recheck)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    """A worker for the attacker and one for the neighbour."""
    roots = [tmp_path_factory.getbasetemp()]
    with workers.patient(in_stopping=False):
        async with Pool(tmp_path_factory.mktemp("two"), size=2, warm=2, readable=[], writable=roots) as pool:
            yield pool


async def rested(pool: Pool) -> list[WorkerProcess]:
    """Both workers, ready, their highest memory forgotten."""
    async with asyncio.timeout(60):
        while len(pool._idle) < 2 or not all(map(forget_peak, pool._idle)):
            await asyncio.sleep(0.01)
    return list(pool._idle)


def forget_peak(worker: WorkerProcess) -> bool:
    """Whether it could be: a process may have ended, and nobody be told of it yet."""
    try:
        Path(f"/proc/{worker.process.pid}/clear_refs").write_text("5")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return worker.alive()


def peak_mb(worker: WorkerProcess) -> int:
    """The kernel's own record of the most memory that the process had; 0 once it is gone."""
    try:
        status = Path(f"/proc/{worker.process.pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


async def ended(pool: Pool, job: Job) -> str:
    """The code with which a job ends."""
    try:
        async with pool.run(job) as result:
            async for _ in result:
                pass
    except ConnectorError as error:
        return str(error.code)
    return "done"


async def neighbour(pool: Pool, numbers: Relation) -> int:
    """The rows that the other query counts."""
    job = Job(kind="report", relations={"t": numbers}, sql=NEIGHBOUR, consumer="neighbour")
    return int((await pool.ask(job))["rows"][0][0])


@pytest.mark.parametrize("case", CASES)
async def test_the_gate_refuses_it_by_name_or_lets_it_through(bench: gate.Bench, case: Mapping[str, Any]) -> None:
    if case["gate"] == "passes":
        bench.recheck(bench.prepare(text_of(case)))
        return
    with pytest.raises(QueryRefused) as refused:
        bench.prepare(text_of(case))
    assert refused.value.code == case["gate"], str(refused.value)
    assert refused.value.rule.startswith("gate/")


@pytest.mark.parametrize("case", CASES)
async def test_it_is_stopped_in_time_and_memory_while_another_query_is_answered(
    two: Pool, bench: gate.Bench, numbers: Relation, case: Mapping[str, Any]
) -> None:
    await stopped(two, bench, numbers, case)


HUNGRY = (
    "edit distance of long texts", "a long list", "cube over many columns", "approximate counts in many groups",
    "sort of a product", "distinct aggregate in a window", "wide window frame",
)  # fmt: skip


@pytest.mark.parametrize("what", HUNGRY)
async def test_it_gets_no_more_memory_where_engines_are_kept_for_others(
    two: Pool, bench: gate.Bench, numbers: Relation, what: str
) -> None:
    for number in range(6):  # as many as fill both workers
        asked = Job(relations={"t": numbers}, sql="SELECT * FROM t", limits=PATIENT, consumer=f"lab {number}")
        assert await ended(two, asked) == "done"
    assert any(path for worker in await rested(two) for path in worker.folder.glob("job-*"))
    await stopped(two, bench, numbers, next(case for case in ATTACKS if case["what"] == what))


@pytest.mark.parametrize("seconds", [0.2, 0.4])
async def test_it_gets_no_more_memory_where_one_was_stopped_before_in_the_same_process(
    two: Pool, bench: gate.Bench, numbers: Relation, seconds: float
) -> None:
    """What the parser had of a long list is free again, and still mapped: in pieces."""
    case = next(case for case in ATTACKS if case["what"] == "a long list")
    attack = job_of(case, bench, numbers)
    short = replace(attack, limits=replace(attack.limits, seconds=seconds, total_seconds=seconds))
    for _ in range(2):
        await asyncio.gather(ended(two, short), ended(two, short))
        await rested(two)
    await stopped(two, bench, numbers, case)


async def stopped(two: Pool, bench: gate.Bench, numbers: Relation, case: Mapping[str, Any]) -> None:
    """It is, in time and memory, while another query is answered."""
    both, peak = await rested(two), 0
    async with beats() as clock:
        begun = clock()
        attack = asyncio.ensure_future(ended(two, job_of(case, bench, numbers)))
        beside = asyncio.ensure_future(neighbour(two, numbers))
        while not attack.done() or any(worker in two._busy and worker.alive() for worker in both):
            peak = max(peak, *map(peak_mb, both))
            await asyncio.sleep(0.01)
            if beside.done() and not attack.done():
                assert await beside == THREES
                beside = asyncio.ensure_future(neighbour(two, numbers))
        late = clock() - begun - LIMITS.seconds
    assert await beside == THREES
    assert await attack in STOPPED | set(case.get("also", ()))
    assert peak <= LIMITS.memory_mb + OVER_MB
    assert late <= STOPPED_WITHIN


async def test_a_grouped_sum_takes_no_memory_for_each_dictionary_of_its_files(
    bench: gate.Bench, folder: Path, tmp_path: Path
) -> None:
    """The engine keeps 8 bytes a value, beside its limit, where it is asked as the query came: as the second run is."""
    rows, path = 2_000_000, folder / "sums.parquet"
    numbers = np.arange(rows)
    pq.write_table(
        pa.table({"gap": pa.array(numbers % 3, pa.int8()), "id": numbers, "x": numbers}),
        path,
        row_group_size=100_000,
        dictionary_pagesize_limit=2**21,
    )
    asked = "SELECT gap, sum(id), sum(x) FROM t GROUP BY gap"
    peaks = []
    for sql in (bench.prepare(asked).sql, asked):
        async with Pool(tmp_path, size=1, warm=1, readable=[folder]) as fresh:  # with nothing left of other jobs
            await fresh.ask(Job(kind="report", relations={"t": data.relation("parquet", path, folder)}, sql=sql))
            peaks.append(max(map(peak_mb, fresh._busy | set(fresh._idle))))
    assert peaks[0] + 16 < peaks[1]


async def test_the_attacks_are_many_and_most_are_ended_by_a_limit_alone() -> None:
    """They would prove nothing were all of them refused by the engine's parser, or none let through by the gate."""
    assert len({case["what"] for case in ATTACKS}) == len(ATTACKS) >= 25
    assert sum(case["gate"] == "passes" for case in ATTACKS) >= 15
    assert sum("also" not in case for case in ATTACKS) >= 25
