"""Federated queries on the management API: run, explain, list, cancel."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from connector.errors import Absent, ConnectorError
from connector.events import QueryCoordinated
from connector.federation.coordinator import MEDIA, Coordinator, FederatedAnswer, Question
from connector.federation.planner.model import DataLayout, Mode
from connector.json_number import JSON_NUMBER
from connector.management.notify.long_poll import run_unless_gone
from connector.management.sign_on.auth import Caller, Tokens
from policies.vocabulary.terms import expand


class QueryLimits(BaseModel):
    """The limits of a query."""

    model_config = ConfigDict(extra="forbid")

    seconds: Annotated[float, Field(gt=0, le=3600), JSON_NUMBER] | None = Field(
        None, description="For everything, the answer's last byte excepted."
    )
    rows: Annotated[int, Field(ge=1), JSON_NUMBER] | None = Field(None, description="Rows of the answer.")
    bytes: Annotated[int, Field(ge=1), JSON_NUMBER] | None = Field(
        None, description="Bytes that the owners' answers take together."
    )


class Shares(BaseModel):
    """Known distribution of datasets over their owners. A wrong statement gives a wrong answer."""

    model_config = ConfigDict(extra="forbid")

    cut: list[dict[str, str]] = Field(
        default_factory=list,
        max_length=16,
        description="Groups of datasets cut by one rule, each with its column: rows that agree in it are at one owner.",
    )
    copies: list[str] = Field(
        default_factory=list, max_length=64, description="Datasets of which every owner has all rows."
    )

    def layout(self) -> DataLayout:
        return DataLayout(tuple(tuple(one.items()) for one in self.cut), tuple(self.copies))


class QueryRequest(BaseModel):
    """A SELECT over datasets under our agreements: `"<participant>".<dataset>`, or `"all".<dataset>`."""

    model_config = ConfigDict(extra="forbid")

    sql: str = Field(min_length=1, max_length=65_536)
    purpose: str = Field("", max_length=1024, description="IRI or short name (dpv:ScientificResearch).")
    mode: Mode = Field(Mode.FULL, description="full; filter and pull are for comparison.")
    partial: Literal["refuse", "allow"] = Field(
        "refuse",
        description="allow: answered without owners that are down or late, where that still means something; the end "
        "record lists them under missing. Else they are an error.",
    )
    explain: bool | Literal["analyze"] = Field(False, description="true: the plan; analyze: run it, give the figures.")
    limits: QueryLimits = QueryLimits()
    epsilon: Annotated[float, Field(gt=0, le=1000), JSON_NUMBER] | None = Field(
        None,
        description="Where answers carry noise: what each owner's may cost of its agreement's budget; else a tenth.",
    )
    codec: Literal["none", "lz4", "zstd"] = Field("none", description="Compression of the answer.")
    wire: Literal["none", "lz4", "zstd"] = Field("zstd", description="Compression of what the owners send.")
    shares: Shares = Shares()
    id: str = Field(
        "",
        pattern="^([0-9a-f]{16})?$",
        description="An id of your choice, to look on with GET /queries/{id} meanwhile.",
    )

    def question(self) -> Question:
        return Question(
            sql=self.sql,
            purpose=expand(self.purpose) if self.purpose else "",
            mode=self.mode,
            partial=self.partial == "allow",
            seconds=self.limits.seconds,
            rows=self.limits.rows,
            nbytes=self.limits.bytes,
            epsilon=self.epsilon,
            codec=self.codec,
            wire=self.wire,
            layout=self.shares.layout(),
            query_id=self.id,
        )


def router(coordinator: Coordinator, tokens: Tokens) -> APIRouter:
    routes = APIRouter(prefix="/queries", tags=["queries"])
    consumer = Depends(tokens.require("consume"))
    asking = Depends(tokens.require_raw("consume", QueryCoordinated))
    reader = Depends(tokens.require("read"))

    @routes.post("", summary="Ask one question over many owners; the answer is an Arrow IPC stream",
                 responses={200: {"content": {MEDIA: {}, "application/json": {}}}})  # fmt: skip
    async def ask(asked: QueryRequest, request: Request, caller: Caller = asking) -> Response:
        if asked.explain is True:
            return JSONResponse(await run_unless_gone(request, _explain(coordinator, asked, caller)))
        answer = await run_unless_gone(request, coordinator.ask(asked.question(), by=caller.name))
        if asked.explain == "analyze":
            return JSONResponse(await _analyze(answer))
        return AnswerResponse(answer)

    @routes.get("", summary="Running and recent questions")
    async def list_queries(_: Caller = reader) -> list[dict[str, Any]]:
        return [progress.to_json() for progress in coordinator.recent()]

    @routes.get("/{query_id}", summary="One running or recent question")
    async def get(query_id: str, _: Caller = reader) -> dict[str, Any]:
        found = coordinator.progress(query_id)
        if found is None:
            raise Absent(f"no question {query_id[:64]!r} is running or recent; the console lists those that are")
        return found.to_json()

    @routes.delete("/{query_id}", status_code=204, summary="Stop a running question, here and at its owners")
    async def cancel(query_id: str, _: Caller = consumer) -> None:
        if not coordinator.cancel(query_id):
            raise Absent(f"no question {query_id[:64]!r} is running; the console lists those that are")

    return routes


async def _explain(coordinator: Coordinator, asked: QueryRequest, caller: Caller) -> dict[str, Any]:
    from connector.federation import plan_text

    return plan_text.to_json(await coordinator.plan(asked.question(), by=caller.name))


async def _analyze(answer: FederatedAnswer) -> dict[str, Any]:
    """Run the query to its end, and keep only the figures."""
    from connector.federation import plan_text

    try:
        async with aclosing(answer.parts()) as parts:
            async for _ in parts:
                pass
        report = answer.report()
    finally:
        await answer.close()
    told = {name: report[name] for name in ("rows", "ms", "planning_ms", "withheld", "left_out", "partial", "missing")}
    return plan_text.to_json(answer.plan, actual=report["owners"], missing=report["missing"]) | told


class AnswerResponse(Response):
    """The parts of an answer as chunks. The answer is closed in any case.

    An incomplete answer is cut off, so that the reader notices, in any format.
    """

    def __init__(
        self, answer: FederatedAnswer, *, media: str = MEDIA, headers: Mapping[str, str] | None = None
    ) -> None:
        self.status_code, self.media_type, self.background = 200, media, None
        about = {"cache-control": "no-store", "hanse-query": answer.query_id, "hanse-read": answer.query_id}
        about["hanse-withheld"] = answer.report()["withheld"]  # known, as all owners have answered
        self.init_headers(about | dict(headers or {}))  # without a length, which is not known yet
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_wait_for_disconnect(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                sending.cancel()
            try:
                await sending
            except (asyncio.CancelledError, ConnectorError, OSError):
                return  # the client left, or the answer broke off; the log has the reason
        finally:
            leaving.cancel()
            sending.cancel()
            await self._answer.close()

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._answer.parts()) as parts:
            async for part in parts:
                await send({"type": "http.response.body", "body": bytes(part), "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
