"""Search pages: search the catalogue, show a partner's terms, and request an agreement."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import PageRenderer, read_form
from connector.console.view.formatting import path_of
from connector.dsp.negotiation import NegotiationService
from connector.dsp.participants import ParticipantDirectory
from connector.errors import Absent, ConnectorError
from connector.management.sign_on.auth import Caller
from policies.errors import PolicyError
from policies.odrl import reader
from policies.review import report

Search = Callable[[str], Awaitable[Mapping[str, Any]]]
_FACETS = ("theme", "participant", "purpose", "policy", "keyword")


def router(
    pages: PageRenderer, *, search: Search, partners: ParticipantDirectory, negotiations: NegotiationService
) -> APIRouter:
    """`search` takes the query string of the catalogue's search and returns its JSON answer."""
    routes = pages.router()

    @routes.get("/search")
    async def find(request: Request, q: str = "", page: int = 1, caller: Caller = pages.may("read")) -> Response:
        chosen = {name: request.query_params.getlist(name) for name in _FACETS}
        pairs = [("q", q[:500]), ("page", str(max(1, page)))]
        pairs += [(name, value) for name, values in chosen.items() for value in values]
        found, error = {}, None
        try:
            found = dict(await search(urlencode(pairs)))
        except ConnectorError as failed:
            error = failed
        return await pages.render(
            request, "search.html", where="search", q=q, page=page, chosen=chosen, found=found, error=error, link=_link
        )

    async def _render_offers(
        request: Request, participant: str, dataset: str, error: ConnectorError | None = None
    ) -> Response:
        partner = await partners.find(participant)
        listed = await partners.dataset(partner, dataset)
        return await pages.render(
            request,
            "offered.html",
            status=error.status if error else 200,
            where="search",
            partner=partner,
            listed=listed,
            offers=[_explain_offer(offer) for offer in listed.offers],
            error=error,
        )

    @routes.get("/search/{participant}/{dataset:path}")
    async def terms(request: Request, participant: str, dataset: str, caller: Caller = pages.may("read")) -> Response:
        return await _render_offers(request, participant, dataset)

    @routes.post("/search/{participant}/{dataset:path}")
    async def agree(
        request: Request, participant: str, dataset: str, caller: Caller = pages.may("consume")
    ) -> Response:
        offer_id = (await read_form(request)).get("offer")
        try:
            partner = await partners.find(participant)
            listed = await partners.dataset(partner, dataset)
            offer = next((one for one in listed.offers if one.get("@id") == offer_id), None)
            if offer is None:
                raise Absent(f"{partner.name or partner.id} no longer offers {offer_id!r} to us; reload the terms")
            row = await negotiations.request(
                counterparty=partner.id,
                address=partner.base,
                dataset_id=listed.id,
                offer={key: value for key, value in offer.items() if key != "target"},
                by=caller.name,
            )
        except ConnectorError as error:
            return await _render_offers(request, participant, dataset, error)
        return RedirectResponse(path_of("/negotiations", row.id), status_code=303)

    return routes


def _explain_offer(offer: Mapping[str, Any]) -> dict[str, Any]:
    """Return an offer in sentences, or why it cannot be interpreted."""
    try:
        policy = reader.read({"@type": "Offer", **offer})
        lines, problem = report.to_json(report.enforceability(policy)), ""
    except PolicyError as error:
        lines, problem = [], str(error)
    return {"id": str(offer.get("@id", "")), "report": lines, "problem": problem, "policy": dict(offer)}


def _link(q: str, chosen: Mapping[str, list[str]], name: str = "", value: str = "", page: int = 1) -> str:
    """Return the search link with a filter toggled."""
    filters = {key: list(values) for key, values in chosen.items()}
    if name:
        values = filters.setdefault(name, [])
        values.remove(value) if value in values else values.append(value)
    pairs = [("q", q)] if q else []
    pairs += [(key, one) for key, values in filters.items() for one in values]
    pairs += [("page", str(page))] if page > 1 else []
    return f"/search?{urlencode(pairs)}" if pairs else "/search"
