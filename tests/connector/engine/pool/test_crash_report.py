"""What the log says of a worker that ended: how, and its last words, with nothing of the rows in them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

from connector.engine.pool import pool as pools
from connector.engine.pool.crash_log import LastWords, how_ended
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Relation
from connector.errors import EngineFailed, Unavailable
from tests.connector.engine.pool.test_pool import read
from tests.support.waiting import until
from tests.support.workers import running_as

_in_loop = pytest.mark.asyncio(loop_scope="module")

_BEGIN = "import os, sys, threading\nfrom connector.engine.worker import __main__ as worker, session, tasks\n"
_VALUE = "Smith, 4711"
_TELLING = f"""{_BEGIN}
def running(one, job):
    os.write(2, b"terminate called: {_VALUE}")
    print("{_VALUE}", file=sys.stderr)
    other = threading.Thread(target=fails)
    other.start()
    other.join()
    os.abort()

def fails():
    raise ValueError("{_VALUE}")

tasks.run = running
worker.main()
"""


def report(numbers: Relation) -> Job:
    return Job(kind="report", relations={"t": numbers}, sql="SELECT count(*) FROM t")


def told(logs: list[Any]) -> dict[str, Any]:
    (found,) = (line for line in logs if line["event"] == "a query worker ended")
    return dict(found)


@_in_loop
@pytest.mark.parametrize(
    ("program", "ended", "last"),
    [
        ("import nothing_of_this_name", "exit code 1", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        (
            f"{_BEGIN}def confine(**_): raise PermissionError(1, 'not shut in')\n"
            "worker.confine = confine\nworker.main()",
            "exit code 1",
            "PermissionError: [Errno 1] not shut in",
        ),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "signal SIGKILL", ""),
        ("import os\nos.write(2, b'why')\nos._exit(7)", "exit code 7", "why"),
    ],
)
async def test_of_a_worker_that_does_not_start_the_log_says_how_it_ended_and_why(
    tmp_path: Path, numbers: Relation, program: str, ended: str, last: str
) -> None:
    with running_as(program), capture_logs() as logs:
        async with Pool(tmp_path, size=1, warm=0, readable=[]) as pool:
            with pytest.raises(Unavailable, match="expected a query worker to start, it did not; try again"):
                await read(pool, report(numbers))
    found = told(logs)
    assert (found["code"], found["ended"], found["by"]) == ("start_failed", ended, "itself or the system")
    assert (found["said"] or [""])[-1] == last


@_in_loop
async def test_of_a_worker_that_does_not_start_in_time_the_log_says_where_it_stands(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_START_SECONDS", 5.0)
    program = """
import time
from connector.engine.worker import __main__ as worker
def stands_still(): time.sleep(600)
worker.serve = stands_still
worker.main()
"""
    with running_as(program), capture_logs() as logs:
        async with Pool(tmp_path, size=1, warm=0) as pool:
            with pytest.raises(Unavailable):
                await read(pool, report(numbers))
    found = told(logs)
    assert (found["code"], found["ended"]) == ("start_late", "signal SIGABRT")
    assert any("stands_still" in line for line in found["said"])


@_in_loop
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGTERM])
async def test_of_a_worker_that_is_killed_the_log_names_the_signal(
    tmp_path: Path, numbers: Relation, number: signal.Signals
) -> None:
    with capture_logs() as logs:
        async with Pool(tmp_path, size=1, warm=1) as pool:
            with pytest.raises(EngineFailed):  # noqa: PT012
                async with pool.run(Job(relations={"t": numbers}, sql="SELECT * FROM t", batch_bytes=2**16)) as result:
                    os.kill(result._worker.process.pid, number)
                    async for _ in result:
                        pass
            await until(lambda: any(line["event"] == "a query worker ended" for line in logs))
    found = told(logs)
    assert found["ended"] == f"signal {number.name}"
    assert (found["code"], found["by"]) == ("worker_crashed", "itself or the system")
    assert any("Segmentation fault" in line for line in found["said"]) is (number == signal.SIGSEGV)


@_in_loop
async def test_a_worker_that_dies_at_rest_is_told_of_too(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with Pool(tmp_path, size=1, warm=1, idle_seconds=0.2) as pool:
            await until(lambda: pool._idle)
            os.kill(pool._idle[0].process.pid, signal.SIGKILL)
            await until(lambda: any(line["event"] == "a query worker ended" for line in logs))
    assert told(logs)["code"] == "worker_crashed"


@_in_loop
async def test_ends_that_were_wished_for_are_no_news(tmp_path: Path, numbers: Relation) -> None:
    with capture_logs() as logs:
        async with Pool(tmp_path, size=1, warm=1) as pool:
            await pool.ask(report(numbers))
    assert not [line for line in logs if line["event"] == "a query worker ended"]


def crash(folder: Path, numbers: Relation) -> Callable[[], Any]:
    async def crashed() -> None:
        async with Pool(folder, size=1, warm=1) as pool:
            with pytest.raises(EngineFailed):
                await pool.ask(report(numbers))
            await until(lambda: pool._idle)

    return crashed


def test_no_value_of_a_row_is_in_a_workers_last_words(tmp_path: Path, numbers: Relation) -> None:
    """On the event loop that the product runs on."""
    with running_as(_TELLING), capture_logs() as logs, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(crash(tmp_path, numbers)())
    found = told(logs)
    assert found["ended"] == "signal SIGABRT"
    assert "ValueError" in found["said"]
    assert any(" fails" in line for line in found["said"])
    assert "4711" not in str(logs)


def test_of_much_that_is_said_the_end_is_kept_without_what_a_terminal_obeys() -> None:
    words = LastWords()
    for _ in range(100):
        words.data_received(b"\x1b[31mfar too much \xff\r\x00 " * 1000 + b"\n")
        assert len(words._tail) <= 4096
    words.data_received(b"a line\n" * 400 + b"\x1b[2J\xc2\x9bthe \xe2\x80\xaelast\n")
    lines = words.lines()
    assert (len(lines), lines[-1]) == (24, " [2J the  last")
    assert all(line.isprintable() and len(line) <= 200 for line in lines)


@pytest.mark.parametrize(
    ("code", "words"), [(0, "exit code 0"), (-9, "signal SIGKILL"), (-64, "signal SIGRTMAX"), (-99, "signal 99")]
)
def test_an_end_has_a_name(code: int, words: str) -> None:
    assert how_ended(code) == words
