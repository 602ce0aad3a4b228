"""System pages: tokens of the management API and the current settings. Must not show secrets."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from connector.console.page import Form, PageRenderer, parse_number, read_form
from connector.errors import HanseError, validation_error
from connector.management.auth import SCOPES, Caller, Tokens
from connector.management.system import NewToken
from connector.settings import Settings

_SECRET = ("static_tokens", "database_url")
_SCOPES = {
    "read": "see datasets, offers, negotiations, agreements and transfers",
    "owner": "register datasets, publish offers, decide and revoke as provider",
    "approve": "see and decide negotiations as provider",
    "consume": "search, ask for agreements, read data and ask questions",
    "audit": "read the log and take evidence",
    "metrics": "read the figures of /metrics, for a monitor, and nothing else",
    "admin": "everything, tokens and settings too",
}


def router(pages: PageRenderer, *, tokens: Tokens, settings: Settings) -> APIRouter:
    routes = pages.router()

    async def _render_tokens(
        request: Request,
        *,
        made: tuple[str, str] | None = None,
        said: Form | None = None,
        error: HanseError | None = None,
    ) -> Response:
        return await pages.render(
            request,
            "tokens.html",
            status=error.status if error else 200,
            where="tokens",
            tokens=await tokens.list(),
            scopes={name: _SCOPES[name] for name in SCOPES},
            made=made,
            said=said or Form({}),
            error=error,
        )

    @routes.get("/tokens")
    async def list_tokens(request: Request, caller: Caller = pages.may("admin")) -> Response:
        return await _render_tokens(request)

    @routes.post("/tokens")
    async def issue(request: Request, caller: Caller = pages.may("admin")) -> Response:
        """Issue a token; only this response shows its text."""
        said = await read_form(request)
        try:
            given = {"name": said.get("name"), "scopes": said.all("scope"), "days": parse_number(said.get("days"))}
            new = NewToken.model_validate(given)
            text = await tokens.issue(new.name, new.scopes, by=caller.name, subject=caller.subject, days=new.days)
        except ValidationError as invalid:
            return await _render_tokens(request, said=said, error=validation_error(invalid.errors()))
        except HanseError as error:
            return await _render_tokens(request, said=said, error=error)
        return await _render_tokens(request, made=(new.name, text))

    @routes.post("/tokens/revoke")
    async def revoke(request: Request, caller: Caller = pages.may("admin")) -> Response:
        try:
            await tokens.revoke((await read_form(request)).get("name"), by=caller.name)
        except HanseError as error:
            return await _render_tokens(request, error=error)
        return RedirectResponse("/tokens", status_code=303)

    @routes.get("/settings")
    async def view_settings(request: Request, caller: Caller = pages.may("admin")) -> Response:
        return await pages.render(request, "settings.html", where="settings", settings=list_settings(settings))

    return routes


def list_settings(settings: Settings) -> list[dict[str, Any]]:
    """List every setting with help, value as text and whether it was changed; for secrets only whether one is set."""
    found = []
    for name, about in Settings.model_fields.items():
        value = getattr(settings, name)
        found.append(
            {
                "name": f"HANSE_{name.upper()}",
                "help": about.description or "",
                "value": _format_value(name, value),
                "changed": value != about.get_default(call_default_factory=True, validated_data={}),
            }
        )
    return found


def _format_value(name: str, value: Any) -> str:
    if name in _SECRET:
        return "set, not shown" if value else ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)
