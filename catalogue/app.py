"""Composition root of the catalogue: builds every service and mounts every router. No module imports it."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles
from joserfc.jwk import ECKey
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from catalogue import pages
from catalogue.api import (
    admin,
    credential_routes,
    error_pages,
    export_routes,
    health,
    issuer_routes,
    presentation_routes,
    routes,
)
from catalogue.api.access import ViewerAuthenticator
from catalogue.api.sign_on import OperatorSignOn, read_providers
from catalogue.crawl import ingest
from catalogue.crawl.crawler import Crawler
from catalogue.issuer.credential_signer import CredentialSigner
from catalogue.issuer.delivery import CredentialDelivery
from catalogue.issuer.issuing import Issuing
from catalogue.issuer.status_lists import StatusListPublisher
from catalogue.members.applications import Applications
from catalogue.members.members import Members
from catalogue.members.own_credentials import OwnCredentials
from catalogue.members.register import CREDENTIALS_PATH, RegisterSigner
from catalogue.search.index import Index
from catalogue.search.search_service import Search
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueStore
from catalogue.store.migrate import upgrade
from connector.errors import Invalid
from connector.identity.credentials.presentation_query import PresentationService
from connector.identity.did import DidResolver
from connector.identity.identity_service import Identity, OwnWallet
from connector.identity.keys import load_participant_key, load_witness_keys
from connector.identity.openid.login import LoginClient
from connector.infra import html
from connector.infra.html import api_reference
from connector.infra.http.described_errors import describe_errors
from connector.infra.net.http_client import AddressGuard, HttpClient
from connector.setting_types import make_folder
from connector.telemetry import logger
from connector.witness import routes as witness_routes
from connector.witness.known_logs import PREFIX, KnownLogs, PolicyLines, SpaceMember, publish_keys
from connector.witness.notes import Cosigner
from connector.witness.witness import Witness

_FOLLOW_SECONDS, _FOLLOW_SECONDS_MAX = 2.0, 60.0
_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class IssuerServices:
    """The issuer of a catalogue, where the settings name types of credentials."""

    issuing: Issuing
    delivery: CredentialDelivery
    lists: StatusListPublisher


@dataclass(frozen=True, slots=True)
class CatalogueServices:
    """The services of one running catalogue."""

    settings: CatalogueSettings
    store: CatalogueStore
    net: HttpClient
    identity: Identity
    access: ViewerAuthenticator
    sign_on: OperatorSignOn
    register: RegisterSigner
    index: Index
    search: Search
    crawler: Crawler
    members: Members
    metrics: health.CatalogueMetrics
    issuer: IssuerServices | None
    known_logs: KnownLogs
    witness: Witness


def build(settings: CatalogueSettings, *, clock: Callable[[], float] = time.time) -> CatalogueServices:
    """Open the database and make every part. Migrates the database where that is needed. Invalid for a folder that
    cannot be used."""
    make_folder(settings.data_dir, "HANSE_DATA_DIR", mode=0o700)
    if settings.admin_token_file is not None:
        make_folder(settings.admin_token_file.parent, "HANSE_ADMIN_TOKEN_FILE")
    upgrade(settings.database)
    store = CatalogueStore(settings.database, clock=clock)
    served = store.read_now(lambda tx: tx.tokens.count())  # the first start makes one
    key = load_participant_key(settings.data_dir, new=not served)
    guard = AddressGuard(allow=settings.allow_private, insecure_http=settings.insecure_http)
    net = HttpClient(guard, timeout=settings.call_timeout, max_bytes=settings.crawl_page_bytes)
    resolver = DidResolver(net)
    resolver.allow_every_key(settings.issuer_keys_for_all_purposes)
    identity = Identity(did=settings.did, key=key, resolver=resolver, scopes=settings.credential_scopes)
    access = ViewerAuthenticator(store, identity, session_seconds=settings.session_seconds)
    secret = hmac.digest(key.as_der(private=True), b"login attempts", "sha256")
    logins = LoginClient(net, read_providers(settings.sign_on), base=settings.root_url, secret=secret)
    sign_on = OperatorSignOn(access, logins, secure=settings.root_url.startswith("https:"))
    index = Index(settings.data_dir / "index", store)

    async def follow() -> None:
        await _catch_up(index)

    metrics = health.CatalogueMetrics()
    crawler = Crawler(store, net, identity, settings, on_change=follow, count=metrics.visits)
    issuer = _build_issuer(settings, store, net, resolver, key) if settings.issuer_types else None

    def wake() -> None:
        crawler.wake()
        if issuer is not None:
            issuer.delivery.wake()

    members = Members(store, net, settings, on_change=follow, wake=wake, stop=crawler.stop)
    register = RegisterSigner(store, key, settings)
    search = Search(store, index)
    known_logs = KnownLogs(net, _active_members(store), own=settings.did, more=PolicyLines())
    witness = Witness(
        store,
        Cosigner(f"{urlsplit(settings.root_url).netloc}/witness", *load_witness_keys(settings.data_dir)),
        known_logs,
        count=lambda outcome: metrics.witnessed.labels(outcome).inc(),
    )
    return CatalogueServices(
        settings,
        store,
        net,
        identity,
        access,
        sign_on,
        register,
        index,
        search,
        crawler,
        members,
        metrics,
        issuer,
        known_logs,
        witness,
    )


def _active_members(store: CatalogueStore) -> Callable[[bool], Awaitable[Sequence[SpaceMember]]]:
    """The active members, for witnesses."""

    async def members(newest: bool) -> Sequence[SpaceMember]:
        found = await store.read(lambda tx: tx.members.list_all())
        return [SpaceMember(one.id, one.url.rstrip("/")) for one in found if one.status == "active" and one.url]

    return members


def _build_issuer(
    settings: CatalogueSettings, store: CatalogueStore, net: HttpClient, resolver: DidResolver, key: ECKey
) -> IssuerServices:
    signer = CredentialSigner(key, did=settings.did, root_url=settings.root_url)
    issuing = Issuing(signer, settings)
    delivery = CredentialDelivery(store, issuing, net, resolver, OwnWallet(did=settings.did, key=key))
    return IssuerServices(issuing, delivery, StatusListPublisher(store, signer, seconds=settings.issuer_status_seconds))


def create_app(
    settings: CatalogueSettings, *, parts: CatalogueServices | None = None, clock: Callable[[], float] = time.time
) -> FastAPI:
    """The catalogue as an ASGI application. Its lifespan crawls; without it nothing runs by itself."""
    built = parts or build(settings, clock=clock)
    app = FastAPI(
        title="Hanse catalogue",
        summary="Members and datasets of a data space.",
        version="1",
        lifespan=lambda _: _lifespan(built),
        docs_url=None,  # its page has scripts from elsewhere, beside the operator's session
        redoc_url=None,
    )
    describe_errors(app)
    app.middleware("http")(_build_guard(settings.body_max_bytes))
    app.middleware("http")(built.metrics.observe)
    app.add_middleware(HeadRequests)
    site = pages.Site(
        built.search,
        built.access,
        built.members,
        Applications(built.store, built.members, built.net, settings),
        built.crawler,
        built.store,
        settings,
        built.sign_on,
        clock=clock,
    )
    error_pages.install(app, page=site.problem, headers=_HEADERS)
    app.include_router(routes.router(built.search, built.access, built.register, settings, clock=clock))
    app.include_router(admin.router(built.members, built.crawler, built.index, built.store, built.access))
    app.include_router(credential_routes.router(built.members, built.access))
    if (issuer := built.issuer) is not None:
        app.include_router(
            issuer_routes.router(
                built.store,
                built.identity,
                issuer.issuing,
                issuer.delivery,
                issuer.lists,
                root_url=settings.root_url,
            )
        )
    if settings.credential_folder is not None:
        own = OwnCredentials(settings.credential_folder, did=settings.did)
        service = PresentationService(built.identity, own.find)
        app.include_router(presentation_routes.router(service, prefix=CREDENTIALS_PATH))

    async def published_keys() -> str:
        return publish_keys(
            settings.name, log=None, witness=built.witness.cosigner.keys, url=settings.root_url + PREFIX
        )

    app.include_router(
        witness_routes.router(built.witness, published=published_keys, admit=built.identity.authenticate)
    )
    app.include_router(health.router(built.store, built.index, built.access, built.metrics))
    app.include_router(export_routes.router(built.search, built.access, settings, page=site.dataset))
    app.include_router(site.router())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """The API for people."""
        return HTMLResponse(api_reference.render_page(app.openapi()))

    app.mount("/static", StaticFiles(directory=html.FOLDER), name="static")
    return app


class HeadRequests:
    """ASGI middleware that answers HEAD like GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)

        async def bare(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        return await self._app({**scope, "method": "GET"}, receive, bare)


@asynccontextmanager
async def _lifespan(parts: CatalogueServices) -> AsyncIterator[None]:
    settings, log = parts.settings, logger("catalogue")
    token, file = await parts.access.first_token(settings.admin_token_file), settings.admin_token_file
    if token is not None and file is None:  # or logs would hold it
        print(f"Operator's token (shown once): {token}", flush=True)  # noqa: T201  # the one place it is ever shown
    while await parts.store.write(ingest.reread_outdated):
        continue
    indexed = await _catch_up(parts.index)  # else it is not ready, and `_follow` tries again
    log.info("started", did=settings.did, url=settings.root_url, indexed=indexed)
    working = [asyncio.create_task(parts.crawler.run()), asyncio.create_task(_follow(parts.index))]
    working.append(asyncio.create_task(parts.known_logs.run()))
    if parts.issuer is not None:
        working.append(asyncio.create_task(parts.issuer.delivery.run()))
    try:
        yield
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
        await parts.crawler.close()
        if parts.issuer is not None:
            await parts.issuer.delivery.close()
        await parts.net.close()
        parts.search.close()
        parts.store.close()


async def _follow(index: Index) -> None:
    """Apply changes that other processes (the command line) make in the database to the index, until cancelled."""
    pause = _FOLLOW_SECONDS
    while True:
        await asyncio.sleep(pause)
        pause = _FOLLOW_SECONDS if await _catch_up(index) else min(2 * pause, _FOLLOW_SECONDS_MAX)


async def _catch_up(index: Index) -> bool:
    """Apply new changes to the index. Returns whether it is up to date; the database keeps its changes in any case."""
    try:
        await asyncio.to_thread(index.catch_up)
    except Exception as error:  # noqa: BLE001  # an index that stops would show what is no longer there
        logger("index").error("index_behind", reason=repr(error))
        return False
    return True


def _build_guard(body_max: int) -> Callable[[Request, Callable[[Request], Awaitable[Response]]], Awaitable[Response]]:
    """Middleware that refuses large bodies before they are read and sets security headers on each answer."""

    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        length = request.headers.get("content-length", "0")
        chunked = "transfer-encoding" in request.headers
        if chunked or not length.isdecimal() or int(length) > body_max:
            refused = Invalid(f"expected a body of at most {body_max} bytes with a Content-Length; send less")
            response: Response = error_pages.problem_response(refused)
        else:
            response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return guard
