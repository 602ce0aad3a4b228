"""Bytes that stay where they lie until they are sent: parts of files, and messages that are there in part."""

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
    """A part of an open file, for a transport that can send one without reading it, or reads it to where it sends from.

    `ref`: what an owner's file is registered as; none for a copy of ours. `seen` is to be called with its bytes as they
    are sent, all of them and in order, where it is given.
    """

    file: IO[bytes]
    at: int
    nbytes: int
    ref: FileRef | None = None
    seen: Callable[[bytes | memoryview], object] | None = None

    @property
    def device(self) -> int:
        """What an owner's file lies on, 0 for a copy of ours: the threads that read it are those of its device."""
        return 0 if self.ref is None else self.ref.dev

    def parts(self) -> Sequence[Place | memoryview]:
        """What there is to send: of files, the descriptor, the offset and the bytes."""
        return [(self.file.fileno(), self.at, self.nbytes)]

    def check(self) -> None:
        """VersionChanged where the owner's file is not what was registered any more."""
        if self.ref is not None:
            check_unchanged(self.file.fileno(), self.ref)

    def read_into(self, memory: memoryview) -> None:
        """Fill the start of `memory`; VersionChanged where the file is shorter. In a thread: it may be on disk only."""
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
    """A message in pieces, in memory and in files; to be sent as a `Span` is, in place of one.

    Each of `pieces` is a file's number, or a negative one for `memory`, an offset and bytes.
    """

    memory: memoryview
    files: Mapping[int, tuple[IO[bytes], FileRef]]
    pieces: Sequence[Place]
    nbytes: int

    @property
    def device(self) -> int:
        """As of a span, of the first file."""
        return next((ref.dev for _, ref in self.files.values()), 0)

    def parts(self) -> Sequence[Place | memoryview]:
        """As of a span."""
        descriptors = {number: file.fileno() for number, (file, _) in self.files.items()}
        return [
            self.memory[at : at + size] if number < 0 else (descriptors[number], at, size)
            for number, at, size in self.pieces
        ]

    def check(self) -> None:
        """As of a span, once for each file."""
        check_all(self.files.values())

    def read_into(self, memory: memoryview) -> None:
        """As of a span."""
        filled = 0
        for number, at, size in self.pieces:
            if number < 0:
                memory[filled : filled + size] = self.memory[at : at + size]
            else:
                Span(self.files[number][0], at, size).read_into(memory[filled:])
            filled += size


InFiles = Span | ScatteredMessage


def check_all(files: Iterable[tuple[IO[bytes], FileRef]]) -> None:
    """VersionChanged where one of the owner's files is not what was registered any more."""
    for file, ref in files:
        check_unchanged(file.fileno(), ref)
