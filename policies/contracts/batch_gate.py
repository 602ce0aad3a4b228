"""The gate before each batch: three fields, read without lock, query or clock zone.

It stands between source and socket in `stream.py`, once. Renewal and revocation write the lease from
another thread; a plain attribute write is seen by the next check (usage-policies, section 8).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

REVOKED: Final = "revoked"
EXPIRED: Final = "expired"
ROWS_SPENT: Final = "rows_spent"
BYTES_SPENT: Final = "bytes_spent"
UNLIMITED: Final = 1 << 62


@dataclass(slots=True)
class Lease:
    """What a running stream may still deliver. `deadline` is a reading of `clock`, the monotonic one.

    The one mutable value of this package: `revoked` and `deadline` are set by renewal, `rows` and
    `bytes` count down here and are filled up when the grant reserves another chunk.
    """

    deadline: float
    rows: int = UNLIMITED
    bytes: int = UNLIMITED
    revoked: bool = False
    clock: Callable[[], float] = time.monotonic


def check(lease: Lease, rows: int, nbytes: int) -> str | None:
    """None and the batch is counted, or the reason why it must not leave (and nothing is counted)."""
    if lease.revoked:
        return REVOKED
    if lease.clock() >= lease.deadline:
        return EXPIRED
    if rows > lease.rows:
        return ROWS_SPENT
    if nbytes > lease.bytes:
        return BYTES_SPENT
    lease.rows -= rows
    lease.bytes -= nbytes
    return None
