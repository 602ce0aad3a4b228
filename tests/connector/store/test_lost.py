"""A commit whose answer is lost: it is looked up, and what was kept is told to everybody here as ever, once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from connector.audit.log import Sequencer
from connector.audit.signed_note import Signer
from connector.errors import Unavailable
from connector.events import ServiceStarted
from connector.store import UNKNOWN, EventRelay, Store, Transaction
from connector.store.tables import ApiToken
from tests.conftest import DATABASES
from tests.support import migrated, postgres

pytestmark = pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(b"\x01" * 32)
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
    return await store.read(lambda tx: tx.tokens.find_by_name("a") is not None)


async def test_what_was_kept_is_done_and_heard_of(
    opened: Store, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lost(opened, monkeypatch, done)
    assert await opened.write(change) == "done"
    assert (await kept(opened), heard) == (True, ["ServiceStarted"])


async def test_what_was_not_kept_is_not_done(opened: Store, heard: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    lost(opened, monkeypatch, forgotten)
    with pytest.raises(Unavailable) as raised:
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


@pytest.fixture
def forgetful() -> Iterator[tuple[postgres.Cluster, Store]]:
    """A server that can go back to what it holds now, and a store on it."""
    with postgres.cluster() as server, migrated.postgresql(server) as url:
        server.remember()
        made = Store(url, pool_size=2)
        yield server, made
        made.close()


def overtake(url: str, number: int) -> None:
    """Others change something until they have this number of a transaction, which the server gave out before."""
    others, theirs = Store(url, pool_size=1), -1
    while theirs < number:

        def work(tx: Transaction) -> Transaction:
            tx.publish(ServiceStarted(actor="others"))
            return tx

        theirs = asyncio.run(others.write(work)).transaction_id or 0
    others.close()
    assert theirs == number


async def test_a_number_that_somebody_else_has_now_says_nothing_of_what_was_lost(
    forgetful: tuple[postgres.Cluster, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, store = forgetful
    heard: list[str] = []
    store.bus.subscribe(lambda event: heard.append(event.kind), own=True)

    def lost_there(connection: Any) -> None:
        number = connection.execute("SELECT txid_current()").fetchone()[0]
        done(connection)
        server.go_back()
        overtake(store.engine.url.render_as_string(), number)

    lost(store, monkeypatch, lost_there)
    with pytest.raises(Unavailable) as raised:
        await store.write(change)
    assert raised.value.code != UNKNOWN
    assert (await kept(store), heard) == (False, [])


async def test_of_what_a_standby_does_not_know_yet_nobody_says_that_it_was_not_kept(
    forgetful: tuple[postgres.Cluster, Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.store.engine._LOOK_UP_SECONDS", 0.5)
    server, store = forgetful

    def unheard_of(connection: Any) -> None:
        done(connection)
        server.go_back(standby=True)

    lost(store, monkeypatch, unheard_of)
    with pytest.raises(Unavailable) as raised:
        await store.write(change)
    assert raised.value.code == UNKNOWN
    await store.resolve_unknown_commits()
    assert store._doubts
    server.control("promote")
    await store.resolve_unknown_commits()
    assert (await kept(store), store._doubts) == (False, {})


async def test_what_is_in_the_log_already_is_found_there(
    opened: Store, heard: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sequencer = Sequencer(opened, signer=Signer("test", KEY))

    def done_and_numbered(connection: Any) -> None:
        done(connection)
        asyncio.run(sequencer.settle())

    lost(opened, monkeypatch, done_and_numbered)
    assert await opened.write(change) == "done"
    assert await opened.read(lambda tx: (tx.audit.list_pending(1), tx.audit.read_size())) == ([], 1)
    assert heard == ["ServiceStarted"]


async def test_what_nobody_is_to_hear_of_is_not_looked_up(opened: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lost(opened, monkeypatch, done)
    with pytest.raises(Unavailable) as raised:
        await opened.write(lambda tx: tx.tokens.add(ApiToken(name="a", digest="a", scopes=[], created_at=0.0)))
    assert (raised.value.code, await kept(opened)) == (UNKNOWN, True)


@pytest.mark.parametrize("was_kept", [True, False], ids=["kept", "not kept"])
async def test_what_nobody_can_look_up_is_heard_of_when_the_database_is_back(
    opened: Store, heard: list[str], monkeypatch: pytest.MonkeyPatch, was_kept: bool
) -> None:
    monkeypatch.setattr("connector.store.engine._LOOK_UP_SECONDS", 0.0)
    lost(opened, monkeypatch, done if was_kept else forgotten)
    with pytest.raises(Unavailable) as raised:
        await opened.write(change)
    assert (raised.value.code, heard) == (UNKNOWN, [])
    relay = EventRelay(opened, number=lambda: None)
    await relay.deliver_new()
    assert heard == ["ServiceStarted"] * was_kept
    await relay.deliver_new()
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
