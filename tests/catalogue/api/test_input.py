"""What no database or URL can hold is refused like any other bad input, on each kind of database."""

from __future__ import annotations

import json
from typing import Any

import pytest

from catalogue.search.search_service import Search
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import Provider

Json = dict[str, Any]


@pytest.fixture
def catalogue_settings(catalogue_settings: Json, database_url: str) -> Json:
    return {**catalogue_settings, "database_url": database_url}


ADDRESSES = [
    ("GET", "/api/v1/datasets/a%00b"), ("GET", "/datasets/a%00b"), ("GET", "/datasets/a%00b/dcat.ttl"),
    ("GET", "/catalog.ttl?after=AA"), ("GET", "/catalog.jsonld?after=YQBi"), ("GET", "/api/v1/members/%00"),
    ("DELETE", "/api/v1/members/a%00"), ("POST", "/api/v1/crawl?member=%00"),
]  # fmt: skip
CHANGES: list[tuple[str, str]] = [
    ("title", "a\0"), ("title", "\x1b[31m"), ("title", ""), ("title", "  "), ("role", "a\0"), ("reason", "a\0"),
    ("country", "\0"), *(("url", url) for url in (
        "", "http://[x", "http://x:999999", "http://x:port", "http:// x/", "https://a@b/", "http://x/\0", "http://x/#f",
        "http://x/?a", "http://x/?", "ftp://x", "http://", "https://b\u00fccher.test", "http://x/\x7f")),
]  # fmt: skip


def check_refused(answer: Any, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text
    assert answer.json()["detail"]
    assert {"content-security-policy", "x-content-type-options", "referrer-policy"} <= set(answer.headers)


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
async def test_an_address_with_nul_is_no_address(catalogue: Catalogue, method: str, path: str) -> None:
    check_refused(await catalogue.http.request(method, path, headers=catalogue.operator), 400, 404)


@pytest.mark.parametrize(("field", "value"), CHANGES)
async def test_a_fact_that_nobody_could_use_is_refused_and_nothing_changes(
    catalogue: Catalogue, north: Provider, field: str, value: str
) -> None:
    await catalogue.admit(north, "north")
    before = (await catalogue.http.get("/api/v1/members", headers=catalogue.operator)).json()
    changed = await catalogue.http.patch("/api/v1/members/north", json={field: value}, headers=catalogue.operator)
    check_refused(changed, 400)
    assert (await catalogue.http.get("/api/v1/members", headers=catalogue.operator)).json() == before


@pytest.mark.parametrize(
    ("field", "value"), [*(one for one in CHANGES if one[1] and one[0] != "reason"), ("id", "did:web:a\0")]
)
async def test_an_application_that_nobody_could_use_is_refused(
    catalogue: Catalogue, north: Provider, field: str, value: str
) -> None:
    facts = {"id": north.did, "name": "north", "url": north.url, field: value}
    check_refused(await catalogue.http.post("/api/v1/members", json=facts, headers=catalogue.operator), 400)


async def test_a_member_takes_back_only_what_has_an_id(catalogue: Catalogue, north: Provider) -> None:
    await catalogue.admit(north, "north")
    for unfit in ("a\0", "a\ud800"):
        header = {"authorization": north.token(catalogue.parts.settings.did)}
        body = json.dumps({"withdrawn": [unfit]})
        check_refused(await catalogue.http.post("/api/v1/crawl", content=body, headers=header), 400)


async def test_an_answer_of_whatever_kind_has_the_headers_that_browsers_honour(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    check_refused(await catalogue.http.post("/login", content=b"a" * 70_000), 400)
    monkeypatch.setattr(Search, "dataset", broken)
    catalogue.http._transport.raise_app_exceptions = False  # type: ignore[attr-defined]  # as a server, which logs it
    for accept in ("application/json", "text/html"):
        answer = await catalogue.http.get("/datasets/a", headers={"accept": accept})
        assert answer.status_code == 500
        assert "default-src 'none'" in answer.headers["content-security-policy"]
