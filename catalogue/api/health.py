"""Whether the catalogue lives and can work, and its figures. Knows nothing of what is in it beyond counts."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from catalogue.api.access import ViewerAuthenticator
from catalogue.search.index import Index
from catalogue.store import CatalogueStore, CatalogueTransaction
from connector.errors import ConnectorError

_STATES = ("new", "active", "stale", "unreachable", "expired")


class CatalogueMetrics:
    """The catalogue's figures, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("hanse_requests_total", "HTTP requests", ["status"], registry=self.registry)
        self.seconds = Histogram("hanse_request_seconds", "Time to the head of an answer", registry=self.registry)
        self.visits = Counter("hanse_visits_total", "Visits of connectors", ["outcome"], registry=self.registry)
        self.members = Gauge("hanse_members", "Members by their connector's state", ["state"], registry=self.registry)
        self.witnessed = Counter(
            "hanse_witness_answers_total", "Members' heads by our answer", ["outcome"], registry=self.registry
        )
        self.entries = Gauge("hanse_entries", "Datasets listed", registry=self.registry)

    async def observe(self, request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        """Count and time one request."""
        started = time.perf_counter()
        response = await call_next(request)
        self.requests.labels(str(response.status_code)).inc()
        self.seconds.observe(time.perf_counter() - started)
        return response


def router(store: CatalogueStore, index: Index, access: ViewerAuthenticator, metrics: CatalogueMetrics) -> APIRouter:
    """Public `/health/live` and `/health/ready`; `/metrics` for the operator only, as totals include hidden entries."""
    routes = APIRouter(tags=["health"])

    @routes.get("/health/live")
    async def live() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @routes.get("/health/ready")
    async def ready() -> JSONResponse:
        """The database answers, and the search index follows it."""
        try:
            await store.read(lambda tx: tx.entries.last_seq())
        except ConnectorError as error:
            return _failing(error.message)
        return _failing(index.problem) if index.problem else JSONResponse({"status": "ok"})

    @routes.get("/metrics", dependencies=[Depends(access.operator())])
    async def figures() -> Response:
        """Figures in the format that monitors read."""
        states, entries = await store.read(_read_figures)
        for state in _STATES:
            metrics.members.labels(state).set(states.count(state))
        metrics.entries.set(entries)
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    return routes


def _failing(reason: str) -> JSONResponse:
    return JSONResponse({"status": "failing", "reason": reason}, status_code=503)


def _read_figures(tx: CatalogueTransaction) -> tuple[list[str], int]:
    sources = tx.members.list_sources()
    return [source.state for source in sources], sum(tx.entries.count_of(source.member_id) for source in sources)
