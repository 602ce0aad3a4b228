"""What a job's answer becomes on its way out of a worker: Arrow messages, framed, counted and digested.

The memory of a batch is copied once, to where it is sent from. Runs in the worker process only.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from connector.engine.pool import protocol as wire
from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Job
from connector.engine.pool.shared_memory import slot_bytes
from connector.engine.worker.memory_limits import limit_cpu
from connector.engine.worker.write import null_scrub
from connector.infra.formats import flatbuffers
from connector.infra.formats.digests import new_digest

if TYPE_CHECKING:
    from connector.engine.worker.session import Session

_WORTH = 0.85  # of a batch's bytes; what compresses less goes as it is (data-plane, section 6)
_TRIED_EVERY = 16  # batches, while it does not compress: it may yet
_PIECE = 2**18  # bytes that stay in a processor's cache from their copy to their digest
_SMALL = 2**16  # bytes that are copied faster than the interpreter's lock is let go of and taken again
# A message begins with this mark, its length and its metadata, each in a part of its own (Arrow columnar format,
# "Encapsulated message format").
_MARK = b"\xff\xff\xff\xff"
_HEADER, _NODES = 2, 1  # fields of Message and of RecordBatch (Message.fbs)


class Format(Protocol):
    """An answer in some format: a head, a message a batch, a foot; `trailer` has room for the end record."""

    head: bytes
    trailer: bytes
    first: bytes  # the digest of the head
    digest: Any  # of all so far; `Frames` updates it

    def message(self, batch: pa.RecordBatch, *, at: str = "") -> tuple[list[Any], int]:
        """The parts of a batch's message and their size."""

    def foot(self) -> tuple[list[Any], int]:
        """What comes after the last batch."""


class ArrowStreamWriter:
    """Encodes the messages of one Arrow stream: its head, each batch, and a trailer with room for the end record.

    Each message of a stream says whether its buffers are compressed (Arrow columnar format, "Compression"). With a
    codec, batches are compressed until one does not get smaller by it (images, measurements); then the next go as they
    are, and one in `_TRIED_EVERY` is tried again. What is sent depends on the data alone.
    """

    def __init__(self, schema: pa.Schema, *, codec: str, digest: str, trailer_room: int) -> None:
        self.sink = ListSink()
        self._plain = self._writer(schema, None)
        self._compressed = self._plain if codec == "none" else self._writer(schema, codec)
        self._left = 0  # batches to go as they are
        # Whether batches are looked at for nulls before they are written: from the first one on that has some.
        self._empties = codec != "none" or any(map(null_scrub.has_union, schema.types))
        # Not `empty_table`: it loads pandas where that is installed.
        zero = pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
        first, again = (b"".join(self._encode(self._plain, zero, None)[0]) for _ in range(2))
        self._encode(self._compressed, zero, None)
        self.trailer = b"".join(self._encode(self._plain, zero, {wire.TRAILER_KEY: " " * trailer_room})[0])
        self.head = first.removesuffix(again)  # the schema is written with the first batch
        self.digest = new_digest(digest)
        self.digest.update(self.head)
        self.first = self.digest.digest()  # before any batch

    def message(self, batch: pa.RecordBatch, *, at: str = "") -> tuple[list[Any], int]:
        """The parts of a batch's message, which stay where they are, and their size; `at` goes into its metadata."""
        metadata = {wire.AT_KEY: at} if at else None
        if not self._empties:  # the message itself tells it of hundreds of columns at once
            parts, size = self._encode(self._plain, batch, metadata)
            if not _tells_nulls(parts):
                return parts, size
            self._empties = True
        batch = null_scrub.emptied(batch)
        if self._left or self._compressed is self._plain:
            self._left = max(0, self._left - 1)
            return self._encode(self._plain, batch, metadata)
        parts, size = self._encode(self._compressed, batch, metadata)
        if size > _WORTH * batch.nbytes:
            self._left = _TRIED_EVERY - 1
        return parts, size

    def foot(self) -> tuple[list[Any], int]:
        """Nothing: the trailer is not ours to send."""
        return [], 0

    def _writer(self, schema: pa.Schema, codec: str | None) -> Any:
        options = pa.ipc.IpcWriteOptions(compression=codec, use_threads=False)
        return pa.ipc.new_stream(pa.PythonFile(self.sink, mode="w"), schema, options=options)

    def _encode(self, writer: Any, batch: pa.RecordBatch, metadata: Mapping[str, str] | None) -> tuple[list[Any], int]:
        writer.write_batch(batch, custom_metadata=metadata)
        return self.sink.take()


class Frames:
    """An answer as frames, counted and digested; the memory of a batch is copied once, to where it is sent from."""

    def __init__(
        self, session: Session, job: Job, messages: Format, *, idle: Callable[[], None], sized: Callable[[int], None]
    ) -> None:
        """`idle` is called where the reader keeps us waiting; `sized` with the bytes of each batch before it goes."""
        self.session, self.job = session, job
        self.messages, self._sized = messages, sized
        self.slots = None if session.shared is None else Slots(session, job, idle)
        self.rows = self.batches = self.bytes = 0
        self.session.send(wire.SCHEMA, messages.head, digest=messages.first, more=True)
        self.session.send(wire.TRAILER, messages.trailer)

    def write(
        self, batch: pa.RecordBatch, *, at: str = "", block: int = -1, last: Callable[[], bool] = lambda: False
    ) -> None:
        """One batch out, with its place and its block where it has one; or the error of the limit it would break. The
        `last` goes with the end, which follows at once."""
        parts, size = self.messages.message(batch, at=at)
        self._sized(size)
        limits = self.job.limits
        if limits.rows is not None and self.rows + batch.num_rows > limits.rows:
            raise Coded("rows_limit")
        if limits.bytes is not None and self.bytes + size > limits.bytes:
            raise Coded("bytes_limit")
        self.rows, self.batches, self.bytes = self.rows + batch.num_rows, self.batches + 1, self.bytes + size
        slot = 0 if self.slots is None or size > self.slots.size else self.slots.free()
        if not slot or self.slots is None:
            digest = self._digested(chain.from_iterable(map(_pieces, parts)))
            self.session.send(wire.BATCH, *parts, size=size, rows=batch.num_rows, digest=digest, block=block)
        else:
            digest = self._digested(self.slots.put(parts))
            self.session.send(
                wire.BATCH, size=size, slot=slot, rows=batch.num_rows, digest=digest, block=block, more=last()
            )
        limit_cpu(self.job)

    def _digested(self, pieces: Iterable[memoryview]) -> bytes:
        """The digest of all so far, once these pieces have been looked at."""
        for piece in pieces:
            self.messages.digest.update(piece)
        return bytes(self.messages.digest.digest())

    def end(self) -> None:
        """The foot, where there is one, and the totals."""
        parts, size = self.messages.foot()
        if size:
            for part in parts:
                self.messages.digest.update(part)
            self.bytes += size
            self.session.send(wire.BATCH, *parts, size=size, rows=0, digest=self.messages.digest.digest())
        totals = {"rows": self.rows, "batches": self.batches, "bytes": self.bytes}
        self.session.send(wire.END, json.dumps(totals).encode(), digest=self.messages.digest.digest())


def _pieces(part: Any) -> Sequence[memoryview]:
    """A part in pieces."""
    whole = memoryview(part).cast("B")
    return (whole,) if len(whole) <= _PIECE else [whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE)]


class Slots:
    """The worker's end of the ring (`connector.engine.pool.shared_memory`)."""

    def __init__(self, session: Session, job: Job, idle: Callable[[], None]) -> None:
        assert session.shared is not None
        self.session, self.size, self._idle = session, slot_bytes(job.batch_bytes), idle
        memory = memoryview(session.worker.map(session.shared, job.slots * self.size))
        self._slots = [memory[at : at + self.size] for at in range(0, len(memory), self.size)]
        self._fill(memory[:0])
        self._free = list(range(job.slots, 0, -1))

    def free(self) -> int:
        """The number of a slot that may be written, once there is one; 0 where the socket is to be used."""
        if not self._free:
            self._free += self.session.credits(self._idle)
        slot = self._free.pop()  # the last one that came back: it is still in the cache
        if slot:
            self._fill(self._slots[slot - 1])
        return slot

    def _fill(self, memory: memoryview) -> None:
        self._slot, self._signed = memory, memory.cast("b")

    def put(self, parts: Iterable[Any]) -> Iterator[memoryview]:
        """The batch into the slot; pieces of it, each as soon as it is there."""
        begun = at = 0
        for part in parts:
            if len(part) <= _SMALL:
                at = self._copy(part, at)
            else:
                for piece in _pieces(part):
                    at = self._copy_apart(piece, at)
                    yield self._slot[begun:at]
                    begun = at
            if at - begun >= _PIECE:
                yield self._slot[begun:at]
                begun = at
        yield self._slot[begun:at]

    def _copy(self, part: Any, at: int) -> int:
        """A part to its place in the slot; where it ends there."""
        end = at + len(part)
        place = self._signed if isinstance(part, pa.Buffer) else self._slot  # a view takes what is of its own format
        place[at:end] = part
        return end

    def _copy_apart(self, piece: memoryview, at: int) -> int:
        """The same without the interpreter's lock."""
        end = at + len(piece)
        pa.FixedSizeBufferWriter(pa.py_buffer(self._slot[at:end])).write(piece)
        return end


def _tells_nulls(parts: Sequence[Any]) -> bool:
    """Whether the metadata of a record batch's message counts nulls in any column, or below one; also where it does not
    lie where we look for it."""
    mark, _, metadata = parts[:3]
    if mark != _MARK or len(metadata) < len(_MARK):
        return True
    data = memoryview(metadata)
    batch = flatbuffers.follow_offset(data, flatbuffers.read_root(data), _HEADER)
    if not flatbuffers.find_field(data, batch, _NODES):
        return False
    nodes = flatbuffers.follow_offset(data, batch, _NODES)
    (count,) = struct.unpack_from("<I", data, nodes)
    return bool(np.frombuffer(data, "<i8", 2 * count, nodes + 4)[1::2].any())  # of each node: length, nulls


class ListSink:
    """A file that keeps what is written as a list: the buffers of a batch stay where they are (data-plane 3.1)."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[Any] = []
        self.write = self._parts.append  # hundreds of times for each batch of wide rows

    def take(self) -> tuple[list[Any], int]:
        """What was written since the last take, and its size."""
        parts = [part for part in self._parts if len(part)]
        self._parts.clear()
        return parts, sum(map(len, parts))

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing to close."""
