"""Tokens of the management API: an administrator can always come in again."""

from __future__ import annotations

import asyncio
from contextlib import closing

import pytest

from connector.errors import Invalid, Unproven
from connector.events import Event, TokenIssued
from connector.management.sign_on.auth import Tokens
from connector.store import Store


async def expire(store: Store, name: str) -> None:
    """A token's time passes."""
    await store.write(lambda tx: setattr(tx.tokens.find_by_name(name), "expires_at", tx.now - 1))


async def started(tokens: Tokens) -> str:
    """What a start hands over; empty: nothing."""
    handed: list[str] = []
    await tokens.first(handed.append)
    return handed[0] if handed else ""


async def test_the_last_good_admin_cannot_be_ended_and_one_that_has_expired_is_none(sqlite_store: Store) -> None:
    tokens = Tokens(sqlite_store)
    await started(tokens)
    await tokens.issue("backup", ["admin"], by="admin", days=1)
    await tokens.issue("reader", ["read"], by="admin")
    await expire(sqlite_store, "backup")
    with pytest.raises(Invalid, match="last token with the scope admin that is good now"):
        await tokens.revoke("admin", by="admin")
    await tokens.revoke("backup", by="admin")
    assert [row.name for row in await tokens.list()] == ["admin", "reader"]


async def test_a_start_after_the_last_admin_has_expired_makes_one_and_says_so(sqlite_store: Store) -> None:
    tokens, told = Tokens(sqlite_store), list[Event]()
    first = await started(tokens)
    sqlite_store.bus.subscribe(told.append)
    await tokens.issue("backup", ["admin"], by="admin", days=1)
    await tokens.revoke("admin", by="backup")
    assert await started(tokens) == ""  # it is still good
    await tokens.issue("admin", ["read"], by="backup")
    await expire(sqlite_store, "backup")
    again = await started(tokens)
    assert (await tokens.caller(again)).scopes == {"admin"}
    assert again != first
    made = told[-1]
    assert isinstance(made, TokenIssued)
    assert (made.actor, made.detail["token"]) == ("start", "admin-2")
    assert made.reason == "no token with the scope admin was good at this start"
    assert await started(tokens) == ""


async def test_a_token_that_another_process_has_ended_is_good_for_nothing_here(migrated_url: str) -> None:
    with closing(Store(migrated_url)) as one, closing(Store(migrated_url)) as other:
        here, there = Tokens(one), Tokens(other)
        await started(here)
        thief = await here.issue("thief", ["admin"], by="admin")
        assert (await there.caller(thief)).name == "thief"
        await here.revoke("thief", by="admin")
        with pytest.raises(Unproven, match="not known here"):
            await there.caller(thief)
        with pytest.raises(Unproven, match="has just ended"):  # who was let in before it ended
            await there.issue("again", ["admin"], by="thief")
        assert [row.name for row in await here.list()] == ["admin"]


async def test_two_that_end_a_token_at_once_leave_an_admin(migrated_url: str) -> None:
    with closing(Store(migrated_url)) as one, closing(Store(migrated_url)) as other:
        here, there = Tokens(one), Tokens(other)
        await started(here)
        for number in range(10):
            [left] = await here.list()
            await here.issue(f"other-{number}", ["admin"], by=left.name)
            first, second = (row.name for row in await here.list())
            ends = here.revoke(first, by="test"), there.revoke(second, by="test")
            said = [type(end) for end in await asyncio.gather(*ends, return_exceptions=True)]
            assert said.count(Invalid) == len(await here.list()) == 1


async def test_processes_that_start_together_make_one_token_which_is_the_one_handed_over(migrated_url: str) -> None:
    stores = [Store(migrated_url) for _ in range(4)]
    try:
        for names in (["admin"], ["admin", "admin-2"]):
            handed = [text for text in await asyncio.gather(*(started(Tokens(store)) for store in stores)) if text]
            assert [row.name for row in await Tokens(stores[0]).list()] == names
            assert [(await Tokens(stores[0]).caller(text)).name for text in handed] == names[-1:]
            await expire(stores[0], "admin")
    finally:
        for store in stores:
            store.close()
