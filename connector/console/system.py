"""The operator's pages: tokens of the management API, and the settings in force. Secrets never show."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from connector.console.page import Desk, Form, form_of
from connector.errors import HanseError, validation_error
from connector.management.auth import SCOPES, Caller, Tokens
from connector.management.system import NewToken
from connector.settings import Settings

_SECRET = ("static_tokens", "database_url")
_SCOPES = {
    "read": "see datasets, offers, negotiations, agreements and transfers",
    "owner": "register datasets, publish offers, decide and revoke as provider",
    "consume": "search, ask for agreements, read data and ask questions",
    "audit": "read the log and take evidence",
    "metrics": "read the figures of /metrics, for a monitor, and nothing else",
    "admin": "everything, tokens and settings too",
}


def router(desk: Desk, *, tokens: Tokens, settings: Settings) -> APIRouter:
    routes = desk.router()

    async def _tokens(
        request: Request,
        *,
        made: tuple[str, str] | None = None,
        said: Form | None = None,
        error: HanseError | None = None,
    ) -> Response:
        return await desk.page(
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
    async def listed(request: Request, caller: Caller = desk.may("admin")) -> Response:
        return await _tokens(request)

    @routes.post("/tokens")
    async def issue(request: Request, caller: Caller = desk.may("admin")) -> Response:
        """Issue a token; its text is on this answer and nowhere else."""
        said = await form_of(request)
        try:
            given = {"name": said.get("name"), "scopes": said.all("scope"), "days": _number(said.get("days"))}
            new = NewToken.model_validate(given)
            text = await tokens.issue(new.name, new.scopes, by=caller.name, days=new.days)
        except ValidationError as invalid:
            return await _tokens(request, said=said, error=validation_error(invalid.errors()))
        except HanseError as error:
            return await _tokens(request, said=said, error=error)
        return await _tokens(request, made=(new.name, text))

    @routes.post("/tokens/revoke")
    async def revoke(request: Request, caller: Caller = desk.may("admin")) -> Response:
        try:
            await tokens.revoke((await form_of(request)).get("name"), by=caller.name)
        except HanseError as error:
            return await _tokens(request, error=error)
        return RedirectResponse("/tokens", status_code=303)

    @routes.get("/settings")
    async def shown(request: Request, caller: Caller = desk.may("admin")) -> Response:
        return await desk.page(request, "settings.html", where="settings", settings=lines(settings))

    return routes


def lines(settings: Settings) -> list[dict[str, Any]]:
    """Every setting with its help, its value as text and whether it was set; of secrets only whether there is one."""
    found = []
    for name, about in Settings.model_fields.items():
        value = getattr(settings, name)
        found.append(
            {
                "name": f"HANSE_{name.upper()}",
                "help": about.description or "",
                "value": _text(name, value),
                "changed": value != about.get_default(call_default_factory=True, validated_data={}),
            }
        )
    return found


def _text(name: str, value: Any) -> str:
    if name in _SECRET:
        return "set, not shown" if value else ""
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _number(text: str) -> float | str | None:
    """The number in a field of a form; None for an empty one, the text itself where it is none, to be refused."""
    try:
        return float(text) if text else None
    except ValueError:
        return text
