"""Eight processes that hammer one grant, on each kind of database: nothing that is counted is ever overspent."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from connector.store import Store
from connector.store.agreements import used_today
from connector.store.tables import Grant

PROCESSES, TRIES = 8, 48
USES, TODAY, ROWS, MICRO = 100, 37, 500, 100_000
CHILD = """
import asyncio, json, random, sys
from connector.errors import Busy
from connector.store import Store

USES, TODAY, ROWS, MICRO = 100, 37, 500, 100_000

async def main(url, tries, seed):
    store, rng = Store(url, pool_size=2), random.Random(seed)
    spent = {"uses": 0, "today": 0, "rows": 0, "epsilon": 0}

    async def write(work):
        while True:
            try:
                return await store.write(work)
            except Busy:  # eight wait for one file, on a machine that may stand still: nothing was counted
                pass

    async def once(amount):
        used = await write(lambda tx: tx.agreements.count_use("uses", day=1, most=USES, most_today=None))
        today = await write(lambda tx: tx.agreements.count_use("today", day=1, most=None, most_today=TODAY))
        taken = await write(lambda tx: tx.agreements.reserve(
            "rows", rows=amount, nbytes=amount * 8, most_rows=ROWS, most_bytes=ROWS * 8 + 4))
        private = await write(lambda tx: tx.answers.spend("epsilon", micro=amount * 333, most=MICRO))
        spent["uses"] += used
        spent["epsilon"] += private * amount * 333
        spent["today"] += today
        spent["rows"] += taken * amount

    for start in range(0, tries, 6):
        await asyncio.gather(*(once(rng.randint(1, 9)) for _ in range(6)))
    store.close()
    print(json.dumps(spent))

url, tries, seed = sys.argv[1:]
asyncio.run(main(url, int(tries), int(seed)))
"""


async def test_eight_processes_never_overspend(store: Store, database_url: str) -> None:
    for name in ("uses", "today", "rows", "epsilon"):
        await store.write(lambda tx, name=name: tx.agreements.add(Grant(agreement_id=name, revoked_at=None)))  # type: ignore[misc]  # bound for this round
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", CHILD, database_url, str(TRIES), str(seed), stdout=subprocess.PIPE
        )
        for seed in range(PROCESSES)
    ]
    reports = [json.loads(out) for out, _ in await asyncio.gather(*(child.communicate() for child in children))]
    spent = {name: sum(report[name] for report in reports) for name in ("uses", "today", "rows", "epsilon")}
    uses, today, rows = [
        await store.read(lambda tx, name=name: tx.agreements.grant(name))  # type: ignore[misc]  # bound for this round
        for name in ("uses", "today", "rows")
    ]
    assert uses is not None
    assert today is not None
    assert rows is not None
    assert uses.queries == spent["uses"] == USES
    assert today.queries_today == spent["today"] == TODAY
    assert (rows.rows, rows.bytes) == (spent["rows"], spent["rows"] * 8)
    micro = await store.read(lambda tx: tx.answers.spent("epsilon"))
    assert micro == spent["epsilon"] <= MICRO
    assert micro > MICRO - 9 * 333
    assert ROWS - 9 < rows.rows <= ROWS  # what is left is smaller than anybody asked for


async def test_a_clock_that_is_behind_begins_no_day_anew(store: Store) -> None:
    """Around midnight the clocks of two connectors say different days: each would take back what the other counted."""
    await store.write(lambda tx: tx.agreements.add(Grant(agreement_id="days", revoked_at=None)))

    async def used(day: int) -> bool:
        return await store.write(lambda tx: tx.agreements.count_use("days", day=day, most=None, most_today=2))

    assert [await used(day) for day in (5, 6, 5, 6, 5, 6)] == [True, True, True, False, False, False]
    row = await store.read(lambda tx: tx.agreements.grant("days"))
    assert row is not None
    assert (row.day, row.queries, row.queries_today) == (6, 3, 2)
    assert [used_today(row, day=day) for day in (4, 5, 6, 7)] == [0, 2, 2, 0]
    assert [await used(day) for day in (7, 7, 7)] == [True, True, False]
    assert await used(3)  # set right by more than a day, it is another clock
