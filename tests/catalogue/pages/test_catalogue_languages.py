"""The catalogue's pages in each language: who chooses it, what the switch does, and that links stay the same."""

from __future__ import annotations

import re

import pytest

from tests.catalogue.conftest import Catalogue
from tests.catalogue.pages.test_pages import HTML, Reader
from tests.catalogue.provider import MEMBERS_ONLY, Provider, dataset

OWN = {"sec-fetch-site": "same-origin"}
PATHS = [
    "/", "/?q=tides", "/?q=nothing-like-it&theme=HEAL", "/members", "/members/north", "/login",
    "/datasets/urn:hanse:north:tides", "/datasets/urn:hanse:north:absent",
]  # fmt: skip


@pytest.fixture
async def filled(catalogue: Catalogue, north: Provider) -> Catalogue:
    north.datasets = [
        dataset("urn:hanse:north:tides", **{"dct:title": "Tides", "dcat:theme": "ENVI"}),
        dataset("urn:hanse:north:members", policy=MEMBERS_ONLY),
    ]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    return catalogue


async def asked(catalogue: Catalogue, path: str, **headers: str) -> str:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = await catalogue.http.get(path, headers={**HTML, **catalogue.operator, **named})
    assert answer.headers["vary"] == "Accept-Language, Cookie"
    Reader(answer.text)
    return answer.text


async def test_the_browser_chooses_and_the_switch_goes_before_it(filled: Catalogue) -> None:
    assert '<html lang="en">' in await asked(filled, "/")
    german = await asked(filled, "/", accept_language="de-DE,de;q=0.9,en;q=0.8")
    assert '<html lang="de">' in german
    assert "Daten finden in" in german
    assert '<html lang="en">' in await asked(filled, "/", accept_language="de", cookie="hanse_language=en")
    assert '<html lang="de">' in await asked(filled, "/", cookie="hanse_language=de")


@pytest.mark.parametrize(
    ("to", "leads"),
    [("/members", "/members"), ("/?q=tides&page=1", "/?q=tides&page=1"), ("https://evil.example/", "/"),
     ("//evil.example", "/"), ("/\\evil.example", "/"), ("", "/")],
)  # fmt: skip
async def test_the_switch_keeps_the_language_and_leads_to_a_page_of_the_catalogue(
    filled: Catalogue, to: str, leads: str
) -> None:
    answer = await filled.http.post("/language", data={"language": "de", "to": to}, headers=OWN)
    assert (answer.status_code, answer.headers["location"]) == (303, leads)
    assert answer.headers["set-cookie"].startswith("hanse_language=de;")


async def test_the_switch_takes_only_languages_there_are_and_only_from_own_pages(filled: Catalogue) -> None:
    wrong = await filled.http.post("/language", data={"language": "xx"}, headers=OWN)
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (400, False)
    foreign = await filled.http.post("/language", data={"language": "de"}, headers={"sec-fetch-site": "cross-site"})
    assert (foreign.status_code, "set-cookie" in foreign.headers) == (403, False)


@pytest.mark.parametrize("path", PATHS)
async def test_every_page_is_drawn_in_german_with_the_same_links_and_values(filled: Catalogue, path: str) -> None:
    english, german = [await asked(filled, path, accept_language=one) for one in ("en", "de")]
    assert '<html lang="de">' in german
    for text in (">Log out<", ">Datasets<", ">Members<", " ago<", "Never seen", "Sort by"):
        assert text not in german
    assert sent(english) == sent(german)


def sent(page: str) -> list[str]:
    """What a browser sends from a page, but for the switch of languages and the questions that a person is asked."""
    rest = re.sub('<form method="post" action="/language">.*?</form>|name="ask" value="[^"]*"', "", page)
    return re.findall(r'\b(?:href|action|formaction|name|value)="[^"]*"', rest)


async def test_a_refused_page_does_not_repeat_its_address(filled: Catalogue) -> None:
    page = await asked(filled, "/datasets/absent?code=of-a-provider")
    assert "of-a-provider" not in page
    assert 'name="to" value="/"' in page
