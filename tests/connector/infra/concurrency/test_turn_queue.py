"""Lines of consumers that wait."""

from __future__ import annotations

import asyncio

import pytest

from connector.errors import Unavailable
from connector.infra.concurrency.turn_queue import TurnQueue


async def test_one_consumer_takes_no_more_than_half_of_the_line() -> None:
    turns = TurnQueue(1, waiting=4, wait_seconds=60.0)
    await turns.take("greedy")
    greedy = [asyncio.ensure_future(turns.take("greedy")) for _ in range(3)]
    other = asyncio.ensure_future(turns.take("other"))
    with pytest.raises(Unavailable) as raised:
        await greedy[2]
    assert raised.value.code == "queue_full"
    for holder in ("greedy", "greedy", "other"):
        turns.give_back(holder)
    await asyncio.gather(*greedy[:2], other)


async def test_one_consumer_has_no_more_places_than_each_may() -> None:
    turns = TurnQueue(2, each=1, waiting=8, wait_seconds=60.0)
    await turns.take("greedy")
    greedy = [asyncio.ensure_future(turns.take("greedy")) for _ in range(2)]
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await turns.take("other")  # at once, past those who have as many as they may
    turns.give_back("other")
    await asyncio.sleep(0)
    assert not any(one.done() for one in greedy)
    turns.give_back("greedy")
    await greedy[0]
    greedy[1].cancel()
    await asyncio.wait(greedy)
    turns.give_back("greedy")
    assert (turns.waiting, turns.places._held, turns.places.free) == (0, {}, 2)


async def test_who_has_waited_before_waits_for_what_is_left_and_hears_what_was_missing() -> None:
    turns = TurnQueue(1, waiting=4, wait_seconds=60.0, what="turn to describe a read")
    await turns.take("one")
    with pytest.raises(Unavailable, match="no turn to describe a read became free") as raised:
        await turns.take("two", seconds=0.01)
    assert raised.value.code == "queue_timeout"
