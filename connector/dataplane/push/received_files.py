"""Files of received pushes: create, publish, remove. Must not know the database."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from connector.errors import Unavailable
from connector.infra import atomic_files

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_T = TypeVar("_T")


def make_arrival_folder(folder: Path) -> Path:
    """Create and return the folder of files that are not checked yet. Workers see no other received files."""
    found = folder / "arriving"
    found.mkdir(mode=0o700, parents=True, exist_ok=True)
    return found


def create_private(path: Path) -> Any:
    """Create a file that only this process may open."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)


def write_all(number: int, held: bytearray) -> None:
    """Write everything, however little one call takes."""
    view = memoryview(held)
    while len(view):
        view = view[os.write(number, view) :]


def sync_to_disk(number: int) -> None:
    """Return when what was written is on disk."""
    os.fsync(number)


def publish(path: Path, target: Path, before: Path) -> bool:
    """Move a file to its final place. Returns whether one was there before, which is then at `before`."""
    if had_one := target.exists():
        os.link(target, before)
    path.replace(target)
    atomic_files.sync(target.parent)
    return had_one


def undo_publish(target: Path, before: Path) -> None:
    """Undo `publish`."""
    with suppress(FileNotFoundError):
        os.unlink(target)
    with suppress(FileNotFoundError):
        before.replace(target)


def sweep(make_arrival_folder: Path, kept: Path, good: set[Path]) -> int:
    """Remove the files without a record. Returns the bytes of the rest."""
    for path in (*make_arrival_folder.iterdir(), *(path for path in kept.iterdir() if path not in good)):
        with suppress(FileNotFoundError):
            os.unlink(path)
    return sum(path.stat().st_size for path in kept.iterdir())


def remove_file(path: Path) -> int:
    """Remove a file. Returns its bytes, 0 where it was removed already."""
    try:
        size = path.stat().st_size
        os.unlink(path)
    except FileNotFoundError:
        return 0
    return size


def try_remove(path: Path) -> bool:
    """Remove a file if the disk permits. Returns whether no file is there now."""
    with suppress(OSError):  # a read-only disk raises even for a missing file
        os.unlink(path)
    return not path.exists()


async def run_in_thread(work: Callable[..., _T], *given: Any) -> _T:
    """Return the result of `work`, run in a thread.

    A cancelled caller still waits: a file must not be closed while a thread writes to it.
    """
    running = asyncio.ensure_future(asyncio.to_thread(work, *given))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        raise


def build_write_error(error: OSError) -> Unavailable:
    """Return the error for a sender whose push our disk does not take."""
    full = error.errno in _NO_ROOM
    what = "free space on" if full else "check the limit of open files, and"
    return Unavailable(
        f"the consumer cannot write the push to its disk ({error.strerror}); its operator must {what} the disk of its "
        "data directory",
        code="disk_full" if full else "not_written",
    )
