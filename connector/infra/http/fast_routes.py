"""The short way for requests of which there are many: past the framework.

What a framework puts around its routes touches every part of a body, and costs more than a message of the protocol
does. The endpoints of these routes limit their bodies and turn their errors into answers themselves; a request that is
for none of them is left to the framework.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send


class Direct:
    """Answers by the first route that fits path and method."""

    def __init__(self, *routes: BaseRoute) -> None:
        self._routes = routes

    async def answered(self, scope: Scope, receive: Receive, send: Send) -> bool:
        """Whether this was a request of one of the routes; then it is answered."""
        if scope["type"] == "http":
            for route in self._routes:
                match, found = route.matches(scope)
                if match is Match.FULL:
                    scope.update(found)
                    await route.handle(scope, receive, send)
                    return True
        return False


def bare(routes: Iterable[BaseRoute]) -> list[BaseRoute]:
    """Routes that a framework describes, with nothing of it around their handlers."""
    found: list[BaseRoute] = []
    for route in routes:
        if isinstance(route, APIRoute):
            made = Route(route.path, _Handled(route.get_route_handler()))
            made.methods = set(route.methods or ())  # these: given as an argument, GET would be HEAD as well
            found.append(made)
    return found


class _Handled:
    def __init__(self, handle: Callable[[Request], Awaitable[Response]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._handle(Request(scope, receive, send))
        await answer(scope, receive, send)
