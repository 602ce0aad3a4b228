"""Writes a job's answer as Arrow messages in frames, counted and digested. Runs in a worker only.

The memory of a batch is copied once, into the slot that it is sent from.
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

_WORTH = 0.85  # of a batch's bytes; what compresses less is sent uncompressed
_TRIED_EVERY = 16  # batches: how often compression is tried again
_PIECE = 2**18  # bytes that stay in a processor's cache from their copy to their digest
_SMALL = 2**16  # bytes that are copied faster than the interpreter's lock is released and taken again
# A message begins with this mark, its length and its metadata, each in a part of its own (Arrow columnar format,
# "Encapsulated message format").
_MARK = b"\xff\xff\xff\xff"
_HEADER, _NODES = 2, 1  # fields of Message and of RecordBatch (Message.fbs)


class Format(Protocol):
    """A format of answers: head, a message for each batch, foot. `trailer` has room for the end record."""

    head: bytes
    trailer: bytes
    first: bytes  # the digest of the head
    digest: Any  # of all so far; `FrameWriter` updates it

    def message(self, batch: pa.RecordBatch, *, at: str = "") -> tuple[list[Any], int]:
        """Return the parts of a batch's message, and their size. `at`: metadata with the batch's place."""

    def foot(self) -> tuple[list[Any], int]:
        """Return the parts that follow the last batch, and their size."""


class ArrowStreamWriter:
    """Encodes the messages of one Arrow stream: its head, each batch, and a trailer with room for the end record.

    Each message of a stream says whether its buffers are compressed (Arrow columnar format, "Compression"). With a
    codec, batches are compressed until compression does not make one smaller (images, measurements). Then the next are
    sent uncompressed, and every `_TRIED_EVERY`th is tried again. What is sent depends on the data alone.
    """

    def __init__(self, schema: pa.Schema, *, codec: str, digest: str, trailer_room: int) -> None:
        self.sink = ListSink()
        self._plain = self._writer(schema, None)
        self._compressed = self._plain if codec == "none" else self._writer(schema, codec)
        self._left = 0  # batches to send uncompressed
        # Whether batches are checked for nulls before they are written: from the first batch with nulls on.
        self._checks_nulls = codec != "none" or any(map(null_scrub.has_union, schema.types))
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
        """Return the parts of a batch's message, without a copy, and their size. `at` goes into its metadata."""
        metadata = {wire.AT_KEY: at} if at else None
        if not self._checks_nulls:  # the message counts the nulls of all columns at once
            parts, size = self._encode(self._plain, batch, metadata)
            if not _has_nulls(parts):
                return parts, size
            self._checks_nulls = True
        batch = null_scrub.zero_nulls(batch)
        if self._left or self._compressed is self._plain:
            self._left = max(0, self._left - 1)
            return self._encode(self._plain, batch, metadata)
        parts, size = self._encode(self._compressed, batch, metadata)
        if size > _WORTH * batch.nbytes:
            self._left = _TRIED_EVERY - 1
        return parts, size

    def foot(self) -> tuple[list[Any], int]:
        """Return nothing: the connector sends the trailer."""
        return [], 0

    def _writer(self, schema: pa.Schema, codec: str | None) -> Any:
        options = pa.ipc.IpcWriteOptions(compression=codec, use_threads=False)
        return pa.ipc.new_stream(pa.PythonFile(self.sink, mode="w"), schema, options=options)

    def _encode(self, writer: Any, batch: pa.RecordBatch, metadata: Mapping[str, str] | None) -> tuple[list[Any], int]:
        writer.write_batch(batch, custom_metadata=metadata)
        return self.sink.take()


class FrameWriter:
    """Writes an answer as frames, counted and digested."""

    def __init__(
        self, session: Session, job: Job, messages: Format, *, idle: Callable[[], None], sized: Callable[[int], None]
    ) -> None:
        """`idle` is called while the reader is slow; `sized` with the bytes of each batch before it is sent."""
        self.session, self.job = session, job
        self.messages, self._sized = messages, sized
        self.slots = None if session.shared is None else SlotWriter(session, job, idle)
        self.rows = self.batches = self.bytes = 0
        self.session.send(wire.SCHEMA, messages.head, digest=messages.first, more=True)
        self.session.send(wire.TRAILER, messages.trailer)

    def write(
        self, batch: pa.RecordBatch, *, at: str = "", block: int = -1, last: Callable[[], bool] = lambda: False
    ) -> None:
        """Send a batch, with its place and its block if it has one.

        `last`: whether it is the last; then it is sent together with the end. Raises: Coded for an exceeded limit.
        """
        parts, size = self.messages.message(batch, at=at)
        self._sized(size)
        limits = self.job.limits
        if limits.rows is not None and self.rows + batch.num_rows > limits.rows:
            raise Coded("rows_limit")
        if limits.bytes is not None and self.bytes + size > limits.bytes:
            raise Coded("bytes_limit")
        self.rows, self.batches, self.bytes = self.rows + batch.num_rows, self.batches + 1, self.bytes + size
        slot = 0 if self.slots is None or size > self.slots.size else self.slots.take_free()
        if not slot or self.slots is None:
            digest = self._update_digest(chain.from_iterable(map(_cut_part, parts)))
            self.session.send(wire.BATCH, *parts, size=size, rows=batch.num_rows, digest=digest, block=block)
        else:
            digest = self._update_digest(self.slots.write_parts(parts))
            self.session.send(
                wire.BATCH, size=size, slot=slot, rows=batch.num_rows, digest=digest, block=block, more=last()
            )
        limit_cpu(self.job)

    def _update_digest(self, pieces: Iterable[memoryview]) -> bytes:
        """Add pieces to the digest and return the digest of all so far."""
        for piece in pieces:
            self.messages.digest.update(piece)
        return bytes(self.messages.digest.digest())

    def end(self) -> None:
        """Send the foot, if there is one, and the totals."""
        parts, size = self.messages.foot()
        if size:
            for part in parts:
                self.messages.digest.update(part)
            self.bytes += size
            self.session.send(wire.BATCH, *parts, size=size, rows=0, digest=self.messages.digest.digest())
        totals = {"rows": self.rows, "batches": self.batches, "bytes": self.bytes}
        self.session.send(wire.END, json.dumps(totals).encode(), digest=self.messages.digest.digest())


def _cut_part(part: Any) -> Sequence[memoryview]:
    """Return a part in pieces that fit into the cache."""
    whole = memoryview(part).cast("B")
    return (whole,) if len(whole) <= _PIECE else [whole[at : at + _PIECE] for at in range(0, len(whole), _PIECE)]


class SlotWriter:
    """Writes batches into the slots of the shared memory (`connector.engine.pool.shared_memory`)."""

    def __init__(self, session: Session, job: Job, idle: Callable[[], None]) -> None:
        assert session.shared is not None
        self.session, self.size, self._idle = session, slot_bytes(job.batch_bytes), idle
        memory = memoryview(session.worker.map(session.shared, job.slots * self.size))
        self._slots = [memory[at : at + self.size] for at in range(0, len(memory), self.size)]
        self._fill(memory[:0])
        self._free = list(range(job.slots, 0, -1))

    def take_free(self) -> int:
        """Wait for a free slot and return its number; 0 where the batch goes over the socket."""
        if not self._free:
            self._free += self.session.credits(self._idle)
        slot = self._free.pop()  # the last one returned: it is still in the cache
        if slot:
            self._fill(self._slots[slot - 1])
        return slot

    def _fill(self, memory: memoryview) -> None:
        self._slot, self._signed = memory, memory.cast("b")

    def write_parts(self, parts: Iterable[Any]) -> Iterator[memoryview]:
        """Copy a batch into the slot. Yields its pieces, each once it was copied."""
        begun = at = 0
        for part in parts:
            if len(part) <= _SMALL:
                at = self._copy(part, at)
            else:
                for piece in _cut_part(part):
                    at = self._copy_unlocked(piece, at)
                    yield self._slot[begun:at]
                    begun = at
            if at - begun >= _PIECE:
                yield self._slot[begun:at]
                begun = at
        yield self._slot[begun:at]

    def _copy(self, part: Any, at: int) -> int:
        """Copy a part into the slot at `at` and return its end."""
        end = at + len(part)
        place = self._signed if isinstance(part, pa.Buffer) else self._slot  # a view takes only data of its own format
        place[at:end] = part
        return end

    def _copy_unlocked(self, piece: memoryview, at: int) -> int:
        """Do the same without the interpreter's lock."""
        end = at + len(piece)
        pa.FixedSizeBufferWriter(pa.py_buffer(self._slot[at:end])).write(piece)
        return end


def _has_nulls(parts: Sequence[Any]) -> bool:
    """Whether a record batch's message has nulls in any column or nested column; True if the counts are not found."""
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
    """File that keeps what is written as a list, so that buffers of a batch are not copied (data-plane 3.1)."""

    closed = False

    def __init__(self) -> None:
        self._parts: list[Any] = []
        self.write = self._parts.append  # hundreds of times for each batch of wide rows

    def take(self) -> tuple[list[Any], int]:
        """Return what was written since the last call, and its size."""
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
        """Do nothing: nothing is buffered."""

    def close(self) -> None:
        """Do nothing: there is no file."""
