"""Counts active holders per key, and lets a caller wait for the last one to end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class ActiveCounter:
    """How many `hold` blocks run per key. Belongs to one event loop."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._empty = asyncio.Event()
        self._empty.set()

    def __contains__(self, key: str) -> bool:
        return key in self._counts

    def count(self, key: str) -> int:
        """The number of holders of a key."""
        return self._counts[key]

    def __len__(self) -> int:
        """The number of holders of all keys together."""
        return self._counts.total()

    @contextmanager
    def hold(self, key: str) -> Iterator[None]:
        """Count one more holder of the key until the block ends."""
        self._empty.clear()
        self._counts[key] += 1
        try:
            yield
        finally:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]
            if not self._counts:
                self._empty.set()

    async def wait_until_empty(self) -> None:
        """Return once no key has a holder."""
        await self._empty.wait()
