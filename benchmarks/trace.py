"""The timeline of one conversation: what both connectors do, and when, from the first request to the first byte.

`traced(...)` runs two connectors under `python -m benchmarks.trace`, which is `connector serve` with a stopwatch around
what is asked of it, what it asks of others, and its transactions. The product knows nothing of it. Times are the
machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import contextvars
import functools
import json
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import processes
from tests.support.processes import Process

PROGRAM = ("-m", "benchmarks.trace")
FILE = "TRACE_TO"  # environment: where a traced connector writes its spans
_inside: contextvars.ContextVar[str] = contextvars.ContextVar("inside", default="")


@dataclass(frozen=True, slots=True)
class Span:
    """Something that took a while. `why`: the request or call that it was done for."""

    side: str
    kind: str  # serve | call | write | read
    what: str
    began: float
    ended: float
    note: str = ""
    why: str = ""

    @property
    def ms(self) -> float:
        return (self.ended - self.began) * 1e3


# Inside a traced connector.


def install(tell: Callable[..., None]) -> None:
    """Put the stopwatch around a connector's parts, from outside."""
    from connector.infra.net.http_client import HttpClient
    from connector.store import Store
    from connector.telemetry import Observed

    call, serve = HttpClient.call, Observed.__call__

    async def called(self: Any, method: str, url: str, **more: Any) -> Any:
        return await _timed(call(self, method, url, **more), "call", f"{method} /{url.split('/', 3)[-1]}", tell)

    async def served(self: Any, scope: Any, receive: Any, send: Any) -> None:
        await _timed(serve(self, scope, receive, send), "serve", f"{scope.get('method')} {scope.get('path')}", tell)

    HttpClient.call, Observed.__call__ = called, served  # type: ignore[method-assign]  # that is the point
    for name in ("write", "read"):
        _transactions(Store, name, tell)


async def _timed(work: Awaitable[Any], kind: str, what: str, tell: Callable[..., None]) -> Any:
    why, began = _inside.get(), time.monotonic()
    token = _inside.set(what)
    try:
        return await work
    finally:
        _inside.reset(token)
        tell(kind=kind, what=what, began=began, ended=time.monotonic(), why=why)


def _transactions(owner: type, name: str, tell: Callable[..., None]) -> None:
    """A transaction's way: waiting for its thread, the work itself, and from there until the caller goes on."""
    inner = getattr(owner, name)

    @functools.wraps(inner)
    async def timed(self: Any, work: Callable[..., Any]) -> Any:
        marks: list[float] = []

        def marked(tx: Any) -> Any:
            marks.append(time.monotonic())
            try:
                return work(tx)
            finally:
                marks.append(time.monotonic())

        began = time.monotonic()
        try:
            return await inner(self, marked)
        finally:
            ended = time.monotonic()
            starts, stops = marks[-2:] if len(marks) > 1 else (began, ended)
            parts = (starts - began, stops - starts, ended - stops)
            note = "wait {:.2f} work {:.2f} commit {:.2f}".format(*(part * 1e3 for part in parts))
            what = getattr(work, "__qualname__", "?").replace(".<locals>", "").replace(".<lambda>", " λ")
            tell(kind=name, what=what, began=began, ended=ended, note=note, why=_inside.get())

    setattr(owner, name, timed)


def main() -> None:
    """`connector serve`, traced."""
    from connector.__main__ import run_loop
    from connector.server import serve
    from connector.settings import Settings

    with Path(os.environ[FILE]).open("a", buffering=1) as file:

        def tell(**span: Any) -> None:
            file.write(json.dumps(span) + "\n")

        install(tell)
        run_loop(serve(Settings()))


# Outside.


@contextmanager
def traced(directory: Path, *, urls: tuple[str, str] = ("", "")) -> Iterator[tuple[Process, Process]]:
    """Two traced connectors, as `processes.two` has them."""
    with processes.two(directory, urls=urls, program=PROGRAM, environment=_to_file) as both:
        yield both


def _to_file(one: Process) -> dict[str, str]:
    return {FILE: str(one.directory / "trace")}


def spans(sides: Iterable[Process], *, began: float, ended: float) -> list[Span]:
    """Everything that both did in this time, in order."""
    found = []
    for one in sides:
        for line in (one.directory / "trace").read_text().splitlines():
            span = Span(side=one.name, **json.loads(line))
            if span.ended >= began and span.began <= ended:
                found.append(span)
    return sorted(found, key=lambda span: (span.began, -span.ended))


def told(found: list[Span], *, began: float, steps: list[tuple[float, str]]) -> Iterator[str]:
    """The timeline as lines: milliseconds since the first request, how long, whose, and what."""
    marks = [(at, f"{(at - began) * 1e3:8.2f}           -- {what}") for at, what in steps]
    for span in found:
        line = (
            f"{(span.began - began) * 1e3:8.2f} {span.ms:7.2f}  {span.side} {span.kind:5} {span.what[:64]}"
            f"{'  (' + span.note + ')' if span.note else ''}"
        )
        marks.append((span.began, line))
    for _, line in sorted(marks, key=lambda entry: entry[0]):
        yield line


def summary(found: list[Span]) -> str:
    """How much of what there was."""
    count = Counter(span.kind for span in found)
    total = {kind: sum(span.ms for span in found if span.kind == kind) for kind in count}
    return ", ".join(f"{count[kind]} x {kind} ({total[kind]:.1f} ms)" for kind in sorted(count))


if __name__ == "__main__":
    main()
