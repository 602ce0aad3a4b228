"""Query page: one federated query, its plan, its answer, and the figures of each owner."""

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

from connector.console.page import Form, PageRenderer, read_form
from connector.console.view.chart import chart
from connector.dataplane.http.export_formats import MEDIA
from connector.engine.pool.protocol import ARROW
from connector.errors import ConnectorError, Invalid, Unavailable
from connector.events import QueryCoordinated
from connector.federation.coordinator import END_OF_STREAM, Coordinator, FederatedAnswer, Question
from connector.federation.planner.model import TableInfo
from connector.federation.tables import Holdings
from connector.management.notify.long_poll import run_unless_gone
from connector.management.queries import AnswerResponse
from connector.management.sign_on.auth import Caller
from policies.vocabulary.terms import expand

_KEPT_BYTES = 8 * 2**20  # of an answer shown on the page; the rest is counted and discarded
_KEPT_ROWS = 200
_FIELDS = {"sql": "", "purpose": "", "seconds": "60", "partial": ""}
_TABLES_SECONDS = 5.0
_SECONDS_MAX = 300.0
_READ_SECONDS = 30.0
_ROWS = Path(__file__).parent / "view" / "arrow_preview.py"
# File formats of an answer; the merging worker writes them (`file_formats`).
FILES = {
    "csv": MEDIA["csv"],
    "csv_guarded": MEDIA["csv_guarded"],
    "json": "application/x-ndjson",
    "parquet": MEDIA["parquet"],
    "arrow_file": "application/vnd.apache.arrow.file",
}


@dataclass(slots=True)
class QueryOutcome:
    """The result of a question: a plan, an answer with its figures, or an error."""

    plan: dict[str, Any] | None = None
    table: dict[str, Any] | None = None
    chart: str = ""
    report: dict[str, Any] | None = None
    error: ConnectorError | None = None


def router(pages: PageRenderer, *, coordinator: Coordinator, holdings: Holdings) -> APIRouter:
    routes = pages.router()

    @routes.get("/query")
    async def editor(
        request: Request, sql: str = "", purpose: str = "", run: str = "", caller: Caller = pages.may("consume")
    ) -> Response:
        past = coordinator.progress(run) if run else None
        fields = _FIELDS | ({"sql": past.sql, "purpose": past.purpose} if past else {"sql": sql, "purpose": purpose})
        return await _render_page(request, fields, QueryOutcome())

    async def _render_page(request: Request, fields: dict[str, str], asked: QueryOutcome) -> Response:
        error = asked.error
        return await pages.render(
            request,
            "query.html",
            status=error.status if error else 200,
            where="query",
            fields=fields,
            asked=asked,
            error=error,
            tables=await _list_tables(holdings, fields["purpose"]),
            history=coordinator.recent()[:20],
        )

    @routes.post("/query")
    async def ask(request: Request, caller: Caller = pages.may_raw("consume", QueryCoordinated)) -> Response:
        said = await read_form(request)
        fields = {name: said.get(name) for name in _FIELDS}
        asked = QueryOutcome()
        try:
            if said.get("do") == "explain":
                asked.plan = await run_unless_gone(request, _explain(coordinator, _read_question(said), caller))
            elif said.get("do") == "export":
                question = _read_question(said, form=_check_format(said.get("format")))
                return await run_unless_gone(request, _export(coordinator, question, caller))
            else:
                await run_unless_gone(request, _run_query(coordinator, _read_question(said), caller, asked))
        except ConnectorError as failed:
            asked.error = failed
        return await _render_page(request, fields, asked)

    @routes.post("/query/stop")
    async def stop(request: Request, caller: Caller = pages.may("consume")) -> Response:
        coordinator.cancel((await read_form(request)).get("query"))
        return RedirectResponse("/query", status_code=303)

    return routes


def _check_format(form: str) -> str:
    """Return the format. Raises: Invalid if it is unknown."""
    if form not in FILES:
        raise Invalid(f"expected a format among {', '.join(FILES)}, got {form[:20]!r}")
    return form


def _read_question(said: Form, *, form: str = ARROW) -> Question:
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


async def _list_tables(holdings: Holdings, purpose: str) -> list[TableInfo] | None:
    """List the tables that a question may name; None if the owners do not answer in time."""
    try:
        async with asyncio.timeout(_TABLES_SECONDS):
            found = (await holdings.tables(None, expand(purpose) if purpose else "")).tables
    except (ConnectorError, TimeoutError):
        return None
    return sorted(found.values(), key=lambda table: (table.dataset, table.owner))


async def _explain(coordinator: Coordinator, question: Question, caller: Caller) -> dict[str, Any]:
    from connector.federation import plan_text

    return plan_text.to_json(await coordinator.plan(question, by=caller.name))


async def _export(coordinator: Coordinator, question: Question, caller: Caller) -> Response:
    """Return the answer as a file; errors before its first byte are shown on the page."""
    answer = await coordinator.ask(question, by=caller.name)
    name = f"answer.{question.format.partition('_')[0]}"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return AnswerResponse(answer, media=FILES[question.format], headers=headers)


async def _run_query(coordinator: Coordinator, question: Question, caller: Caller, asked: QueryOutcome) -> None:
    answer = await coordinator.ask(question, by=caller.name)
    try:
        beginning = await _read_beginning(answer)
        asked.report = answer.report()
        asked.plan = await asyncio.to_thread(_describe_plan, answer, asked.report)
    finally:
        await answer.close()
    asked.table = await _read_cells(beginning)
    asked.chart = chart(asked.table)


def _describe_plan(answer: FederatedAnswer, report: dict[str, Any]) -> dict[str, Any]:
    from connector.federation import plan_text

    return plan_text.to_json(answer.plan, actual=report["owners"])


async def _read_beginning(answer: FederatedAnswer) -> bytes:
    """Return the first rows of an answer as a complete stream; the rest is read and discarded."""
    kept, parts = bytearray(), 0
    async with aclosing(answer.parts()) as coming:
        async for part in coming:
            full = parts > 1 and (len(kept) + len(part) > _KEPT_BYTES or answer.report()["rows"] > 8 * _KEPT_ROWS)
            if parts == 0 or not full:
                kept += part
            parts += 1
    ended = bytes(kept)
    return ended if ended.endswith(END_OF_STREAM) else ended + END_OF_STREAM


async def _read_cells(stream: bytes) -> dict[str, Any]:
    """Convert the rows to text in a separate process, because this process must not load Arrow."""
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
        raise Unavailable(
            "the answer was received but could not be shown in time; ask for fewer rows, or use the client"
        ) from error
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
    return found
