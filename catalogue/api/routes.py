"""Routes of the search API, of datasets and of the public register. The services decide."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from catalogue.api import schemas
from catalogue.api.access import Viewer, ViewerAuthenticator
from catalogue.members.register import RegisterSigner
from catalogue.search import search_query
from catalogue.search.facets import FACETS, facet_named
from catalogue.search.search_service import Search
from catalogue.search.suggestions import split_last
from catalogue.settings import CatalogueSettings
from connector.errors import Invalid

_OWN = ("q", "column", "page", "size", "sort")
_SUGGEST_MIN = 2  # letters of a word that is completed
_Many = Annotated[list[str] | None, Query()]


def filters_of(request: Request) -> dict[str, list[str]]:
    """Facet filters among a request's parameters: each facet's name is one, as are its others (`owner`), and may come
    more than once."""
    given = request.query_params
    found = {
        name: [one for key in (name, *facet.aliases) for one in given.getlist(key)] for name, facet in FACETS.items()
    }
    return {name: values for name, values in found.items() if values}


def check_known(request: Request) -> None:
    """Raise Invalid for an unknown parameter: an ignored filter would widen the result."""
    if unknown := [name for name in request.query_params if name not in _OWN and facet_named(name) is None]:
        raise Invalid(
            f"expected parameters {', '.join((*_OWN, *FACETS, 'owner'))}, came {unknown[0][:50]!r}",
            code="parameter_unknown",
        )


def router(
    search: Search,
    access: ViewerAuthenticator,
    register: RegisterSigner,
    settings: CatalogueSettings,
    *,
    clock: Callable[[], float],
) -> APIRouter:
    """Routes that need no login; what they show depends on who asks."""
    routes = APIRouter()
    looking = Depends(access.viewer)

    @routes.get("/api/v1/search", tags=["search"])
    async def find(
        request: Request,
        response: Response,
        viewer: Viewer = looking,
        q: Annotated[str, Query(description="Words, and filters like column:age owner:north theme:HEAL.")] = "",
        column: Annotated[list[str] | None, Query(description="Names of columns that a dataset must have.")] = None,
        theme: _Many = None,
        participant: _Many = None,
        purpose: _Many = None,
        policy: _Many = None,
        keyword: _Many = None,
        page: int = 1,
        size: int = search_query.SIZE,
        sort: Annotated[str, Query(description="relevance, title, newest or owner.")] = "relevance",
    ) -> dict[str, Any]:
        """Datasets that fit, best first, with facet counts. Every facet's name is also a parameter."""
        check_known(request)
        filters = filters_of(request)
        asked = search_query.parse_query(q, columns=column or (), filters=filters, page=page, size=size, sort=sort)
        found = await search.ask(asked, viewer)
        if page < found.pages:
            query = request.url.include_query_params(page=page + 1).query
            response.headers["link"] = f'<{settings.root_url}/api/v1/search?{query}>; rel="next"'
        return schemas.results(found, root=settings.root_url, now=clock())

    @routes.get("/api/v1/search/suggestions", tags=["search"])
    async def suggestions(
        request: Request,
        viewer: Viewer = looking,
        q: Annotated[str, Query(description="What is typed so far.")] = "",
        column: Annotated[list[str] | None, Query(description="Names of columns that a dataset must have.")] = None,
    ) -> dict[str, Any]:
        """At most eight completions of a search, from datasets that the caller may see. Facets are parameters too."""
        check_known(request)
        head, beginning = split_last(q)
        asked = search_query.parse_query(head, columns=column or (), filters=filters_of(request))
        found = await search.suggest(asked, beginning, viewer) if len(beginning) >= _SUGGEST_MIN else []
        return {"suggestions": [asdict(one) for one in found]}

    @routes.get("/api/v1/datasets/{dataset_id:path}", tags=["search"])
    async def dataset(dataset_id: str, viewer: Viewer = looking) -> dict[str, Any]:
        """One dataset with its columns, and its offers as ODRL and in plain words."""
        shown = await search.dataset(dataset_id, viewer)
        return schemas.dataset(shown.card, root=settings.root_url, now=clock())

    @routes.get("/members.jws", tags=["register"], response_class=Response)
    async def members(request: Request) -> Response:
        """The member register, signed by the operator (compact JWS, ES256)."""
        signed = await register.current()
        headers = {"etag": signed.etag, "cache-control": "public, max-age=30"}
        if signed.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(signed.text, media_type="application/jose", headers=headers)

    @routes.get("/.well-known/did.json", tags=["register"])
    async def did() -> JSONResponse:
        """The operator's DID document."""
        return JSONResponse(register.did_document(), headers={"cache-control": "public, max-age=300"})

    return routes
