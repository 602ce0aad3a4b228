"""The short way past the framework: which requests take it."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from connector.dsp.routes import _Route
from connector.infra.http.fast_routes import FastRouter, unwrap_routes


def direct() -> FastRouter:
    routes = APIRouter(prefix="/a", route_class=_Route)

    @routes.get("/{name}")
    async def shown(name: str, request: Request) -> Response:
        return Response(name)

    return FastRouter(*unwrap_routes(routes.routes))


@pytest.mark.parametrize(
    ("kind", "method", "path", "answered"),
    [
        ("http", "GET", "/a/x", True),
        ("http", "HEAD", "/a/x", False),  # the framework says what may be asked here
        ("http", "POST", "/a/x", False),
        ("http", "GET", "/a/x/y", False),
        ("http", "GET", "/b", False),
        ("websocket", "GET", "/a/x", False),
    ],
)
async def test_what_is_for_none_of_the_routes_is_left_to_the_framework(
    kind: str, method: str, path: str, answered: bool
) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": kind, "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}
    assert await direct().handle(scope, receive, send) is answered
    assert bool(sent) is answered
