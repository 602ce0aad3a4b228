"""Duties on the management API, and the endpoint where a consumer's connector reports evidence to its provider."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from connector.dsp.duty_upkeep import DutyLedger
from connector.dsp.routes import Authenticate
from connector.dsp.states import PROVIDER
from connector.errors import ScopeMissing
from connector.management.agreements import AsRole
from connector.management.sign_on.auth import Caller, Tokens


class Evidence(BaseModel):
    """Evidence that a duty was fulfilled."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(max_length=255, description="The duty, by its path: /obligation/0 or /permission/0/duty/0.")
    evidence: str = Field(min_length=1, max_length=4_000, description="What was done, and where that can be seen.")


class DutyReportBody(Evidence):
    """A consumer's report to its provider."""

    agreement: str = Field(max_length=255)


def router(ledger: DutyLedger, tokens: Tokens) -> APIRouter:
    routes = APIRouter(tags=["duties"])
    reader = Depends(tokens.require("read"))

    @routes.get("/duties", summary="Duties that are due or overdue, under all agreements")
    async def list_open(
        limit: Annotated[int, Query(ge=1, le=1_000)] = 1_000, _: Caller = reader
    ) -> list[dict[str, Any]]:
        found = await ledger.list_open(limit=limit)
        return [
            {"agreement": row.id, "role": row.role, "dataset": row.dataset_id, **one.to_json()} for row, one in found
        ]

    @routes.get("/agreements/{agreement_id}/duties", summary="What one agreement asks to be done, and where it stands")
    async def list_duties(agreement_id: str, as_role: AsRole = "", _: Caller = reader) -> list[dict[str, Any]]:
        return [one.to_json() for one in await ledger.of(agreement_id, role=as_role)]

    @routes.post("/agreements/{agreement_id}/duties", status_code=201, summary="Record that a duty was fulfilled")
    async def report(
        agreement_id: str, given: Evidence, as_role: AsRole = "", caller: Caller = reader
    ) -> dict[str, Any]:
        role = await ledger.find_role(agreement_id, role=as_role)
        needed = "owner" if role == PROVIDER else "consume"  # a provider's word unlocks data
        if not caller.may(needed):
            raise ScopeMissing(f"expected a token with the scope {needed!r} to record evidence as {role}")
        made = await ledger.report(agreement_id, given.path, evidence=given.evidence, by=caller.name, role=role)
        return {**made.standing.to_json(), "told": made.told, **({"why": made.why} if made.why else {})}

    return routes


def public_router(ledger: DutyLedger, authenticate: Authenticate) -> APIRouter:
    """Return the routes that a consumer's connector calls."""
    routes = APIRouter(prefix="/data/v1", tags=["data plane"])

    @routes.post("/duties", status_code=201, summary="Report a fulfilled duty (bearer: self-issued token)")
    async def receive_report(told: DutyReportBody, request: Request) -> dict[str, str]:
        caller = await authenticate(request.headers.get("authorization"))
        found = await ledger.on_report(told.agreement, told.path, evidence=told.evidence, consumer=caller.id)
        return {"path": found.path, "state": found.state.value}

    return routes
