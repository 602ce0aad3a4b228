"""Login, logout and static files: the only routes that need no session."""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from connector.console.page import PageRenderer, local_path, read_form
from connector.errors import NotFound, Unauthenticated
from connector.infra import html
from connector.management.auth import COOKIE

SESSION_SECONDS = 12 * 3600
_OWN = Path(__file__).parent / "static"
_FILES = {
    **{name: (html.FOLDER / name, media) for name, media in html.FILES.items()},
    "console.css": (_OWN / "console.css", "text/css"),
    "console.js": (_OWN / "console.js", "text/javascript"),
}


def router(pages: PageRenderer, *, secure: bool) -> APIRouter:
    """`secure`: send the session cookie over https only."""
    routes = pages.router()

    @routes.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in _FILES:
            raise NotFound(f"no file {name[:60]!r} belongs to the console")
        headers = {"cache-control": "public, max-age=300"}
        file, media = _FILES[name]
        return FileResponse(file, media_type=media, headers=headers)

    @routes.get("/login")
    async def login_page(request: Request, to: str = "/") -> Response:
        return await pages.render(request, "login.html", problem="", to=local_path(to))

    @routes.post("/login")
    async def login(request: Request) -> Response:
        form = await read_form(request)
        token, to = form.get("token"), local_path(form.get("to"))
        try:
            caller = await pages.tokens.let_in(_with_token(request, token), "")
        except Unauthenticated as error:
            return await pages.render(request, "login.html", status=401, problem=error.message, to=to)
        landing = "/audit" if to == "/" and not caller.may("read") and caller.may("audit") else to
        answer = RedirectResponse(landing, status_code=303)
        answer.set_cookie(
            COOKIE, token, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=secure, path="/"
        )
        return answer

    @routes.post("/logout")
    async def logout() -> Response:
        answer = RedirectResponse("/login", status_code=303)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    return routes


def _with_token(request: Request, token: str) -> Request:
    """Return the request with the token as bearer, so that a wrong token is checked and recorded as in the API."""
    said = f"Bearer {token}".encode("latin-1", "replace")
    headers = [pair for pair in request.scope["headers"] if pair[0] not in (b"authorization", b"cookie")]
    return Request({**request.scope, "headers": [*headers, (b"authorization", said)]})
