"""The operator's credential service: members' connectors query it with an access token that the crawler gave them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from connector.errors import Invalid
from connector.identity.credentials.presentation_query import PATH, PresentationService


def router(service: PresentationService, *, prefix: str) -> APIRouter:
    """The route, below the address of the credential service."""
    routes = APIRouter(prefix=prefix, tags=["credentials"])

    @routes.post(PATH, summary="The operator's credentials, as far as the access token grants them")
    async def query(request: Request) -> dict[str, Any]:
        async def read() -> Any:
            try:
                return await request.json()
            except (ValueError, RecursionError):
                raise Invalid("expected a message as JSON, got something else") from None

        return await service.answer(request.headers.get("authorization"), read)

    return routes
