"""FairSemaphore: how many there are, how many one may have, and whose turn is next."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from connector.infra.concurrency.fair_semaphore import FairSemaphore


class Room:
    """Visitors in a room of two places, one each at most; `come` takes one, `go` gives it back."""

    def __init__(self, size: int = 2, *, each: int = 1, first: int | None = None) -> None:
        self.places = FairSemaphore(size, each=each, first=first)
        self.inside: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    async def come(self, name: str) -> None:
        self._leave[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._visit(name))
        await asyncio.sleep(0)

    async def _visit(self, name: str) -> None:
        async with self.places.hold(*name.rstrip("0123456789")):
            self.inside.append(name)
            await self._leave[name].wait()
        self.inside.remove(name)

    async def go(self, *names: str, cancelled: bool = False) -> None:
        for name in names:
            if cancelled:
                self._tasks[name].cancel()
            self._leave[name].set()
        for name in names:
            with suppress(asyncio.CancelledError):
                await self._tasks[name]
        await asyncio.sleep(0)


async def test_nobody_has_more_than_its_places_and_others_do_not_wait_for_it() -> None:
    room = Room(3, each=2)
    for name in ("a1", "a2", "a3", "b1"):
        await room.come(name)
    assert room.inside == ["a1", "a2", "b1"]
    assert room.places.waiting("a") == 1
    await room.go("a1")
    assert room.inside == ["a2", "b1", "a3"]


async def test_a_free_place_goes_to_the_lines_in_turn() -> None:
    room = Room(1)
    for name in ("a1", "a2", "a3", "b1", "c1"):
        await room.come(name)
    for expected in ("a1", "a2", "b1", "c1", "a3"):
        assert room.inside == [expected]
        await room.go(expected)


async def test_who_goes_away_leaves_its_place_and_its_line() -> None:
    room = Room(1)
    for name in ("a1", "a2", "b1"):
        await room.come(name)
    await room.go("a2", cancelled=True)
    assert room.places.waiting("a") == 0
    room._tasks["b1"].cancel()  # in the very turn of the loop in which it gets the place
    await room.go("a1")
    await room.go("b1", cancelled=True)
    await room.come("c1")
    assert room.inside == ["c1"]


async def test_who_comes_under_two_names_has_its_turn_by_the_first_and_is_counted_by_both() -> None:
    room = Room(6, each=2, first=3)
    for name in ("ha1", "ha2", "ha3", "hb1", "hc1", "ia1", "ib1"):
        await room.come(name)
    assert room.inside == ["ha1", "ha2", "hb1", "ib1"]
    await room.go("ha1")
    assert room.inside == ["ha2", "hb1", "ib1", "ha3"]
    await room.go("ha2", "hb1")
    assert sorted(room.inside) == ["ha3", "hc1", "ia1", "ib1"]
