"""The processor time of processes and all that they started, to the nanosecond."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from tests.support.memory import group_of

_OF_PROCESS = 2  # the clock of a process's scheduled time, as the kernel numbers clocks: ~pid << 3 | this


class Used:
    """Seconds of processor time since the start, of some process groups. A process that has ended counts as far as
    it was seen last."""

    def __init__(self, leaders: Iterable[int]) -> None:
        self._leaders = frozenset(leaders)
        self._seen: dict[int, float] = {}

    def seconds(self) -> float:
        for folder in Path("/proc").iterdir():
            if folder.name.isdecimal() and group_of(folder) in self._leaders:
                self._see(int(folder.name))
        return sum(self._seen.values())

    def _see(self, process: int) -> None:
        with suppress(OSError):  # it has ended meanwhile
            self._seen[process] = time.clock_gettime(~process << 3 | _OF_PROCESS)
