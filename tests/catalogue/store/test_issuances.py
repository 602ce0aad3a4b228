"""Queries for issued credentials, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from catalogue.issuer.membership import follow_change, follow_removal, new_issuance
from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.issuances import ACTIVE
from catalogue.store.migrate import upgrade
from catalogue.store.tables import IssuedCredential, Member

KIND, TYPES = "bitstring", ("MembershipCredential",)
NORTH, SOUTH = "did:web:north", "did:web:south"


@pytest.fixture
def store(database_url: str) -> Iterator[CatalogueStore]:
    upgrade(database_url)
    opened = CatalogueStore(database_url, clock=lambda: 1_000.0)
    opened.write_now(lambda tx: [tx.members.add(member(did)) for did in (NORTH, SOUTH)])
    yield opened
    opened.close()


def member(did: str) -> Member:
    return Member(
        id=did, name=did[8:], title="", role="", country="", url="http://x", status="active", reason="",
        joined_at=0, changed_at=0,
    )  # fmt: skip


def issue(tx: CatalogueTransaction, holder: str, name: str) -> IssuedCredential:
    number, index = tx.issuances.take_place(KIND)
    row = IssuedCredential(
        id=name, issuance="x", holder=holder, type=TYPES[0], profile="vc20-bssl/jwt", list_kind=KIND,
        list_number=number, list_index=index, issued_at=tx.now, expires_at=tx.now + 100, state=ACTIVE, jwt="x",
    )  # fmt: skip
    tx.issuances.add(row)
    return row


def test_each_holders_longest_due_request_is_due(store: CatalogueStore) -> None:
    def work(tx: CatalogueTransaction) -> list[list[tuple[str, str]]]:
        made = {}
        for name, holder, at in (("a", NORTH, 3.0), ("b", NORTH, 2.0), ("c", SOUTH, 1.0), ("d", SOUTH, 2_000.0)):
            made[name] = new_issuance(holder, "pid", ["x"], now=at)
            tx.issuances.add(made[name])
        names = {row.id: name for name, row in made.items()}
        asked = [([], 10), ([SOUTH], 10), ([NORTH, SOUTH], 10), ([], 1)]
        found = [tx.issuances.list_due(tx.now, apart_from=without, limit=most) for without, most in asked]
        return [[(holder, names[one]) for holder, one in sorted(due)] for due in found]

    assert store.write_now(work) == [[(NORTH, "b"), (SOUTH, "c")], [(NORTH, "b")], [], [(SOUTH, "c")]]


def test_a_suspension_sets_the_bits_of_one_member_and_a_removal_keeps_them(store: CatalogueStore) -> None:
    rows = store.write_now(lambda tx: [issue(tx, NORTH, "1"), issue(tx, NORTH, "2"), issue(tx, SOUTH, "3")])

    def follow(status: str) -> tuple[set[int], int]:
        def work(tx: CatalogueTransaction) -> None:
            north = tx.members.of(NORTH, lock=True)
            north.status = status
            follow_change(tx, north, differs=False, types=TYPES)

        store.write_now(work)
        return look()

    def look() -> tuple[set[int], int]:
        def work(tx: CatalogueTransaction) -> tuple[set[int], int]:
            row = tx.issuances.find_list(KIND, 1)
            assert row is not None
            return set(tx.issuances.list_set(KIND, 1)), row.revision

        return store.read_now(work)

    norths = {row.list_index for row in rows[:2]}
    assert [follow("suspended"), follow("suspended"), follow("active")] == [(norths, 1), (norths, 1), (set(), 2)]
    store.write_now(lambda tx: follow_removal(tx, NORTH))
    assert look() == (norths, 3)
    assert follow("active") == (norths, 3)
    assert store.read_now(lambda tx: tx.issuances.count_open(NORTH)) == 1  # a new one is asked for


def test_places_that_are_taken_at_once_differ(store: CatalogueStore) -> None:
    """The first of them make the list."""

    def take(number: int) -> tuple[int, int]:
        row = store.write_now(lambda tx: issue(tx, NORTH, str(number)))
        return row.list_number, row.list_index

    with ThreadPoolExecutor(1 if store.is_sqlite else 4) as threads:
        places = list(threads.map(take, range(40)))
    assert len(set(places)) == 40
    assert {number for number, _ in places} == {1}
    row = store.read_now(lambda tx: tx.issuances.find_list(KIND, 1))
    assert row is not None
    assert row.used == 40


def test_only_active_members_without_a_lasting_credential_lack_one(store: CatalogueStore) -> None:
    store.write_now(lambda tx: issue(tx, NORTH, "1"))

    def lacking(beyond: float) -> list[str]:
        return sorted(store.read_now(lambda tx: tx.issuances.list_without(TYPES[0], beyond=beyond, since=900.0)))

    assert (lacking(1_050.0), lacking(1_200.0)) == ([SOUTH], [NORTH, SOUTH])
    store.write_now(lambda tx: tx.issuances.add(new_issuance(SOUTH, "pid", ["x"], now=950.0)))
    assert lacking(1_200.0) == [NORTH]
    store.write_now(lambda tx: tx.issuances.give_up(SOUTH, problem="x"))
    assert lacking(1_200.0) == [NORTH]  # asked for within the last day
    store.write_now(lambda tx: tx.issuances.sweep(960.0))
    assert lacking(1_200.0) == [NORTH, SOUTH]


def test_a_sweep_leaves_what_lasts_and_what_is_open(store: CatalogueStore) -> None:
    def work(tx: CatalogueTransaction) -> tuple[int, int, int]:
        issue(tx, NORTH, "1")
        tx.issuances.add(new_issuance(NORTH, "pid", ["x"], now=1.0))
        tx.issuances.sweep(1_050.0)
        kept = tx.issuances.count_current(NORTH, tx.now), tx.issuances.count_open(NORTH)
        tx.issuances.sweep(1_101.0)
        return *kept, tx.issuances.count_current(NORTH, tx.now)

    assert store.write_now(work) == (1, 1, 0)
