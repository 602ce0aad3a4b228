"""Negotiations with the queue of decisions, and transfers: what runs between us and others, and steering it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import Desk, Numbered, form_of, here_only, part_of
from connector.console.view.formatting import path_of
from connector.dataplane.push.push_receiver import PushReceiver
from connector.dsp import auto_decisions, states
from connector.dsp.negotiation import NegotiationService
from connector.dsp.states import PROVIDER
from connector.dsp.transfer import TransferService
from connector.errors import BadInput, HanseError, NotFound, ScopeMissing
from connector.management import negotiations as negotiations_api
from connector.management import transfers as transfers_api
from connector.management.auth import Caller
from connector.store import Store, Transaction
from connector.store.tables import Negotiation, Transfer

_LISTED = 100
_ROLES = ("provider", "consumer")
_DECISIONS = ("approve", "terminate")
_REMOVE = "remove"  # what was received; steers nothing
_STEERING = ("start", "suspend", "resume", "complete", "terminate")


def router(
    desk: Desk, *, negotiations: NegotiationService, transfers: TransferService, receiving: PushReceiver, store: Store
) -> APIRouter:
    routes = desk.router()

    @routes.get("/negotiations")
    async def listed(
        request: Request, role: str = "", state: str = "", page: Numbered = 1, caller: Caller = desk.may("read")
    ) -> Response:
        asked: dict[str, Any] = {"role": role if role in _ROLES else "", "state": state[:16]}
        queue, waiting = await store.read(lambda tx: queued(tx, limit=_LISTED)) if page == 1 else ([], 0)
        rows = await store.read(lambda tx: list(tx.negotiations.page(**part_of(page, _LISTED), **asked)))
        return await desk.page(
            request,
            "negotiations.html",
            where="negotiations",
            queue=[negotiations_api.view(row) for row in queue],
            waiting=waiting,
            negotiations=[negotiations_api.view(row) for row in rows[:_LISTED]],
            page=page,
            more=len(rows) > _LISTED,
            asked=asked,
            states=sorted(set(states.FINAL) | {row.state for row in rows}),
        )

    async def _negotiation(pid: str) -> Negotiation:
        row = await store.read(lambda tx: tx.negotiations.peek(pid))
        if row is None:
            raise NotFound(f"no negotiation {pid[:100]!r}; see the list of negotiations")
        return row

    async def _shown(request: Request, pid: str, error: HanseError | None = None) -> Response:
        found = negotiations_api.view(await _negotiation(pid))
        return await desk.page(
            request,
            "negotiation.html",
            status=error.status if error else 200,
            where="negotiations",
            negotiation=found,
            error=error,
        )

    @routes.get("/negotiations/{pid}")
    async def one(request: Request, pid: str, caller: Caller = desk.may("read")) -> Response:
        return await _shown(request, pid)

    @routes.post("/negotiations/{pid}")
    async def decide(request: Request, pid: str, caller: Caller = desk.may("read")) -> Response:
        row, said = await _negotiation(pid), await form_of(request)
        _check_may(caller, row)
        command, reason = said.get("command"), said.get("reason")[:2000]
        try:
            if command not in _DECISIONS:
                raise BadInput(f"expected one of {', '.join(_DECISIONS)}, came {command[:40]!r}")
            if command == "terminate" and not reason:
                raise BadInput("expected a reason for the rejection, came none; the other side is told it")
            code = "rejected" if command == "terminate" else ""
            await negotiations.command(pid, command, by=caller.name, code=code, reason=reason)
        except HanseError as error:
            return await _shown(request, pid, error)
        return RedirectResponse(here_only(said.get("back") or path_of("/negotiations", pid)), status_code=303)

    @routes.get("/transfers")
    async def transfers_page(
        request: Request, role: str = "", state: str = "", page: Numbered = 1, caller: Caller = desk.may("read")
    ) -> Response:
        return await _transfers(request, role if role in _ROLES else "", state[:16], page)

    async def _transfers(
        request: Request, role: str = "", state: str = "", page: int = 1, error: HanseError | None = None
    ) -> Response:
        rows = await transfers_api.views(
            store, receiving, lambda tx: list(tx.transfers.page(role=role, state=state, **part_of(page, _LISTED)))
        )
        about = await store.read(lambda tx: tx.agreements.read_dataset_ids([row.agreement_id for row in rows]))
        return await desk.page(
            request,
            "transfers.html",
            status=error.status if error else 200,
            where="transfers",
            transfers=rows[:_LISTED],
            datasets=about,
            page=page,
            more=len(rows) > _LISTED,
            asked={"role": role, "state": state},
            error=error,
        )

    @routes.post("/transfers")
    async def ask(request: Request, caller: Caller = desk.may("consume")) -> Response:
        said = await form_of(request)
        agreement_id = said.get("agreement")
        await transfers.request(
            agreement_id=agreement_id,
            format=said.get("format")[:64] or "HttpData-PULL",
            purpose=said.get("purpose"),
            by=caller.name,
        )
        return RedirectResponse(f"{path_of('/agreements', agreement_id)}?role=consumer", status_code=303)

    @routes.post("/transfers/{pid}")
    async def steer(request: Request, pid: str, caller: Caller = desk.may("read")) -> Response:
        said = await form_of(request)
        row = await store.read(lambda tx: tx.transfers.peek(pid))
        if row is None:
            raise NotFound(f"no transfer {pid[:100]!r}; see the list of transfers")
        _check_may(caller, row)
        try:
            if said.get("command") == _REMOVE:
                await receiving.remove(pid, by=caller.name)
                return RedirectResponse(here_only(said.get("back") or "/transfers"), status_code=303)
            if said.get("command") not in _STEERING:
                raise BadInput(f"expected one of {', '.join(_STEERING)}, came {said.get('command')[:40]!r}")
            await transfers.command(pid, said.get("command"), by=caller.name, reason=said.get("reason")[:2000])
        except HanseError as error:
            return await _transfers(request, error=error)
        return RedirectResponse(here_only(said.get("back") or "/transfers"), status_code=303)

    return routes


def queued(tx: Transaction, *, limit: int) -> tuple[list[Negotiation], int]:
    """What waits for a decision of ours, the oldest first and no more than `limit`, and how many there are."""
    rows: list[Negotiation] = []
    number = 0
    for role, state in auto_decisions.NEGOTIATION:
        rows += tx.negotiations.page(role=role, state=state, waiting=True, oldest=True, limit=limit)
        number += tx.negotiations.count(role=role, state=state, waiting=True)
    return sorted(rows, key=lambda row: row.created_at)[:limit], number


def _check_may(caller: Caller, row: Negotiation | Transfer) -> None:
    needed = "owner" if row.role == PROVIDER else "consume"
    if not caller.may(needed):
        raise ScopeMissing(f"expected a token with the scope {needed!r} to decide as {row.role}; log in with another")
