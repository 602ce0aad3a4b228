"""Counts the rows and bytes that a loader has received, and shows them while it reads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from hanse.loaders.row_slices import Slice, kept_bytes
from hanse.stream import Stream


@dataclass(slots=True)
class Throughput:
    """What an iteration has received so far."""

    rows: int = 0
    nbytes: int = 0
    batches: int = 0
    reopened: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Seconds since this iteration began."""
        return time.monotonic() - self.began

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        rate = f"{self.rows / seconds:,.0f} rows/s, {self.nbytes / seconds / 1e6:,.1f} MB/s"
        return f"{self.rows:,} rows, {rate}" + (f", {self.reopened} times reconnected" if self.reopened else "")


def count_batches(stream: Stream, seen: Throughput) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a stream; count each reopening with the next batch, or at the end."""
    known = 0
    try:
        for batch in stream:
            seen.reopened, known = seen.reopened + stream.reopened - known, stream.reopened
            yield batch
    finally:
        seen.reopened += stream.reopened - known


def add_batch(seen: Throughput, slices: Sequence[Slice]) -> None:
    """Count one batch that consists of these slices."""
    seen.batches += 1
    for batch, start, stop in slices:
        seen.rows += stop - start
        seen.nbytes += kept_bytes(batch) * (stop - start) // batch.num_rows


class ThroughputBar:
    """A progress bar with the throughput, on standard error: in rows if their number is known, else in blocks.
    `before`: rows that another iteration read."""

    def __init__(self, seen: Throughput, *, rows: int, before: int, blocks: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._seen, self._before, self._by_blocks = seen, before, bool(blocks)
        self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
        self._task = self._bar.add_task("", total=blocks or rows, completed=before)
        self._bar.start()

    def update(self, blocks: int) -> None:
        """Show that `blocks` blocks are done."""
        done = blocks if self._by_blocks else self._before + self._seen.rows
        self._bar.update(self._task, completed=done, description=str(self._seen))

    def end(self) -> None:
        """Show that everything is done."""
        self._bar.update(self._task, completed=self._bar.tasks[0].total)

    def close(self) -> None:
        """Stop the bar and leave it on the screen."""
        self._bar.stop()
