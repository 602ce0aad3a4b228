"""Digests of streams: those beside the messages of a job, and the one that an end record names."""

from __future__ import annotations

import io

import pyarrow as pa
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


def digest_before(sink: io.BytesIO, schema: pa.Schema) -> str:
    """The digest that an end record names which is written to a stream next. Arrow writes the schema with the first
    batch."""
    return f"xxh3:{xxhash.xxh3_128_hexdigest(sink.getvalue() or bytes(schema.serialize()))}"
