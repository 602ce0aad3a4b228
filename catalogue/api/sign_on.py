"""Sign-on of the operator's people at OpenID providers. `connector.identity.openid` checks each login.

A person whose claims give the role `operator` has a session like that of the operator's token. It ends with the ID
token, with a logout here or at the provider, and when the operator's token is replaced. The reason of a refusal is in
our log; the browser gets none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ConfigDict

from catalogue.api.access import COOKIE, ViewerAuthenticator
from connector.errors import Invalid, Unproven, harmless
from connector.identity.openid.issuer_client import FAILED
from connector.identity.openid.login import ATTEMPT_SECONDS, LoginClient, Provider
from connector.identity.openid.provider_file import check_providers, read_secret_file
from connector.infra.http.form import parse_form
from connector.telemetry import logger

OPERATOR_ROLE = "operator"
ATTEMPT_COOKIE = "hanse_catalogue_sign_on"
HINT_COOKIE = "hanse_catalogue_out"  # the provider and the sealed ID token, for the provider's logout
_COOKIE_MAX = 3800  # what browsers keep

RenderPage = Callable[..., Response]


class ProvidersFile(BaseModel):
    """The operator's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    providers: tuple[Provider, ...] = ()


def read_providers(file: Path | None) -> tuple[Provider, ...]:
    """Read the operator's file; None: no provider.

    Raises: Invalid for a malformed file, one that other users can read, and for another role than `operator`.
    """
    if file is None:
        return ()
    providers = read_secret_file(file, ProvidersFile, expected="expected YAML with `providers`, a list").providers
    check_providers(file, providers)
    for provider in providers:
        if unknown := sorted(set(provider.roles.values()) - {OPERATOR_ROLE}):
            raise Invalid(f"{file}: expected the role {OPERATOR_ROLE} alone for a catalogue, got {', '.join(unknown)}")
    return providers


class OperatorSignOn:
    """Logins of the operator's people. `render` renders a page of the site by its template."""

    def __init__(self, access: ViewerAuthenticator, logins: LoginClient, *, secure: bool) -> None:
        self._access, self._logins, self._secure = access, logins, secure
        self._log = logger("sign_on")
        self.providers = logins.providers

    def router(self, render: RenderPage) -> APIRouter:
        routes = APIRouter(include_in_schema=False)

        @routes.get("/login/with/{provider}")
        async def begin(request: Request, provider: str) -> Response:
            self._logins.client(provider)
            try:
                away, attempt = await self._logins.begin(provider, to="/members")
            except FAILED as error:
                return render(request, "login.html", status=401, problem=self._refuse(provider, error).message)
            answer = RedirectResponse(away, status_code=303)
            # The provider's redirect back is a navigation from another site, which only a lax cookie comes with.
            self._set(answer, ATTEMPT_COOKIE, attempt, seconds=ATTEMPT_SECONDS, path="/login", samesite="lax")
            return answer

        @routes.get("/login/with/{provider}/callback")
        async def finish(request: Request, provider: str) -> Response:
            answer = await self._finish(request, provider, render)
            answer.delete_cookie(ATTEMPT_COOKIE, path="/login")
            return answer

        @routes.post("/login/with/{provider}/back-channel-logout")
        async def end_by_provider(request: Request, provider: str) -> Response:
            """OpenID Connect Back-Channel Logout 1.0: the provider says whose sessions have ended."""
            self._logins.client(provider)
            try:
                text = parse_form(await request.body()).get("logout_token", "")
                named = await self._logins.read_logout_token(provider, text)
                if not named.subject:
                    raise Invalid("expected `sub` in a logout token, got `sid` alone")
            except FAILED as error:
                self._refuse(provider, error)
                return Response(status_code=400, headers={"cache-control": "no-store"})
            await self._access.end_person(named.subject)
            return Response(status_code=200, headers={"cache-control": "no-store"})

        return routes

    async def _finish(self, request: Request, provider: str, render: RenderPage) -> Response:
        self._logins.client(provider)
        try:
            cookie = request.cookies.get(ATTEMPT_COOKIE, "")
            login = await self._logins.finish(provider, request.query_params, cookie)
        except FAILED as error:
            return render(request, "login.html", status=401, problem=self._refuse(provider, error).message)
        person = login.person
        session, seconds = await self._access.log_in_person(person.subject, until=person.expires_at)
        self._log.info("operator_logged_in", person=person.name, subject=person.subject)
        # The page leads on: a strict cookie does not come with the provider's redirect.
        answer = render(request, "goto.html", heading="Logged in", target=login.to)
        self._set(answer, COOKIE, session, seconds=seconds, path="/", samesite="strict")
        hint = f"{provider}:{login.sealed_id_token}"
        if len(hint) <= _COOKIE_MAX:  # else the provider asks whether to log out
            self._set(answer, HINT_COOKIE, hint, seconds=seconds, path="/logout", samesite="strict")
        return answer

    async def logout_url(self, request: Request) -> str:
        """Return the provider's logout address for the browser; empty without a login at a provider."""
        provider, _, sealed = request.cookies.get(HINT_COOKIE, "").partition(":")
        return await self._logins.logout_url(provider, sealed) if sealed else ""

    def _refuse(self, provider: str, error: BaseException) -> Unproven:
        reason = f"{type(error).__name__}: {harmless(str(error))[:500]}"
        self._log.warning("sign_on_failed", provider=provider, reason=reason)
        return Unproven("sign-on failed; try again, or look into the catalogue's log, which has the reason")

    def _set(self, answer: Response, name: str, value: str, *, seconds: int, path: str, samesite: str) -> None:
        answer.set_cookie(
            name,
            value,
            max_age=seconds,
            httponly=True,
            secure=self._secure,
            path=path,
            samesite="lax" if samesite == "lax" else "strict",
        )
