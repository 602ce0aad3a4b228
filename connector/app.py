"""Mounts all routers of a connector on two apps: the public one for other participants, and the management one.

Only `server`, which runs the two listeners, may import this module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from joserfc.jwk import ECKey
from prometheus_client import generate_latest
from starlette.types import Receive, Scope, Send

from connector import VERSION, console
from connector.console.page import HEADERS
from connector.dataplane import contract_routes
from connector.dataplane.foreign_fetch import ForeignFetches
from connector.dataplane.http import routes as data_http
from connector.dataplane.http.request_context import BODY_MAX
from connector.dataplane.push import routes as push_routes
from connector.dsp import routes as dsp_routes
from connector.errors import ConnectorError
from connector.help import site as help_site
from connector.identity import did, keys
from connector.infra.html import api_reference
from connector.infra.http import problem_json
from connector.infra.http.fast_routes import FastRouter, unwrap_routes
from connector.management import (
    agreements,
    audit,
    datasets,
    duties,
    events,
    facts,
    negotiations,
    offers,
    queries,
    receipts,
    search,
    system,
    transfers,
)
from connector.management import (
    reads as reads_api,
)
from connector.management.sign_on import command_line, personal_tokens, workloads
from connector.services import Services
from connector.settings import Settings
from connector.usage.receipt_log import ReceiptLog
from connector.wallet import routes as wallet_routes
from connector.wallet import token_service
from connector.wallet.credential_requests import CredentialRequests
from connector.witness import routes as witness_routes


class _Public(FastAPI):
    """The public app: protocol messages and data bypass FastAPI; other requests go through it."""

    def __init__(self, direct: FastRouter, **about: Any) -> None:
        super().__init__(**about)
        self._direct = direct

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not await self._direct.handle(scope, receive, send):
            await super().__call__(scope, receive, send)


def public_app(parts: Services) -> FastAPI:
    """The app for other participants: protocol, data plane, DID document, health."""
    settings = parts.settings
    protocol = dsp_routes.router(
        negotiations=parts.negotiations,
        transfers=parts.transfers,
        catalog=parts.catalog,
        sender=parts.sender,
        authenticate=parts.identity.authenticate,
        body_max_bytes=settings.body_max_bytes,
    )
    app = _Public(
        FastRouter(
            *data_http.routes(parts.reads, parts.addresses, owner=settings.name),
            *push_routes.routes(parts.receiving),
            *unwrap_routes(protocol.routes),
        ),
        title="Hanse connector, public",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        max_body_size=max(settings.body_max_bytes, BODY_MAX),  # the protocol's routes apply the smaller limit
    )
    problem_json.install(app)
    app.include_router(protocol)
    app.include_router(dsp_routes.version_router())
    app.include_router(contract_routes.router(parts.addresses, parts.reads, parts.identity, owner=settings.name))
    app.include_router(duties.public_router(parts.ledger, parts.identity.authenticate))
    former = keys.load_former_participant_keys(settings.data_dir / "keys")
    if _presents(settings):
        app.include_router(
            wallet_routes.router(
                parts.store,
                parts.identity,
                parts.resolver,
                former=former,
                issuers=settings.credential_issuers,
                refuse_ungranted=settings.credential_refuse_ungranted,
            )
        )
    app.include_router(
        witness_routes.router(parts.witness, published=parts.published_keys, admit=parts.identity.authenticate)
    )
    app.include_router(_well_known(parts, former))
    app.include_router(_health(parts))
    return app


def management_app(parts: Services) -> FastAPI:
    """The app for the operator, the owner's users and auditors: API and console."""
    settings, tokens = parts.settings, parts.tokens
    app = FastAPI(
        title="Hanse connector, management",
        version=VERSION,
        description="Datasets, offers, negotiations, transfers, queries and the audit log of one participant.",
        max_body_size=settings.body_max_bytes,
        docs_url=None,  # FastAPI's page loads scripts from other hosts, which could use our session
        redoc_url=None,
    )
    credential_requests = _credential_requests(parts)
    problem_json.install(app)
    # Flat, as nested routers match a request once per level; the most frequent first.
    for routes in (
        queries.router(parts.coordinator, tokens),
        system.router(settings, tokens, parts.trust, participant_id=parts.participant, version=VERSION),
        personal_tokens.router(tokens, parts.personal),
        workloads.router(parts.workloads, partial(command_line.exchange_login, parts.sign_on)),
        command_line.router(parts.sign_on),
        datasets.router(parts.registry, parts.owners_view, tokens),
        datasets.registrations_router(parts.registry, tokens),
        offers.router(parts.offers, tokens, known=parts.known, view_of=parts.owners_view),
        search.router(
            parts.net,
            parts.identity,
            tokens,
            catalogue_url=settings.catalogue_url,
            operator=settings.trust_anchor,
        ),
        audit.router(
            parts.log, signer=parts.signer, cosigning=parts.cosigning, data_dir=settings.data_dir, tokens=tokens
        ),
        negotiations.router(negotiations=parts.negotiations, partners=parts.partners, store=parts.store, tokens=tokens),
        transfers.router(
            transfers=parts.transfers,
            receiving=parts.receiving,
            fetches=ForeignFetches(parts.store, parts.net, most=settings.fetch_mb * 2**20),
            store=parts.store,
            tokens=tokens,
        ),
        reads_api.router(parts.store, tokens),
        receipts.router(ReceiptLog(parts.store, participant=parts.participant), tokens),
        agreements.router(agreements=parts.agreements, tokens=tokens, contract=parts.holdings.contract),
        duties.router(parts.ledger, tokens),
        facts.router(parts.known, tokens),
        facts.credentials_router(credential_requests, tokens),
        events.router(feed=parts.feed, webhooks=parts.webhooks, tokens=tokens, note=parts.log.note_reading),
    ):
        app.include_router(routes, prefix="/api/v1")
    if settings.sts_serve_secret_file is not None:
        secret_file = settings.sts_serve_secret_file
        app.include_router(
            token_service.router(parts.wallet, parts.store, client=parts.participant, secret_file=secret_file)
        )
    app.include_router(_health(parts))
    app.include_router(_metrics(parts))
    app.include_router(help_site.router())
    app.include_router(_console(parts, credential_requests))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """The API reference page."""
        return HTMLResponse(api_reference.render_page(app.openapi()), headers=dict(HEADERS))

    return app


def _credential_requests(parts: Services) -> CredentialRequests:
    return CredentialRequests(
        parts.store,
        parts.net,
        parts.resolver,
        parts.identity.mint,
        did=parts.participant,
        issuers=parts.settings.credential_issuers,
    )


def _console(parts: Services, credential_requests: CredentialRequests) -> APIRouter:
    """The console's pages, on the same services as the API."""
    settings = parts.settings

    async def search_catalogue(query: str) -> dict[str, Any]:
        about = {"catalogue_url": settings.catalogue_url, "operator": settings.trust_anchor}
        return await search.ask(parts.net, parts.identity, query, **about)

    return console.router(
        settings=settings,
        participant=parts.participant,
        version=VERSION,
        tokens=parts.tokens,
        personal=parts.personal,
        sign_on=parts.sign_on,
        trust=parts.trust,
        store=parts.store,
        registry=parts.registry,
        uploads=parts.uploads,
        offers=parts.offers,
        owners_view=parts.owners_view,
        facts_of=parts.known.of,
        negotiations=parts.negotiations,
        transfers=parts.transfers,
        receiving=parts.receiving,
        agreements=parts.agreements,
        partners=parts.partners,
        search=search_catalogue,
        coordinator=parts.coordinator,
        holdings=parts.holdings,
        credential_requests=credential_requests,
        log=parts.log,
        signer=parts.signer,
        cosigning=parts.cosigning,
    )


def _presents(settings: Settings) -> bool:
    """Whether we present credentials ourselves, and no wallet elsewhere does."""
    return bool(settings.credential_scopes) and not settings.sts_url


def _well_known(parts: Services, former: Sequence[ECKey]) -> APIRouter:
    routes = APIRouter()
    own = f"{parts.settings.root_url}{wallet_routes.PATH}" if _presents(parts.settings) else ""
    document = did.document(
        parts.participant,
        jwk=keys.public_jwk(parts.identity.key),
        root_url=parts.settings.root_url,
        former=[keys.public_jwk(key) for key in former],
        credential_service=parts.settings.credential_service or own,
    )

    @routes.get("/.well-known/did.json", include_in_schema=False)
    async def did_document() -> JSONResponse:
        return JSONResponse(document, headers={"cache-control": "max-age=60"})

    return routes


def _health(parts: Services) -> APIRouter:
    routes = APIRouter(prefix="/health", tags=["health"])

    @routes.get("/live", summary="The process answers")
    async def live() -> dict[str, str]:
        return {"status": "live"}

    @routes.get("/ready", summary="The database answers, takes changes, and work can be taken")
    async def ready() -> JSONResponse:
        try:
            await asyncio.wait_for(parts.store.check_writable(), timeout=2)
        except (ConnectorError, TimeoutError) as error:
            reason = (
                error.message if isinstance(error, ConnectorError) else "timed out waiting for the database for 2 s"
            )
            return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)
        if parts.sequencer.problem:
            reason = f"the audit log cannot be written: {parts.sequencer.problem}"
            return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)
        return JSONResponse({"status": "ready"})

    return routes


def _metrics(parts: Services) -> APIRouter:
    routes = APIRouter()

    may = Depends(parts.tokens.require("metrics"))  # the figures reveal how much is read and refused

    @routes.get("/metrics", tags=["health"], summary="Figures in the Prometheus text format", dependencies=[may])
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(parts.metrics.registry), media_type="text/plain; version=0.0.4")

    return routes
