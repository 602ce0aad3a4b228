"""External sources: object stores, databases, and a local cache of blocks read from stores."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from connector.datasets.connections import Connections
from connector.datasets.object_cache import BlockCache
from connector.datasets.object_store import Objects
from connector.datasets.owned_files import OwnedFolder, remove
from connector.datasets.sources.source_files import FileRef
from connector.errors import SourceUnreadable
from connector.telemetry import logger

_log = logger("datasets")


class Outside:
    """The operator's connections, opened at first use.

    `folder` holds the cache of blocks (at most `cache_bytes`) and drafts of database tables.
    """

    def __init__(self, connections: Path | None, folder: Path, *, cache_bytes: int = 2**31) -> None:
        self.connections = Connections(connections)
        self.drafts = folder / "drafts"
        self._owned_folder = OwnedFolder(self.drafts)
        self.objects = Objects(self.connections)
        self.blocks = BlockCache(folder / "blocks", self._fetch, quota=cache_bytes)

    async def start(self) -> None:
        """Remove caches of killed processes, and log a warning where the connections cannot be read."""
        await self.blocks.sweep()
        try:
            self.connections.check()
        except SourceUnreadable as error:  # the file may be provided later
            _log.warning("connections", reason=error.message)

    def read(self, ref: FileRef, *, store: str, first: int, count: int) -> AsyncIterator[int]:
        """Return descriptors of an object's blocks, in order; see `BlockCache.read`."""
        return self.blocks.read(ref, store=store, first=first, count=count)

    async def check(self, refs: Sequence[FileRef], *, store: str) -> None:
        """Check pinned objects.

        Raises: VersionChanged unless all are still as pinned.
        """
        await self.objects.check(refs, store=store)

    def draft(self, suffix: str) -> Path:
        """Return the path of a new draft. The caller removes it."""
        return self._owned_folder.new(suffix)

    def sweep(self) -> None:
        """Remove the drafts of processes that have ended."""
        remove(self._owned_folder.list_left_over())

    def close(self) -> None:
        """Remove the cache."""
        self.blocks.close()
        self._owned_folder.close()

    async def _fetch(self, ref: FileRef, store: str, start: int, stop: int) -> bytes | memoryview:
        return await self.objects.read(ref, store=store, start=start, stop=stop)
