"""The model builder's page: one question over many owners, its plan, its answer, and what each owner gave."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import Desk, Form, form_of
from connector.console.view.chart import chart
from connector.dataplane.http.export_formats import MEDIA
from connector.engine.pool.protocol import ARROW
from connector.errors import BadInput, Busy, HanseError
from connector.events import QueryCoordinated
from connector.federation.coordinator import END_OF_STREAM, Answer, Coordinator, Question
from connector.federation.planner.model import TableInfo
from connector.federation.tables import Holdings
from connector.management.auth import Caller
from connector.management.notify.long_poll import run_unless_gone
from connector.management.queries import AnswerResponse
from policies.vocabulary.terms import expand

_KEPT_BYTES = 8 * 2**20  # of an answer, for the page; the rest is counted and let go
_KEPT_ROWS = 200
_FIELDS = {"sql": "", "purpose": "", "seconds": "60", "partial": ""}
_TABLES_SECONDS = 5.0
_SECONDS_MAX = 300.0
_READ_SECONDS = 30.0
_ROWS = Path(__file__).parent / "view" / "arrow_preview.py"
# What an answer can be as a file; the worker that merges it writes it so (`file_formats`).
FILES = {
    "csv": MEDIA["csv"],
    "csv_guarded": MEDIA["csv_guarded"],
    "json": "application/x-ndjson",
    "parquet": MEDIA["parquet"],
    "arrow_file": "application/vnd.apache.arrow.file",
}


@dataclass(slots=True)
class Asked:
    """What came of a question: a plan, an answer with its figures, or an error."""

    plan: dict[str, Any] | None = None
    table: dict[str, Any] | None = None
    chart: str = ""
    report: dict[str, Any] | None = None
    error: HanseError | None = None


def router(desk: Desk, *, coordinator: Coordinator, holdings: Holdings) -> APIRouter:
    routes = desk.router()

    @routes.get("/query")
    async def editor(
        request: Request, sql: str = "", purpose: str = "", run: str = "", caller: Caller = desk.may("consume")
    ) -> Response:
        past = coordinator.progress(run) if run else None
        fields = _FIELDS | ({"sql": past.sql, "purpose": past.purpose} if past else {"sql": sql, "purpose": purpose})
        return await _page(request, fields, Asked())

    async def _page(request: Request, fields: dict[str, str], asked: Asked) -> Response:
        error = asked.error
        return await desk.page(
            request,
            "query.html",
            status=error.status if error else 200,
            where="query",
            fields=fields,
            asked=asked,
            error=error,
            tables=await _tables(holdings, fields["purpose"]),
            history=coordinator.recent()[:20],
        )

    @routes.post("/query")
    async def ask(request: Request, caller: Caller = desk.may_raw("consume", QueryCoordinated)) -> Response:
        said = await form_of(request)
        fields = {name: said.get(name) for name in _FIELDS}
        asked = Asked()
        try:
            if said.get("do") == "explain":
                asked.plan = await run_unless_gone(request, _explained(coordinator, _question(said), caller))
            elif said.get("do") == "export":
                question = _question(said, form=_known(said.get("format")))
                return await run_unless_gone(request, _exported(coordinator, question, caller))
            else:
                await run_unless_gone(request, _answered(coordinator, _question(said), caller, asked))
        except HanseError as failed:
            asked.error = failed
        return await _page(request, fields, asked)

    @routes.post("/query/stop")
    async def stop(request: Request, caller: Caller = desk.may("consume")) -> Response:
        coordinator.cancel((await form_of(request)).get("query"))
        return RedirectResponse("/query", status_code=303)

    return routes


def _known(form: str) -> str:
    """The format if it is one of ours."""
    if form not in FILES:
        raise BadInput(f"expected a format among {', '.join(FILES)}, came {form[:20]!r}")
    return form


def _question(said: Form, *, form: str = ARROW) -> Question:
    text = said.get("seconds")
    seconds = float(text) if text.isdecimal() and 0 < int(text) <= _SECONDS_MAX else 60.0
    purpose = said.get("purpose")
    return Question(
        sql=said.get("sql")[:65_536],
        purpose=expand(purpose) if purpose else "",
        seconds=seconds,
        partial=said.get("partial") == "allow",
        format=form,
    )


async def _tables(holdings: Holdings, purpose: str) -> list[TableInfo] | None:
    """What a question may name; None where it cannot be said in time."""
    try:
        async with asyncio.timeout(_TABLES_SECONDS):
            found = (await holdings.tables(None, expand(purpose) if purpose else "")).tables
    except (HanseError, TimeoutError):
        return None
    return sorted(found.values(), key=lambda table: (table.dataset, table.owner))


async def _explained(coordinator: Coordinator, question: Question, caller: Caller) -> dict[str, Any]:
    from connector.federation import plan_text

    return plan_text.to_json(await coordinator.plan(question, by=caller.name))


async def _exported(coordinator: Coordinator, question: Question, caller: Caller) -> Response:
    """The answer as a file; what stands in its way until its first byte is there is an error for the page."""
    answer = await coordinator.ask(question, by=caller.name)
    name = f"answer.{question.format.partition('_')[0]}"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return AnswerResponse(answer, media=FILES[question.format], headers=headers)


async def _answered(coordinator: Coordinator, question: Question, caller: Caller, asked: Asked) -> None:
    answer = await coordinator.ask(question, by=caller.name)
    try:
        beginning = await _beginning(answer)
        asked.report = answer.report()
        asked.plan = await asyncio.to_thread(_plan_of, answer, asked.report)
    finally:
        await answer.close()
    asked.table = await _cells(beginning)
    asked.chart = chart(asked.table)


def _plan_of(answer: Answer, report: dict[str, Any]) -> dict[str, Any]:
    from connector.federation import plan_text

    return plan_text.to_json(answer.plan, actual=report["owners"])


async def _beginning(answer: Answer) -> bytes:
    """The first rows of an answer as a stream of their own; the rest is read to its end and let go."""
    kept, parts = bytearray(), 0
    async with aclosing(answer.parts()) as coming:
        async for part in coming:
            full = parts > 1 and (len(kept) + len(part) > _KEPT_BYTES or answer.report()["rows"] > 8 * _KEPT_ROWS)
            if parts == 0 or not full:
                kept += part
            parts += 1
    ended = bytes(kept)
    return ended if ended.endswith(END_OF_STREAM) else ended + END_OF_STREAM


async def _cells(stream: bytes) -> dict[str, Any]:
    """The rows as texts, read by a process of its own: this one does not load Arrow."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        str(_ROWS),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(_READ_SECONDS):
            out, _ = await process.communicate(stream)
        found: dict[str, Any] = json.loads(out)
    except (TimeoutError, ValueError) as error:
        raise Busy("the answer came but could not be shown in time; ask for fewer rows, or use the client") from error
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return found
