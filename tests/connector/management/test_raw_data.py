"""Raw data behind the management API: only marked routes reach it, by scope, with a record, and the docs list them."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
from fastapi import APIRouter, Depends
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from connector.app import management_app
from connector.audit.log import Filter
from connector.console.page import PageRequirement
from connector.engine.pool.protocol import Job
from connector.errors import Unavailable
from connector.management import datasets
from connector.management.sign_on.auth import SCOPES, Requirement
from connector.offers.preview import PreviewRequest
from tests.connector.console.support import Console, opened

DOCS = Path(__file__).parents[3] / "docs" / "operations.md"
PARTNER = "did:web:lab.example"
DATASET = "urn:hanse:north:people"
LEAST, GREATEST, FOLDER = "-31415926", "27182818", "rare-illness"
ROWS = {"offer": "urn:rows", "dataset": "people", "may": ["query"], "columns": {"hide": ["salary"]}, "decide": "auto"}
GROUPS = {
    "offer": "urn:groups", "dataset": "people", "may": ["query"], "limits": {"min_group": "5"}, "rows": "person = p1",
    "grid": {"group_by": {"town": "exact"}, "measure": {"salary": "0..1000"}}, "decide": "auto",
}  # fmt: skip
TOWNS = {
    "offer": "urn:towns", "dataset": "towns", "may": ["query"], "limits": {"min_group": "5"},
    "grid": {"group_by": {"town": "exact"}, "measure": {"age": "0..120"}}, "decide": "auto",
}  # fmt: skip
Key = tuple[str, str]
pytestmark = pytest.mark.asyncio(loop_scope="module")


def marked(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[tuple[Key, Requirement]]:
    """Every method and path whose route is marked as raw data."""
    for route in routes:
        context: Any = getattr(route, "include_context", None)  # FastAPI keeps routers as they came
        if context is not None:
            yield from marked(context.included_router.routes, prefix + context.prefix)
        elif isinstance(route, APIRoute):
            path = (prefix + route.path).replace(":path}", "}")
            for one in route.dependant.dependencies:
                if isinstance(one.call, Requirement) and one.call.records is not None:
                    yield from (((method, path), one.call) for method in route.methods)


def documented() -> dict[Key, tuple[str, set[str]]]:
    """Scope and records of each endpoint, as the docs' table has them."""
    section = DOCS.read_text().partition("## Endpoints that touch data\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if endpoint := re.fullmatch(r"`([A-Z]+) (/\S+)`", cells[0]):
            found[endpoint[1], endpoint[2]] = (cells[1].strip("`"), set(re.findall(r"`(\w+)`", cells[2])))
    return found


@dataclass(frozen=True, slots=True)
class Owner:
    """A connector with one dataset and its workers, and its management API with any scope."""

    desk: Console
    top: Path

    async def call(
        self, key: Key, scope: str, body: Any = None, *, form: Any = None, files: Any = None
    ) -> httpx2.Response:
        headers = {"authorization": f"Bearer {await self.desk.token(scope)}"}
        said: dict[str, Any] = {"files": files} if files else {"data": form} if form else {"json": body} if body else {}
        return await self.desk.http.request(*key, headers=headers, **said)

    async def records(self) -> list[dict[str, Any]]:
        """The log, the newest first."""
        await self.desk.parts.sequencer.settle()
        found = await self.desk.parts.log.page(Filter(), before=None, limit=500)
        return [json.loads(record.text) for record in found]

    def write(self, name: str, *, people: int = 40) -> str:
        """A directory with hidden figures in its values and in a folder's name."""
        place = self.top / name / f"why={FOLDER}"
        place.mkdir(parents=True, exist_ok=True)
        rows = [{"person": f"p{n}", "town": "Lund", "salary": 100 + n} for n in range(people)]
        rows += [{"person": "x", "town": "Visby", "salary": int(one)} for one in (LEAST, GREATEST)]
        pq.write_table(pa.Table.from_pylist(rows), place / "a.parquet")
        return str(self.top / name)

    async def must(self, key: Key, body: Any) -> Any:
        answer = await self.call(key, "owner", body)
        assert answer.is_success, answer.text
        return answer.json()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def owner(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Owner]:
    top = tmp_path_factory.mktemp("raw")
    async with opened(top) as desk, desk.parts.pool:
        made = Owner(desk, top)
        for scope in SCOPES:
            await desk.token(scope)
        await made.must(("POST", "/api/v1/datasets"), {"name": "people", "path": made.write("people")})
        await made.must(("POST", "/api/v1/datasets/people/versions"), {"path": made.write("people-50", people=50)})
        await made.must(("POST", "/api/v1/offers"), {"form": json.dumps(ROWS)})
        towns = [f"t{town}" for town in range(60) for _ in range(20)] + [f"s{town}" for town in range(12)]
        pq.write_table(pa.table({"town": towns, "age": [30] * len(towns)}), top / "towns.parquet")
        await made.must(("POST", "/api/v1/datasets"), {"name": "towns", "path": str(top / "towns.parquet")})
        for name, people in (("people-60", 60), ("people-70", 70), ("more", 40), ("again", 40)):
            made.write(name, people=people)
        yield made


async def test_the_docs_list_every_endpoint_that_touches_data(owner: Owner) -> None:
    found = dict(marked(management_app(owner.desk.parts).routes))
    assert {
        key: (one.scope, {record.__name__ for record in one.records or ()}) for key, one in found.items()
    } == documented()


PREVIEW = f"as={PARTNER}&offer={ROWS['offer']}"
TRIED: dict[Key, Callable[[Owner], dict[str, Any]]] = {
    ("POST", "/api/v1/datasets"): lambda o: {"body": {"name": "more", "path": str(o.top / "more")}},
    ("POST", "/api/v1/datasets/{name}/versions"): lambda o: {"body": {"path": str(o.top / "people-60")}},
    ("PUT", "/api/v1/datasets/{name}/texts"): lambda _: {"body": {"title": "People of a town"}},
    ("PUT", "/api/v1/datasets/{name}/columns"): lambda _: {"body": {"town": {"description": "Where they live"}}},
    ("GET", "/api/v1/datasets"): lambda _: {},
    ("GET", "/api/v1/datasets/{name}"): lambda _: {},
    ("GET", "/api/v1/datasets/{name}/preview"): lambda _: {"query": PREVIEW},
    ("POST", "/api/v1/offers"): lambda _: {"body": {"form": json.dumps(TOWNS), "publish_left_out": True}},
    ("POST", "/api/v1/policies/withheld"): lambda _: {"body": {"form": json.dumps(GROUPS)}},
    ("POST", "/api/v1/policies/simulate"): lambda _: {"body": {"offer": ROWS["offer"], "sql": "SELECT 1"}},
    ("POST", "/datasets/new"): lambda o: {"form": {"name": "again", "path": str(o.top / "again")}},
    ("GET", "/datasets/new/preview"): lambda o: {"query": f"path={o.top}/towns.parquet&kind=parquet"},
    ("POST", "/datasets/new/preview"): lambda o: {"form": {"path": f"{o.top}/towns.parquet", "kind": ""}},
    ("POST", "/datasets/upload"): lambda _: {"files": {"file": ("towns.csv", b"town,age\nLund,31\n")}},
    ("POST", "/datasets/{name}/versions"): lambda o: {"form": {"path": str(o.top / "people-70")}},
    ("GET", "/datasets/{name}"): lambda _: {},
    ("POST", "/datasets/{name}/remove"): lambda _: {"path": "/datasets/again/remove", "form": {"x": "y"}},
    ("GET", "/offers/new"): lambda _: {"query": "dataset=people"},
    ("POST", "/offers/check"): lambda _: {"form": {"dataset": "people"}},
    ("POST", "/offers/new"): lambda _: {"form": {"do": "check", "form": json.dumps(GROUPS)}},
    ("GET", "/offers/preview"): lambda _: {"query": PREVIEW},
}


async def ask(owner: Owner, key: Key, scope: str) -> httpx2.Response:
    tried = {"path": key[1].replace("{name}", "people"), "query": "", **TRIED[key](owner)}
    where = f"{tried.pop('path')}?{tried.pop('query')}"
    return await owner.call((key[0], where), scope, **tried)


async def test_every_marked_endpoint_leaves_its_records(owner: Owner) -> None:
    """Those of consumers are tested with owners to ask: `test_coordinate`, `test_receiving`."""
    wanted = {key: one for key, one in documented().items() if one[0] != "consume"}
    assert set(TRIED) == set(wanted)
    for key in TRIED:
        before = len(await owner.records())
        answer = await ask(owner, key, "owner" if wanted[key][0] == "owner" else "read")
        assert answer.status_code < 400, (key, answer.text)
        found = await owner.records()
        assert {one["kind"] for one in found[: len(found) - before]} == wanted[key][1], key
        assert all(one["actor"] == "owner" for one in found[: len(found) - before]), key


@pytest.mark.parametrize("key", [key for key, one in documented().items() if one[0] == "owner"], ids="-".join)
async def test_a_token_with_the_scope_read_reaches_no_raw_data(owner: Owner, key: Key) -> None:
    """Twenty questions to `withheld` gave one person's salary."""
    for scope in ("read", "consume", "audit", "metrics"):
        answer = await ask(owner, key, scope)
        assert answer.status_code == 403
        assert "xpected a token with the scope" in answer.text  # a page begins it as a sentence
        assert "hanse token issue NAME --scope owner" in answer.text
        (newest, *_) = await owner.records()
        assert (newest["kind"], newest["code"], newest["detail"]["token"]) == ("RequestRefused", "scope_missing", scope)


class Watching:
    """Workers that look whether a view is recorded before they have anything to do."""

    def __init__(self, owner: Owner) -> None:
        self.owner, self.seen = owner, list[str]()

    async def ask(self, job: Job) -> Any:
        (newest, *_) = [one for one in await self.owner.records() if one["kind"] == "RawDataViewed"]
        self.seen.append(newest["detail"]["view"])
        raise Unavailable("no worker is free")


async def test_a_view_is_recorded_before_anything_is_read(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = Watching(owner)
    monkeypatch.setattr(owner.desk.parts.owners_view, "_pool", workers)
    await ask(owner, ("POST", "/api/v1/policies/withheld"), "owner")
    await ask(owner, ("GET", "/api/v1/datasets/{name}/preview"), "owner")
    assert workers.seen == ["withheld", "preview"]


@pytest.mark.parametrize("key", [key for key, one in documented().items() if "RawDataViewed" in one[1]], ids="-".join)
async def test_a_view_that_cannot_be_recorded_shows_nothing(
    owner: Owner, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise Unavailable("the log takes nothing")

    workers = Watching(owner)
    monkeypatch.setattr(owner.desk.parts.owners_view, "_pool", workers)
    monkeypatch.setattr(owner.desk.parts.owners_view, "_record_view", full)
    monkeypatch.setattr(owner.desk.parts.registry, "_engine", workers)
    monkeypatch.setattr(owner.desk.parts.registry, "_record_view", full)
    answer = await ask(owner, key, "owner")
    assert (answer.status_code, "log takes nothing" in answer.text, workers.seen) == (503, True, [])


async def test_a_record_of_a_view_tells_what_was_asked_and_no_value(owner: Owner) -> None:
    told = {}
    for key in (
        ("POST", "/api/v1/policies/withheld"),
        ("POST", "/api/v1/policies/simulate"),
        ("GET", "/api/v1/datasets/{name}/preview"),
    ):
        assert (await ask(owner, key, "owner")).status_code == 200
        found = next(one for one in await owner.records() if one["kind"] == "RawDataViewed")
        assert (found["actor"], found["dataset"]) == ("owner", DATASET)
        assert "p1" not in json.dumps(found["detail"])
        told[found["detail"]["view"]] = set(found["detail"]) - {"view"}
    assert told == {
        "withheld": {"policy"},
        "simulation": {"policy", "action", "query_sha256"},
        "preview": {"as", "offer", "action"},
    }


def paths(routes: Sequence[BaseRoute], prefix: str = "") -> Iterator[str]:
    """Every path that can be looked at, with what this connector has in the place of parameters."""
    for route in routes:
        context: Any = getattr(route, "include_context", None)
        if context is not None:
            yield from paths(context.included_router.routes, prefix + context.prefix)
        elif isinstance(route, APIRoute) and "GET" in route.methods:
            path = (prefix + route.path).replace(":path}", "}")
            for name, value in (("offer_id", ROWS["offer"]), ("dataset_id", DATASET), ("name", "people")):
                path = path.replace(f"{{{name}}}", str(value))
            yield re.sub(r"\{\w+\}", "x", path)


async def test_no_page_shows_a_token_with_the_scope_read_a_value_of_a_hidden_column(owner: Owner) -> None:
    tried = [path for path in paths(management_app(owner.desk.parts).routes) if "stream" not in path]
    assert {"/api/v1/datasets/people", "/datasets/people"} < set(tried)
    for path in tried:
        text = (await owner.call(("GET", path), "read")).text
        assert not any(value in text for value in (LEAST, GREATEST, FOLDER)), path
    seen = (await owner.call(("GET", "/api/v1/datasets/people"), "read")).json()
    assert {one["statistics"] for one in seen["columns"]} == {None}
    assert (seen["files"], seen["report"], seen["changes"], seen["affected"]) == ([], None, None, [])


async def test_the_owner_sees_the_figures_on_the_api_and_the_page(owner: Owner) -> None:
    both = await owner.desk.token("owner", "read")
    for path in ("/api/v1/datasets", "/api/v1/datasets/people", "/datasets/people"):
        text = (await owner.desk.http.get(path, headers={"authorization": f"Bearer {both}"})).text
        assert all(value in text for value in (LEAST, GREATEST)), path


@pytest.mark.parametrize("at", ["api", "page"])
async def test_an_endpoint_without_a_mark_reaches_no_raw_data(owner: Owner, at: str) -> None:
    """One that is added tomorrow fails the first time that it is tried, until it is in the table of the docs."""
    parts = owner.desk.parts
    routes = APIRouter()
    may = Depends(parts.tokens.require("owner") if at == "api" else PageRequirement(parts.tokens, "owner"))

    @routes.get("/engine", dependencies=[may])
    async def engine() -> Any:
        return await parts.pool.ask(Job(kind="report", relations={}, sql="SELECT 1", consumer="owner"))

    @routes.get("/figures", dependencies=[may])
    async def figures() -> Any:
        return datasets.view(*await parts.registry.get("people"), raw=True)

    @routes.get("/preview", dependencies=[may])
    async def preview() -> Any:
        return await parts.owners_view.preview("people", PreviewRequest(participant=PARTNER), by="owner")

    app = management_app(parts)
    app.include_router(routes, prefix="/tomorrow")
    headers = {"authorization": f"Bearer {await owner.desk.token('owner')}"}
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://console.test") as http:
        for name in ("engine", "figures", "preview"):
            answer = await http.get(f"/tomorrow/{name}", headers=headers)
            assert "raw_data_unmarked" in answer.text, answer.text
            assert LEAST not in answer.text
