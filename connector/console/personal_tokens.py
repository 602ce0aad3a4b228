"""The page of a caller's own personal access tokens. Must not show the text of a token more than once."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from connector.console.page import Form, PageRenderer, parse_number, read_form
from connector.errors import HanseError, validation_error
from connector.management.auth import Caller
from connector.management.personal_tokens import PERSONAL_SCOPES, NewPersonalToken, PersonalTokens


def router(pages: PageRenderer, *, personal: PersonalTokens) -> APIRouter:
    routes = pages.router()

    async def _render(
        request: Request,
        caller: Caller,
        *,
        made: tuple[str, str] | None = None,
        said: Form | None = None,
        error: HanseError | None = None,
    ) -> Response:
        return await pages.render(
            request,
            "personal_tokens.html",
            status=error.status if error else 200,
            where="personal-tokens",
            tokens=await personal.list(caller),
            scopes=[scope for scope in PERSONAL_SCOPES if caller.may(scope)],
            made=made,
            said=said or Form({}),
            error=error,
        )

    @routes.get("/personal-tokens")
    async def list_own(request: Request, caller: Caller = pages.may("")) -> Response:
        return await _render(request, caller)

    @routes.post("/personal-tokens")
    async def issue(request: Request, caller: Caller = pages.may("")) -> Response:
        """Make a token; only this response shows its text."""
        said = await read_form(request)
        given = {"label": said.get("label"), "scopes": said.all("scope"), "days": parse_number(said.get("days"))}
        try:
            row, text = await personal.issue(caller, NewPersonalToken.model_validate(given))
        except ValidationError as invalid:
            return await _render(request, caller, said=said, error=validation_error(invalid.errors()))
        except HanseError as error:
            return await _render(request, caller, said=said, error=error)
        return await _render(request, caller, made=(row.label or "", text))

    @routes.post("/personal-tokens/revoke")
    async def revoke(request: Request, caller: Caller = pages.may("")) -> Response:
        try:
            await personal.revoke(caller, (await read_form(request)).get("id"))
        except HanseError as error:
            return await _render(request, caller, error=error)
        return RedirectResponse("/personal-tokens", status_code=303)

    return routes
