"""Whether an owner's Arrow files hold the very bytes that a stream of them would have, and where. Runs in a worker.

An uncompressed Arrow file is made of the messages of a stream (Arrow columnar format, "IPC File Format"). Where each
of them is, byte for byte, what we would write for its rows, later reads need not decode or copy them: they may be sent
from the file. An engine cuts and pads what it gives in its own way: the first pass may have other messages of the same
rows. Byte for byte, because a message can hold more than its rows: values under nulls, metadata, padding.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from connector.datasets.sources import divisible_source
from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Job, Range
from connector.engine.worker import tasks
from connector.engine.worker.read import duckdb_engine
from connector.engine.worker.write.arrow_stream import ArrowStreamWriter

_ALL = 2**62
_FILES_MAX = 64
_BLOCKS_MAX = 50_000
_BLOCK_MAX = 8 * 2**20  # a stream can be stopped between two of them
_BLOCK_MIN = 2**18  # on average: smaller batches are better sent joined


def index(session: Any, job: Job) -> None:
    """The head and the trailer of the stream, and per message [file, offset, bytes, rows, digest so far].

    Raises Coded("not_verbatim") where only the engine gives the stream.
    """
    con = tasks.open_engine(session, job)
    schema = duckdb_engine.schema_of(duckdb_engine.query(con, job.sql, job.params))
    files = session.files[0]
    if job.relations[job.scan].kind != "arrow_ipc" or len(files.paths) > _FILES_MAX:
        raise Coded("not_verbatim")
    written = ArrowStreamWriter(schema, codec="none", digest=job.digest, trailer_room=job.trailer_room)
    blocks: list[tuple[int, int, int, int, str]] = []
    for one in job.only.ranges if job.only else [Range(-1, number, 0, _ALL) for number in range(len(files.paths))]:
        for at, size, rows in _messages(files.paths[one.file], one, schema, written):
            session.check()
            blocks.append((one.file, at, size, rows, written.digest.digest().hex()))
            if len(blocks) > _BLOCKS_MAX:
                raise Coded("not_verbatim")
    files.check_unchanged()
    if sum(size for _, _, size, _, _ in blocks) < _BLOCK_MIN * (len(blocks) - 1):
        raise Coded("not_verbatim")
    head, trailer = (base64.b64encode(part).decode() for part in (written.head, written.trailer))
    tasks.send_value(session, {"head": head, "trailer": trailer, "first": written.first.hex(), "blocks": blocks})


def _messages(path: str, rows: Range, schema: pa.Schema, written: ArrowStreamWriter) -> Iterator[tuple[int, int, int]]:
    """Offset, size and rows of each message with some of these rows, once it is found to be ours; digested as it is
    passed."""
    # Read, not mapped: a file may be larger than the address space that a job has.
    with pa.OSFile(path) as raw:
        reader = pa.ipc.open_file(raw)
        if [(one.name, one.type) for one in reader.schema] != [(one.name, one.type) for one in schema]:
            raise Coded("not_verbatim")
        for number, (at, size) in enumerate(_chosen(path, raw, rows)):
            if not size:
                continue
            if size > _BLOCK_MAX:
                raise Coded("not_verbatim")
            there = raw.read_at(size, at)
            for batch in _ways(reader, number, schema):
                parts, _ = written.message(batch)
                if _same(parts, there):
                    break
            else:
                raise Coded("not_verbatim")
            for part in parts:
                written.digest.update(part)
            yield at, size, batch.num_rows


def _chosen(path: str, raw: pa.NativeFile, rows: Range) -> Iterator[tuple[int, int]]:
    """Where each message of the file is, by its footer; nothing where none of the rows is in it.

    Nothing is believed of a footer but where to look. A message with some of the rows and others is not ours to send.
    """
    (counts,) = divisible_source("arrow_ipc").groups([path])
    places, first = _places(raw), 0
    if len(places) != len(counts):
        raise Coded("not_verbatim")
    for place, (count, _) in zip(places, counts, strict=True):
        stop = first + count
        if not count or stop <= rows.first or first >= rows.stop:
            yield 0, 0
        elif first < rows.first or stop > rows.stop:
            raise Coded("not_verbatim")
        else:
            yield place
        first = stop


def _places(raw: pa.NativeFile) -> list[tuple[int, int]]:
    """Offset and size of each record batch's message, as the footer has them (Arrow's File.fbs, which the library
    reads and does not tell): the fourth field, a vector of (offset, size of the metadata, size of the body)."""
    (length,) = struct.unpack_from("<i", raw.read_at(10, raw.size() - 10))
    footer = raw.read_at(length, raw.size() - 10 - length)
    (table,) = struct.unpack_from("<I", footer)
    fields = table - struct.unpack_from("<i", footer, table)[0]
    (field,) = struct.unpack_from("<H", footer, fields + 4 + 2 * 3)
    if not field:
        return []
    vector = table + field + struct.unpack_from("<I", footer, table + field)[0]
    (count,) = struct.unpack_from("<I", footer, vector)
    found = (struct.unpack_from("<qi4xq", footer, vector + 4 + 24 * number) for number in range(count))
    return [(at, metadata + body) for at, metadata, body in found]


def _ways(reader: pa.RecordBatchFileReader, number: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A batch as it may have been written: alone, or cut out of the rows around it in the file.

    A writer pads the buffers of what was cut out with what stands behind it, up to seven bytes of each. Rows of the
    next batch leave anyway; rows that were cut off before the file was written must not, so each batch is copied here:
    then nothing stands behind it but its neighbours.
    """

    def joined(numbers: range) -> pa.RecordBatch:
        batches = [pa.RecordBatch.from_arrays(reader.get_batch(one).columns, schema=schema) for one in numbers]
        return pa.concat_batches([*batches, batches[0].slice(0, 0)])

    alone = joined(range(number, number + 1))
    yield alone
    before = joined(range(number - 1, number)).num_rows if number else 0
    around = joined(range(max(0, number - 1), min(number + 2, reader.num_record_batches)))
    yield around.slice(before, alone.num_rows)


def _same(parts: Sequence[Any], there: bytes) -> bool:
    whole, at = pa.py_buffer(there), 0
    for part in parts:
        buffer = part if isinstance(part, pa.Buffer) else pa.py_buffer(part)
        if not buffer.equals(whole.slice(at, buffer.size)):
            return False
        at += buffer.size
    return at == len(there)
