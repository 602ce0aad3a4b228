"""A test in real time fails, unless the machine stood still in each of its tries."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.stalls import in_real_time


def test_a_failure_without_a_stall_is_one() -> None:
    tries = []

    @in_real_time
    def fails() -> None:
        tries.append(1)
        pytest.fail("whatever the machine does")

    with pytest.raises(pytest.fail.Exception, match="whatever"):
        fails()
    assert len(tries) < 10  # one, unless the machine stood still just then


async def test_a_failure_in_a_stall_is_none() -> None:
    tries = []

    @in_real_time
    async def fails_at_first() -> None:
        tries.append(1)
        await asyncio.sleep(0)
        if len(tries) < 3:
            _stand_still()
            raise TimeoutError

    await fails_at_first()
    assert len(tries) == 3


def _stand_still() -> None:
    """As far as this process is concerned: for 0.2 seconds no other thread of it gets to run."""
    steps, took = 2_000_000, 0.0
    while took < 0.2:
        began = time.monotonic()
        sum(range(steps))  # one step for Python
        steps, took = steps * 2, time.monotonic() - began
