"""Shared parts of all pages: access checks, rendering, error pages and security headers.

Must not know datasets or negotiations. Checks of a request:
1. a form comes from this console (Sec-Fetch-Site and Origin; the cookie is also SameSite=Strict);
2. the session's token is valid and has the page's scope; without a valid token the browser is redirected to the login;
3. an error raised further in is shown as a page: what was expected, what was received, what to do.
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
from jinja2 import Environment

from connector import raw_access
from connector.console.view import formatting
from connector.errors import ConnectorError, Forbidden, Invalid, Unproven, validation_error
from connector.events import Event
from connector.infra.html.languages import VARY, translations
from connector.infra.html.page_language import PageEnvironments, asked_path, local_path
from connector.infra.html.wording import CONSUMERS_GROUPS, OWNERS_GROUPS, TIERS
from connector.management.sign_on.auth import COOKIE, Caller, Requirement, Tokens, refuse_bound
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

READS = 20  # most running reads on a page
PAGES_MAX = 10_000
Numbered = Annotated[int, Query(ge=1, le=PAGES_MAX)]
"""Page number of a list, from 1."""

Names = Mapping[str, Mapping[str, Any]]
"""Members by DID, from the operator's register."""


LABELS: Mapping[str, Mapping[str, str]] = {
    "TIERS": TIERS,
    "ACTION_TITLES": formatting.ACTION_TITLES,
    "CONSUMERS_GROUPS": CONSUMERS_GROUPS,
    "DECIDED": formatting.DECIDED,
    "KINDS": formatting.KINDS,
    "OWNERS_GROUPS": OWNERS_GROUPS,
    "ROLES": formatting.ROLES,
    "STAGES": formatting.STAGES,
    "TEMPLATE_TITLES": formatting.TEMPLATE_TITLES,
    "USAGE": formatting.USAGE,
    "WITNESS_STATES": formatting.WITNESS_STATES,
}
"""Texts of words that the templates have by name."""


HELP: Mapping[str, str] = {
    "datasets": "paths/owner/",
    "offers": "paths/owner/",
    "negotiations": "paths/owner/",
    "agreements": "paths/owner/",
    "transfers": "paths/trainer/",
    "search": "paths/model-builder/",
    "query": "paths/model-builder/",
    "credentials": "paths/operator/",
    "audit": "paths/auditor/",
    "tokens": "paths/operator/",
    "settings": "paths/operator/",
}
"""Page of the help site for each page of the console, by its tab; other pages lead to the start page."""


def page_slice(page: int, size: int) -> dict[str, Any]:
    """Return limit and offset of a page; the limit has one more row, which shows whether another page follows."""
    return {"limit": size + 1, "offset": (page - 1) * size}


class Form:
    """The fields of a posted form."""

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        self._fields = fields

    def get(self, name: str) -> str:
        """Return the last value of a field, stripped; empty if it is missing."""
        return self._fields.get(name, [""])[-1].strip()

    def all(self, name: str) -> list[str]:
        return [value.strip() for value in self._fields.get(name, []) if value.strip()]

    def exact(self, name: str) -> list[str]:
        """Return the values of a field as they were sent: names of columns may begin or end with a space."""
        return self._fields.get(name, [])


class ConfirmationNeeded(Exception):
    """A form that needs confirmation: nothing is done until the user confirms it."""

    def __init__(self, fields: Mapping[str, list[str]]) -> None:
        super().__init__(fields[_ASK][-1])
        self.fields = [(name, value) for name, values in fields.items() if name != _ASK for value in values]


async def read_form(request: Request, *, most: int = _FIELDS_MAX) -> Form:
    """Return the fields of a posted form, at most `most`.

    Raises: Invalid for too many fields. ConfirmationNeeded if the form has a question (`ask`), which the server asks
    on a page of its own.
    """
    text = (await request.body()).decode("utf-8", "replace")
    try:
        fields = parse_qs(text, keep_blank_values=True, max_num_fields=most)
    except ValueError as error:
        raise Invalid(f"expected a form with at most {most} fields; send it from the page") from error
    if _ASK in fields:
        raise ConfirmationNeeded(fields)
    return Form(fields)


class PageRequirement(Requirement):
    """Page dependency that returns the caller if the session has one of the scopes (`read|audit`)."""

    async def __call__(self, request: Request) -> Caller:
        if COOKIE not in request.cookies and "authorization" not in request.headers:
            raise Unproven("log in first")  # no token was sent, so nothing is logged
        caller = await self.tokens.let_in(request, "")
        refuse_bound(caller)
        request.state.caller = caller
        scopes = self.scope.split("|")
        if not any(map(caller.may, scopes)):
            await self.tokens.let_in(request, scopes[0])  # raises, and records the refusal
        raw_access.allow(self.records is not None)
        return caller


class PageRenderer:
    """Renders pages for the session's caller.

    `members` returns names by DID, `waiting` the number of negotiations that need a decision here.
    """

    def __init__(
        self,
        tokens: Tokens,
        *,
        name: str,
        title: str,
        participant: str,
        version: str,
        members: Callable[[], Awaitable[Names]],
        waiting: Callable[[], Awaitable[int]],
    ) -> None:
        self.tokens = tokens
        self._members, self._waiting = members, waiting
        self._us = {"name": name, "title": title or name, "participant": participant, "version": version}
        self._environments = PageEnvironments(Path(__file__).parent / "templates", self._prepare)

    def router(self) -> APIRouter:
        """Return a router for pages: no API schema, errors as pages, security headers."""
        return APIRouter(include_in_schema=False, route_class=self._route_class())

    def may(self, scope: str) -> Any:
        """Return a dependency for the caller with `scope`; `read|audit` accepts either."""
        return Depends(PageRequirement(self.tokens, scope))

    def may_raw(self, scope: str, *records: type[Event]) -> Any:
        """Return a dependency as `may` does, for a page that reads raw data (`Tokens.require_raw`)."""
        return Depends(PageRequirement(self.tokens, scope, records))

    async def names(self) -> Names:
        """Return members by DID to show names; empty if the register is unavailable."""
        try:
            return await self._members()
        except ConnectorError:
            return {}

    async def render(self, request: Request, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
        """Render a template for the caller of this request."""
        caller = self._caller(request)
        waiting = await self._waiting() if caller is not None and caller.may("read") else 0
        shown = {"me": caller, "now": time.time(), "where": "", "names": await self.names(), "badge": waiting}
        # The page of a refusal does not repeat what was sent: the answer of an OpenID provider is in the address.
        shown |= {"this_page": asked_path(request) if request.method in _SAFE and status < 400 else "/"}
        html = self._environments.for_request(request).get_template(template).render(**(shown | context))
        return HTMLResponse(html, status_code=status, headers={"vary": VARY})

    async def render_problem(self, request: Request, error: ConnectorError) -> Response:
        """Render an error as a page."""
        return await self.render(request, "problem.html", status=error.status, error=error)

    def _prepare(self, made: Environment, language: str) -> None:
        made.filters.update(formatting.filters(language))
        gettext = translations(language).gettext
        for name, labels in LABELS.items():
            made.globals[name] = {word: gettext(text) for word, text in labels.items()}
        made.globals["us"] = self._us
        made.globals["HELP"] = HELP

    def _caller(self, request: Request) -> Caller | None:
        found = getattr(request.state, "caller", None)
        return found if isinstance(found, Caller) else None

    def _route_class(pages) -> type[APIRoute]:  # noqa: N805  # `self` is the route in the class below
        class Page(APIRoute):
            def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]  # narrower
                handle = super().get_route_handler()

                async def handle_page(request: Request) -> Response:
                    try:
                        check_origin(request)
                        answer: Response = await handle(request)
                    except ConfirmationNeeded as asked:
                        answer = await pages.render(request, "sure.html", **_confirmation_context(request, asked))
                    except Unproven:
                        answer = _to_login(request)
                    except ConnectorError as error:
                        answer = await pages.render_problem(request, error)
                    except PolicyError as error:
                        answer = await pages.render_problem(request, Invalid(str(error), code=error.code))
                    except RequestValidationError as error:
                        answer = await pages.render_problem(request, validation_error(error.errors()))
                    for name, value in HEADERS.items():
                        answer.headers.setdefault(name, value)
                    return answer

                return handle_page

        return Page


def parse_number(text: str) -> float | str | None:
    """Parse a number; None for an empty field. Other text is returned as it is and fails validation later."""
    try:
        return float(text) if text else None
    except ValueError:
        return text


def check_origin(request: Request) -> None:
    """Check that a form comes from this console. Raises: Forbidden for another or an unknown origin."""
    if request.method in _SAFE or "authorization" in request.headers:
        return
    site, origin = request.headers.get("sec-fetch-site"), request.headers.get("origin")
    ours = origin is None or urlsplit(origin).netloc == request.headers.get("host")
    if site not in (None, "same-origin") or not ours or (site is None and origin is None):
        raise Forbidden(
            f"expected a form from this console, got one from {origin or 'an unknown place'}; "
            "open the page here and send it again",
            code="foreign_form",
        )


def _confirmation_context(request: Request, asked: ConfirmationNeeded) -> dict[str, Any]:
    """Return the context of the confirmation page: the question, the fields, and where "No" leads."""
    came = urlsplit(request.headers.get("referer", ""))
    back = urlunsplit(("", "", came.path, came.query, "")) if came.netloc == request.headers.get("host") else ""
    return {"question": str(asked), "fields": asked.fields, "back": local_path(back)}


def _to_login(request: Request) -> Response:
    target = asked_path(request) if request.method in _SAFE else "/"
    answer = RedirectResponse(f"/login?to={quote(local_path(target), safe='/')}", status_code=303)
    if COOKIE in request.cookies:  # the token is invalid; another try with it would only fill the log
        answer.delete_cookie(COOKIE)
    return answer
