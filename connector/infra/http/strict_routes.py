"""Routes for bodies that hold policies: JSON with a duplicate member is refused before anything reads it."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from connector.errors import Invalid
from policies.odrl import strictjson


class _StrictRequest(Request):
    duplicate = ""

    async def json(self) -> Any:
        """The body as JSON; for a duplicate member, `duplicate` becomes the message that names it."""
        try:
            return strictjson.loads(await self.body())
        except strictjson.DuplicateMember as error:
            self.duplicate = str(error)
            raise


class StrictRoute(APIRoute):
    """A route that reads JSON bodies with the strict parser. Raises: Invalid for a duplicate member."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            strict = _StrictRequest(request.scope, request.receive)
            try:
                return await handle(strict)
            except RequestValidationError as error:  # FastAPI's message does not name the member
                if not strict.duplicate:
                    raise
                raise Invalid(strict.duplicate) from error

        return handle_strictly
