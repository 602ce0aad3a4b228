"""Spans: bytes that stay in files until they are sent, and messages that are partly in files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    def parts(self) -> Sequence[Place | memoryview]:
        """Return what to send: memory, or (descriptor, offset, bytes)."""
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


@dataclass(frozen=True, slots=True)
class ScatteredMessage:
    """A message in pieces, in memory and in files, sent in the same way as a `Span`.

    Each of `pieces` has a file's number (negative: `memory`), an offset and bytes.
    """

    memory: memoryview
    files: Mapping[int, tuple[IO[bytes], FileRef]]
    pieces: Sequence[Place]
    nbytes: int

    @property
    def device(self) -> int:
        """See `Span.device`; that of the first file."""
        return next((ref.dev for _, ref in self.files.values()), 0)

    def parts(self) -> Sequence[Place | memoryview]:
        """See `Span.parts`."""
        descriptors = {number: file.fileno() for number, (file, _) in self.files.items()}
        return [
            self.memory[at : at + size] if number < 0 else (descriptors[number], at, size)
            for number, at, size in self.pieces
        ]

    def check(self) -> None:
        """See `Span.check`, once for each file."""
        check_all(self.files.values())

    def read_into(self, memory: memoryview) -> None:
        """See `Span.read_into`."""
        filled = 0
        for number, at, size in self.pieces:
            if number < 0:
                memory[filled : filled + size] = self.memory[at : at + size]
            else:
                Span(self.files[number][0], at, size).read_into(memory[filled:])
            filled += size


InFiles = Span | ScatteredMessage


def check_all(files: Iterable[tuple[IO[bytes], FileRef]]) -> None:
    """Raises: VersionChanged where one of the owner's files is no longer the registered one."""
    for file, ref in files:
        check_unchanged(file.fileno(), ref)
