"""Hanse's worker, frames and socket without what governs them: what the gate, accounting, log and digest cost is the
difference to this. The product has no such switch; here its parts are put together without `governed_stream`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from connector.dataplane.http.request_context import Exchange
from connector.dataplane.http.routes import MEDIA
from connector.dataplane.http.vectored_body import Protocol
from connector.dataplane.read_request import COMPLETE, StreamEnd
from connector.datasets.sources import guess_kind
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits
from tests.support.data import relation


def serve(port: int, paths: Sequence[str]) -> None:
    """GET /<number>: the rows of that file."""
    relations = [relation(guess_kind(path), Path(path), Path(path).parent) for path in paths]
    limits = Limits(threads=min(4, os.cpu_count() or 1))  # as a read gets them that has the machine to itself
    jobs = [
        Job(relations={"t": one}, sql="SELECT * FROM t", scan="t", digest="none", shared=True, limits=limits)
        for one in relations
    ]
    with tempfile.TemporaryDirectory() as folder:
        pool = Pool(Path(folder), size=2, warm=1)

        @asynccontextmanager
        async def life(_: Starlette) -> AsyncIterator[None]:
            async with pool:
                yield

        class Rows:
            async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
                exchange = Exchange(scope, receive, send)
                async with pool.run(jobs[int(exchange.path("number"))]) as result:
                    await exchange.begin(200, {"content-type": MEDIA})
                    await exchange.part(result.schema)
                    async for frame in result:
                        await exchange.part(frame.payload)
                    end = StreamEnd(
                        status=COMPLETE, digest="none:", rows=result.totals["rows"],
                        batches=result.totals["batches"], nbytes=result.totals["bytes"],
                    )  # fmt: skip
                    await exchange.part(end.fill(result.trailer))
                await exchange.send({"type": "http.response.body", "body": b""})

        app = Starlette(routes=[Route("/{number}", Rows())], lifespan=life)
        config = uvicorn.Config(app, host="127.0.0.1", port=port, http=Protocol, loop="uvloop", log_level="warning")
        uvicorn.Server(config).run()
