"""Routes of the pages. They ask the same services as the API and show what those decided for this viewer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from jinja2 import Environment

from catalogue.api.access import COOKIE, Viewer, ViewerAuthenticator, require_own_page
from catalogue.api.routes import filters_of
from catalogue.api.sign_on import HINT_COOKIE, OperatorSignOn
from catalogue.crawl.crawler import Crawler
from catalogue.crawl.description_quality import validate
from catalogue.exports import EXPORTS
from catalogue.members.applications import Applications
from catalogue.members.members import Application, Members
from catalogue.pages import onboarding, page_text
from catalogue.pages.form_fields import read_fields
from catalogue.pages.member_lines import list_member_lines, read_member_health
from catalogue.pages.space_map import HEIGHT, LINE, WIDTH, place_owners
from catalogue.search import search_query as questions
from catalogue.search.facets import FACETS, EntryView
from catalogue.search.search_query import SearchQuery
from catalogue.search.search_service import Search
from catalogue.settings import CatalogueSettings
from catalogue.store import CatalogueStore
from catalogue.store.tables import Member
from connector.errors import ConnectorError, Invalid, Unproven
from connector.infra.html.languages import VARY
from connector.infra.html.page_language import PageEnvironments, asked_path, switch_language

_SPOILERS_MAX, _SPOILERS_SECONDS = 8, 1.0  # questions that one without hits leads to, and how long they may take


@dataclass(frozen=True, slots=True)
class Spoiler:
    """A part of a question without hits: `words`, `column` or a facet, its value, and what the rest finds and where."""

    kind: str
    value: str
    url: str
    total: int


class Site:
    """The pages. `problem` renders an error for a browser, `dataset` a dataset, whose address has its exports too."""

    def __init__(
        self,
        search: Search,
        access: ViewerAuthenticator,
        members: Members,
        applications: Applications,
        crawler: Crawler,
        store: CatalogueStore,
        settings: CatalogueSettings,
        sign_on: OperatorSignOn,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._search, self._access, self._members, self._crawler = search, access, members, crawler
        self._applications = applications
        self._store, self._settings, self._clock = store, settings, clock
        self._sign_on = sign_on
        self._secure = settings.root_url.startswith("https:")
        self._pages = PageEnvironments(Path(__file__).parent / "templates", self._prepare)

    def _prepare(self, pages: Environment, language: str) -> None:
        page_text.prepare(pages, language)
        pages.globals.update(
            settings=self._settings,
            providers=self._sign_on.providers,
            search_url=page_text.search_url,
            FACETS=FACETS,
            SORTS=questions.SORTS,
            MAP={"width": WIDTH, "height": HEIGHT, "line": LINE},
            EXPORTS=EXPORTS,
        )

    async def problem(self, request: Request, error: ConnectorError) -> Response:
        """An error as a page that says what to do."""
        try:
            viewer = await self._access.viewer(request)
        except Exception:  # noqa: BLE001  # it may be the very error that is to be shown
            viewer = Viewer()
        return self._page(request, "problem.html", viewer, status=error.status, error=error, where="")

    def dataset(self, request: Request, card: EntryView, viewer: Viewer) -> Response:
        """One dataset."""
        code, quality = page_text.snippet(card), validate(card)
        return self._page(request, "dataset.html", viewer, card=card, code=code, quality=quality, where="search")

    def router(self) -> APIRouter:
        """Every page with an address of its own, and the forms of the operator."""
        routes = APIRouter(include_in_schema=False)
        self._public(routes)
        self._session(routes)
        routes.include_router(self._sign_on.router(self._anonymous_page))
        routes.include_router(onboarding.router(self._page, self._applications, self._access))
        self._operator(routes)
        return routes

    def _page(self, request: Request, name: str, viewer: Viewer, *, status: int = 200, **context: Any) -> HTMLResponse:
        # The page of a refusal does not repeat what was sent: the answer of an OpenID provider is in the address.
        here = asked_path(request) if request.method in ("GET", "HEAD") and status < 400 else "/"
        template = self._pages.for_request(request).get_template(name)
        html = template.render(viewer=viewer, now=self._clock(), this_page=here, **context)
        return HTMLResponse(html, status_code=status, headers={"cache-control": "private, no-cache", "vary": VARY})

    def _anonymous_page(self, request: Request, name: str, *, status: int = 200, **context: Any) -> HTMLResponse:
        return self._page(request, name, Viewer(), status=status, where="login", **context)

    # -- what everybody may open

    def _public(self, routes: APIRouter) -> None:
        looking = Depends(self._access.viewer)

        @routes.get("/", response_class=HTMLResponse)
        async def search(
            request: Request,
            q: str = "",
            column: Annotated[list[str] | None, Query()] = None,
            page: int = 1,
            sort: str = "relevance",
            viewer: Viewer = looking,
        ) -> Response:
            filters = filters_of(request)
            asked = questions.parse_query(q, columns=column or (), filters=filters, page=page, sort=sort)
            results = await self._search.ask(asked, viewer)
            spoilers = await self._spoilers(asked, viewer) if not results.total else []
            cards = await self._search.group(results, viewer)
            return self._page(
                request, "search.html", viewer, results=results, cards=cards, spoilers=spoilers, where="search"
            )

        @routes.get("/members", response_class=HTMLResponse)
        async def members(request: Request, viewer: Viewer = looking) -> Response:
            return await self._member_page(request, viewer)

    async def _member_page(
        self,
        request: Request,
        viewer: Viewer,
        *,
        asked: Mapping[str, str] = MappingProxyType({}),
        error: ConnectorError | None = None,
    ) -> Response:
        """Every member, and for the operator the form to admit one: with what it said where that was refused."""
        counts = await self._search.owners(viewer)
        lines = await self._store.read(partial(list_member_lines, viewer=viewer, counts=counts))
        shown = {"lines": lines, "places": place_owners(lines), "asked": asked, "error": error}
        shown |= {"waiting": await self._applications.list_waiting() if viewer.is_operator else ()}
        shown |= {"is_open": self._applications.are_open}
        return self._page(
            request, "members.html", viewer, status=error.status if error else 200, where="members", **shown
        )

    async def _spoilers(self, asked: SearchQuery, viewer: Viewer) -> list[Spoiler]:
        """Which part of a question without hits to leave out. As far as a few cheap questions tell in a short time:
        what was asked is answered without them."""
        tries = [(name, ", ".join(values), asked.without(name)) for name, values in asked.filters.items()]
        tries += [("column", column, questions.replace_part(asked, column=column)) for column in asked.columns]
        if asked.words and (asked.filters or asked.columns):
            tries.insert(0, ("words", asked.words, questions.replace_part(asked, words="")))
        found, until = list[Spoiler](), time.monotonic() + _SPOILERS_SECONDS
        for kind, value, rest in tries[:_SPOILERS_MAX]:
            if time.monotonic() > until:
                break
            if total := await self._search.count(rest, viewer):
                found.append(Spoiler(kind, value, page_text.search_url(rest), total))
        return found

    # -- logging in and out

    def _session(self, routes: APIRouter) -> None:
        looking = Depends(self._access.viewer)

        @routes.post("/language", dependencies=[Depends(require_own_page)])
        async def language(request: Request) -> Response:
            """Keep the language of this browser's pages, and return to the page."""
            fields = await read_fields(request)
            return switch_language(fields.get("language", ""), fields.get("to", ""), secure=self._secure)

        @routes.get("/login", response_class=HTMLResponse)
        async def login_page(request: Request, viewer: Viewer = looking) -> Response:
            return self._page(request, "login.html", viewer, problem="", where="login")

        @routes.post("/login")
        async def login(request: Request) -> Response:
            fields = await read_fields(request)
            try:
                cookie = await self._access.log_in(fields.get("token", ""))
            except Unproven as error:
                return self._page(request, "login.html", Viewer(), status=401, problem=error.message, where="login")
            response = RedirectResponse("/", status_code=303)
            age = self._settings.session_seconds
            response.set_cookie(COOKIE, cookie, max_age=age, httponly=True, samesite="strict", secure=self._secure)
            return response

        @routes.post("/logout")
        async def logout(request: Request) -> Response:
            """End the session here, then at its provider. The page leads there: a form may only lead to these pages."""
            await self._access.log_out(request.cookies.get(COOKIE, ""))
            response: Response = RedirectResponse("/", status_code=303)
            if away := await self._sign_on.logout_url(request):
                response = self._anonymous_page(request, "goto.html", heading="Logged out here", target=away)
            response.delete_cookie(COOKIE)
            response.delete_cookie(HINT_COOKIE, path="/logout")
            return response

    # -- the operator's forms

    def _operator(self, routes: APIRouter) -> None:
        operator = Depends(self._access.operator())

        @routes.get("/members/{name}", response_class=HTMLResponse)
        async def member(request: Request, name: str, viewer: Viewer = operator) -> Response:
            health = await self._store.read(partial(read_member_health, key=name))
            return self._page(request, "member.html", viewer, health=health, where="members")

        @routes.post("/members")
        async def join(request: Request, viewer: Viewer = operator) -> Response:
            fields = await read_fields(request)
            asked = {name: fields.get(name, "") for name in onboarding.FACTS}
            try:
                await self._members.join(Application(**asked))
            except ConnectorError as error:
                return await self._member_page(request, viewer, asked=asked, error=error)
            return RedirectResponse("/members#main", status_code=303)

        @routes.post("/members/status")
        async def status(request: Request, viewer: Viewer = operator) -> Response:
            fields = await read_fields(request)
            if question := fields.pop("ask", ""):  # no script of the page has asked it
                return self._page(request, "sure.html", viewer, question=question, fields=fields, where="members")
            changes = {str(name): fields[name] for name in ("status", "reason") if name in fields}
            member = await self._members.change(fields.get("member", ""), changes=changes)
            return _back(fields, member)

        @routes.post("/members/visit", dependencies=[operator])
        async def visit(request: Request) -> Response:
            fields = await read_fields(request)
            member = await self._store.read(lambda tx: tx.members.of(fields.get("member", "")))
            if member.status != "active":
                raise Invalid(f"{member.name} is {member.status}; its connector is not visited")
            await asyncio.wait([self._crawler.start(member.id, why="operator")], timeout=20.0)
            return _back(fields, member)


def _back(fields: Mapping[str, str], member: Member) -> Response:
    """To the page that the form was on: of one member, or the list."""
    here = f"/members/{member.name}" if fields.get("from") == "member" else "/members"
    return RedirectResponse(here, status_code=303)
