"""The error tree as RFC 9457 problem objects, and as a plain page for people. Knows nothing of what failed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from connector.errors import Absent, ConnectorError, validation_error
from connector.telemetry import logger

_MEDIA = "application/problem+json"
_log = logger("http")

Page = Callable[[Request, ConnectorError], Awaitable[Response]]


def problem_response(error: ConnectorError) -> JSONResponse:
    """An error as its answer. What is private stays in our own log."""
    return JSONResponse(error.problem(), status_code=error.status, media_type=_MEDIA, headers=error.headers)


def install(app: FastAPI, *, page: Page, headers: Mapping[str, str]) -> None:
    """Turn every error that a route lets through into a problem object, or into `page` for a browser. `headers` are for
    the answer that no middleware sees."""

    async def answer(request: Request, error: ConnectorError) -> Response:
        if error.status >= 500:
            _log.error("failed", code=error.code, reason=error.message, why=error.private)
        return await page(request, error) if _wants_page(request) else problem_response(error)

    @app.exception_handler(ConnectorError)
    async def ours(request: Request, error: ConnectorError) -> Response:
        return await answer(request, error)

    @app.exception_handler(RequestValidationError)
    async def of_request(request: Request, error: RequestValidationError) -> Response:
        return await answer(request, validation_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def of_framework(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return await answer(request, Absent(f"there is nothing at {request.scope['path'][:200]}; see /docs"))
        body = {"type": "about:blank", "title": str(error.detail), "status": error.status_code, "code": "http"}
        return JSONResponse({**body, "detail": str(error.detail)}, status_code=error.status_code, media_type=_MEDIA)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        _log.exception("unforeseen", exc_info=error)
        response = await answer(request, ConnectorError("the catalogue failed; its log says why"))
        response.headers.update(headers)
        return response


def _wants_page(request: Request) -> bool:
    path: str = request.scope["path"]
    return "text/html" in request.headers.get("accept", "") and not path.startswith("/api/")
