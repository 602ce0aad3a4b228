"""Visits of connectors: what is taken, what is kept, and for how long."""

from __future__ import annotations

import asyncio
import json
from functools import partial
from itertools import count
from typing import Any

import pytest

from catalogue.crawl import ingest
from catalogue.crawl import visit as visits
from catalogue.crawl.namespaces import Namespaces
from catalogue.store import CatalogueTransaction
from catalogue.store.tables import CrawlState, EntryRow
from connector.identity import did, self_issued_token
from connector.identity.did import DidResolver
from tests.catalogue import provider as providers
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import Provider, Reply, Request, dataset
from tests.support.waiting import until

DAY = 86_400.0


def source_of(tx: CatalogueTransaction, *, member: str) -> CrawlState:
    found = tx.members.get_source(member)
    assert found is not None
    return found


async def test_datasets_of_a_member_are_found_by_word_and_by_column(catalogue: Catalogue, north: Provider) -> None:
    columns = {"@list": [{"https://w3id.org/hanse/catalog/1/name": "tumor_size"}, {"name": "age", "type": "INTEGER"}]}
    described = {"dct:title": "Breast cancer", "https://w3id.org/hanse/catalog/1/columns": columns}
    north.datasets = [dataset("urn:hanse:north:patients", **described), dataset("urn:hanse:north:weather")]
    await catalogue.admit(north, "north")
    run = await catalogue.crawl("north")
    assert (run["outcome"], run["datasets"], run["new"]) == ("complete", 2, 2)
    assert await catalogue.ids("cancer") == ["urn:hanse:north:patients"]
    assert await catalogue.ids(column="tumor_size") == ["urn:hanse:north:patients"]
    assert await catalogue.ids("size") == ["urn:hanse:north:patients"]


async def test_the_request_is_the_protocols_and_carries_a_token_for_this_member(
    catalogue: Catalogue, north: Provider
) -> None:
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    asked = north.requests[-1]
    assert (asked.method, asked.path) == ("POST", "/dsp/2025-1/catalog/request")
    assert json.loads(asked.body)["@type"] == "CatalogRequestMessage"
    token = asked.headers["authorization"].removeprefix("Bearer ")
    parts = catalogue.parts
    resolver = DidResolver(parts.net)
    us = parts.settings.did
    resolver._strangers.keep(
        us, did._CachedDocument(float("inf"), did._read_document(parts.register.did_document(), us))
    )
    verified = await self_issued_token.verify(
        token, audience=north.did, resolver=resolver, replays=self_issued_token.Replays()
    )
    assert verified.claims["iss"] == parts.settings.did


def pages(count: int, provider: Provider, request: Request) -> Reply:
    """A catalogue of one dataset a page, linked by `Link: rel=next`."""
    if not request.path.startswith("/dsp/2025-1/catalog/request"):
        return providers.good(provider, request)
    number = int(request.path.partition("page=")[2] or 1)
    made = provider.catalog([dataset(f"urn:hanse:north:d{number}")])
    link = f'</dsp/2025-1/catalog/request?page={number + 1}>; rel="next"' if number < count else ""
    before = f'</dsp/2025-1/catalog/request?page={number - 1}>; rel="prev"' if number > 1 else ""
    return Reply.of(made, link=", ".join(filter(None, (before, link))))


async def test_every_page_is_followed(catalogue: Catalogue, north: Provider) -> None:
    north.answer = partial(pages, 7)
    await catalogue.admit(north, "north")
    run = await catalogue.crawl("north")
    assert (run["outcome"], run["pages"], run["datasets"]) == ("complete", 7, 7)


async def test_catalogues_within_the_catalogue_are_read_inline_and_by_address(
    catalogue: Catalogue, north: Provider
) -> None:
    def nested(provider: Provider, request: Request) -> Reply:
        if request.path == "/inner/catalog/request":
            return Reply.of(provider.catalog([dataset("urn:hanse:north:by-address")]))
        if request.path != "/dsp/2025-1/catalog/request":
            return providers.good(provider, request)
        inline = {"@id": "urn:c1", "@type": "Catalog", "dataset": [dataset("urn:hanse:north:inline")]}
        service = {"@id": "urn:s", "@type": "DataService", "endpointURL": f"{provider.url}/inner"}
        of_another = {"@id": "urn:c3", "participantId": "did:web:other.test", "dataset": [dataset("urn:x:theirs")]}
        linked = {"@id": "urn:c2", "@type": "Catalog", "service": [service]}
        return Reply.of(provider.catalog([], catalog=[inline, linked, of_another]))

    north.answer = nested
    await catalogue.admit(north, "north")
    assert (await catalogue.crawl("north"))["outcome"] == "complete"
    assert sorted(await catalogue.ids()) == ["urn:hanse:north:by-address", "urn:hanse:north:inline"]


async def test_an_unchanged_catalogue_costs_one_request_without_a_body(catalogue: Catalogue, north: Provider) -> None:
    def tagged(provider: Provider, request: Request) -> Reply:
        if request.headers.get("if-none-match") == '"v1"':
            return Reply(304)
        answer = providers.good(provider, request)
        answer.headers["etag"] = '"v1"'
        return answer

    north.answer, north.datasets = tagged, [dataset("urn:hanse:north:a"), dataset("urn:hanse:north:b")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    catalogue.clock.advance(400)
    run = await catalogue.crawl("north")
    assert (run["outcome"], run["bytes"], run["datasets"], run["missing"]) == ("unchanged", 0, 2, 0)
    assert {hit["age_seconds"] for hit in (await catalogue.search())["results"]} == {0}


async def test_a_changed_description_replaces_the_old_one(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset("urn:hanse:north:a", **{"dct:title": "Herring prices"})]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    north.datasets = [dataset("urn:hanse:north:a", **{"dct:title": "Salt tariffs"})]
    assert (await catalogue.crawl("north"))["changed"] == 1
    assert await catalogue.ids("herring") == []
    assert await catalogue.ids("tariffs") == ["urn:hanse:north:a"]


async def test_silence_never_deletes_but_shows(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset("urn:hanse:north:a")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    north.answer = lambda *_: Reply(503)
    states = []
    for pause in (0, 60, 60, DAY, 28 * DAY, 2 * DAY):
        catalogue.clock.advance(pause)
        assert (await catalogue.crawl("north"))["outcome"] == "failed"
        states += [hit["state"] for hit in (await catalogue.search())["results"]] or ["gone"]
    assert states == ["active", "active", "stale", "unreachable", "unreachable", "gone"]
    north.answer = providers.good
    await catalogue.crawl("north")
    assert [hit["state"] for hit in (await catalogue.search())["results"]] == ["active"]


async def test_a_dataset_that_three_whole_catalogues_leave_out_is_withdrawn(
    catalogue: Catalogue, north: Provider
) -> None:
    north.datasets = [dataset("urn:hanse:north:a"), dataset("urn:hanse:north:b")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    north.datasets = north.datasets[1:]
    seen = []
    for _ in range(ingest.MISSES_MAX):
        catalogue.clock.advance(300)
        await catalogue.crawl("north")
        seen.append({hit["id"][-1]: hit["state"] for hit in (await catalogue.search())["results"]})
    assert seen == [{"a": "stale", "b": "active"}, {"a": "stale", "b": "active"}, {"b": "active"}]
    gone = await catalogue.http.get("/api/v1/datasets/urn:hanse:north:a", headers=catalogue.operator)
    assert gone.status_code == 410
    assert "no longer lists it" in gone.json()["detail"]


async def test_a_visit_that_breaks_off_takes_what_it_got_and_misses_nothing(
    catalogue: Catalogue, north: Provider
) -> None:
    north.answer = partial(pages, 3)
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")

    def broken(provider: Provider, request: Request) -> Reply:
        return Reply(500) if "page=3" in request.path else pages(3, provider, request)

    north.answer = broken
    for _ in range(4):
        catalogue.clock.advance(300)
        run = await catalogue.crawl("north")
        assert (run["outcome"], run["datasets"], run["missing"]) == ("partial", 2, 0)
    assert len(await catalogue.ids()) == 3


async def test_what_visits_that_break_off_do_not_come_to_ages_and_leaves_the_search(
    catalogue: Catalogue, north: Provider
) -> None:
    north.answer = partial(pages, 3)
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    north.answer = lambda p, r: Reply(500) if "page=3" in r.path else pages(3, p, r)
    states = []
    for pause in (300, DAY, 29 * DAY):
        catalogue.clock.advance(pause)
        assert (await catalogue.crawl("north"))["outcome"] == "partial"
        states.append({hit["id"][-1]: hit["state"] for hit in (await catalogue.search())["results"]})
    whole = {"1": "active", "2": "active"}
    assert states == [{**whole, "3": "active"}, {**whole, "3": "stale"}, whole]
    gone = await catalogue.http.get("/api/v1/datasets/urn:hanse:north:d3", headers=catalogue.operator)
    assert gone.json()["reason"] == "no visit of its provider has listed it for 30 days"
    north.answer = partial(pages, 3)
    await catalogue.crawl("north")
    assert [hit["state"] for hit in (await catalogue.search())["results"]] == ["active"] * 3


@pytest.fixture
def ten(catalogue_settings: dict[str, Any]) -> None:
    catalogue_settings["crawl_entries_max"] = 10


@pytest.mark.usefixtures("ten")
@pytest.mark.parametrize("last_page", [False, True])
async def test_no_more_of_a_member_is_kept_than_it_may_list_whatever_its_visits_come_to(
    catalogue: Catalogue, north: Provider, last_page: bool
) -> None:
    """Eight new ids a visit, after which the next page fails or there is none."""
    visits = count()

    def other(provider: Provider, request: Request) -> Reply:
        if "page=" in request.path:
            return Reply(500)
        if request.method != "POST":
            return providers.good(provider, request)
        number = next(visits)
        link = "" if last_page else '</dsp/2025-1/catalog/request?page=2>; rel="next"'
        return Reply.of(provider.catalog([dataset(f"urn:hanse:north:{number}-{n}") for n in range(8)]), link=link)

    north.answer = other
    await catalogue.admit(north, "north")
    for number in range(5):
        catalogue.clock.advance(300)
        await catalogue.crawl("north")
        found = await catalogue.ids()
        assert len(found) == min(10, 8 * number + 8)
        assert {f"urn:hanse:north:{number}-{n}" for n in range(8)} <= set(found)
    rows = await catalogue.parts.store.read(lambda tx: list(tx.session.query(EntryRow)))
    dead = [row for row in rows if row.withdrawn_at is not None]
    assert len(dead) == 10
    assert {(row.raw, json.dumps(row.content)) for row in dead} == {
        ("", json.dumps({"participant": north.did, "audience": ["public"]}))
    }
    gone = await catalogue.http.get(f"/api/v1/datasets/{dead[0].id}")
    assert (gone.status_code, gone.json()["reason"]) == (
        410, "its provider lists others, and at most 10 of its datasets are kept",
    )  # fmt: skip


async def test_a_listed_dataset_that_becomes_unfit_is_stale_and_goes_in_the_end_with_the_true_reason(
    catalogue: Catalogue, north: Provider
) -> None:
    north.datasets = [dataset("urn:hanse:north:a"), dataset("urn:hanse:north:b")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    north.datasets[0] = {"@id": "urn:hanse:north:a", "@type": "Dataset"}
    for _ in range(ingest.MISSES_MAX + 1):
        catalogue.clock.advance(300)
        run = await catalogue.crawl("north")
        assert (run["missing"], run["skipped_datasets"][0]["dataset"]) == (0, "urn:hanse:north:a")
    states = {hit["id"][-1]: hit["state"] for hit in (await catalogue.search())["results"]}
    assert states == {"a": "stale", "b": "active"}
    catalogue.clock.advance(30 * DAY)
    await catalogue.crawl("north")
    gone = await catalogue.http.get("/api/v1/datasets/urn:hanse:north:a", headers=catalogue.operator)
    assert gone.json()["reason"].startswith("its provider lists it in a form that is not taken: expected a dataset")


async def test_attempts_and_pauses_outlive_a_restart(catalogue: Catalogue, north: Provider) -> None:
    north.answer = lambda *_: Reply(503)
    await catalogue.admit(north, "north")
    for expected in (60, 120, 240):
        await catalogue.crawl("north")
        source = await catalogue.parts.store.read(partial(source_of, member=north.did))
        assert 0.9 * expected <= source.next_at - catalogue.clock() <= 1.1 * expected
    assert source.failures == 3
    assert not await catalogue.parts.store.read(lambda tx: list(tx.members.list_due(catalogue.clock(), limit=9)))


@pytest.mark.parametrize("seconds", [2, 7_200, 365 * DAY])
async def test_a_clock_that_is_set_back_during_a_visit_makes_nothing_missing(
    catalogue: Catalogue, north: Provider, seconds: float
) -> None:
    """What it came to at once was last seen before the visit began: what was listed, all of it, was stale."""
    north.datasets = [dataset("urn:hanse:north:a"), dataset("urn:hanse:north:b")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")

    def setting(provider: Provider, request: Request) -> Reply:
        catalogue.clock.advance(-seconds if request.path.endswith("/catalog/request") else 0)
        return providers.good(provider, request)

    catalogue.clock.advance(600)
    north.answer = setting
    assert (await catalogue.crawl("north"))["missing"] == 0
    north.answer, north.datasets = providers.good, north.datasets[:1]
    for _ in range(3):
        catalogue.clock.advance(300)
        await catalogue.crawl("north")
    assert await catalogue.ids() == ["urn:hanse:north:a"]


@pytest.mark.parametrize("breaks", [False, True])
async def test_a_clock_that_is_set_right_during_a_visit_ends_nothing_that_it_lists(
    catalogue: Catalogue, north: Provider, breaks: bool
) -> None:
    """As where a machine without a battery starts: what came before that was withdrawn as of years ago, and the next
    visit was due years later, as this one had taken so long."""

    def setting(provider: Provider, request: Request) -> Reply:
        if "page=2" in request.path:
            catalogue.clock.advance(3_650 * DAY)
            return Reply(500) if breaks else pages(2, provider, request)
        return pages(2, provider, request)

    north.answer = setting
    await catalogue.admit(north, "north")
    run = await catalogue.crawl("north")
    assert (run["withdrawn"], run["missing"]) == (0, 0)
    assert {hit["state"] for hit in (await catalogue.search())["results"]} == {"active"}
    source = await catalogue.parts.store.read(lambda tx: tx.members.get_source(north.did))
    assert source is not None
    assert source.next_at - catalogue.clock.now < DAY


async def test_what_a_clock_that_was_set_back_saw_last_ages_where_visits_break_off_too(
    catalogue: Catalogue, north: Provider
) -> None:
    """It counted as seen until that clock's time came."""
    north.answer = partial(pages, 2)
    await catalogue.admit(north, "north")
    catalogue.clock.advance(365 * DAY)
    await catalogue.crawl("north")
    catalogue.clock.advance(-365 * DAY)

    def breaking(provider: Provider, request: Request) -> Reply:
        return Reply(500) if "page=2" in request.path else pages(2, provider, request)

    north.answer = breaking
    withdrawn = []
    for _ in range(33):
        withdrawn.append((await catalogue.crawl("north"))["withdrawn"])
        catalogue.clock.advance(DAY)
    assert (withdrawn[0], sum(withdrawn)) == (0, 1)
    assert await catalogue.ids() == ["urn:hanse:north:d1"]


async def test_a_clock_that_was_set_back_keeps_nobody_from_being_visited_or_from_ageing(
    catalogue: Catalogue, north: Provider
) -> None:
    """It may have been a year ahead for one visit, as that of a machine without a battery is until it is set."""
    north.datasets = [dataset("urn:hanse:north:kept"), dataset("urn:hanse:north:gone")]
    await catalogue.admit(north, "north")
    catalogue.clock.advance(365 * DAY)
    await catalogue.crawl("north")
    ahead = await catalogue.parts.register.current()
    catalogue.clock.advance(-365 * DAY)

    async def due() -> list[str]:
        rows = await catalogue.parts.store.read(lambda tx: list(tx.members.list_due(tx.now, limit=9)))
        return [row.member_id for row in rows]

    assert await due() == [north.did]
    north.datasets = north.datasets[:1]
    for _ in range(3):
        await catalogue.crawl("north")
    assert await due() == []
    assert await catalogue.ids() == ["urn:hanse:north:kept"]
    assert (await catalogue.parts.register.current()).signed_at < ahead.signed_at
    catalogue.clock.advance(365 * DAY)
    await catalogue.crawl("north")
    catalogue.clock.advance(-365 * DAY)
    north.answer = lambda *_: Reply(status=503)
    await catalogue.crawl("north")
    catalogue.clock.advance(2 * DAY)
    await catalogue.crawl("north")
    assert (await catalogue.search())["results"][0]["state"] == "unreachable"


async def test_whoever_asks_for_a_visit_sees_what_has_changed_by_then(catalogue: Catalogue, north: Provider) -> None:
    """A visit under way may have passed the change already, so another one follows it."""
    entered, released = asyncio.Event(), asyncio.Event()

    async def slow(provider: Provider, request: Request) -> Reply:
        answer = providers.good(provider, request)
        if request.method == "POST" and not released.is_set():
            entered.set()
            await released.wait()
        return answer

    north.answer = slow
    await catalogue.admit(north, "north")
    first = catalogue.parts.crawler.start(north.did, why="schedule")
    await asyncio.wait_for(entered.wait(), 60)
    north.datasets = [dataset("urn:hanse:north:new")]
    assert catalogue.parts.crawler.start(north.did, why="schedule") is first
    asked = [catalogue.parts.crawler.start(north.did, why="operator") for _ in range(3)]
    assert len(set(asked)) == 1
    released.set()
    assert (await first).counts["datasets"] == 0
    assert (await asked[0]).counts["datasets"] == 1


async def test_one_page_is_in_memory_as_objects_however_many_visits_there_are(
    catalogue: Catalogue, north: Provider, south: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    crawler, parsed, alive, peak = catalogue.parts.crawler, visits._parse_json, 0, 0
    take = crawler._store_page

    async def counted(body: bytes) -> Any:
        nonlocal alive, peak
        alive += 1
        peak = max(alive, peak)
        return await parsed(body)

    async def taken(basis: Any, datasets: list[object], tally: Any) -> None:
        nonlocal alive
        await take(basis, datasets, tally)
        alive -= 1

    monkeypatch.setattr(visits, "_parse_json", counted)
    monkeypatch.setattr(crawler, "_store_page", taken)
    for member, name in ((north, "north"), (south, "south")):
        member.answer = partial(pages, 5)
        await catalogue.admit(member, name)
    runs = await asyncio.gather(*(crawler.start(member.did, why="schedule") for member in (north, south)))
    assert [run.counts["pages"] for run in runs] == [5, 5]
    assert peak == 1


@pytest.mark.parametrize("tag", ['"\u00fc"', f'"{"1" * 2_000}"'])
async def test_a_tag_that_cannot_be_sent_back_is_as_none(catalogue: Catalogue, north: Provider, tag: str) -> None:
    north.answer = lambda p, r: Reply.of(json.loads(providers.good(p, r).body), etag=tag)
    await catalogue.admit(north, "north")
    for _ in range(2):
        run = await catalogue.crawl("north")
        assert (run["outcome"], run["problem"]) == ("complete", "")
    assert "if-none-match" not in north.requests[-1].headers


@pytest.fixture
def one_place(catalogue_settings: dict[str, Any]) -> None:
    catalogue_settings["crawl_concurrency"] = 1


@pytest.mark.usefixtures("one_place")
async def test_who_asks_waits_neither_for_slow_visits_on_schedule_nor_for_those_of_members(
    catalogue: Catalogue, north: Provider, south: Provider
) -> None:
    released = asyncio.Event()

    async def slow(provider: Provider, request: Request) -> Reply:
        await released.wait()
        return providers.good(provider, request)

    start = catalogue.parts.crawler.start
    async with providers.running() as west:
        south.answer = west.answer = slow
        for member, name in ((north, "north"), (south, "south"), (west, "west")):
            await catalogue.admit(member, name)
        held = [start(south.did, why="schedule"), start(west.did, why="member")]
        await until(lambda: len(south.requests) > 1 < len(west.requests))
        waiting = start(north.did, why="schedule")
        await asyncio.sleep(0)
        assert start(north.did, why="member") is waiting
        assert start(north.did, why="operator") is waiting
        assert (await asyncio.wait_for(waiting, 60)).why == "operator"
        again = start(north.did, why="operator")
        assert (await asyncio.wait_for(again, 60)).outcome == "complete"
        late = start(north.did, why="schedule")
        await asyncio.sleep(0)
        late.cancel()
        released.set()
        assert [run.why for run in await asyncio.gather(*held)] == ["schedule", "member"]
        assert (await start(north.did, why="schedule")).why == "schedule"


async def test_who_takes_long_is_not_soon_visited_again(catalogue: Catalogue, north: Provider) -> None:
    def slow(provider: Provider, request: Request) -> Reply:
        catalogue.clock.advance(300)
        return providers.good(provider, request)

    north.answer = slow  # a version document and a page
    await catalogue.admit(north, "north")
    assert (await catalogue.crawl("north"))["seconds"] == 600
    source = await catalogue.parts.store.read(partial(source_of, member=north.did))
    assert 0.9 * 3_000 <= source.next_at - catalogue.clock() <= 1.1 * 3_000


async def test_the_schedule_visits_members_who_are_due(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset("urn:hanse:north:a")]
    await catalogue.admit(north, "north")
    running = asyncio.create_task(catalogue.parts.crawler.run())
    try:
        await until(lambda: len(north.requests) > 2)
        async with asyncio.timeout(60):
            while not await catalogue.ids():
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
    assert await catalogue.ids() == ["urn:hanse:north:a"]


async def test_a_member_may_ask_for_its_own_connector_only(
    catalogue: Catalogue, north: Provider, south: Provider
) -> None:
    operator = catalogue.parts.settings.did
    await catalogue.admit(north, "north")
    await catalogue.admit(south, "south")
    own = await catalogue.http.post("/api/v1/crawl", headers={"authorization": north.token(operator)})
    assert [run["member"] for run in own.json()["runs"]] == ["north"]
    other = await catalogue.http.post("/api/v1/crawl?member=south", headers={"authorization": north.token(operator)})
    assert (other.status_code, other.json()["code"]) == (403, "forbidden")
    nobody = await catalogue.http.post("/api/v1/crawl")
    assert nobody.status_code == 401


async def test_a_member_withdraws_its_own_datasets_at_once_and_nobody_elses(
    catalogue: Catalogue, north: Provider, south: Provider
) -> None:
    north.datasets, south.datasets = [dataset("urn:hanse:north:a")], [dataset("urn:hanse:south:b")]
    for member, name in ((north, "north"), (south, "south")):
        await catalogue.admit(member, name)
        await catalogue.crawl(name)
    north.datasets = []
    body = {"withdrawn": ["urn:hanse:north:a", "urn:hanse:south:b"]}
    header = {"authorization": north.token(catalogue.parts.settings.did)}
    assert (await catalogue.http.post("/api/v1/crawl", json=body, headers=header)).status_code == 200
    assert await catalogue.ids() == ["urn:hanse:south:b"]
    refused = await catalogue.http.post("/api/v1/crawl", json=body, headers=catalogue.operator)
    assert refused.status_code == 403


async def test_what_was_withdrawn_and_is_listed_still_comes_back(catalogue: Catalogue, north: Provider) -> None:
    def tagged(provider: Provider, request: Request) -> Reply:
        known = request.headers.get("if-none-match") == '"v1"'
        return Reply(304) if known else Reply.of(json.loads(providers.good(provider, request).body), etag='"v1"')

    north.answer, north.datasets = tagged, [dataset("urn:hanse:north:a")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    header = {"authorization": north.token(catalogue.parts.settings.did)}
    body = {"withdrawn": ["urn:hanse:north:a"]}
    answer = await catalogue.http.post("/api/v1/crawl", json=body, headers=header)
    assert answer.json()["runs"][0]["outcome"] == "complete"
    assert await catalogue.ids() == ["urn:hanse:north:a"]


class Held:
    """Answers as a well-behaved connector does, in two pages, with one ETag for ever; it keeps back the page `number`
    until it is let go."""

    def __init__(self, number: int = 1) -> None:
        self.number, self.ready, self.go_on = number, asyncio.Event(), asyncio.Event()

    async def __call__(self, provider: Provider, request: Request) -> Reply:
        if request.method != "POST":
            return providers.good(provider, request)
        first = "page=2" not in request.path
        some = provider.datasets[:1] if first else provider.datasets[1:]
        link = {"link": '</dsp/2025-1/catalog/request?page=2>; rel="next"'} if first else {}
        answer = Reply.of(provider.catalog(some), etag='"1"', **link)
        if request.headers.get("if-none-match") == '"1"':
            answer = Reply(304)
        if first == (self.number == 1):
            self.ready.set()
            await self.go_on.wait()
        return answer


@pytest.mark.parametrize("held_page", [1, 2])
async def test_what_is_withdrawn_while_it_is_read_stays_withdrawn(
    catalogue: Catalogue, north: Provider, held_page: int
) -> None:
    """Whether its own page is read before that or after."""
    north.datasets = [dataset("urn:hanse:north:a"), dataset("urn:hanse:north:b")]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    held = north.answer = Held(held_page)
    visit = catalogue.parts.crawler.start(north.did, why="schedule")
    await asyncio.wait_for(held.ready.wait(), 60)
    await catalogue.parts.store.write(lambda tx: ingest.withdraw(tx, north.did, ["urn:hanse:north:a"]))
    held.go_on.set()
    assert (await visit).outcome == "complete"
    assert await catalogue.ids() == ["urn:hanse:north:b"]
    gone = await catalogue.http.get("/api/v1/datasets/urn:hanse:north:a")
    assert (gone.status_code, gone.json()["reason"]) == (410, "its provider withdrew it")
    await catalogue.crawl("north")  # it lists it still
    assert sorted(await catalogue.ids()) == ["urn:hanse:north:a", "urn:hanse:north:b"]


async def test_what_was_withdrawn_before_a_visit_comes_back_though_its_member_changes_meanwhile(
    catalogue: Catalogue, north: Provider
) -> None:
    await catalogue.admit(north, "north")
    north.datasets = [dataset("urn:hanse:north:a"), dataset("urn:hanse:north:b")]
    await catalogue.crawl("north")
    await catalogue.parts.store.write(lambda tx: ingest.withdraw(tx, north.did, ["urn:hanse:north:b"]))
    held = north.answer = Held()
    visit = catalogue.parts.crawler.start(north.did, why="schedule")
    await asyncio.wait_for(held.ready.wait(), 60)
    await catalogue.parts.members.change("north", changes={"title": "North, renamed"})
    held.go_on.set()
    assert ((await visit).outcome, (await visit).skipped) == ("complete", [])
    assert sorted(await catalogue.ids()) == ["urn:hanse:north:a", "urn:hanse:north:b"]


async def test_a_member_that_joins_while_another_is_read_has_its_namespace_to_itself(
    catalogue: Catalogue, north: Provider, south: Provider
) -> None:
    north.datasets = [dataset(f"{south.url}/a")]
    held = north.answer = Held()
    await catalogue.admit(north, "north")
    visit = catalogue.parts.crawler.start(north.did, why="schedule")
    await asyncio.wait_for(held.ready.wait(), 60)
    await catalogue.admit(south, "south")
    held.go_on.set()
    assert (await visit).outcome == "complete"
    for _ in range(ingest.MISSES_MAX):
        catalogue.clock.advance(300)
        assert (await catalogue.crawl("north"))["skipped"] == 1
    assert await catalogue.ids() == []


@pytest.mark.parametrize("known", [False, True], ids=["a-page", "unchanged"])
async def test_a_visit_of_an_address_that_is_the_members_no_longer_stores_nothing_more(
    catalogue: Catalogue, north: Provider, south: Provider, known: bool
) -> None:
    """The new address has the same ETag, as the same files behind another server have."""
    north.datasets = [dataset("urn:hanse:north:old")]
    held = north.answer = Held()
    await catalogue.admit(north, "north")
    if known:
        held.go_on.set()
        await catalogue.crawl("north")
        held.ready.clear()
        held.go_on.clear()
    visit = catalogue.parts.crawler.start(north.did, why="schedule")
    await asyncio.wait_for(held.ready.wait(), 60)
    south.participant, south.answer = north.did, Held()
    south.answer.go_on.set()
    south.datasets = [dataset("urn:hanse:north:new")]
    catalogue.clock.advance(1)
    await catalogue.parts.members.change("north", changes={"url": south.url})
    held.go_on.set()
    run = await visit
    assert run.outcome == "unchanged" if known else "has moved" in run.problem
    source = await catalogue.parts.store.read(partial(source_of, member=north.did))
    assert (source.etag, source.next_at) == ("", catalogue.clock())
    assert (await catalogue.crawl("north"))["new"] == 1
    assert "urn:hanse:north:new" in await catalogue.ids()


MEMBERS = [
    ("did:web:north.test", "north", "https://north.test"),
    ("did:web:hub.test", "hub", "https://hub.test/dsp"),
    ("did:web:hub.test:south", "south", "https://hub.test/dsp/south"),
    ("did:web:hub.test%3A8443", "lab", "http://hub.test:8080"),
    ("did:web:xn--bcher-kva.test:b", "bee", "https://dsp.test/"),
]


@pytest.mark.parametrize(
    ("dataset_id", "owner"),
    [
        ("https://north.test/a", "north"), ("HTTPS://x@North.test.:443/a", "north"), ("http://north.test/a", "north"),
        ("https://north.test", "north"), ("https://north.test?a", "north"), ("https://%6eorth.test/a", "north"),
        ("https://north.test:8443/a", None), ("https://north.tests/a", None), ("https://a.north.test/a", None),
        ("https://hub.test/dsp/south/a", "south"), ("https://hub.test/dsp/southern", "hub"),
        ("https://hub.test/a", "hub"), ("http://hub.test:8080/a", "lab"), ("https://hub.test:8443/a", "lab"),
        ("https://hub.test/south/a", "south"), ("https://dsp.test/a", "bee"), ("https://b\u00fccher.test/b/a", "bee"),
        ("https://hub.test/./dsp//south/a", "south"), ("https://hub.test/x/../dsp/south/../a", "hub"),
        ("did:web:b\u00fccher.test:b:a", "bee"), ("urn:hanse%3anorth:a", "north"), ("https://hub.test/../..", "hub"),
        ("https:\\\\north.test\\a", "north"), ("https://hub.test/dsp\\south/a", "south"),
        ("did:web:north.test:a", "north"), ("DID:web:NORTH.test#a", "north"), ("did:web:hub.test:south:a", "south"),
        ("urn:han\u017fe:north:a", "north"), ("urn\uff1ahanse\uff1anorth:a", "north"), ("urn:hanse:%4eorth:a", "north"),
        ("did:web:north.test%3A443:a", "north"), ("did:web:north.test.:a", "north"),
        ("did:web:north.test%3A80:a", None), ("did:web:north.test%3A:a", "north"),
        ("did:web:north.test%3A00443:a", "north"),
        ("did:web:hub.test:a", "hub"), ("did:web:hub.test%3a8443:a", "lab"), ("did:web:hub.test%3A9", None),
        ("urn:hanse:north:a", "north"), ("URN:Hanse:NORTH:a", "north"), ("urn:hanse:northern:a", "nobody"),
        ("urn:uuid:1", None), ("https://north.test:port/a", None), ("http://[", None), ("a", None),
    ],
)  # fmt: skip
def test_an_id_lies_in_the_innermost_namespace_however_it_is_spelled(dataset_id: str, owner: str | None) -> None:
    names = {did: name for did, name, _ in MEMBERS}
    found = Namespaces(MEMBERS).owners(dataset_id)
    assert (None if found is None else [names[one] for one in found] or ["nobody"]) == (owner and [owner])


async def test_an_id_in_a_members_namespace_is_its_own_whoever_listed_it_before(
    catalogue: Catalogue, north: Provider, south: Provider
) -> None:
    ids = [f"{south.url}/datasets/a", f"{south.did}:a", "urn:shared:a", "URN:hanse:South:a"]
    south.datasets = [dataset(one) for one in ids]
    north.datasets = south.datasets[:3]  # the fourth is refused while nobody has that name
    north.answer = lambda provider, request: Reply.of(json.loads(providers.good(provider, request).body), etag='"1"')
    await catalogue.admit(north, "north")
    assert (await catalogue.crawl("north"))["datasets"] == 3
    await catalogue.admit(south, "south")
    assert (await catalogue.parts.store.read(partial(source_of, member=north.did))).etag == ""
    assert (await catalogue.crawl("south"))["datasets"] == 3
    assert (await catalogue.crawl("north"))["skipped"] == 2
    owners = {hit["id"]: hit["participant"] for hit in (await catalogue.search())["results"]}
    assert owners == dict(zip(ids, ["south", "south", "north", "south"], strict=True))


@pytest.mark.parametrize(
    ("dataset_id", "problem"),
    [
        ("http://catalogue.test/mine-now", "or of the operator"),
        ("did:web:catalogue.test:mine-now", "or of the operator"),
        ("urn:hanse:catalogue:mine-now", "or of the operator"),
        ("urn:hanse:south:mine-now", "namespace of another member"),
        ("urn:shared:one", "another member listed this id first"),
    ],
)
async def test_an_id_of_somebody_else_is_skipped_and_named(
    catalogue: Catalogue, north: Provider, south: Provider, dataset_id: str, problem: str
) -> None:
    south.datasets = [dataset("urn:shared:one", **{"dct:title": "The first"})]
    north.datasets = [dataset(dataset_id, **{"dct:title": "The thief"}), dataset("urn:hanse:north:good")]
    await catalogue.admit(south, "south")
    await catalogue.crawl("south")
    await catalogue.admit(north, "north")
    run = await catalogue.crawl("north")
    assert (run["outcome"], run["datasets"], run["skipped"]) == ("complete", 1, 1)
    assert problem in run["skipped_datasets"][0]["problem"]
    assert await catalogue.ids("thief") == []
    assert await catalogue.ids("first") == ["urn:shared:one"]
