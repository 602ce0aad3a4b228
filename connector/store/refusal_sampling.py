"""Rate limit for recorded refusals, with counts of the rest (decision 35). Pure: no clock, no database.

A refusal costs the sender nothing, but its record stays on disk. Each actor has a burst of recorded refusals and one
more a second. Refusals above that are counted by actor, agreement and reason, and the count is recorded. Anyone can
make many DIDs, so refusals without an agreement also share one limit. It does not reduce what is recorded for partners.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict

from connector.events import Event, RefusalsCounted
from connector.infra.concurrency.recent_keys import put_recent

ACTOR_BURST = 600  # records of one actor in ten minutes, and at once
UNKNOWN_BURST = 3_000  # records of all refusals without an agreement in ten minutes, and at once
ACTORS_MAX = 4_096  # actors whose limits are kept
COUNTED_MAX = 128  # counts (records a minute) of refusals without an agreement, and as many of refusals with one
OTHERS = "others"  # actor of the count of the rest
_WINDOW_SECONDS = 600.0


class RefusalSampler:
    """The recent refusals of this process: which to record, and the counts of the others."""

    def __init__(self) -> None:
        self._actor_full: OrderedDict[str, float] = (
            OrderedDict()
        )  # by actor: time until which the limit is used; least recently used first
        self._unknown_full = float("-inf")
        self._since: float | None = None
        self._counts: dict[tuple[str, str], Counter[str]] = {}

    def admit(self, event: Event, now: float) -> bool:
        """Whether to record this refusal by itself. If not, it is counted.

        `now`: seconds of a monotonic clock.
        """
        actor_full = max(self._actor_full.get(event.actor, now), now) + _WINDOW_SECONDS / ACTOR_BURST
        unknown_full = max(self._unknown_full, now) + _WINDOW_SECONDS / UNKNOWN_BURST
        is_unknown = not event.agreement
        if actor_full - now > _WINDOW_SECONDS or (is_unknown and unknown_full - now > _WINDOW_SECONDS):
            self.count(event, now)
            return False
        if is_unknown:
            self._unknown_full = unknown_full
        put_recent(self._actor_full, event.actor, actor_full, most=ACTORS_MAX)
        return True

    def count(self, event: Event, now: float) -> None:
        """Count a refusal that is not recorded by itself."""
        if self._since is None:
            self._since = now
        key = (event.actor, event.agreement)
        if key not in self._counts and self._count_keys(with_agreement=bool(event.agreement)) >= COUNTED_MAX:
            key = (OTHERS, "")
        self._counts.setdefault(key, Counter())[event.code] += 1

    def list_counts(self, now: float) -> list[RefusalsCounted]:
        """The counts since they were last recorded, as events."""
        seconds = 0 if self._since is None else math.ceil(now - self._since)
        return [
            RefusalsCounted(
                actor=actor,
                agreement=agreement,
                outcome="refused",
                detail={"count": codes.total(), "codes": dict(codes), "seconds": seconds},
            )
            for (actor, agreement), codes in self._counts.items()
        ]

    def forget_recorded(self, events: list[RefusalsCounted]) -> None:
        """Subtract counts that are now in the log. Later refusals stay counted."""
        for event in events:
            left = self._counts[event.actor, event.agreement]
            left.subtract(event.detail["codes"])
            if not any(left.values()):
                del self._counts[event.actor, event.agreement]
        if not self._counts:
            self._since = None

    def _count_keys(self, *, with_agreement: bool) -> int:
        return sum(bool(agreement) == with_agreement for _, agreement in self._counts)
