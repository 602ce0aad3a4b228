"""Connectors that lie, flood, stall and point elsewhere: every limit of a visit, over real HTTP.

Each case says how the visit ends, what the operator reads, and how many datasets were taken.
"""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from catalogue.crawl import ingest, visit
from tests.catalogue import provider as providers
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import Answer, Provider, Reply, Request, dataset
from tests.support.clocks import hands

CATALOG = "/dsp/2025-1/catalog/request"


def instead(answer: Callable[[Provider, Request], Reply]) -> Answer:
    """`answer` for the catalogue, good manners for the rest."""

    def combined(provider: Provider, request: Request) -> Reply:
        return answer(provider, request) if request.path.startswith(CATALOG) else providers.good(provider, request)

    return combined


def page_of(provider: Provider, request: Request, number: int) -> Reply:
    """One page of a catalogue without an end."""
    return Reply.of(
        provider.catalog([dataset(f"urn:hanse:north:d{number}")]), link=f'<{CATALOG}?page={number + 1}>; rel="next"'
    )


def endless(provider: Provider, request: Request) -> Reply:
    return page_of(provider, request, int(request.path.partition("page=")[2] or 1))


def circle(provider: Provider, request: Request) -> Reply:
    return Reply.of(provider.catalog([dataset("urn:hanse:north:a")]), link=f'<{CATALOG}>; rel="next"')


def elsewhere(provider: Provider, _: Request) -> Reply:
    return Reply.of(provider.catalog([dataset("urn:hanse:north:a")]), link='<http://10.0.0.1/c>; rel="next"')


def bomb(provider: Provider, _: Request) -> Reply:
    padding = {"x": "a" * 2_000_000}
    return Reply(200, {"content-encoding": "gzip"}, gzip.compress(json.dumps(provider.catalog([], **padding)).encode()))


def modest_gzip(provider: Provider, _: Request) -> Reply:
    body = json.dumps(provider.catalog([dataset("urn:hanse:north:a")])).encode()
    return Reply(200, {"content-encoding": "gzip"}, gzip.compress(body))


def large(provider: Provider, _: Request) -> Reply:
    return Reply.of(provider.catalog([], padding="a" * 200_000))


def deep(_: Provider, __: Request) -> Reply:
    return Reply(200, {}, b'{"a":' * 20_000 + b"1" + b"}" * 20_000)


def trickle(provider: Provider, _: Request) -> Reply:
    return Reply(200, {}, json.dumps(provider.catalog()).encode(), trickle=0.05)


def nested(levels: int) -> Answer:
    def answer(provider: Provider, _: Request) -> Reply:
        inner: dict[str, Any] = {"@id": "urn:c", "@type": "Catalog", "dataset": [dataset("urn:hanse:north:deep")]}
        for _level in range(levels - 1):
            inner = {"@id": "urn:c", "@type": "Catalog", "catalog": [inner]}
        return Reply.of(provider.catalog([dataset("urn:hanse:north:a")], catalog=[inner]))

    return instead(answer)


def pointing(*addresses: str) -> Answer:
    """Catalogues within the catalogue, at these addresses ({url}: our own)."""

    def answer(provider: Provider, request: Request) -> Reply:
        if request.path.startswith("/.well-known"):
            return providers.good(provider, request)
        services = [{"@type": "DataService", "endpointURL": one.format(url=provider.url)} for one in addresses]
        inner = {"@id": "urn:c", "@type": "Catalog", "service": services}
        return Reply.of(provider.catalog([dataset("urn:hanse:north:a")], catalog=[inner]))

    return answer


def crowded(provider: Provider, request: Request) -> Reply:
    """Two pages, each with a dataset and two thousand catalogues within the catalogue, which are empty."""
    if not request.path.startswith(CATALOG):
        is_inner = request.method == "POST"
        return Reply.of(provider.catalog([])) if is_inner else providers.good(provider, request)
    page = int(request.path.partition("page=")[2] or 1)
    inner = [{"service": [{"endpointURL": f"{provider.url}/{page}/{number}"}]} for number in range(2_000)]
    made = provider.catalog([dataset(f"urn:hanse:north:d{page}")], catalog=inner)
    return Reply.of(made, **({"link": f'<{CATALOG}?page=2>; rel="next"'} if page == 1 else {}))


def status(code: int, **headers: str) -> Answer:
    return instead(lambda *_: Reply(code, headers))


def body(text: bytes) -> Answer:
    return instead(lambda *_: Reply(200, {}, text))


def listing(*datasets: object) -> Answer:
    return instead(lambda provider, _: Reply.of(provider.catalog(list(datasets))))  # type: ignore[arg-type]  # unfit


def impostor(participant: object) -> Answer:
    found = [dataset("urn:hanse:north:a")]
    return instead(lambda provider, _: Reply.of({**provider.catalog(found), "participantId": participant}))


def versions(document: object, code: int = 200) -> Answer:
    return lambda *_: Reply.of(document, status=code)


@dataclass(frozen=True)
class Case:
    """How a visit to a hostile connector goes."""

    name: str
    answer: Answer
    outcome: str
    says: str
    datasets: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


GOOD = dataset("urn:hanse:north:good")
HUGE = dataset("urn:hanse:north:huge", **{"dct:description": "a" * 5_000})
FOREIGN = "not at the member's own server"
CASES = (
    Case("pages without an end", instead(endless), "partial", "more than 5 pages", 5, {"crawl_pages_max": 5}),
    Case("pages in a circle", instead(circle), "partial", "lead in a circle", 1),
    Case("a next page at another server", instead(elsewhere), "partial", "another server", 1),
    Case("a gzip bomb", instead(bomb), "failed", "when inflated", 0, {"crawl_page_bytes": 100_000}),
    Case("gzip that was not asked for", instead(modest_gzip), "complete", "", 1),
    Case("something that says it is gzip", status(200, **{"content-encoding": "gzip"}), "failed", "gzip, and is"),
    Case("an unknown compression", status(200, **{"content-encoding": "br"}), "failed", "without compression"),
    Case("a page over the limit", instead(large), "failed", "at most 100000 bytes", 0, {"crawl_page_bytes": 100_000}),
    Case("bytes that trickle", instead(trickle), "failed", "a whole response", 0, {"call_timeout": 0.3}),
    Case("JSON nested twenty thousand deep", instead(deep), "failed", "expected JSON"),
    Case("no JSON", body(b"<html>welcome</html>"), "failed", "expected JSON"),
    Case("a number of five thousand digits", body(b'{"a":' + b"9" * 5_000 + b"}"), "failed", "expected JSON"),
    Case("a list instead of a catalogue", body(b"[]"), "failed", "JSON object"),
    Case("another participant's catalogue", impostor("did:web:victim.test"), "failed", "nothing of it was taken"),
    Case("a catalogue of nobody", impostor(None), "failed", "nothing of it was taken"),
    Case("catalogues three deep", nested(3), "complete", "", 2),
    Case("catalogues four deep", nested(4), "partial", "more than 3 deep", 1),
    Case("a catalogue that holds itself", pointing("{url}/dsp/2025-1"), "complete", "", 1),
    Case("two catalogues that hold each other", pointing("{url}/a", "{url}/b"), "complete", "", 1),
    Case("a catalogue in the cloud's metadata service", pointing("http://169.254.169.254"), "partial", FOREIGN, 1),
    Case("a catalogue in our own network", pointing("http://10.0.0.1:22"), "partial", FOREIGN, 1),
    Case("a catalogue where the operator lets us call", pointing("http://127.0.0.1:9"), "partial", FOREIGN, 1),
    Case("a catalogue at a server that is none", pointing("http://[::1", "{url}\u00e9"), "partial", FOREIGN, 1),
    Case("a catalogue in a file", pointing("file:///etc/passwd"), "partial", FOREIGN, 1),
    Case("four thousand catalogues", crowded, "partial", "more than 3 catalogues", 2, {"crawl_inner_max": 3}),
    Case("a catalogue at a long address", pointing("{url}/" + "a" * 2_000), "partial", FOREIGN, 1),
    Case("a redirect to somewhere else", status(302, location="http://10.0.0.1/"), "failed", "answered 302"),
    Case("nobody lets us in", status(401), "failed", "HANSE_TRUST_ANCHOR"),
    Case("an outage", status(500), "failed", "tried again later"),
    Case(
        "another version of the protocol", versions({"protocolVersions": [{"version": "2024-1"}]}), "failed", "2025-1"
    ),
    Case("no version document", versions({}, 404), "failed", "expected Dataspace Protocol"),
    Case("a description over the limit", listing(HUGE, GOOD), "complete", "", 1, {"crawl_entry_bytes": 4_000}),
    Case("datasets that are none", listing(7, None, [], {"@id": ""}, {"@id": "urn:x"}, GOOD), "complete", "", 1),
    Case(
        "more datasets than a member may list",
        listing(*(dataset(f"urn:hanse:north:{n}") for n in range(9))),
        "failed",
        "more than 8 datasets",
        0,
        {"crawl_entries_max": 8},
    ),
    Case("one id many times", listing(*[GOOD] * 50), "complete", "", 1),
)


@pytest.fixture
def case(request: pytest.FixtureRequest, catalogue_settings: dict[str, Any]) -> Case:
    found: Case = request.param
    catalogue_settings |= found.settings
    return found


@pytest.mark.parametrize("case", CASES, indirect=True, ids=lambda case: case.name)
async def test_a_hostile_connector_harms_only_itself(case: Case, catalogue: Catalogue, north: Provider) -> None:
    north.answer = case.answer
    await catalogue.admit(north, "north")
    run = await catalogue.crawl("north")
    assert run["outcome"] == case.outcome, run
    assert case.says in run["problem"]
    assert len(await catalogue.ids()) == case.datasets
    assert len(north.requests) <= 12


async def test_a_page_is_walked_beside_the_event_loop_and_few_of_its_addresses_are_looked_at(
    catalogue: Catalogue, north: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    compare = visit._same_origin

    def noted(address: str, home: str) -> bool:
        if "page=" not in address:
            looked.append(threading.get_ident())
        return compare(address, home)

    monkeypatch.setattr(visit, "_same_origin", noted)
    north.answer = crowded
    await catalogue.admit(north, "north")
    assert (await catalogue.crawl("north"))["pages"] == 502
    assert len(looked) == 500
    assert threading.get_ident() not in looked


@pytest.fixture
def hurry(catalogue_settings: dict[str, Any]) -> None:
    catalogue_settings |= {"crawl_wall_seconds": 300.0, "call_timeout": 600.0}


@pytest.mark.usefixtures("hurry")
async def test_a_visit_ends_when_its_time_is_over(catalogue: Catalogue, north: Provider) -> None:
    async def at_length(provider: Provider, request: Request) -> Reply:
        if "page=4" in request.path:
            await clock.go_on(301.0)
        return endless(provider, request) if request.path.startswith(CATALOG) else providers.good(provider, request)

    north.answer = at_length
    await catalogue.admit(north, "north")
    with hands() as clock:
        run = await catalogue.crawl("north")
    assert (run["outcome"], run["problem"]) == ("partial", "the visit took longer than 300 s")
    assert run["datasets"] == 3


async def test_text_that_hides_or_reorders_itself_is_cleaned(catalogue: Catalogue, north: Provider) -> None:
    title = "Safe\u202e\u2066 data\u200b set\x00\x1b[31m"
    north.datasets = [dataset("urn:hanse:north:a", **{"dct:title": title, "dcat:keyword": ["k\u200dey"] * 80})]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    hit = (await catalogue.search())["results"][0]
    assert (hit["title"], hit["keywords"]) == ("Safe data set[31m", ["key"])


async def test_what_no_database_can_hold_is_left_out_and_named_and_the_others_are_not(
    catalogue: Catalogue, north: Provider
) -> None:
    half = "cut \ud83d"
    offer = {"@id": half, "@type": "Offer", "permission": [{"action": "use"}]}
    unfit: list[dict[str, Any]] = [{"dct:description": half}, {half: 1}, {"hasPolicy": [offer]}, {"x": float("nan")}]
    made = [dataset(f"urn:hanse:north:{number}", **about) for number, about in enumerate(unfit)]
    north.datasets = [*made, dataset(f"urn:hanse:north:{half}"), GOOD]
    await catalogue.admit(north, "north")
    run = await catalogue.crawl("north")
    assert (run["outcome"], run["datasets"], run["skipped"]) == ("complete", 1, 5)
    names = [one["dataset"].removeprefix("urn:hanse:north:") for one in run["skipped_datasets"]]
    assert names == ["0", "1", "2", "3", "cut"]
    assert [one["problem"].partition(", came ")[2][:4] for one in run["skipped_datasets"][:4]] == ["half"] * 3 + [
        "NaN "
    ]
    kept = await catalogue.http.get("/api/v1/members/north", headers=catalogue.operator)
    assert kept.json()["runs"][0]["skipped_datasets"] == run["skipped_datasets"]


async def test_an_error_of_ours_ends_the_visit_and_the_next_one_waits(
    catalogue: Catalogue, north: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(ingest, "sift", broken)
    await catalogue.admit(north, "north")
    run = await catalogue.crawl("north")
    assert (run["outcome"], run["problem"][:18]) == ("failed", "the visit ended wi")
    assert not await catalogue.parts.store.read(lambda tx: list(tx.members.list_due(catalogue.clock() + 50, limit=9)))


async def test_a_hostile_offer_is_shown_as_unreadable_and_to_members_only(
    catalogue: Catalogue, north: Provider
) -> None:
    deep: dict[str, Any] = {"leftOperand": "odrl:purpose", "operator": "eq", "rightOperand": "x"}
    for _ in range(200):
        deep = {"and": [deep]}
    unknown = {"permission": [{"action": "use", "constraint": [
        {"leftOperand": "https://evil.test/term", "operator": "eq", "rightOperand": "x"}]}]}  # fmt: skip
    policies = {"deep": {"permission": [{"action": "use", "constraint": [deep]}]}, "none": {"permission": 7},
                "unknown": unknown, "large": {"permission": [{"action": "use" * 30_000}]}} | {
                name: {"permission": [{"action": "use", "constraint": [
                    {"leftOperand": "odrl:purpose", "operator": "eq", "rightOperand": f"a{mark}b"}]}]}
                for name, mark in (("control", "\x01"), ("terminal", "\x1b[31m"), ("nobody", "\ufffe"))}  # fmt: skip
    north.datasets = [dataset(f"urn:hanse:north:{name}", policy=policy) for name, policy in policies.items()]
    await catalogue.admit(north, "north")
    assert (await catalogue.crawl("north"))["datasets"] == 7
    assert await catalogue.ids(headers={"accept": "application/json"}) == []
    classes = {hit["name"]: hit["offers"][0]["classes"] for hit in (await catalogue.search())["results"]}
    assert classes == {name: ["unknown-terms" if name == "unknown" else "unreadable"] for name in policies}


async def test_an_id_that_is_a_step_on_a_path_is_not_taken(catalogue: Catalogue, north: Provider) -> None:
    """Whoever followed its link came to the folder above: to another page, or to none."""
    north.datasets = [dataset("."), dataset(".."), dataset("...")]
    await catalogue.admit(north, "north")
    run = await catalogue.crawl("north")
    assert [one["dataset"] for one in run["skipped_datasets"]] == [".", ".."]
    assert await catalogue.ids() == ["..."]
