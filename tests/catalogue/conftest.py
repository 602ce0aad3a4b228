"""A catalogue of the tests' own, and connectors for it to visit, over real HTTP on loopback."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from catalogue.app import CatalogueServices, build, create_app
from catalogue.settings import CatalogueSettings
from catalogue.store.migrate import upgrade
from tests.catalogue import provider as providers
from tests.catalogue.provider import Provider

ROOT = "http://catalogue.test"


@dataclass
class Clock:
    """A clock that moves when told to."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class Catalogue:
    """A running catalogue (nothing crawls by itself) and a client with the operator's token."""

    parts: CatalogueServices
    http: httpx2.AsyncClient
    token: str
    clock: Clock
    admitted: list[str] = field(default_factory=list)

    @property
    def operator(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    async def admit(self, member: Provider, name: str, **facts: str) -> None:
        body = {"id": member.did, "name": name, "url": member.url, **facts}
        answer = await self.http.post("/api/v1/members", json=body, headers=self.operator)
        assert answer.status_code == 201, answer.text

    async def crawl(self, name: str = "") -> dict[str, Any]:
        """Visit one member (or the only one) and the run's report."""
        params = {"wait": "600", **({"member": name} if name else {})}
        answer = await self.http.post("/api/v1/crawl", params=params, headers=self.operator)
        assert answer.status_code == 200, answer.text
        run: dict[str, Any] = answer.json()["runs"][0]
        return run

    async def search(self, q: str = "", *, headers: dict[str, str] | None = None, **params: Any) -> dict[str, Any]:
        answer = await self.http.get("/api/v1/search", params={"q": q, **params}, headers=headers or self.operator)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def ids(self, q: str = "", *, headers: dict[str, str] | None = None, **params: Any) -> list[str]:
        return [hit["id"] for hit in (await self.search(q, headers=headers, **params))["results"]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated database to copy: making one takes longer than most tests."""
    path = tmp_path_factory.mktemp("migrated") / "catalogue.db"
    upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture
def catalogue_settings(tmp_path: Path, migrated: Path) -> dict[str, Any]:
    """Settings that a test may change before it asks for the catalogue."""
    (tmp_path / "catalogue").mkdir()
    shutil.copyfile(migrated, tmp_path / "catalogue" / "catalogue.db")
    return {
        "data_dir": tmp_path / "catalogue",
        "public_url": ROOT,
        "allow_private": ("127.0.0.1",),
        "insecure_http": True,
        "call_timeout": 60.0,  # a busy machine is no outage
        "title": "Test space",
    }


@pytest.fixture
async def catalogue(catalogue_settings: dict[str, Any], clock: Clock) -> AsyncIterator[Catalogue]:
    settings = CatalogueSettings(**catalogue_settings)
    parts = build(settings, clock=clock)
    token = await parts.access.first_token(None)
    assert token is not None
    app = create_app(settings, parts=parts, clock=clock)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url=ROOT) as http:
        yield Catalogue(parts, http, token, clock)
    await parts.crawler.close()
    await parts.net.close()
    parts.search.close()
    parts.store.close()


@pytest.fixture
async def north() -> AsyncIterator[Provider]:
    async with providers.running() as running:
        yield running


@pytest.fixture
async def south() -> AsyncIterator[Provider]:
    async with providers.running() as running:
        yield running
