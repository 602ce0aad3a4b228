"""The profile `keycloak`: people of a real Keycloak log in to a real Hanse connector with a real browser.

Keycloak is its own distribution from Maven, in development mode with its database in memory, on loopback alone. A realm
is imported at its start: users, their groups, and a client for the console.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from playwright.async_api import BrowserContext, Page, expect

from tests.support import chromium
from tests.support.sign_on_person import ProviderPages, SignOnPerson
from tests.tck.product import Place, Product, free_port
from tests.tck.run import UNREACHABLE_WORDS, NotReachable

VERSIONS = ("26.7.3", "26.7.0", "26.5.0")  # newest first
REALM, SECRET, PASSWORD = "clinic", "a-secret-of-the-run-alone-0123456789", "a-password-of-the-run"
ROLES = {"data-team": "owner", "board": "approver", "revision": "auditor"}
PEOPLE = {"ada": "data-team", "bo": "board", "cy": "revision"}
_UP_SECONDS = 600.0  # the first start builds Keycloak for its database
_COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy"


def installed(directory: Path) -> str:
    """Where Keycloak was unpacked, in the newest version that can be had. Raises: NotReachable, also for Chromium."""
    if not chromium.install():
        raise NotReachable("needs Chromium: install it, or run as root on Debian")
    for version in VERSIONS:
        home = directory / f"keycloak-{version}"
        if home.exists() or _unpack(version, home):
            return str(home)
        print(f"Keycloak {version}: not reachable", flush=True)
    raise NotReachable(f"no distribution of Keycloak among {', '.join(VERSIONS)} can be had")


def _unpack(version: str, home: Path) -> bool:
    """Get a version and unpack it; whether it can be had."""
    artifact = f"org.keycloak:keycloak-quarkus-dist:{version}:zip"
    got = home.with_name(f"{home.name}.part")
    shutil.rmtree(got, ignore_errors=True)
    done = subprocess.run(
        ["mvn", "-B", "-q", _COPY, f"-DoutputDirectory={got}", f"-Dartifact={artifact}"], capture_output=True, text=True
    )
    text = done.stdout + done.stderr
    if done.returncode and not any(words in text for words in UNREACHABLE_WORDS):
        raise RuntimeError(f"Maven failed, and not for want of artifacts:\n{text}")
    if done.returncode:
        return False
    with zipfile.ZipFile(got / f"keycloak-quarkus-dist-{version}.zip") as archive:
        archive.extractall(got)
    (got / home.name / "bin" / "kc.sh").chmod(0o755)
    (got / home.name).rename(home)
    shutil.rmtree(got)
    return True


def realm(console: str) -> dict[str, Any]:
    """The realm that Keycloak imports. `console`: its address as browsers reach it."""
    with_groups = {
        "name": "groups",
        "protocol": "openid-connect",
        "protocolMapper": "oidc-group-membership-mapper",
        "config": {"claim.name": "groups", "full.path": "false", "id.token.claim": "true"},
    }
    return {
        "realm": REALM,
        "enabled": True,
        "sslRequired": "none",
        "groups": [{"name": name} for name in [*ROLES, "strangers"]],
        "users": [_user(name, group) for name, group in {**PEOPLE, "eve": "strangers"}.items()],
        "clients": [
            {
                "clientId": "hanse",
                "secret": SECRET,
                "standardFlowEnabled": True,
                "redirectUris": [f"{console}/login/with/clinic/callback"],
                "attributes": {
                    "pkce.code.challenge.method": "S256",
                    "post.logout.redirect.uris": f"{console}/login",
                    "backchannel.logout.url": f"{console}/login/with/clinic/back-channel-logout",
                    "backchannel.logout.session.required": "true",
                },
                "protocolMappers": [with_groups],
            },
        ],
    }


def _user(name: str, group: str) -> dict[str, Any]:
    return {
        "username": name,
        "enabled": True,
        "email": f"{name}@clinic.example",
        "emailVerified": True,
        "firstName": name,
        "lastName": "Byron",
        "groups": [f"/{group}"],
        "credentials": [{"type": "password", "value": PASSWORD}],
    }


class Keycloak:
    """The running Keycloak. `start` and `stop` it."""

    def __init__(self, home: str, directory: Path, console: str) -> None:
        self._home, self._directory, self._console = Path(home), directory, console
        self._port = free_port()
        self.root = f"http://127.0.0.1:{self._port}"
        self.issuer = f"{self.root}/realms/{REALM}"
        self._process: subprocess.Popen[bytes] | None = None

    async def start(self, http: httpx2.AsyncClient) -> None:
        """Start it with the realm, and wait until it answers."""
        imported = self._home / "data" / "import"
        imported.mkdir(parents=True, exist_ok=True)
        (imported / f"{REALM}.json").write_text(json.dumps(realm(self._console)))
        command = [str(self._home / "bin" / "kc.sh"), "start-dev", "--import-realm", "--db=dev-mem"]
        with (self._directory / "keycloak.log").open("wb") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - starting does not block
                [*command, "--http-host=127.0.0.1", f"--http-port={self._port}"],
                env={**os.environ, "JAVA_OPTS_APPEND": "-Djgroups.bind_addr=127.0.0.1"},
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(_UP_SECONDS):
            while not await self._answers(http):
                await asyncio.sleep(0.5)

    def stop(self) -> None:
        """End the process that `start` began."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    async def _answers(self, http: httpx2.AsyncClient) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise RuntimeError(f"Keycloak ended by itself: see {self._directory / 'keycloak.log'}")
        try:
            return (await http.get(f"{self.issuer}/.well-known/openid-configuration")).is_success
        except httpx2.TransportError:
            return False


@dataclass
class SignOnSpace:
    """Keycloak, a connector whose people log in there, and a browser."""

    keycloak: Keycloak
    hanse: Product
    console: str
    contexts: Callable[[], Awaitable[BrowserContext]]

    @property
    def steps(self) -> list[tuple[str, Callable[[SignOnSpace], Awaitable[None]]]]:
        roles = [
            (f"{ROLES[group]} logs in, looks around, logs out", _in_and_out(name)) for name, group in PEOPLE.items()
        ]
        return [*roles, *STEPS]

    async def seed(self) -> None:
        """Nothing: the realm is imported."""

    @asynccontextmanager
    async def person(self) -> AsyncIterator[SignOnPerson]:
        """A person with a browser without cookies."""
        async with await self.contexts() as context:
            yield SignOnPerson(await context.new_page(), self.console, PAGES)


async def _sign_in(page: Page, name: str) -> None:
    await page.fill("#username", name)
    await page.fill("#password", PASSWORD)
    await page.click("#kc-login")


async def _confirm_logout(page: Page) -> None:
    """Nothing: with the hint of the ID token, Keycloak asks no question."""


PAGES = ProviderPages(_sign_in, _confirm_logout, "#password")


def _in_and_out(name: str) -> Callable[[SignOnSpace], Awaitable[None]]:
    async def step(space: SignOnSpace) -> None:
        async with space.person() as person:
            await person.log_in(name)
            await person.look_around(name, ROLES[PEOPLE[name]])
            await person.log_out()
            await person.expect_out()

    return step


async def _logout_at_keycloak(space: SignOnSpace) -> None:
    async with space.person() as person:
        await person.log_in("ada")
        elsewhere = await person.page.context.new_page()
        await elsewhere.goto(f"{space.keycloak.issuer}/protocol/openid-connect/logout")
        await elsewhere.click("#kc-logout")
        await expect(elsewhere.locator("#kc-page-title")).to_have_text(re.compile("logged out", re.IGNORECASE))
        await person.expect_out()


async def _without_a_role(space: SignOnSpace) -> None:
    async with space.person() as person:
        await person.page.goto(space.console)
        await person.page.get_by_role("link", name="Log in with North Clinic").click()
        await _sign_in(person.page, "eve")
        await expect(person.page.get_by_role("alert")).to_contain_text("sign-on failed")


STEPS = [
    ("a logout at Keycloak ends the session at Hanse", _logout_at_keycloak),
    ("a person without a role stays out", _without_a_role),
]


@asynccontextmanager
async def running(found: Mapping[str, str], directory: Path) -> AsyncIterator[SignOnSpace]:
    """Keycloak, the connector and the browser, to the end of the block."""
    place = Place(directory, free_port(), free_port())
    console = f"http://127.0.0.1:{place.management_port}"
    keycloak = Keycloak(found["keycloak"], directory, console)
    file = directory / "sign-on.yaml"
    file.write_text(json.dumps({"providers": [_provider(keycloak.issuer)]}))
    file.chmod(0o600)
    async with httpx2.AsyncClient(timeout=30, trust_env=False) as http, chromium.launched() as browser:
        hanse = Product(place, {}, http, {"SIGN_ON": str(file), "MANAGEMENT_URL": console})
        try:
            await keycloak.start(http)
            await hanse.start()
            yield SignOnSpace(keycloak, hanse, console, browser.new_context)
        finally:
            hanse.stop()
            keycloak.stop()


def _provider(issuer: str) -> dict[str, Any]:
    return {
        "name": "clinic",
        "title": "North Clinic",
        "issuer": issuer,
        "client_id": "hanse",
        "client_secret": SECRET,
        "scopes": "openid profile",
        "roles": ROLES,
    }
