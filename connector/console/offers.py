"""Offer pages: list, one offer with a preview as a partner, and withdrawal. `offer_editor` writes new ones."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import RedirectResponse

from connector.console.page import Numbered, PageRenderer, page_slice, read_form
from connector.console.view.formatting import did_of, path_of
from connector.datasets.registry import Registry
from connector.events import RawDataViewed, ReadEnded, ReadStarted
from connector.management import offers as offers_api
from connector.management.sign_on.auth import Caller
from connector.offers.offers import Offers
from connector.offers.preview import OwnersView, PreviewRequest
from connector.store.tables import Offer

_LISTED = 50
_ACTIONS = ("ds:query", "ds:stream")
_ASKED = PreviewRequest(participant="")


def router(pages: PageRenderer, *, offers: Offers, registry: Registry, owners_view: OwnersView) -> APIRouter:
    """Return the routes; those of `offer_editor` must come first, as an id here may be any path."""
    routes = pages.router()

    @routes.get("/offers")
    async def list_offers(request: Request, page: Numbered = 1, caller: Caller = pages.may("read")) -> Response:
        rows = await offers.page(**page_slice(page, _LISTED))
        found = [offers_api.view(row) for row in rows[:_LISTED]]
        return await pages.render(
            request, "offers.html", where="offers", offers=found, page=page, more=len(rows) > _LISTED
        )

    async def _render_offer(
        request: Request, row: Offer, asked: PreviewRequest = _ASKED, seen: dict[str, Any] | None = None
    ) -> Response:
        dataset = await registry.get(row.dataset_id) if row.withdrawn_at is None else None
        return await pages.render(
            request,
            "offer.html",
            where="offers",
            offer=offers_api.view(row),
            dataset=dataset[0] if dataset else None,
            seen=seen,
            actions=_ACTIONS,
            asked={"as": asked.participant, "purpose": asked.purpose, "action": asked.action},
        )

    @routes.get("/offers/preview")
    async def preview(
        request: Request,
        offer: Annotated[str, Query(max_length=255)],
        partner: Annotated[str, Query(alias="as", max_length=2_048)] = "",
        purpose: Annotated[str, Query(max_length=1_024)] = "",
        action: Annotated[str, Query(max_length=200)] = _ACTIONS[0],
        caller: Caller = pages.may_raw("owner", RawDataViewed, ReadStarted, ReadEnded),
    ) -> Response:
        """Show an offer with the data that a partner would see."""
        row, did = await offers.get(offer), did_of(partner.strip(), await pages.names())
        asked = PreviewRequest(participant=did, offer=row.id, purpose=purpose, action=action)
        fits = did and row.withdrawn_at is None
        seen = await owners_view.preview(row.dataset_id, asked, by=caller.name) if fits else None
        return await _render_offer(request, row, asked, seen)

    @routes.get("/offers/{offer_id:path}")
    async def view_offer(request: Request, offer_id: str, caller: Caller = pages.may("read")) -> Response:
        return await _render_offer(request, await offers.get(offer_id))

    @routes.post("/offers/withdraw")
    async def withdraw(request: Request, caller: Caller = pages.may("owner")) -> Response:
        offer_id = (await read_form(request)).get("offer")
        await offers.withdraw(offer_id, by=caller.name)
        return RedirectResponse(path_of("/offers", offer_id), status_code=303)

    return routes
