"""Search over the data space: sent to the catalogue in our own name, so that members see what members may see."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from connector.errors import Absent, Invalid, PeerNonsense, PeerRefused
from connector.identity.identity_service import Identity
from connector.infra.net.http_client import HttpClient
from connector.management.sign_on.auth import Caller, Tokens
from connector.peer_codes import read_code

_QUERY_MAX = 4096


async def ask(net: HttpClient, identity: Identity, query: str, *, catalogue_url: str, operator: str) -> dict[str, Any]:
    """Return the catalogue's answer to a query string.

    Raises: Absent without a catalogue, PeerRefused where it refuses, Invalid where the query is invalid.
    """
    if not catalogue_url:
        raise Absent("no catalogue is set; set HANSE_CATALOGUE_URL to the data space's catalogue")
    if len(query) > _QUERY_MAX:
        raise Invalid(f"expected words and filters of at most {_QUERY_MAX} letters in an address, came {len(query)}")
    url = f"{catalogue_url.rstrip('/')}/api/v1/search?{query}"
    headers = {"authorization": await identity.mint(operator)} if operator else {}
    reply = await net.call("GET", url, headers=headers)
    if reply.status == 401 and headers:  # not a member there: ask as the public
        reply = await net.call("GET", url)
    try:
        found = reply.json()
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise PeerNonsense(f"expected JSON from the catalogue, came status {reply.status}")
    if reply.status != 200:
        kind = Invalid if reply.status == 400 else PeerRefused
        code, detail = read_code(str(found.get("code", "refused")), str(found.get("detail", reply.status)))
        raise kind(f"the catalogue says: {detail}", code=code)
    return found


def router(net: HttpClient, identity: Identity, tokens: Tokens, *, catalogue_url: str, operator: str) -> APIRouter:
    """Return the routes. `catalogue_url` and `operator` (its DID) are settings; without them there is no search."""
    routes = APIRouter(tags=["search"])
    reader = Depends(tokens.require("read"))

    @routes.get("/search", summary="Datasets of the data space; parameters as in the catalogue's own search")
    async def search(request: Request, _: Caller = reader) -> dict[str, Any]:
        return await ask(net, identity, request.url.query, catalogue_url=catalogue_url, operator=operator)

    return routes
