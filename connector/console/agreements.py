"""Agreements: what was signed in plain words, what was used of it, and its end."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import READS, Desk, Numbered, form_of, part_of
from connector.console.view.formatting import path_of
from connector.dataplane.running_reads import RunningRead, list_running
from connector.dsp.agreements import AgreementService
from connector.dsp.states import PROVIDER
from connector.errors import BadInput, HanseError, ScopeMissing
from connector.management import agreements as agreements_api
from connector.management import transfers as transfers_api
from connector.management.auth import Caller
from connector.store import Store, Transaction
from connector.store.queries.agreements import count_today
from connector.store.tables import Agreement, Transfer
from connector.usage.quotas import DAY
from policies.contracts.contract import DataContract, to_json
from policies.review import report

_LISTED = 100
_OPEN = ("REQUESTED", "STARTED", "SUSPENDED")
_LIMITS = (
    ("queries", "Queries", "queries"),
    ("queries_today", "Queries today", "queries_per_day"),
    ("rows", "Rows", "rows"),
    ("bytes", "Bytes", "bytes"),
)


def router(desk: Desk, *, agreements: AgreementService, store: Store) -> APIRouter:
    routes = desk.router()

    @routes.get("/agreements")
    async def listed(
        request: Request, role: str = "", page: Numbered = 1, caller: Caller = desk.may("read")
    ) -> Response:
        asked: dict[str, Any] = {"role": role if role in ("provider", "consumer") else ""}
        rows = await agreements.list_page(**asked, **part_of(page, _LISTED))
        problems = await agreements.find_problems(rows[:_LISTED])
        return await desk.page(
            request,
            "agreements.html",
            where="agreements",
            agreements=[agreements_api.view(row, problems.get(row.id, "")) for row in rows[:_LISTED]],
            asked=asked,
            page=page,
            more=len(rows) > _LISTED,
        )

    async def _one(
        request: Request, agreement_id: str, role: str, *, confirm: str = "", error: HanseError | None = None
    ) -> Response:
        row, grant = await agreements.get(agreement_id, role=role)
        meant = await agreements.interpret(row)
        transfers, unended, reads, reading = await store.read(lambda tx: _running(tx, row))
        return await desk.page(
            request,
            "agreement.html",
            status=error.status if error else 200,
            where="agreements",
            agreement=agreements_api.view(row),
            policy=row.policy,
            not_kept=meant.problem,
            report=[] if meant.policy is None else report.to_json(report.enforceability(meant.policy)),
            contracts=[json.loads(to_json(contract)) for contract in meant.contracts],
            usage=_usage(grant, meant.contracts) if grant is not None else [],
            transfers=[transfers_api.view(one) for one in transfers],
            unended=unended,
            reads=reads,
            reading=reading,
            others=await agreements.list_others(row) if confirm or row.ended_at is not None else (),
            confirm=confirm,
            error=error,
        )

    @routes.get("/agreements/{agreement_id}")
    async def one(request: Request, agreement_id: str, role: str = "", caller: Caller = desk.may("read")) -> Response:
        return await _one(request, agreement_id, role)

    @routes.post("/agreements/{agreement_id}/revoke")
    async def revoke(
        request: Request, agreement_id: str, role: str = "", caller: Caller = desk.may("read")
    ) -> Response:
        """In two steps: the reason first, then the reason once more with what will happen."""
        said = await form_of(request)
        row, _ = await agreements.get(agreement_id, role=role)
        needed = "owner" if row.role == PROVIDER else "consume"
        if not caller.may(needed):
            raise ScopeMissing(f"expected a token with the scope {needed!r} to end an agreement as {row.role}")
        reason = said.get("reason")[:2000]
        if not reason:
            missing = BadInput("expected a reason, came none; the other side and the log are told it")
            return await _one(request, agreement_id, row.role, error=missing)
        if said.get("sure") != "yes":
            return await _one(request, agreement_id, row.role, confirm=reason)
        await agreements.revoke(agreement_id, reason=reason, by=caller.name, role=row.role)
        return RedirectResponse(f"{path_of('/agreements', agreement_id)}?role={row.role}", status_code=303)

    return routes


def _running(tx: Transaction, row: Agreement) -> tuple[list[Transfer], int, list[RunningRead], int]:
    """The newest transfers under an agreement, how many of all have not ended, the newest reads of our data under it,
    and how many of these there are."""
    ours: dict[str, Any] = {"agreement_id": row.id, "role": row.role}
    number = sum(tx.transfers.count(**ours, state=one) for one in _OPEN)
    reads = list_running(tx, agreement=row.id, limit=READS) if row.role == PROVIDER else []
    reading = tx.reads.count(agreement=row.id) if reads else 0
    return list(tx.transfers.page(**ours, limit=20)), number, reads, reading


def _usage(grant: Any, contracts: tuple[DataContract, ...]) -> list[dict[str, Any]]:
    """Each counter with the least limit that a contract sets. Rows and bytes count only where they are limited."""
    found, today = [], count_today(grant, day=int(time.time() // DAY))
    for counter, title, limit in _LIMITS:
        limits = [most for one in contracts if (most := getattr(one.limits, limit)) is not None]
        shares = [share for one in contracts if (share := one.limits.share) is not None] if counter == "rows" else []
        if limits or shares or counter not in ("rows", "bytes"):
            told = f"{min(shares):g} % of the dataset at most" if shares else "no limit"
            used = today if counter == "queries_today" else int(getattr(grant, counter))
            found.append({"title": title, "used": used, "most": min(limits, default=None), "told": told})
    if budgets := [one.grid.privacy.epsilon for one in contracts if one.grid and one.grid.privacy]:
        found.append({"title": "Privacy budget", "used": grant.epsilon_micro / 1_000_000, "most": min(budgets)})
    return found
