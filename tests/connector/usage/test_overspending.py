"""Eight processes that hammer one grant, on each kind of database: nothing that is counted is ever overspent."""

from __future__ import annotations

import asyncio

from connector.store import Store
from connector.store.queries.agreements import count_today
from connector.store.tables import GrantState
from tests.connector.usage.victims import spends
from tests.support.children import ran

PROCESSES, TRIES = 8, 48
MOST = {"uses": 100, "today": 37, "rows": 500, "micro": 100_000}


async def test_eight_processes_never_overspend(store: Store, migrated_url: str) -> None:
    for name in ("uses", "today", "rows", "epsilon"):
        await store.write(lambda tx, name=name: tx.agreements.add(GrantState(agreement_id=name, revoked_at=None)))  # type: ignore[misc]  # bound for this round
    ends = await asyncio.gather(*(ran(spends, migrated_url, TRIES, seed, MOST) for seed in range(PROCESSES)))
    reports = [report for _, report in ends]
    spent = {name: sum(report[name] for report in reports) for name in ("uses", "today", "rows", "epsilon")}
    uses, today, rows = [
        await store.read(lambda tx, name=name: tx.agreements.get_grant(name))  # type: ignore[misc]  # bound for this round
        for name in ("uses", "today", "rows")
    ]
    assert uses is not None
    assert today is not None
    assert rows is not None
    assert uses.queries == spent["uses"] == MOST["uses"]
    assert today.queries_today == spent["today"] == MOST["today"]
    assert (rows.rows, rows.bytes) == (spent["rows"], spent["rows"] * 8)
    micro = await store.read(lambda tx: tx.noised_answers.read_spent("epsilon"))
    assert micro == spent["epsilon"] <= MOST["micro"]
    assert micro > MOST["micro"] - 9 * 333
    assert MOST["rows"] - 9 < rows.rows <= MOST["rows"]  # what is left is smaller than anybody asked for


async def test_a_use_goes_back_to_the_day_that_it_was_counted_on(store: Store) -> None:
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="back", revoked_at=None)))

    async def counted(day: int) -> tuple[int, int]:
        row = await store.read(lambda tx: tx.agreements.get_grant("back"))
        assert row is not None
        return row.queries, count_today(row, day=day)

    for day in (5, 5, 6):
        await store.write(lambda tx, day=day: tx.agreements.count_use("back", day=day, most=None, most_today=9))  # type: ignore[misc]  # bound for this round
    found = [await counted(6)]
    for day in (5, 6, 6, 6):
        await store.write(lambda tx, day=day: tx.agreements.uncount_use("back", day=day))  # type: ignore[misc]  # bound for this round
        found.append(await counted(6))
    assert found == [(3, 1), (2, 1), (1, 0), (0, 0), (0, 0)]


async def test_a_clock_that_is_behind_begins_no_day_anew(store: Store) -> None:
    """Around midnight the clocks of two connectors say different days: each would take back what the other counted."""
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="days", revoked_at=None)))

    async def used(day: int) -> bool:
        return await store.write(lambda tx: tx.agreements.count_use("days", day=day, most=None, most_today=2))

    assert [await used(day) for day in (5, 6, 5, 6, 5, 6)] == [True, True, True, False, False, False]
    row = await store.read(lambda tx: tx.agreements.get_grant("days"))
    assert row is not None
    assert (row.day, row.queries, row.queries_today) == (6, 3, 2)
    assert [count_today(row, day=day) for day in (4, 5, 6, 7)] == [0, 2, 2, 0]
    assert [await used(day) for day in (7, 7, 7)] == [True, True, False]
    assert await used(3)  # set right by more than a day, it is another clock
