"""Where owners stand on the map of the data space."""

from __future__ import annotations

import re

import pytest

from catalogue.pages.member_lines import MemberLine
from catalogue.pages.space_map import HEIGHT, LINE, OWNERS_MAX, WIDTH, place_owners
from catalogue.store.tables import Member
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import MEMBERS_ONLY, Provider, dataset


def line(name: str, datasets: int, title: str = "") -> MemberLine:
    member = Member(
        id=f"did:web:{name}", name=name, title=title or name, role="", country="", url="", status="active", reason="",
        joined_at=0.0, changed_at=0.0,
    )  # fmt: skip
    return MemberLine(member, None, datasets, None, {}, "")


@pytest.mark.parametrize("count", [0, 1, 2, 5, 14, 200])
def test_the_largest_owners_stand_inside_the_drawing_and_apart(count: int) -> None:
    places = place_owners([line(f"m{number}", number, "T" * 300) for number in range(count)])
    assert [place.line.datasets for place in places] == sorted(range(count), reverse=True)[:OWNERS_MAX]
    for place in places:
        assert place.radius <= place.x <= WIDTH - place.radius
        assert LINE <= place.label_y <= HEIGHT - LINE
        assert len(place.label) < 30
    for number, one in enumerate(places):
        for other in places[number + 1 :]:
            apart = (one.x - other.x) ** 2 + (one.y - other.y) ** 2
            assert apart > (one.radius + other.radius) ** 2


def test_a_circle_grows_with_the_datasets() -> None:
    large, small, none = place_owners([line("a", 100), line("b", 25), line("c", 0)])
    assert (large.radius, small.radius) == (20.0, 10.0)
    assert 0 < none.radius < small.radius


async def test_the_map_counts_what_its_viewer_may_see(catalogue: Catalogue, north: Provider, south: Provider) -> None:
    north.datasets = [dataset("urn:hanse:north:a"), dataset("urn:hanse:north:b", policy=MEMBERS_ONLY)]
    for member, name in ((north, "north"), (south, "south")):
        await catalogue.admit(member, name)
        await catalogue.crawl(name)
    for headers, counted in (({}, "1 dataset"), (catalogue.operator, "2 datasets")):
        text = (await catalogue.http.get("/members", headers=headers)).text
        assert re.findall(r"north <tspan[^>]*>([^<]+)<", text) == [counted]
        assert re.findall(r"south <tspan[^>]*>([^<]+)<", text) == ["0 datasets"]
