"""Turns the error tree into RFC 9457 problem objects, for the management API and the data plane."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from connector.errors import Absent, ConnectorError, Invalid, internal_error, validation_error
from connector.infra.http.described_errors import MEDIA_TYPE, describe_errors
from connector.telemetry import logger
from policies.errors import PolicyError

_LISTED = "see /docs at the management listener for all paths"
_log = logger("http")


def problem_response(error: ConnectorError) -> JSONResponse:
    """The response for an error. Its private detail goes only to our own log."""
    if error.status >= 500:
        _log.error("failed", code=error.code, reason=error.message, why=error.private)
    elif error.private:
        _log.info("refused", code=error.code, reason=error.message, why=error.private)
    return JSONResponse(error.problem(), status_code=error.status, media_type=MEDIA_TYPE, headers=error.headers)


def install(app: FastAPI) -> None:
    """Register handlers that turn every error of a route into a problem object, and describe them in OpenAPI."""
    describe_errors(app)

    @app.exception_handler(ConnectorError)
    async def on_hanse_error(_: Request, error: ConnectorError) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(PolicyError)
    async def on_policy_error(_: Request, error: PolicyError) -> JSONResponse:
        return problem_response(Invalid(str(error), code=error.code, rule=error.rule))

    @app.exception_handler(RequestValidationError)
    async def on_invalid_request(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(validation_error(error.errors()))

    @app.exception_handler(HTTPException)
    async def on_http_exception(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 404:
            return problem_response(Absent(f"there is nothing at {request.scope['path'][:200]}; {_LISTED}"))
        body = {"type": "about:blank", "title": str(error.detail), "status": error.status_code, "code": "http"}
        return JSONResponse({**body, "detail": str(error.detail)}, status_code=error.status_code, media_type=MEDIA_TYPE)

    @app.exception_handler(Exception)
    async def on_unforeseen_error(_: Request, error: Exception) -> JSONResponse:
        _log.exception("unforeseen", exc_info=error)
        return problem_response(internal_error())
