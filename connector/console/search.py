"""Searching the data space through its catalogue, reading a partner's terms, and asking for an agreement."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import Desk, form_of
from connector.console.view.formatting import path_of
from connector.dsp.negotiation import NegotiationService
from connector.dsp.participants import ParticipantDirectory
from connector.errors import HanseError, NotFound
from connector.management.auth import Caller
from policies.errors import PolicyError
from policies.odrl import reader
from policies.review import report

Search = Callable[[str], Awaitable[Mapping[str, Any]]]
_FACETS = ("theme", "participant", "purpose", "policy", "keyword")


def router(
    desk: Desk, *, search: Search, partners: ParticipantDirectory, negotiations: NegotiationService
) -> APIRouter:
    """`search` takes the query string of the catalogue's own search and gives its JSON answer."""
    routes = desk.router()

    @routes.get("/search")
    async def find(request: Request, q: str = "", page: int = 1, caller: Caller = desk.may("read")) -> Response:
        chosen = {name: request.query_params.getlist(name) for name in _FACETS}
        pairs = [("q", q[:500]), ("page", str(max(1, page)))]
        pairs += [(name, value) for name, values in chosen.items() for value in values]
        found, error = {}, None
        try:
            found = dict(await search(urlencode(pairs)))
        except HanseError as failed:
            error = failed
        return await desk.page(
            request, "search.html", where="search", q=q, page=page, chosen=chosen, found=found, error=error, link=_link
        )

    async def _offered(request: Request, participant: str, dataset: str, error: HanseError | None = None) -> Response:
        partner = await partners.find(participant)
        listed = await partners.dataset(partner, dataset)
        return await desk.page(
            request,
            "offered.html",
            status=error.status if error else 200,
            where="search",
            partner=partner,
            listed=listed,
            offers=[_read(offer) for offer in listed.offers],
            error=error,
        )

    @routes.get("/search/{participant}/{dataset:path}")
    async def terms(request: Request, participant: str, dataset: str, caller: Caller = desk.may("read")) -> Response:
        return await _offered(request, participant, dataset)

    @routes.post("/search/{participant}/{dataset:path}")
    async def agree(request: Request, participant: str, dataset: str, caller: Caller = desk.may("consume")) -> Response:
        offer_id = (await form_of(request)).get("offer")
        try:
            partner = await partners.find(participant)
            listed = await partners.dataset(partner, dataset)
            offer = next((one for one in listed.offers if one.get("@id") == offer_id), None)
            if offer is None:
                raise NotFound(f"{partner.name or partner.id} no longer offers {offer_id!r} to us; read the terms anew")
            row = await negotiations.request(
                counterparty=partner.id,
                address=partner.base,
                dataset_id=listed.id,
                offer={key: value for key, value in offer.items() if key != "target"},
                by=caller.name,
            )
        except HanseError as error:
            return await _offered(request, participant, dataset, error)
        return RedirectResponse(path_of("/negotiations", row.id), status_code=303)

    return routes


def _read(offer: Mapping[str, Any]) -> dict[str, Any]:
    """An offer in sentences, or why it cannot be read here."""
    try:
        policy = reader.read({"@type": "Offer", **offer})
        lines, problem = report.to_json(report.enforceability(policy)), ""
    except PolicyError as error:
        lines, problem = [], str(error)
    return {"id": str(offer.get("@id", "")), "report": lines, "problem": problem, "policy": dict(offer)}


def _link(q: str, chosen: Mapping[str, list[str]], name: str = "", value: str = "", page: int = 1) -> str:
    """The search page with a filter put in where it is not, else taken out."""
    filters = {key: list(values) for key, values in chosen.items()}
    if name:
        values = filters.setdefault(name, [])
        values.remove(value) if value in values else values.append(value)
    pairs = [("q", q)] if q else []
    pairs += [(key, one) for key, values in filters.items() for one in values]
    pairs += [("page", str(page))] if page > 1 else []
    return f"/search?{urlencode(pairs)}" if pairs else "/search"
