"""Who is here, how often, and when nobody is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class Present:
    """Names, each as often as blocks of `named` are under way for it. Of one event loop."""

    def __init__(self) -> None:
        self._times = Counter[str]()
        self._empty = asyncio.Event()
        self._empty.set()

    def __contains__(self, name: str) -> bool:
        return name in self._times

    def times(self, name: str) -> int:
        """How often this one is here."""
        return self._times[name]

    def __len__(self) -> int:
        """How many are here, each as often as it is."""
        return self._times.total()

    @contextmanager
    def named(self, name: str) -> Iterator[None]:
        """This one is here, once more, until the block ends."""
        self._empty.clear()
        self._times[name] += 1
        try:
            yield
        finally:
            self._times[name] -= 1
            if not self._times[name]:
                del self._times[name]
            if not self._times:
                self._empty.set()

    async def nobody(self) -> None:
        """Back when nobody is here."""
        await self._empty.wait()
