"""The page of the current settings. Must not show secrets."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from connector.console.page import PageRenderer
from connector.management.sign_on.auth import Caller
from connector.settings import Settings

_SECRET = ("static_tokens", "database_url")


def router(pages: PageRenderer, *, settings: Settings) -> APIRouter:
    routes = pages.router()

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
