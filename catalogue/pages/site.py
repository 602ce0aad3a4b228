"""Routes and templates of the pages; they show what the services decided for this viewer."""

from __future__ import annotations

from collections.abc import Callable

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from catalogue.access import Access
from catalogue.register import Register
from catalogue.search import Search
from catalogue.settings import Settings
from catalogue.store import Store
from connector.errors import HanseError


class Site:
    def __init__(
        self,
        search: Search,
        access: Access,
        register: Register,
        store: Store,
        settings: Settings,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._search, self._access, self._register = search, access, register
        self._store, self._settings, self._clock = store, settings, clock

    def problem(self, request: Request, error: HanseError) -> Response:
        return HTMLResponse(f"<p>{error.status}</p>", status_code=error.status)

    def router(self) -> APIRouter:
        return APIRouter(include_in_schema=False)
