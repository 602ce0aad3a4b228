"""Sequences made at once and given in order: none is lost, little is made ahead, and nothing is left at work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from connector.engine.worker.read.parallel_ranges import _AHEAD, run_in_turns
from tests.support.waiting import eventually

PLACES = range(7)


def each(made: list[tuple[int, int]], number: int, of: int, size: int) -> Iterator[Iterator[tuple[int, int]]]:
    def sequence(place: int) -> Iterator[tuple[int, int]]:
        for item in range(size):
            made.append((place, item))
            yield place, item

    return (sequence(place) for place in PLACES[number::of])


def makers(
    made: list[tuple[int, int]], *, of: int, size: int
) -> list[Callable[[], Iterator[Iterator[tuple[int, int]]]]]:
    return [lambda number=number: each(made, number, of, size) for number in range(of)]  # type: ignore[misc]  # mypy sees no lambda's default


def nothing() -> None:
    """Nobody waits for anything that has to be stopped."""


@pytest.mark.parametrize("of", [1, 2, 3, 9])
@pytest.mark.parametrize("size", [0, 1, 50])
def test_every_item_comes_once_and_in_order(of: int, size: int) -> None:
    found = [item for sequence in run_in_turns(makers([], of=of, size=size), stop=nothing) for item in sequence]
    assert found == [(place, item) for place in PLACES for item in range(size)]


def test_both_are_made_at_once_and_little_ahead() -> None:
    made: list[tuple[int, int]] = []
    coming = run_in_turns(makers(made, of=2, size=50), stop=nothing)
    first = next(coming)
    assert next(first) == (0, 0)
    eventually(lambda: {place for place, _ in made} == {0, 1})
    time.sleep(0.3)
    assert len(made) <= 2 * (_AHEAD + 2)
    coming.close()


def test_an_error_is_raised_where_its_items_would_be() -> None:
    def second() -> Iterator[Iterator[tuple[int, int]]]:
        yield iter([(1, 0)])
        raise ZeroDivisionError

    coming = run_in_turns([makers([], of=2, size=1)[0], second], stop=nothing)
    found: list[tuple[int, int]] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(item for sequence in coming for item in sequence)
    assert found == [(0, 0), (1, 0), (2, 0)]


def test_who_stops_early_leaves_no_thread_behind() -> None:
    stopped = threading.Event()

    def waiting() -> Iterator[Iterator[tuple[int, int]]]:
        yield iter([(1, 0)])
        stopped.wait(60)  # as an engine that finds nothing for a long time
        assert stopped.is_set()
        raise RuntimeError("interrupted")

    before = threading.active_count()
    coming = run_in_turns([makers([], of=2, size=50)[0], waiting], stop=stopped.set)
    assert next(next(coming)) == (0, 0)
    coming.close()
    assert stopped.is_set()
    assert threading.active_count() == before
