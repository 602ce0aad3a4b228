"""Decides which failures are temporary, and how long to wait before the next attempt. Knows no sockets."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeVar

from hanse.errors import (
    AccessExpired,
    BadInput,
    Broken,
    Busy,
    HanseError,
    StreamIncomplete,
    Unreachable,
)

T = TypeVar("T")

_CRASHED = "worker_crashed"
_CRASHES_MAX = 5  # without a row in between: each attempt ends a process that serves other readers, too
_PASSING = (Unreachable, StreamIncomplete, Busy, AccessExpired)
# Codes of `Broken`: the answer ended early for a cause that is usually gone at the next attempt.
_PASSING_CODES = (
    "shutting_down", _CRASHED, "worker_wanted", "client_stalled", "cancelled", "interrupted", "client_gone",
    "busy", "file_unavailable", "blocks_not_kept", "disk_full", "outcome_unknown",
)  # fmt: skip
_LASTING_CODES = (
    "count_spent", "quota_spent", "rows_limit", "bytes_limit", "agreement_ended", "certificate_untrusted",
)  # fmt: skip
_FIRST, _MOST = 0.05, 5.0
IDLE_SECONDS = 120.0  # a query may work this long without a batch; the owner's own limit is usually shorter
SECONDS = 2 * IDLE_SECONDS  # leaves time for a second attempt after a dead connection


def is_temporary(error: HanseError) -> bool:
    """Return whether the same request may succeed a little later. A refusal by policy never does."""
    if error.code in _LASTING_CODES:
        return False
    if isinstance(error, _PASSING) or error.code in ("ticket_expired", "ticket_replaced"):
        return True
    return isinstance(error, Broken) and error.code in _PASSING_CODES


def _retry_after(error: HanseError) -> float:
    """Return the seconds that a server asks for before the next attempt (`Retry-After`, RFC 9110 section 10.2.3); 0
    without it."""
    delay = error.facts.get("retry_after")
    return float(delay) if isinstance(delay, int | float) and not isinstance(delay, bool) and delay > 0 else 0.0


def check_seconds(name: str, value: Any) -> float:
    """Convert a number of seconds of any library. Raises: BadInput for anything else."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise BadInput(f"expected {name} to be a number of seconds, got {value!r}")
    return float(value)


@dataclass(slots=True)
class Patience:
    """Waits between attempts, longer each time and at least as long as the server asks.

    Gives up after `seconds` without a row, counted from the failure, or from the start of the silence if that was the
    failure. One attempt tolerates a silence of `idle` seconds, and no longer than the remaining patience; without
    patience, `idle`.
    """

    seconds: float = SECONDS
    idle: float = IDLE_SECONDS
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[], float] = time.monotonic
    _since: float | None = field(default=None, init=False)
    _crashes: int = field(default=0, init=False)
    _pause: float = field(default=_FIRST, init=False)

    def __post_init__(self) -> None:
        self.seconds, self.idle = check_seconds("patience", self.seconds), check_seconds("idle_seconds", self.idle)
        if not self.seconds >= 0:
            raise BadInput(f"expected a patience of at least 0 seconds, got {self.seconds:g}")

    def pause_or_raise(self, error: HanseError) -> None:
        """Wait before the next attempt; raise `error` if it is permanent or the patience has run out."""
        now = self.now()
        if self._since is None:
            self._since = now - (error.silent if isinstance(error, Unreachable) else 0.0)
        self._crashes += error.code == _CRASHED
        if not is_temporary(error) or now - self._since >= self.seconds or self._crashes >= _CRASHES_MAX:
            raise error
        spread = random.uniform(0.5, 1.0)  # noqa: S311  many clients must not return at once
        pause = max(self._pause * spread, _retry_after(error) * (1.5 - spread / 2))
        self.sleep(min(pause, max(self.seconds - (now - self._since), _FIRST)))
        self._pause = min(2 * self._pause, _MOST)

    def retry(self, act: Callable[[], T]) -> T:
        """Call `act` until it returns, as long as its failures are temporary."""
        while True:
            try:
                return act()
            except HanseError as error:
                self.pause_or_raise(error)

    @property
    def silence(self) -> float:
        """The longest silence, in seconds, that the next attempt tolerates."""
        if self.seconds <= 0:
            return self.idle
        left = self.seconds if self._since is None else self.seconds - (self.now() - self._since)
        return min(self.idle, max(left, _FIRST))

    def reset(self) -> bool:
        """Note that a row was received; return whether anything had failed."""
        failed = self._since is not None
        self._since, self._pause, self._crashes = None, _FIRST, 0
        return failed
