"""Running digests of streams. Loads neither the engine nor Arrow: workers take them, and so does the connector."""

from __future__ import annotations

import hashlib
from typing import Any

import xxhash


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
