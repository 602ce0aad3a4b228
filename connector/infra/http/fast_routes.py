"""A router for frequent requests that bypasses FastAPI's middleware.

The middleware touches every part of a body, and costs more than handling a protocol message does. The endpoints behind
this router limit their bodies and turn errors into responses themselves. Other requests go on to FastAPI.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send


class FastRouter:
    """Handles a request with the first route that matches its path and method."""

    def __init__(self, *routes: BaseRoute) -> None:
        self._routes = routes

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Answer the request if a route matches it; False if none does."""
        if scope["type"] == "http":
            for route in self._routes:
                match, updates = route.matches(scope)
                if match is Match.FULL:
                    scope.update(updates)
                    await route.handle(scope, receive, send)
                    return True
        return False


def unwrap_routes(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """FastAPI routes as plain Starlette routes, without the wrappers around their handlers."""
    unwrapped: list[BaseRoute] = []
    for route in routes:
        if isinstance(route, APIRoute):
            plain = Route(route.path, _Endpoint(route.get_route_handler()))
            plain.methods = set(route.methods or ())  # set here: as an argument, GET would add HEAD
            unwrapped.append(plain)
    return unwrapped


class _Endpoint:
    def __init__(self, handle: Callable[[Request], Awaitable[Response]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._handle(Request(scope, receive, send))
        await answer(scope, receive, send)
