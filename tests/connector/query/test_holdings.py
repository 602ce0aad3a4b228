"""What we hold as a consumer: tickets of started transfers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from connector.errors import NotFound, Refused
from connector.query.holdings import Holdings
from connector.store.agreements import Readable, Started

_ADDRESS = {"endpoint": "http://owner/data/v1", "endpointProperties": [{"name": "authorization", "value": "ticket"}]}


class _Store:
    """Agreements by name, each with a started transfer, but `none` without one, `ended`, and `unknown`."""

    def __init__(self) -> None:
        self.looks = 0
        self.agreements = SimpleNamespace(readable=self._readable)

    async def read(self, work: Any) -> Any:
        self.looks += 1
        await asyncio.sleep(0)
        return work(self)

    @staticmethod
    def _readable(names: Collection[str]) -> dict[str, Readable]:
        transfers = {name: None if name == "none" else Started(name, "", "", _ADDRESS) for name in names}
        ends = {name: 1.0 if name == "ended" else None for name in names}
        return {name: Readable(ends[name], "", transfers[name]) for name in names if name != "unknown"}


async def test_tickets_that_are_asked_for_at_once_take_one_look_at_the_database() -> None:
    store = _Store()
    holdings = Holdings(store, None, None)  # type: ignore[arg-type]  # nothing is renewed here
    names = ("one", "two", "none", "ended", "one", "unknown")
    found = await asyncio.gather(*map(holdings.ticket, names), return_exceptions=True)
    assert store.looks == 1
    assert [found[0], found[1], found[4]] == list(itertools.repeat(("http://owner/data/v1", "ticket"), 3))
    assert isinstance(found[2], NotFound)
    assert isinstance(found[3], Refused)
    assert isinstance(found[5], NotFound)
    assert await holdings.ticket("one")
    assert store.looks == 2


async def test_who_waits_for_a_ticket_hears_that_the_database_does_not_answer() -> None:
    store = _Store()
    store.agreements = None  # type: ignore[assignment]  # any error of the database's
    with pytest.raises(AttributeError):
        await Holdings(store, None, None).ticket("one")  # type: ignore[arg-type]
