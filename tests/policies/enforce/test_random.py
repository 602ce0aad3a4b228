"""Random queries: over tables with planted secrets, none of which is ever in an answer, an error or the log; and about
names."""

from __future__ import annotations

import pytest

from tests.support import checker, named


def test_five_hundred_random_queries_meet_no_secret() -> None:
    outcome = checker.run(500, seed=20_260_101)
    assert outcome.leaks == []
    assert outcome.differences == []
    assert outcome.ended["answered"] >= 150, outcome.ended  # most of the grammar must really run
    assert outcome.ended["compared"] >= 80, outcome.ended


@pytest.mark.parametrize("world", ["gate", "shut"])
def test_random_questions_about_names_are_answered_and_recorded_as_the_engine_reads_them(world: str) -> None:
    """`make random-names` asks many more."""
    counted = named.run([named.WORLDS[world]()], range(300))
    assert not counted.found
    assert counted.ended["equal"] >= 30, counted.ended
