"""The RFC 6962 tree over C2SP tlog-tiles: appending, roots, inclusion and consistency proofs. Pure.

A tile holds up to 256 hashes of 32 bytes. Level 0 holds leaf hashes; a hash at level L + 1 stands for a full tile at
level L. Tiles are read through a function, so the same code works on a database and on a dict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import TypeAlias

HASH = 32
WIDTH = 256

ReadTile: TypeAlias = Callable[[int, int], bytes | None]
Tiles: TypeAlias = dict[tuple[int, int], bytes]

EMPTY_ROOT = sha256(b"").digest()
PUT_BACK = "put the newest copy of the database back (docs/operations.md)"


class TreeBroken(Exception):
    """A tile is missing or too short, so the stored tree is not the signed tree."""


def leaf_hash(entry: bytes) -> bytes:
    return sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x01" + left + right).digest()


def leaf_at(read: ReadTile, index: int) -> bytes:
    """The leaf hash of record `index` in the tree. Raises: TreeBroken."""
    n, offset = divmod(index, WIDTH)
    return _read_hashes(read, 0, n, offset + 1)[-HASH:]


def append(read: ReadTile, size: int, leaves: Sequence[bytes]) -> Tiles:
    """The tiles that change if `leaves` (hashes) follow the first `size`: whole contents by (level, number)."""
    changed: Tiles = {}
    level, start, hashes = 0, size, list(leaves)
    while hashes:
        full: list[bytes] = []
        for n in range(start // WIDTH, (start + len(hashes) - 1) // WIDTH + 1):
            held = max(start - n * WIDTH, 0)
            data = _read_hashes(read, level, n, held)
            first = max(n * WIDTH - start, 0)
            data += b"".join(hashes[first : first + WIDTH - held])
            changed[level, n] = data
            if len(data) == WIDTH * HASH:
                full.append(_fold(data))
        level, start, hashes = level + 1, start // WIDTH, full
    return changed


def root(read: ReadTile, size: int) -> bytes:
    """The Merkle tree hash of the first `size` leaves. Raises: TreeBroken."""
    return EMPTY_ROOT if size == 0 else _span(read, 0, size)


def inclusion_proof(read: ReadTile, index: int, size: int) -> list[bytes]:
    """RFC 6962 §2.1.1: the hashes from the leaf's sibling up to the root's child."""
    if not 0 <= index < size:
        raise ValueError(f"expected an index below {size}, got {index}")
    path: list[bytes] = []
    low, high = 0, size
    while high - low > 1:
        middle = low + _split(high - low)
        if index < middle:
            path.append(_span(read, middle, high))
            high = middle
        else:
            path.append(_span(read, low, middle))
            low = middle
    return path[::-1]


def consistency_proof(read: ReadTile, old: int, new: int) -> list[bytes]:
    """RFC 6962 §2.1.2: the proof that the first `old` leaves are a prefix of the first `new`."""
    if not 0 < old <= new:
        raise ValueError(f"expected 0 < old <= new, got {old} and {new}")
    path: list[bytes] = []
    low, high, whole = 0, new, True
    while old < high:
        middle = low + _split(high - low)
        if old <= middle:
            path.append(_span(read, middle, high))
            high = middle
        else:
            path.append(_span(read, low, middle))
            low, whole = middle, False
    return path[::-1] if whole else [_span(read, low, high), *path[::-1]]


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def _span(read: ReadTile, low: int, high: int) -> bytes:
    """The hash over leaves [low, high). A complete aligned subtree is read from a single tile; others are split."""
    count = high - low
    if count & (count - 1) == 0:
        level, height = divmod(count.bit_length() - 1, 8)
        first = low >> 8 * level
        n, offset = divmod(first, WIDTH)
        wide = 1 << height
        return _fold(_read_hashes(read, level, n, offset + wide)[offset * HASH :])
    middle = low + _split(count)
    return node_hash(_span(read, low, middle), _span(read, middle, high))


def _read_hashes(read: ReadTile, level: int, n: int, wide: int) -> bytes:
    """The first `wide` hashes of a tile. Raises: TreeBroken."""
    if wide == 0:
        return b""
    data = read(level, n)
    if data is None or len(data) < wide * HASH:
        raise TreeBroken(f"tile {level}/{n} of the audit log must hold {wide} hashes; {PUT_BACK}")
    return data[: wide * HASH]


def _fold(data: bytes) -> bytes:
    """The root over adjacent hashes, whose number is a power of two."""
    while len(data) > HASH:
        pair = 2 * HASH
        data = b"".join(sha256(b"\x01" + data[at : at + pair]).digest() for at in range(0, len(data), pair))
    return data
