"""Facts on the management API: what is known of a participant and from whom, and what the owner vouches for.

Beside them the credentials by which issuers vouch for us.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field

from connector.errors import Invalid
from connector.management.sign_on.auth import Caller, Tokens
from connector.store.tables import Attestation, CredentialRequest
from connector.usage.fact_collector import FactCollector
from connector.wallet.credential_requests import CredentialRequests, HeldView
from policies import vocabulary
from policies.evaluation.evaluate import Facts
from policies.evaluation.values import instant
from policies.vocabulary import Counting, Phase
from policies.vocabulary.terms import RULE

_FACTS = (Phase.CATALOGUE, Phase.NEGOTIATION, Phase.TRANSFER)


class NewFact(BaseModel):
    """Something that the owner knows of a participant or of a dataset, and answers for."""

    model_config = ConfigDict(extra="forbid")

    subject: str = Field(max_length=255, description="DID of a participant; name or id of a dataset for what it says.")
    fact: str = Field(max_length=255, description="The word of the policy vocabulary, e.g. ds:permit.")
    values: list[Annotated[str, Field(min_length=1, max_length=255)]] = Field(min_length=1, max_length=100)
    valid_until: str = Field("", max_length=40, description="Until when: a time with its zone, or a day; empty: open.")
    evidence: str = Field("", max_length=2_000, description="Where it is known from: a certificate, a letter, a file.")


class FactView(BaseModel):
    subject: str
    fact: str
    value: str
    valid_until: float | None
    evidence: str
    recorded_by: str
    recorded_at: float


class NewCredentialRequest(BaseModel):
    """A request to an issuer for a credential about us."""

    model_config = ConfigDict(extra="forbid")

    issuer: str = Field(max_length=255, description="DID of an issuer that HANSE_CREDENTIAL_ISSUERS lists.")
    type: str = Field(max_length=200, description="Type of the credential, e.g. MembershipCredential.")


class CredentialRequestView(BaseModel):
    id: str
    issuer: str
    type: str
    status: str
    reason: str
    requested_by: str
    created_at: float
    updated_at: float


class CredentialView(BaseModel):
    """A credential that we hold. `status`: valid, expired, revoked, suspended, withdrawn, or unknown for now."""

    id: str
    name: str
    issuer: str
    types: list[str]
    status: str
    expires: float | None
    stored_at: float


def view_request(row: CredentialRequest) -> CredentialRequestView:
    return CredentialRequestView(**{name: getattr(row, name) for name in CredentialRequestView.model_fields})


def view_credential(held: HeldView) -> CredentialView:
    shown = {name: getattr(held.row, name) for name in CredentialView.model_fields if name != "status"}
    return CredentialView(**shown, status=held.status)


def credentials_router(requests: CredentialRequests, tokens: Tokens) -> APIRouter:
    """The credentials that we hold, and our requests for them."""
    routes = APIRouter(prefix="/credentials", tags=["credentials"])
    owner = Depends(tokens.require("owner"))
    reader = Depends(tokens.require("read"))

    @routes.get("", summary="Credentials that we hold, the newest first, with their status now")
    async def list_credentials(_: Caller = reader) -> list[CredentialView]:
        return [view_credential(one) for one in await requests.list_held()]

    @routes.post("/requests", status_code=201, summary="Ask an issuer for a credential about us")
    async def request(new: NewCredentialRequest, caller: Caller = owner) -> CredentialRequestView:
        return view_request(await requests.request(new.issuer, new.type, by=caller.name))

    @routes.get("/requests", summary="Our requests for credentials, the newest first, as last known")
    async def list_requests(_: Caller = reader) -> list[CredentialRequestView]:
        return [view_request(row) for row in await requests.list_requests()]

    @routes.get("/requests/{pid}", summary="One request; its issuer is asked for the status while it is open")
    async def get_request(pid: str, _: Caller = reader) -> CredentialRequestView:
        return view_request(await requests.refresh(pid))

    return routes


def view(row: Attestation) -> FactView:
    return FactView(**{name: getattr(row, name) for name in FactView.model_fields})


def until_of(text: str) -> float | None:
    """The end in UTC seconds of a time or a day; Invalid for one without a zone."""
    if not text:
        return None
    try:
        found = instant(text, "")
    except ValueError as error:
        raise Invalid(f"valid_until: {error}") from None
    if found.loose:
        raise Invalid(f"valid_until: expected a time with its zone (2027-12-31T00:00:00Z) or a day, came {text!r}")
    return found.end / 1e9


def known_json(facts: Facts) -> dict[str, Any]:
    """What is known, each with its source and end, and what is not, each with who could supply it."""
    return {"known": facts.to_json(), "unknown": dict(_unknown(facts))}


def _unknown(facts: Facts) -> list[tuple[str, str]]:
    words = (one for one in vocabulary.OPERANDS.values() if RULE in one.where and one.phase in _FACTS and one.fact)
    asked = (one for one in words if one.counting is Counting.PLAIN and one.fact not in facts)
    return [(one.fact, vocabulary.describe_suppliers(one.name) or "nobody here") for one in asked]


def router(known: FactCollector, tokens: Tokens) -> APIRouter:
    routes = APIRouter(prefix="/facts", tags=["facts"])
    owner = Depends(tokens.require("owner"))
    reader = Depends(tokens.require("read"))

    @routes.get("", summary="What you vouch for, in order of subject, fact and value")
    async def listed(
        after: Annotated[list[str] | None, Query(max_length=3, description="The last one's three keys.")] = None,
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        _: Caller = reader,
    ) -> list[FactView]:
        keys = [*(after or []), "", "", ""]
        return [view(row) for row in await known.recorded(after=(keys[0], keys[1], keys[2]), limit=limit)]

    @routes.get("/known", summary="All that is known of a participant now, and who could supply what is not")
    async def of(participant: Annotated[str, Query(max_length=255)], _: Caller = reader) -> dict[str, Any]:
        return {"participant": participant, **known_json(await known.of(participant))}

    @routes.post("", status_code=201, summary="Vouch for a fact")
    async def record(new: NewFact, caller: Caller = owner) -> list[FactView]:
        rows = await known.record(
            new.subject,
            new.fact,
            new.values,
            evidence=new.evidence,
            until=until_of(new.valid_until),
            by=caller.name,
        )
        return [view(row) for row in rows]

    @routes.delete("", status_code=204, summary="Vouch for it no longer")
    async def withdraw(
        subject: Annotated[str, Query(max_length=255)],
        fact: Annotated[str, Query(max_length=255)],
        value: Annotated[str, Query(max_length=255, description="Empty: all values of the fact.")] = "",
        caller: Caller = owner,
    ) -> None:
        await known.withdraw(subject, fact, value, by=caller.name)

    return routes
