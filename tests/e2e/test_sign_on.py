"""People log in at a real provider, the certified `oidc-provider`, and are out when they log out there."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path

import httpx2
import pytest
import uvicorn
from joserfc.jwk import ECKey, KeySet

from connector.app import management_app
from connector.audit.log import Filter
from connector.services import Services
from tests.connector.console.support import console
from tests.support import npm
from tests.support.ports import free_range

VERSION = "9.13.3"
SCRIPT = Path(__file__).parents[1] / "support" / "openid_provider.mjs"
FILE = """providers:
- name: clinic
  issuer: http://127.0.0.1:{port}
  client_id: hanse
  client_secret: a-secret-of-the-test-alone-0123456789
  scopes: openid profile
  roles: {{data-team: owner, board: approver, revision: auditor}}
"""


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


@dataclass
class Place:
    """A running console and a running provider."""

    base: str
    issuer: str
    parts: Services


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(tmp_path) as made:
        yield made


@asynccontextmanager
async def opened(tmp_path: Path, key: ECKey | None = None) -> AsyncIterator[Place]:
    """Console and provider. With a key, the console authenticates with it and not with the secret."""
    folder, first = npm.installed("oidc-provider", VERSION), free_range(2)
    base, issuer = f"http://127.0.0.1:{first}", f"http://127.0.0.1:{first + 1}"
    file = tmp_path / "providers.yaml"
    text = FILE.format(port=first + 1)
    if key is not None:
        text = re.sub("client_secret: .*", f"client_key: {json.dumps(key.as_dict(private=True))}", text)
    file.write_text(text)
    file.chmod(0o600)
    settings = {"sign_on": file, "management_url": base, "allow_private": "127.0.0.0/8", "insecure_http": True}
    made = console(tmp_path, **settings)
    try:
        async with provider(folder, first + 1, base, key), served(made.parts, first):
            yield Place(base, issuer, made.parts)
    finally:
        await made.http.aclose()
        await made.parts.net.close()
        made.parts.store.close()


@asynccontextmanager
async def provider(folder: Path, port: int, base: str, key: ECKey | None) -> AsyncIterator[None]:
    """The provider, from its first word to the end of the block."""
    script = folder / "provider.mjs"  # a module finds others from where it stands
    shutil.copy(SCRIPT, script)
    pipe = asyncio.subprocess.PIPE
    keys = [] if key is None else [json.dumps(KeySet([key]).as_dict(private=False))]
    command = ("node", str(script), str(port), base, *keys)
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(60):
            while b"listening" not in (line := await process.stdout.readline()):
                assert line, "the provider ended"
        yield
    finally:
        process.kill()
        await process.communicate()


@asynccontextmanager
async def served(parts: Services, port: int) -> AsyncIterator[None]:
    config = uvicorn.Config(management_app(parts), host="127.0.0.1", port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    running = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(60):
            while not server.started:
                await asyncio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await running


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
async def test_owner_approver_and_auditor_log_in_and_out_at_the_provider(place: Place) -> None:
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
async def test_logging_out_in_the_console_logs_out_at_the_provider(place: Place) -> None:
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
async def test_a_person_without_a_role_and_a_replayed_code_are_refused(place: Place) -> None:
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
    async with opened(tmp_path, ECKey.generate_key("P-256", auto_kid=True)) as place, browser() as one:
        page = await one.log_in(place.base, "ada.data-team")
        assert (page.status_code, "Logged in" in page.text) == (200, True), page.text
