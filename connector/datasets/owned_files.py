"""Files that this process makes in a folder that others may share, and which of those there have nobody any more.

A file's name begins with the mark of the process that makes it, which holds a lock while it lives: whoever finds the
lock free knows that nobody is at work on these files. The locks lie beside the folder, where no worker reaches them.
Knows nothing of what the files hold, and not which of them are still wanted.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_TURN = "turn"  # whoever has its lock looks at the others, or makes one


class Making:
    """One process's part of a folder. Everything here waits for the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._locks = folder, folder.with_name(f".{folder.name}")
        self._lock: IO[bytes] | None = None

    def new(self, suffix: str) -> Path:
        """The path of a file that is to be made."""
        if self._lock is None:
            self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._locks / _TURN):
                self._lock = (self._locks / secrets.token_hex(16)).open("xb")
                _take(self._lock.fileno())
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder / f"{Path(self._lock.name).name}-{secrets.token_hex(16)}{suffix}"

    def left(self) -> list[Path]:
        """The files whose makers are gone, whether they came to their end or not."""
        found = list(self.folder.iterdir()) if self.folder.exists() else []  # first: a lock is older than its files
        if not self._locks.exists():
            return found
        with _locked(self._locks / _TURN):
            living = {lock.name for lock in self._locks.iterdir() if lock.name != _TURN and _lives(lock)}
        return [path for path in found if path.name.partition("-")[0] not in living]

    def close(self) -> None:
        """Let go of what was made: from now on it is left, if anything is."""
        if self._lock is not None:
            Path(self._lock.name).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def remove(paths: Iterable[Path]) -> None:
    """Remove files, some of which may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)


def _lives(lock: Path) -> bool:
    """Whether somebody holds a lock; one that nobody holds is gone after this."""
    with lock.open("rb") as file:
        if not _take(file.fileno()):
            return True
        lock.unlink(missing_ok=True)
        return False


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # somebody has it; or the file system knows no locks, and nothing is taken for left
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
