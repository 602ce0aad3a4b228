"""A small share of `make resume-trials`: accidents at random rows cost no row and double none."""

from __future__ import annotations

import io

import numpy as np
import pytest
from rich.console import Console

from tests.load import resume_trials
from tests.load.resume.sequence import Share


def test_every_row_comes_once_and_in_order_whatever_befalls() -> None:
    told = io.StringIO()
    found = resume_trials.run(range(8), seed=354, console=Console(file=told), forked=True)
    assert sum(one.failed for one in found.values()) == 0, told.getvalue()
    assert sum(one.trials for one in found.values()) == 8
    assert {"client", "workers", "connection", "connector", "everything"} <= set(found)
    assert sum(one.struck for one in found.values()) > 15


@pytest.mark.parametrize(
    ("came", "whole", "wrong"),
    [
        ([1, 2, 3, 4], True, ""),
        ([1, 2], False, ""),
        ([1, 2], True, "expected 4 rows, got 2"),
        ([1, 2, 2], False, "expected id 3 at row 2 of this share, got 2"),
        ([2, 1], False, "expected id 1 at row 0 of this share, got 2"),
        ([1, 2, 3, 4, 5], False, "expected at most 4 rows, got 5"),
    ],
)
def test_the_trials_see_a_row_that_is_lost_doubled_or_misplaced(came: list[int], whole: bool, wrong: str) -> None:
    share = Share([(0, np.array([1, 2])), (3, np.array([3, 4]))])
    assert share.wrong(came, whole=whole) == wrong
