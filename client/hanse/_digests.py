"""The digest of a stream, computed while it is read, and compared with the one in the owner's end record.

XXH3 (128 bits) finds damage on the way or on a disk, not an adversary: TLS covers the way. The digest covers every byte
before the message with the end record. The end record has a digest of its own text (`record_digest`), which finds
damage to its counts and words.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import xxhash

from hanse.errors import DigestMismatch

_ALGORITHM = "xxh3"  # the owner's default; this SDK never asks for another
_OF_RECORD = b',"record_digest":"'


class Digest:
    """A running digest of what is read."""

    __slots__ = ("_digest",)

    def __init__(self) -> None:
        self._digest = xxhash.xxh3_128()

    def update(self, data: Any) -> None:
        self._digest.update(data)

    def text(self) -> str:
        """The digest of everything so far, as an end record writes it."""
        return f"{_ALGORITHM}:{self._digest.hexdigest()}"


def check_digest(end: Mapping[str, Any], computed: str) -> None:
    """Compare the end record's digest with the computed one. Raises: DigestMismatch."""
    if (named := end.get("digest")) != computed:
        raise DigestMismatch(
            f"expected bytes with the digest {str(named)[:60]!r} of the end record, got bytes with {computed!r}: they "
            "were changed on the way or on a disk. Discard what was read and read it again",
            expected=str(named)[:200],
            computed=computed,
        )


def check_record(text: bytes) -> None:
    """Compare an end record with its own digest; older owners send none. Raises: DigestMismatch."""
    record, found, rest = text.strip().rpartition(_OF_RECORD)
    if found and rest != f'{_ALGORITHM}:{xxhash.xxh3_128_hexdigest(record)}"}}'.encode():
        raise DigestMismatch(
            "expected an end record with the digest that it names, got another: it was changed on the way. Discard "
            "what was read and read it again"
        )
