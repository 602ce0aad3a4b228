"""Lines of consumers that wait."""

from __future__ import annotations

import asyncio

import pytest

from connector.errors import Busy
from connector.query.turns import Turns


async def test_one_consumer_takes_no_more_than_half_of_the_line() -> None:
    turns = Turns(1, waiting=4, wait_seconds=60.0)
    await turns.take("greedy")
    greedy = [asyncio.ensure_future(turns.take("greedy")) for _ in range(3)]
    other = asyncio.ensure_future(turns.take("other"))
    with pytest.raises(Busy) as raised:
        await greedy[2]
    assert raised.value.code == "queue_full"
    for _ in range(3):
        turns.give_back()
    await asyncio.gather(*greedy[:2], other)
