"""Processor time and memory of a process with its children, as the kernel counts them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


class Tree:
    """A process and all below it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._at = 0.0

    def mark(self) -> None:
        """Begin to count: processor time from here, the peak of memory from now."""
        for pid in self.pids():
            with suppress(OSError):
                Path(f"/proc/{pid}/clear_refs").write_text("5")
        self._at = self.cpu()

    def cpu_since_mark(self) -> float:
        return self.cpu() - self._at

    def cpu(self) -> float:
        """Seconds, of those that ended too."""
        return sum(_seconds(pid) for pid in self.pids())

    def peak_mb(self) -> float:
        """The sum of each process's own peak since the mark: no smaller than the peak of the sum."""
        return sum(_field(pid, "status", "VmHWM") for pid in self.pids()) / 1024

    def memory_mb(self) -> float:
        """What it takes now; memory that several of them share counts once."""
        return sum(_field(pid, "smaps_rollup", "Pss") for pid in self.pids()) / 1024

    def own_mb(self) -> float:
        """What it takes now for itself: not the pages of files, whose share falls and rises with who else uses them."""
        return (
            sum(_field(pid, "smaps_rollup", name) for pid in self.pids() for name in ("Pss_Anon", "Pss_Shmem")) / 1024
        )

    def pids(self) -> list[int]:
        found, left = [], [self.pid]
        while left:
            pid = left.pop()
            found.append(pid)
            with suppress(OSError):
                for task in os.listdir(f"/proc/{pid}/task"):
                    left += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
        return found


def _seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(fields[place]) for place in (11, 12, 13, 14)) / _TICKS


def _field(pid: int, file: str, name: str) -> float:
    with suppress(OSError, IndexError):
        for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return float(line.split()[1])
    return 0.0
