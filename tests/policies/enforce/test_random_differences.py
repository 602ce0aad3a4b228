"""Two random versions under one grid: a difference that reveals few patients is always found."""

from __future__ import annotations

from collections import Counter

from tests.support.random_versions import outcome

# Of those that tell it in coarser groups than cells alone there is one among 250.
SEEDS = [*range(50), 190, 336, 488, 868]


def test_what_tells_of_few_is_always_found() -> None:
    ended: Counter[str] = Counter()
    for seed in SEEDS:
        case = outcome(seed)
        assert case.found or not case.told, (seed, case)
        ended["told" if case.told else "found" if case.found else "fine"] += 1
    assert ended["told"] >= 8, ended
    assert ended["fine"] >= 8, ended
