"""Renewal of a running read: the owner gets a fresh ticket before the one that the read was opened with ends.

A read that ended with its ticket would be opened again, and an agreement may count reads (decision 89).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from hanse.errors import HanseError

_BEFORE = 50.0  # seconds before the end, or half of the time that is left if that is less; a connector renews 60 before
_PAUSE_FEWEST, _PAUSE_MOST = 1.0, 5.0  # seconds to the next attempt, where one brought no later end


class ReadRenewal:
    """Called before each batch. `renew` returns when the fresh ticket ends; `expires` is the end now (UTC seconds, 0 if
    it is not known).

    A failure is not raised: the read then ends with its ticket, and the reader opens it again.
    """

    def __init__(
        self,
        renew: Callable[[], float],
        expires: float,
        *,
        clock: Callable[[], float] = time.time,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._renew, self._expires = renew, expires
        self._clock, self._now = clock, now
        self._at = self._now() + max(self._seconds_left() - min(_BEFORE, self._seconds_left() / 2), 0.0)

    def _seconds_left(self) -> float:
        return self._expires - self._clock()

    def __call__(self) -> None:
        if not self._expires or self._now() < self._at:
            return
        before = self._expires
        with suppress(HanseError):
            self._expires = max(self._renew(), before)
        left = self._seconds_left()
        if self._expires > before:
            self._at = self._now() + max(left - min(_BEFORE, left / 2), _PAUSE_FEWEST)
        else:
            self._at = self._now() + min(max(left / 2, _PAUSE_FEWEST), _PAUSE_MOST)
