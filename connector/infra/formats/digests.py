"""Running digests of streams, for worker processes and the main process. Must not import DuckDB or Arrow."""

from __future__ import annotations

import hashlib
from typing import Any

import xxhash

NAMES = ("xxh3", "sha256")
_OF_RECORD = ',"record_digest":"'
SEAL_BYTES = len(_OF_RECORD) + len("xxh3:") + 32 + len('"')  # that `sealed` adds to an end record


class _NoDigest:
    def update(self, _: Any) -> None:
        """Ignore the bytes."""

    def digest(self) -> bytes:
        return b""


def new_digest(name: str) -> Any:
    """A running digest with `update` and `digest`: "sha256", "none", or 128-bit xxh3 for any other name."""
    if name == "sha256":
        return hashlib.sha256()
    return _NoDigest() if name == "none" else xxhash.xxh3_128()


class RunningDigest:
    """The digest of a stream, computed while its bytes are sent."""

    def __init__(self, name: str, head: bytes) -> None:
        self._digest = new_digest(name)
        self._digest.update(head)

    def update(self, piece: bytes | memoryview) -> None:
        """Add the bytes that are sent next."""
        self._digest.update(piece)

    def hex(self) -> str:
        """The digest so far, in hexadecimal, like `bytes.hex` of a known digest."""
        digest: bytes = self._digest.digest()
        return digest.hex()


def sealed(record: str) -> bytes:
    """The text of an end record (a JSON object) with a digest of itself as its last member, so that readers find damage
    to its counts and words."""
    body = record.removesuffix("}").encode()
    return body + f'{_OF_RECORD}xxh3:{xxhash.xxh3_128_hexdigest(body)}"}}'.encode()


def is_intact(text: bytes) -> bool:
    """Whether an end record is as `sealed` left it; also where it has no digest of itself, as those of older owners."""
    body, found, rest = text.strip().rpartition(_OF_RECORD.encode())
    return not found or rest == f'xxh3:{xxhash.xxh3_128_hexdigest(body)}"}}'.encode()
