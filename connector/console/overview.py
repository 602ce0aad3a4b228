"""Overview page: identity, health, open decisions, running reads and recent refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.audit import signed_note
from connector.audit.log import AuditLog, Filter
from connector.console.audit import record_to_view
from connector.console.negotiations import list_waiting
from connector.console.page import READS, PageRenderer
from connector.dataplane.running_reads import RunningRead, list_running
from connector.errors import Absent
from connector.management import negotiations as negotiations_api
from connector.management.audit import log_read_event
from connector.management.sign_on.auth import Caller
from connector.settings import Settings
from connector.store import Store, Transaction

_REFUSALS = 6
_PAGE, _PAGES_MAX = 50, 30  # at most this many refusals are searched
_WAITING = 5


@dataclass(frozen=True, slots=True)
class OverviewState:
    """The figures of the page, from one database transaction."""

    datasets: int
    offers: int
    agreements: dict[str, int]
    waiting: list[Any]
    decisions: int
    started: int
    reads: list[RunningRead]  # the newest
    reading: int  # number of all running reads


def router(pages: PageRenderer, *, store: Store, log: AuditLog, settings: Settings) -> APIRouter:
    routes = pages.router()

    @routes.get("/")
    async def overview(request: Request, caller: Caller = pages.may("")) -> Response:
        if not caller.may("read"):
            return RedirectResponse("/audit" if caller.may("audit") else "/query", status_code=303)
        state = await store.read(_read_state)
        return await pages.render(
            request,
            "overview.html",
            where="overview",
            state=state,
            waiting=[negotiations_api.view(row) for row in state.waiting],
            head=await _read_head(log),
            log_problem=log.sequencer.problem,
            refusals=await _list_refusals(log, caller) if caller.may("audit") else None,
            has_members=bool(await pages.names()),
            settings=settings,
        )

    return routes


def _read_state(tx: Transaction) -> OverviewState:
    waiting, number = list_waiting(tx, limit=_WAITING)
    return OverviewState(
        datasets=tx.datasets.count(),
        offers=tx.datasets.count_offers_in_force(),
        agreements={role: tx.agreements.count_in_force(role=role) for role in ("provider", "consumer")},
        waiting=waiting,
        decisions=number,
        started=tx.transfers.count(state="STARTED"),
        reads=list_running(tx, limit=READS),
        reading=tx.reads.count(),
    )


async def _read_head(log: AuditLog) -> tuple[int, str] | None:
    """Return size and root hash of the newest signed head; None without one."""
    try:
        _, size, root = signed_note.read_head(await log.head())
    except Absent:
        return None
    return size, root.hex()


async def _list_refusals(log: AuditLog, caller: Caller) -> list[dict[str, Any]]:
    """List the newest refusals. A federated query counts once, by its first record, not once for each agreement."""
    await log.note_reading(log_read_event(caller, "overview", {"outcome": "refused"}))
    found: list[dict[str, Any]] = []
    before: int | None = None
    for _ in range(_PAGES_MAX):
        records = await log.page(Filter(outcome="refused"), before=before, limit=_PAGE)
        found += [one for one in map(record_to_view, records) if "whole" not in one["body"].get("detail", {})]
        if len(found) >= _REFUSALS or len(records) < _PAGE:
            break
        before = records[-1].idx
    return found[:_REFUSALS]
