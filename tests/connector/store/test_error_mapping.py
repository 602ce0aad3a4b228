"""A database that fails: our own log has why, once for each cause, and nothing of what was asked."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import event, make_url, text
from sqlalchemy.exc import DataError, OperationalError
from structlog.testing import capture_logs

from connector.errors import Invalid, Unavailable
from connector.infra.database import database
from connector.infra.lock_file import acquire_lock
from connector.settings import Settings
from connector.store import UNKNOWN, Store, Transaction
from connector.store.error_mapping import ErrorMapper, describe_cause
from connector.store.migrate import upgrade
from tests.conftest import DATABASES
from tests.support import migrated

on_postgres = pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
FULL = OperationalError("INSERT", None, psycopg.errors.DiskFull("could not extend file"))


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FULL, "DiskFull 53100: could not extend file"),
        (psycopg.OperationalError("too many\n  clients"), "OperationalError: too many clients"),
        (psycopg.OperationalError("x" * 9999), f"OperationalError: {'x' * 482}"),
        (
            OperationalError("SELECT", None, sqlite3.OperationalError("disk I/O error")),
            "OperationalError: disk I/O error",
        ),
        (
            DataError("SELECT", None, psycopg.errors.InvalidTextRepresentation("no: 'a'")),
            "InvalidTextRepresentation 22P02",
        ),
        (TimeoutError("QueuePool"), "TimeoutError"),
    ],
)
def test_a_cause_is_the_databases_word_on_itself(error: Exception, cause: str) -> None:
    assert describe_cause(error) == cause


def test_a_cause_is_told_once_until_it_has_not_come_for_a_minute() -> None:
    now = [0.0]
    failures = ErrorMapper(clock=lambda: now[0])
    other = OperationalError("SELECT", None, psycopg.OperationalError("gone"))
    with capture_logs() as logs:
        for moment, error in ((0, FULL), (1, other), (59, FULL), (118, FULL), (179, FULL), (180, other)):
            now[0] = moment
            assert isinstance(failures.map_error(error), Unavailable)
    assert [line["why"].split()[0] for line in logs] == [
        "DiskFull",
        "OperationalError:",
        "DiskFull",
        "OperationalError:",
    ]


@pytest.mark.parametrize(("pragma", "said"), [("max_page_count=8", "disk is full"), ("query_only=ON", "readonly")])
def test_a_database_that_takes_no_schema_says_why(
    tmp_path: Path, pragma: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A start on a full disk ended with `failed unexpectedly (OperationalError)`."""
    opened = database.open_engine

    def small(url: str, **more: Any) -> Any:
        engine = opened(url, **more)
        event.listen(engine, "connect", lambda dbapi, _: dbapi.execute(f"PRAGMA {pragma}"))
        return engine

    monkeypatch.setattr(database, "open_engine", small)
    with pytest.raises(Unavailable, match=said) as raised:
        upgrade(f"sqlite:///{tmp_path}/c.db")
    assert "nothing was changed" in raised.value.message


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://u@127.0.0.1:1/d?password=canary",
        "postgresql+psycopg://u:p@127.0.0.1:1/d?sslpassword=canary",
        "postgresql+psycopg://u:p@canary@127.0.0.1:1/d",
    ],
)
def test_a_database_that_cannot_be_opened_is_named_without_a_password(url: str) -> None:
    """What stands behind the `?` of its address was printed at a start while it was away."""
    with pytest.raises(
        Unavailable, match=r"the database postgresql\+psycopg://\*\*\*@127\.0\.0\.1:1/d cannot be opened"
    ) as raised:
        upgrade(url)
    assert "canary" not in raised.value.message


@pytest.mark.parametrize("rest", ["u:p@ca:nary@127.0.0.1:1/d", "u:p@canary/x@127.0.0.1:1/d", "u:p@canary@127.0.0.1/d"])
def test_an_address_of_a_database_with_the_end_of_a_password_in_its_host_is_refused_at_once(rest: str) -> None:
    """What followed the first `@` was shown as the host, or a start ended with `failed unexpectedly (ValueError)`."""
    with pytest.raises(ValidationError) as refused:
        Settings(name="north", database_url=f"postgresql+psycopg://{rest}")
    assert "got an unreadable host or port" in (said := refused.value.errors()[0]["msg"])
    assert "nary" not in said
    for good in ("u:p@h:5432/d", "h/d", "u@/d?host=/run/a", "u:p%40x@[::1]:5432/d", "u:a:b@h", "/d", "u:p@h?sslmode=a"):
        Settings(name="north", database_url=f"postgresql+psycopg://{good}")


async def test_a_database_that_may_only_be_read_is_told_as_that(tmp_path: Path) -> None:
    """Its operator was told to try again in a moment."""
    opened = Store(migrated.sqlite(tmp_path / "c.db"), pool_size=1)
    event.listen(opened.engine, "connect", lambda dbapi, _: dbapi.execute("PRAGMA query_only=ON"))
    opened.engine.dispose()
    try:
        with pytest.raises(Unavailable, match="expected a writable database, got one that is read only"):
            await opened.write(lambda tx: tx.session.execute(text("DELETE FROM offer")))
    finally:
        opened.close()


@on_postgres
async def test_the_details_are_nothing_for_the_log(postgres_cluster: Any) -> None:
    with migrated.postgresql(postgres_cluster) as url, capture_logs() as logs:
        opened = Store(url, pool_size=1)
        for code in ("53200", "22000"):
            raises = f"DO $$BEGIN RAISE 'of %', 'a' USING ERRCODE = '{code}', DETAIL = 'b'; END$$"
            with pytest.raises(Unavailable):
                await opened.write(lambda tx, raises=raises: tx.session.execute(text(raises)))
        opened.close()
    assert [line["why"] for line in logs] == ["OutOfMemory 53200: of a", "DataException 22000"]


@on_postgres
@pytest.mark.parametrize("name", ["\0", "urn:uuid:1\0"])
async def test_a_name_that_no_database_has_is_the_askers_mistake(postgres_cluster: Any, name: str) -> None:
    """As an id in an address; whoever asks so has nobody believe that the database is away."""
    with migrated.postgresql(postgres_cluster) as url, capture_logs() as logs:
        opened = Store(url, pool_size=1)
        with pytest.raises(Invalid, match="NUL"):
            await opened.read(lambda tx: tx.reads.has(name, consumer="did:web:lab.example"))
        with pytest.raises(Invalid, match="NUL"):
            await opened.write(lambda tx: tx.transfers.get(name))
        opened.close()
    assert not logs


@on_postgres
async def test_who_has_no_connection_left_reads_so_in_the_log(postgres_cluster: Any) -> None:
    with migrated.postgresql(postgres_cluster) as url, capture_logs() as logs:
        with psycopg.connect(make_url(url).set(drivername="postgresql").render_as_string()) as owner:
            owner.execute("CREATE ROLE modest LOGIN CONNECTION LIMIT 1; GRANT SELECT ON api_token TO modest")
        opened = Store(make_url(url).set(username="modest").render_as_string(), pool_size=4)
        begun, go_on = threading.Event(), threading.Event()

        def hold(tx: Transaction) -> int:
            begun.set()
            go_on.wait(60)
            return tx.tokens.count()

        holding = asyncio.ensure_future(opened.read(hold))
        await asyncio.to_thread(begun.wait, 60)
        asked = [opened.read(lambda tx: tx.tokens.count()) for _ in range(3)]
        asked += [opened.write(lambda tx: tx.tokens.count()) for _ in range(3)]
        refused = await asyncio.gather(*asked, return_exceptions=True)
        go_on.set()
        assert await holding == 0
        opened.close()
    assert [type(one) for one in refused] == [Unavailable] * 6
    told = [line["why"] for line in logs if line["event"] == "database_fails"]
    assert [one.partition("FATAL:")[2] for one in told] == [' too many connections for role "modest"']


async def test_a_writer_that_fails_answers_whoever_waits_and_goes_on(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Exception:
        raise RuntimeError("not foreseen")

    begun, go_on = threading.Event(), threading.Event()

    def hold(tx: Transaction) -> None:
        begun.set()
        go_on.wait(60)
        raise ValueError("whatever came of this")

    with monkeypatch.context() as patch:
        patch.setattr(ErrorMapper, "map_error", fail)
        asked = [asyncio.ensure_future(sqlite_store.write(hold))]
        await asyncio.to_thread(begun.wait, 60)
        asked += [asyncio.ensure_future(sqlite_store.write(hold)) for _ in range(3)]  # one group
        await asyncio.sleep(0)
        go_on.set()
        told = await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 60)
    assert [getattr(one, "code", one) for one in told] == [UNKNOWN] * 4
    assert await sqlite_store.write(lambda tx: tx.tokens.count()) == 0
    await sqlite_store.check_writable()


async def test_who_has_no_writer_left_is_not_ready(sqlite_store: Store) -> None:
    writer: Any = sqlite_store._writer
    writer._waiting.put(None)  # as if it had ended by itself
    writer._thread.join(60)
    for asked in (sqlite_store.check_writable(), sqlite_store.write(lambda tx: tx.tokens.count())):
        with pytest.raises(Unavailable, match="restart the connector"):
            await asyncio.wait_for(asked, 60)


def _modes(file: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in file.parent.glob(f"{file.name}*")}


async def test_a_database_in_a_file_is_for_our_eyes_only(tmp_path: Path) -> None:
    """It has tokens, and beside the catalogue's in a folder of before everybody on the machine could read it."""
    before = tmp_path / "before.db"
    before.touch(mode=0o640)  # its operator lets a group read it, as for backups
    for file, mode in ((tmp_path / "c.db", 0o600), (before, 0o640)):
        upgrade(f"sqlite:///{file}")
        opened = Store(f"sqlite:///{file}", pool_size=1)
        try:
            await opened.write(lambda tx: tx.session.execute(text("DELETE FROM offer")))
            assert _modes(file) == {mode}
        finally:
            opened.close()


@pytest.mark.parametrize("url", ["sqlite:////proc/none/c.db", "sqlite:////proc/c.db"])
def test_a_folder_that_takes_no_database_is_named_with_what_to_do(url: str) -> None:
    with pytest.raises(Unavailable, match=r"HANSE_DATABASE_URL"):
        upgrade(url)
    lock = Path(url.removeprefix("sqlite:///") + ".lock")
    with pytest.raises(Invalid, match=r"HANSE_DATABASE_URL: /proc/.* cannot be written"):
        acquire_lock(lock, "HANSE_DATABASE_URL", "give this one a file")


def test_a_lock_that_cannot_even_be_looked_for_is_named_with_what_to_do(tmp_path: Path) -> None:
    """As in a folder that others keep for themselves; a name that is too long stands for it, as root looks anywhere."""
    with pytest.raises(Invalid, match=r"HANSE_DATABASE_URL: .* cannot be written"):
        acquire_lock(tmp_path / ("c" * 300), "HANSE_DATABASE_URL", "give this one a file")
