"""A registration that takes long: it can be looked at and stopped over the API and on the console, and whoever leaves
an API call has stopped it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.app import management_app
from connector.console import datasets as pages
from tests.connector.console.support import Console, opened


class Stuck:
    """An engine that has done one of the files, and no more."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.left = asyncio.Event()

    async def profile(self, *_: Any, told: Callable[[str, int], None]) -> Mapping[str, Any]:
        told("digesting", 1)
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        return {}


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Console]:
    (tmp_path / "parts").mkdir()
    for name in "abc":
        pq.write_table(pa.table({"a": [1]}), tmp_path / "parts" / f"{name}.parquet")
    async with opened(tmp_path) as made:
        yield made


@pytest.fixture
def stuck(desk: Console, monkeypatch: pytest.MonkeyPatch) -> Stuck:
    engine = Stuck()
    monkeypatch.setattr(desk.parts.registry, "_engine", engine)
    return engine


async def _bearer(desk: Console, *scopes: str) -> dict[str, str]:
    return {"authorization": f"Bearer {await desk.token(*scopes)}"}


async def test_it_is_looked_at_and_stopped_over_the_api(desk: Console, stuck: Stuck, tmp_path: Path) -> None:
    owner = await _bearer(desk, "owner", "read")
    body = {"name": "parts", "path": str(tmp_path / "parts")}
    asking = asyncio.ensure_future(desk.http.post("/api/v1/datasets", json=body, headers=owner))
    await stuck.begun.wait()
    found = (await desk.http.get("/api/v1/registrations/parts", headers=owner)).json()
    assert {key: found[key] for key in ("state", "files", "done", "ended_at")} == {
        "state": "digesting", "files": 3, "done": 1, "ended_at": None,
    }  # fmt: skip
    assert [one["name"] for one in (await desk.http.get("/api/v1/registrations", headers=owner)).json()] == ["parts"]
    assert (await desk.http.delete("/api/v1/registrations/parts", headers=owner)).status_code == 204
    refused = await asking
    assert (refused.status_code, refused.json()["code"]) == (409, "registration_stopped")
    assert (await desk.http.get("/api/v1/datasets", headers=owner)).json() == []
    assert (await desk.http.delete("/api/v1/registrations/parts", headers=owner)).status_code == 404
    assert (await desk.http.get("/api/v1/registrations/other", headers=owner)).status_code == 404
    reader = await _bearer(desk, "read")
    assert (await desk.http.delete("/api/v1/registrations/parts", headers=reader)).status_code == 403


async def test_whoever_leaves_has_stopped_it(desk: Console, stuck: Stuck, tmp_path: Path) -> None:
    body = b'{"name": "parts", "path": "%s"}' % str(tmp_path / "parts").encode()
    headers = {**await _bearer(desk, "owner"), "content-type": "application/json"}
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/api/v1/datasets", "raw_path": b"/api/v1/datasets", "query_string": b"", "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
    }  # fmt: skip
    came = iter(({"type": "http.request", "body": body, "more_body": False},))

    async def receive() -> dict[str, Any]:
        if (message := next(came, None)) is not None:
            return message
        await stuck.begun.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        """Nobody listens."""

    await management_app(desk.parts)(scope, receive, send)
    assert stuck.left.is_set()
    found = desk.parts.registry.under_way.find("parts")
    assert found is not None
    assert found.state == "stopped"


async def test_the_console_leads_to_its_progress_and_stops_it(
    desk: Console, stuck: Stuck, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "_PATIENCE_S", 0.05)
    said = {"name": "parts", "path": str(tmp_path / "parts"), "title": "All <parts>"}
    said |= {"description": "Größe", "keywords": "one, two words", "theme": "HEAL", "license": "CC0"}
    answer = await desk.post("/datasets/new", said, "owner", "read")
    assert (answer.status_code, answer.headers["location"]) == (303, "/registrations/parts")
    await stuck.begun.wait()
    page = (await desk.get("/registrations/parts", "owner", "read")).text
    assert "1 of 3 files" in page
    assert 'data-refresh="1"' in page
    assert "/registrations/parts" in (await desk.get("/datasets", "owner", "read")).text
    stopped = await desk.post("/registrations/parts/stop", {}, "owner", "read")
    assert (stopped.status_code, stopped.headers["location"]) == (303, "/registrations/parts")
    assert stuck.left.is_set()
    page = (await desk.get("/registrations/parts", "owner", "read")).text
    assert "registration_stopped" in page
    assert "title=All%20%3Cparts%3E" in page
    assert "/registrations/parts" not in (await desk.get("/datasets", "owner", "read")).text
    (again,) = re.findall(r'href="(/datasets/new[^"]+)"', page)
    form = (await desk.get(unescape(again), "owner", "read")).text
    for kept in ('value="All &lt;parts&gt;"', ">Größe<", 'value="one, two words"', 'value="HEAL"', 'value="CC0"'):
        assert kept in form
