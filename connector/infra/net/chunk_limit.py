"""A limit on the number of pieces (chunks) of a body, as each costs more than its bytes (decision 49)."""

from __future__ import annotations

ANY, LEAST = 1024, 256  # pieces that any body may have; bytes per further piece, on average


def is_exceeded(count: int, nbytes: int) -> bool:
    """Whether `count` pieces are too many for a body of `nbytes` bytes so far."""
    return count > ANY + nbytes // LEAST
