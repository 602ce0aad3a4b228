"""Our credential service: verifiers query it with an access token that we gave them, and issuers deliver to it.

Only listed issuers may deliver or offer. Type and subject are taken from the signed credential, never from the message
around it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from fastapi import APIRouter, Request
from joserfc.jwk import ECKey

from connector.errors import BadInput, Forbidden
from connector.events import CredentialOffered
from connector.identity.credentials.access_token import verify_access_token
from connector.identity.credentials.presenting import make_presentations
from connector.identity.credentials.scopes import Scope, read_scope
from connector.identity.did import CONTEXT, DidResolver
from connector.identity.identity_service import Identity
from connector.store import Store
from connector.telemetry import logger
from connector.wallet.held_credentials import check_credential, find_presentable, store_checked
from connector.wallet.issuer_messages import read_delivery, read_offer

PATH = "/dcp"
_log = logger("credentials")
_SCOPES_MAX = 64


class DefinitionUnsupported(BadInput):
    status = 501
    code = "definition_unsupported"


def router(
    store: Store,
    identity: Identity,
    resolver: DidResolver,
    *,
    former: Sequence[ECKey] = (),
    issuers: Collection[str] = (),
    refuse_ungranted: bool = False,
) -> APIRouter:
    """The routes. `former`: our former public keys, whose access tokens count until they end. `issuers`: who may
    deliver and offer credentials to us. `refuse_ungranted`: refuse a query beyond its access token, instead of
    answering within it."""
    routes = APIRouter(prefix=PATH, tags=["credentials"])
    keys = (identity.key, *former)

    @routes.post("/presentations/query", summary="Our credentials, as far as the access token grants them")
    async def query(request: Request) -> dict[str, Any]:
        caller, token = await identity.authenticate_query(request.headers.get("authorization"))
        now = time.time()
        granted = verify_access_token(token, keys, did=identity.did, presenter=caller, now=now)
        asked = read_query(await _read_json(request))
        may = {read_scope(text) for text in granted}
        if refuse_ungranted and not may.issuperset(asked):
            raise Forbidden("expected a query within its access token; ask for less")
        found = await find_presentable(store, [scope for scope in asked if scope in may], now=now)
        made = make_presentations(found, identity.key, did=identity.did, verifier=caller, now=now)
        return {"@context": [CONTEXT], "type": "PresentationResponseMessage", "presentation": made}

    async def issuer_of(request: Request) -> str:
        caller = await identity.authenticate_issuer(request.headers.get("authorization"))
        if caller not in issuers:
            raise Forbidden("expected an issuer that our operator lists", private=f"{caller} is not in the settings")
        return caller

    @routes.post("/credentials", summary="An issuer delivers credentials about us")
    async def deliver(request: Request) -> dict[str, Any]:
        issuer = await issuer_of(request)
        delivery = read_delivery(await _read_json(request))
        checked = [await check_credential(resolver, text, did=identity.did) for text in delivery.credentials]
        if any(one.issuer != issuer for one in checked):
            raise BadInput(f"expected credentials of {issuer}, which delivers them, got one of another issuer")
        if checked:
            await store_checked(store, checked, by=issuer, holder_pid=delivery.holder_pid)
        else:
            _log.info("credentials_rejected", issuer=issuer, request=delivery.holder_pid)
        return {}

    @routes.post("/offers", summary="An issuer offers credentials; our operator decides")
    async def offer(request: Request) -> dict[str, Any]:
        issuer = await issuer_of(request)
        offered = read_offer(await _read_json(request), issuer)
        event = CredentialOffered(actor=issuer, detail={"credentials": offered})
        await store.write(lambda tx: tx.publish(event))
        return {}

    return routes


async def _read_json(request: Request) -> Any:
    try:
        return await request.json()
    except (ValueError, RecursionError):
        raise BadInput("expected a message as JSON, got something else") from None


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
