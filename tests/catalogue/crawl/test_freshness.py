"""States and pauses as tables; the clock is an argument."""

from __future__ import annotations

import pytest

from catalogue.crawl.freshness import Timing, entry_state, pause, state_of

DAY = 86_400.0
TIMING = Timing(every=300, backoff_first=60, backoff_cap=6 * 3600, stale_misses=3, unreachable=DAY, expired=30 * DAY)


@pytest.mark.parametrize(
    ("failures", "age", "state"),
    [
        (0, None, "new"),
        (9, None, "new"),
        (0, 0, "active"),
        (0, 60 * DAY, "active"),
        (2, 3600, "active"),
        (3, 3600, "stale"),
        (3, DAY - 1, "stale"),
        (1, DAY, "unreachable"),
        (50, 30 * DAY - 1, "unreachable"),
        (50, 30 * DAY, "expired"),
    ],
)
def test_a_connector_ages_by_failures_and_time(failures: int, age: float | None, state: str) -> None:
    now = 1e9
    last_ok = None if age is None else now - age
    assert state_of(TIMING, failures=failures, last_ok=last_ok, now=now) == state


@pytest.mark.parametrize(
    ("failures", "seconds"), [(0, 300), (1, 60), (2, 120), (5, 960), (10, 6 * 3600), (10_000, 6 * 3600)]
)
def test_a_failed_visit_is_repeated_ever_later_up_to_six_hours(failures: int, seconds: float) -> None:
    assert pause(TIMING, failures=failures, took=0.0, luck=0.5) == pytest.approx(seconds)
    assert pause(TIMING, failures=failures, took=0.0, luck=0.0) == pytest.approx(seconds * 0.9)
    assert pause(TIMING, failures=failures, took=0.0, luck=1.0) == pytest.approx(seconds * 1.1)


@pytest.mark.parametrize(
    ("failures", "took", "seconds"), [(0, 60, 300), (0, 600, 3_000), (1, 10, 60), (1, 100, 500), (10, 600, 6 * 3600)]
)
def test_who_takes_long_is_visited_less_often(failures: int, took: float, seconds: float) -> None:
    assert pause(TIMING, failures=failures, took=took, luck=0.5) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("source", "misses", "withdrawn", "state"),
    [
        ("active", 0, False, "active"),
        ("active", 1, False, "stale"),
        ("unreachable", 1, False, "unreachable"),
        ("stale", 0, False, "stale"),
        ("active", 0, True, "withdrawn"),
        ("expired", 0, False, "expired"),
    ],
)
def test_an_entry_is_as_bad_as_the_worse_of_its_connector_and_itself(
    source: str, misses: int, withdrawn: bool, state: str
) -> None:
    assert entry_state(source, misses=misses, withdrawn=withdrawn) == state
