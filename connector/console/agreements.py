"""Agreement pages: signed terms in plain words, usage so far, and revocation."""

from __future__ import annotations

import json
import time
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import READS, Numbered, PageRenderer, page_slice, read_form
from connector.console.view.formatting import path_of
from connector.dataplane.running_reads import RunningRead, list_running
from connector.dsp.agreements import AgreementService
from connector.dsp.states import PROVIDER
from connector.errors import ConnectorError, Invalid, ScopeMissing
from connector.management import agreements as agreements_api
from connector.management import transfers as transfers_api
from connector.management.sign_on.auth import Caller
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


def router(pages: PageRenderer, *, agreements: AgreementService, store: Store) -> APIRouter:
    routes = pages.router()

    @routes.get("/agreements")
    async def list_agreements(
        request: Request, role: str = "", page: Numbered = 1, caller: Caller = pages.may("read")
    ) -> Response:
        asked: dict[str, Any] = {"role": role if role in ("provider", "consumer") else ""}
        rows = await agreements.list_page(**asked, **page_slice(page, _LISTED))
        problems = await agreements.find_problems(rows[:_LISTED])
        return await pages.render(
            request,
            "agreements.html",
            where="agreements",
            agreements=[agreements_api.view(row, problems.get(row.id, "")) for row in rows[:_LISTED]],
            asked=asked,
            page=page,
            more=len(rows) > _LISTED,
        )

    async def _render_agreement(
        request: Request, agreement_id: str, role: str, *, confirm: str = "", error: ConnectorError | None = None
    ) -> Response:
        row, grant = await agreements.get(agreement_id, role=role)
        meant = await agreements.interpret(row)
        transfers, unended, reads, reading = await store.read(lambda tx: _read_running(tx, row))
        return await pages.render(
            request,
            "agreement.html",
            status=error.status if error else 200,
            where="agreements",
            agreement=agreements_api.view(row),
            policy=row.policy,
            not_kept=meant.problem,
            report=[] if meant.policy is None else report.to_json(report.enforceability(meant.policy)),
            contracts=[json.loads(to_json(contract)) for contract in meant.contracts],
            usage=_list_usage(grant, meant.contracts) if grant is not None else [],
            transfers=[transfers_api.view(one) for one in transfers],
            unended=unended,
            reads=reads,
            reading=reading,
            others=await agreements.list_others(row) if confirm or row.ended_at is not None else (),
            confirm=confirm,
            error=error,
        )

    @routes.get("/agreements/{agreement_id}")
    async def view_agreement(
        request: Request, agreement_id: str, role: str = "", caller: Caller = pages.may("read")
    ) -> Response:
        return await _render_agreement(request, agreement_id, role)

    @routes.post("/agreements/{agreement_id}/revoke")
    async def revoke(
        request: Request, agreement_id: str, role: str = "", caller: Caller = pages.may("read")
    ) -> Response:
        """Ask for the reason, then for confirmation with the consequences, then revoke."""
        said = await read_form(request)
        row, _ = await agreements.get(agreement_id, role=role)
        needed = "owner" if row.role == PROVIDER else "consume"
        if not caller.may(needed):
            raise ScopeMissing(f"expected a token with the scope {needed!r} to end an agreement as {row.role}")
        reason = said.get("reason")[:2000]
        if not reason:
            missing = Invalid("expected a reason, got none; it is sent to the other participant and logged")
            return await _render_agreement(request, agreement_id, row.role, error=missing)
        if said.get("sure") != "yes":
            return await _render_agreement(request, agreement_id, row.role, confirm=reason)
        await agreements.revoke(agreement_id, reason=reason, by=caller.name, role=row.role)
        return RedirectResponse(f"{path_of('/agreements', agreement_id)}?role={row.role}", status_code=303)

    return routes


def _read_running(tx: Transaction, row: Agreement) -> tuple[list[Transfer], int, list[RunningRead], int]:
    """Return the newest transfers, the number of open transfers, the newest running reads, and the number of reads."""
    ours: dict[str, Any] = {"agreement_id": row.id, "role": row.role}
    number = sum(tx.transfers.count(**ours, state=one) for one in _OPEN)
    reads = list_running(tx, agreement=row.id, limit=READS) if row.role == PROVIDER else []
    reading = tx.reads.count(agreement=row.id) if reads else 0
    return list(tx.transfers.page(**ours, limit=20)), number, reads, reading


def _list_usage(grant: Any, contracts: tuple[DataContract, ...]) -> list[dict[str, Any]]:
    """List each counter with the smallest limit of any contract. Rows and bytes are counted only if limited."""
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
