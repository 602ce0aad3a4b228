"""SIGKILL between what a grant writes and its commit: nothing is counted that was not admitted, nothing is held up."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from connector.errors import Unproven
from connector.management.sign_on.auth import Tokens
from connector.store import Store
from connector.store.tables import GrantState
from tests.connector.usage.victims import ROWS, admits, hands_over
from tests.support.children import ran


async def counters(store: Store) -> tuple[int, int, int]:
    row = await store.read(lambda tx: tx.agreements.get_grant("g"))
    assert row is not None
    return row.queries, row.queries_today, row.rows


@pytest.mark.parametrize("dies", ["count_use", "reserve"])
async def test_a_read_that_dies_before_its_commit_was_never_counted(store: Store, migrated_url: str, dies: str) -> None:
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="g", revoked_at=None)))
    for _ in range(2):
        code, out = await ran(admits, migrated_url, dies)
        assert (code, out) == (-signal.SIGKILL, None)
        assert await counters(store) == (0, 0, 0)
    code, out = await ran(admits, migrated_url, "")  # no lock is left: the next one is admitted, whole
    assert (code, out) == (0, {"rows": ROWS})
    assert await counters(store) == (1, 1, ROWS)


async def test_a_read_that_dies_after_its_commit_stays_counted_so_that_nothing_is_overspent(
    store: Store, migrated_url: str
) -> None:
    """What it had reserved may have left; it does not come back, and no other read gets it."""
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="g", revoked_at=None)))
    assert (await ran(admits, migrated_url, "commit"))[0] == -signal.SIGKILL
    assert await counters(store) == (1, 1, ROWS)
    assert await ran(admits, migrated_url, "") == (0, {"refused": "quota_spent"})
    assert await counters(store) == (1, 1, ROWS)


async def test_crashes_among_eight_processes_leave_the_counters_at_what_was_admitted(
    store: Store, migrated_url: str
) -> None:
    await store.write(lambda tx: tx.agreements.add(GrantState(agreement_id="g", revoked_at=None)))
    ends = await asyncio.gather(*(ran(admits, migrated_url, dies) for dies in ["count_use", "", "reserve", ""] * 2))
    assert [code for code, _ in ends] == [-signal.SIGKILL, 0, -signal.SIGKILL, 0] * 2
    admitted = [out["rows"] for code, out in ends if code == 0 and "rows" in out]
    used, _, rows = await counters(store)
    assert (used, rows) == (len(admitted), sum(admitted))
    assert 0 < rows <= ROWS


async def test_a_first_token_that_was_handed_over_and_not_committed_is_worth_nothing_and_another_is_made(
    store: Store, migrated_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "admin.token"
    assert (await ran(hands_over, migrated_url, str(file)))[0] == -signal.SIGKILL
    lost, tokens = file.read_text(), Tokens(store)
    with pytest.raises(Unproven):
        await tokens.caller(lost)
    made: list[str] = []
    await tokens.first(made.append)
    assert made != [lost]
    assert (await tokens.caller(made[0])).scopes == {"admin"}
    await tokens.first(made.append)
    assert len(made) == 1
