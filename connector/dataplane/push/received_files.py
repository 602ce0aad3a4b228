"""The files of what is pushed to us: where they arrive, get their place, and go. Knows no database."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from connector.errors import Busy
from connector.infra import atomic_files

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_T = TypeVar("_T")


def make_arrival_folder(folder: Path) -> Path:
    """Where files are until they are checked: all that workers see of what others sent."""
    found = folder / "arriving"
    found.mkdir(mode=0o700, parents=True, exist_ok=True)
    return found


def create_private(path: Path) -> Any:
    """A new file that nobody else can open."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)


def write_all(number: int, held: bytearray) -> None:
    """All of it, however little a call takes."""
    view = memoryview(held)
    while len(view):
        view = view[os.write(number, view) :]


def sync_to_disk(number: int) -> None:
    """Back when what was written is there."""
    os.fsync(number)


def publish(path: Path, target: Path, before: Path) -> bool:
    """Give a file its place, for good. Whether one had it, which is at `before` then."""
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
    """Remove what nobody has a record of; the bytes of the rest."""
    for path in (*make_arrival_folder.iterdir(), *(path for path in kept.iterdir() if path not in good)):
        with suppress(FileNotFoundError):
            os.unlink(path)
    return sum(path.stat().st_size for path in kept.iterdir())


def remove_file(path: Path) -> int:
    """Remove a file; the bytes that it had, none where somebody else has removed it."""
    try:
        size = path.stat().st_size
        os.unlink(path)
    except FileNotFoundError:
        return 0
    return size


def try_remove(path: Path) -> bool:
    """Remove a file where the disk lets us; whether none is there now."""
    with suppress(OSError):  # a disk that takes no writes says so of a file that was never there, too
        os.unlink(path)
    return not path.exists()


async def run_in_thread(work: Callable[..., _T], *given: Any) -> _T:
    """Its result. Who is cancelled waits, too: a file must not be closed under a thread that writes."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *given))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait((running,))
        raise


def build_write_error(error: OSError) -> Busy:
    """What a sender is told where our disk takes nothing."""
    full = error.errno in _NO_ROOM
    what = "make room on" if full else "look at what it may open, and at"
    return Busy(
        f"the push cannot be written down at its consumer ({error.strerror}); its operator must {what} the disk of its "
        "data directory",
        code="disk_full" if full else "not_written",
    )
