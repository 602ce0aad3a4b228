"""Routes whose bodies hold policies: a member that is given twice is refused before anything reads the body."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from connector.errors import BadInput
from policies.odrl import strictjson


class _Strict(Request):
    twice = ""

    async def json(self) -> Any:
        """The body as JSON; where a member stands twice, `twice` says which."""
        try:
            return strictjson.loads(await self.body())
        except strictjson.DuplicateMember as error:
            self.twice = str(error)
            raise


class StrictRoute(APIRoute):
    """As any route, with the strict reader for its body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            read = _Strict(request.scope, request.receive)
            try:
                return await handle(read)
            except RequestValidationError as error:  # the framework's own words leave out which member it is
                if not read.twice:
                    raise
                raise BadInput(read.twice) from error

        return strict
