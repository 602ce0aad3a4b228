"""The messages of a job, each looked at with the digest that came beside it."""

from __future__ import annotations

import xxhash

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job


async def messages(pool: Pool, job: Job) -> list[bytes]:
    """The head of the stream and each message of a batch, once its digest has proved right."""
    async with pool.run(job) as result:
        running, parts = xxhash.xxh3_128(result.schema), [bytes(result.schema)]
        async for frame in result:
            running.update(frame.payload)
            assert frame.digest == running.digest()
            parts.append(bytes(frame.payload))
    return parts
