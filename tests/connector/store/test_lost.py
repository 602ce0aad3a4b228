"""A commit whose answer is lost: it is looked up, and what was kept is told to everybody here as ever, once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from connector.errors import Busy
from connector.events import ServiceStarted
from connector.store import UNKNOWN, Relay, Store, Transaction
from connector.store.tables import ApiToken
from tests.conftest import DATABASES
from tests.support import migrated

pytestmark = pytest.mark.skipif("postgresql" not in DATABASES, reason="PostgreSQL LEFT OUT")
Commit = Callable[[Any], None]


@pytest.fixture
def opened(postgres_cluster: Any) -> Iterator[Store]:
    with migrated.postgresql(postgres_cluster) as url:
        made = Store(url, pool_size=2)
        yield made
        made.close()


@pytest.fixture
def heard(opened: Store) -> list[str]:
    told: list[str] = []
    opened.bus.subscribe(lambda event: told.append(event.kind), own=True)
    return told


def change(tx: Transaction) -> str:
    tx.tokens.add(ApiToken(name="a", digest="a", scopes=[], created_at=0.0, expires_at=None))
    tx.publish(ServiceStarted(actor="us"))
    return "done"


def lost(store: Store, monkeypatch: pytest.MonkeyPatch, before: Commit) -> None:
    """The next commit has no answer; `before` is what becomes of it at the server."""
    real = store.engine.dialect.do_commit

    def commit(connection: Any) -> None:
        monkeypatch.setattr(store.engine.dialect, "do_commit", real)
        before(connection)
        raise psycopg.OperationalError("the connection is lost")

    monkeypatch.setattr(store.engine.dialect, "do_commit", commit)


def forgotten(connection: Any) -> None:
    """The server has not heard of it."""
    connection.dbapi_connection.close()


def done(connection: Any) -> None:
    connection.commit()
    connection.dbapi_connection.close()


async def kept(store: Store) -> bool:
    return await store.read(lambda tx: tx.tokens.by_name("a") is not None)


async def test_what_was_kept_is_done_and_heard_of(
    opened: Store, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost(opened, monkeypatch, done)
    assert await opened.write(change) == "done"
    assert (await kept(opened), heard) == (True, ["ServiceStarted"])


async def test_what_was_not_kept_is_not_done(opened: Store, heard: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lost(opened, monkeypatch, forgotten)
    with pytest.raises(Busy) as raised:
        await opened.write(change)
    assert raised.value.code != UNKNOWN
    assert (await kept(opened), heard) == (False, [])


async def test_what_is_being_committed_still_is_waited_for(
    postgres_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server comes to it when nobody listens to its answer any more, as where it has waited for its standby."""
    with migrated.postgresql(postgres_cluster) as url, postgres_cluster.linked(url) as (linked, link):
        opened, heard = Store(linked, pool_size=2), []
        opened.bus.subscribe(lambda event: heard.append(event.kind), own=True)

        def under_way(connection: Any) -> None:
            link.hang()
            connection.dbapi_connection.pgconn.send_query(b"COMMIT")
            connection.dbapi_connection.pgconn.flush()
            connection.dbapi_connection.close()
            link.renew()
            threading.Timer(0.5, link.resume).start()

        lost(opened, monkeypatch, under_way)
        assert await opened.write(change) == "done"
        assert (await kept(opened), heard) == (True, ["ServiceStarted"])
        opened.close()


async def test_what_nobody_is_to_hear_of_is_not_looked_up(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lost(opened, monkeypatch, done)
    with pytest.raises(Busy) as raised:
        await opened.write(lambda tx: tx.tokens.add(ApiToken(name="a", digest="a", scopes=[], created_at=0.0)))
    assert (raised.value.code, await kept(opened)) == (UNKNOWN, True)


@pytest.mark.parametrize("was_kept", [True, False], ids=["kept", "not kept"])
async def test_what_nobody_can_look_up_is_heard_of_when_the_database_is_back(
    opened: Store, heard: list[str], monkeypatch: pytest.MonkeyPatch, was_kept: bool
) -> None:
    monkeypatch.setattr("connector.store.engine._LOOK_UP_SECONDS", 0.0)
    lost(opened, monkeypatch, done if was_kept else forgotten)
    with pytest.raises(Busy) as raised:
        await opened.write(change)
    assert (raised.value.code, heard) == (UNKNOWN, [])
    relay = Relay(opened, number=lambda: None)
    await relay.look()
    assert heard == ["ServiceStarted"] * was_kept
    await relay.look()
    assert (await kept(opened), len(heard)) == (was_kept, was_kept)


async def test_what_a_caller_who_leaves_has_changed_is_heard_of(store: Store) -> None:
    begun, go_on = threading.Event(), threading.Event()
    heard = asyncio.Event()
    store.bus.subscribe(lambda _: heard.set())

    def work(tx: Transaction) -> None:
        change(tx)
        begun.set()
        go_on.wait(60)

    asking = asyncio.ensure_future(store.write(work))
    await asyncio.to_thread(begun.wait, 60)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    go_on.set()
    async with asyncio.timeout(60):
        await heard.wait()
