"""The seconds of one question, split over its stages: planning, each wave of fragments, merging.

A stage may take what is left, less a tenth of the whole for every stage that follows it (half of the whole at most).
So an owner that is slow ends the question while there is still time to say so, and time that one stage did not need
goes to the next.
"""

from __future__ import annotations

import time
from collections.abc import Callable

_TENTH = 0.1
_HALF = 0.5
_MOMENT = 0.05  # what is over still ends by its own timer, which names it


class Deadline:
    """Counts from its making."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._begun = clock()

    @property
    def passed(self) -> float:
        """Seconds since the beginning."""
        return self._clock() - self._begun

    def left(self, later: int = 0) -> float:
        """Seconds for a stage that `later` others follow."""
        kept = min(_HALF, _TENTH * later) * self.seconds
        return max(_MOMENT, self.seconds - kept - self.passed)
