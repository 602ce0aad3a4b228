"""Running digests of streams, for worker processes and the main process. Must not import DuckDB or Arrow."""

from __future__ import annotations

import hashlib
from typing import Any

import xxhash


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
