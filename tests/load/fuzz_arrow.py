"""Foreign Arrow against the process that reads it: `python -m tests.load.fuzz_arrow [mutations] [seed]`.

Each mutation of a whole stream is read to its end or refused with a code; a crash costs one worker and nothing else.
Prints what came out, the slowest answer and the most memory; the exit code says whether anything else happened.
"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits
from connector.errors import ConnectorError
from tests.support import data

CODES = {"read", "arrow_invalid", "worker_crashed", "memory_limit", "engine_failed", "time_limit"}
SECONDS, MEMORY_MB = 10.0, 256


def streams() -> list[bytes]:
    """Whole streams of different make: plain, compressed, dictionaries, views, nested."""
    table = data.table(2000)
    coded = table.set_column(2, "name", table["name"].dictionary_encode())
    viewed = table.set_column(2, "name", table["name"].cast(pa.string_view()))
    return [_stream(table, None), _stream(table, "lz4"), _stream(table, "zstd"), _stream(coded, None),
            _stream(viewed, None)]  # fmt: skip


def mutated(whole: list[bytes], count: int, seed: int) -> Iterator[bytes]:
    """Streams with bytes flipped (mostly where lengths and offsets are), words set to extremes, or cut."""
    chance = random.Random(seed)
    for _ in range(count):
        body = bytearray(chance.choice(whole))
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(len(body) if chance.random() < 0.3 else min(2000, len(body)))
            if chance.random() < 0.2:
                body[at : at + 4] = chance.choice((b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 4, b"\x00" * 4))
            else:
                body[at] = chance.randrange(256)
        yield bytes(body[: chance.randrange(len(body))] if chance.random() < 0.1 else body)


async def fuzz(pool: Pool, count: int, seed: int) -> tuple[Counter[str], float, int]:
    """What came out of `count` mutations, the slowest in seconds, and the most memory of the workers in MB."""
    found: Counter[str] = Counter()
    slowest, most = 0.0, 0
    for body in mutated(streams(), count, seed):
        begun = time.monotonic()
        try:
            limits = Limits(seconds=SECONDS, memory_mb=MEMORY_MB)
            await pool.ask(Job(kind="check_arrow", blobs=(body,), limits=limits))
            found["read"] += 1
        except ConnectorError as error:
            found[error.code] += 1
        slowest, most = max(slowest, time.monotonic() - begun), max(most, pool.rss_mb)
    return found, slowest, most


def _stream(table: pa.Table, codec: str | None) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        for batch in table.to_batches(max_chunksize=500):
            writer.write_batch(batch)
    return bytes(sink.getvalue().to_pybytes())


async def main(count: int, seed: int) -> int:
    """Run and print; 1 where something came out that has no place here."""
    with tempfile.TemporaryDirectory() as folder:
        async with Pool(Path(folder) / "work", size=1, warm=1, readable=[]) as pool:
            found, slowest, most = await fuzz(pool, count, seed)
            whole = await pool.ask(Job(kind="check_arrow", blobs=(streams()[0],)))
    print(f"{count} mutations, seed {seed}: {dict(found)}")
    print(f"slowest {slowest:.2f} s, most memory {most} MB, an unharmed stream afterwards: {whole['rows']} rows")
    return 0 if set(found) <= CODES and whole["rows"] == 2000 else 1


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    sys.exit(asyncio.run(main(*(given + [5000, 7][len(given) :]))))
