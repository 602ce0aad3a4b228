"""SIGKILL between what a grant writes and its commit: nothing is counted that was not admitted, nothing is held up."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from connector.errors import Unauthenticated
from connector.management.auth import Tokens
from connector.store import Store
from connector.store.tables import Grant

READS, ROWS = 4, 15_625  # a grant gives rows out in chunks, this is one
# Admits one read as `usage.grants` does, and dies where it is told to; without a place to die it prints what it got.
ADMITS = f"""
import asyncio, json, os, signal, sys, time
from types import SimpleNamespace
from connector.errors import Limited
from connector.store import Store
from connector.store.agreements import Agreements
from connector.usage import counting, held as values
from policies.contract import Limits
from policies.gate import Lease

url, dies = sys.argv[1:]

def after(name):
    real = getattr(Agreements, name)
    def counted(self, *args, **more):
        done = real(self, *args, **more)
        if dies == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return done
    setattr(Agreements, name, counted)

async def main():
    for name in ("count_use", "reserve"):
        after(name)
    store = Store(url, pool_size=1)
    contract = SimpleNamespace(limits=Limits(queries={READS}, rows={ROWS}), permission="/permission/0", reasons={{}})
    held = SimpleNamespace(agreement=SimpleNamespace(id="g"), version=None)
    grant = values.Grant(held, contract, "did:web:lab.example", "t", "ds:query", "", "", Lease(deadline=9e9))
    try:
        grant.take(*await store.write(lambda tx: counting.admit(tx, grant, time.time(), "r")))
    except Limited as refused:
        print(json.dumps({{"refused": refused.code}}))
        return
    if dies == "commit":
        os.kill(os.getpid(), signal.SIGKILL)
    print(json.dumps({{"rows": grant.lease.rows}}))
    store.close()

asyncio.run(main())
"""
HANDS_OVER = """
import asyncio, os, signal, sys
from pathlib import Path
from connector.management.auth import Tokens
from connector.store import Store

url, file = sys.argv[1:]

def hand_over(text):
    Path(file).write_text(text)
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(Tokens(Store(url, pool_size=1)).first(hand_over))
"""


async def ran(script: str, *arguments: str) -> tuple[int, bytes]:
    """The exit code and the output of a child."""
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", script, *arguments, stdout=subprocess.PIPE)
    out, _ = await child.communicate()
    assert child.returncode is not None
    return child.returncode, out


async def counters(store: Store) -> tuple[int, int, int]:
    row = await store.read(lambda tx: tx.agreements.grant("g"))
    assert row is not None
    return row.queries, row.queries_today, row.rows


@pytest.mark.parametrize("dies", ["count_use", "reserve"])
async def test_a_read_that_dies_before_its_commit_was_never_counted(store: Store, database_url: str, dies: str) -> None:
    await store.write(lambda tx: tx.agreements.add(Grant(agreement_id="g", revoked_at=None)))
    for _ in range(2):
        code, out = await ran(ADMITS, database_url, dies)
        assert (code, out) == (-signal.SIGKILL, b"")
        assert await counters(store) == (0, 0, 0)
    code, out = await ran(ADMITS, database_url, "")  # no lock is left: the next one is admitted, whole
    assert (code, json.loads(out)) == (0, {"rows": ROWS})
    assert await counters(store) == (1, 1, ROWS)


async def test_a_read_that_dies_after_its_commit_stays_counted_so_that_nothing_is_overspent(
    store: Store, database_url: str
) -> None:
    """What it had reserved may have left; it does not come back, and no other read gets it."""
    await store.write(lambda tx: tx.agreements.add(Grant(agreement_id="g", revoked_at=None)))
    assert (await ran(ADMITS, database_url, "commit"))[0] == -signal.SIGKILL
    assert await counters(store) == (1, 1, ROWS)
    assert json.loads((await ran(ADMITS, database_url, ""))[1]) == {"refused": "quota_spent"}
    assert await counters(store) == (1, 1, ROWS)


async def test_crashes_among_eight_processes_leave_the_counters_at_what_was_admitted(
    store: Store, database_url: str
) -> None:
    await store.write(lambda tx: tx.agreements.add(Grant(agreement_id="g", revoked_at=None)))
    ends = await asyncio.gather(*(ran(ADMITS, database_url, dies) for dies in ["count_use", "", "reserve", ""] * 2))
    assert [code for code, _ in ends] == [-signal.SIGKILL, 0, -signal.SIGKILL, 0] * 2
    admitted = [json.loads(out)["rows"] for code, out in ends if code == 0 and b"rows" in out]
    used, _, rows = await counters(store)
    assert (used, rows) == (len(admitted), sum(admitted))
    assert 0 < rows <= ROWS


async def test_a_first_token_that_was_handed_over_and_not_committed_is_worth_nothing_and_another_is_made(
    store: Store, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / "admin.token"
    assert (await ran(HANDS_OVER, database_url, str(file)))[0] == -signal.SIGKILL
    lost, tokens = file.read_text(), Tokens(store)
    with pytest.raises(Unauthenticated):
        await tokens.caller(lost)
    made: list[str] = []
    await tokens.first(made.append)
    assert made != [lost]
    assert (await tokens.caller(made[0])).scopes == {"admin"}
    await tokens.first(made.append)
    assert len(made) == 1
