"""Deadline of one question, split over its stages: planning, each wave of fragments, merging.

A stage may take the remaining time, less a tenth of the total for every later stage (at most half of the total). So a
slow owner times out while there is still time to report it, and unused time goes to the next stage.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_TENTH = 0.1
_HALF = 0.5
_MOMENT = 0.05  # a stage that is already late still ends by its own timer, which names the stage


class Deadline:
    """A time limit that starts when it is created."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._begun = clock()

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._begun

    def seconds_left(self, later: int = 0) -> float:
        """Return the seconds for a stage with `later` stages after it."""
        kept = min(_HALF, _TENTH * later) * self.seconds
        return max(_MOMENT, self.seconds - kept - self.passed)
