"""Places are given in order, and none is lost."""

from __future__ import annotations

import asyncio

from catalogue.crawl.visit_turns import VisitPlaces


async def test_a_place_that_comes_in_the_moment_of_a_cancellation_goes_to_the_next() -> None:
    turns = VisitPlaces({"schedule": 1})

    async def visit(key: str, seconds: float) -> str:
        async with turns.turn(key, "schedule") as kind:
            await asyncio.sleep(seconds)
            return kind

    first, second = (asyncio.create_task(visit(key, 60)) for key in "ab")
    third = asyncio.create_task(visit("c", 0))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)  # it leaves, and the second's turn has come
    assert not turns.join("b", "schedule")
    second.cancel()
    assert await asyncio.wait_for(third, 60) == "schedule"
    assert second.cancelled()
