"""Our credential service: verifiers query it with an access token that we gave them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request
from joserfc.jwk import ECKey

from connector.errors import BadInput
from connector.identity.credentials.access_token import verify_access_token
from connector.identity.credentials.presenting import make_presentations
from connector.identity.credentials.scopes import Scope, read_scope
from connector.identity.identity_service import Identity
from connector.store import Store
from connector.wallet.held_credentials import find_presentable

PATH = "/dcp"
_SCOPES_MAX = 64
_CONTEXT = "https://w3id.org/dspace-dcp/v1.0/dcp.jsonld"


class DefinitionUnsupported(BadInput):
    status = 501
    code = "definition_unsupported"


def router(store: Store, identity: Identity, *, former: Sequence[ECKey] = ()) -> APIRouter:
    """The routes. `former`: our former public keys, whose access tokens count until they end."""
    routes = APIRouter(prefix=PATH, tags=["credentials"])
    keys = (identity.key, *former)

    @routes.post("/presentations/query", summary="Our credentials, as far as the access token grants them")
    async def query(request: Request) -> dict[str, Any]:
        caller, token = await identity.authenticate_query(request.headers.get("authorization"))
        now = time.time()
        granted = verify_access_token(token, keys, did=identity.did, presenter=caller, now=now)
        asked = read_query(await _read_json(request))
        may = {read_scope(text) for text in granted}
        found = await find_presentable(store, [scope for scope in asked if scope in may], now=now)
        made = make_presentations(found, identity.key, did=identity.did, verifier=caller, now=now)
        return {"@context": [_CONTEXT], "type": "PresentationResponseMessage", "presentation": made}

    return routes


async def _read_json(request: Request) -> Any:
    try:
        return await request.json()
    except (ValueError, RecursionError):
        raise BadInput("expected a PresentationQueryMessage as JSON, got something else") from None


def read_query(message: Any) -> list[Scope]:
    """The scopes of a PresentationQueryMessage. Raises: BadInput; DefinitionUnsupported for a valid definition."""
    if not isinstance(message, dict) or message.get("type") != "PresentationQueryMessage":
        raise BadInput("expected a PresentationQueryMessage, got another message")
    scopes, definition = message.get("scope"), message.get("presentationDefinition")
    if ("scope" in message) == ("presentationDefinition" in message):
        raise BadInput("expected either scope or presentationDefinition in the query, got both or neither")
    if isinstance(definition, dict) and definition:
        raise DefinitionUnsupported("presentation definitions are not supported; query by scope")
    if not isinstance(scopes, list) or not 0 < len(scopes) <= _SCOPES_MAX:
        raise BadInput(f"expected 1 to {_SCOPES_MAX} scopes in the query")
    try:
        return [read_scope(str(text)) for text in scopes]
    except ValueError as error:
        raise BadInput(str(error)) from None
