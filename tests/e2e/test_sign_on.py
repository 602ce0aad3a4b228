"""People log in at a real provider, the certified `oidc-provider`, and are out when they log out there."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path

import httpx2
import pytest
from joserfc.jwk import ECKey

from connector.audit.log import Filter
from tests.support.openid_console import SignOnPlace, sign_on_place


@dataclass
class Browser:
    """Follows redirects and submits forms as a browser does, with its cookies."""

    http: httpx2.AsyncClient
    asked: list[str] = field(default_factory=list)

    async def open(self, address: str) -> httpx2.Response:
        answer = await self.http.get(address)
        while answer.is_redirect:
            answer = await self.http.get(answer.url.join(answer.headers["location"]))
        return answer

    async def submit(self, page: httpx2.Response, **said: str) -> httpx2.Response:
        """Submit the form of a page, with its hidden fields."""
        action = unescape(re.findall(r'<form[^>]*action="([^"]+)"', page.text)[0])
        hidden = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.text))
        answer = await self.http.post(page.url.join(action), data=hidden | said)
        return await self.open(str(answer.url.join(answer.headers["location"]))) if answer.is_redirect else answer

    async def log_in(self, base: str, person: str) -> httpx2.Response:
        """Log in at the provider and consent; return the page that the console shows then."""
        consent = await self.submit(await self.open(f"{base}/login/with/clinic"), login=person, password="any")
        return await self.submit(consent)


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[SignOnPlace]:
    async with sign_on_place(tmp_path) as made:
        yield made


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http:
        yield Browser(http)


PEOPLE = [
    ("ada.data-team", ["owner", "read"]),
    ("bo.board", ["approve", "read"]),
    ("cy.revision", ["audit"]),
]


@pytest.mark.e2e
async def test_owner_approver_and_auditor_log_in_and_out_at_the_provider(place: SignOnPlace) -> None:
    for person, scopes in PEOPLE:
        async with browser() as one:
            page = await one.log_in(place.base, person)
            assert (page.status_code, "Logged in" in page.text) == (200, True), page.text
            me = (await one.http.get(f"{place.base}/api/v1/self")).json()
            assert (me["caller"], me["scopes"]) == (f"{person.split('.')[0]} (clinic)", scopes)
            leave = await one.open(f"{place.issuer}/session/end?client_id=hanse")
            await one.submit(leave, logout="yes")  # the provider tells the console before it answers
            assert (await one.http.get(f"{place.base}/api/v1/self")).status_code == 401
    await place.parts.sequencer.settle()
    records = await place.parts.log.page(Filter(), before=None, limit=50)
    texts = [record.text for record in records if "SessionEnded" in record.text]
    assert len(texts) == 3
    assert f"{place.issuer}#ada.data-team" in texts[-1]


@pytest.mark.e2e
async def test_logging_out_in_the_console_logs_out_at_the_provider(place: SignOnPlace) -> None:
    async with browser() as one:
        await one.log_in(place.base, "ada.data-team")
        page = await one.http.post(f"{place.base}/logout", headers={"sec-fetch-site": "same-origin"})
        away = unescape(re.findall(r'content="0;url=([^"]+)"', page.text)[0])
        assert away.startswith(f"{place.issuer}/session/end")
        back = await one.submit(await one.open(away), logout="yes")
        assert (str(back.url).split("?")[0], "Log in" in back.text) == (f"{place.base}/login", True)
        again = await one.open(f"{place.base}/login/with/clinic")
        assert 'name="password"' in again.text  # the provider's session is over, too


@pytest.mark.e2e
async def test_a_person_without_a_role_and_a_replayed_code_are_refused(place: SignOnPlace) -> None:
    async with browser() as one:
        refused = await one.log_in(place.base, "eve.strangers")
        assert (refused.status_code, "sign-on failed" in refused.text.lower()) == (401, True)
        replayed = await one.http.get(str(refused.url))
        assert replayed.status_code == 401
    await place.parts.sequencer.settle()
    records = await place.parts.log.page(Filter(outcome="refused"), before=None, limit=50)
    reasons = " ".join(record.text for record in records)
    assert ("gives a role" in reasons, "cookie of a login" in reasons) == (True, True)


@pytest.mark.e2e
async def test_a_console_with_a_key_instead_of_a_secret_is_let_in_by_the_provider(tmp_path: Path) -> None:
    key = ECKey.generate_key("P-256", auto_kid=True)
    async with sign_on_place(tmp_path, key) as place, browser() as one:
        page = await one.log_in(place.base, "ada.data-team")
        assert (page.status_code, "Logged in" in page.text) == (200, True), page.text
