"""Personal access tokens: made by a caller for its programs, with less than the caller has, and ended with it."""

from __future__ import annotations

from typing import Any

import pytest

from connector.events import Event, LogRead
from connector.management.sign_on.auth import digest_of
from tests.connector.console.support import Console

PATH = "/api/v1/personal-tokens"


def bearing(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


async def made(desk: Console, by: str, **asked: Any) -> dict[str, Any]:
    body = {"label": "notebook", "scopes": ["read"], "days": 1, **asked}
    answer = await desk.http.post(PATH, json=body, headers=bearing(by))
    assert answer.status_code == 201, answer.text
    found: dict[str, Any] = answer.json()
    return found


async def test_its_text_is_shown_once_and_only_its_digest_is_stored(desk: Console) -> None:
    owner = await desk.token("read", "owner")
    new = await made(desk, owner)
    rows = await desk.parts.tokens.list()
    [row] = [row for row in rows if row.owner]
    assert (row.digest, row.scopes, row.owner_name) == (digest_of(new["token"]), ["read"], "read-owner")
    assert new["token"] not in (await desk.http.get(PATH, headers=bearing(owner))).text
    page = await desk.get("/personal-tokens", "read", "owner")
    assert ("notebook" in page.text, new["token"] in page.text) == (True, False)


async def test_it_acts_under_its_owners_name_and_the_log_has_its_id(desk: Console) -> None:
    told: list[Event] = []
    new = await made(desk, await desk.token("admin"), scopes=["audit"])
    desk.parts.store.bus.subscribe(told.append)
    assert (await desk.http.get("/api/v1/self", headers=bearing(new["token"]))).json()["caller"] == "admin"
    assert (await desk.http.get("/api/v1/audit/events", headers=bearing(new["token"]))).status_code == 200
    [event] = [event for event in told if isinstance(event, LogRead)]
    assert (event.actor, event.token, event.body()["token"]) == ("admin", new["id"], new["id"])


async def test_its_last_use_is_stored(desk: Console) -> None:
    owner = await desk.token("read")
    new = await made(desk, owner)
    assert new["last_used_at"] is None
    await desk.http.get("/api/v1/self", headers=bearing(new["token"]))
    [row] = (await desk.http.get(PATH, headers=bearing(owner))).json()
    assert row["last_used_at"] >= row["created_at"]


async def test_it_makes_no_other_token(desk: Console) -> None:
    new = await made(desk, await desk.token("admin"))
    for path, body in (
        (PATH, {"label": "x", "scopes": ["read"]}),
        ("/api/v1/tokens", {"name": "x", "scopes": ["read"]}),
    ):
        assert (await desk.http.post(path, json=body, headers=bearing(new["token"]))).status_code == 403


REFUSED = [
    ({"scopes": ["owner"]}, "expected scopes among read, audit, got owner"),
    ({"scopes": ["admin"]}, "expected scopes among read, audit, got admin"),
    ({"scopes": []}, "got none"),
    ({"days": 0}, "greater than 0"),
    ({"days": 367}, "less than or equal to 366"),
    ({"days": None}, "days"),
    ({"label": ""}, "label"),
    ({"label": "a\u202eb"}, "without control characters"),
    ({"owner": "token:admin"}, "owner"),
]


@pytest.mark.parametrize(("asked", "reason"), REFUSED)
async def test_a_token_that_its_owner_may_not_make_is_refused(
    desk: Console, asked: dict[str, Any], reason: str
) -> None:
    body = {"label": "notebook", "scopes": ["read"], "days": 1, **asked}
    answer = await desk.http.post(PATH, json=body, headers=bearing(await desk.token("read", "audit")))
    assert (answer.status_code, reason in answer.text) == (400, True), answer.text


async def test_it_ends_when_it_is_ended_when_it_expires_and_with_its_owner(desk: Console) -> None:
    store = desk.parts.store
    owner = await desk.token("read")
    ended, expired, left = [await made(desk, owner) for _ in range(3)]

    async def status(one: dict[str, Any]) -> int:
        return (await desk.http.get("/api/v1/self", headers=bearing(one["token"]))).status_code

    assert await status(ended) == await status(expired) == await status(left) == 200
    assert (await desk.http.delete(f"{PATH}/{ended['id']}", headers=bearing(owner))).status_code == 204
    await store.write(lambda tx: setattr(tx.tokens.find_by_name(expired["id"]), "expires_at", tx.now - 1))
    assert (await status(ended), await status(expired), await status(left)) == (401, 401, 200)
    await desk.parts.tokens.revoke("read", by="admin")
    assert await status(left) == 401
    assert await desk.parts.tokens.issue("read", ["read"], by="admin")  # the name again does not revive it
    assert await status(left) == 401


async def test_it_ends_with_the_expiry_of_its_owner(desk: Console) -> None:
    new = await made(desk, await desk.token("read"))
    await desk.parts.store.write(lambda tx: setattr(tx.tokens.find_by_name("read"), "expires_at", tx.now - 1))
    assert (await desk.http.get("/api/v1/self", headers=bearing(new["token"]))).status_code == 401


async def test_tokens_of_another_are_neither_seen_nor_ended(desk: Console) -> None:
    new = await made(desk, await desk.token("read"))
    other = bearing(await desk.token("audit"))
    assert (await desk.http.get(PATH, headers=other)).json() == []
    assert (await desk.http.delete(f"{PATH}/{new['id']}", headers=other)).status_code == 404
    assert (await desk.http.delete(f"{PATH}/read", headers=bearing(await desk.token("read")))).status_code == 404
    shown = (await desk.http.get("/api/v1/tokens", headers=bearing(await desk.token("admin")))).json()
    assert [one["owner"] for one in shown if one["label"] == "notebook"] == ["read"]


async def test_an_owner_has_a_bounded_number(desk: Console) -> None:
    owner = await desk.token("read")
    for _ in range(50):
        await made(desk, owner)
    answer = await desk.http.post(PATH, json={"label": "x", "scopes": ["read"]}, headers=bearing(owner))
    assert (answer.status_code, "at most 50" in answer.text) == (429, True)


async def test_the_page_makes_and_ends_a_token(desk: Console) -> None:
    page = await desk.post("/personal-tokens", {"label": "laptop", "scope": "read", "days": "3"}, "read")
    assert "hanse_pat_" in page.text
    wrong = await desk.post("/personal-tokens", {"label": "laptop", "scope": "owner", "days": "3"}, "read")
    assert (wrong.status_code, "expected scopes among read" in wrong.text) == (400, True)
    [row] = [row for row in await desk.parts.tokens.list() if row.owner]
    assert (await desk.post("/personal-tokens/revoke", {"id": row.name}, "read")).status_code == 303
    assert [row for row in await desk.parts.tokens.list() if row.owner] == []
