"""Files that this process makes in a shared folder, and detection of files whose maker has ended.

A file name begins with the mark of the process that makes it, which holds a lock while it lives. A free lock means that
no process works on these files. The locks are in a sibling folder that workers cannot reach. Knows nothing of the
content of files, and not which are still needed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_TURN = "turn"  # its lock guards looking at the other locks and making one


class OwnedFolder:
    """One process's part of a folder. All methods wait for the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._locks = folder, folder.with_name(f".{folder.name}")
        self._lock: IO[bytes] | None = None

    def new(self, suffix: str) -> Path:
        """Return the path of a new file."""
        if self._lock is None:
            self._locks.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _hold_lock(self._locks / _TURN):
                self._lock = (self._locks / secrets.token_hex(16)).open("xb")
                _try_lock(self._lock.fileno())
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return self.folder / f"{Path(self._lock.name).name}-{secrets.token_hex(16)}{suffix}"

    def list_left_over(self) -> list[Path]:
        """Return the files whose makers have ended, complete or not."""
        found = list(self.folder.iterdir()) if self.folder.exists() else []  # before locks, which are older
        if not self._locks.exists():
            return found
        with _hold_lock(self._locks / _TURN):
            living = {lock.name for lock in self._locks.iterdir() if lock.name != _TURN and _is_maker_alive(lock)}
        return [path for path in found if path.name.partition("-")[0] not in living]

    def close(self) -> None:
        """Release the files of this process: any that remain count as left over from now on."""
        if self._lock is not None:
            Path(self._lock.name).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def remove(paths: Iterable[Path]) -> None:
    """Remove files. Some may be gone already."""
    for path in paths:
        path.unlink(missing_ok=True)


def _is_maker_alive(lock: Path) -> bool:
    """Return whether a process holds the lock. Removes a lock that is free."""
    with lock.open("rb") as file:
        if not _try_lock(file.fileno()):
            return True
        lock.unlink(missing_ok=True)
        return False


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held elsewhere, or the file system has no locks: then no file counts as left over
        return False
    return True


@contextmanager
def _hold_lock(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
