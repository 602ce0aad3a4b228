"""Login, logout, language, static files and the client's wheel: the only routes without a session.

`management.sign_on` does sign-on.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, RedirectResponse

from connector.console.page import PageRenderer, read_form
from connector.errors import Absent, Unproven
from connector.identity.openid.login import ATTEMPT_SECONDS
from connector.infra import client_wheel, html
from connector.infra.html.page_language import local_path, switch_language
from connector.management.sign_on.auth import COOKIE
from connector.management.sign_on.people import ATTEMPT_COOKIE, Login, SignOn

SESSION_SECONDS = 12 * 3600
_OWN = Path(__file__).parent / "static"
_FILES = {
    **{name: (html.FOLDER / name, media) for name, media in html.FILES.items()},
    "console.css": (_OWN / "console.css", "text/css"),
    "console.js": (_OWN / "console.js", "text/javascript"),
}


def router(pages: PageRenderer, sign_on: SignOn, *, secure: bool) -> APIRouter:
    """`secure`: send the session cookie over https only."""
    routes = pages.router()

    @routes.get("/static/{name}")
    async def static(name: str) -> Response:
        if name not in _FILES:
            raise Absent(f"no file {name[:60]!r} belongs to the console")
        headers = {"cache-control": "public, max-age=300"}
        file, media = _FILES[name]
        return FileResponse(file, media_type=media, headers=headers)

    @routes.get(client_wheel.PATH + "/{name}")
    def client(name: str) -> Response:
        """Return the client's wheel, which `pip install` requests without a session."""
        if not (known := client_wheel.wheel_name()) or name != known:
            raise Absent(f"no file {name[:60]!r}; this connector has {known or 'no client installed'}")
        return Response(client_wheel.pack_wheel(), media_type="application/octet-stream")

    @routes.post("/language")
    async def language(request: Request) -> Response:
        """Keep the language of this browser's pages, and return to the page."""
        form = await read_form(request)
        return switch_language(form.get("language"), form.get("to"), secure=secure)

    @routes.get("/login")
    async def login_page(request: Request, to: str = "/") -> Response:
        return await _render_login(request, to=local_path(to))

    @routes.post("/login")
    async def login(request: Request) -> Response:
        form = await read_form(request)
        token, to = form.get("token"), local_path(form.get("to"))
        try:
            caller = await pages.tokens.let_in(_with_token(request, token), "")
        except Unproven as error:
            return await _render_login(request, error=error, to=to)
        landing = "/audit" if to == "/" and not caller.may("read") and caller.may("audit") else to
        answer = RedirectResponse(landing, status_code=303)
        answer.set_cookie(
            COOKIE, token, max_age=SESSION_SECONDS, httponly=True, samesite="strict", secure=secure, path="/"
        )
        return answer

    @routes.post("/logout")
    async def logout(request: Request) -> Response:
        """End the session here, then at its provider. The page leads there: a form may only lead to this console."""
        away = await sign_on.end(request.cookies.get(COOKIE, ""))
        answer: Response = RedirectResponse("/login", status_code=303)
        if away:
            answer = await pages.render(request, "goto.html", heading="Logged out here", target=away)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    @routes.get("/login/with/{provider}")
    async def begin(provider: str, to: str = "/") -> Response:
        away, attempt = await sign_on.begin(provider, to=local_path(to))
        answer = RedirectResponse(away, status_code=303)
        # The provider's redirect back is a navigation from another site, which only a lax cookie comes with.
        answer.set_cookie(
            ATTEMPT_COOKIE,
            attempt,
            max_age=ATTEMPT_SECONDS,
            httponly=True,
            samesite="lax",
            secure=secure,
            path="/login",
        )
        return answer

    @routes.get("/login/with/{provider}/callback")
    async def finish(request: Request, provider: str) -> Response:
        try:
            done = await sign_on.finish(provider, request.query_params, request.cookies.get(ATTEMPT_COOKIE, ""))
        except Unproven as error:
            answer: Response = await _render_login(request, error=error)
        else:
            answer = await _welcome(request, done)
        answer.delete_cookie(ATTEMPT_COOKIE, path="/login")
        return answer

    async def _welcome(request: Request, done: Login) -> Response:
        """Set the session's cookie. The page leads on: a strict cookie does not come with the provider's redirect."""
        blind = done.to == "/" and not {"read", "admin"} & set(done.scopes)
        target = ("/audit" if "audit" in done.scopes else "/personal-tokens") if blind else done.to
        answer = await pages.render(request, "goto.html", heading="Logged in", target=target)
        answer.set_cookie(
            COOKIE, done.session, max_age=done.seconds, httponly=True, samesite="strict", secure=secure, path="/"
        )
        return answer

    async def _render_login(request: Request, *, error: Unproven | None = None, to: str = "/") -> Response:
        return await pages.render(
            request,
            "login.html",
            status=401 if error else 200,
            problem=error.message if error else "",
            providers=sign_on.providers,
            to=to,
        )

    return routes


def _with_token(request: Request, token: str) -> Request:
    """Return the request with the token as bearer, so that a wrong token is checked and recorded as in the API."""
    said = f"Bearer {token}".encode("latin-1", "replace")
    headers = [pair for pair in request.scope["headers"] if pair[0] not in (b"authorization", b"cookie")]
    return Request({**request.scope, "headers": [*headers, (b"authorization", said)]})


def back_channel(sign_on: SignOn) -> APIRouter:
    """Return the route that providers call, without a browser and its origin."""
    routes = APIRouter(include_in_schema=False)

    @routes.post("/login/with/{provider}/back-channel-logout")
    async def end_by_provider(request: Request, provider: str) -> Response:
        """OpenID Connect Back-Channel Logout 1.0: the provider says which sessions have ended."""
        try:
            await sign_on.end_by_provider(provider, await request.body())
        except (Unproven, Absent):
            return Response(status_code=400, headers={"cache-control": "no-store"})
        return Response(status_code=200, headers={"cache-control": "no-store"})

    return routes
