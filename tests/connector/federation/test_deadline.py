"""How the seconds of a question are split over its stages."""

from __future__ import annotations

import pytest

from connector.federation.deadline import Deadline
from connector.federation.planner.model import FederatedPlan, Fragment, KeyFilter, Mode

CASES = [  # seconds, passed, stages that follow, seconds for this one
    (100, 0, 0, 100),
    (100, 0, 1, 90),
    (100, 0, 3, 70),
    (100, 0, 9, 50),  # never less than half is kept
    (100, 60, 1, 30),  # what earlier stages did not need is there, what they took is not
    (100, 95, 1, 0.05),  # and what is over ends at once
]


@pytest.mark.parametrize(("seconds", "passed", "later", "left"), CASES)
def test_a_stage_leaves_a_tenth_for_each_that_follows(seconds: float, passed: float, later: int, left: float) -> None:
    now = [10.0]
    deadline = Deadline(seconds, clock=lambda: now[0])
    now[0] += passed
    assert deadline.seconds_left(later) == pytest.approx(left)


def _fragment(table: str, *sources: str) -> Fragment:
    keys = tuple(KeyFilter(source, "k", "c", f"keys_{source}", "TRUE") for source in sources)
    return Fragment(table, table, "north", "", (), "", (), "scan", keys=keys)


def test_a_fragment_comes_after_those_whose_keys_it_takes() -> None:
    fragments = (_fragment("f0", "f2"), _fragment("f1"), _fragment("f2", "f1"), _fragment("f3", "f1"))
    plan = FederatedPlan("", Mode.FULL, fragments, "", ())
    assert plan.waves == {"f1": 0, "f2": 1, "f0": 2, "f3": 1}
