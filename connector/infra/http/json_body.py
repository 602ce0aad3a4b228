"""The JSON message that a request carries."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from connector.errors import Invalid


async def read_json(request: Request) -> Any:
    """Return the JSON value of a body. Raises: Invalid for anything else."""
    try:
        return await request.json()
    except (ValueError, RecursionError):
        raise Invalid("expected a message as JSON, got something else") from None
