"""Joining, suspending and leaving: what is asked of a member, and what everybody sees afterwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from catalogue import app
from catalogue.members.members import Members
from catalogue.store import CatalogueTransaction
from catalogue.store.tables import EntryRow
from tests.catalogue import provider as providers
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import Answer, Provider, Reply, Request, dataset


async def joining(catalogue: Catalogue, **facts: Any) -> tuple[int, str]:
    answer = await catalogue.http.post("/api/v1/members", json=facts, headers=catalogue.operator)
    return answer.status_code, answer.json().get("detail", "")


@pytest.mark.parametrize(
    ("facts", "status", "says"),
    [
        ({"id": "did:key:z6Mk"}, 400, "did:web"),
        ({"id": "did:web:a%2F..%2Fb"}, 400, "segment"),
        ({"id": "did:web:127.0.0.1:9720"}, 400, "did:web:127.0.0.1%3A9720"),
        ({"name": "North"}, 400, "name"),
        ({"country": "Germany"}, 400, "country"),
        ({"url": "ftp://x"}, 400, "http(s) URL"),
        ({"surprise": 1}, 400, "surprise"),
        ({"id": "did:web:127.0.0.1%3A1"}, 502, "cannot be reached"),
        ({"id": "did:web:host.invalid:9720"}, 502, "write %3A before it: did:web:host.invalid%3A9720"),
        ({"id": "did:web:10.0.0.1"}, 502, "private address"),
        ({"name": "catalogue"}, 409, "operator itself"),
    ],
)
async def test_an_application_that_does_not_fit_is_refused_with_the_reason(
    catalogue: Catalogue, north: Provider, facts: dict[str, Any], status: int, says: str
) -> None:
    found = await joining(catalogue, **{"id": north.did, "name": "north", **facts})
    assert found[0] == status, found
    assert says in found[1]
    listed = await catalogue.http.get("/api/v1/members", headers=catalogue.operator)
    assert listed.json() == []


@pytest.mark.parametrize("document", [{}, [], {"id": "did:web:victim.test"}, None])
async def test_a_did_document_of_somebody_else_is_refused(
    catalogue: Catalogue, north: Provider, document: object
) -> None:
    north.document = (lambda: Reply(404)) if document is None else (lambda: Reply.of(document))
    status, says = await joining(catalogue, id=north.did, name="north", url=north.url)
    assert status == 502
    assert "expected the DID document" in says


async def test_a_did_and_a_name_are_taken_once(catalogue: Catalogue, north: Provider, south: Provider) -> None:
    await catalogue.admit(north, "north")
    assert (await joining(catalogue, id=north.did, name="other"))[0] == 409
    assert (await joining(catalogue, id=south.did, name="north"))[0] == 409


async def test_a_did_that_is_anothers_but_for_capitals_is_taken(catalogue: Catalogue, north: Provider) -> None:
    """On one host these are two tenants, and ids of the one were in the namespace of the other."""

    def documents(_: Provider, request: Request) -> Reply:
        return Reply.of({"id": ":".join([north.did, *request.path.removesuffix("/did.json").split("/")[1:]])})

    north.answer = documents
    assert (await joining(catalogue, id=f"{north.did}:clinic", name="clinic"))[0] == 201
    status, says = await joining(catalogue, id=f"{north.did}:Clinic", name="other")
    assert status == 409
    assert "differs from" in says
    assert (await joining(catalogue, id=f"{north.did}:clinic2", name="third"))[0] == 201


async def test_who_is_admitted_as_suspended_was_never_active(catalogue: Catalogue, north: Provider) -> None:
    """A register of that moment would have been believed for minutes."""
    assert (await joining(catalogue, id=north.did, name="north", url=north.url, status="suspended"))[0] == 201
    assert await catalogue.parts.store.read(lambda tx: (tx.members.of("north").status, tx.members.read_revision())) == (
        "suspended",
        1,
    )


async def test_without_a_url_the_dids_own_address_is_taken(catalogue: Catalogue, north: Provider) -> None:
    status, _ = await joining(catalogue, id=north.did, name="north")
    member = (await catalogue.http.get("/api/v1/members/north", headers=catalogue.operator)).json()
    assert (status, member["url"]) == (201, north.url)


async def test_a_suspended_members_datasets_are_hidden_until_it_is_restored(
    catalogue: Catalogue, north: Provider
) -> None:
    north.datasets = [dataset("urn:hanse:north:a")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    for status, ids in (("suspended", []), ("active", ["urn:hanse:north:a"])):
        change = {"status": status, "reason": "audit"}
        answer = await catalogue.http.patch("/api/v1/members/north", json=change, headers=catalogue.operator)
        assert answer.json()["status"] == status
        assert await catalogue.ids() == ids
    visits = len(north.requests)
    await catalogue.http.patch("/api/v1/members/north", json={"status": "suspended"}, headers=catalogue.operator)
    refused = await catalogue.http.post("/api/v1/crawl?member=north", headers=catalogue.operator)
    assert (refused.status_code, len(north.requests)) == (400, visits)


async def test_who_has_a_fact_that_would_be_refused_today_can_be_suspended(
    catalogue: Catalogue, north: Provider
) -> None:
    await catalogue.admit(north, "north")

    def older(tx: CatalogueTransaction) -> None:
        tx.members.of("north").title = ""

    await catalogue.parts.store.write(older)
    change = {"status": "suspended"}
    answer = await catalogue.http.patch("/api/v1/members/north", json=change, headers=catalogue.operator)
    assert (answer.status_code, answer.json()["status"]) == (200, "suspended")


async def test_who_is_restored_is_as_old_as_its_last_visit_until_the_next(
    catalogue: Catalogue, north: Provider
) -> None:
    north.datasets = [dataset("urn:hanse:north:a")]
    await catalogue.admit(north, "north")
    states = []
    for days in (0.1, 2, 60):
        await catalogue.crawl("north")
        for status in ("suspended", "active"):
            await catalogue.parts.members.change("north", changes={"status": status})
            catalogue.clock.advance(days * 86_400 * (status == "suspended"))
        states.append([hit["state"] for hit in (await catalogue.search())["results"]])
    assert states == [["active"], ["unreachable"], []]
    await catalogue.crawl("north")
    assert [hit["state"] for hit in (await catalogue.search())["results"]] == ["active"]


async def test_what_the_command_line_does_reaches_the_search_of_a_running_catalogue(
    catalogue: Catalogue, north: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "_FOLLOW_SECONDS", 0.01)
    north.datasets = [dataset("urn:hanse:north:a")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    parts = catalogue.parts
    running = app.create_app(parts.settings, parts=parts)
    async with running.router.lifespan_context(running), asyncio.timeout(60):
        await Members(parts.store, parts.net, parts.settings).change("north", changes={"status": "suspended"})
        while (await catalogue.search())["total"]:
            await asyncio.sleep(0.01)


async def test_who_leaves_takes_its_datasets_along_and_may_come_back(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset("urn:hanse:north:a")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    await catalogue.http.delete("/api/v1/members/north", headers=catalogue.operator)
    assert await catalogue.ids() == []
    gone = await catalogue.http.get("/api/v1/datasets/urn:hanse:north:a")
    assert (gone.status_code, gone.json()["code"]) == (410, "gone")
    assert "ended the membership" in gone.json()["detail"]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    assert await catalogue.ids() == ["urn:hanse:north:a"]


def held(*, at: str) -> tuple[Answer, asyncio.Event, asyncio.Event]:
    """A catalogue of pages without an end that waits before this one; set when it is asked for, to be set to go on."""
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def answer(provider: Provider, request: Request) -> Reply:
        if request.method != "POST":
            return providers.good(provider, request)
        page = request.path.partition("page=")[2] or "1"
        if page == at:
            asked.set()
            await go_on.wait()
        link = f'</dsp/2025-1/catalog/request?page={int(page) + 1}>; rel="next"'
        return Reply.of(provider.catalog([dataset(f"urn:shared:{page}")]), link=link)

    return answer, asked, go_on


@pytest.mark.parametrize("how", ["suspended", "removed"])
async def test_who_is_suspended_or_removed_is_visited_no_further(
    catalogue: Catalogue, north: Provider, how: str
) -> None:
    north.answer, asked, go_on = held(at="2")
    await catalogue.admit(north, "north")
    visit = asyncio.create_task(catalogue.http.post("/api/v1/crawl?member=north&wait=600", headers=catalogue.operator))
    await asyncio.wait_for(asked.wait(), 60)
    following = catalogue.parts.crawler.start(north.did, why="member")
    if how == "removed":
        await catalogue.http.delete("/api/v1/members/north", headers=catalogue.operator)
    else:
        await catalogue.http.patch("/api/v1/members/north", json={"status": how}, headers=catalogue.operator)
    answer = await asyncio.wait_for(visit, 60)
    assert (answer.status_code, answer.json()) == (200, {"runs": [], "running": [], "stopped": ["north"]})
    assert following.cancelled()
    go_on.set()
    assert "page=2" in north.requests[-1].path
    assert await catalogue.ids() == []


@pytest.mark.parametrize("how", ["suspended", "removed"])
async def test_nothing_more_is_taken_of_who_was_suspended_or_removed_by_another_process(
    catalogue: Catalogue, north: Provider, how: str
) -> None:
    parts = catalogue.parts
    members = Members(parts.store, parts.net, parts.settings)
    north.answer, asked, go_on = held(at="2")
    await catalogue.admit(north, "north")
    visit = asyncio.create_task(catalogue.crawl("north"))
    await asyncio.wait_for(asked.wait(), 60)
    await (members.remove("north") if how == "removed" else members.change("north", changes={"status": how}))
    go_on.set()
    run = await asyncio.wait_for(visit, 60)
    assert (run["outcome"], run["problem"]) == (
        "partial", "north is suspended, has moved, or is a member no longer; nothing more of its catalogue is taken",
    )  # fmt: skip
    rows = await parts.store.read(lambda tx: list(tx.session.query(EntryRow)))
    assert {row.id: row.withdrawn_at is not None for row in rows} == {"urn:shared:1": how == "removed"}


async def test_the_operator_sees_why_a_connector_fails(catalogue: Catalogue, north: Provider) -> None:
    north.answer = lambda *_: Reply(401)
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    member = (await catalogue.http.get("/api/v1/members/north", headers=catalogue.operator)).json()
    assert member["source"]["failures"] == 1
    assert member["runs"][0]["outcome"] == "failed"
    north.answer = providers.good
    await catalogue.crawl("north")
    member = (await catalogue.http.get("/api/v1/members/north", headers=catalogue.operator)).json()
    assert (member["source"]["failures"], member["source"]["problem"]) == (0, "")
    assert [run["outcome"] for run in member["runs"]] == ["complete", "failed"]
