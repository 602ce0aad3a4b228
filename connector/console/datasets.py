"""Dataset pages for the owner: list, columns and statistics, registration, new versions, removal.

A registration continues when the browser disconnects; a separate page shows its progress.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Mapping
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from connector.console.page import Form, Numbered, PageRenderer, read_form
from connector.console.view.formatting import path_of
from connector.datasets.registration import REGISTERED, ColumnNote, Description, Registration
from connector.datasets.registry import COLUMNS_SHOWN, FirstRows, Registry
from connector.datasets.sources import SOURCES
from connector.datasets.uploads import Uploads
from connector.errors import Absent, ConnectorError, Invalid, validation_error
from connector.events import DatasetRegistered, DatasetRemoved, DatasetVersioned, FileUploaded, RawDataViewed
from connector.infra.http.multipart_file import FormFile
from connector.management import datasets as datasets_api
from connector.management import offers as offers_api
from connector.management.sign_on.auth import Caller
from connector.settings import Settings
from connector.store import Store
from connector.telemetry import logger

_FIELDS = ("name", "path", "kind", "title", "description", "options", "keywords", "theme", "license")
_TEXTS = ("title", "description", "theme", "license", "citation", "contact")
_KINDS = ("", *SOURCES)
_LISTED = 200
_COLUMNS_EACH = 100  # on a page of meanings
_AT_ONCE_BYTES = 64 * 2**20  # a larger file is previewed when its owner asks for that
_FORM_BYTES = 2**16  # of a form around its file
_PATIENCE_S = 1.5  # wait before the browser is redirected to the progress page
_log = logger("console")


def router(pages: PageRenderer, *, registry: Registry, uploads: Uploads, store: Store, settings: Settings) -> APIRouter:
    routes = pages.router()
    kept: set[asyncio.Task[Any]] = set()

    @routes.get("/datasets")
    async def list_datasets(request: Request, after: str = "", caller: Caller = pages.may("read")) -> Response:
        found = [datasets_api.view(*pair, raw=False) for pair in await registry.page(after=after, limit=_LISTED)]
        offers = await store.read(lambda tx: tx.datasets.list_offers_in_force([one.id for one in found]))
        count = {one.id: sum(offer.dataset_id == one.id for offer in offers) for one in found}
        more = found[-1].id if len(found) == _LISTED else ""
        running = [one for one in registry.under_way.recent() if one.task is not None and caller.may("owner")]
        shown: dict[str, Any] = {"datasets": found, "offers": count, "more": more, "running": running}
        return await pages.render(request, "datasets.html", where="datasets", **shown)

    @routes.get("/datasets/new")
    async def form(request: Request, caller: Caller = pages.may("owner")) -> Response:
        return await _render_form(request, {name: request.query_params.get(name, "")[:4096] for name in _FIELDS})

    @routes.get("/datasets/new/preview")
    async def preview_path(request: Request, caller: Caller = pages.may_raw("owner", RawDataViewed)) -> Response:
        fields = {name: request.query_params.get(name, "")[:4096] for name in _FIELDS}
        return await _render_first_rows(request, fields, by=caller.name)

    @routes.post("/datasets/new/preview")
    async def preview_form(request: Request, caller: Caller = pages.may_raw("owner", RawDataViewed)) -> Response:
        said = await read_form(request)
        return await _render_first_rows(request, {name: said.get(name) for name in _FIELDS}, by=caller.name)

    async def _render_first_rows(request: Request, fields: dict[str, str], *, by: str) -> Response:
        try:
            asked = Registration(
                name="", path=fields["path"], kind=fields["kind"], options=_parse_options(fields["options"])
            )
            return await _render_form(request, fields, first=await registry.look(asked, by=by))
        except ConnectorError as error:
            return await _render_form(request, fields, error)

    @routes.post("/datasets/upload", max_body_size=uploads.limits.each + _FORM_BYTES)
    async def upload(request: Request, caller: Caller = pages.may_raw("owner", FileUploaded)) -> Response:
        """Receive a file piece by piece; nothing reads its body before."""
        try:
            form = FormFile(request.headers.get("content-type", ""), request.stream())
            found = await uploads.take(await form.read_name(), form.pieces(), by=caller.name)
        except ConnectorError as error:
            return await _render_form(request, dict.fromkeys(_FIELDS, ""), error)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        fields = {"path": found.path, "name": found.suggested, "kind": found.kind}
        return RedirectResponse(f"/datasets/new/preview?{urlencode(fields, quote_via=quote)}", status_code=303)

    @routes.get("/datasets/browse")
    async def browse(request: Request, path: str = "", caller: Caller = pages.may("owner")) -> Response:
        folder = await registry.browse(path[:4096])
        return await pages.render(
            request, "dataset_browse.html", where="datasets", folder=folder, preview_bytes=_AT_ONCE_BYTES
        )

    @routes.get("/datasets/{name}/texts")
    async def texts(request: Request, name: str, caller: Caller = pages.may("owner")) -> Response:
        row, _ = await registry.get(name)
        shown = {word: getattr(row, word) for word in _TEXTS} | {"keywords": ", ".join(row.keywords)}
        return await _render_texts(request, row.name, shown)

    async def _render_texts(
        request: Request, name: str, shown: Mapping[str, str], error: ConnectorError | None = None
    ) -> Response:
        status = error.status if error else 200
        context: dict[str, Any] = {"name": name, "texts": shown, "error": error}
        return await pages.render(request, "dataset_texts.html", status=status, where="datasets", **context)

    @routes.post("/datasets/{name}/texts")
    async def describe(request: Request, name: str, caller: Caller = pages.may("owner")) -> Response:
        said = await read_form(request)
        shown = {word: said.get(word) for word in (*_TEXTS, "keywords")}
        try:
            new = datasets_api.DatasetTexts(**shown | {"keywords": _split_words(shown["keywords"])})
            await registry.describe(name, new.to_description(), by=caller.name)
        except ValidationError as error:
            return await _render_texts(request, name, shown, validation_error(error.errors()))
        return RedirectResponse(path_of("/datasets", name), status_code=303)

    @routes.get("/datasets/{name}/columns")
    async def columns(request: Request, name: str, page: Numbered = 1, caller: Caller = pages.may("owner")) -> Response:
        return await _render_columns(request, name, page)

    async def _render_columns(request: Request, name: str, page: int, error: ConnectorError | None = None) -> Response:
        row, version = await registry.get(name)
        shown = datasets_api.view(row, version, raw=False).columns
        pages_of = max(1, -(-len(shown) // _COLUMNS_EACH))
        start = (min(page, pages_of) - 1) * _COLUMNS_EACH
        return await pages.render(
            request,
            "dataset_columns.html",
            status=error.status if error else 200,
            where="datasets",
            name=row.name,
            columns=shown[start : start + _COLUMNS_EACH],
            page=min(page, pages_of),
            pages=pages_of,
            error=error,
        )

    @routes.post("/datasets/{name}/columns")
    async def describe_columns(
        request: Request, name: str, page: Numbered = 1, caller: Caller = pages.may("owner")
    ) -> Response:
        said = await read_form(request, most=5 * _COLUMNS_EACH)
        try:
            await registry.describe_columns(name, _read_column_notes(said), by=caller.name)
        except ConnectorError as error:
            return await _render_columns(request, name, page, error)
        return RedirectResponse(path_of("/datasets", name), status_code=303)

    async def _render_form(
        request: Request, fields: dict[str, str], error: ConnectorError | None = None, first: FirstRows | None = None
    ) -> Response:
        return await pages.render(
            request,
            "dataset_new.html",
            status=error.status if error else 200,
            where="datasets",
            fields=fields,
            error=error,
            roots=[str(root) for root in settings.registrable],
            kinds=_KINDS,
            first=first,
            columns_shown=COLUMNS_SHOWN,
            endings=uploads.endings,
            upload_bytes=uploads.limits.each if uploads.limits.total else 0,
        )

    @routes.post("/datasets/new")
    async def register(request: Request, caller: Caller = pages.may_raw("owner", DatasetRegistered)) -> Response:
        said = await read_form(request)
        try:
            asked = _read_registration(said)
            where = await _wait_briefly(registry.register(asked, by=caller.name), asked.name)
        except ConnectorError as error:
            return await _render_form(request, {name: said.get(name) for name in _FIELDS}, error)
        return RedirectResponse(where, status_code=303)

    async def _wait_briefly(work: Coroutine[Any, Any, Any], name: str) -> str:
        """Wait briefly; return the dataset's path if the work is done, else the progress page. Raises early errors."""
        task = asyncio.ensure_future(work)
        kept.add(task)
        task.add_done_callback(kept.discard)
        task.add_done_callback(_log_failure)
        done, _ = await asyncio.wait((task,), timeout=_PATIENCE_S)
        if done:
            task.result()
        return path_of("/datasets" if done else "/registrations", name)

    @routes.get("/registrations/{name}")
    async def progress(request: Request, name: str, caller: Caller = pages.may("owner")) -> Response:
        found = registry.under_way.find(name)
        if found is None:
            raise Absent(f"no registration of {name[:64]!r} is running or ended recently")
        if found.state == REGISTERED:
            return RedirectResponse(path_of("/datasets", name), status_code=303)
        return await pages.render(
            request, "registration.html", where="datasets", one=found, again=_form_link(found.asked)
        )

    @routes.post("/registrations/{name}/stop")
    async def stop(name: str, caller: Caller = pages.may("owner")) -> Response:
        await registry.under_way.stop(name)
        return RedirectResponse(path_of("/registrations", name), status_code=303)

    async def _render_dataset(
        request: Request, name: str, caller: Caller, error: ConnectorError | None = None
    ) -> Response:
        raw = caller.may("owner")
        row, version = await registry.get(name)
        versions, offers, agreements = await store.read(
            lambda tx: (
                list(tx.datasets.list_versions(row.id)),
                list(tx.datasets.list_offers(dataset_id=row.id, limit=1_000)),
                list(tx.agreements.page(role="provider", dataset_id=row.id, limit=50)),
            )
        )
        return await pages.render(
            request,
            "dataset.html",
            status=error.status if error else 200,
            where="datasets",
            dataset=datasets_api.view(row, version, raw=raw, unchanged=await registry.is_unchanged(version)),
            raw=raw,
            path=version.source["asked_path"],
            read_as=_describe_conversions(version.source["report"] or {}) if raw else {},
            versions=versions,
            offers=[offers_api.view(offer) for offer in offers],
            agreements=agreements,
            error=error,
        )

    @routes.get("/datasets/{name:path}")
    async def view_dataset(request: Request, name: str, caller: Caller = pages.may_raw("read")) -> Response:
        return await _render_dataset(request, name, caller)

    @routes.post("/datasets/{name}/versions")
    async def renew(request: Request, name: str, caller: Caller = pages.may_raw("owner", DatasetVersioned)) -> Response:
        path = (await read_form(request)).get("path")
        try:
            where = await _wait_briefly(registry.renew(name, path, by=caller.name), name)
        except ConnectorError as error:
            return await _render_dataset(request, name, caller, error)
        return RedirectResponse(where, status_code=303)

    @routes.post("/datasets/{name}/remove")
    async def remove(request: Request, name: str, caller: Caller = pages.may_raw("owner", DatasetRemoved)) -> Response:
        await read_form(request)
        try:
            await registry.remove(name, by=caller.name)
        except ConnectorError as error:
            return await _render_dataset(request, name, caller, error)
        return RedirectResponse("/datasets", status_code=303)

    return routes


def _describe_conversions(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Describe converted columns by name: the type in the source system, and notes."""
    found = {
        one["name"]: (one.get("was") and f"was {one['was']}", one.get("note")) for one in report.get("columns", [])
    }
    return {name: [text for text in told if text] for name, told in found.items()}


def _log_failure(task: asyncio.Task[Any]) -> None:
    """Log an unexpected failure; the progress page shows expected ones."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, ConnectorError):
        _log.error("a registration failed", exc_info=error)


def _read_registration(said: Form) -> Registration:
    about = Description(
        title=said.get("title"),
        description=said.get("description"),
        keywords=tuple(_split_words(said.get("keywords"))),
        theme=said.get("theme"),
        license=said.get("license"),
    )
    options = _parse_options(said.get("options"))
    return Registration(
        name=said.get("name"), path=said.get("path"), kind=said.get("kind"), options=options, about=about
    )


def _read_column_notes(said: Form) -> dict[str, ColumnNote]:
    """Return the notes of a form, whose lists of names, meanings and units are parallel.

    Raises: Invalid for lists of different length and for a text over its limit.
    """
    names, meanings, units = said.exact("column"), said.exact("meaning"), said.exact("unit")
    if not len(names) == len(meanings) == len(units):
        raise Invalid("expected a meaning and a unit for each column; send the form from its page")
    personal = set(said.exact("personal"))
    try:
        return {
            name: datasets_api.ColumnTexts(
                description=meaning.strip(), unit=unit.strip(), personal=name in personal
            ).to_note()
            for name, meaning, unit in zip(names, meanings, units, strict=True)
        }
    except ValidationError as error:
        raise validation_error(error.errors()) from error


def _split_words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()][:100]


def _form_link(asked: Registration) -> str:
    """Return the link to the form, filled in with the failed registration."""
    options = "\n".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in asked.options.items())
    about = {name: getattr(asked.about, name) for name in ("title", "description", "theme", "license")}
    fields = {"name": asked.name, "path": asked.path, "kind": asked.kind, "options": options, **about}
    fields["keywords"] = ", ".join(asked.about.keywords)
    return f"/datasets/new?{urlencode(fields, quote_via=quote)}"


def _parse_options(text: str) -> dict[str, Any]:
    """Parse source options, one `name=value` per line, as `hanse dataset add --option` does."""
    found: dict[str, Any] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, equals, value = line.partition("=")
        if not equals:
            raise Invalid(f"expected an option on each line as name=value, got {line[:100]!r}")
        try:
            found[name.strip()] = json.loads(value)
        except (ValueError, RecursionError):
            found[name.strip()] = value.strip()
    return found
