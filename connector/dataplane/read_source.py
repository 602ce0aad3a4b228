"""Source of a read's bytes (steps 4 and 6 of `admission`): files that hold them, or a worker, whose answer may be kept.

The source is prepared while the start of the read is recorded, and read after that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from connector.dataplane.cache.cached_stream import CacheEntry, StreamSource
from connector.dataplane.cache.mixed_stream import MixedStream
from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.governed_stream import watch_grants
from connector.dataplane.job_builder import BATCH_BYTES
from connector.dataplane.read_request import ReadRequest, Split
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job
from connector.engine.pool.worker_process import Result
from connector.usage.held_agreement import ReadGrant


class ReadSource:
    """Workers of a connector, and the cache of what they have read, if there is one."""

    def __init__(
        self, pool: Pool, prepared: PreparedStreams | None, *, later: Callable[[Coroutine[Any, Any, None]], object]
    ) -> None:
        """`later` runs work in the background."""
        self.prepared = prepared
        self._pool = pool
        self._later = later

    @asynccontextmanager
    async def source(
        self, asked: ReadRequest, grants: Sequence[ReadGrant], job: Job, *, spans: bool, begun: asyncio.Task[Any]
    ) -> AsyncIterator[StreamSource]:
        """Yield the bytes of an admitted read, after it has `begun`; `spans`: as parts of files, where possible."""
        files = self.prepared
        if files is None:
            async with self._run(job, grants, begun) as result:
                yield result
        elif asked.split is not None and (form := files.make_block_prefix(asked, grants)):
            async with self._open_blocks(files, form, asked.split, grants, job, spans, begun) as mixed:
                yield mixed
        elif (key := files.key(asked, grants)) and (entry := await files.find(key, grants[0])) is not None:
            async with files.serve(
                entry, spans=spans
            ) as passed:  # before waiting: a reader keeps the entry if it is dropped meanwhile
                await asyncio.shield(begun)
                yield passed
        else:
            async with self._open_first_pass(files, key, grants, job, begun) as source:
                yield source

    def _run(
        self, job: Job, grants: Sequence[ReadGrant], begun: asyncio.Task[Any]
    ) -> AbstractAsyncContextManager[Result]:
        return self._pool.run(job, watch=partial(watch_grants, grants), after=begun)

    @asynccontextmanager
    async def _open_first_pass(
        self,
        files: PreparedStreams,
        key: str,
        grants: Sequence[ReadGrant],
        job: Job,
        begun: asyncio.Task[Any],
    ) -> AsyncIterator[StreamSource]:
        """Read with a worker, and keep a copy or an index of the owner's files for later passes."""
        known = bool(key) and job.batch_bytes >= BATCH_BYTES
        indexed = known and files.wants_index(key, job)
        if known and not indexed and files.should_keep(key, grants[0]):
            async with self._run(job, grants, begun) as result, files.keep(key, grants[0], result) as kept:
                yield kept
            return
        async with self._run(job, grants, begun) as result:
            yield result
        if indexed:
            self._later(files.index(key, grants[0], job, self._pool.ask))

    @asynccontextmanager
    async def _open_blocks(
        self,
        files: PreparedStreams,
        form: str,
        split: Split,
        grants: Sequence[ReadGrant],
        job: Job,
        spans: bool,
        begun: asyncio.Task[Any],
    ) -> AsyncIterator[StreamSource]:
        """Read blocks from the cache where it has them, the others from a worker."""
        known = await files.find_blocks(form, split, grants[0])  # referenced to the end: files are sent by descriptor
        ranges, digest = split.only.ranges, job.digest
        if known:
            job = _exclude_blocks(job, split, known)
        with files.reading(known.values()):
            if job.only is None or not job.only.ranges:
                await asyncio.shield(begun)
                yield MixedStream(ranges, known, None, None, digest=digest, spans=spans)
                return
            async with (
                self._run(job, grants, begun) as result,
                files.write_blocks(form, split, grants[0], result) as writer,
            ):
                yield MixedStream(ranges, known, result, writer, digest=digest, spans=spans)


def _exclude_blocks(job: Job, split: Split, known: dict[int, CacheEntry]) -> Job:
    """Return the job for the blocks that are not cached. The digest of these alone is of no use."""
    left = [one for one in split.only.ranges if one.block not in known]
    return replace(job, digest="none", only=replace(split.only, ranges=left))
