"""Registering on the pages: a file is uploaded, its first rows are shown, and strangers get nothing."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from html import unescape
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest

from connector.audit.log import Filter
from connector.management.sign_on.auth import COOKIE
from tests.connector.console.support import Console, Reader, opened

HOSTILE = b"person,note\nann,<script>alert(1)</script>\nbo,\n"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Console]:
    async with opened(tmp_path) as made, made.parts.pool:
        yield made


async def upload(
    desk: Console, name: str = "Patients.csv", content: bytes = HOSTILE, *, scope: str = "owner", **headers: str
) -> httpx2.Response:
    said = {name.replace("_", "-"): value for name, value in headers.items()} or {"sec-fetch-site": "same-origin"}
    cookie = {"cookie": f"{COOKIE}={await desk.token(scope)}"} if scope else {}
    return await desk.http.post("/datasets/upload", files={"file": (name, content)}, headers={**said, **cookie})


def stored(desk: Console) -> list[Path]:
    return [path for path in desk.parts.settings.upload_folder.iterdir() if path.is_file()]


async def newest(desk: Console) -> list[dict[str, object]]:
    await desk.parts.sequencer.settle()
    return [json.loads(one.text) for one in await desk.parts.log.page(Filter(), before=None, limit=10)]


async def test_an_upload_shows_its_first_rows_and_can_be_registered(desk: Console) -> None:
    sent = await upload(desk)
    assert sent.status_code == 303, sent.text
    page = await desk.get(sent.headers["location"], "owner")
    assert page.status_code == 200
    assert Reader(page.text).problems == []
    assert "<script>alert" not in page.text
    assert "<script>alert(1)</script>" in unescape(page.text)
    fields = {name: one[0] for name, one in parse_qs(urlsplit(sent.headers["location"]).query).items()}
    assert (fields["name"], fields["kind"]) == ("patients", "csv")
    registered = await desk.post("/datasets/new", fields, "owner")
    assert (registered.status_code, registered.headers["location"]) == (303, "/datasets/patients")
    kinds = [(one["kind"], one["actor"]) for one in await newest(desk)]
    assert kinds[:3] == [("DatasetRegistered", "owner"), ("RawDataViewed", "owner"), ("FileUploaded", "owner")]


@pytest.mark.parametrize(
    "headers",
    [{"sec_fetch_site": "cross-site"}, {"origin": "https://evil.example"}, {"sec_fetch_site": "same-site"}, {"x": "y"}],
)
async def test_another_site_cannot_upload(desk: Console, headers: dict[str, str]) -> None:
    assert (await upload(desk, **headers)).status_code == 403
    assert stored(desk) == []


@pytest.mark.parametrize("scope", ["read", "approve", "consume", "audit", "metrics"])
async def test_only_an_owner_uploads_and_sees_rows(desk: Console, scope: str) -> None:
    assert (await upload(desk, scope=scope)).status_code == 403
    (desk.parts.settings.source_roots[0] / "a.csv").write_text("c\nhidden-27182\n")
    asked = f"/datasets/new/preview?path={desk.parts.settings.source_roots[0]}/a.csv"
    page = await desk.get(asked, scope)
    assert (page.status_code, "hidden-27182" in page.text) == (403, False)
    assert stored(desk) == []


async def test_without_a_login_nothing_is_read(desk: Console) -> None:
    answer = await upload(desk, scope="")
    assert (answer.status_code, stored(desk)) == (303, [])
    assert answer.headers["location"].startswith("/login")


@pytest.mark.parametrize(
    ("name", "content", "status"),
    [("a.html", b"<script>", 400), ("a.parquet", b"PAR1", 422), ("", b"", 400)],
)
async def test_a_refused_upload_says_why_on_the_page(desk: Console, name: str, content: bytes, status: int) -> None:
    page = await upload(desk, name, content)
    assert page.status_code in (status, 400)
    assert Reader(page.text).problems == []
    assert 'role="alert"' in page.text
    assert stored(desk) == []


async def test_a_body_beyond_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with opened(tmp_path, upload_each_mb=1) as desk, desk.parts.pool:
        page = await upload(desk, content=b"a\n" * 2**21)
        assert (page.status_code, stored(desk)) == (413, [])


@pytest.mark.parametrize("path", ["/etc/passwd", "{root}/../../etc/passwd", "{root}/north/keys/participant.pem", ""])
async def test_no_rows_of_a_file_outside_the_roots_are_shown(desk: Console, path: str) -> None:
    page = await desk.get(
        f"/datasets/new/preview?path={path.format(root=desk.parts.settings.source_roots[0])}", "owner"
    )
    assert page.status_code in (400, 403, 422)
    assert "root:" not in page.text
    assert 'role="alert"' in page.text
