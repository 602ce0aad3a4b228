"""The state of a connector, and of an entry from its misses; and when a connector is visited next. Pure.

    new → active → stale → unreachable → expired        any good visit: active

Silence never deletes: a connector that does not answer keeps its entries, marked, until they expire.
"""

from __future__ import annotations

from dataclasses import dataclass

from catalogue.settings import CatalogueSettings

NEW, ACTIVE, STALE, UNREACHABLE, EXPIRED, WITHDRAWN = "new", "active", "stale", "unreachable", "expired", "withdrawn"
ORDER = (ACTIVE, NEW, STALE, UNREACHABLE, EXPIRED, WITHDRAWN)

_REST = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """When states change and visits are repeated, in seconds and failures."""

    every: float
    backoff_first: float
    backoff_cap: float
    stale_misses: int
    unreachable: float
    expired: float

    @property
    def unlisted(self) -> float:
        """Seconds after which an entry that only partial visits could have listed is stale: those of silence."""
        return self.unreachable

    @classmethod
    def of(cls, settings: CatalogueSettings) -> Timing:
        return cls(
            every=settings.crawl_seconds,
            backoff_first=settings.backoff_first,
            backoff_cap=settings.backoff_cap,
            stale_misses=settings.stale_misses,
            unreachable=settings.unreachable_seconds,
            expired=settings.expired_seconds,
        )


def state_of(timing: Timing, *, failures: int, last_ok: float | None, now: float) -> str:
    """The state of a connector after `failures` failed visits in a row, last good at `last_ok`."""
    if last_ok is None:
        return NEW
    if failures and now - last_ok >= timing.expired:
        return EXPIRED
    if failures and now - last_ok >= timing.unreachable:
        return UNREACHABLE
    return STALE if failures >= timing.stale_misses else ACTIVE


def entry_state(source_state: str, *, misses: int, withdrawn: bool) -> str:
    """The state of one entry: the worse of its connector's and its own."""
    own = WITHDRAWN if withdrawn else STALE if misses else ACTIVE
    return max(source_state, own, key=ORDER.index)


def pause(timing: Timing, *, failures: int, took: float, luck: float) -> float:
    """Seconds until the next visit: the period, or an exponential back-off; after a long one, so many times what it
    took that a slow connector leaves its place to others. `luck` in 0..1 spreads it by a tenth."""
    doubled = timing.backoff_first * 2.0 ** min(failures - 1, 40)
    plain = timing.every if failures == 0 else min(timing.backoff_cap, doubled)
    return max(plain, _REST * took) * (0.9 + 0.2 * luck)
