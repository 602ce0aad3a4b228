"""Sign-on of the operator's people at a provider: who gets in, who does not, and how a session ends."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import httpx2
import pytest

from catalogue.api.access import COOKIE
from catalogue.api.sign_on import HINT_COOKIE, OperatorSignOn, read_providers
from catalogue.app import create_app
from connector.errors import Invalid
from connector.identity.openid.login import LoginClient, Provider
from connector.infra.net.http_client import HttpClient
from tests.catalogue.conftest import ROOT, Catalogue, Clock
from tests.support.openid import CLIENT, ISSUER, MemoryProvider

START, BACK = "/login/with/office", "/login/with/office/callback"
PROVIDER = {"name": "office", "issuer": ISSUER, "client_id": CLIENT, "roles": {"data-space": "operator"}}
STATUS = {"sec-fetch-site": "same-origin"}


@dataclass
class Desk:
    """A catalogue whose operators log in at a provider in memory."""

    idp: MemoryProvider
    http: httpx2.AsyncClient

    async def log_in(self, *groups: str, **changes: str) -> httpx2.Response:
        self.idp.claims["groups"] = list(groups)
        begun = await self.http.get(START)
        assert begun.status_code == 303, begun.text
        return await self.http.get(BACK, params=self.idp.log_in(begun.headers["location"]) | changes)

    async def is_operator(self) -> bool:
        return "Log out" in (await self.http.get("/members")).text


@pytest.fixture
def clock() -> Clock:
    """The provider's time."""
    return Clock(time.time())


@pytest.fixture
async def desk(catalogue: Catalogue) -> AsyncIterator[Desk]:
    idp = MemoryProvider()
    parts = catalogue.parts
    logins = LoginClient(cast("HttpClient", idp), [Provider.model_validate(PROVIDER)], base=ROOT, secret=b"s" * 32)
    app = create_app(parts.settings, parts=replace(parts, sign_on=OperatorSignOn(parts.access, logins, secure=False)))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ROOT) as http:
        yield Desk(idp, http)


async def test_an_operator_logs_in_and_out_at_the_provider_too(desk: Desk) -> None:
    page = await desk.log_in("data-space")
    assert (page.status_code, re.findall('content="0;url=([^"]*)"', page.text)) == (200, ["/members"])
    assert await desk.is_operator()
    session = {"cookie": f"{COOKIE}={desk.http.cookies[COOKIE]}"}
    away = await desk.http.post("/logout", headers=STATUS)
    assert (f"{ISSUER}/end?" in away.text, "id_token_hint=" in away.text) == (True, True)
    assert not await desk.is_operator()
    assert "Log out" not in (await desk.http.get("/members", headers=session)).text
    assert HINT_COOKIE not in desk.http.cookies


async def test_the_hint_cookie_does_not_show_the_id_token(desk: Desk) -> None:
    page = await desk.log_in("data-space")
    [cookie] = [one for one in page.headers.get_list("set-cookie") if one.startswith(HINT_COOKIE)]
    sealed = cookie.split("=", 1)[1].split(";")[0].strip('"').removeprefix("office:")
    assert (sealed.count("."), "HttpOnly" in cookie, "Path=/logout" in cookie) == (4, True, True)  # encrypted


async def test_a_person_without_the_role_has_no_session_and_no_reason(desk: Desk) -> None:
    refused = await desk.log_in("strangers")
    assert (refused.status_code, "Sign-on failed" in refused.text, "gives a role" in refused.text) == (401, True, False)
    assert COOKIE not in desk.http.cookies
    assert not await desk.is_operator()


@pytest.mark.parametrize("changes", [{"state": "other"}, {"iss": "https://other.example"}, {"error": "access_denied"}])
async def test_another_response_is_refused(desk: Desk, changes: dict[str, str]) -> None:
    assert (await desk.log_in("data-space", **changes)).status_code == 401
    assert not await desk.is_operator()


async def test_a_provider_that_is_down_is_refused_and_the_token_still_works(desk: Desk, catalogue: Catalogue) -> None:
    desk.idp.down = True
    assert (await desk.http.get(START)).status_code == 401
    assert (await desk.http.post("/login", data={"token": catalogue.token})).status_code == 303
    assert await desk.is_operator()


async def test_a_logout_at_the_provider_ends_the_session(desk: Desk) -> None:
    await desk.log_in("data-space")
    out = "/login/with/office/back-channel-logout"
    for wrong in ({"aud": "another"}, {"events": None}, {"sub": None}, {"sub": "bo"}):
        token = desk.idp.logout_token(**wrong)
        answer = await desk.http.post(out, data={"logout_token": token}, headers={"cookie": ""})
        assert answer.status_code == (200 if wrong == {"sub": "bo"} else 400)
        assert await desk.is_operator()
    ended = await desk.http.post(out, data={"logout_token": desk.idp.logout_token()}, headers={"cookie": ""})
    assert ended.status_code == 200
    assert not await desk.is_operator()


async def test_the_session_ends_with_the_id_token(desk: Desk, catalogue: Catalogue) -> None:
    await desk.log_in("data-space")

    await catalogue.parts.store.write(lambda tx: tx.tokens.sweep(tx.now + 700))  # its lifetime is 600 s
    assert not await desk.is_operator()


async def test_the_login_page_offers_the_providers(desk: Desk) -> None:
    page = (await desk.http.get("/login")).text
    assert ('href="/login/with/office"' in page, "Log in with office" in page) == (True, True)
    assert (await desk.http.get("/login/with/nowhere")).status_code == 404


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "sign-on.yaml"
    one = "{name: a, issuer: 'https://a.example', client_id: c, roles: {x: %s}}"
    for text, mode, reason in (
        (f"providers: [{one % 'owner'}]", 0o600, "role operator alone"),
        (f"providers: [{one % 'operator'}, {one % 'operator'}]", 0o600, "same twice"),
        (f"providers: [{one % 'operator'}]", 0o644, "chmod 600"),
        ("workloads: []", 0o600, "workloads"),
        ("[", 0o600, "expected YAML"),
    ):
        file.write_text(text)
        file.chmod(mode)
        with pytest.raises(Invalid, match=reason):
            read_providers(file)
    file.write_text(f"providers: [{one % 'operator'}]")
    assert [provider.name for provider in read_providers(file)] == ["a"]
    assert read_providers(None) == ()
