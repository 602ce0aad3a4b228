"""Which datasets of several owners stand in one card, and who sees which of them there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from catalogue.crawl.entry import read_dataset
from catalogue.search.dataset_groups import build_groups, group_key
from catalogue.search.facets import EntryView
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import MEMBERS_ONLY, Provider, dataset

COLUMNS: list[Any] = [{"name": "age", "type": "int64"}, {"name": "sex", "type": "string"}]
HTML = {"accept": "text/html"}


def view(owner: str, name: str = "patients", columns: list[Any] = COLUMNS) -> EntryView:
    about = {"hanse:columns": columns}
    entry = read_dataset(dataset(f"urn:hanse:{owner}:{name}", **about), participant=f"did:web:{owner}")
    return EntryView(
        entry=entry, offers=entry.offers, state="active", owner=owner, owner_title=owner.title(), country="DE",
        first_seen=0, modified_at=0, last_seen=0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("other", "together"),
    [
        (view("south"), True),
        (view("south", "Patients", [{"name": "SEX", "type": "String"}, {"name": "age", "type": "int64"}]), True),
        (view("south", "flights"), False),
        (view("south", columns=COLUMNS[:1]), False),
        (view("south", columns=[COLUMNS[0], {"name": "sex", "type": "int64"}]), False),
        (view("north"), False),  # one owner
    ],
)
def test_name_and_columns_decide(other: EntryView, together: bool) -> None:
    assert bool(build_groups([view("north"), other])) is together


def test_an_owner_has_one_place_in_a_group() -> None:
    first, copy, other = view("north"), view("north"), view("south")
    assert list(build_groups([first, copy, other]).values()) == [[first, other]]


async def test_an_owner_with_many_copies_hides_no_other(catalogue: Catalogue, north: Provider, south: Provider) -> None:
    await offer(catalogue, north, "north", patients={})
    await offer(catalogue, south, "south", **{f"x{number}:patients": {} for number in range(120)})
    shown = [card for page in range(1, 8) for card in await cards(catalogue, f"/?sort=owner&page={page}")]
    links = [link for card in shown for link in card]
    assert sorted(links) == sorted(set(links))
    assert len(links) == 121


def test_datasets_without_columns_belong_to_no_group() -> None:
    assert group_key(view("north", columns=[])) == ""
    assert build_groups([view("north", columns=[]), view("south", columns=[])]) == {}


async def offer(catalogue: Catalogue, member: Provider, name: str, **datasets: dict[str, Any]) -> None:
    member.datasets = [
        dataset(f"urn:hanse:{name}:{key}", policy=about.pop("policy", None), **{"hanse:columns": COLUMNS, **about})
        for key, about in datasets.items()
    ]
    await catalogue.admit(member, name, title=f"Clinic {name}")
    await catalogue.crawl(name)


async def cards(catalogue: Catalogue, path: str = "/", *, operator: bool = True) -> list[list[str]]:
    """The links of each card to datasets."""
    answer = await catalogue.http.get(path, headers={**HTML, **(catalogue.operator if operator else {})})
    assert answer.status_code == 200, answer.text
    found = re.findall(r'<article class="card hit">.*?</article>', answer.text, re.DOTALL)
    return [re.findall(r'href="/datasets/urn:hanse:([^"]+)"', card) for card in found]


async def test_a_group_is_one_card_with_a_link_to_each_owner(
    catalogue: Catalogue, north: Provider, south: Provider
) -> None:
    await offer(catalogue, north, "north", patients={}, flights={})
    await offer(catalogue, south, "south", patients={})
    shown = await cards(catalogue, "/?sort=owner")
    assert shown == [["north:flights"], ["north:patients", "south:patients"]]
    assert await cards(catalogue, "/?owner=north&sort=owner") == [["north:flights"], ["north:patients"]]
    assert await cards(catalogue, "/?q=flights") == [["north:flights"]]


async def test_a_group_has_only_what_its_viewer_may_see(catalogue: Catalogue, north: Provider, south: Provider) -> None:
    await offer(catalogue, north, "north", patients={})
    await offer(catalogue, south, "south", patients={"policy": MEMBERS_ONLY})
    assert await cards(catalogue, operator=False) == [["north:patients"]]
    assert await cards(catalogue, "/?sort=owner") == [["north:patients", "south:patients"]]


@pytest.mark.parametrize("sort", ["relevance", "newest", "title", "owner"])
@pytest.mark.parametrize("words", ["", "table"])
async def test_each_dataset_stands_once_over_all_pages(
    catalogue: Catalogue, north: Provider, south: Provider, sort: str, words: str
) -> None:
    names = [f"table{number}" for number in range(25)]
    about = {"dcat:keyword": "table"}
    for member, name in ((north, "north"), (south, "south")):
        await offer(catalogue, member, name, **{key: dict(about) for key in names})
    pages = [await cards(catalogue, f"/?sort={sort}&q={words}&page={page}") for page in (1, 2, 3)]
    shown = [card for page in pages for card in page]
    assert len(shown) == 25
    assert all(len(card) == 2 for card in shown)
    assert len({link for card in shown for link in card}) == 50
