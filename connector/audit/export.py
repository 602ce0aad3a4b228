"""Evidence files: the whole log or an extract, as a zip file that an auditor verifies offline.

    manifest.json    format, kind (whole | extract), filter, counts, the signed head; canonical JSON
    manifest.sig     the log key's signature over manifest.json, as a signed note's signature line
    log.vkey         the log's verifier key; trust it only if it equals a key that you already have
    checkpoint       the signed head (C2SP tlog-checkpoint) with the cosignatures of its witnesses
    leaves           whole: the leaf hash of each record, 32 bytes each; extract: empty
    events.jsonl     a line per record, canonical: body, idx, salt, ts; in an extract also the inclusion proof

Members are stored uncompressed with a fixed date, so that a changed byte can be traced to a record. Memory is bounded:
records are written to the file as they are read.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from connector.audit import merkle, signed_note
from connector.audit.head_file import AuditTransaction
from connector.audit.log import AuditLog, Filter, row_to_record
from connector.audit.record import Record, canonical
from connector.errors import Absent, Unavailable

FORMAT = "hanse-evidence/1"
_TILES_KEPT = 512  # 4 MB
_ZIP64_ABOVE = 2**31 - 1
_LINE_ESTIMATE = 16_384  # far above a line's length: decides whether the zip file needs 64-bit sizes


async def export(log: AuditLog, *, signer: signed_note.Signer, which: Filter, directory: Path) -> IO[bytes]:
    """Write an evidence file under the newest head and return it open at its start; closing it deletes it.

    The caller has recorded the reader. Raises: Absent for an empty log; Unavailable if the directory has no room, or
    too many exports run.
    """
    await log.sequencer.settle()
    least = await log.database.read(lambda tx: tx.audit.read_size())
    await log.settle_cosignatures(least)

    def work(tx: AuditTransaction) -> IO[bytes]:
        directory.mkdir(parents=True, exist_ok=True)
        file = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  # closed by `blocks`
        try:
            write(file, tx, signer=signer, which=which, least=least)
        except BaseException:
            file.close()
            raise
        file.seek(0)
        return file

    try:
        return await log.database.read_long(work)
    except OSError as error:
        raise Unavailable(
            "the evidence file cannot be written; make room in the data directory", private=str(error)
        ) from error


def write(file: IO[bytes], tx: AuditTransaction, *, signer: signed_note.Signer, which: Filter, least: int = 0) -> None:
    """Write the records that match `which` from a single snapshot, under a head of at least `least` records.

    Raises: Absent for a log without records.
    """
    note = _choose_head(tx, least)
    origin, size, root = signed_note.read_head(note)
    whole = not which.terms
    with ZipFile(file, "w", ZIP_STORED) as container:
        records = _write_events(container, tx, which=which, size=size, whole=whole)
        _member(container, "leaves", _leaves(tx, size) if whole else iter(()), large=size * merkle.HASH > _ZIP64_ABOVE)
        _member(container, "checkpoint", iter([note.encode()]))
        _member(container, "log.vkey", iter([f"{signer.vkey}\n".encode()]))
        manifest = canonical(
            {
                "format": FORMAT,
                "kind": "whole" if whole else "extract",
                "filter": which.terms,
                "origin": origin,
                "records": records,
                "root": base64.b64encode(root).decode(),
                "size": size,
            }
        )
        _member(container, "manifest.json", iter([f"{manifest}\n".encode()]))
        _member(container, "manifest.sig", iter([signer.sign(f"{manifest}\n").encode()]))


def _choose_head(tx: AuditTransaction, least: int) -> str:
    """The head that most witnesses cosigned, with their lines; the newest where none did. Raises: Absent."""
    newest = tx.audit.read_checkpoint()
    if newest is None:
        raise Absent("the log has no record yet, so there is nothing to export")
    by_size: dict[int, list[str]] = {}
    for row in tx.audit.list_cosignatures(start=least):
        by_size.setdefault(row.size, []).append(row.lines)
    for size in sorted(by_size, key=lambda size: (len(by_size[size]), size), reverse=True):
        if (head := tx.audit.find_checkpoint(size)) is not None:
            return "".join((head.note, *by_size[size]))
    note: str = newest.note
    return note


def line(record: Record, path: list[bytes] | None) -> bytes:
    """The line of a record in `events.jsonl`: canonical JSON, as `record.text` is canonical already."""
    salt = base64.b64encode(record.salt).decode()
    proof = "" if path is None else f'"proof":{canonical([base64.b64encode(step).decode() for step in path])},'
    return f'{{"body":{record.text},"idx":{record.idx},{proof}"salt":"{salt}","ts":{math.floor(record.ts)}}}\n'.encode()


def _write_events(container: ZipFile, tx: AuditTransaction, *, which: Filter, size: int, whole: bool) -> int:
    count = 0
    tile = lru_cache(_TILES_KEPT)(tx.audit.read_tile)  # proofs of neighbouring records share almost all tiles

    def lines() -> Iterator[bytes]:
        nonlocal count
        for row in tx.audit.walk(stop=size, **which.query):
            path = None if whole else merkle.inclusion_proof(tile, row.idx, size)
            yield line(row_to_record(row), path)
            count += 1

    _member(container, "events.jsonl", lines(), large=size * _LINE_ESTIMATE > _ZIP64_ABOVE)
    return count


def _leaves(tx: AuditTransaction, size: int) -> Iterator[bytes]:
    """All leaf hashes, a tile at a time."""
    for n in range((size + merkle.WIDTH - 1) // merkle.WIDTH):
        wide = min(size - n * merkle.WIDTH, merkle.WIDTH)
        data: bytes = tx.audit.read_tile(0, n) or b""
        yield data[: wide * merkle.HASH]


def _member(container: ZipFile, name: str, chunks: Iterator[bytes], *, large: bool = False) -> None:
    info = ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, 0o600 << 16
    with container.open(info, "w", force_zip64=large) as member:
        for chunk in chunks:
            member.write(chunk)


def blocks(file: IO[bytes], *, size: int = 256 * 1024) -> Iterator[Any]:
    """Yield the bytes of a file in blocks and close it at the end or on failure."""
    with file:
        while block := file.read(size):
            yield block
