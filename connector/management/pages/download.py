"""An answer as a file for the browser: the stream goes through export.py in a process of its own, piece by piece."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing, suppress
from pathlib import Path

from connector.errors import BadInput, EngineFailed
from connector.query.coordinate import Answer

_EXPORT = Path(__file__).parent / "export.py"
_PIECE = 2**16
FORMATS = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/x-ndjson",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.file",
}


def known(kind: str) -> str:
    """The format if it is one of ours."""
    if kind not in FORMATS:
        raise BadInput(f"expected a format among {', '.join(FORMATS)}, came {kind[:20]!r}")
    return kind


async def pieces(answer: Answer, kind: str) -> AsyncIterator[bytes]:
    """The file; breaks off with an error where the answer does, so that no short file passes for a whole one."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(_EXPORT), kind,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    feeding = asyncio.ensure_future(_feed(answer, process.stdin))
    try:
        while piece := await process.stdout.read(_PIECE):
            yield piece
        await feeding
        if await process.wait() != 0:
            raise EngineFailed("the answer ended before it was complete; run the question again")
    finally:
        feeding.cancel()
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        await answer.close()


async def _feed(answer: Answer, pipe: asyncio.StreamWriter) -> None:
    try:
        async with aclosing(answer.parts()) as coming:
            async for part in coming:
                pipe.write(part)
                await pipe.drain()
        pipe.close()
    except (BrokenPipeError, ConnectionResetError):
        return  # the exporter ended first; its exit status says why
