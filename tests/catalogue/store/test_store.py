"""The catalogue's database, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from catalogue.api.access import Viewer
from catalogue.app import build
from catalogue.crawl import ingest
from catalogue.crawl.crawler import Crawler
from catalogue.crawl.entry import READER, read_dataset
from catalogue.crawl.ingest import Tally
from catalogue.crawl.namespaces import Namespaces
from catalogue.members.members import Members
from catalogue.search.search_query import SearchQuery
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.migrate import upgrade
from catalogue.store.tables import CatalogueTable, CrawlState, EntryRow, Member, VisitRecord
from connector.errors import Forbidden, WrongState
from tests.catalogue.provider import dataset


@pytest.fixture
def store(database_url: str) -> Iterator[CatalogueStore]:
    upgrade(database_url)
    opened = CatalogueStore(database_url)
    yield opened
    opened.close()


def member(name: str) -> Member:
    return Member(
        id=f"did:web:{name}", name=name, title=name, role="", country="", url="http://x", status="active", reason="",
        joined_at=0, changed_at=0,
    )  # fmt: skip


def join(tx: CatalogueTransaction, name: str, *, next_at: float = 0.0) -> Member:
    made = member(name)
    tx.members.add(made)
    tx.members.add(CrawlState(member_id=made.id, state="new", next_at=next_at, failures=0, problem="", etag=""))
    tx.members.bump_revision()
    return made


def take(store: CatalogueStore, owner: Member, names: list[str], *, more: Sequence[object] = ()) -> Tally:
    tally = Tally()
    raw = [*(dataset(f"urn:hanse:{owner.name}:{name}") for name in names), *more]
    spaces = Namespaces([(owner.id, owner.name, owner.url)])
    found = ingest.sift(raw, owner, spaces=spaces, entry_bytes=10_000, tally=tally)
    known = store.read_now(lambda tx: ingest.known_texts(tx, owner, found))
    page = ingest.parse_candidates(found, known, owner, tally=tally)
    seq = store.read_now(lambda tx: tx.entries.last_seq())
    store.write_now(lambda tx: ingest.store_page(tx, owner, page, seq=seq, most=10**6, tally=tally))
    return tally


def test_the_migration_makes_the_tables_of_the_program(database_url: str) -> None:
    assert upgrade(database_url) == ("", "0005")
    assert upgrade(database_url) == ("0005", "0005")
    store = CatalogueStore(database_url)
    found = inspect(store.engine)
    for name, table in CatalogueTable.metadata.tables.items():
        assert {column["name"] for column in found.get_columns(name)} == set(table.columns.keys()), name
    store.close()


def test_a_database_of_a_newer_program_is_refused(store: CatalogueStore, database_url: str) -> None:
    store.write_now(lambda tx: tx.session.execute(text("UPDATE alembic_version SET version_num = '9999'")) and None)
    with pytest.raises(WrongState, match="newer Hanse"):
        upgrade(database_url)


def test_changes_are_read_in_order_from_any_position(store: CatalogueStore) -> None:
    owner = store.write_now(lambda tx: join(tx, "north"))
    take(store, owner, ["a", "b", "c"])
    store.write_now(lambda tx: tx.entries.touch_all(owner.id))  # all three under one number
    take(store, owner, ["d"])
    at, met = (0, ""), []
    while rows := store.read_now(lambda tx: list(tx.entries.changed_after(*at, limit=2))):  # noqa: B023  # run at once
        met += [row.id[-1] for row, _, _ in rows]
        at = (rows[-1][0].seq, rows[-1][0].id)
    assert met == ["a", "b", "c", "d"]
    assert at[0] == store.read_now(lambda tx: tx.entries.last_seq())


def test_numbers_of_writers_at_once_are_never_the_same_and_never_late(store: CatalogueStore) -> None:
    barrier = threading.Barrier(4)

    def bump(_: int) -> list[int]:
        barrier.wait(60)
        return [store.write_now(lambda tx: tx.entries.next_seq()) for _ in range(8)]

    store.write_now(lambda tx: tx.entries.next_seq())
    with ThreadPoolExecutor(4) as threads:
        numbers = [number for found in threads.map(bump, range(4)) for number in found]
    assert sorted(numbers) == list(range(2, 34))


def test_a_failed_change_leaves_nothing(store: CatalogueStore) -> None:
    def fail(tx: CatalogueTransaction) -> None:
        join(tx, "north")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        store.write_now(fail)
    assert store.read_now(lambda tx: list(tx.members.list_all())) == []


def test_who_is_due_is_asked_longest_due_first_and_suspended_members_never(store: CatalogueStore) -> None:
    for name, at in (("a", 30.0), ("b", 10.0), ("c", 99.0), ("d", 5.0)):
        store.write_now(lambda tx, name=name, at=at: join(tx, name, next_at=at))  # type: ignore[misc]  # bound now

    def suspend(tx: CatalogueTransaction) -> None:
        tx.members.of("d").status = "suspended"

    store.write_now(suspend)
    assert [one.member_id for one in store.read_now(lambda tx: list(tx.members.list_due(50, limit=9)))] == [
        "did:web:b",
        "did:web:a",
    ]
    assert len(store.read_now(lambda tx: list(tx.members.list_due(50, limit=1)))) == 1


def test_only_the_newest_visits_are_kept(store: CatalogueStore) -> None:
    owner = store.write_now(lambda tx: join(tx, "north"))
    for number in range(25):

        def visit(tx: CatalogueTransaction, number: int = number) -> None:
            tx.members.add(VisitRecord(
                member_id=owner.id, why="schedule", started_at=number, ended_at=number, outcome="complete", problem="",
                counts={}, skipped=[],
            ))  # fmt: skip
            tx.members.forget_old_runs(owner.id)

        store.write_now(visit)
    kept = store.read_now(lambda tx: [run.started_at for run in tx.members.list_runs(owner.id)])
    assert kept == list(range(24, 4, -1))


def test_a_removed_member_leaves_tombstones_that_are_swept_in_time(store: CatalogueStore) -> None:
    owner = store.write_now(lambda tx: join(tx, "north"))
    take(store, owner, ["a"])
    store.write_now(lambda tx: tx.entries.withdraw_all(owner.id, now=100.0, why="left"))
    store.write_now(lambda tx: tx.members.remove(tx.members.of("north")))
    assert store.read_now(lambda tx: tx.entries.of("urn:hanse:north:a").withdrawn_why) == "left"
    store.write_now(lambda tx: tx.entries.forget_tombstones(100.0))
    assert store.read_now(lambda tx: tx.entries.find("urn:hanse:north:a")) is not None
    store.write_now(lambda tx: tx.entries.forget_tombstones(101.0))
    assert store.read_now(lambda tx: tx.entries.find("urn:hanse:north:a")) is None


def test_what_is_taken_while_its_member_is_removed_is_withdrawn_with_the_rest(store: CatalogueStore) -> None:
    owner = store.write_now(lambda tx: join(tx, "north"))
    removed = threading.Event()
    reading = read_dataset(raw := dataset("urn:hanse:north:a"), participant=owner.id).to_json()
    page = ingest.PageContent(
        [], [ingest.ParsedDataset(ingest.Candidate(raw["@id"], raw, "{}", own=True), reading, "digest")]
    )

    def remove() -> None:
        asyncio.run(Members(store, None, None).remove("north"))  # type: ignore[arg-type]  # neither has a part in it
        removed.set()

    def take_meanwhile(tx: CatalogueTransaction) -> None:
        assert tx.members.is_current(owner)
        leaving.start()
        removed.wait(0.5)  # it would be quick, if it did not wait
        ingest.store_page(tx, owner, page, seq=0, most=9, tally=Tally())

    leaving = threading.Thread(target=remove)
    store.write_now(take_meanwhile)
    leaving.join(60)
    assert store.read_now(lambda tx: tx.entries.of("urn:hanse:north:a").withdrawn_at) is not None
    with pytest.raises(Forbidden, match="a member no longer"):
        take(store, owner, ["b"])


def begun(work: Callable[[], object]) -> Future[object]:
    """Work in a thread of its own, which by now has come to its end or waits for a lock."""
    ended: Future[object] = Future()

    def run() -> None:
        try:
            ended.set_result(work())
        except Exception as error:  # noqa: BLE001  # whoever asks for the result has it
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    wait([ended], timeout=0.5)
    return ended


def test_a_member_may_withdraw_what_it_lists_while_it_is_removed(store: CatalogueStore) -> None:
    owner = store.write_now(lambda tx: join(tx, "north"))
    take(store, owner, ["a", "b"])
    members = Members(store, None, None)  # type: ignore[arg-type]  # neither has a part in it

    def withdraw(tx: CatalogueTransaction) -> Future[object]:
        tx.members.get_source(owner.id, lock=True)
        leaving = begun(lambda: asyncio.run(members.remove("north")))
        assert ingest.withdraw(tx, owner.id, ["urn:hanse:north:a", "urn:hanse:north:b"]) == 2
        return leaving

    store.write_now(withdraw).result(60)
    gone = [store.read_now(lambda tx, one=one: tx.entries.of(f"urn:hanse:north:{one}")) for one in "ab"]  # type: ignore[misc]
    assert {row.withdrawn_why for row in gone} == {"its provider withdrew it"}
    assert store.read_now(lambda tx: tx.members.find("north")) is None


def test_a_visit_may_end_while_the_states_of_many_connectors_change(store: CatalogueStore, tmp_path: Path) -> None:
    owners = [store.write_now(lambda tx, name=name: join(tx, name)) for name in ("north", "south")]  # type: ignore[misc]
    store.write_now(lambda tx: tx.session.query(CrawlState).update({"failures": 9, "last_ok": 1.0}))
    settings = CatalogueSettings(data_dir=tmp_path / "catalogue")
    crawler = Crawler(store, None, None, settings, on_change=None, count=None)  # type: ignore[arg-type]  # as above

    def end(tx: CatalogueTransaction) -> Future[object]:
        tx.members.get_source(owners[1].id, lock=True)
        sweeping = begun(lambda: asyncio.run(crawler._sweep()))
        tx.entries.touch_all(owners[1].id)
        return sweeping

    store.write_now(end).result(60)
    assert {one.state for one in store.read_now(lambda tx: tx.members.list_sources())} == {"expired"}


def test_a_live_entry_of_who_is_no_member_keeps_its_id_from_nobody(store: CatalogueStore) -> None:
    """Earlier versions left some, of visits that went on after the membership."""
    north, south = (store.write_now(lambda tx, name=name: join(tx, name)) for name in ("north", "south"))  # type: ignore[misc]
    shared = [dataset("urn:shared:a")]
    assert take(store, north, [], more=shared).datasets == 1
    assert take(store, south, [], more=shared).skipped == 1
    store.write_now(lambda tx: tx.members.remove(tx.members.of("north")))
    assert take(store, south, [], more=shared).datasets == 1


def test_a_page_may_have_more_datasets_than_a_statement_has_variables(store: CatalogueStore) -> None:
    owner = store.write_now(lambda tx: join(tx, "north"))
    take(store, owner, ["a"])
    ids = [*map(str, range(70_000)), "urn:hanse:north:a"]
    assert list(store.read_now(lambda tx: tx.entries.get_many(ids))) == ids[-1:]
    assert list(store.read_now(lambda tx: tx.entries.read_texts(owner.id, ids, reader=READER))) == ids[-1:]
    assert store.write_now(lambda tx: tx.entries.mark_seen(owner.id, ids, 5.0)) == 1


def test_entries_that_an_older_program_read_are_read_again(store: CatalogueStore) -> None:
    owner = store.write_now(lambda tx: join(tx, "north"))
    take(store, owner, ["a", "b"])

    def age(tx: CatalogueTransaction) -> None:
        for row in tx.session.query(EntryRow).order_by(EntryRow.id):
            row.reader, row.content = 0, {}
        row.raw = "[" * 10_000  # nested as deep as the older one could just read
        tx.session.query(CrawlState).update({"etag": '"1"'})

    store.write_now(age)
    assert store.write_now(ingest.reread_outdated) == 2
    assert store.write_now(ingest.reread_outdated) == 0
    assert [one.etag for one in store.read_now(lambda tx: tx.session.query(CrawlState).all())] == [""]
    rows = [store.read_now(lambda tx, one=one: tx.entries.of(f"urn:hanse:north:{one}")) for one in "ab"]  # type: ignore[misc]
    assert [(row.reader, row.content.get("title")) for row in rows] == [(READER, "a"), (READER, None)]


def test_a_dataset_that_is_nested_too_deep_is_left_out_and_the_others_are_not() -> None:
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    tally = Tally()
    raw = [{**dataset("urn:hanse:north:deep"), "x": deep}, dataset("urn:hanse:north:a")]
    spaces = Namespaces([("did:web:north", "north", "http://x")])
    found = ingest.sift(raw, member("north"), spaces=spaces, entry_bytes=100_000, tally=tally)
    assert [one.id for one in found] == ["urn:hanse:north:a"]
    assert [problem["dataset"] for problem in tally.problems] == ["urn:hanse:north:deep"]
    assert tally.problems[0]["problem"].endswith("its provider must write it flatter")


def test_the_whole_catalogue_runs_on_it(database_url: str, tmp_path: Path) -> None:
    parts = build(CatalogueSettings(data_dir=tmp_path / "catalogue", database_url=database_url))
    owner = parts.store.write_now(lambda tx: join(tx, "north"))
    assert take(parts.store, owner, ["herring", "salt"]).new == 2
    assert take(parts.store, owner, ["herring"]).datasets == 1
    parts.index.catch_up()
    assert parts.index.search(SearchQuery(words="herring"), Viewer()).ids == ("urn:hanse:north:herring",)
    assert parts.index.owners(Viewer()) == {"north": 2}
    parts.store.close()
