"""Agreements on the management API: what was signed, what it means, what was used of it, and its end."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from connector.dsp.agreements import AgreementService
from connector.dsp.states import PROVIDER
from connector.errors import ScopeMissing
from connector.management.offers import sentences
from connector.management.sign_on.auth import Caller, Tokens
from connector.store.tables import Agreement, GrantState
from policies.contracts.contract import to_json
from policies.review import report


class Revocation(BaseModel):
    """Why an agreement is ended."""

    model_config = ConfigDict(extra="forbid")

    reason: str = Field(min_length=1, max_length=2_000, description="Told to the other side.")


class AgreementView(BaseModel):
    """An agreement. `state` is pending (not final yet), active or ended."""

    id: str
    role: str
    state: str
    negotiation_id: str
    dataset: str
    offer_id: str
    provider: str
    consumer: str
    counterparty: str
    digest: str
    signed_at: float
    ended_at: float | None
    end_reason: str
    problem: str = Field(
        default="",
        description="Of one that is ours to keep: why nothing is served under it, and what to do; then there may be "
        "neither words nor contracts.",
    )
    verified: dict[str, Any] = Field(
        default_factory=dict,
        description="What proved the identity of the counterparty as it was concluded: `holder`, `key` (thumbprint) "
        "and `credentials`; empty in older agreements.",
    )


class RevokedView(AgreementView):
    """An agreement that has ended. `others`: what else its consumer has under the same offer, in force or not final;
    each is revoked by itself (at the provider, at most 100)."""

    others: list[str]


class AgreementDetail(AgreementView):
    """With its rules, in words and as they are enforced; `contract` and `used` at the provider only."""

    policy: dict[str, Any]
    sentences: list[dict[str, str]]
    report: list[dict[str, Any]]
    contract: list[dict[str, Any]]
    used: dict[str, float]  # epsilon may be a fraction, the rest are whole


def view(row: Agreement, problem: str = "") -> AgreementView:
    return AgreementView(**_fields(row), problem=problem)


def _fields(row: Agreement) -> dict[str, Any]:
    state = "ended" if row.ended_at is not None else "active" if row.finalized else "pending"
    return {
        "id": row.id,
        "role": row.role,
        "state": state,
        "negotiation_id": row.negotiation_id,
        "dataset": row.dataset_id,
        "offer_id": row.offer_id,
        "provider": row.provider,
        "consumer": row.consumer,
        "counterparty": row.consumer if row.role == PROVIDER else row.provider,
        "digest": row.digest,
        "signed_at": row.signed_at,
        "ended_at": row.ended_at,
        "end_reason": row.end_reason,
        "verified": row.verified,
    }


def _used(grant: GrantState | None) -> dict[str, float]:
    names = ("queries", "queries_today", "rows", "bytes")
    if grant is None:
        return {}
    return {name: int(getattr(grant, name)) for name in names} | {"epsilon": grant.epsilon_micro / 1_000_000}


AsRole = Annotated[Literal["", "consumer", "provider"], Query(alias="role", description="Ours in it.")]


def router(
    *, agreements: AgreementService, tokens: Tokens, contract: Callable[[str], Awaitable[Mapping[str, Any]]]
) -> APIRouter:
    """`contract` asks an agreement's owner what it allows us."""
    routes = APIRouter(prefix="/agreements", tags=["agreements"])
    reader = Depends(tokens.require("read"))

    @routes.get("", summary="Agreements, the newest first")
    async def listed(
        as_role: AsRole = "",
        dataset: Annotated[str, Query(max_length=255)] = "",
        counterparty: Annotated[str, Query(max_length=255, description="DID of the other side.")] = "",
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        _: Caller = reader,
    ) -> list[AgreementView]:
        about = {"role": as_role, "dataset_id": dataset, "counterparty": counterparty}
        found = await agreements.list_page(**about, limit=limit, offset=offset)
        problems = await agreements.find_problems(found)
        return [view(row, problems.get(row.id, "")) for row in found]

    @routes.get("/{agreement_id}", summary="One agreement and what it means")
    async def get(agreement_id: str, as_role: AsRole = "", _: Caller = reader) -> AgreementDetail:
        row, grant = await agreements.get(agreement_id, role=as_role)
        meant = await agreements.interpret(row)
        return AgreementDetail(
            **_fields(row),
            policy=row.policy,
            problem=meant.problem,
            sentences=[] if meant.policy is None else sentences(meant.policy),
            report=[] if meant.policy is None else report.to_json(report.enforceability(meant.policy)),
            contract=[json.loads(to_json(contract)) for contract in meant.contracts],
            used=_used(grant),
        )

    @routes.get("/{agreement_id}/contract", summary="What may be read under one of ours, as its owner says")
    async def allowed(agreement_id: str, _: Caller = reader) -> dict[str, Any]:
        return dict(await contract(agreement_id))

    @routes.post("/{agreement_id}/revoke", summary="End an agreement now, with everything that runs under it")
    async def revoke(agreement_id: str, why: Revocation, as_role: AsRole = "", caller: Caller = reader) -> RevokedView:
        row, _ = await agreements.get(agreement_id, role=as_role)
        needed = "owner" if row.role == PROVIDER else "consume"
        if not caller.may(needed):
            raise ScopeMissing(f"expected a token with the scope {needed!r} to end an agreement as {row.role}")
        others = list(await agreements.list_others(row))
        ended = await agreements.revoke(agreement_id, reason=why.reason, by=caller.name, role=row.role)
        return RevokedView(**_fields(ended), others=others)

    return routes
