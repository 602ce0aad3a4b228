"""Routes of the issuer (Decentralized Claims 1.0, section 6): metadata, requests and status lists.

A stranger, a bad token and a request that is not the caller's get the same answer without a reason. Our log has it, up
to a rate. The keys of a DID are looked up only if the register has that DID.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from catalogue.issuer.credential_signer import PATH
from catalogue.issuer.delivery import CredentialDelivery
from catalogue.issuer.issuing import Issuing
from catalogue.issuer.profiles import make_metadata, read_request
from catalogue.issuer.status_lists import SignedStatusList, StatusListPublisher
from catalogue.store import CatalogueStore, CatalogueTransaction
from catalogue.store.tables import Issuance
from connector.errors import Absent, Unproven
from connector.identity.did import CONTEXT
from connector.identity.identity_service import Identity
from connector.identity.signed_jwt import read_jwt
from connector.infra.concurrency.recent_keys import RateLimit
from connector.infra.http.json_body import read_json
from connector.telemetry import logger

_REFUSED = "expected `Authorization: Bearer <self-issued token>` of a member, and a request of its own"
_LIST_MEDIA = {"statuslist2021": "application/jwt", "bitstring": "application/vc+jwt"}
_ID_MAX = 64
_NUMBER_MAX = 2**31
_LOGGED_PER_MINUTE = 120
_log = logger("issuer")


def router(
    store: CatalogueStore,
    identity: Identity,
    issuing: Issuing,
    delivery: CredentialDelivery,
    lists: StatusListPublisher,
    *,
    root_url: str,
) -> APIRouter:
    """The issuer's routes, for wallets and verifiers."""
    routes = APIRouter(prefix=PATH, tags=["credentials"])
    logged = RateLimit(_LOGGED_PER_MINUTE, burst=_LOGGED_PER_MINUTE, most=1)

    def refuse(why: str) -> Unproven:
        """The one refusal; the reason is for our log, of which a flood must not become one."""
        if logged.wait_seconds("", time.monotonic()) <= 0:
            _log.info("refused", why=why)
        return Unproven(_REFUSED, private=why)

    async def authenticate(request: Request) -> tuple[str, str]:
        """The member that asks, and its access token. Raises: Unproven without a reason, Unavailable."""
        header = request.headers.get("authorization", "")
        try:
            await _check_member(store, identity.read_claimed_issuer(header))
            return await identity.authenticate_holder(header)
        except Unproven as error:
            raise refuse(error.private or error.message) from error

    @routes.get("/metadata")
    async def metadata() -> JSONResponse:
        """The credentials that a member can request."""
        body = make_metadata(identity.did, issuing.kinds)
        return JSONResponse(body, headers={"cache-control": "public, max-age=300"})

    @routes.post("/credentials", status_code=201)
    async def request_credentials(request: Request) -> Response:
        """A member requests credentials about itself; they are delivered to its credential service."""
        holder, token = await authenticate(request)
        asked = read_request(await read_json(request), issuing.kinds)
        try:
            made = await store.write(partial(issuing.request, holder=holder, asked=asked, token=token))
        except Unproven as error:  # removed meanwhile
            raise refuse(error.message) from error
        delivery.wake()
        return Response(status_code=201, headers={"location": f"{root_url}{PATH}/requests/{made}"})

    @routes.get("/requests/{request_id}")
    async def request_status(request_id: str, request: Request) -> dict[str, Any]:
        """The state of a request, for the member that made it."""
        holder, _ = await authenticate(request)
        row = await store.read(partial(_find, issuance=request_id))
        if row is None or row.holder != holder:
            raise refuse(f"{holder} asked for a request that is not its own")
        pids = {"issuerPid": row.id, "holderPid": row.holder_pid}
        return {"@context": [CONTEXT], "type": "CredentialStatus", **pids, "status": row.status}

    @routes.get("/status/{kind}/{number}", response_class=Response)
    async def status_list(kind: str, number: int, request: Request) -> Response:
        """A signed status list. `Accept: application/json` alone gets it unsigned, as EDC up to 0.15 reads it."""
        if kind not in _LIST_MEDIA or not 0 < number < _NUMBER_MAX:
            raise Absent("there is no such status list")
        signed = await lists.current(kind, number)
        age = f"public, max-age={max(1, int(lists.seconds / 10))}"
        headers = {"cache-control": age, "vary": "accept"}
        if request.headers.get("accept") == "application/json":
            return JSONResponse(_unsigned(signed), headers=headers)
        headers["etag"] = signed.etag
        if signed.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(signed.jwt, media_type=_LIST_MEDIA[kind], headers=headers)

    return routes


async def _check_member(store: CatalogueStore, did: str) -> None:
    """Raise Unproven for a DID that is not in the register."""
    is_text = did.isascii() and did.isprintable()  # any other is no DID, and nothing to ask a database for
    member = await store.read(lambda tx: tx.members.find(did)) if is_text else None
    if member is None or member.id != did:
        raise Unproven(f"{did[:200]!a} is not a member")


def _find(tx: CatalogueTransaction, *, issuance: str) -> Issuance | None:
    fits = issuance.isascii() and issuance.isalnum() and len(issuance) <= _ID_MAX
    return tx.issuances.find(issuance) if fits else None


def _unsigned(signed: SignedStatusList) -> dict[str, Any]:
    """The credential in a signed list."""
    claims = read_jwt(signed.jwt, what="a status list", longest=len(signed.jwt)).claims
    inner: dict[str, Any] = claims.get("vc", claims)
    return inner
