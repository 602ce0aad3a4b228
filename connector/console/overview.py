"""The first page: who we are, whether all is well, what waits for a person, what runs, what was refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.audit import signed_note
from connector.audit.log import AuditLog, Filter
from connector.console.audit import shown
from connector.console.negotiations import queued
from connector.console.page import READS, Desk
from connector.dataplane.running_reads import Running, running
from connector.errors import NotFound
from connector.management import negotiations as negotiations_api
from connector.management.audit import log_read_event
from connector.management.auth import Caller
from connector.settings import Settings
from connector.store import Store, Transaction

_REFUSALS = 6
_PAGE, _PAGES_MAX = 50, 30  # refusals that are looked at for these
_WAITING = 5


@dataclass(frozen=True, slots=True)
class State:
    """One look at the database."""

    datasets: int
    offers: int
    agreements: dict[str, int]
    waiting: list[Any]
    decisions: int
    started: int
    reads: list[Running]  # the newest
    reading: int  # how many there are


def router(desk: Desk, *, store: Store, log: AuditLog, settings: Settings) -> APIRouter:
    routes = desk.router()

    @routes.get("/")
    async def overview(request: Request, caller: Caller = desk.may("")) -> Response:
        if not caller.may("read"):
            return RedirectResponse("/audit" if caller.may("audit") else "/query", status_code=303)
        state = await store.read(_state)
        return await desk.page(
            request,
            "overview.html",
            where="overview",
            state=state,
            waiting=[negotiations_api.view(row) for row in state.waiting],
            head=await _head(log),
            log_problem=log.sequencer.problem,
            refusals=await _refusals(log, caller) if caller.may("audit") else None,
            has_members=bool(await desk.names()),
            settings=settings,
        )

    return routes


def _state(tx: Transaction) -> State:
    waiting, number = queued(tx, limit=_WAITING)
    return State(
        datasets=tx.datasets.count(),
        offers=tx.datasets.count_offers_in_force(),
        agreements={role: tx.agreements.count_in_force(role=role) for role in ("provider", "consumer")},
        waiting=waiting,
        decisions=number,
        started=tx.transfers.count(state="STARTED"),
        reads=running(tx, limit=READS),
        reading=tx.reads.count(),
    )


async def _head(log: AuditLog) -> tuple[int, str] | None:
    """Size and root of the newest signed head."""
    try:
        _, size, root = signed_note.read_head(await log.head())
    except NotFound:
        return None
    return size, root.hex()


async def _refusals(log: AuditLog, caller: Caller) -> list[dict[str, Any]]:
    """The newest. A question over many owners has a record under each of its agreements, of which the first stands for
    it here: one could fill the list otherwise."""
    await log.note_reading(log_read_event(caller, "overview", {"outcome": "refused"}))
    found: list[dict[str, Any]] = []
    before: int | None = None
    for _ in range(_PAGES_MAX):
        records = await log.page(Filter(outcome="refused"), before=before, limit=_PAGE)
        found += [one for one in map(shown, records) if "whole" not in one["body"].get("detail", {})]
        if len(found) >= _REFUSALS or len(records) < _PAGE:
            break
        before = records[-1].idx
    return found[:_REFUSALS]
