"""The store on both databases: commits before it returns, undoes whole units, orders and leases the outbox."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import warnings
import weakref
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError

from connector.errors import Absent, Unavailable
from connector.events import Event, ServiceStarted
from connector.infra.database import database
from connector.infra.database.database import open_engine
from connector.outbox.delivery_classes import FullClasses
from connector.store import Store, Transaction
from connector.store.migrate import upgrade
from connector.store.queries import noised_answers
from connector.store.tables import (
    Agreement,
    ApiToken,
    GrantState,
    Negotiation,
    Offer,
    Outbox,
    RegisteredDataset,
    Transfer,
)
from tests.conftest import DATABASES
from tests.support import migrated
from tests.support.waiting import until


def token(name: str) -> ApiToken:
    return ApiToken(name=name, digest=f"digest of {name}", scopes=["read"], created_at=0.0, expires_at=None)


def message(process: str, due_at: float = 0.0) -> Outbox:
    return Outbox(
        process=process,
        kind="negotiation",
        address="https://peer",
        path="/x",
        message={},
        due_at=due_at,
        created_at=0.0,
    )


async def test_what_was_written_can_be_read(store: Store) -> None:
    await store.write(lambda tx: tx.tokens.add(token("a")))
    assert (await store.read(lambda tx: tx.tokens.find_by_name("a"))) is not None


def test_a_commit_on_sqlite_is_on_the_disk(tmp_path: Path) -> None:
    """As each connection is opened; the tests' own then go without (tests/conftest.py)."""
    engine = open_engine(f"sqlite:///{tmp_path / 'store.db'}", pool_size=1)
    found: list[Any] = []
    event.listen(engine, "connect", lambda one, _: found.append(one.execute("PRAGMA synchronous").fetchone()))
    engine.connect().close()
    engine.dispose()
    assert found == [(2,)]  # FULL


async def test_who_reads_sees_one_state_of_the_database_whatever_is_committed_meanwhile(store: Store) -> None:
    looked, committed = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def look(tx: Transaction) -> tuple[int, int]:
        first = tx.tokens.count()
        loop.call_soon_threadsafe(looked.set)
        assert committed.wait(60)
        return first, tx.tokens.count()

    reading = asyncio.ensure_future(store.read(look))
    await looked.wait()
    await store.write(lambda tx: tx.tokens.add(token("a")))
    committed.set()
    assert await reading == (0, 0)
    assert await store.read(lambda tx: tx.tokens.count()) == 1


async def test_an_exception_undoes_the_whole_unit_and_its_events(store: Store) -> None:
    heard: list[Event] = []
    store.bus.subscribe(heard.append)

    def fails(tx: Transaction) -> None:
        tx.tokens.add(token("a"))
        tx.publish(ServiceStarted(actor="test"))
        raise Absent("no")

    with pytest.raises(Absent):
        await store.write(fails)
    assert await store.read(lambda tx: tx.tokens.count()) == 0
    assert await store.read(lambda tx: len(tx.audit.list_pending(10))) == 0
    assert heard == []


async def test_one_failing_unit_does_not_undo_its_neighbours(store: Store) -> None:
    def unit(i: int) -> object:
        def work(tx: Transaction) -> None:
            tx.tokens.add(token(f"t{i}"))
            if i % 3 == 0:
                raise Absent("every third fails")

        return store.write(work)

    results = await asyncio.gather(*(unit(i) for i in range(30)), return_exceptions=True)  # type: ignore[call-overload]  # coroutines
    assert sum(isinstance(result, Absent) for result in results) == 10
    assert await store.read(lambda tx: tx.tokens.count()) == 20


async def test_events_are_stored_with_the_change_and_delivered_after_it(store: Store) -> None:
    heard: list[str] = []
    store.bus.subscribe(lambda event: heard.append(event.kind))
    await store.write(lambda tx: tx.publish(ServiceStarted(actor="test")))
    assert heard == ["ServiceStarted"]
    pending = await store.read(lambda tx: [row.body for row in tx.audit.list_pending(10)])
    assert pending == [{"kind": "ServiceStarted", "actor": "test", "outcome": "ok"}]


async def test_a_read_keeps_nothing(store: Store) -> None:
    await store.read(lambda tx: tx.tokens.add(token("a")))
    assert await store.read(lambda tx: tx.tokens.count()) == 0


UNDER_WAY: dict[str, dict[str, Any]] = {
    "of before": {"agreement": "a"},
    "of before, too": {"agreement": "b"},
    "first": {"agreement": "a", "since": 1.5},
    "of both": {"agreement": "b", "since": 2.5, "more": [{"agreement": "c"}, {"agreement": "a"}]},
    "of another": {"agreement": "ab", "since": 12.0, "more": [{"agreement": "a%"}]},
}


@pytest.mark.parametrize(
    ("asked", "number", "found"),
    [
        ({}, 5, ["of another", "of both", "first", "of before", "of before, too"]),
        ({"limit": 1}, 5, ["of another"]),
        ({"limit": 2, "offset": 3}, 5, ["of before", "of before, too"]),
        ({"agreement": "a"}, 3, ["of both", "first", "of before"]),
        ({"agreement": "a", "limit": 1, "offset": 1}, 3, ["first"]),
        ({"agreement": "a%"}, 1, ["of another"]),
        ({"agreement": "%"}, 0, []),
        ({"agreement": "since"}, 0, []),
    ],
    ids=str,
)
async def test_reads_under_way_are_given_as_they_are_asked_for(
    store: Store, asked: dict[str, Any], number: int, found: list[str]
) -> None:
    def work(tx: Transaction) -> tuple[int, list[str]]:
        for name, body in UNDER_WAY.items():
            tx.reads.add(name, instance="i", body=body)
        told = tx.reads.count(agreement=asked.get("agreement", ""))
        return told, [row.id for row in tx.reads.list_open(**asked)]

    assert await store.write(work) == (number, found)


async def test_the_outbox_gives_each_process_its_oldest_message_and_shares_no_lease(store: Store) -> None:
    def fill(tx: Transaction) -> None:
        for process in ("p1", "p1", "p2", "p3"):
            tx.outbox.send(message(process))

    await store.write(fill)

    def claim(owner: str) -> object:
        return store.write(
            lambda tx: [row.process for row in tx.outbox.claim(owner=owner, now=1.0, lease=30.0, limit=2)]
        )

    first = await claim("a")  # type: ignore[misc]  # a coroutine
    second = await claim("b")  # type: ignore[misc]  # a coroutine
    assert sorted([*first, *second]) == ["p1", "p2", "p3"]


async def test_a_lease_that_ended_can_be_taken_by_somebody_else(store: Store) -> None:
    await store.write(lambda tx: tx.outbox.send(message("p")))
    await store.write(lambda tx: tx.outbox.claim(owner="dead", now=1.0, lease=5.0, limit=1))
    assert await store.write(lambda tx: len(tx.outbox.claim(owner="b", now=5.9, lease=5.0, limit=1))) == 0
    assert await store.write(lambda tx: len(tx.outbox.claim(owner="b", now=6.0, lease=5.0, limit=1))) == 1


async def test_what_is_passed_over_is_neither_claimed_nor_waited_for(store: Store) -> None:
    def fill(tx: Transaction) -> None:
        for process, to in (("p1", "a"), ("p2", "b"), ("p3", "a"), ("p4", "c"), ("p5", "h")):
            row = message(process)
            row.audience, row.due_at = to, float(process[1])
            row.circle, row.host = ("strangers" if to == "c" else "known"), to
            tx.outbox.send(row)

    await store.write(fill)
    full = FullClasses(circles=("strangers",), names=(("known", "a"), ("partners", "b"), ("known", "h")))
    assert await store.read(lambda tx: tx.outbox.read_next_due(but=full)) == 2.0
    claimed = await store.write(lambda tx: tx.outbox.claim(owner="o", now=9.0, lease=30.0, limit=9, but=full))
    assert [row.process for row in claimed] == ["p2"]


async def test_the_id_of_a_message_is_never_given_to_another_one(store: Store) -> None:
    def put(tx: Transaction) -> int:
        row = message("p")
        tx.outbox.send(row)
        tx.session.flush()
        return row.id

    first = await store.write(put)
    await store.write(lambda tx: tx.outbox.drop("p"))
    assert await store.write(put) > first


@pytest.mark.parametrize(("most", "admitted"), [(None, 40), (7, 7), (0, 0)])
async def test_uses_are_never_overspent_by_concurrent_callers(store: Store, most: int | None, admitted: int) -> None:
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="g", revoked_at=None)))
    uses = (store.write(lambda tx: tx.agreements.count_use("g", day=1, most=most, most_today=None)) for _ in range(40))
    assert sum(await asyncio.gather(*uses)) == admitted


async def test_the_daily_limit_starts_anew_the_next_day(store: Store) -> None:
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="g", revoked_at=None)))

    async def use(day: int) -> bool:
        return await store.write(lambda tx: tx.agreements.count_use("g", day=day, most=None, most_today=2))

    assert [await use(day) for day in (1, 1, 1, 2, 2, 2)] == [True, True, False, True, True, False]


async def test_rows_and_bytes_are_reserved_whole_or_not_at_all(store: Store) -> None:
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="g", revoked_at=None)))

    async def take(rows: int) -> bool:
        return await store.write(
            lambda tx: tx.agreements.reserve("g", rows=rows, nbytes=rows * 8, most_rows=100, most_bytes=None)
        )

    assert [await take(rows) for rows in (60, 60, 40, 1)] == [True, False, True, False]


async def test_a_revoked_grant_admits_nothing(store: Store) -> None:
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="g", revoked_at=1.0)))
    assert not await store.write(lambda tx: tx.agreements.count_use("g", day=1, most=None, most_today=None))
    assert not await store.write(
        lambda tx: tx.agreements.reserve("g", rows=1, nbytes=1, most_rows=None, most_bytes=None)
    )


async def test_of_answers_with_noise_the_best_is_kept_and_of_equals_the_first(store: Store) -> None:
    kept = [
        await store.write(
            lambda tx, micro=micro, answer=answer: tx.noised_answers.store(
                "a", "q", micro=micro, answer=answer, now=tx.now
            )  # type: ignore[misc]  # both are told
        )
        for micro, answer in ((5, b"first"), (3, b"worse"), (5, b"equal"), (9, b"better"))
    ]
    assert kept == [b"first", b"first", b"first", b"better"]


async def test_who_was_to_answer_takes_no_answers_place(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noised_answers, "_ANSWERS_MAX", 2)

    def asked(tx: Transaction) -> list[str]:
        for number in range(3):
            tx.noised_answers.record_question("a", f"q{number}", read_id="r", now=2.0 * number)
            tx.noised_answers.store("a", f"q{number}", micro=1, answer=b"x", now=2.0 * number + 1)
        names = [f"q{number}" for number in range(3)]
        assert not any(tx.noised_answers.read_charged_read("a", name) for name in names)
        return [name for name in names if tx.noised_answers.get("a", name)]

    assert await store.write(asked) == ["q1", "q2"]


async def test_who_may_ask_nothing_a_day_asks_nothing(store: Store) -> None:
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="g", revoked_at=None)))
    for day in (0, 1):  # the first is the one that a new grant counts
        assert not await store.write(lambda tx, day=day: tx.agreements.count_use("g", day=day, most=None, most_today=0))  # type: ignore[misc]  # bound for this round


async def test_of_agreements_those_are_told_whose_grant_holds_no_more(store: Store) -> None:
    def granted(tx: Transaction) -> None:
        tx.agreements.add(GrantState(agreement_id="holds", revoked_at=None))
        tx.agreements.add(GrantState(agreement_id="revoked", revoked_at=1.0, reason="enough"))

    await store.write(granted)
    found = await store.read(lambda tx: tx.agreements.read_end_reasons(("revoked", "holds", "gone")))
    assert found == {"revoked": "enough", "gone": ""}
    assert await store.read(lambda tx: tx.agreements.read_end_reasons(())) == {}


def held(tx: Transaction, name: str, *, signed_at: float = 1.0, **more: Any) -> None:
    """An agreement of ours as a consumer."""
    about = {"role": "consumer", "negotiation_id": name, "dataset_id": f"of {name}", "address": "https://peer"}
    rest = {"provider": "p", "consumer": "c", "policy": {}, "digest": "", "finalized": True, "ended_at": None}
    tx.agreements.add(Agreement(id=name, signed_at=signed_at, **about | rest | more))


async def test_what_we_hold_are_those_of_our_newest_agreements_that_are_in_force(store: Store) -> None:
    def signed(tx: Transaction) -> None:
        held(tx, "old", signed_at=1.0)
        held(tx, "older", signed_at=0.5)
        held(tx, "new", signed_at=4.0)
        held(tx, "not final", signed_at=3.0, finalized=False)
        held(tx, "ended", signed_at=2.0, ended_at=5.0)
        held(tx, "ours", role="provider")

    await store.write(signed)
    assert await store.read(lambda tx: tx.agreements.list_readable(limit=4)) == [
        ("new", "p", "of new"),
        ("old", "p", "of old"),
    ]


async def test_an_agreement_is_read_through_the_newest_started_transfer_of_each_purpose_with_an_address(
    store: Store,
) -> None:
    def begun(tx: Transaction, name: str, at: float, **more: Any) -> None:
        about = {"role": "consumer", "counterparty": "p", "address": "", "state": "STARTED", "format": "HttpData-PULL"}
        rest = {"agreement_id": "a", "peer_pid": f"peer of {name}", "data_address": {"endpoint": name}}
        tx.transfers.add(Transfer(id=name, created_at=at, updated_at=at, **about | rest | more))

    def signed(tx: Transaction) -> None:
        for name in ("a", "none", "theirs"):
            held(tx, name)
        held(tx, "ended", ended_at=2.0, end_reason="enough")
        held(tx, "ours", role="provider")
        begun(tx, "old", 1.0)
        begun(tx, "new", 2.0)
        begun(tx, "for research", 1.5, purpose="research")
        begun(tx, "newer, without address", 3.0, data_address={})
        begun(tx, "newer, not started", 4.0, state="SUSPENDED")
        begun(tx, "as provider", 5.0, agreement_id="theirs", role="provider")

    await store.write(signed)
    asked = ("a", "none", "theirs", "ended", "ours", "unknown")
    assert await store.read(lambda tx: tx.agreements.read_transfers_by_agreement(asked)) == {
        "a": (
            None,
            "",
            (
                ("new", "peer of new", "p", {"endpoint": "new"}, ""),
                ("for research", "peer of for research", "p", {"endpoint": "for research"}, "research"),
            ),
        ),
        "none": (None, "", ()),
        "theirs": (None, "", ()),
        "ended": (2.0, "enough", ()),
    }


# Of an agreement: whether it is final, the state of its negotiation, its reads; whether it stands on its dataset.
AGREEMENTS: dict[str, tuple[bool, str, int, bool]] = {
    "final": (True, "FINALIZED", 0, True),
    "read under": (True, "FINALIZED", 7, True),
    "of a negotiation that nobody has any more": (True, "", 0, True),
    "not final yet": (False, "AGREED", 0, True),
    "never concluded": (False, "TERMINATED", 0, False),
    "not final, of a negotiation that nobody has any more": (False, "", 0, False),
}


def agreement(tx: Transaction, name: str, dataset: str, role: str = "provider") -> None:
    final, state, reads, _ = AGREEMENTS[name]
    about = {"role": role, "dataset_id": dataset, "address": "https://peer"}
    key = f"{name} of {dataset}"
    tx.agreements.add(
        Agreement(id=key, negotiation_id=key, provider="p", consumer="c", policy={}, digest="", signed_at=1.0,
                  finalized=final, ended_at=None, **about)
    )  # fmt: skip
    if state:
        tx.negotiations.add(
            Negotiation(id=key, peer_pid=key, counterparty="c", state=state, created_at=1.0, updated_at=1.0, **about)
        )
    if reads:
        tx.agreements.add(GrantState(agreement_id=key, revoked_at=None, queries=reads))


async def test_what_stands_on_a_dataset_is_what_could_be_read_under(store: Store) -> None:
    def signed(tx: Transaction) -> None:
        for name in AGREEMENTS:
            agreement(tx, name, "d")
        agreement(tx, "final", "other")
        agreement(tx, "final", "of others", role="consumer")

    await store.write(signed)
    found = await store.read(lambda tx: [(row.id, reads) for row, reads in tx.agreements.iterate_by_dataset("d")])
    assert sorted(found) == sorted((f"{name} of d", reads) for name, (*_, reads, on) in AGREEMENTS.items() if on)
    assert await store.read(lambda tx: list(tx.agreements.iterate_by_dataset("of others"))) == []
    with warnings.catch_warnings(record=True) as told:  # a driver says what is left open
        warnings.simplefilter("always", ResourceWarning)
        assert await store.read(lambda tx: any(row.id for row, _ in tx.agreements.iterate_by_dataset("d")))
    assert told == []


async def test_who_holds_a_dataset_goes_alone(store: Store, migrated_url: str) -> None:
    """Two processes look at once whether they are the first; one is."""
    about = {"title": "", "description": "", "keywords": [], "theme": "", "license": "", "version": "v1"}
    await store.write(lambda tx: tx.datasets.add(RegisteredDataset(id="d", name="d", created_at=1.0, **about)))
    other = Store(migrated_url)

    def first(tx: Transaction, number: int) -> bool:
        tx.datasets.lock("d")
        if tx.datasets.list_offers_in_force(["d"]):
            return False
        time.sleep(0.2)  # long enough for the other to look
        tx.datasets.add(
            Offer(id=f"o{number}", dataset_id="d", policy={}, form="", digest="", decide="auto", created_at=1.0,
                  withdrawn_at=None)
        )  # fmt: skip
        return True

    asked = (one.write(partial(first, number=number)) for number, one in enumerate((store, other)))
    assert sorted(await asyncio.gather(*asked)) == [False, True]
    other.close()


def test_migrating_twice_changes_nothing(database_url: str) -> None:
    assert upgrade(database_url) == ("", "0022")
    assert upgrade(database_url) == ("0022", "0022")


def test_the_migrations_lead_to_the_tables_of_the_code(database_url: str) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from connector.infra.database.database import open_engine
    from connector.store.tables import ConnectorTable

    upgrade(database_url)
    engine = open_engine(database_url, pool_size=1)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), ConnectorTable.metadata) == []
    engine.dispose()


async def test_a_caller_that_goes_away_does_not_harm_the_store(store: Store) -> None:
    async def leave_at_once(i: int) -> None:
        asking = asyncio.ensure_future(store.write(lambda tx: tx.tokens.add(token(f"gone{i}"))))
        await asyncio.sleep(0 if i % 2 else 0.001)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    await asyncio.gather(*(leave_at_once(i) for i in range(50)))
    await store.write(lambda tx: tx.tokens.add(token("here")))
    assert (await store.read(lambda tx: tx.tokens.find_by_name("here"))) is not None


@pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
async def test_a_page_of_the_catalogue_reads_no_table_without_statistics(postgres_cluster: Any) -> None:
    """Right after many datasets came, PostgreSQL knows nothing of them, and would read all for a page."""
    with postgres_cluster.database() as url:
        upgrade(url)
        opened = Store(url, pool_size=1)
        await opened.write(_many_offers)

        def page(tx: Transaction) -> tuple[int, int]:
            before = _read_whole(tx)
            tx.datasets.prefer_indexes()
            rows = tx.datasets.list_offered(start="d30000", limit=101)
            tx.datasets.list_offers_in_force([row.id for row in rows])
            return len(tx.datasets.get_current_versions(rows)), _read_whole(tx) - before

        shown, read = await opened.read(page)
        opened.close()
    assert (shown, read) == (101, 0)


def _read_whole(tx: Transaction) -> int:
    """Rows that this connection has read by scanning tables."""
    count = "SELECT coalesce(sum(seq_tup_read), 0) FROM pg_stat_xact_user_tables"
    return int(tx.session.execute(text(count)).scalar_one())


def _many_offers(tx: Transaction) -> None:
    for table in ("dataset", "dataset_version", "offer"):
        tx.session.execute(text(f"ALTER TABLE {table} SET (autovacuum_enabled = false)"))
    tx.session.execute(
        text(
            "INSERT INTO dataset (id, name, title, description, keywords, theme, license, version, created_at) "
            "SELECT 'd' || lpad(i::text, 5, '0'), 'n' || i, '', '', '[]', '', '', 'v' || i, 0 "
            "FROM generate_series(1, 60000) i"
        )
    )
    tx.session.execute(
        text(
            "INSERT INTO dataset_version (dataset_id, digest, source, schema, profile, created_at) "
            "SELECT id, version, '{}', '[]', '{}', 0 FROM dataset"
        )
    )
    tx.session.execute(
        text(
            "INSERT INTO offer (id, dataset_id, policy, form, digest, decide, created_at) "
            "SELECT 'o' || id, id, '{}', '', '', 'auto', 0 FROM dataset"
        )
    )


async def test_a_read_that_the_database_does_not_answer_is_busy(store: Store) -> None:
    with pytest.raises(Unavailable, match="does not answer"):
        await store.read(lambda tx: tx.session.execute(text("SELECT * FROM no_such_table")).all())


@pytest.mark.parametrize("error", [OperationalError, InterfaceError, InternalError], ids=lambda error: error.__name__)
async def test_a_change_that_the_database_does_not_answer_is_busy(store: Store, error: type[DBAPIError]) -> None:
    def fails(tx: Transaction) -> None:
        tx.tokens.add(token("a"))
        raise error("INSERT", None, Exception("as the driver says it"))

    with pytest.raises(Unavailable, match="does not answer"):
        await store.write(fails)
    assert await store.read(lambda tx: tx.tokens.count()) == 0


async def test_a_change_for_which_the_server_has_no_room_says_so(store: Store) -> None:
    def fails(tx: Transaction) -> None:
        raise OperationalError("INSERT", None, psycopg.errors.DiskFull())

    with pytest.raises(Unavailable, match="the operator must free space") as raised:
        await store.write(fails)
    assert raised.value.code == "disk_full"


@pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
async def test_a_change_that_no_connection_is_free_for_is_busy(
    postgres_cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with postgres_cluster.database() as url:
        await asyncio.to_thread(upgrade, url)
        opened = Store(url, pool_size=1)
        monkeypatch.setattr(opened.engine.pool, "_timeout", 0.05)
        with ExitStack() as taken:
            for _ in range(2 + database.LONG_READS_MAX):  # for each reader a writer, and those of what lasts
                taken.enter_context(opened.engine.connect())
            with pytest.raises(Unavailable, match="does not answer"):
                await opened.write(lambda tx: tx.tokens.add(token("a")))
        await opened.write(lambda tx: tx.tokens.add(token("a")))
        opened.close()


@pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
@pytest.mark.parametrize("ask", ["read", "write"])
async def test_more_units_than_may_wait_are_busy_and_none_of_the_others_is_lost(
    postgres_cluster: Any, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    monkeypatch.setattr("connector.infra.concurrency.thread_pool.WAITING_MAX", 5)
    with migrated.postgresql(postgres_cluster) as url:
        opened, go_on, begun = Store(url, pool_size=1), threading.Event(), threading.Event()

        def wait(_: Transaction) -> None:
            begun.set()
            go_on.wait(60)

        def work(tx: Transaction, name: str) -> str:
            tx.tokens.add(token(name))
            tx.session.flush()
            return name

        do = getattr(opened, ask)
        first = asyncio.ensure_future(do(wait))
        await asyncio.to_thread(begun.wait, 60)
        units = [asyncio.ensure_future(do(partial(work, name=f"{i}"))) for i in range(9)]
        await asyncio.sleep(0)
        gone = units.pop(0)
        gone.cancel()  # has its place until it is its turn
        refused = await asyncio.gather(*units[4:], return_exceptions=True)
        assert [str(one) for one in refused] == [
            "more than 5 units of work wait for the database; try again in a moment"
        ] * 4
        go_on.set()
        assert await asyncio.gather(*units[:4]) == ["1", "2", "3", "4"]
        await first
        assert await do(partial(work, name="after")) == "after"
        assert await opened.read(lambda tx: tx.tokens.count()) == (5 if ask == "write" else 0)
        opened.close()
        with pytest.raises(Unavailable, match="shutting down"):
            await do(wait)


async def test_of_units_that_were_kept_together_nothing_is_held_afterwards(sqlite_store: Store) -> None:
    """As of the end of a read: what went wrong in it, and so the files that it read."""
    go_on, begun = threading.Event(), threading.Event()

    def wait(_: Transaction) -> None:
        begun.set()
        go_on.wait(60)

    class Held:
        """What a unit refers to."""

    async def waiting() -> list[weakref.ref[Held]]:
        held = [Held() for _ in range(3)]
        first = asyncio.ensure_future(sqlite_store.write(wait))
        await asyncio.to_thread(begun.wait, 60)
        units = [asyncio.ensure_future(sqlite_store.write(lambda _, one=one: repr(one))) for one in held]
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(first, *units)
        return list(map(weakref.ref, held))

    left = await waiting()
    await until(lambda: gc.collect() >= 0 and not any(one() for one in left))


@pytest.mark.skipif("postgresql" not in DATABASES, reason="needs PostgreSQL on this machine")
@pytest.mark.parametrize("ask", ["read", "write"])
async def test_what_has_waited_for_long_is_busy_and_not_begun(
    postgres_cluster: Any, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    """Whoever waited behind others, each of whom waited for the database, has gone; and a queue of such has an end."""
    monkeypatch.setattr("connector.infra.concurrency.thread_pool.WAIT_SECONDS", 0.1)
    with migrated.postgresql(postgres_cluster) as url:
        opened, begun = Store(url, pool_size=1), []

        def work(_: Transaction, name: str) -> None:
            begun.append(name)
            time.sleep(0.3)

        do = getattr(opened, ask)
        told = await asyncio.gather(*(do(partial(work, name=f"{i}")) for i in range(3)), return_exceptions=True)
        assert begun == ["0"]
        assert [type(one) for one in told] == [type(None), Unavailable, Unavailable]
        opened.close()
