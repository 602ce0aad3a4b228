"""HTTP for the exports: the whole catalogue as DCAT-AP with hydra paging, one dataset as a page and in
every format, its validation.

Thin: what is in them is decided by the viewer's view, as everywhere.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from catalogue.api.access import PUBLIC, Viewer, ViewerAuthenticator
from catalogue.crawl.description_quality import validate
from catalogue.exports import EXPORTS, Export, croissant, dcat
from catalogue.exports.dcat import About, Paging
from catalogue.search.facets import EntryView
from catalogue.search.search_service import Gone, Search
from catalogue.settings import CatalogueSettings
from connector.errors import Absent, Invalid

_PAGE = 100
_PAGE_BYTES = 8 * 2**20  # roughly: a page ends before the dataset that would make it longer


def _json(made: Any) -> str:
    return json.dumps(made, ensure_ascii=False, indent=1)


def _in_dcat(export: Export, card: EntryView, about: About) -> str:
    return export.text([dcat.dataset(card, about)])


# How a dataset can be had besides its page: the media type and the writer of each.
WAYS: dict[str, tuple[str, Callable[[EntryView, About], str]]] = {
    "croissant": (croissant.MEDIA_TYPE, lambda card, about: _json(croissant.croissant(card, about))),
    **{f"dcat.{suffix}": (export.media_type, partial(_in_dcat, export)) for suffix, export in EXPORTS.items()},
    "validation": ("application/json", lambda card, _: _json(validate(card).to_json())),
}
_Way = Annotated[str, Query(alias="as", description=f"One of {', '.join(WAYS)}; empty is a page for people.")]


def router(
    search: Search,
    access: ViewerAuthenticator,
    settings: CatalogueSettings,
    *,
    page: Callable[[Request, EntryView, Viewer], Response],
) -> APIRouter:
    """Routes of the exports. `page` renders a dataset for a browser at the same address."""
    routes = APIRouter(tags=["exports"])
    looking = Depends(access.viewer)
    about = About(root=settings.root_url, title=settings.title, operator=settings.did, operator_name=settings.title)
    turn = asyncio.Semaphore(1)  # who harvests waits for others who do, and nobody else for any of them

    async def write_in_thread(write: Callable[[], str]) -> str:
        async with turn:
            return await asyncio.to_thread(write)

    @routes.get("/catalog.{suffix}", response_class=Response)
    async def catalog(request: Request, suffix: str, after: str = "", viewer: Viewer = looking) -> Response:
        """The catalogue as DCAT-AP 3 in pages of up to 100, linked by hydra (jsonld, ttl, rdf)."""
        export = EXPORTS.get(suffix)
        if export is None:
            raise Absent(f"expected catalog.{' or catalog.'.join(EXPORTS)}, came catalog.{suffix[:20]}")
        cards, following = _fit_page(*await search.page(viewer, after=_decode_cursor(after), size=_PAGE))
        first = f"{settings.root_url}/catalog.{suffix}"
        paging = Paging(
            here=f"{first}?after={after}" if after else first,
            first=first,
            following=f"{first}?after={_encode_cursor(following)}" if following else "",
            total=sum((await search.owners(viewer)).values()),
        )
        text = await write_in_thread(lambda: export.text(dcat.catalog(cards, about, paging)))
        return _answer(request, viewer, text, export.media_type)

    async def find_dataset(dataset_id: str, way: str, viewer: Viewer) -> tuple[EntryView, str]:
        """The dataset at an address and the requested format.

        Older addresses of exports ended in the format's name. They still work unless a dataset has that id.
        """
        try:
            return (await search.dataset(dataset_id, viewer)).card, way
        except Absent as error:
            whole, _, last = dataset_id.rpartition("/")
            if way or last not in WAYS or isinstance(error, Gone):
                raise
        return (await search.dataset(whole, viewer)).card, last

    @routes.get("/datasets/{dataset_id:path}", response_class=Response)
    async def dataset(
        request: Request,
        dataset_id: str,
        way: _Way = "",
        viewer: Viewer = looking,
    ) -> Response:
        """One dataset: a page for people, Croissant 1.1, DCAT-AP 3, or what its description lacks."""
        if way and way not in WAYS:
            raise Invalid(f"expected as={' or as='.join(WAYS)}, came {way[:50]!r}; without it, there is a page")
        card, way = await find_dataset(dataset_id, way, viewer)
        if not way:
            return page(request, card, viewer)
        media_type, write = WAYS[way]
        return _answer(request, viewer, await write_in_thread(lambda: write(card, about)), media_type)

    return routes


def _answer(request: Request, viewer: Viewer, text: str, media_type: str) -> Response:
    etag = f'"{hashlib.sha256(text.encode()).hexdigest()[:32]}"'
    scope = "public, max-age=60" if viewer.kind == PUBLIC else "private, no-cache"
    headers = {"etag": etag, "cache-control": scope, "vary": "authorization, cookie"}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(text, media_type=media_type, headers=headers)


def _fit_page(cards: list[EntryView], following: str) -> tuple[list[EntryView], str]:
    """As many of the first datasets of a page as fit into one answer, one at least, and where to go on."""
    whole = 0
    for place, card in enumerate(cards):
        whole += dcat.weight(card)
        if whole > _PAGE_BYTES and place:
            return cards[:place], cards[place - 1].entry.id
    return cards, following


def _encode_cursor(dataset_id: str) -> str:
    return base64.urlsafe_b64encode(dataset_id.encode()).decode().rstrip("=")


def _decode_cursor(text: str) -> str:
    try:
        decoded = base64.b64decode(text + "=" * (-len(text) % 4), b"-_", validate=True).decode() if text else ""
        if not decoded.isprintable():  # no id is one
            raise ValueError
        return decoded
    except (binascii.Error, ValueError) as error:
        raise Invalid("expected a page address as hydra:next gave it; start at the first page") from error
