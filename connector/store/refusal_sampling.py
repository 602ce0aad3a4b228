"""How much of what is refused is recorded one by one (decision 35).

A refusal costs whoever asks nothing, and each record stays on our disk. Of each actor the log has some at once and one
a second, and what is beyond is counted, by actor, agreement and reason; the count is a record, too. Actors are many:
whoever has a DID is one. Refusals that name no agreement share another, slower allowance, so that strangers cannot fill
the log between them, nor take from what is recorded of those whom the owner agreed with. Pure: no clock, no database.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict

from connector.events import Event, RefusalsCounted
from connector.infra.concurrency.recent_keys import put_recent

EACH = 600  # records in ten minutes, and as many at once, of one actor
STRANGERS = 3_000  # of all who name no agreement
ACTORS_MAX = 4_096  # whose allowances are kept
COUNTED_MAX = 128  # counts, and so records a minute, of strangers, and as many of actors with their agreements
OTHERS = "others"  # in whose name the rest is counted
_AHEAD = 600.0  # seconds


class Refusals:
    """What was refused of late in this process."""

    def __init__(self) -> None:
        self._full: OrderedDict[str, float] = OrderedDict()  # until when each allowance is used, the least used first
        self._strangers = float("-inf")
        self._since: float | None = None
        self._counts: dict[tuple[str, str], Counter[str]] = {}

    def take(self, event: Event, now: float) -> bool:
        """Whether the log should have this refusal as it is; else it is counted."""
        own = max(self._full.get(event.actor, now), now) + _AHEAD / EACH
        shared = max(self._strangers, now) + _AHEAD / STRANGERS
        if own - now > _AHEAD or (not event.agreement and shared - now > _AHEAD):
            self.count(event, now)
            return False
        if not event.agreement:
            self._strangers = shared
        put_recent(self._full, event.actor, own, most=ACTORS_MAX)
        return True

    def count(self, event: Event, now: float) -> None:
        """Count one that the log is not to have as it is."""
        if self._since is None:
            self._since = now
        who = (event.actor, event.agreement)
        if who not in self._counts and self._alike(event.agreement) >= COUNTED_MAX:
            who = (OTHERS, "")
        self._counts.setdefault(who, Counter())[event.code] += 1

    def counted(self, now: float) -> list[RefusalsCounted]:
        """What was counted and not forgotten, as records."""
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

    def forget(self, told: list[RefusalsCounted]) -> None:
        """These are in the log; what came since is for the next time."""
        for event in told:
            left = self._counts[event.actor, event.agreement]
            left.subtract(event.detail["codes"])
            if not any(left.values()):
                del self._counts[event.actor, event.agreement]
        if not self._counts:
            self._since = None

    def _alike(self, agreement: str) -> int:
        """How many counts there are of strangers, or of those who are none."""
        return sum(bool(named) == bool(agreement) for _, named in self._counts)
