"""Into how many pieces a body may fall, ours to read or a peer's: each costs more than its bytes do (decision 49)."""

from __future__ import annotations

ANY, LEAST = 1024, 256  # pieces of a body of any size, and bytes that others have on average


def too_many(count: int, nbytes: int) -> bool:
    """Whether a body of which so much has come is in crumbs."""
    return count > ANY + nbytes // LEAST
