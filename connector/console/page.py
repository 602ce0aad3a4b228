"""What every page shares: who may see it, how it is rendered, how an error looks, and the headers it leaves with.

Knows nothing of datasets or negotiations. A request for a page is checked so:
1. a form comes from a page of our own (Sec-Fetch-Site and Origin; the cookie is SameSite=Strict besides);
2. the session's token is good and has the scope that the page asks for, else the reader is led to the login;
3. whatever is refused further in is shown in the page's place: what was expected, what came, what to do.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, quote, urlsplit, urlunsplit

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, RedirectResponse
from fastapi.routing import APIRoute
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from connector import raw_access
from connector.console.view import formatting
from connector.errors import BadInput, Forbidden, HanseError, Unauthenticated, validation_error
from connector.events import Event
from connector.infra.html.wording import TIERS
from connector.management.auth import COOKIE, Caller, Requirement, Tokens
from policies.errors import PolicyError

HEADERS: Mapping[str, str] = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "private, no-store",
}
_FIELDS_MAX = 60
_SAFE = ("GET", "HEAD")
_ASK = "ask"

READS = 20  # that run, of as many as there may be
PAGES_MAX = 10_000
Numbered = Annotated[int, Query(ge=1, le=PAGES_MAX)]
"""The number of a page of a list."""

Names = Mapping[str, Mapping[str, Any]]
"""Members by DID, as the operator's register lists them."""


def part_of(page: int, size: int) -> dict[str, Any]:
    """Which rows are on a page of a list, and one more that tells whether another follows."""
    return {"limit": size + 1, "offset": (page - 1) * size}


class Form:
    """The fields of a posted form."""

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        self._fields = fields

    def get(self, name: str) -> str:
        """The last value of a field, without blanks around it; empty where there is none."""
        return self._fields.get(name, [""])[-1].strip()

    def all(self, name: str) -> list[str]:
        return [value.strip() for value in self._fields.get(name, []) if value.strip()]


class Unsure(Exception):
    """A form that came with a question: nothing is done before somebody has answered it."""

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        super().__init__(fields[_ASK][-1])
        self.fields = [(name, value) for name, values in fields.items() if name != _ASK for value in values]


async def form_of(request: Request) -> Form:
    """The fields of a form. BadInput for more fields than any page of ours has.

    Unsure where it has a question (`ask`): a page's script asks it and leaves it out, without one the server asks.
    """
    text = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=_FIELDS_MAX)
    except ValueError as error:
        raise BadInput(f"expected a form with at most {_FIELDS_MAX} fields; send it from the page") from error
    if _ASK in fields:
        raise Unsure(fields)
    return Form(fields)


class PageRequirement(Requirement):
    """A dependency of a page: the caller, if the session has one of the scopes (`read|audit`)."""

    async def __call__(self, request: Request) -> Caller:
        if COOKIE not in request.cookies and "authorization" not in request.headers:
            raise Unauthenticated("log in first")  # no token was tried: nothing for the log
        caller = await self.tokens.let_in(request, "")
        request.state.caller = caller
        scopes = self.scope.split("|")
        if not any(map(caller.may, scopes)):
            await self.tokens.let_in(request, scopes[0])  # refuses, and records it
        raw_access.allow(self.records is not None)
        return caller


class Desk:
    """Renders pages for whoever the session's token speaks for. `members` gives names to DIDs."""

    def __init__(
        self,
        tokens: Tokens,
        *,
        name: str,
        title: str,
        participant: str,
        version: str,
        members: Callable[[], Awaitable[Names]],
    ) -> None:
        self.tokens = tokens
        self._members = members
        folder = FileSystemLoader(Path(__file__).parent / "templates")
        self._pages = Environment(
            loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        self._pages.filters.update(formatting.FILTERS)
        self._pages.globals.update(
            us={"name": name, "title": title or name, "participant": participant, "version": version},
            TIERS=TIERS,
            DECIDED=formatting.DECIDED,
            KINDS=formatting.KINDS,
            STAGES=formatting.STAGES,
        )

    def router(self) -> APIRouter:
        """A router whose routes are pages: no schema, errors in place, our headers."""
        return APIRouter(include_in_schema=False, route_class=self._route_class())

    def may(self, scope: str) -> Any:
        """A dependency: the caller, if the session has `scope`; `read|audit` is either of the two."""
        return Depends(PageRequirement(self.tokens, scope))

    def may_raw(self, scope: str, *records: type[Event]) -> Any:
        """The same of a page that touches raw data (`Tokens.require_raw`)."""
        return Depends(PageRequirement(self.tokens, scope, records))

    async def names(self) -> Names:
        """Members by DID, for names beside identifiers; none where the register does not answer."""
        try:
            return await self._members()
        except HanseError:
            return {}

    async def page(self, request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
        """A page for the caller of this request."""
        shown = {"me": self._caller(request), "now": time.time(), "where": "", "names": await self.names()}
        html = self._pages.get_template(template).render(**(shown | context))
        return HTMLResponse(html, status_code=status)

    async def problem(self, request: Request, error: HanseError) -> Response:
        """An error as a page that says what to do."""
        return await self.page(request, "problem.html", status=error.status, error=error)

    def _caller(self, request: Request) -> Caller | None:
        found = getattr(request.state, "caller", None)
        return found if isinstance(found, Caller) else None

    def _route_class(desk) -> type[APIRoute]:  # noqa: N805  # `self` is the route in the class below
        class Page(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # narrower
                handle = super().get_route_handler()

                async def shown(request: Request) -> Response:
                    try:
                        check_origin(request)
                        answer: Response = await handle(request)
                    except Unsure as unsure:
                        answer = await desk.page(request, "sure.html", **_unsure(request, unsure))
                    except Unauthenticated:
                        answer = _to_login(request)
                    except HanseError as error:
                        answer = await desk.problem(request, error)
                    except PolicyError as error:
                        answer = await desk.problem(request, BadInput(str(error), code=error.code))
                    except RequestValidationError as error:
                        answer = await desk.problem(request, validation_error(error.errors()))
                    for name, value in HEADERS.items():
                        answer.headers.setdefault(name, value)
                    return answer

                return shown

        return Page


def check_origin(request: Request) -> None:
    """Forbidden for a form that another site sent, or of which nothing says where it came from."""
    if request.method in _SAFE or "authorization" in request.headers:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if site not in (None, "same-origin") or not ours or (site is None and origin is None):
        raise Forbidden(
            f"expected a form from this console, came one from {origin or 'an unknown place'}; "
            "open the page here and send it again",
            code="foreign_form",
        )


def _unsure(request: Request, unsure: Unsure) -> dict[str, Any]:
    """What the page that asks shows, and where it leads who says no."""
    came = urlsplit(request.headers.get("referer", ""))
    back = urlunsplit(("", "", came.path, came.query, "")) if came.netloc == request.headers.get("host") else ""
    return {"question": str(unsure), "fields": unsure.fields, "back": here_only(back)}


def here_only(path: str) -> str:
    """A path of this console to go on to; `/` for anything that could lead elsewhere."""
    fits = path.startswith("/") and not path.startswith(("//", "/\\", "/login")) and "\n" not in path
    return path if fits and not urlsplit(path).netloc else "/"


def _to_login(request: Request) -> Response:
    asked = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    target = asked if request.method in _SAFE else "/"
    answer = RedirectResponse(f"/login?to={quote(here_only(target), safe='/')}", status_code=303)
    if COOKIE in request.cookies:  # a token that is no longer good: asking again would only fill the log
        answer.delete_cookie(COOKIE)
    return answer
