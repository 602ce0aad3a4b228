"""Pages of onboarding: a participant applies and reads the answer, the operator checks the application and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from catalogue.api.access import Viewer, ViewerAuthenticator, require_own_page
from catalogue.members.applications import CONTACT_MAX, MESSAGE_MAX, REASON_MAX, ApplicationCheck, Applications
from catalogue.members.members import Application
from catalogue.pages.form_fields import read_fields
from connector.errors import ConnectorError

FACTS = ("id", "name", "title", "role", "country", "url")
"""What a participant says of itself, as the forms name it."""

_ASKED = (*FACTS, "contact", "message")
_SIZES = {"contact": CONTACT_MAX, "message": MESSAGE_MAX, "reason": REASON_MAX}

RenderPage = Callable[..., HTMLResponse]


def router(render: RenderPage, applications: Applications, access: ViewerAuthenticator) -> APIRouter:
    """Return the routes. `render(request, template, viewer, ...)` draws a page of the catalogue."""
    routes = APIRouter(include_in_schema=False)
    looking, operator = Depends(access.viewer), Depends(access.operator())

    def draw_form(
        request: Request,
        viewer: Viewer,
        *,
        asked: Mapping[str, str] = MappingProxyType({}),
        error: ConnectorError | None = None,
    ) -> Response:
        shown = {"is_open": applications.are_open, "sizes": _SIZES, "asked": asked, "error": error}
        return render(request, "join.html", viewer, status=error.status if error else 200, where="members", **shown)

    async def draw_application(
        request: Request,
        viewer: Viewer,
        key: str,
        *,
        check: ApplicationCheck | None = None,
        error: ConnectorError | None = None,
    ) -> Response:
        view = await applications.find(key)
        shown = {"view": view, "check": check, "sizes": _SIZES, "error": error}
        status = error.status if error else 200
        return render(request, "application.html", viewer, status=status, where="members", **shown)

    @routes.get("/join")
    async def form(request: Request, viewer: Viewer = looking) -> Response:
        return draw_form(request, viewer)

    @routes.post("/join", dependencies=[Depends(require_own_page)])
    async def apply(request: Request, viewer: Viewer = looking) -> Response:
        fields = await read_fields(request)
        asked = {name: fields.get(name, "") for name in _ASKED}
        wanted = Application(**{name: asked[name] for name in FACTS})
        try:
            made = await applications.apply(wanted, contact=asked["contact"], message=asked["message"])
        except ConnectorError as error:
            return draw_form(request, viewer, asked=asked, error=error)
        return RedirectResponse(f"/join/{made.key}", status_code=303)

    @routes.get("/join/{key}")
    async def answer(request: Request, key: str, viewer: Viewer = looking) -> Response:
        """What became of an application, for the applicant, who alone has this address."""
        view = await applications.find(key)
        return render(request, "applied.html", viewer, view=view, where="members")

    @routes.get("/applications/{key}")
    async def application(request: Request, key: str, viewer: Viewer = operator) -> Response:
        return await draw_application(request, viewer, key)

    @routes.post("/applications/{key}/check")
    async def check(request: Request, key: str, viewer: Viewer = operator) -> Response:
        return await draw_application(request, viewer, key, check=await applications.check(key))

    @routes.post("/applications/{key}/admit")
    async def admit(request: Request, key: str, viewer: Viewer = operator) -> Response:
        try:
            await applications.admit(key)
        except ConnectorError as error:
            return await draw_application(request, viewer, key, error=error)
        view = await applications.find(key)
        return RedirectResponse(f"/members/{view.row.name}", status_code=303)

    @routes.post("/applications/{key}/decline")
    async def decline(request: Request, key: str, viewer: Viewer = operator) -> Response:
        fields = await read_fields(request)
        try:
            await applications.decline(key, reason=fields.get("reason", ""))
        except ConnectorError as error:
            return await draw_application(request, viewer, key, error=error)
        return RedirectResponse("/members", status_code=303)

    return routes
