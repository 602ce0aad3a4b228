"""Negotiations on the management API: request, list, wait, and each message that a person may send."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from connector.dsp import auto_decisions, states
from connector.dsp.negotiation import NegotiationService
from connector.dsp.participants import Participant, ParticipantDirectory
from connector.errors import Absent, Invalid, ScopeMissing
from connector.infra.http.strict_routes import StrictRoute
from connector.management.agreements import AsRole
from connector.management.notify import long_poll
from connector.management.sign_on.auth import DECIDING, Caller, Tokens
from connector.store import Store
from connector.store.tables import Negotiation
from policies.errors import PolicyError
from policies.odrl import reader as policy_reader
from policies.review import explain

_OUR_TURN = tuple(auto_decisions.NEGOTIATION)
State = Literal["", "REQUESTED", "OFFERED", "ACCEPTED", "AGREED", "VERIFIED", "FINALIZED", "TERMINATED"]
Command = Literal["offer", "agree", "finalize", "accept", "counter", "verify", "approve", "terminate"]


class NewNegotiation(BaseModel):
    """A request to a provider. Without a policy, the offer is read from the provider's catalogue."""

    model_config = ConfigDict(extra="forbid")

    participant: str = Field("", max_length=255, description="Name or DID of a member; or say how to reach it:")
    counter_party_id: str = Field("", max_length=255, description="DID of the provider.")
    counter_party_address: str = Field("", max_length=2_000, description="Base URL of its 2025-1 endpoints.")
    dataset: str = Field(
        max_length=255, validation_alias=AliasChoices("dataset", "dataset_id"), description="Id, or a member's name."
    )
    offer_id: str = Field("", max_length=255, description="Which offer; empty: the first, for `purpose`.")
    policy: dict[str, Any] | None = Field(
        None, validation_alias=AliasChoices("policy", "offer"), description="Terms to ask for, as an ODRL offer."
    )
    decide: str = Field("auto", max_length=16, description="auto: accept and verify by itself; manual: nothing.")
    purpose: str = Field(
        "", max_length=1024, description="What for (IRI or dpv:...): an offer for other purposes is not asked for."
    )
    correlation: str = Field("", max_length=255)


class NewProposal(BaseModel):
    """A published offer for a participant that has not requested it."""

    model_config = ConfigDict(extra="forbid")

    participant: str = Field("", max_length=255)
    counter_party_id: str = Field("", max_length=255)
    counter_party_address: str = Field("", max_length=2_000)
    offer_id: str = Field(max_length=255)


class NegotiationCommandBody(BaseModel):
    """The content of a command."""

    model_config = ConfigDict(extra="forbid")

    offer: dict[str, Any] | None = Field(None, description="Terms, for `offer` and `counter`.")
    code: str = Field("", max_length=255, description="For `terminate`: why, for machines.")
    reason: str = Field("", max_length=2_000, description="For `terminate`: why, for people.")


class NegotiationView(BaseModel):
    """A negotiation. `pending`: our message that is not acknowledged yet. `waits_for`: whose turn it is.

    `purpose`: the purpose of our request, if it was given.
    """

    id: str
    role: str
    peer_pid: str
    counterparty: str
    address: str
    state: str
    pending: str
    waits_for: str
    dataset: str
    offer_id: str
    offer: dict[str, Any]
    sentences: list[str]
    decide: str
    purpose: str
    agreement_id: str
    code: str
    reason: str
    correlation: str
    created_at: float
    updated_at: float


def view(row: Negotiation) -> NegotiationView:
    """Return a negotiation for people and programs."""
    return NegotiationView(
        id=row.id,
        role=row.role,
        peer_pid=row.peer_pid,
        counterparty=row.counterparty,
        address=row.address,
        state=states.published(states.NEGOTIATION, row.state, row.pending, row.role),
        pending=row.pending,
        waits_for=_whose_turn(row),
        dataset=row.dataset_id,
        offer_id=row.offer_id,
        offer=row.offer,
        sentences=_sentences(row.offer),
        decide=row.decide,
        purpose=row.purpose,
        agreement_id=row.agreement_id,
        code=row.code,
        reason=row.reason,
        correlation=row.correlation,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )


def _whose_turn(row: Negotiation) -> str:
    if row.state in states.FINAL:
        return ""
    ours = (row.role, row.state) in _OUR_TURN and not row.pending
    return "us" if ours else "counterparty"


def _sentences(offer: dict[str, Any]) -> list[str]:
    return list(
        _explain_rules(json.dumps({key: value for key, value in offer.items() if key not in ("@id", "target")}))
    )


@lru_cache(maxsize=512)
def _explain_rules(rules: str) -> tuple[str, ...]:
    """Return a policy as sentences. Cached, because a negotiation is read far more often than its terms change."""
    try:
        return tuple(
            sentence.text for sentence in explain.sentences(policy_reader.read({"@type": "Offer", **json.loads(rules)}))
        )
    except PolicyError:
        return ()


def router(
    *, negotiations: NegotiationService, partners: ParticipantDirectory, store: Store, tokens: Tokens
) -> APIRouter:
    routes = APIRouter(tags=["negotiations"], route_class=StrictRoute)
    reader = Depends(tokens.require("read"))
    consumer = Depends(tokens.require("consume"))
    owner = Depends(tokens.require("owner"))

    async def find_partner(new: NewNegotiation | NewProposal) -> Participant:
        if new.counter_party_id and new.counter_party_address:
            return Participant(new.counter_party_id, new.counter_party_address)
        if not new.participant:
            raise Invalid("expected participant, or counter_party_id and counter_party_address; came neither")
        return await partners.find(new.participant)

    async def find_row(pid: str) -> Negotiation:
        row = await store.read(lambda tx: tx.negotiations.peek(pid))
        if row is None:
            raise Absent(f"no negotiation {pid!r}; list them with `hanse negotiations`")
        return row

    @routes.get("/catalog", summary="A participant's catalogue, as it shows itself to us")
    async def catalog(
        participant: Annotated[str, Query(max_length=255)],
        address: Annotated[str, Query(max_length=2_000, description="Base URL, for participants in no register.")] = "",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1_000,
        dataset: Annotated[
            str, Query(max_length=255, description="Only this one, by id or a member's name, if it is found by that.")
        ] = "",
        _: Caller = reader,
    ) -> dict[str, Any]:
        found = Participant(participant, address.rstrip("/")) if address else await partners.find(participant)
        return await partners.catalog(found, limit=limit, dataset=dataset)

    @routes.post("/negotiations", status_code=201, summary="Ask a provider for an agreement")
    async def ask(new: NewNegotiation, caller: Caller = consumer) -> NegotiationView:
        found = await find_partner(new)
        offers: tuple[dict[str, Any], ...] = (new.policy,) if new.policy is not None else ()
        if not offers:
            listed = await partners.dataset(found, new.dataset)
            offers = _choose(listed.offers, new.offer_id)
        if new.offer_id:
            offers = ({**offers[0], "@id": new.offer_id},)
        row = await negotiations.request(
            counterparty=found.id,
            address=found.base,
            dataset_id=found.dataset_id(new.dataset),
            offer=offers[0],
            others=offers[1:],
            decide=new.decide,
            purpose=new.purpose,
            by=caller.name,
            correlation=new.correlation,
        )
        return view(row)

    @routes.post("/negotiations/offers", status_code=201, summary="Make a published offer to a participant")
    async def propose(new: NewProposal, caller: Caller = owner) -> NegotiationView:
        found = await find_partner(new)
        row = await negotiations.propose(
            counterparty=found.id, address=found.base, offer_id=new.offer_id, by=caller.name
        )
        return view(row)

    @routes.get("/negotiations", summary="Negotiations, the newest first")
    async def list_negotiations(
        role: AsRole = "",
        state: State = "",
        counterparty: Annotated[str, Query(max_length=255, description="DID of the other side.")] = "",
        dataset: Annotated[str, Query(max_length=255, description="Id of the dataset.")] = "",
        waiting_for_us: Annotated[bool, Query(description="Only those that wait for a decision of ours.")] = False,
        correlation: Annotated[str, Query(max_length=255, description="As given when it was asked for.")] = "",
        limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
        offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
        _: Caller = reader,
    ) -> list[NegotiationView]:
        about: dict[str, Any] = {"counterparty": counterparty, "dataset_id": dataset}
        if waiting_for_us:
            rows = await store.read(
                lambda tx: [
                    row
                    for ours, at in _OUR_TURN
                    if role in ("", ours) and state in ("", at)
                    for row in tx.negotiations.page(role=ours, state=at, waiting=True, limit=limit, **about)
                ]
            )
            return [view(row) for row in sorted(rows, key=lambda row: -row.created_at)[:limit]]
        rows = list(
            await store.read(
                lambda tx: tx.negotiations.page(
                    role=role, state=state, correlation=correlation, limit=limit, offset=offset, **about
                )
            )
        )
        return [view(row) for row in rows]

    @routes.get("/negotiations/{pid}", summary="One negotiation; `wait` for it to get somewhere")
    async def get(
        pid: str,
        wait: Annotated[float, Query(ge=0, le=long_poll.LONGEST)] = 0.0,
        until: State = "",
        _: Caller = reader,
    ) -> NegotiationView:
        if not wait:
            return view(await find_row(pid))
        return view(await long_poll.wait_until(store, pid, lambda: find_row(pid), state=until, seconds=wait))

    @routes.post("/negotiations/{pid}/{command}", summary="Send the next message of ours, or end it")
    async def command(
        pid: str, command: Command, said: NegotiationCommandBody | None = None, caller: Caller = reader
    ) -> NegotiationView:
        row = await find_row(pid)
        if not caller.may_decide(row.role):
            needed = " or ".join(map(repr, DECIDING[row.role]))
            raise ScopeMissing(f"expected a token with the scope {needed} for a negotiation as {row.role}")
        given = said or NegotiationCommandBody()
        row = await negotiations.command(
            pid, command, by=caller.name, offer=given.offer, code=given.code, reason=given.reason
        )
        return view(row)

    return routes


def _choose(offers: tuple[dict[str, Any], ...], wanted: str) -> tuple[dict[str, Any], ...]:
    """Return the offers that may be requested, in order: the wanted one, else all.

    Raises: Absent without such an offer.
    """
    fitting = [offer for offer in offers if not wanted or offer.get("@id") == wanted]
    if not fitting:
        known = ", ".join(str(offer.get("@id")) for offer in offers) or "none"
        raise Absent(f"the dataset has no offer {wanted!r} for us; it has {known}")
    return tuple({key: value for key, value in offer.items() if key != "target"} for offer in fitting)
