"""What `hanse login` asks of a connector: where people log in, a token for an ID token, and the end of that token.

No route needs a token. A refused exchange gets no reason; our log has it.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from connector.errors import Invalid, Unproven
from connector.infra.http.form import parse_form
from connector.management.sign_on.people import ID_TYPE, SignOn
from connector.management.sign_on.workloads import ACCESS_TYPE

_QUIET = {"cache-control": "no-store"}


class LoginProvider(BaseModel):
    """A provider for `hanse login`, with the client that is registered for it there."""

    name: str
    title: str
    issuer: str
    client_id: str
    scopes: str


async def exchange_login(sign_on: SignOn, body: bytes) -> Response | None:
    """Answer a token exchange whose subject token is an ID token (RFC 8693, 2.2); None for another request."""
    if not _has_id_token(body):
        return None
    try:
        login = await sign_on.exchange(body)
    except Unproven:
        return JSONResponse({"error": "invalid_grant"}, status_code=400, headers=_QUIET)
    answer = {
        "access_token": login.session, "issued_token_type": ACCESS_TYPE, "token_type": "Bearer",
        "expires_in": login.seconds, "scope": " ".join(login.scopes),
    }  # fmt: skip
    return JSONResponse(answer, headers=_QUIET)


def router(sign_on: SignOn) -> APIRouter:
    routes = APIRouter(tags=["system"])

    @routes.get("/oauth/providers", summary="Providers that `hanse login` may use; needs no token")
    async def list_providers() -> list[LoginProvider]:
        return [
            LoginProvider(
                name=one.name, title=one.title, issuer=one.issuer, client_id=one.cli_client_id, scopes=one.cli_scopes
            )
            for one in sign_on.providers
            if one.cli_client_id
        ]

    @routes.post("/oauth/revoke", summary="End the token of a person's login (RFC 7009)")
    async def revoke(request: Request) -> Response:
        try:
            await sign_on.revoke(parse_form(await request.body()).get("token", ""))
        except Invalid:
            return JSONResponse({"error": "invalid_request"}, status_code=400, headers=_QUIET)
        return Response(status_code=200, headers=_QUIET)

    return routes


def _has_id_token(body: bytes) -> bool:
    try:
        return parse_form(body).get("subject_token_type") == ID_TYPE
    except Invalid:
        return False
