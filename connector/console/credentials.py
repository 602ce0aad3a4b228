"""The page of credentials that issuers gave us, and of our requests for more."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import ValidationError

from connector.console.page import Form, PageRenderer, read_form
from connector.errors import ConnectorError, validation_error
from connector.management.facts import NewCredentialRequest, view_credential
from connector.management.sign_on.auth import Caller
from connector.wallet.credential_requests import CredentialRequests

_WHERE = "credentials"


def router(pages: PageRenderer, requests: CredentialRequests) -> APIRouter:
    routes = pages.router()

    async def _render(request: Request, *, said: Form | None = None, error: ConnectorError | None = None) -> Response:
        return await pages.render(
            request,
            "credentials.html",
            status=error.status if error else 200,
            where=_WHERE,
            held=[view_credential(one) for one in await requests.list_held()],
            requests=await requests.list_requests(),
            issuers=requests.issuers,
            said=said or Form({}),
            error=error,
        )

    @routes.get(f"/{_WHERE}")
    async def list_credentials(request: Request, _: Caller = pages.may("read")) -> Response:
        return await _render(request)

    @routes.post(f"/{_WHERE}")
    async def ask(request: Request, caller: Caller = pages.may("owner")) -> Response:
        said = await read_form(request)
        try:
            new = NewCredentialRequest.model_validate({"issuer": said.get("issuer"), "type": said.get("type")})
            await requests.request(new.issuer, new.type, by=caller.name)
        except ValidationError as invalid:
            return await _render(request, said=said, error=validation_error(invalid.errors()))
        except ConnectorError as error:
            return await _render(request, said=said, error=error)
        return RedirectResponse(f"/{_WHERE}", status_code=303)

    @routes.post(f"/{_WHERE}/refresh")
    async def refresh(request: Request, _: Caller = pages.may("owner")) -> Response:
        try:
            await requests.refresh((await read_form(request)).get("id"))
        except ConnectorError as error:
            return await _render(request, error=error)
        return RedirectResponse(f"/{_WHERE}", status_code=303)

    return routes
