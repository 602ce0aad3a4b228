"""The pages of tokens: all tokens, for administrators, and a caller's own. One handler serves both.

Must not show the text of a token more than once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from connector.console.page import Form, PageRenderer, parse_number, read_form
from connector.errors import ConnectorError, validation_error
from connector.management.sign_on.auth import SCOPES, Caller, Tokens
from connector.management.sign_on.personal_tokens import PERSONAL_SCOPES, NewPersonalToken, PersonalTokens
from connector.management.system import NewToken
from connector.store.tables import ApiToken

_SCOPES = {
    "read": "see datasets, offers, negotiations, agreements and transfers",
    "owner": "register datasets, publish offers, decide and revoke as provider",
    "approve": "see and decide negotiations as provider",
    "consume": "search, ask for agreements, read data and ask questions",
    "audit": "read the log and take evidence",
    "metrics": "read the figures of /metrics, for a monitor, and nothing else",
    "admin": "everything, tokens and settings too",
}


@dataclass(frozen=True, slots=True)
class TokenPage:
    """What differs between the pages. `issue` returns the name of a new token and its text, `revoke` ends a token."""

    where: str
    scope: str
    template: str
    key: str  # field of the form that names the token to end
    scopes_of: Callable[[Caller], Collection[str]]
    list_rows: Callable[[Caller], Awaitable[Sequence[ApiToken]]]
    issue: Callable[[Caller, Form], Awaitable[tuple[str, str]]]
    revoke: Callable[[Caller, str], Awaitable[None]]


def router(pages: PageRenderer, *, tokens: Tokens, personal: PersonalTokens) -> APIRouter:
    routes = pages.router()
    for page in (_make_page(tokens), _make_own_page(personal)):
        routes.include_router(_route(pages, page))
    return routes


def _route(pages: PageRenderer, page: TokenPage) -> APIRouter:
    routes = pages.router()
    allowed = pages.may(page.scope)

    async def _render(
        request: Request,
        caller: Caller,
        *,
        made: tuple[str, str] | None = None,
        said: Form | None = None,
        error: ConnectorError | None = None,
    ) -> Response:
        return await pages.render(
            request,
            page.template,
            status=error.status if error else 200,
            where=page.where,
            tokens=await page.list_rows(caller),
            scopes=page.scopes_of(caller),
            made=made,
            said=said or Form({}),
            error=error,
        )

    @routes.get(f"/{page.where}")
    async def list_tokens(request: Request, caller: Caller = allowed) -> Response:
        return await _render(request, caller)

    @routes.post(f"/{page.where}")
    async def issue(request: Request, caller: Caller = allowed) -> Response:
        """Make a token; only this response shows its text."""
        said = await read_form(request)
        try:
            made = await page.issue(caller, said)
        except ValidationError as invalid:
            return await _render(request, caller, said=said, error=validation_error(invalid.errors()))
        except ConnectorError as error:
            return await _render(request, caller, said=said, error=error)
        return await _render(request, caller, made=made)

    @routes.post(f"/{page.where}/revoke")
    async def revoke(request: Request, caller: Caller = allowed) -> Response:
        try:
            await page.revoke(caller, (await read_form(request)).get(page.key))
        except ConnectorError as error:
            return await _render(request, caller, error=error)
        return RedirectResponse(f"/{page.where}", status_code=303)

    return routes


def _make_page(tokens: Tokens) -> TokenPage:
    """Return the page of all tokens."""

    async def list_rows(_: Caller) -> Sequence[ApiToken]:
        return await tokens.list()

    async def issue(caller: Caller, said: Form) -> tuple[str, str]:
        given = {"name": said.get("name"), "scopes": said.all("scope"), "days": parse_number(said.get("days"))}
        new = NewToken.model_validate(given)
        text = await tokens.issue(new.name, new.scopes, by=caller.name, subject=caller.subject, days=new.days)
        return new.name, text

    async def revoke(caller: Caller, name: str) -> None:
        await tokens.revoke(name, by=caller.name)

    scopes = {name: _SCOPES[name] for name in SCOPES}
    return TokenPage("tokens", "admin", "tokens.html", "name", lambda _: scopes, list_rows, issue, revoke)


def _make_own_page(personal: PersonalTokens) -> TokenPage:
    """Return the page of a caller's own personal access tokens."""

    async def issue(caller: Caller, said: Form) -> tuple[str, str]:
        given = {"label": said.get("label"), "scopes": said.all("scope"), "days": parse_number(said.get("days"))}
        row, text = await personal.issue(caller, NewPersonalToken.model_validate(given))
        return row.label or "", text

    def scopes_of(caller: Caller) -> Collection[str]:
        return [scope for scope in PERSONAL_SCOPES if caller.may(scope)]

    where, template = "personal-tokens", "personal_tokens.html"
    return TokenPage(where, "", template, "id", scopes_of, personal.list, issue, personal.revoke)
