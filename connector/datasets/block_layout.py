"""Canonical blocks: the fixed cut of the rows of a dataset version, the same for all readers.

A block is a run of consecutive rows of one file, made of whole row groups where these are neither tiny nor huge. The
cut depends on the files alone, so any number of readers can share it. Pure functions: a worker reads the footers.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from connector.errors import Invalid

RULE = 2  # version of the cut, part of each snapshot; raise it when `cut` changes
ROWS_MIN, ROWS_MAX = 2**16, 2**20
BYTES_MIN = 64 * 2**20  # enough for a block of fewer rows: a few hundred images are as much work as a table

_PLACE = struct.Struct("<IQ")
_NONCE, _TAG = 12, 16


@dataclass(frozen=True, slots=True)
class RowBlock:
    """Rows `first` to `first + rows` of file number `file`. `nbytes`: their stored size, uncompressed."""

    file: int
    first: int
    rows: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Place:
    """A row by its file number and its row number in that file."""

    file: int
    row: int


def snapshot_of(digest: str) -> str:
    """Return the name of a version's row order. Positions are valid only within it."""
    return f"{digest}/{RULE}"


def cut(files: Sequence[Sequence[tuple[int, int]]]) -> tuple[RowBlock, ...]:
    """Return the blocks of a version, from the (rows, bytes) of each file's row groups.

    Groups are joined until they have ROWS_MIN rows or BYTES_MIN bytes. A group of more than ROWS_MAX rows is cut into
    equal parts. No block spans two files.
    """
    return tuple(block for number, groups in enumerate(files) for block in _cut_file(number, groups))


def _cut_file(number: int, groups: Sequence[tuple[int, int]]) -> list[RowBlock]:
    found: list[RowBlock] = []
    first = rows = nbytes = 0
    for group_rows, group_bytes in groups:
        rows, nbytes = rows + group_rows, nbytes + group_bytes
        if rows >= ROWS_MIN or (rows and nbytes >= BYTES_MIN):
            found += _split_rows(number, first, rows, nbytes)
            first, rows, nbytes = first + rows, 0, 0
    return found + (_split_rows(number, first, rows, nbytes) if rows else [])


def _split_rows(number: int, first: int, rows: int, nbytes: int) -> list[RowBlock]:
    count = -(-rows // ROWS_MAX)
    step = -(-rows // count)
    return [
        RowBlock(number, first + start, min(step, rows - start), nbytes * min(step, rows - start) // rows)
        for start in range(0, rows, step)
    ]


def cursor_key(secret: bytes, *, consumer: str, snapshot: str, shown: str) -> bytes:
    """Return the key of one consumer's cursors in one snapshot under one set of visible rows and columns.

    With a shared key, a consumer with two contracts could recognise a row by its place in both, and the rows between
    two.
    """
    return hmac.digest(secret, f"cursor\0{consumer}\0{snapshot}\0{shown}".encode(), "sha256")


def shown_mark(key: bytes) -> str:
    """Return a mark to compare what cursors of this key are valid for. It reveals nothing of the terms."""
    return hmac.digest(key, b"shown", "sha256")[:16].hex()


def seal(place: Place, key: bytes) -> str:
    """Return a place as a cursor, signed and unreadable: gaps between places would reveal rows that a policy hides.

    Encrypt, then authenticate, both with HMAC-SHA-256 (the keystream is one block of it under a fresh nonce).
    """
    nonce = secrets.token_bytes(_NONCE)
    body = nonce + _mask(_PLACE.pack(place.file, place.row), nonce, key)
    return (body + _tag(body, key)).hex()


def unseal(text: str, key: bytes) -> Place:
    """Return the place in a cursor.

    Raises: Invalid for a cursor that was not made with this key.
    """
    try:
        data = bytes.fromhex(text) if len(text) == 2 * (_NONCE + _PLACE.size + _TAG) else b""
    except ValueError:
        data = b""
    body, tag = data[:-_TAG], data[-_TAG:]
    if not data or not hmac.compare_digest(tag, _tag(body, key)):
        raise Invalid(
            "expected a cursor that this owner gave you for this version of the dataset, under terms that show the "
            "same rows and columns, came another text; begin anew without it",
            code="cursor_invalid",
        )
    return Place(*_PLACE.unpack(_mask(body[_NONCE:], body[:_NONCE], key)))


def _mask(data: bytes, nonce: bytes, key: bytes) -> bytes:
    stream = hmac.digest(key, b"mask" + nonce, hashlib.sha256)
    return bytes(a ^ b for a, b in zip(data, stream, strict=False))


def _tag(body: bytes, key: bytes) -> bytes:
    return hmac.digest(key, b"tag" + body, hashlib.sha256)[:_TAG]
