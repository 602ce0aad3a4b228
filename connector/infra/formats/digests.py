"""Running digests of streams. Loads neither the engine nor Arrow: workers take them, and so does the connector."""

from __future__ import annotations

import hashlib
from typing import Any

import xxhash

NAMES = ("xxh3", "sha256")
_OF_RECORD = ',"record_digest":"'
SEAL_BYTES = len(_OF_RECORD) + len("xxh3:") + 32 + len('"')  # that `sealed` adds to an end record


class _None:
    def update(self, _: Any) -> None:
        """Nothing is counted."""

    def digest(self) -> bytes:
        return b""


def new_digest(name: str) -> Any:
    """A running digest: xxh3 (128 bits), sha256, or none."""
    if name == "sha256":
        return hashlib.sha256()
    return _None() if name == "none" else xxhash.xxh3_128()


class AsItGoes:
    """The digest of a stream that nobody knew before: whoever sends its bytes shows them, and it is that of those."""

    def __init__(self, name: str, head: bytes) -> None:
        self._digest = new_digest(name)
        self._digest.update(head)

    def update(self, piece: bytes | memoryview) -> None:
        """The bytes that go next."""
        self._digest.update(piece)

    def hex(self) -> str:
        """As of the bytes of a digest that is known already."""
        found: bytes = self._digest.digest()
        return found.hex()


def sealed(record: str) -> bytes:
    """The text of an end record (a JSON object) with a digest of itself as its last member, so that readers find damage
    to its counts and words."""
    body = record.removesuffix("}").encode()
    return body + f'{_OF_RECORD}xxh3:{xxhash.xxh3_128_hexdigest(body)}"}}'.encode()


def is_intact(text: bytes) -> bool:
    """Whether an end record is as `sealed` left it; also where it has no digest of itself, as those of older owners."""
    body, found, rest = text.strip().rpartition(_OF_RECORD.encode())
    return not found or rest == f'xxh3:{xxhash.xxh3_128_hexdigest(body)}"}}'.encode()
