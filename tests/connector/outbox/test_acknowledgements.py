"""Acknowledged deliveries: recorded together in a moment, at once where somebody acts, and never twice."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest

from connector.errors import AlreadyExists, Busy
from connector.outbox import acknowledgements
from connector.outbox.acknowledgements import Acknowledgements
from connector.outbox.sender import DeliveryOutcome, DeliveryResult
from connector.store import Store, Transaction
from connector.store.tables import Outbox

DELIVERED = DeliveryOutcome(DeliveryResult.DELIVERED)


def row(process: str) -> Outbox:
    return Outbox(process=process, kind="test", address="http://peer", path="/", message={})


class Book:
    """Keeps what is recorded, by transaction."""

    def __init__(self, store: Store) -> None:
        self.pages: dict[Transaction, list[str]] = {}
        self.followed: list[Outbox] = []
        self.trouble: dict[str, Exception] = {}
        self.again: list[str] = []
        self.acknowledgements = Acknowledgements(
            store, record=self._record, again=self._again, hand_over=self.followed.extend
        )

    @property
    def recorded(self) -> list[str]:
        return sorted(process for page in self.pages.values() for process in page)

    def _record(self, tx: Transaction, delivered: Outbox, outcome: DeliveryOutcome) -> list[Outbox]:
        if (trouble := self.trouble.get(delivered.process)) is not None:
            raise trouble
        self.pages.setdefault(tx, []).append(delivered.process)
        return [row(f"after {delivered.process}")]

    async def _again(self, delivered: Outbox, error: Exception) -> None:
        self.again.append(delivered.process)

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.recorded) < count:
                await asyncio.sleep(0.002)


async def test_what_nobody_goes_on_from_is_recorded_together_and_what_follows_is_handed_over(
    sqlite_store: Store,
) -> None:
    book = Book(sqlite_store)
    for process in ("b", "a", "c"):
        book.acknowledgements.add(row(process), DELIVERED)
    assert book.recorded == []
    await book.until(3)
    assert list(book.pages.values()) == [["a", "b", "c"]]
    await book.acknowledgements.close()
    assert [one.process for one in book.followed] == ["after a", "after b", "after c"]


async def test_what_the_next_message_proved_is_not_recorded_again(sqlite_store: Store) -> None:
    book = Book(sqlite_store)
    book.acknowledgements.add(row("a"), DELIVERED)
    book.acknowledgements.add(row("b"), DELIVERED)
    book.acknowledgements.mark_recorded("a")
    await book.until(1)
    await book.acknowledgements.close()
    assert book.recorded == ["b"]


async def test_who_acts_on_a_process_finds_it_recorded(sqlite_store: Store) -> None:
    book = Book(sqlite_store)
    book.acknowledgements.add(row("a"), DELIVERED)
    await book.acknowledgements.record_now("a")
    assert book.recorded == ["a"]
    await book.acknowledgements.record_now("a")
    await book.acknowledgements.close()
    assert book.recorded == ["a"]


@pytest.mark.parametrize("trouble", [ValueError("broken"), AlreadyExists("stored by somebody else a moment ago")])
async def test_one_that_makes_trouble_takes_no_other_along(sqlite_store: Store, trouble: Exception) -> None:
    book = Book(sqlite_store)
    book.trouble["b"] = trouble
    for process in ("a", "b", "c"):
        book.acknowledgements.add(row(process), DELIVERED)
    await book.acknowledgements.close()
    assert sorted(one.process for one in book.followed) == ["after a", "after c"]
    assert book.again == ["b"]


async def test_without_a_database_the_messages_stay_in_the_outbox(sqlite_store: Store) -> None:
    book = Book(sqlite_store)
    book.trouble["a"] = Busy("the database is away")
    book.acknowledgements.add(row("a"), DELIVERED)
    with suppress(TimeoutError):
        await asyncio.wait_for(book.acknowledgements.close(), 5)
    assert (book.recorded, book.followed, book.again) == ([], [], [])


async def test_more_than_fit_in_one_transaction_take_several(sqlite_store: Store) -> None:
    book = Book(sqlite_store)
    for number in range(acknowledgements._TOGETHER + 1):
        book.acknowledgements.add(row(f"{number:03}"), DELIVERED)
    await book.acknowledgements.close()
    assert sorted(map(len, book.pages.values())) == [1, acknowledgements._TOGETHER]
