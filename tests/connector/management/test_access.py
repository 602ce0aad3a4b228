"""The management listener answers nothing without a token but what it says it does, each path tried."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.routing import BaseRoute, Route

from connector.app import management_app
from tests.connector.console.support import Console

# Health for a supervisor; what every connector of this version can do, and holds no data; how to come in.
OPEN = {
    "/health/live", "/health/ready", "/openapi.json", "/docs", "/login", "/static/x", "/help", "/help/x", "/client/x",
    "/api/v1/oauth/token", "/api/v1/oauth/providers", "/api/v1/oauth/revoke",
    "/login/with/x", "/login/with/x/callback", "/login/with/x/back-channel-logout",
}  # fmt: skip


def tried(routes: Sequence[BaseRoute], prefix: str = "") -> list[tuple[str, str]]:
    """Every method of every path, its parameters filled with a word."""
    found = []
    for route in routes:
        context: Any = getattr(route, "include_context", None)  # FastAPI keeps routers as they came
        if context is not None:
            found.extend(tried(context.included_router.routes, prefix + context.prefix))
        elif isinstance(route, Route):
            path = "/".join("x" if part.startswith("{") else part for part in (prefix + route.path).split("/"))
            found.extend((method, path) for method in sorted(route.methods or ()) if method != "HEAD")
    return found


async def test_without_a_token_only_what_is_named_is_answered(desk: Console) -> None:
    app = management_app(desk.parts)
    open_, routes = set(), tried(app.routes)
    for method, path in routes:
        answer = await desk.http.request(method, path)
        if answer.status_code in (401, 403) or answer.headers.get("location", "").startswith("/login"):
            continue
        open_.add(path)
    assert open_ == OPEN
    assert len(routes) > 80


async def test_figures_take_a_token_of_their_own_which_opens_nothing_else(desk: Console) -> None:
    def bearing(token: str) -> dict[str, str]:
        return {"authorization": f"Bearer {token}"}

    monitor, reader = bearing(await desk.token("metrics")), bearing(await desk.token("read"))
    figures = await desk.http.get("/metrics", headers=monitor)
    assert (figures.status_code, "hanse_streams_live" in figures.text) == (200, True)
    assert (await desk.http.get("/metrics")).status_code == 401
    refused = await desk.http.get("/metrics", headers=reader)
    assert (refused.status_code, "'metrics'" in refused.json()["detail"]) == (403, True)
    assert (await desk.http.get("/api/v1/datasets", headers=monitor)).status_code == 403


async def test_what_is_open_about_the_interface_is_the_published_contract_and_nothing_of_this_connector(
    desk: Console,
) -> None:
    told = (await desk.http.get("/openapi.json")).text
    assert not any(word in told for word in ("north", "North Clinic", str(desk.parts.settings.data_dir), "lab.example"))
