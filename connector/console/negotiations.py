"""Negotiation and transfer pages: lists, the queue of open decisions, and commands."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import Numbered, PageRenderer, page_slice, read_form
from connector.console.view.formatting import path_of
from connector.dataplane.foreign_fetch import is_of_hanse
from connector.dataplane.push.push_receiver import PushReceiver
from connector.dsp import auto_decisions, states
from connector.dsp.messages import address_of
from connector.dsp.negotiation import NegotiationService
from connector.dsp.states import CONSUMER, PROVIDER, STARTED
from connector.dsp.transfer import TransferService
from connector.errors import Absent, ConnectorError, Invalid, ScopeMissing
from connector.infra.html.page_language import local_path
from connector.management import negotiations as negotiations_api
from connector.management import transfers as transfers_api
from connector.management.sign_on.auth import DECIDING, Caller
from connector.store import Store, Transaction
from connector.store.tables import Negotiation, Transfer

_LISTED = 100
_ROLES = ("provider", "consumer")
_DECISIONS = ("approve", "terminate")
_REMOVE = "remove"  # deletes received data; not a transfer command
_STEERING = ("start", "suspend", "resume", "complete", "terminate")


def router(
    pages: PageRenderer,
    *,
    negotiations: NegotiationService,
    transfers: TransferService,
    receiving: PushReceiver,
    store: Store,
) -> APIRouter:
    routes = pages.router()

    @routes.get("/negotiations")
    async def list_negotiations(
        request: Request, role: str = "", state: str = "", page: Numbered = 1, caller: Caller = pages.may("read")
    ) -> Response:
        asked: dict[str, Any] = {"role": role if role in _ROLES else "", "state": state[:16]}
        queue, waiting = await store.read(lambda tx: list_waiting(tx, limit=_LISTED)) if page == 1 else ([], 0)
        rows = await store.read(lambda tx: list(tx.negotiations.page(**page_slice(page, _LISTED), **asked)))
        return await pages.render(
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

    async def _read_negotiation(pid: str) -> Negotiation:
        row = await store.read(lambda tx: tx.negotiations.peek(pid))
        if row is None:
            raise Absent(f"no negotiation {pid[:100]!r}; see the list of negotiations")
        return row

    async def _render_negotiation(request: Request, pid: str, error: ConnectorError | None = None) -> Response:
        found = negotiations_api.view(await _read_negotiation(pid))
        return await pages.render(
            request,
            "negotiation.html",
            status=error.status if error else 200,
            where="negotiations",
            negotiation=found,
            error=error,
        )

    @routes.get("/negotiations/{pid}")
    async def view_negotiation(request: Request, pid: str, caller: Caller = pages.may("read")) -> Response:
        return await _render_negotiation(request, pid)

    @routes.post("/negotiations/{pid}")
    async def decide(request: Request, pid: str, caller: Caller = pages.may("read")) -> Response:
        row, said = await _read_negotiation(pid), await read_form(request)
        if not caller.may_decide(row.role):
            raise _scope_missing(" or ".join(map(repr, DECIDING[row.role])), row.role)
        command, reason = said.get("command"), said.get("reason")[:2000]
        try:
            if command not in _DECISIONS:
                raise Invalid(f"expected one of {', '.join(_DECISIONS)}, got {command[:40]!r}")
            if command == "terminate" and not reason:
                raise Invalid("expected a reason for the rejection, got none; it is sent to the other participant")
            code = "rejected" if command == "terminate" else ""
            await negotiations.command(pid, command, by=caller.name, code=code, reason=reason)
        except ConnectorError as error:
            return await _render_negotiation(request, pid, error)
        return RedirectResponse(local_path(said.get("back") or path_of("/negotiations", pid)), status_code=303)

    @routes.get("/transfers")
    async def transfers_page(
        request: Request, role: str = "", state: str = "", page: Numbered = 1, caller: Caller = pages.may("read")
    ) -> Response:
        return await _render_transfers(request, role if role in _ROLES else "", state[:16], page)

    async def _render_transfers(
        request: Request, role: str = "", state: str = "", page: int = 1, error: ConnectorError | None = None
    ) -> Response:
        rows = await transfers_api.views(
            store, receiving, lambda tx: list(tx.transfers.page(role=role, state=state, **page_slice(page, _LISTED)))
        )
        about = await store.read(lambda tx: tx.agreements.read_dataset_ids([row.agreement_id for row in rows]))
        return await pages.render(
            request,
            "transfers.html",
            foreign=await store.read(lambda tx: {row.id for row in rows if _is_foreign_pull(tx, row)}),
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
    async def ask(request: Request, caller: Caller = pages.may("consume")) -> Response:
        said = await read_form(request)
        agreement_id = said.get("agreement")
        await transfers.request(
            agreement_id=agreement_id,
            format=said.get("format")[:64] or "HttpData-PULL",
            purpose=said.get("purpose"),
            by=caller.name,
        )
        return RedirectResponse(f"{path_of('/agreements', agreement_id)}?role=consumer", status_code=303)

    @routes.post("/transfers/{pid}")
    async def steer(request: Request, pid: str, caller: Caller = pages.may("read")) -> Response:
        said = await read_form(request)
        row = await store.read(lambda tx: tx.transfers.peek(pid))
        if row is None:
            raise Absent(f"no transfer {pid[:100]!r}; see the list of transfers")
        _check_scope(caller, row)
        try:
            if said.get("command") == _REMOVE:
                await receiving.remove(pid, by=caller.name)
                return RedirectResponse(local_path(said.get("back") or "/transfers"), status_code=303)
            if said.get("command") not in _STEERING:
                raise Invalid(f"expected one of {', '.join(_STEERING)}, got {said.get('command')[:40]!r}")
            await transfers.command(pid, said.get("command"), by=caller.name, reason=said.get("reason")[:2000])
        except ConnectorError as error:
            return await _render_transfers(request, error=error)
        return RedirectResponse(local_path(said.get("back") or "/transfers"), status_code=303)

    return routes


def list_waiting(tx: Transaction, *, limit: int) -> tuple[list[Negotiation], int]:
    """Return the negotiations that need a local decision, oldest first and at most `limit`, and their total number."""
    rows: list[Negotiation] = []
    for role, state in auto_decisions.NEGOTIATION:
        rows += tx.negotiations.page(role=role, state=state, waiting=True, oldest=True, limit=limit)
    return sorted(rows, key=lambda row: row.created_at)[:limit], count_waiting(tx)


def count_waiting(tx: Transaction) -> int:
    """Return the number of negotiations that need a local decision."""
    cases = auto_decisions.NEGOTIATION
    return sum(tx.negotiations.count(role=role, state=state, waiting=True) for role, state in cases)


def _check_scope(caller: Caller, row: Transfer) -> None:
    needed = "owner" if row.role == PROVIDER else "consume"
    if not caller.may(needed):
        raise _scope_missing(repr(needed), row.role)


def _scope_missing(needed: str, role: str) -> ScopeMissing:
    return ScopeMissing(f"expected a token with the scope {needed} to decide as {role}; log in with another")


def _is_foreign_pull(tx: Transaction, shown: transfers_api.TransferView) -> bool:
    """Whether the data under a transfer is fetched as it is, from another kind of connector."""
    if shown.role != CONSUMER or shown.state != STARTED or shown.format.endswith("-PUSH"):
        return False
    row = tx.transfers.peek(shown.id)
    address = address_of(row.data_address) if row is not None else None
    return address is not None and not is_of_hanse(address.endpoint, dict(address.properties))
