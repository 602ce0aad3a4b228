"""The server of a run: the files of EDC's source, and its sinks. A profile adds routes of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request, Response

from tests.interop import steps


class Files:
    """What EDC reads and writes, at `url`. `sunk`: the bodies that came, by the name of their sink."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.sunk: dict[str, bytes] = {}
        self.app = FastAPI(openapi_url=None)
        self.app.add_api_route("/files/source.csv", self._source, methods=["GET"])
        self.app.add_api_route("/files/sink/{name}", self._sink, methods=["POST"])
        self._port = port

    async def _source(self) -> Response:
        return Response(steps.CSV, media_type="text/csv")

    async def _sink(self, name: str, request: Request) -> Response:
        body = await request.body()
        if request.headers.get("authorization") != "token":
            return Response(status_code=401)
        self.sunk[name] = body
        return Response(status_code=204)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serve while the block runs."""
        server = uvicorn.Server(uvicorn.Config(self.app, port=self._port, log_level="error", lifespan="off"))
        task = asyncio.create_task(server.serve())
        try:
            while not server.started:
                await asyncio.sleep(0.01)
            yield
        finally:
            server.should_exit = True
            await task
