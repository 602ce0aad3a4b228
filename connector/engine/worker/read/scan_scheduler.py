"""Time-slices concurrent Parquet scans within a worker. Runs in a worker.

A scan of Parquet holds the pages of a row group, ten to thirty megabytes, even while its reader is slow. Of many scans
in one process a few hold pages at a time; each of the others keeps a row number and continues from there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Sequence
from typing import Self

import pyarrow as pa

from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Range
from connector.engine.worker.read.row_ranges import RangeBatch
from connector.infra.concurrency.fair_queue import FairQueue

_TURN = 0.5  # seconds after which a scan that is not done lets the next one go on, best between two ranges,
_LONGEST = 2  # but before so many turns are over
_LOOK = 0.05

# Opens an engine over ranges, takes from the list what it has read; the schema, and the parts as they come.
Begin = Callable[[list[Range]], tuple[pa.Schema, Generator[RangeBatch]]]


class Floor:
    """Limits how many scans hold an engine. A free place goes round-robin to consumers, FIFO within one."""

    def __init__(self, places: int) -> None:
        self.places = self._free = places
        self._lines = FairQueue[threading.Event]()
        self._lock = threading.Lock()

    @property
    def has_waiting(self) -> bool:
        """Whether a scan waits for a place."""
        return bool(self._lines)

    def take(self, check: Callable[[], None], *, consumer: str = "") -> None:
        """Wait for a place. `check` is called repeatedly, and raises after a cancellation."""
        with self._lock:
            if self._free:
                self._free -= 1
                return
            mine = threading.Event()
            self._lines.add(consumer, mine)
        try:
            while not mine.wait(_LOOK):
                check()
        except BaseException:
            self._leave(mine, consumer)
            raise

    def give_back(self) -> None:
        """Free a place, or pass it to the next scan."""
        with self._lock:
            if (found := self._lines.pop_next()) is None:
                self._free += 1
            else:
                found[1].set()

    def _leave(self, mine: threading.Event, consumer: str) -> None:
        with self._lock:
            if self._lines.remove(consumer, mine):
                return
        self.give_back()  # it was ours already


class Resting:
    """Yields the batches of ranges, and holds an engine only during its turn. Not thread-safe."""

    def __init__(
        self,
        floor: Floor,
        ranges: Sequence[Range],
        *,
        begin: Begin,
        end: Callable[[], None],
        check: Callable[[], None],
        consumer: str = "",
    ) -> None:
        """`end` closes what `begin` has opened; `check` raises after a cancellation. `consumer`: the scan's party."""
        self._floor, self._begin, self._end, self._check, self._consumer = floor, begin, end, check, consumer
        self._left = list(ranges)
        self._parts: Generator[RangeBatch] | None = None
        self._begun = 0.0
        self._over = False
        self.schema = self._go_on()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> RangeBatch:
        self._raise_if_closed()
        if self._floor.has_waiting and self._has_had_its_turn():
            self.rest()
        if self._left:
            if self._parts is None:
                self._go_on()
            assert self._parts is not None
            if (part := next(self._parts, None)) is not None:
                return part
        if self._left:  # parts that have failed or were interrupted end like those that are over
            raise Coded("cancelled")
        self.rest()
        raise StopIteration

    def idle(self) -> None:
        """Let another scan continue while the reader is slow."""
        if self._floor.has_waiting:
            self.rest()

    def rest(self) -> None:
        """Release the engine until the next batch is asked for."""
        parts, self._parts = self._parts, None
        if parts is not None:
            parts.close()  # first: its threads work in the engine
            self._end()
            self._floor.give_back()

    def close(self) -> None:
        """Read no more: a scan that waits for a turn raises soon. Call `rest` when no thread waits."""
        self._over = True

    def _has_had_its_turn(self) -> bool:
        # In the middle of a range the pages of its rows would be decoded twice.
        between = self._left[:1] and self._left[0].first >= self._left[0].stop
        return time.monotonic() > self._begun + (_TURN if between else _LONGEST * _TURN)

    def _go_on(self) -> pa.Schema:
        self._floor.take(self._raise_if_closed, consumer=self._consumer)
        while len(self._left) > 1 and self._left[0].first >= self._left[0].stop:
            self._left.pop(0)
        try:
            schema, self._parts = self._begin(self._left)
        except BaseException:
            self._end()
            self._floor.give_back()
            raise
        self._begun = time.monotonic()
        return schema

    def _raise_if_closed(self) -> None:
        self._check()
        if self._over:
            raise Coded("cancelled")
