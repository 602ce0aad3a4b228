"""File system over objects in a store, whose blocks the main process lends as descriptors. Runs in a worker only.

The engine reads ranges of names that only this job has (`hanse://0/year=2024/3.parquet`). A worker has neither network
nor credentials.
"""

from __future__ import annotations

import io
import os
import socket
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import fsspec  # type: ignore[import-untyped]  # it ships no types

from connector.datasets.object_cache import BLOCK
from connector.datasets.sources.source_files import FileRef, engine_name
from connector.engine.pool import protocol as wire
from connector.engine.pool.error_codes import Coded
from connector.engine.worker.read.object_channel import ObjectChannel
from connector.errors import VersionChanged

SCHEME = "hanse"
_HELD = 16  # descriptors kept open


class Borrowed:
    """A relation's objects. As with `duckdb_engine.Opened`, reads see the registered bytes."""

    descriptors: tuple[int, ...] = ()

    def __init__(self, desk: ObjectChannel, relation: int, refs: Sequence[FileRef]) -> None:
        self.refs = tuple(refs)
        self.paths = tuple(f"{SCHEME}://{relation}/{engine_name(ref.name, number)}" for number, ref in enumerate(refs))
        self.fault: Exception | None = None
        self._desk = desk
        self._relation = relation
        self._held: OrderedDict[tuple[int, int], int] = OrderedDict()
        self._numbers = {path: number for number, path in enumerate(self.paths)}

    def check_unchanged(self) -> None:
        """Check that every object is still the registered one. Raises: the first error of a read, or of this check."""
        if self.fault is not None:
            raise self.fault
        try:
            with self._desk.turn:
                self._ask(wire.CHECK, 0, 0, 0)
                self._next_answer()
        except HanseFault as fault:
            raise fault.args[0] from None

    def digest(self, number: int) -> str:
        """Return the store's identification of an object's bytes."""
        ref = self.refs[number]
        return f"etag:{ref.etag}:{ref.size}:{ref.version}"

    def open(self, number: int) -> _File:
        """Return an object as a file."""
        return _File(self, number, self.refs[number].size)

    def number_of(self, path: str) -> int:
        """Return the number of one of this relation's names.

        Raises: FileNotFoundError for any other name.
        """
        if path not in self._numbers:
            raise FileNotFoundError(path)
        return self._numbers[path]

    def read_into(self, number: int, start: int, target: memoryview) -> int:
        """Fill `target` with the bytes from `start` on, up to the object's end. Returns their number."""
        stop = min(self.refs[number].size, start + len(target))
        if start >= stop:
            return 0
        try:
            with self._desk.turn, self._all_or_nothing():
                self._fill(number, start, target[: stop - start])
        except (HanseFault, OSError) as error:
            self.fault = self.fault or (error.args[0] if isinstance(error, HanseFault) else Coded("source_unreadable"))
            raise OSError("the object cannot be read") from None
        return stop - start

    def close(self) -> None:
        for descriptor in self._held.values():
            os.close(descriptor)
        self._held.clear()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        try:
            yield
        except HanseFault:  # nothing follows it
            raise
        except BaseException:
            self._desk.end(Coded("source_unreadable"))
            raise

    def _fill(self, number: int, start: int, target: memoryview) -> None:
        first, last = start // BLOCK, (start + len(target) - 1) // BLOCK
        held = first == last and (number, first) in self._held
        if not held:
            self._ask(wire.READ, number, first, last - first + 1)
        filled = 0
        for block in range(first, last + 1):
            descriptor = self._held[number, block] if held else self._keep(number, block, self._next_answer())
            offset = start + filled - block * BLOCK
            want = min(BLOCK - offset, len(target) - filled)
            got = os.preadv(descriptor, [target[filled : filled + want]], offset)
            if got != want:
                raise OSError("a block is shorter than it should be")
            filled += got

    def _keep(self, number: int, block: int, descriptor: int) -> int:
        if (old := self._held.pop((number, block), None)) is not None:
            os.close(old)
        self._held[number, block] = descriptor
        while len(self._held) > _HELD:
            os.close(self._held.popitem(last=False)[1])
        return descriptor

    def _ask(self, what: bytes, number: int, first: int, count: int) -> None:
        try:
            self._desk.socket.send(wire.LOAN.pack(what, self._relation, number, first, count))
        except OSError:  # shut: the job was cancelled
            raise HanseFault(self._desk.fault or Coded("cancelled")) from None

    def _next_answer(self) -> int:
        """Return the descriptor of the next answer, or -1 for a successful check. Raises: HanseFault."""
        try:
            message, descriptors, _, _ = socket.recv_fds(self._desk.socket, 256, 1)
        except OSError:  # as when it is shut
            message, descriptors = b"", []
        if message == b"b" and descriptors:
            return descriptors[0]
        if message == b"k":
            return -1
        code = message[1:].decode("ascii", "replace") or "cancelled"
        if code == VersionChanged.code:
            raise HanseFault(VersionChanged.of("an object of this version is gone or has changed"))
        raise HanseFault(Coded(code))


class HanseFault(Exception):
    """Carries the error that stops a job through the engine, which would swallow it."""


class _File(io.RawIOBase):
    """An object as a file for the engine and Arrow.

    Several threads of the engine share a file, each with a seek before a read: a seek applies to the next read of its
    thread. Reads without a seek continue where the last one ended.
    """

    def __init__(self, borrowed: Borrowed, number: int, size: int) -> None:
        self._borrowed, self._number, self.size = borrowed, number, size
        self._position = 0
        self._sought: dict[int, int] = {}  # by thread, from its seek to its read

    def readinto(self, target: Any) -> int:
        start = self._place(taken=True)
        got = self._borrowed.read_into(self._number, start, memoryview(target).cast("B"))
        self._position = start + got
        return got

    def read(self, size: int | None = -1) -> bytes:
        left = self.size - self._place()
        wanted = left if size is None or size < 0 else min(size, left)
        body = bytearray(max(0, wanted))
        self.readinto(body)
        return bytes(body)

    def seek(self, offset: int, whence: int = 0) -> int:
        place = offset + (0, self._place(), self.size)[whence]
        self._sought[threading.get_ident()] = self._position = place
        return place

    def tell(self) -> int:
        return self._place()

    def _place(self, *, taken: bool = False) -> int:
        thread = threading.get_ident()
        found = self._sought.pop(thread, None) if taken else self._sought.get(thread)
        return self._position if found is None else found

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True


class FileSystem(fsspec.AbstractFileSystem):  # type: ignore[misc]  # untyped base
    """The objects of a job's relations under the names that the engine has for them."""

    protocol = SCHEME
    cachable = False

    def __init__(self, borrowed: Sequence[Borrowed]) -> None:
        super().__init__()
        self._all = {path: one for one in borrowed for path in one.paths}

    def open(self, path: str, mode: str = "rb", **_: Any) -> _File:
        if mode != "rb":
            raise PermissionError(path)
        one = self._find_relation(path)
        return one.open(one.number_of(path))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        one = self._find_relation(path)
        return {"name": path, "size": one.refs[one.number_of(path)].size, "type": "file"}

    def glob(self, path: str, **_: Any) -> list[str]:
        return [path] if path in self._all else []

    def exists(self, path: str, **_: Any) -> bool:
        return path in self._all

    def isfile(self, path: str) -> bool:
        return path in self._all

    def isdir(self, path: str) -> bool:
        return False

    def modified(self, path: str) -> datetime:
        one = self._find_relation(path)
        return datetime.fromtimestamp(one.refs[one.number_of(path)].mtime_ns / 1e9, UTC)

    def _find_relation(self, path: str) -> Borrowed:
        if path not in self._all:
            raise FileNotFoundError(path)
        return self._all[path]
