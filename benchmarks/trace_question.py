"""The timeline of one question over many owners: what the asker, the owners and their workers do, and when.

    python -m benchmarks.trace_question [--layout horizontal] [--queries q06 q15] [--warm 3] [--least 0.3]

Runs the owners of `bench_federated` with a stopwatch around what `PARTS` names, as `benchmarks.trace` does for the
protocol. A line: milliseconds since the question, how long it took, of that the thread's processor time where the step
is one function, whose it is, and what. The product knows nothing of it.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import importlib
import inspect
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks import bench_federated as bench
from benchmarks import trace
from tests.support import tpch
from tests.support.federation_tpch import written_for
from tests.support.own_name import changed
from tests.support.processes import Process

MODULE = "benchmarks.trace_question"
# What is timed: module, the functions in it.
CONNECTOR = {
    "connector.federation.coordinator": (
        "Coordinator.ask",
        "Coordinator._plan",
        "_parse",
        "_make_plan",
        "Coordinator._record",
    ),
    "connector.federation.tables": ("Holdings.tables", "Holdings.ticket"),
    "connector.federation.owner_client": (
        "_Exchange._ask_once",
        "_Exchange._envelope",
        "_Exchange._check_answer",
        "_spool",
        "OwnerClient.read_together",
    ),
    "connector.federation.execution": (
        "Work._merge_or_reread",
        "Work._merge",
        "Work._read_distinct",
        "Work.end",
        "_write_residual",
    ),
    "connector.engine.pool.pool": ("Pool._begin", "Pool._started", "Pool._end"),
    "connector.engine.pool.worker_process": ("Result.next",),
    "connector.dataplane.admission": (
        "Reads._admit",
        "prepare_query",
        "Reads._build_job",
        "Reads._begin",
        "Reads._record_end",
    ),
    "connector.usage.grants": ("Grants._examined",),
}
WORKER = {
    "connector.engine.worker.session": (
        "read_job", "Worker._take", "Worker.ended", "Session._close",
    ),
    "connector.engine.worker.memory_limits": ("MemoryLimits.prepare",),
    "connector.engine.worker.tasks": ("run", "open_engine", "_recheck", "_Prefetcher.close"),
    "connector.engine.worker.read.job_files": ("Opening.pin", "Opening.fence", "Opening.ready"),
    "connector.engine.worker.read.duckdb_engine": ("attach", "load", "query", "batches"),
    "connector.engine.worker.inspect.untrusted_arrow": ("check", "read", "unite", "UnreadAnswers.tables"),
    "connector.engine.worker.write.arrow_stream": ("FrameWriter.__init__", "FrameWriter.write", "FrameWriter.end"),
}  # fmt: skip
_SETTLED = 0.3  # seconds after an answer in which what it left to do is done

Tell = Callable[..., None]


# Inside a traced process.


def teller(kind: str) -> Tell:
    """Writes spans; opened before a worker shuts itself in."""
    file = os.open(os.environ[trace.FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def tell(what: str, began: float, cpu: float | None = None) -> None:
        span = {"what": what, "by": f"{kind} {os.getpid()}", "began": began, "ended": time.monotonic(), "cpu": cpu}
        os.write(file, json.dumps(span).encode() + b"\n")

    return tell


def install(parts: Mapping[str, tuple[str, ...]], tell: Tell) -> None:
    """Put the stopwatch around functions, from outside."""
    for module, paths in parts.items():
        for path in paths:
            owner: Any = importlib.import_module(module)
            *above, name = path.split(".")
            for part in above:
                owner = getattr(owner, part)
            inner = getattr(owner, name)
            timed = _awaited if inspect.iscoroutinefunction(inner) else _called
            setattr(owner, name, timed(inner, path, tell))


def _awaited(inner: Callable[..., Any], path: str, tell: Tell) -> Callable[..., Any]:
    @functools.wraps(inner)
    async def timed(*args: Any, **more: Any) -> Any:
        began = time.monotonic()
        try:
            return await inner(*args, **more)
        finally:
            tell(path, began)

    return timed


def _called(inner: Callable[..., Any], path: str, tell: Tell) -> Callable[..., Any]:
    @functools.wraps(inner)
    def timed(*args: Any, **more: Any) -> Any:
        began, worked = time.monotonic(), time.thread_time()
        try:
            return inner(*args, **more)
        finally:
            tell(path, began, time.thread_time() - worked)

    return timed


def connector() -> None:
    """`connector serve`, traced, with workers that are."""
    from connector.__main__ import run_loop
    from connector.engine.pool.sandbox import environment
    from connector.server import serve
    from connector.settings import Settings

    tell = teller("main")
    trace.install(lambda **span: tell(f"{span['kind']} {span['what']} {span.get('note', '')}", span["began"]))
    install(CONNECTOR, tell)
    spawn = asyncio.create_subprocess_exec

    async def spawned(*args: Any, **more: Any) -> Any:
        changed = [MODULE if arg == "connector.engine.worker" else arg for arg in args]
        return await spawn(*changed, **more | {"cwd": None})

    traced = {trace.FILE: os.environ[trace.FILE], "PYTHONPATH": str(Path.cwd())}
    with (
        mock.patch("connector.engine.pool.pool.asyncio", changed(asyncio, create_subprocess_exec=spawned)),
        mock.patch("connector.engine.pool.pool.environment", lambda **more: environment(**more) | traced),
    ):
        run_loop(serve(Settings()))


def worker() -> None:
    """A worker, traced."""
    from connector.engine.worker import __main__ as inner

    install(WORKER, teller("worker"))
    inner.main()


# Outside.


def _to_file(one: Process) -> dict[str, str]:
    return {trace.FILE: str(one.directory / "trace")}


def told(running: bench.Space, sql: str, *, warm: int, least: float) -> Iterator[str]:
    """The timeline of a question that was asked `warm` times before; steps of `least` milliseconds and more."""
    for _ in range(warm):
        running.ask(sql, bench.WAYS["full"], shares=True)
        time.sleep(_SETTLED)
    began = time.monotonic()
    _, end, seconds = running.ask(sql, bench.WAYS["full"], shares=True)
    ended = time.monotonic()
    time.sleep(_SETTLED)
    yield f"{seconds * 1e3:.1f} ms; {[(one['fragment'], one['ms'], one['rows']) for one in end['owners']]}"
    found = []
    for side in (*running.owners.values(), running.asker):
        for line in (side.directory / "trace").read_text().splitlines():
            span = json.loads(line)
            if began <= span["ended"] and span["began"] <= ended and span["ended"] - span["began"] >= least / 1e3:
                found.append((span["began"], -span["ended"], side.name, span))
    for at, until, name, span in sorted(found, key=lambda one: one[:3]):
        cpu = "" if span["cpu"] is None else f"{span['cpu'] * 1e3:.1f}"
        took = f"{(at - began) * 1e3:8.1f} {(-until - at) * 1e3:7.1f} {cpu:>6}"
        yield f"{took}  {name:5} {span['by']:14} {span['what']}"


def main() -> None:
    """Ask each query and print what happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=["vertical", "horizontal"], default="horizontal")
    parser.add_argument("--queries", nargs="+", default=["q06"])
    parser.add_argument("--warm", type=int, default=3)
    parser.add_argument("--least", type=float, default=0.3)
    parser.add_argument("--data", type=Path, default=Path("var/bench"))
    asked = parser.parse_args()
    folder = bench.generated(asked.data.resolve() / "tpch-1", 1)
    files, program = bench.cut(folder, asked.layout, folder / asked.layout), ("-m", MODULE, "connector")
    with (
        mock.patch.object(bench, "Process", functools.partial(Process, program=program, environment=_to_file)),
        tempfile.TemporaryDirectory(prefix="owners-", dir=folder) as held,
        bench.space(Path(held), files, memory=None) as running,
    ):
        for name in asked.queries:
            sql = written_for(asked.layout, tpch.queries()[name])
            print(f"\n{name}: ", end="")
            print("\n".join(told(running, sql, warm=asked.warm, least=asked.least)), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["connector"]:
        connector()
    elif sys.argv[1:2] and sys.argv[1].isdecimal():  # the descriptor that a worker is given
        worker()
    else:
        main()
