"""How much has come, counted as it comes and shown while it does."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from hanse.loaders.row_slices import Slice, held
from hanse.stream import Stream


@dataclass(slots=True)
class Throughput:
    """What has come so far in this iteration."""

    rows: int = 0
    nbytes: int = 0
    batches: int = 0
    reopened: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since this iteration began."""
        return time.monotonic() - self.began

    def __str__(self) -> str:
        seconds = max(self.seconds, 1e-9)
        rate = f"{self.rows / seconds:,.0f} rows/s, {self.nbytes / seconds / 1e6:,.1f} MB/s"
        return f"{self.rows:,} rows, {rate}" + (f", {self.reopened} times reconnected" if self.reopened else "")


def counted(stream: Stream, seen: Throughput) -> Iterator[pa.RecordBatch]:
    """The batches of a stream; each time that it is opened anew is counted with the next of them, or its end."""
    known = 0
    try:
        for batch in stream:
            seen.reopened, known = seen.reopened + stream.reopened - known, stream.reopened
            yield batch
    finally:
        seen.reopened += stream.reopened - known


def count(seen: Throughput, slices: Sequence[Slice]) -> None:
    """One batch more, of these slices."""
    seen.batches += 1
    for batch, start, stop in slices:
        seen.rows += stop - start
        seen.nbytes += held(batch) * (stop - start) // batch.num_rows


class Told:
    """A progress bar with the throughput, on standard error: of rows where it is known how many there are, of blocks
    where it is not. `before`: rows that were read by another iteration."""

    def __init__(self, seen: Throughput, *, rows: int, before: int, blocks: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        self._seen, self._before, self._by_blocks = seen, before, bool(blocks)
        self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=Console(stderr=True))
        self._task = self._bar.add_task("", total=blocks or rows, completed=before)
        self._bar.start()

    def tell(self, blocks: int) -> None:
        """So many blocks are done."""
        done = blocks if self._by_blocks else self._before + self._seen.rows
        self._bar.update(self._task, completed=done, description=str(self._seen))

    def end(self) -> None:
        """Nothing more comes."""
        self._bar.update(self._task, completed=self._bar.tasks[0].total)

    def close(self) -> None:
        """The bar stays as it is."""
        self._bar.stop()
