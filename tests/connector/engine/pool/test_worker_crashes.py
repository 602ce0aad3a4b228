"""Sessions that end as nobody foresaw: each alone, in real workers in which others read on."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Relation
from connector.errors import ConnectorError
from tests.connector.engine.pool.test_pool import read
from tests.support import data
from tests.support.waiting import until
from tests.support.workers import running_as

pytestmark = pytest.mark.asyncio(loop_scope="module")

_PROGRAM = """
import os, resource, threading
from connector.engine.worker import __main__ as worker, session, tasks
from connector.engine.pool.error_codes import Coded

Session, Worker = session.Session, session.Worker
run, send, session_run, take = tasks.run, session.send_all, Session._run, Worker._take
real_code_of = session.duckdb_engine.code_of
broken = threading.local()  # what the job of this thread breaks
starting = threading.Thread.start

def running(one, job):
    broken.how = job.consumer
    if broken.how == "torn":
        job = session.replace(job, consumer="")
    elif broken.how == "facts":
        raise Coded("bytes_limit", most=object())  # no JSON
    elif broken.how in ("memory", "interrupt"):
        raise RuntimeError
    run(one, job)

def code_of(error, *, asked):
    raised = {"memory": MemoryError, "interrupt": KeyboardInterrupt}
    if broken.how in raised:
        raise raised[broken.how]
    return real_code_of(error, asked=asked)

def sending(channel, parts):
    if getattr(broken, "how", "") == "torn":
        channel.send(bytes(parts[0])[:7])
        raise MemoryError
    send(channel, parts)

def beginning(one):
    with_threads(not os.path.exists("no-maker"), lambda: session_run(one))

def taking(one):
    if os.path.exists("no-memory"):
        raise MemoryError
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if os.path.exists("no-descriptors"):
        # The first three are taken. With none allowed, no thread beside us could wait: poll refuses more than may be.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    with_threads(not os.path.exists("no-threads"), lambda: take(one))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

def with_threads(allowed, work):
    broken.threads = allowed
    work()
    broken.threads = True

def start(thread):
    if not getattr(broken, "threads", True):
        raise RuntimeError("can't start new thread")
    starting(thread)

threading.Thread.start = start
tasks.run, session.duckdb_engine.code_of, session.send_all = running, code_of, sending
Session._run, Worker._take = beginning, taking
worker.main()
"""


def scan(numbers: Relation, consumer: str = "") -> Job:
    return Job(
        relations={"t": numbers}, sql="SELECT * FROM t", scan="t", shared=True, consumer=consumer, batch_bytes=2**16
    )


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("facts", "engine_failed", "TypeError"),
        ("memory", "engine_failed", "MemoryError"),
        ("interrupt", "engine_failed", "KeyboardInterrupt"),
        ("torn", "worker_crashed", "MemoryError"),
        ("no-maker", "worker_crashed", "RuntimeError"),
        ("no-threads", "worker_crashed", "RuntimeError"),
        ("no-descriptors", "worker_crashed", "no more descriptors"),
    ],
)
async def test_a_session_that_cannot_say_why_it_ends_ends_alone(
    tmp_path: Path, numbers: Relation, how: str, code: str, said: str
) -> None:
    with running_as(_PROGRAM), capture_logs() as logs:
        async with Pool(tmp_path, size=1, warm=1) as pool:
            async with pool.run(scan(numbers)) as safe:
                first = await anext(safe)
                flag = safe._worker.folder / how
                flag.touch()
                with pytest.raises(ConnectorError) as raised:
                    await read(pool, scan(numbers, how))
                flag.unlink()
                assert raised.value.code == code
                assert first.rows + sum([frame.rows async for frame in safe]) == data.ROWS
                assert safe._worker.process.returncode is None
            await until(lambda: any(line["event"] == "a query worker ended" for line in logs))
    (ended,) = (line for line in logs if line["event"] == "a query worker ended")
    assert ended["by"].startswith("the connector")
    assert ended["said"][-1] == said


async def test_a_worker_without_memory_for_a_moment_takes_jobs_after_it(tmp_path: Path, numbers: Relation) -> None:
    with running_as(_PROGRAM):
        async with Pool(tmp_path, size=1, warm=1) as pool, pool.run(scan(numbers)) as safe:
            first = await anext(safe)
            flag = safe._worker.folder / "no-memory"
            flag.touch()
            other = asyncio.ensure_future(read(pool, scan(numbers)))
            await asyncio.sleep(0.2)
            flag.unlink()
            assert len((await other)[0]) == data.ROWS
            assert first.rows + sum([frame.rows async for frame in safe]) == data.ROWS


async def test_what_interrupts_the_connectors_terminal_ends_no_read(tmp_path: Path, numbers: Relation) -> None:
    """Control-C goes to its whole group of processes; the connector itself lets reads come to their ends."""
    async with Pool(tmp_path, size=1, warm=1) as pool, pool.run(scan(numbers)) as safe:
        first = await anext(safe)
        os.kill(safe._worker.process.pid, signal.SIGINT)
        assert first.rows + sum([frame.rows async for frame in safe]) == data.ROWS


async def test_a_worker_whose_watching_side_fails_ends_at_once_and_not_with_its_last_session(
    tmp_path: Path, numbers: Relation
) -> None:
    program = _PROGRAM.replace("worker.main()", "Session.cancel = None\nworker.main()")
    with running_as(program):
        async with Pool(tmp_path, size=1, warm=1) as pool, pool.run(scan(numbers)) as safe:
            await anext(safe)
            worker = safe._worker
            async with pool.run(scan(numbers)) as other:
                await anext(other)
            await until(lambda: worker.process.returncode is not None)
            assert worker.process.returncode == 1
