"""What comes from an owner goes to a file within its bounds."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from typing import Any

import pytest

from connector.errors import Busy, Limited
from connector.query import remote
from connector.query.remote import Budget


class Answer:
    """An owner's answer in pieces of 100,000 bytes."""

    def __init__(self, count: int) -> None:
        self.count = count

    async def pieces(self) -> AsyncIterator[bytes]:
        for number in range(self.count):
            yield bytes([number]) * 100_000


async def spool(file: Any, *, count: int = 25, most: int = 10_000_000) -> int:
    answer: Any = Answer(count)
    return await remote._spool(answer, file, Budget(most))


async def test_every_byte_is_written_in_its_order() -> None:
    file = io.BytesIO()
    assert await spool(file) == 2_500_000
    assert file.getvalue() == b"".join(bytes([number]) * 100_000 for number in range(25))


async def test_a_full_disk_is_said_with_what_to_do() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(Busy, match="make room") as caught:  # noqa: ASYNC230
        await spool(full)
    assert caught.value.code == "disk_full"


async def test_more_than_the_budget_is_not_written() -> None:
    file = io.BytesIO()
    with pytest.raises(Limited):
        await spool(file, most=1_500_000)
    assert len(file.getvalue()) <= 1_500_000
