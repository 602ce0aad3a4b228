"""A writer to be killed: publishes events and numbers them, and says on standard output what is durable."""

from __future__ import annotations

import asyncio
import sys

from connector.events import ServiceStarted
from connector.store import Store, Transaction
from tests.connector.audit.support import log_over


async def main(url: str, first: int) -> None:
    store = Store(url)
    asyncio.get_running_loop().create_task(log_over(store).sequencer.run()).add_done_callback(lambda _: None)
    for n in range(first, 1_000_000):

        def work(tx: Transaction, n: int = n) -> None:
            tx.publish(ServiceStarted(actor="victim", detail={"n": n}))

        await store.write(work)
        print(n, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
