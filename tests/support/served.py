"""Owners in a thread of their own, and datasets of theirs as the blocking SDK sees them.

The owners' data planes are real (`tests.support.provider`); the consumer's connector, which only hands out tickets
here, is scripted. `Link` stands between SDK and owner and breaks connections when it is told to.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hanse
from hanse.agreement import Name, TransferAccess
from hanse.client import Dataset

from policies.model import Policy
from tests.client.support import connector
from tests.support import provider
from tests.support.link import Link
from tests.support.provider import OPEN, Provider


@dataclass
class Owner:
    """A running provider, the loop it runs on, and the way to it."""

    provider: Provider
    loop: asyncio.AbstractEventLoop
    link: Link
    space: hanse.Space
    connector: Any

    def call(self, work: Any) -> Any:
        """Run a coroutine where the provider lives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def dataset(
        self, policy: Policy = OPEN, *, name: str = provider.DATASET, path: Path | None = None, seconds: float = 600
    ) -> Dataset:
        """A dataset under a new agreement; tickets are renewed as the consumer's connector does."""
        agreement = self.call(self.provider.agree(policy, name=name, path=path))
        number = agreement.rsplit(":", 1)[-1]
        self.connector.routes["GET", f"/transfers/{number}/address"] = lambda _: {
            "endpoint": f"http://127.0.0.1:{self.link.port}/data/v1",
            "ticket": self.provider.ticket(agreement, seconds=seconds),
            "expires": time.time() + seconds,
        }
        access = TransferAccess(Name(provider.OWNER, name), f"urn:hanse:{provider.OWNER}:{name}", agreement, number, "")
        return Dataset(self.space, access)


@contextmanager
def owner(folder: Path, *, rows: int) -> Iterator[Owner]:
    """An owner with the numbers of `tests.support.data`, until the block ends."""
    ready: Any = threading.Event()
    kept: dict[str, Any] = {}

    async def live() -> None:
        async with provider.running(folder, rows=rows) as running:
            kept.update(provider=running, loop=asyncio.get_running_loop(), end=asyncio.Event())
            ready.set()
            await kept["end"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(live()), daemon=True)
    thread.start()
    assert ready.wait(60)
    link = Link(int(kept["provider"].url.rsplit(":", 1)[-1]))
    with connector() as scripted, hanse.connect(scripted.url, "secret") as space:
        try:
            yield Owner(kept["provider"], kept["loop"], link, space, scripted)
        finally:
            link.close()
            kept["loop"].call_soon_threadsafe(kept["end"].set)
            thread.join(30)
