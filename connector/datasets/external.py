"""What datasets need of the world outside the machine: object stores, databases, and a cache of what was read there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from connector.datasets.connections import Connections
from connector.datasets.object_cache import Blocks
from connector.datasets.object_store import Objects
from connector.datasets.owned_files import Making, remove
from connector.datasets.sources.source_files import FileRef
from connector.errors import SourceUnreadable
from connector.telemetry import logger

_log = logger("datasets")


class Outside:
    """The operator's connections, opened when they are used first.

    `folder` takes the cache of blocks (at most `cache_bytes`) and what is on its way from a database.
    """

    def __init__(self, connections: Path | None, folder: Path, *, cache_bytes: int = 2**31) -> None:
        self.connections = Connections(connections)
        self.drafts = folder / "drafts"
        self._making = Making(self.drafts)
        self.objects = Objects(self.connections)
        self.blocks = Blocks(folder / "blocks", self._fetch, quota=cache_bytes)

    async def start(self) -> None:
        """Remove what a cache of a process that was killed has left; say where connections cannot be read."""
        await self.blocks.sweep()
        try:
            self.connections.check()
        except SourceUnreadable as error:  # it may come later, as files may
            _log.warning("connections", reason=error.message)

    def read(self, ref: FileRef, *, store: str, first: int, count: int) -> AsyncIterator[int]:
        """Descriptors of blocks of an object, in order; see `Blocks.read`."""
        return self.blocks.read(ref, store=store, first=first, count=count)

    async def check(self, refs: Sequence[FileRef], *, store: str) -> None:
        """VersionChanged unless all these objects are as they were pinned."""
        await self.objects.check(refs, store=store)

    def draft(self, suffix: str) -> Path:
        """The path of a draft that is to be written. Whoever asks for it removes it."""
        return self._making.new(suffix)

    def sweep(self) -> None:
        """Remove the drafts of processes that are gone."""
        remove(self._making.left())

    def close(self) -> None:
        """Remove the cache."""
        self.blocks.close()
        self._making.close()

    async def _fetch(self, ref: FileRef, store: str, start: int, stop: int) -> bytes | memoryview:
        return await self.objects.read(ref, store=store, start=start, stop=stop)
