"""Who sees what: operators, members, others; and that nothing tells of what is for others."""

from __future__ import annotations

import hashlib
import json
import stat
from base64 import urlsafe_b64encode
from collections.abc import Callable
from cProfile import Profile
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalogue.api.access import Viewer
from catalogue.crawl.entry import read_dataset
from catalogue.crawl.offer_terms import Party, _build_matcher
from catalogue.search.index import Index
from catalogue.search.search_query import SearchQuery
from catalogue.search.visibility import list_views, view_for, views_of
from catalogue.store import CatalogueStore
from catalogue.store.migrate import upgrade
from catalogue.store.tables import CrawlState, Member
from catalogue.store.tables import EntryRow as Row
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import MEMBERS_ONLY, Provider, dataset

OPEN = {"permission": [{"action": "use"}]}


def for_party(*dids: str) -> dict[str, Any]:
    party = {"leftOperand": "ds:participant", "operator": "isAnyOf", "rightOperand": list(dids)}
    return {"permission": [{"action": "use", "constraint": [party]}]}


# -- tokens and sessions


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/members"),
        ("POST", "/api/v1/members"),
        ("GET", "/api/v1/members/north"),
        ("PATCH", "/api/v1/members/north"),
        ("DELETE", "/api/v1/members/north"),
        ("POST", "/api/v1/crawl"),
        ("POST", "/api/v1/index/rebuild"),
        ("GET", "/metrics"),
        ("POST", "/members"),
        ("POST", "/members/status"),
        ("POST", "/members/visit"),
    ],
)
async def test_the_operators_part_is_closed_to_everybody_else(
    catalogue: Catalogue, north: Provider, method: str, path: str
) -> None:
    body = {"id": "did:web:x", "name": "x"} if path == "/api/v1/members" and method == "POST" else None
    nobody = await catalogue.http.request(method, path, json=body)
    assert nobody.status_code == 401
    assert nobody.headers["content-type"] == "application/problem+json"
    wrong = await catalogue.http.request(method, path, json=body, headers={"authorization": "Bearer nonsense"})
    assert wrong.status_code == 401
    stranger = {"authorization": north.token(catalogue.parts.settings.did)}
    assert (await catalogue.http.request(method, path, json=body, headers=stranger)).status_code in (401, 403)


@pytest.mark.parametrize(
    "authorization", ["Bearer x", "Basic YTpi", "Bearer " + "a." * 9_000, "Bearer a.b.c", "Digest", "Bearer"]
)
async def test_a_proof_that_does_not_hold_is_refused_and_not_taken_for_none(
    catalogue: Catalogue, authorization: str
) -> None:
    answer = await catalogue.http.get("/api/v1/search", headers={"authorization": authorization})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("issuer", ["{did}", "{did}:a", "did:web:\udcff", "did:web:\0"])
async def test_keys_are_looked_up_of_members_only(catalogue: Catalogue, north: Provider, issuer: str) -> None:
    """Else anybody has the catalogue call what address they like, and hears how that went."""
    did = issuer.format(did=north.did)
    claims = {"iss": did, "sub": did, "aud": catalogue.parts.settings.did, "jti": "1", "iat": 0, "exp": 0}
    parts = (json.dumps(one).encode() for one in ({"alg": "ES256", "kid": f"{did}#k"}, claims))
    token = ".".join([*(urlsafe_b64encode(part).decode() for part in parts), "AAAA"])
    answer = await catalogue.http.get("/api/v1/search", headers={"authorization": f"Bearer {token}"})
    assert (answer.status_code, north.requests) == (401, [])
    assert "expected the token of a member" in answer.json()["detail"]


async def test_the_first_token_is_made_once_and_kept_as_a_hash_only(catalogue: Catalogue, tmp_path: Path) -> None:
    assert await catalogue.parts.access.first_token(tmp_path / "late.token") is None
    assert not (tmp_path / "late.token").exists()
    for file in (tmp_path / "catalogue").glob("catalogue.db*"):
        assert catalogue.token.encode() not in file.read_bytes()


async def test_the_token_file_is_for_its_owner_only(catalogue: Catalogue, tmp_path: Path) -> None:
    await catalogue.parts.store.write(lambda tx: tx.tokens.remove(_digest(catalogue.token)))
    path = tmp_path / "sub" / "admin.token"
    text = await catalogue.parts.access.first_token(path)
    assert path.read_text().strip() == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["admin.token"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


async def test_a_session_opens_with_the_token_and_ends_at_logout(catalogue: Catalogue) -> None:
    http = catalogue.http
    assert (await http.post("/login", data={"token": "wrong"})).status_code == 401
    answer = await http.post("/login", data={"token": catalogue.token})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    assert catalogue.token not in answer.headers["set-cookie"]
    assert (await http.get("/api/v1/members")).status_code == 200
    foreign = await http.post("/api/v1/index/rebuild", headers={"sec-fetch-site": "cross-site"})
    assert foreign.status_code == 403
    kept = dict(http.cookies)
    await http.post("/logout")
    assert (await http.get("/api/v1/members", headers={"cookie": "; ".join(f"{k}={v}" for k, v in kept.items())})
            ).status_code == 401  # fmt: skip


# -- audiences


async def audience(catalogue: Catalogue, north: Provider, south: Provider) -> dict[str, dict[str, str]]:
    """Headers of everybody who may look; each token is good once."""
    operator = catalogue.parts.settings.did
    return {
        "anonymous": {"accept": "application/json"},
        "north": {"authorization": north.token(operator)},
        "south": {"authorization": south.token(operator)},
        "operator": catalogue.operator,
    }


async def test_offers_are_shown_to_those_whom_they_are_for(
    catalogue: Catalogue, north: Provider, south: Provider
) -> None:
    north.datasets = [
        dataset("urn:hanse:north:open", policy=OPEN),
        dataset("urn:hanse:north:members", policy=MEMBERS_ONLY),
        dataset("urn:hanse:north:named", policy=for_party(south.did)),
        dataset("urn:hanse:north:other", policy=for_party("did:web:other.test")),
        dataset("urn:hanse:north:stub", policy=MEMBERS_ONLY, **{"https://w3id.org/hanse/catalog/1/audience": "public"}),
    ]
    for member, name in ((north, "north"), (south, "south")):
        await catalogue.admit(member, name)
        await catalogue.crawl(name)
    expected = {
        "anonymous": {"open", "stub"},
        "north": {"open", "members", "named", "other", "stub"},
        "south": {"open", "members", "named", "stub"},
        "operator": {"open", "members", "named", "other", "stub"},
    }
    for who, header in (await audience(catalogue, north, south)).items():
        found = await catalogue.search(headers=header)
        assert {hit["name"] for hit in found["results"]} == expected[who], who
        assert found["total"] == len(expected[who])
        counted = found["facets"]["participant"]["values"]
        assert [value["count"] for value in counted] == [len(expected[who])]
    stub = (await catalogue.http.get("/api/v1/datasets/urn:hanse:north:stub")).json()
    assert stub["offers"] == []


def asking(*conditions: tuple[str, str, Any], **beside: Any) -> dict[str, Any]:
    constraint = [{"leftOperand": left, "operator": op, "rightOperand": right} for left, op, right in conditions]
    return {"permission": [{"action": "use", **({"constraint": constraint} if constraint else {})}], **beside}


def forbidding(*condition: Any) -> dict[str, Any]:
    return asking(prohibition=asking(condition)["permission"])


async def test_offers_that_ask_more_of_a_member_are_shown_to_those_that_fit(
    catalogue: Catalogue, north: Provider, south: Provider
) -> None:
    """As its owner's connector would: who is left out by name, role or country meets nothing of it."""
    us, operator = south.did, catalogue.parts.settings.did
    either = {
        "or": [{"leftOperand": "ds:participant", "operator": "eq", "rightOperand": did} for did in (us, operator)]
    }
    shown = {
        "country": asking(("ds:participantCountry", "isPartOf", "EU")),
        "role": asking(("ds:role", "isAnyOf", ["research", "operator"])),
        "not-other": asking(("ds:participant", "neq", operator)),
        "either": {"permission": [{"action": "use", "constraint": [either]}]},
        "sanctions": forbidding("ds:participantCountry", "isAnyOf", ["RU"]),
        "odd": asking(("x:odd", "eq", "1"), ("ds:participant", "neq", operator)),
    }
    hidden = {
        "not-us": asking(("ds:participant", "neq", us)),
        "none-of-us": asking(("ds:membership", "eq", "active"), ("ds:participant", "isNoneOf", [us])),
        "not-country": asking(("ds:participantCountry", "neq", "DE")),
        "not-role": asking(("ds:role", "isNoneOf", ["research"])),
        "forbidden": forbidding("ds:participant", "eq", us),
        "both": asking(("ds:participant", "isAnyOf", [us, operator]), ("ds:participant", "eq", operator)),
        "level": asking(("ds:securityLevel", "gteq", "trust")),
        "odd-not-us": asking(("x:odd", "eq", "1"), ("ds:participant", "neq", us)),
        "odd-forbidden": asking(
            ("x:odd", "eq", "1"), prohibition=forbidding("ds:participant", "eq", us)["prohibition"]
        ),
        "odd-act": {**asking(("ds:role", "neq", "research")), "obligation": [{"action": "x:dance"}]},
    }
    north.datasets = [dataset(f"urn:hanse:north:{name}", policy=policy) for name, policy in (shown | hidden).items()]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    await catalogue.admit(south, "south", country="DE", role="research")  # later than they were listed

    async def found() -> set[str]:
        answer = await catalogue.search(headers={"authorization": south.token(operator)})
        names = {hit["name"] for hit in answer["results"]}
        assert answer["total"] == answer["facets"]["participant"]["values"][0]["count"] == len(names)
        return names

    assert await found() == set(shown)
    for name in hidden:
        header = {"authorization": south.token(operator)}
        answer = await catalogue.http.get(f"/api/v1/datasets/urn:hanse:north:{name}", headers=header)
        assert answer.status_code == 404, name
    assert await catalogue.ids(headers={"accept": "*/*"}) == []
    assert (await catalogue.search())["total"] == len(shown | hidden)
    change = {"country": "US", "role": "marketing"}
    await catalogue.http.patch("/api/v1/members/south", json=change, headers=catalogue.operator)
    assert await found() == {"either", "sanctions", "not-other", "not-country", "not-role", "odd", "odd-act"}
    north.datasets = []
    for _ in range(3):
        await catalogue.crawl("north")
    header = {"authorization": south.token(operator)}
    assert (await catalogue.http.get("/api/v1/datasets/urn:hanse:north:not-us", headers=header)).status_code == 404


@pytest.mark.parametrize("path", ["/api/v1/datasets/{id}", "/datasets/{id}", "/datasets/{id}/croissant",
                                  "/datasets/{id}/dcat.ttl", "/datasets/{id}/validation"])  # fmt: skip
async def test_a_hidden_dataset_looks_like_none_everywhere(catalogue: Catalogue, north: Provider, path: str) -> None:
    north.datasets = [dataset("urn:hanse:north:secret", policy=MEMBERS_ONLY, **{"dcat:keyword": ["mercury"]})]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    hidden = await catalogue.http.get(path.format(id="urn:hanse:north:secret"))
    missing = await catalogue.http.get(path.format(id="urn:hanse:north:absent"))
    assert hidden.status_code == missing.status_code == 404
    assert hidden.text.replace("secret", "absent") == missing.text
    for page in ("/", "/?q=mercury", "/?keyword=mercury", "/members", "/catalog.ttl", "/catalog.jsonld"):
        assert "secret" not in (await catalogue.http.get(page)).text
    assert "mercury" not in (await catalogue.http.get("/")).text


async def test_members_only_offers_of_an_open_dataset_stay_with_members(catalogue: Catalogue, north: Provider) -> None:
    both = dataset("urn:hanse:north:both", policy=OPEN)
    both["hasPolicy"].append({"@id": "urn:offer:members", "@type": "Offer", **MEMBERS_ONLY})
    north.datasets = [both]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    outside = await catalogue.search(headers={"accept": "*/*"})
    assert [len(hit["offers"]) for hit in outside["results"]] == [1]
    assert {value["value"] for value in outside["facets"]["policy"]["values"]} == {"open"}
    assert await catalogue.ids(policy="members-only", headers={"accept": "*/*"}) == []
    assert await catalogue.ids(policy="members-only") == ["urn:hanse:north:both"]
    assert (await catalogue.search())["total"] == 1
    graph = (await catalogue.http.get("/datasets/urn:hanse:north:both/dcat.ttl")).text
    assert "urn:offer:members" not in graph


async def test_who_is_suspended_sees_what_everybody_sees(
    catalogue: Catalogue, north: Provider, south: Provider
) -> None:
    north.datasets = [dataset("urn:hanse:north:members", policy=MEMBERS_ONLY)]
    await catalogue.admit(north, "north")
    await catalogue.admit(south, "south")
    await catalogue.crawl("north")
    operator = catalogue.parts.settings.did
    assert len(await catalogue.ids(headers={"authorization": south.token(operator)})) == 1
    await catalogue.http.patch("/api/v1/members/south", json={"status": "suspended"}, headers=catalogue.operator)
    assert await catalogue.ids(headers={"authorization": south.token(operator)}) == []


# -- the same as a property: whatever the audiences, nobody meets what is for others

DIDS = ("did:web:owner", "did:web:a", "did:web:b")
VIEWERS = (Viewer(), Viewer("operator"), *(Viewer("members", did) for did in DIDS), Viewer("public", "did:web:a"))
POLICIES = st.sampled_from([OPEN, MEMBERS_ONLY, for_party("did:web:a"), for_party("did:web:a", "did:web:b")])


def row_of(number: int, policies: list[dict[str, Any]]) -> Row:
    raw = dataset(f"urn:hanse:owner:d{number}", **{"dct:title": f"herring h{number}", "dcat:keyword": [f"k{number}"]})
    raw["hasPolicy"] = [{"@id": f"urn:o:{number}:{n}", **policy} for n, policy in enumerate(policies)]
    content = read_dataset(raw, participant="did:web:owner").to_json()
    return Row(
        id=raw["@id"], member_id="did:web:owner", raw="", content=content, reader=1, digest="", first_seen=0,
        modified_at=number, last_seen=0, misses=0, withdrawn_at=None, withdrawn_why="", seq=number + 1,
    )  # fmt: skip


OWNER = {"title": "Owner", "role": "", "country": "", "url": "", "reason": "", "joined_at": 0.0, "changed_at": 0.0}


def owner() -> tuple[Member, CrawlState]:
    member = Member(id="did:web:owner", name="owner", status="active", **OWNER)
    return member, CrawlState(
        member_id="did:web:owner", state="active", next_at=0, failures=0, last_try=0, last_ok=0, problem="", etag=""
    )


@given(st.lists(POLICIES, min_size=1, max_size=4))
def test_every_viewer_gets_exactly_one_rendering_with_its_offers_or_none(policies: list[dict[str, Any]]) -> None:
    row = row_of(0, policies)
    cards = list_views(row, *owner())
    for viewer in VIEWERS:
        card = view_for(viewer, row, *owner())
        mine = viewer.is_operator or (viewer.kind == "members" and viewer.id == "did:web:owner")
        offers = {n for n, policy in enumerate(policies) if mine or _is_for(policy, viewer)}
        shown = {int(offer.id.rpartition(":")[2]) for offer in card.offers} if card else set()
        assert shown == offers
        own, kind = views_of(viewer)[0], views_of(viewer)[-1]
        matching = [
            one for one in cards if own in one.views or (kind in one.views and viewer.id not in one.hidden_from)
        ]
        assert len(matching) == (1 if offers else 0)


def test_each_offer_of_an_entry_is_read_once_for_all_members() -> None:
    """With more of them than were kept each was read for every look at it."""
    _build_matcher.cache_clear()
    parties = {did: Party(did, "r7") for did in DIDS}
    row = row_of(0, [asking(("ds:role", "eq", f"r{number}")) for number in range(100)])
    shown = [card for card in list_views(row, *owner(), parties) if "did:web:a" in card.views]
    assert [[offer.id for offer in card.offers] for card in shown] == [["urn:o:0:7"]]
    assert _build_matcher.cache_info().misses == 100


def test_renderings_cost_what_the_description_holds_and_not_its_square() -> None:
    """In calls of functions; a comparison of every viewer with every name of every offer took a million."""
    dids = [f"did:web:m{number}" for number in range(100)]
    row = row_of(0, [OPEN, *(for_party(*dids[number % 3 :]) for number in range(99))])

    def calls(work: Callable[[], object]) -> int:
        profile = Profile()
        profile.runcall(work)
        return sum(entry.callcount for entry in profile.getstats())

    assert calls(lambda: view_for(Viewer(), row, *owner())) < 3_000
    assert calls(lambda: view_for(Viewer("members", dids[0]), row, *owner())) < 3_000
    assert calls(lambda: list_views(row, *owner())) < 30_000
    assert len(list_views(row, *owner())) == 4  # everybody; m0; m1; the others, the owner and the operator


def _is_for(policy: dict[str, Any], viewer: Viewer) -> bool:
    if policy == OPEN:
        return True
    if viewer.kind != "members":
        return False
    return policy == MEMBERS_ONLY or viewer.id in policy["permission"][0]["constraint"][0]["rightOperand"]


@settings(max_examples=12, deadline=None)
@given(entries=st.lists(st.lists(POLICIES, min_size=1, max_size=3), min_size=1, max_size=5))
def test_hits_totals_and_facets_hold_only_what_the_viewer_may_see(
    tmp_path_factory: pytest.TempPathFactory, entries: list[list[dict[str, Any]]]
) -> None:
    directory = tmp_path_factory.mktemp("index")
    upgrade(f"sqlite:///{directory / 'c.db'}")
    store = CatalogueStore(f"sqlite:///{directory / 'c.db'}")
    rows = [row_of(number, policies) for number, policies in enumerate(entries)]
    member, source = owner()
    store.write_now(lambda tx: (tx.session.add_all([*rows, member, source]), tx.entries.next_seq())[0])
    index = Index(directory / "index", store)
    index._at = (0, "")
    index.catch_up()
    for viewer, words in product(VIEWERS, ("", "herring")):
        found = index.search(SearchQuery(words=words), viewer)
        allowed = {row.id for row in rows if view_for(viewer, row, *owner()) is not None}
        assert set(found.ids) == allowed
        assert found.total == len(allowed) == len(found.ids)
        numbers = {one.rpartition("d")[2] for one in allowed}
        assert {value for value, _ in found.facets["keyword"]} == {f"k{number}" for number in numbers}
        classes = {name for row in rows if (card := view_for(viewer, row, *owner())) for offer in card.offers
                   for name in offer.classes}  # fmt: skip
        assert {value for value, _ in found.facets["policy"]} == classes
        assert sum(index.owners(viewer).values()) == len(allowed)
    store.close()
