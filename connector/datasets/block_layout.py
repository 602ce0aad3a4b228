"""Canonical blocks: how the rows of a dataset version are cut, the same for everybody and for ever.

A block is a run of consecutive rows of one file, made of whole row groups where they are neither tiny nor huge. The
cut depends on the files alone, so any number of readers can share it out. Pure: footers are read in a worker.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from connector.errors import BadInput

RULE = 2  # of this cut: part of every snapshot, to be raised when `cut` changes
ROWS_MIN, ROWS_MAX = 2**16, 2**20
BYTES_MIN = 64 * 2**20  # enough for a block of fewer rows: of images a few hundred are as much work as a table

_PLACE = struct.Struct("<IQ")
_NONCE, _TAG = 12, 16


@dataclass(frozen=True, slots=True)
class Block:
    """Rows `first` to `first + rows` of file number `file`; `nbytes` as they are stored, uncompressed."""

    file: int
    first: int
    rows: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """A row by where it is stored."""

    file: int
    row: int


def snapshot_of(digest: str) -> str:
    """The name of a version's rows in their order: what a position is good for."""
    return f"{digest}/{RULE}"


def cut(files: Sequence[Sequence[tuple[int, int]]]) -> tuple[Block, ...]:
    """The blocks of a version, from the (rows, bytes) of each file's row groups.

    Groups are joined while they have fewer than ROWS_MIN rows and BYTES_MIN bytes together; a group of more than
    ROWS_MAX is cut into equal parts. No block reaches over the end of a file.
    """
    return tuple(block for number, groups in enumerate(files) for block in _of_file(number, groups))


def _of_file(number: int, groups: Sequence[tuple[int, int]]) -> list[Block]:
    found: list[Block] = []
    first = rows = nbytes = 0
    for group_rows, group_bytes in groups:
        rows, nbytes = rows + group_rows, nbytes + group_bytes
        if rows >= ROWS_MIN or (rows and nbytes >= BYTES_MIN):
            found += _parts(number, first, rows, nbytes)
            first, rows, nbytes = first + rows, 0, 0
    return found + (_parts(number, first, rows, nbytes) if rows else [])


def _parts(number: int, first: int, rows: int, nbytes: int) -> list[Block]:
    count = -(-rows // ROWS_MAX)
    step = -(-rows // count)
    return [
        Block(number, first + start, min(step, rows - start), nbytes * min(step, rows - start) // rows)
        for start in range(0, rows, step)
    ]


def cursor_key(secret: bytes, *, consumer: str, snapshot: str, shown: str) -> bytes:
    """The key of the cursors of one consumer in one snapshot, where a contract shows this: it opens nothing else.

    A row that two contracts show would be known again by its place under both, and how many lie between.
    """
    return hmac.digest(secret, f"cursor\0{consumer}\0{snapshot}\0{shown}".encode(), "sha256")


def shown_mark(key: bytes) -> str:
    """What the cursors of this key are good for, to be compared and for nothing else: it tells nothing of the terms."""
    return hmac.digest(key, b"shown", "sha256")[:16].hex()


def seal(place: Place, key: bytes) -> str:
    """A place as a cursor: signed, and unreadable, because gaps between places would tell of rows that a policy hides.

    Encrypt, then authenticate, both with HMAC-SHA-256 (the keystream is one block of it under a fresh nonce).
    """
    nonce = secrets.token_bytes(_NONCE)
    body = nonce + _masked(_PLACE.pack(place.file, place.row), nonce, key)
    return (body + _tag(body, key)).hex()


def unseal(text: str, key: bytes) -> Place:
    """The place in a cursor; BadInput for one that was not made with this key."""
    try:
        data = bytes.fromhex(text) if len(text) == 2 * (_NONCE + _PLACE.size + _TAG) else b""
    except ValueError:
        data = b""
    body, tag = data[:-_TAG], data[-_TAG:]
    if not data or not hmac.compare_digest(tag, _tag(body, key)):
        raise BadInput(
            "expected a cursor that this owner gave you for this version of the dataset, under terms that show the "
            "same rows and columns, came another text; begin anew without it",
            code="cursor_invalid",
        )
    return Place(*_PLACE.unpack(_masked(body[_NONCE:], body[:_NONCE], key)))


def _masked(data: bytes, nonce: bytes, key: bytes) -> bytes:
    stream = hmac.digest(key, b"mask" + nonce, hashlib.sha256)
    return bytes(a ^ b for a, b in zip(data, stream, strict=False))


def _tag(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, b"tag" + body, hashlib.sha256)[:_TAG]
