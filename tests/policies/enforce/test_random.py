"""Random queries over tables with planted secrets: none is ever in an answer, an error or the log."""

from __future__ import annotations

from tests.support import checker


def test_five_hundred_random_queries_meet_no_secret() -> None:
    outcome = checker.run(500, seed=20_260_101)
    assert outcome.leaks == []
    assert outcome.differences == []
    assert outcome.ended["answered"] >= 150, outcome.ended  # most of the grammar must really run
    assert outcome.ended["compared"] >= 80, outcome.ended
