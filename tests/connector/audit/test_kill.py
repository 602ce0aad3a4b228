"""SIGKILL at any moment, several times: nothing that was acknowledged is lost, no gap, and every head still holds."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from hanse.audit.verify import verify, verify_consistency

from connector.audit import signed_note
from connector.store import Store
from connector.store.migrate import upgrade
from tests.connector.audit.support import SIGNER, evidence, log_over

KILLS = 2


def killed_after(url: str, first: int, seconds: float) -> int:
    """Run a writer, kill it; the number after the last one that it acknowledged."""
    writer = subprocess.Popen(
        [sys.executable, "-m", "tests.connector.audit.victim", url, str(first)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert writer.stdout is not None
    said = [writer.stdout.readline()]
    time.sleep(seconds)
    os.kill(writer.pid, signal.SIGKILL)
    said += writer.stdout.read().splitlines(keepends=True)
    writer.wait()
    return max(int(line) for line in said if line.endswith("\n")) + 1


async def test_no_acknowledged_record_is_lost_when_the_writer_is_killed(database_url: str, tmp_path: Path) -> None:
    upgrade(database_url)
    moments = random.Random(7)  # when to kill, the same in every run
    acknowledged: set[int] = set()
    heads: list[str] = []
    first = 0
    for _ in range(KILLS):
        after = killed_after(database_url, first, moments.uniform(0.05, 0.3))
        acknowledged |= set(range(first, after))
        first = after + 1000  # so that a record kept without an acknowledgement is told from the next run's
        store = Store(database_url)
        head = await store.read(lambda tx: tx.audit.read_checkpoint())
        heads += [head.note] if head is not None else []
        store.close()
    store = Store(database_url)
    log = log_over(store)
    path = tmp_path / "evidence.zip"
    path.write_bytes(await evidence(log, tmp_path))  # a test of its own
    rows = await store.read(lambda tx: [json.loads(row.body) for row in tx.audit.walk(stop=1_000_000)])
    report = verify(path, SIGNER.vkey)
    assert (report.ok, report.problem, report.records) == (True, "", len(rows))
    kept = [row["detail"]["n"] for row in rows]
    assert len(kept) == len(set(kept))
    assert acknowledged <= set(kept)
    assert len(set(kept) - acknowledged) <= KILLS
    newest = await log.head()
    for earlier in heads:
        proof = await log.consistency(signed_note.read_head(earlier)[1], report.size)
        verify_consistency(earlier, newest, proof, SIGNER.vkey)
    store.close()
