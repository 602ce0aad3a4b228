"""Questions over many owners on the management API: answers, plans, refusals, scopes, cancelling."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from fastapi import FastAPI

from connector.engine.pool.pool import Pool
from connector.federation.coordinator import Coordinator
from connector.infra.concurrency.turn_queue import TurnQueue
from connector.infra.http import problem_json
from connector.management import queries
from connector.management.sign_on.auth import Tokens
from connector.store import Store
from tests.support.admin import issued
from tests.support.asking import read
from tests.support.owners import Owners
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SQL = 'SELECT ward, count(*) AS n FROM "all".patients GROUP BY ward ORDER BY ward'


@dataclass
class Asker:
    http: httpx2.AsyncClient
    owners: Owners
    coordinator: Coordinator
    tokens: Tokens
    app: FastAPI
    token: str

    async def ask(self, sql: str = SQL, **more: Any) -> httpx2.Response:
        return await self.http.post("/queries", json={"sql": sql, **more})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    async with Pool(tmp_path_factory.mktemp("work"), size=2, warm=1) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def asker(pool: Pool, sqlite_store: Store, tmp_path: Path) -> AsyncIterator[Asker]:
    owners = Owners("north", "south")
    for owner in owners.of:
        owners.add(owner, "patients", "SELECT range AS id, 'w' || (range % 2) AS ward FROM range(10)")
    coordinator = Coordinator(
        sqlite_store, owners, pool, work_dir=tmp_path / "q", tables_for=owners.tables_for, ticket=owners.ticket  # type: ignore[arg-type]  # stands in for the network
    )  # fmt: skip
    tokens, app = Tokens(sqlite_store), FastAPI()
    problem_json.install(app)
    app.include_router(queries.router(coordinator, tokens))
    token = await issued(tokens, "ada", ["consume", "read"])
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://t", headers={"authorization": f"Bearer {token}"}
    ) as http:
        yield Asker(http, owners, coordinator, tokens, app, token)


async def test_the_answer_is_an_arrow_stream_with_an_end_record(asker: Asker) -> None:
    answer = await asker.ask()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/vnd.apache.arrow.stream"
    rows, end = read(answer.content)
    assert rows == [{"ward": "w0", "n": 10}, {"ward": "w1", "n": 10}]
    assert end["status"] == "complete"
    assert end["query_id"] == answer.headers["hanse-query"]


async def test_an_owners_refusal_that_nobody_can_write_is_told_and_ends_no_list(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = rb'{"code":"not_permitted","detail":"\ud800 no\u001b[2J","rule":"x"}'
    monkeypatch.setattr("tests.support.owners._problem", lambda *_: told)
    asker.owners.break_("south", "refuse:not_permitted")
    refused = await asker.ask()
    assert (refused.status_code, refused.json()["rule"]) == (403, "x")
    assert refused.json()["detail"].endswith(r"\ud800 no\u001b[2J")
    (known,) = (await asker.http.get("/queries")).json()
    assert known["reason"] == refused.json()["detail"]


@pytest.mark.parametrize("given", [{}, {"epsilon": 0.25}], ids=str)
async def test_every_owner_is_told_what_its_answer_may_cost_of_a_budget(asker: Asker, given: dict[str, Any]) -> None:
    assert (await asker.ask(**given)).status_code == 200
    told = [envelope["epsilon"] for owner in asker.owners.of.values() for envelope in owner.asked]
    assert told == [given.get("epsilon")] * 2


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
async def test_the_answer_is_compressed_as_asked(asker: Asker, codec: str) -> None:
    rows, _ = read((await asker.ask(codec=codec)).content)
    assert len(rows) == 2


async def test_explain_asks_no_owner_and_analyze_gives_its_figures(asker: Asker) -> None:
    plan = (await asker.ask(explain=True)).json()
    assert [one["id"] for one in plan["fragments"]] == ["f0.north", "f0.south"]
    assert "f0.north at north: partial of patients" in plan["text"]
    assert not asker.owners.of["north"].asked
    told = (await asker.ask(explain="analyze")).json()
    assert [one["rows"] for one in told["actual"]] == [2, 2]
    assert "came 2 result rows" in told["text"]


WRONG = [
    ({"sql": "SELECT * FROM patients"}, 400, "owner_missing"),
    ({"sql": 'SELECT * FROM "east".patients'}, 400, "agreement_missing"),
    ({"sql": SQL, "mode": "wild"}, 400, "bad_input"),
    ({"sql": SQL, "colour": "blue"}, 400, "bad_input"),
    ({"sql": ""}, 400, "bad_input"),
    ({"sql": SQL, "limits": {"seconds": 0}}, 400, "bad_input"),
    ({"sql": SQL, "epsilon": 0}, 400, "bad_input"),
    ({"sql": SQL, "partial": "perhaps"}, 400, "bad_input"),
]


@pytest.mark.parametrize(("body", "status", "code"), WRONG, ids=[str(body) for body, _, _ in WRONG])
async def test_a_wrong_request_is_a_problem_object(asker: Asker, body: dict[str, Any], status: int, code: str) -> None:
    answer = await asker.http.post("/queries", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_an_owners_refusal_keeps_its_status_code_and_rule(asker: Asker) -> None:
    asker.owners.break_("south", "refuse:purpose_not_agreed")
    answer = await asker.ask(purpose="dpv:Marketing")
    told = answer.json()
    assert (answer.status_code, told["code"], told["rule"], told["owner"]) == (
        403,
        "purpose_not_agreed",
        "/permission/0",
        "south",
    )
    assert asker.owners.of["south"].asked[0]["purpose"] == "https://w3id.org/dpv#Marketing"


async def test_an_owner_that_is_down_is_somebody_elses_failure(asker: Asker) -> None:
    asker.owners.break_("south", "down")
    answer = await asker.ask()
    assert answer.status_code == 502
    assert answer.json()["detail"].startswith('"south" (f0.south: patients)')


async def test_a_partial_answer_is_given_on_request_and_lists_who_is_missing(asker: Asker) -> None:
    asker.owners.break_("south", "down")
    rows, end = read((await asker.ask(partial="allow")).content)
    assert rows == [{"ward": "w0", "n": 5}, {"ward": "w1", "n": 5}]
    assert [one["owner"] for one in end["missing"]] == ["south"]
    told = (await asker.ask(partial="allow", explain="analyze")).json()
    assert (told["partial"], [one["stage"] for one in told["missing"]]) == (True, ["asking"])
    assert '"south" (f0.south: patients) while it was asked' in told["text"]


async def test_nobody_asks_without_the_scope(asker: Asker) -> None:
    other = await issued(asker.tokens, "bob", ["owner"])
    headers = {"authorization": f"Bearer {other}"}
    assert (await asker.http.post("/queries", json={"sql": SQL}, headers=headers)).status_code == 403
    assert (await asker.http.get("/queries", headers=headers)).status_code == 403
    assert (await asker.http.get("/queries", headers={"authorization": ""})).status_code == 401


async def test_a_running_question_is_seen_and_cancelled(asker: Asker) -> None:
    asker.owners.break_("north", "slow")
    running = asyncio.ensure_future(asker.ask())
    await asker.owners.of["north"].waiting.wait()
    (seen,) = (await asker.http.get("/queries")).json()
    assert (seen["state"], seen["by"]) == ("asking", "ada")
    assert (await asker.http.delete(f"/queries/{seen['id']}")).status_code == 204
    assert (await running).json()["code"] == "cancelled"
    after = (await asker.http.get(f"/queries/{seen['id']}")).json()
    assert (after["state"], after["code"]) == ("broken", "cancelled")
    assert (await asker.http.delete(f"/queries/{seen['id']}")).status_code == 404
    assert (await asker.http.get("/queries/nothing")).status_code == 404


def request(asker: Asker, **asked: Any) -> tuple[asyncio.Task[None], asyncio.Event]:
    """A request under way, and what is set when its client leaves."""
    left = asyncio.Event()
    messages = [{"type": "http.request", "body": json.dumps({"sql": SQL, **asked}).encode(), "more_body": False}]

    async def receive() -> dict[str, Any]:
        if messages:
            return messages.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        """Nobody is there."""

    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/queries", "raw_path": b"/queries",
        "query_string": b"", "root_path": "", "scheme": "http", "server": ("t", 80), "client": ("c", 1),
        "headers": [(b"authorization", f"Bearer {asker.token}".encode()), (b"content-type", b"application/json")],
    }  # fmt: skip
    return asyncio.create_task(asker.app(scope, receive, send)), left


async def test_a_client_that_leaves_ends_the_work_at_the_owners(asker: Asker) -> None:
    asker.owners.break_("north", "slow")
    asking, left = request(asker)
    await asker.owners.of["north"].waiting.wait()
    left.set()
    async with asyncio.timeout(60):
        await asyncio.gather(asking, return_exceptions=True)
    assert asker.owners.of["north"].cancelled == 1
    assert asker.coordinator.recent()[0].state == "broken"


async def test_a_question_without_a_place_is_told_when_to_ask_again(
    asker: Asker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asker.coordinator, "_turns", TurnQueue(0, waiting=0, wait_seconds=5))
    for explain in (False, True):
        full = await asker.ask(explain=explain)
        told = full.json()
        assert (full.status_code, full.headers["retry-after"], told["code"]) == (429, "5", "queries_max")
        assert told["retry_after"] == 5


@pytest.mark.parametrize("explain", [False, True])
async def test_a_client_that_leaves_while_its_question_waits_waits_no_more(
    asker: Asker, monkeypatch: pytest.MonkeyPatch, explain: bool
) -> None:
    turns = TurnQueue(0, waiting=8, wait_seconds=60)
    monkeypatch.setattr(asker.coordinator, "_turns", turns)
    monkeypatch.setattr(asker.coordinator, "_queue_seconds", 60.0)
    asking, left = request(asker, explain=explain)
    await until(lambda: turns.waiting == 1)
    left.set()
    async with asyncio.timeout(60):
        await asyncio.gather(asking, return_exceptions=True)
    assert turns.waiting == 0
