"""Writes the golden evidence files beside it: `python -m tests.cases.audit.make`. A test expects no difference."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path

from connector.audit.log import Filter
from connector.store import Store, Transaction
from connector.store.migrate import upgrade
from connector.store.tables import AuditPending
from tests.connector.audit.support import SIGNER, evidence, log_over, story

HERE = Path(__file__).parent
CASES = {"whole.zip": Filter(), "extract.zip": Filter(agreement="urn:agreement:1"), "none.zip": Filter(actor="nobody")}


def frozen(tx: Transaction) -> None:
    """What was published, at fixed times."""
    for row in tx.session.query(AuditPending):
        row.ts = 1_790_000_000.0 + row.id / 4


async def make() -> dict[str, bytes]:
    """The golden files' bytes, by name."""
    with tempfile.TemporaryDirectory() as name:
        url = f"sqlite:///{name}/store.db"
        upgrade(url)
        store = Store(url)
        log = log_over(store)
        await store.write(story(12))
        await store.write(frozen)
        made = {file: await evidence(log, Path(name), which) for file, which in CASES.items()}
        store.close()
    return {**made, "log.vkey": f"{SIGNER.vkey}\n".encode()}


if __name__ == "__main__":
    for file, data in asyncio.run(make()).items():
        (HERE / file).write_bytes(data)
