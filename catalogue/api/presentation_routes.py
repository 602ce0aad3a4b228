"""The operator's credential service: members' connectors query it with an access token that the crawler gave them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from connector.identity.credentials.presentation_query import PATH, PresentationService
from connector.infra.http.json_body import read_json


def router(service: PresentationService, *, prefix: str) -> APIRouter:
    """The route, below the address of the credential service."""
    routes = APIRouter(prefix=prefix, tags=["credentials"])

    @routes.post(PATH, summary="The operator's credentials, as far as the access token grants them")
    async def query(request: Request) -> dict[str, Any]:
        return await service.answer(request.headers.get("authorization"), lambda: read_json(request))

    return routes
