"""Datasets for their owner: the list, one with its columns and figures, registering, new versions, removing."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from connector.datasets.registry import Description, Registration, Registry
from connector.datasets.sources import SOURCES
from connector.errors import HanseError
from connector.management import datasets as datasets_api
from connector.management import offers as offers_api
from connector.management.auth import Caller
from connector.management.pages.desk import Desk, Form, form_of
from connector.management.pages.words import path_of
from connector.settings import Settings
from connector.store import Store

_FIELDS = ("name", "path", "kind", "title", "description", "keywords", "theme", "license")
_KINDS = ("", *SOURCES)
_LISTED = 200


def router(desk: Desk, *, registry: Registry, store: Store, settings: Settings) -> APIRouter:
    routes = desk.router()

    @routes.get("/datasets")
    async def listed(request: Request, after: str = "", caller: Caller = desk.may("read")) -> Response:
        found = [datasets_api.view(*pair) for pair in await registry.page(after=after, limit=_LISTED)]
        offers = await store.read(lambda tx: tx.datasets.offers_of([one.id for one in found]))
        count = {one.id: sum(offer.dataset_id == one.id for offer in offers) for one in found}
        more = found[-1].id if len(found) == _LISTED else ""
        return await desk.page(request, "datasets.html", where="datasets", datasets=found, offers=count, more=more)

    @routes.get("/datasets/new")
    async def form(request: Request, caller: Caller = desk.may("owner")) -> Response:
        return await _form(request, dict.fromkeys(_FIELDS, ""))

    async def _form(request: Request, fields: dict[str, str], error: HanseError | None = None) -> Response:
        return await desk.page(
            request,
            "dataset_new.html",
            status=error.status if error else 200,
            where="datasets",
            fields=fields,
            error=error,
            roots=[str(root) for root in settings.source_roots],
            kinds=_KINDS,
        )

    @routes.post("/datasets/new")
    async def register(request: Request, caller: Caller = desk.may("owner")) -> Response:
        said = await form_of(request)
        try:
            row, _ = await registry.register(_registration(said), by=caller.name)
        except HanseError as error:
            return await _form(request, {name: said.get(name) for name in _FIELDS}, error)
        return RedirectResponse(path_of("/datasets", row.name), status_code=303)

    async def _one(request: Request, name: str, error: HanseError | None = None) -> Response:
        row, version = await registry.get(name)
        versions, offers, agreements = await store.read(
            lambda tx: (
                list(tx.datasets.versions(row.id)),
                [offer for offer in tx.datasets.offers() if offer.dataset_id == row.id],
                list(tx.agreements.page(role="provider", dataset_id=row.id, limit=50)),
            )
        )
        return await desk.page(
            request,
            "dataset.html",
            status=error.status if error else 200,
            where="datasets",
            dataset=datasets_api.view(row, version),
            path=version.source["asked_path"],
            versions=versions,
            offers=[offers_api.view(offer) for offer in offers],
            agreements=agreements,
            error=error,
        )

    @routes.get("/datasets/{name:path}")
    async def one(request: Request, name: str, caller: Caller = desk.may("read")) -> Response:
        return await _one(request, name)

    @routes.post("/datasets/{name}/versions")
    async def renew(request: Request, name: str, caller: Caller = desk.may("owner")) -> Response:
        path = (await form_of(request)).get("path")
        return await _done(request, name, lambda: registry.renew(name, path, by=caller.name), f"/datasets/{name}")

    @routes.post("/datasets/{name}/remove")
    async def remove(request: Request, name: str, caller: Caller = desk.may("owner")) -> Response:
        return await _done(request, name, lambda: registry.remove(name, by=caller.name), "/datasets")

    async def _done(request: Request, name: str, act: Any, then: str) -> Response:
        """Act and go on, or show the dataset's page with what stood in the way."""
        try:
            await act()
        except HanseError as error:
            return await _one(request, name, error)
        return RedirectResponse(path_of("", then.lstrip("/")), status_code=303)

    return routes


def _registration(said: Form) -> Registration:
    words = tuple(word.strip() for word in said.get("keywords").split(",") if word.strip())
    about = Description(
        title=said.get("title"),
        description=said.get("description"),
        keywords=words[:100],
        theme=said.get("theme"),
        license=said.get("license"),
    )
    return Registration(name=said.get("name"), path=said.get("path"), kind=said.get("kind"), about=about)
