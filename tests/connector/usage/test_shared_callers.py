"""Two processes of one connector: what one of them learns about a caller, the other one knows."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from connector.errors import Unavailable, Unproven
from connector.identity.credentials import verifier as verifier_module
from connector.identity.credentials.verifier import Presented
from connector.identity.identity_service import Identity
from connector.store.engine import Store
from connector.usage.shared_callers import SharedCallers
from tests.connector.identity.credentials.world import HOLDER, QUERY, World, header, identity, verifier
from tests.support.own_name import changed

NOW = time.time()


@dataclass
class Two:
    """One connector in two processes, each with a store of its own on the same database."""

    world: World
    first: Identity
    second: Identity
    stores: tuple[Store, Store]


@pytest.fixture
def two(migrated_url: str) -> Iterator[Two]:
    stores = Store(migrated_url), Store(migrated_url)
    world = World()
    first, second = (identity(world, shared=SharedCallers(store)) for store in stores)
    yield Two(world, first, second, stores)
    for store in stores:
        store.close()


async def test_a_token_that_one_process_took_is_refused_by_the_other_one(two: Two) -> None:
    text = header()
    await two.first.authenticate(text)
    with pytest.raises(Unproven, match="used before"):
        await two.second.authenticate(text)
    await two.second.authenticate(header())


async def test_a_used_token_is_forgotten_when_it_has_expired(store: Store) -> None:
    shared = SharedCallers(store)
    assert await shared.note_first_use(HOLDER, "j", NOW + 60)
    assert not await shared.note_first_use(HOLDER, "j", NOW + 60)
    assert await shared.note_first_use(HOLDER, "k", NOW + 60)
    await store.write(lambda tx: tx.callers.forget_expired(NOW + 59))
    assert not await shared.note_first_use(HOLDER, "j", NOW + 60)
    await store.write(lambda tx: tx.callers.forget_expired(NOW + 61))
    assert await shared.note_first_use(HOLDER, "j", NOW + 120)


async def test_credentials_that_were_presented_to_one_process_count_at_the_other_one(two: Two) -> None:
    await two.first.authenticate(header())
    (verified,) = (await two.second.authenticate(header())).credentials
    assert verified.types == ("MembershipCredential",)
    assert two.world.calls.count(QUERY) == 1


async def test_facts_are_known_to_the_process_that_nothing_was_presented_to(two: Two) -> None:
    await two.first.authenticate(header())
    asked = verifier(two.world, shared=SharedCallers(two.stores[1]))
    (verified,) = await asked.find_current(HOLDER)
    assert verified.until <= time.time() + asked.rules.facts_seconds
    assert await asked.find_current("did:web:other.example") == ()


async def test_what_one_process_refuses_counts_at_neither(two: Two) -> None:
    first, second = (verifier(two.world, {"presentation_seconds": 0}, shared=SharedCallers(s)) for s in two.stores)
    await first.verify(HOLDER, "opaque")
    assert await second.find_current(HOLDER)
    two.world.changes = {"vc": {"exp": int(NOW - 100)}}
    with pytest.raises(Unproven):
        await first.verify(HOLDER, "opaque")
    assert await second.find_current(HOLDER) == ()


async def test_a_stored_credential_is_verified_again(two: Two) -> None:
    """The database is shared, the judgement is not: a list of trusted issuers may differ, and keys may have gone."""
    await two.first.authenticate(header())
    distrusting = verifier(
        two.world, {"issuers": {"did:web:other.example": ["*"]}}, shared=SharedCallers(two.stores[1])
    )
    assert await distrusting.find_current(HOLDER) == ()
    forged = Presented(time.time(), (two.world.credential() + "x",))
    shared = SharedCallers(two.stores[0])
    await shared.store_presented(HOLDER, forged, until=time.time() + 60)
    assert await verifier(two.world, shared=shared).find_current(HOLDER) == ()


async def test_an_older_presentation_replaces_no_later_one(store: Store) -> None:
    shared = SharedCallers(store)
    for at, text in ((NOW, "later"), (NOW - 5, "earlier")):
        await shared.store_presented(HOLDER, Presented(at, (text,)), until=NOW + 60)
    await shared.forget(HOLDER, before=NOW)
    assert await shared.find(HOLDER) == Presented(NOW, ("later",))
    await shared.forget(HOLDER, before=NOW + 1)
    assert await shared.find(HOLDER) is None


async def test_a_presentation_counts_for_as_long_as_at_one_process(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    await two.first.authenticate(header())
    asked = verifier(two.world, {"facts_seconds": 100}, shared=SharedCallers(two.stores[1]))
    assert await asked.find_current(HOLDER)
    at = time.time() + 200
    monkeypatch.setattr(verifier_module, "time", changed(time, time=lambda: at))
    assert await asked.find_current(HOLDER) == ()


async def test_a_database_that_is_away_lets_no_token_through(two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    async def away(_: object) -> None:
        raise Unavailable("the database does not answer")

    monkeypatch.setattr(two.stores[1], "write", away)
    with pytest.raises(Unavailable):
        await two.second.authenticate(header())
