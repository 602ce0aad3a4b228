"""The check before each batch of a stream: reads four fields, without lock or query.

Stands between source and socket (`connector.dataplane.governed_stream`). Renewal and revocation write the lease from
another thread; the next check sees a plain attribute write.
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
    """What a running stream may still deliver. `deadline` is a reading of the monotonic `clock`, in seconds.

    The only mutable class of this package: renewal sets `revoked` and `deadline`; `rows` and `bytes` are counted down
    by `check` and refilled when the grant reserves another chunk.
    """

    deadline: float
    rows: int = UNLIMITED
    bytes: int = UNLIMITED
    revoked: bool = False
    clock: Callable[[], float] = time.monotonic


def check(lease: Lease, rows: int, nbytes: int) -> str | None:
    """Count a batch of `rows` rows and `nbytes` bytes and return None, or return why it must not leave, uncounted.

    check(Lease(deadline=time.monotonic() + 60, rows=10), rows=11, nbytes=1)  # "rows_spent"
    """
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
