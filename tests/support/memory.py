"""How much memory a process and all that it started take, at most, while something runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_EVERY = 0.1


@contextmanager
def watched(leaders: Mapping[str, int]) -> Iterator[dict[str, int]]:
    """The most bytes that each process group held (proportional set size: shared pages are shared out), by name.

    `leaders`: the process that leads each group. Pages of files count as far as the group has them mapped.
    """
    most = dict.fromkeys(leaders, 0)
    done = threading.Event()

    def look() -> None:
        while not done.wait(_EVERY):
            held = dict.fromkeys(leaders, 0)
            names = {leader: name for name, leader in leaders.items()}
            for folder in Path("/proc").iterdir():
                if folder.name.isdecimal() and (name := names.get(group_of(folder))) is not None:
                    held[name] += _size(folder)
            for name, size in held.items():
                most[name] = max(most[name], size)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def group_of(folder: Path) -> int:
    try:
        return int((folder / "stat").read_text().rpartition(")")[2].split()[2])
    except (OSError, ValueError, IndexError):
        return -1


def _size(folder: Path) -> int:
    try:
        lines = (folder / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
