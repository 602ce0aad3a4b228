"""Spans: bytes that stay in files until they are sent."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import IO

from connector.datasets.sources.source_files import FileRef, check_unchanged
from connector.errors import VersionChanged

Place = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an open file, for a transport that sends it without reading it, or reads it just before.

    `ref`: the registered file, None for our own copy. `seen` is called with all of its bytes in order as they are sent.
    """

    file: IO[bytes]
    at: int
    nbytes: int
    ref: FileRef | None = None
    seen: Callable[[bytes | memoryview], object] | None = None

    @property
    def device(self) -> int:
        """Device of an owner's file, 0 for our own copy. Each device has its own threads."""
        return 0 if self.ref is None else self.ref.dev

    def parts(self) -> Sequence[Place]:
        """Return what to send: (descriptor, offset, bytes)."""
        return [(self.file.fileno(), self.at, self.nbytes)]

    def check(self) -> None:
        """Raises: VersionChanged where the owner's file is no longer the registered one."""
        if self.ref is not None:
            check_unchanged(self.file.fileno(), self.ref)

    def read_into(self, memory: memoryview) -> None:
        """Fill the start of `memory`. Call in a thread: the file may be on disk only.

        Raises: VersionChanged where the file is shorter.
        """
        got = 0
        while got < self.nbytes:
            more = os.preadv(self.file.fileno(), [memory[got : self.nbytes]], self.at + got)
            if not more:
                raise VersionChanged.of("a file of this version has been cut short")
            got += more
        if self.seen is not None:
            self.seen(memory[: self.nbytes])


def check_all(files: Iterable[tuple[IO[bytes], FileRef]]) -> None:
    """Raises: VersionChanged where one of the owner's files is no longer the registered one."""
    for file, ref in files:
        check_unchanged(file.fileno(), ref)
