"""Our credential service: verifiers query it with an access token that we gave them, and issuers deliver to it.

Only listed issuers may deliver or offer. Type and subject are taken from the signed credential, never from the message
around it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from fastapi import APIRouter, Request
from joserfc.jwk import ECKey

from connector.errors import Forbidden, Invalid
from connector.events import CredentialOffered
from connector.identity.credentials.presentation_query import PresentationService
from connector.identity.credentials.scopes import Scope
from connector.identity.did import DidResolver
from connector.identity.identity_service import Identity
from connector.identity.signed_jwt import ReadJwt
from connector.infra.http.json_body import read_json
from connector.store import Store
from connector.telemetry import logger
from connector.wallet.credential_requests import check_delivery, note_delivery
from connector.wallet.held_credentials import check_credential, find_presentable, store_checked
from connector.wallet.issuer_messages import read_delivery, read_offer

PATH = "/dcp"
_log = logger("credentials")


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

    async def find(scopes: Collection[Scope], now: float) -> list[ReadJwt]:
        return await find_presentable(store, scopes, now=now)

    service = PresentationService(identity, find, former=former, refuse_ungranted=refuse_ungranted)

    @routes.post("/presentations/query", summary="Our credentials, as far as the access token grants them")
    async def query(request: Request) -> dict[str, Any]:
        return await service.answer(request.headers.get("authorization"), lambda: read_json(request))

    async def issuer_of(request: Request) -> str:
        caller = await identity.authenticate_issuer(request.headers.get("authorization"))
        if caller not in issuers:
            raise Forbidden("expected an issuer that our operator lists", private=f"{caller} is not in the settings")
        return caller

    @routes.post("/credentials", summary="An issuer delivers credentials about us")
    async def deliver(request: Request) -> dict[str, Any]:
        issuer = await issuer_of(request)
        delivery = read_delivery(await read_json(request))
        checked = [await check_credential(resolver, text, did=identity.did) for text in delivery.credentials]
        if any(one.issuer != issuer for one in checked):
            raise Invalid(f"expected credentials of {issuer}, which delivers them, got one of another issuer")
        pid = delivery.holder_pid
        await store.read(lambda tx: check_delivery(tx, issuer, pid))
        if checked:
            await store_checked(store, checked, by=issuer, holder_pid=pid)
        else:
            _log.info("credentials_rejected", issuer=issuer, request=pid)
            await store.write(lambda tx: note_delivery(tx, pid, "REJECTED"))
        return {}

    @routes.post("/offers", summary="An issuer offers credentials; our operator decides")
    async def offer(request: Request) -> dict[str, Any]:
        issuer = await issuer_of(request)
        offered = read_offer(await read_json(request), issuer)
        event = CredentialOffered(actor=issuer, detail={"credentials": offered})
        await store.write(lambda tx: tx.publish(event))
        return {}

    return routes
