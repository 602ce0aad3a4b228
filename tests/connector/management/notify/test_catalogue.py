"""The catalogue hears of changed offers: once for what changes together, in the background, and whatever it answers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from operator import methodcaller
from typing import Any

import pytest

from connector.errors import PeerUnreachable
from connector.events import DatasetRemoved, DatasetVersioned, NegotiationAdvanced, OfferPublished, OfferWithdrawn
from connector.infra.net.http_client import Reply
from connector.management.notify import catalogue
from connector.store import Store, Transaction
from connector.store.queries.datasets import DatasetQueries
from connector.store.tables import Offer

CATALOGUE = "http://catalogue"
A, B, C = (f"urn:hanse:north:{name}" for name in "abc")


class Listens:
    """The catalogue: answers with the statuses that it is given (0: not at all), then with 200."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = [*statuses]
        self.told: list[list[str]] = []

    async def call(self, method: str, url: str, *, headers: Mapping[str, str], body: bytes) -> Reply:
        assert (method, url, headers["authorization"]) == ("POST", f"{CATALOGUE}/api/v1/crawl?wait=0", "for did:web:op")
        self.told.append(json.loads(body)["withdrawn"])
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 0:
            raise PeerUnreachable("gone")
        return Reply(status, {}, b"{}")

    async def until(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.told) < count:
                await asyncio.sleep(0.002)


class Signs:
    async def mint(self, operator: str) -> str:
        return f"for {operator}"


@asynccontextmanager
async def announced(store: Store, net: Any, *, catalogue_url: str = f"{CATALOGUE}/") -> AsyncIterator[None]:
    identity: Any = Signs()
    made = catalogue.Announcer(store, net, identity, catalogue_url=catalogue_url, operator="did:web:op")
    task = asyncio.create_task(made.run())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_REST_SECONDS", 0.01)
    monkeypatch.setattr(catalogue, "_GATHER_SECONDS", 0.05)


def offered(tx: Transaction) -> None:
    about = {"policy": {}, "form": "", "digest": "", "decide": "auto", "created_at": 0.0}
    tx.datasets.add(Offer(id="o-1", dataset_id=A, withdrawn_at=None, **about))
    tx.datasets.add(Offer(id="o-2", dataset_id=B, withdrawn_at=1.0, **about))
    for event in (OfferPublished(actor="x", dataset=A), OfferWithdrawn(actor="x", dataset=B)):
        tx.publish(event)


async def test_what_changes_together_is_told_at_once_and_names_what_was_withdrawn(sqlite_store: Store) -> None:
    net = Listens()
    async with announced(sqlite_store, net):
        await sqlite_store.write(offered)
        await net.until(1)
        await sqlite_store.write(lambda tx: tx.publish(NegotiationAdvanced(actor="x", dataset=B)))
        await sqlite_store.write(lambda tx: tx.publish(DatasetVersioned(actor="x", dataset=A)))
        await net.until(2)
        await sqlite_store.write(lambda tx: tx.publish(DatasetRemoved(actor="x", dataset=B)))
        await net.until(3)
        assert net.told == [[B], [], [B]]


async def test_of_what_is_not_offered_and_never_was_the_catalogue_hears_nothing(sqlite_store: Store) -> None:
    net = Listens()
    async with announced(sqlite_store, net):
        await sqlite_store.write(offered)
        await net.until(1)
        for secret in (DatasetVersioned(actor="x", dataset=C), DatasetRemoved(actor="x", dataset=C),
                       DatasetVersioned(actor="x", dataset=B)):  # fmt: skip
            await sqlite_store.write(methodcaller("publish", secret))
            await asyncio.sleep(0.1)
        await sqlite_store.write(lambda tx: tx.publish(OfferPublished(actor="x", dataset=A)))
        await net.until(2)
        assert net.told == [[B], []]
        await sqlite_store.write(lambda tx: tx.publish(DatasetRemoved(actor="x", dataset=C)))
        await sqlite_store.write(lambda tx: tx.publish(OfferWithdrawn(actor="x", dataset=B)))
        await net.until(3)
        assert net.told == [[B], [], [B]]


async def test_a_catalogue_that_is_down_is_told_until_it_answers(sqlite_store: Store) -> None:
    """Else what was taken back meanwhile is shown there for a quarter of an hour."""
    net = Listens(0, 503, 429)
    async with announced(sqlite_store, net):
        await sqlite_store.write(offered)
        await net.until(4)
        await asyncio.sleep(0.2)
    assert net.told == [[B]] * 4


async def test_what_the_process_before_took_back_is_told_at_the_next_start(sqlite_store: Store) -> None:
    def before(tx: Transaction) -> None:
        about = {"policy": {}, "form": "", "digest": "", "decide": "auto", "created_at": 0.0}
        for dataset, ago in ((A, 20.0), (B, 90_000.0)):
            tx.datasets.add(Offer(id=f"o-{dataset}", dataset_id=dataset, withdrawn_at=tx.now - ago, **about))

    await sqlite_store.write(before)
    net = Listens()
    async with announced(sqlite_store, net):
        await net.until(1)
        await asyncio.sleep(0.1)
    assert net.told == [[A]]
    nobody = Listens()
    async with announced(sqlite_store, nobody, catalogue_url=""):
        await asyncio.sleep(0.1)
    assert nobody.told == []


async def test_of_many_that_are_withdrawn_at_once_each_is_told(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "_MOST", 2)
    ids = [f"{A}-{number}" for number in range(5)]

    def work(tx: Transaction) -> None:
        about = {"policy": {}, "form": "", "digest": "", "decide": "auto", "created_at": 0.0}
        for dataset in ids:
            tx.datasets.add(Offer(id=f"o-{dataset}", dataset_id=dataset, withdrawn_at=1.0, **about))
            tx.publish(OfferWithdrawn(actor="x", dataset=dataset))

    looked = Counter[str]()
    offers = DatasetQueries.list_offers

    def counted(of: DatasetQueries, **about: Any) -> Sequence[Offer]:
        looked[about["dataset_id"]] += 1
        return offers(of, **about)

    monkeypatch.setattr(DatasetQueries, "list_offers", counted)
    net = Listens()
    async with announced(sqlite_store, net):
        await sqlite_store.write(work)
        await net.until(3)
        await asyncio.sleep(0.2)
    assert net.told == [ids[:2], ids[2:4], ids[4:]]
    assert len(set(looked.values())) == 1  # each once: for each word all that waited was looked up anew


async def test_a_catalogue_that_does_not_take_it_is_told_of_the_next_change(sqlite_store: Store) -> None:
    net = Listens(404, 401)
    async with announced(sqlite_store, net):
        for count in (1, 2, 3):
            what = offered if count == 1 else lambda tx: tx.publish(OfferWithdrawn(actor="x", dataset=B))
            await sqlite_store.write(what)
            await net.until(count)
    assert net.told == [[B]] * 3


async def test_without_a_catalogue_nobody_is_told(sqlite_store: Store) -> None:
    net = Listens()
    async with announced(sqlite_store, net, catalogue_url=""):
        await sqlite_store.write(lambda tx: tx.publish(OfferWithdrawn(actor="x", dataset=C)))
        await asyncio.sleep(0.1)
    assert net.told == []
