"""PostgreSQL that goes away without a word: whoever asks is told within seconds, and all goes on when it is back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from connector import app
from connector.errors import Unavailable
from connector.infra.database import postgres_options
from connector.store import Store, Transaction
from connector.store.tables import ApiToken, GrantState
from tests.conftest import DATABASES
from tests.support import migrated
from tests.support.link import Link

pytestmark = pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
PATIENCE = 60


@pytest.fixture
def away(postgres_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Store, Link]]:
    """A store on a database, and the link between them; who waits for it loses patience soon."""
    monkeypatch.setattr(postgres_options, "ANSWER_SECONDS", 0.5)
    monkeypatch.setitem(postgres_options.WATCHED, "connect_timeout", "2")  # psycopg takes no less
    with migrated.postgresql(postgres_cluster) as url, postgres_cluster.linked(url) as (linked, link):
        opened = Store(linked, pool_size=2)
        yield opened, link
        link.resume()
        opened.close()


def add(name: str) -> Any:
    def work(tx: Transaction) -> None:
        tx.tokens.add(ApiToken(name=name, digest=name, scopes=[], created_at=0.0, expires_at=None))

    return work


async def test_whoever_asks_a_database_that_says_nothing_more_is_told_so(away: tuple[Store, Link]) -> None:
    store, link = away
    await asyncio.gather(store.write(add("before")), store.read(lambda tx: tx.tokens.count()))
    link.hang()
    async with asyncio.timeout(PATIENCE):
        asked = (store.write(add("lost")), store.read(lambda tx: tx.tokens.count()))
        told = await asyncio.gather(*asked, *(store.write(add(f"lost{i}")) for i in range(4)), return_exceptions=True)
    assert [type(one) for one in told] == [Unavailable] * 6
    link.resume()
    await store.write(add("after"))
    assert await store.read(lambda tx: tx.tokens.count()) == 2


async def test_whoever_asks_in_the_middle_is_told_so_and_nothing_is_kept(away: tuple[Store, Link]) -> None:
    store, link = away

    def work(tx: Transaction) -> None:
        add("half")(tx)
        tx.session.flush()
        link.hang()
        tx.tokens.count()

    async with asyncio.timeout(PATIENCE):
        with pytest.raises(Unavailable, match="does not answer"):
            await store.write(work)
    link.resume()
    assert await store.read(lambda tx: tx.tokens.find_by_name("half")) is None


async def test_a_statement_that_nobody_waits_for_any_more_is_over_at_the_server_too(away: tuple[Store, Link]) -> None:
    """Each of them has a process there: asked again and again, they would be all that it has."""
    store, _ = away
    long = text("SELECT pg_sleep(600)")
    running = text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep%' AND state = 'active'")
    with pytest.raises(Unavailable, match="does not answer"):
        await store.read(lambda tx: tx.session.execute(long))
    async with asyncio.timeout(PATIENCE):
        while await store.read(lambda tx: tx.session.scalar(running)):
            await asyncio.sleep(0.1)


async def test_what_a_process_that_is_gone_has_locked_is_the_others_after_a_while(
    postgres_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_options, "ANSWER_SECONDS", 0.5)
    monkeypatch.setitem(postgres_options.SESSION, "lock_timeout", "200")
    monkeypatch.setitem(postgres_options.SESSION, "idle_in_transaction_session_timeout", "2000")

    def hold(tx: Transaction) -> None:
        assert tx.agreements.lock_grant("g", to_change=True) is not None

    with migrated.postgresql(postgres_cluster) as url, postgres_cluster.linked(url) as (linked, link):
        gone, here = Store(linked, pool_size=1), Store(url, pool_size=1)
        await here.write(lambda tx: tx.agreements.add(GrantState(agreement_id="g", revoked_at=None)))

        def vanish(tx: Transaction) -> None:
            hold(tx)
            link.hang()
            tx.tokens.count()

        async with asyncio.timeout(PATIENCE):
            with pytest.raises(Unavailable):
                await gone.write(vanish)
            with pytest.raises(Unavailable):
                await here.write(hold)
            while True:
                with suppress(Unavailable):
                    await here.write(hold)
                    break
        link.resume()
        gone.close()
        here.close()


async def test_connections_that_stay_mute_are_in_nobodys_way(away: tuple[Store, Link]) -> None:
    store, link = away
    await asyncio.gather(*(store.write(add(f"before{i}")) for i in range(4)))
    link.hang()
    link.renew()
    async with asyncio.timeout(PATIENCE):
        while True:
            with suppress(Unavailable):
                await store.write(add("after"))
                break


@pytest.mark.parametrize(
    ("said", "holds"), [("", "10000"), ("?tcp_user_timeout=777", "777")], ids=["ours", "the URL's"]
)
def test_a_connection_over_a_network_is_watched(postgres_cluster: Any, said: str, holds: str) -> None:
    with migrated.postgresql(postgres_cluster) as url, postgres_cluster.linked(url) as (linked, _):
        opened = Store(linked + said, pool_size=1)
        with opened.engine.connect() as connection:
            found: Any = connection.connection.dbapi_connection
            told = found.info.get_parameters()
        opened.close()
    assert told["tcp_user_timeout"] == holds
    assert (told["keepalives_idle"], told["connect_timeout"]) == ("5", "5")


async def test_connections_that_nobody_uses_are_the_others_after_a_while(
    postgres_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert int(postgres_options.SESSION["idle_session_timeout"]) <= 60_000
    monkeypatch.setitem(postgres_options.SESSION, "idle_session_timeout", "2000")
    with migrated.postgresql(postgres_cluster) as url:
        opened = Store(url, pool_size=8)
        many = threading.Barrier(8)
        there = text("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")

        async def all_at_once() -> list[int]:
            def work(tx: Transaction) -> int:
                many.wait(PATIENCE)
                return tx.tokens.count()

            return await asyncio.gather(*(opened.read(work) for _ in range(8)))

        assert await all_at_once() == [0] * 8
        async with asyncio.timeout(PATIENCE):
            while await opened.read(lambda tx: tx.session.scalar(there)) != 1:
                await asyncio.sleep(0.1)
        assert await all_at_once() == [0] * 8
        opened.close()


async def ready(store: Store) -> int:
    """What /health/ready of a process with this store answers."""
    parts: Any = SimpleNamespace(store=store, sequencer=SimpleNamespace(problem=""))
    asked = FastAPI()
    asked.include_router(app._health(parts))
    async with asyncio.timeout(PATIENCE):
        async with httpx2.AsyncClient(transport=httpx2.ASGITransport(asked), base_url="http://us") as client:
            return (await client.get("/health/ready")).status_code


async def test_who_asks_for_health_is_told_while_the_database_says_nothing(away: tuple[Store, Link]) -> None:
    store, link = away
    assert await ready(store) == 200
    link.hang()
    assert await ready(store) == 503
    link.resume()
    async with asyncio.timeout(PATIENCE):
        while await ready(store) != 200:
            await asyncio.sleep(0.05)


async def test_changes_that_wait_for_a_lock_make_nobody_unready(away: tuple[Store, Link]) -> None:
    store, _ = away
    held, over = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        tx.agreements.lock_grant("hot", to_change=True)
        held.set()
        over.wait(PATIENCE)

    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="hot", revoked_at=None)))
    first = asyncio.ensure_future(store.write(hold))
    await asyncio.to_thread(held.wait, PATIENCE)
    others = [asyncio.ensure_future(store.write(hold)) for _ in range(20)]  # 0.5 s each before they are told
    try:
        assert await ready(store) == 200
        assert not others[-1].done()
    finally:
        over.set()
        await asyncio.gather(first, *others, return_exceptions=True)


async def test_who_asks_for_health_is_told_where_the_database_takes_no_changes(away: tuple[Store, Link]) -> None:
    """As a standby does, or a server that was set so as its disk is full."""
    store, _ = away
    assert await ready(store) == 200
    name = store.engine.url.database
    await store.write(
        lambda tx: tx.session.execute(text(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on'))
    )
    store.engine.dispose()
    assert await store.read(lambda tx: tx.tokens.count()) == 0
    assert await ready(store) == 503
