"""Statements that the driver runs: values, columns, errors and objects are as if SQLAlchemy ran them."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from sqlalchemy import ReturnsRows, bindparam, column, delete, func, select, table, text, update
from sqlalchemy.exc import DBAPIError

from connector.errors import Absent, AlreadyExists, Unavailable
from connector.store import Store, Transaction
from connector.store.compiled_statements import CompiledStatement, build_insert
from connector.store.tables import Agreement, AuditPending, AuditTile, GrantState, OpenRead, ReadPlace, core_table
from connector.store.unit_of_work import UnitOfWork
from tests.conftest import DATABASES
from tests.support import migrated

READ, PLACE, TILE, PENDING, GRANT = map(core_table, (OpenRead, ReadPlace, AuditTile, AuditPending, GrantState))
on_postgres = pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")

BODY: dict[str, Any] = {"text": "a 'quoted' % ? :name %(name)s ß 水", "list": [1, 2.5, None, True], "none": None}
BYTES = bytes(range(256)) * 3
NOWHERE = CompiledStatement(select(column("a")).select_from(table("no_such_table")))
LATE = CompiledStatement(select(func.pg_sleep(60)))


def read_row(name: str, **more: Any) -> OpenRead:
    return OpenRead(**({"id": name, "instance": "i", "body": BODY, "rows": 2**40, "bytes": 0} | more))


def fill(tx: Transaction) -> None:
    """What the statements below find."""
    for name in "abc":
        tx.session.add(read_row(name))
        tx.session.add(ReadPlace(read_id=name, agreement_id="g", until=1.0))
    tx.session.add(AuditTile(level=0, n=0, data=BYTES))
    tx.session.add(GrantState(agreement_id="g", revoked_at=None, reason=""))
    for name, final in (("final", True), ("open", False)):
        about = {"role": "provider", "negotiation_id": name, "dataset_id": name, "provider": "p", "consumer": "c"}
        rest = {"address": "", "policy": BODY, "digest": "", "signed_at": 1.0, "finalized": final, "ended_at": None}
        tx.session.add(Agreement(id=name, **about | rest))


def _of(rows: type[Any], *names: str) -> list[Any]:
    return [core_table(rows).c[name] for name in names]


def _in(found: Any) -> Any:
    return found.in_(bindparam("names", expanding=True))


# A statement that finds or returns rows, its values, and those rows.
FINDING: dict[str, tuple[ReturnsRows, dict[str, Any], list[tuple[Any, ...]]]] = {
    "JSON, a number of 64 bits, a text": (
        select(*_of(OpenRead, "body", "rows", "instance")).where(READ.c.id == bindparam("read")),
        {"read": "a"},
        [(BODY, 2**40, "i")],
    ),
    "truth, nothing, a fraction": (
        select(*_of(Agreement, "finalized", "ended_at", "signed_at")).order_by(Agreement.id),
        {},
        [(True, None, 1.0), (False, None, 1.0)],
    ),
    "bytes": (select(TILE.c.data).where(TILE.c.level == bindparam("level")), {"level": 0}, [(BYTES,)]),
    "no row": (select(TILE.c.data).where(TILE.c.level == bindparam("level")), {"level": 9}, []),
    "a value of the statement's own, twice": (
        select(GRANT.c.queries + 7, GRANT.c.rows + 8).where(GRANT.c.agreement_id == "g"),
        {},
        [(7, 8)],
    ),
    "a value twice, and out of the order of their names": (
        select(READ.c.id)
        .where(READ.c.instance == bindparam("z"), READ.c.id > bindparam("a"), READ.c.id != bindparam("z"))
        .order_by(READ.c.id)
        .limit(bindparam("most", type_=GRANT.c.rows.type)),
        {"a": "a", "z": "i", "most": 1},
        [("b",)],
    ),
    "a list of two, beside a value of the statement's own": (
        select(READ.c.id, READ.c.body).where(_in(READ.c.id), READ.c.instance == "i").order_by(READ.c.id),
        {"names": ["c", "a", "x"]},
        [("a", BODY), ("c", BODY)],
    ),
    "a list of one": (select(READ.c.id).where(_in(READ.c.id)), {"names": ["b"]}, [("b",)]),
    "a list of none": (select(READ.c.id).where(_in(READ.c.id)), {"names": []}, []),
    "what a change returns, with values that are written in another way": (
        update(READ).where(_in(READ.c.id)).values(body=bindparam("told")).returning(READ.c.id, READ.c.body),
        {"names": ["b"], "told": {"as": "text"}},
        [("b", {"as": "text"})],
    ),
}

# A statement that changes rows, its values, and how many it changes.
CHANGING: dict[str, tuple[ReturnsRows, dict[str, Any], int]] = {
    "one": (update(READ).where(READ.c.id == bindparam("a")).values(rows=bindparam("b")), {"a": "a", "b": 1}, 1),
    "all": (delete(READ), {}, 3),
    "none": (delete(READ).where(READ.c.id == bindparam("read")), {"read": "x"}, 0),
    "of a list": (delete(PLACE).where(_in(PLACE.c.read_id)), {"names": ["a", "b", "x"]}, 2),
}


def unit(tx: Transaction) -> UnitOfWork:
    return UnitOfWork(tx.session.connection())


@pytest.mark.parametrize("case", FINDING)
async def test_columns_are_what_sqlalchemy_makes_of_them(store: Store, case: str) -> None:
    statement, values, expected = FINDING[case]
    prepared = CompiledStatement(statement)

    def work(tx: Transaction) -> tuple[list[tuple[Any, ...]], ...]:
        theirs = [tuple(row) for row in tx.session.connection().execute(statement, values)]  # type: ignore[call-overload]  # any of them can be executed
        ours = [[tuple(row) for row in unit(tx).fetch(prepared, **values)] for _ in range(2)]
        return theirs, *ours

    await store.write(fill)
    for found in await store.read(work):
        assert found == expected
        assert [list(map(type, row)) for row in found] == [list(map(type, row)) for row in expected]


@pytest.mark.parametrize("case", CHANGING)
async def test_rows_that_were_changed_are_counted(store: Store, case: str) -> None:
    statement, values, expected = CHANGING[case]
    await store.write(fill)
    assert await store.read(lambda tx: unit(tx).execute(CompiledStatement(statement), **values)) == expected


@pytest.mark.parametrize("names", [("a",), ("a", "b"), tuple(map(str, range(300)))], ids=len)
async def test_rows_are_added_as_sqlalchemy_adds_them(store: Store, names: Sequence[str]) -> None:
    opening = build_insert(READ, "id", "instance", "body", "rows", "bytes")
    rows = [{"id": name, "instance": "i", "body": BODY, "rows": 2**40, "bytes": 0} for name in names]
    await store.write(lambda tx: unit(tx).execute_many(opening, rows))

    def found(tx: Transaction) -> list[tuple[Any, ...]]:
        return [(row.id, row.instance, row.body, row.rows, row.bytes) for row in tx.reads.list_open()]

    assert sorted(await store.read(found)) == sorted((name, "i", BODY, 2**40, 0) for name in names)


async def test_a_key_that_the_database_counts_is_left_to_it(store: Store) -> None:
    rows, statement = [{"ts": 1.0, "body": BODY, "origin": "o"}] * 2, build_insert(PENDING, "ts", "body", "origin")
    await store.write(lambda tx: unit(tx).execute_many(statement, rows))
    assert "RETURNING" not in statement.for_dialect(store.engine.dialect).bind_values(rows[0])[0]  # nobody looks at it
    found = await store.read(lambda tx: tx.audit.list_pending(10))
    assert [(row.id, *row[1:]) for row in found] == [(1, 1.0, BODY, "o"), (2, 1.0, BODY, "o")]


def test_a_default_that_only_sqlalchemy_knows_is_not_left_out(sqlite_store: Store) -> None:
    with pytest.raises(AssertionError, match="default"):
        build_insert(READ, "id", "instance", "body").for_dialect(sqlite_store.engine.dialect)


async def test_what_was_changed_of_objects_counts(store: Store) -> None:
    def work(tx: Transaction) -> tuple[bool, bool, bool]:
        before = tx.reads.close("a", instance="i")
        tx.session.add(read_row("a"))
        return before, tx.reads.close("a", instance="i"), tx.reads.close("a", instance="i")

    assert await store.write(work) == (False, True, False)


async def test_a_unit_that_asks_for_no_object_has_no_session(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it costs is most of what such a unit would."""
    await store.write(fill)
    monkeypatch.setattr("connector.store.unit_of_work.Session", None)
    assert await store.write(lambda tx: tx.reads.close("a", instance="i"))
    assert await store.read(lambda tx: tx.agreements.read_end_reasons(["g", "x"])) == {"x": ""}


# Errors.


async def together(store: Store, *works: Callable[[Transaction], object]) -> list[object]:
    """What becomes of units that arrive while another one is committed: on SQLite they share a commit."""
    begun, all_there = threading.Event(), threading.Event()

    def wait(_: Transaction) -> None:
        begun.set()
        all_there.wait(60)

    first = asyncio.ensure_future(store.write(wait))
    await asyncio.to_thread(begun.wait, 60)
    others = [asyncio.ensure_future(store.write(work)) for work in works]
    await asyncio.sleep(0)  # they are submitted
    all_there.set()
    await first
    return await asyncio.gather(*others, return_exceptions=True)


def opened(name: str) -> Callable[[Transaction], str]:
    def work(tx: Transaction) -> str:
        tx.reads.add(name, instance="i", body={})
        return name

    return work


def as_object(name: str) -> Callable[[Transaction], str]:
    def work(tx: Transaction) -> str:
        tx.session.add(read_row(name))
        tx.session.flush()
        return name

    return work


async def names(store: Store) -> set[str]:
    return {row.id for row in await store.read(lambda tx: tx.reads.list_open())}


@pytest.mark.parametrize("again", [opened, as_object])
async def test_what_is_there_already_is_refused_by_name(
    store: Store, again: Callable[[str], Callable[[Transaction], str]]
) -> None:
    await store.write(opened("a"))
    with pytest.raises(AlreadyExists):
        await store.write(again("a"))
    found = await together(store, opened("b"), as_object("c"), again("a"), as_object("d"), opened("e"))
    assert [one if isinstance(one, str) else type(one) for one in found] == ["b", "c", AlreadyExists, "d", "e"]
    assert await names(store) == set("abcde")


async def test_a_unit_that_fails_is_undone_whole_and_its_neighbours_are_not(store: Store) -> None:
    def fails(work: Callable[[Transaction], str]) -> Callable[[Transaction], None]:
        def whole(tx: Transaction) -> None:
            work(tx)
            raise Absent("no")

        return whole

    found = await together(store, opened("a"), fails(opened("b")), as_object("c"), fails(as_object("d")), opened("e"))
    assert [one if isinstance(one, str) else type(one) for one in found] == ["a", Absent, "c", Absent, "e"]
    assert await names(store) == set("ace")


async def test_a_database_that_does_not_answer_is_busy_and_says_why(store: Store) -> None:
    statement, why = (NOWHERE, "OperationalError") if store.is_sqlite else (LATE, "QueryCanceled")

    def asks(tx: Transaction) -> None:
        if not store.is_sqlite:
            tx.session.execute(text("SET LOCAL statement_timeout = 10"))
        unit(tx).fetch(statement)

    found = [*await asyncio.gather(store.read(asks), store.write(asks), return_exceptions=True)]
    found.append((await together(store, opened("a"), asks, opened("b")))[1])
    assert [one.private if isinstance(one, Unavailable) else one for one in found] == [why] * 3
    assert await names(store) == {"a", "b"}


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_a_file_that_another_process_writes_is_busy_and_is_written_afterwards(
    sqlite_store: Store, many: bool
) -> None:
    store = sqlite_store
    await store.write(lambda tx: tx.session.execute(text("PRAGMA busy_timeout = 10")))  # on the connection that writes
    other = sqlite3.connect(store.engine.url.database or "", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    asked = [store.write(opened(name)) for name in "abc"[: 3 if many else 1]]
    refused = await asyncio.gather(*asked, return_exceptions=True)
    other.execute("ROLLBACK")
    other.close()
    assert [one.private for one in refused if isinstance(one, Unavailable)] == ["OperationalError"] * len(refused)
    await store.write(opened("d"))
    assert await names(store) == {"d"}


async def test_nobody_believes_in_a_commit_that_the_database_has_undone(sqlite_store: Store) -> None:
    """A full disk, for one, ends the whole transaction under those that share it."""

    def undone(tx: Transaction) -> None:
        tx.session.connection().exec_driver_sql("ROLLBACK")
        raise Absent("no")

    found = await together(sqlite_store, opened("a"), undone, opened("c"))
    assert list(map(type, found)) == [Unavailable, Unavailable, Unavailable]
    assert await names(sqlite_store) == set()
    await sqlite_store.write(opened("d"))
    assert await names(sqlite_store) == {"d"}


async def test_a_connection_on_which_something_failed_is_not_simply_used_again(
    sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in its transaction still, where the database could not undo it."""
    undo, left = sqlite_store.engine.dialect.do_rollback, ["fails once"]

    def rollback(connection: Any) -> None:
        if left:
            raise sqlite3.OperationalError(left.pop())
        undo(connection)

    def fails(tx: Transaction) -> None:
        tx.reads.add("a", instance="i", body={})
        raise Absent("no")

    await sqlite_store.write(opened("b"))
    monkeypatch.setattr(sqlite_store.engine.dialect, "do_rollback", rollback)
    with pytest.raises(Unavailable):
        await sqlite_store.write(fails)
    await sqlite_store.write(opened("c"))
    assert await names(sqlite_store) == {"b", "c"}


@pytest.fixture
def on_server(postgres_cluster: Any) -> Iterator[Store]:
    with migrated.postgresql(postgres_cluster) as url:
        opened = Store(url, pool_size=2)
        yield opened
        opened.close()


@on_postgres
async def test_two_that_collide_are_tried_again(on_server: Store) -> None:
    """Each holds the grant that the other one wants next: the database ends one of them, once."""
    await on_server.write(lambda tx: [tx.session.add(GrantState(agreement_id=name, revoked_at=None)) for name in "ab"])
    both, attempts = threading.Barrier(2), []

    def work(tx: Transaction, *order: str) -> None:
        attempts.append(order)
        first = len(attempts) <= 2
        for name in order:
            assert tx.agreements.count_use(name, day=1, most=None, most_today=None)
            if first and name == order[0]:
                both.wait(60)

    await asyncio.gather(on_server.write(lambda tx: work(tx, "a", "b")), on_server.write(lambda tx: work(tx, "b", "a")))
    assert len(attempts) == 3
    rows = await on_server.read(lambda tx: [tx.agreements.get_grant(name) for name in "ab"])
    assert [row.queries for row in rows if row is not None] == [2, 2]


@on_postgres
async def test_a_connection_that_is_cut_is_busy_by_the_name_of_its_end_and_not_used_again(on_server: Store) -> None:
    cut = CompiledStatement(select(func.pg_terminate_backend(func.pg_backend_pid())))

    def work(tx: Transaction) -> None:
        unit(tx).fetch(cut)

    for ask in (on_server.read, on_server.write):
        with pytest.raises(Unavailable) as refused:
            await ask(work)
        assert refused.value.private == "AdminShutdown"
        await on_server.write(opened(ask.__name__))
    assert await names(on_server) == {"read", "write"}


async def test_a_unit_lets_go_of_its_statements_before_anybody_hears_of_its_end(sqlite_store: Store) -> None:
    """Dropped later, in another thread, they would be reset while the thread that writes runs them again."""

    def work(tx: Transaction) -> Transaction:
        assert not tx.reads.close("a", instance="i")
        return tx

    over = await sqlite_store.write(work)
    with pytest.raises(DBAPIError, match="closed cursor"):
        over.reads.close("a", instance="i")
