"""HTTP for the exports: the whole catalogue as DCAT-AP with hydra paging, one dataset in every format, its validation.

Thin: what is in them is decided by the viewer's view, as everywhere.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from catalogue.access import PUBLIC, Access, Viewer
from catalogue.exports import EXPORTS, croissant, dcat
from catalogue.exports.dcat import About, Paging
from catalogue.facets import Card
from catalogue.search import Search
from catalogue.settings import Settings
from catalogue.validation import validate
from connector.errors import BadInput, NotFound

_PAGE = 100
_PAGE_BYTES = 8 * 2**20  # roughly: a page ends before the dataset that would make it longer


def router(search: Search, access: Access, settings: Settings) -> APIRouter:
    """Exports for harvesters and tools."""
    routes = APIRouter(tags=["exports"])
    looking = Depends(access.viewer)
    about = About(root=settings.root_url, title=settings.title, operator=settings.did, operator_name=settings.title)
    turn = asyncio.Semaphore(1)  # who harvests waits for others who do, and nobody else for any of them

    async def written(write: Callable[[], str]) -> str:
        async with turn:
            return await asyncio.to_thread(write)

    @routes.get("/catalog.{suffix}", response_class=Response)
    async def catalog(request: Request, suffix: str, after: str = "", viewer: Viewer = looking) -> Response:
        """The catalogue as DCAT-AP 3 in pages of up to 100, linked by hydra (jsonld, ttl, rdf)."""
        export = EXPORTS.get(suffix)
        if export is None:
            raise NotFound(f"expected catalog.{' or catalog.'.join(EXPORTS)}, came catalog.{suffix[:20]}")
        cards, following = _light(*await search.page(viewer, after=_cursor(after), size=_PAGE))
        first = f"{settings.root_url}/catalog.{suffix}"
        paging = Paging(
            here=f"{first}?after={after}" if after else first,
            first=first,
            following=f"{first}?after={_encoded(following)}" if following else "",
            total=sum((await search.owners(viewer)).values()),
        )
        text = await written(lambda: export.text(dcat.catalog(cards, about, paging)))
        return _answer(request, viewer, text, export.media_type)

    @routes.get("/datasets/{dataset_id:path}/croissant", response_class=Response)
    async def as_croissant(request: Request, dataset_id: str, viewer: Viewer = looking) -> Response:
        """One dataset as Croissant 1.1."""
        shown = await search.dataset(dataset_id, viewer)
        text = await written(lambda: json.dumps(croissant.croissant(shown.card, about), ensure_ascii=False, indent=1))
        return _answer(request, viewer, text, croissant.MEDIA_TYPE)

    @routes.get("/datasets/{dataset_id:path}/dcat.{suffix}", response_class=Response)
    async def as_dcat(request: Request, dataset_id: str, suffix: str, viewer: Viewer = looking) -> Response:
        """One dataset as DCAT-AP 3 (jsonld, ttl, rdf)."""
        export = EXPORTS.get(suffix)
        if export is None:
            raise NotFound(f"expected dcat.{' or dcat.'.join(EXPORTS)}, came dcat.{suffix[:20]}")
        shown = await search.dataset(dataset_id, viewer)
        text = await written(lambda: export.text([dcat.dataset(shown.card, about)]))
        return _answer(request, viewer, text, export.media_type)

    @routes.get("/datasets/{dataset_id:path}/validation")
    async def validation(dataset_id: str, viewer: Viewer = looking) -> dict[str, Any]:
        """What the description lacks: DCAT-AP's mandatory and recommended parts, and what helps people find it."""
        shown = await search.dataset(dataset_id, viewer)
        return validate(shown.card).to_json()

    return routes


def _answer(request: Request, viewer: Viewer, text: str, media_type: str) -> Response:
    etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    scope = "public, max-age=60" if viewer.kind == PUBLIC else "private, no-cache"
    headers = {"etag": etag, "cache-control": scope, "vary": "authorization, cookie"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(text, media_type=media_type, headers=headers)


def _light(cards: list[Card], following: str) -> tuple[list[Card], str]:
    """As many of the first datasets of a page as fit into one answer, one at least, and where to go on."""
    whole = 0
    for place, card in enumerate(cards):
        whole += dcat.weight(card)
        if whole > _PAGE_BYTES and place:
            return cards[:place], cards[place - 1].entry.id
    return cards, following


def _encoded(dataset_id: str) -> str:
    return base64.urlsafe_b64encode(dataset_id.encode()).decode().rstrip("=")


def _cursor(text: str) -> str:
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode() if text else ""
        if not decoded.isprintable():  # no id is one
            raise ValueError
        return decoded
    except (binascii.Error, ValueError) as error:
        raise BadInput("expected a page address as hydra:next gave it; start at the first page") from error
