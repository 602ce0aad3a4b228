"""What is found, in which order, with which counts; pages of results; marks on what was found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from catalogue import question, search
from catalogue.facets import FACETS
from catalogue.highlight import excerpt, found, marked
from connector.errors import BadInput
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import MEMBERS_ONLY, Provider, dataset

THEME = "http://publications.europa.eu/resource/authority/data-theme/"
PURPOSE = {"leftOperand": "odrl:purpose", "operator": "isAnyOf", "rightOperand": ["https://w3id.org/dpv#Marketing"]}
CORPUS: dict[str, dict[str, Any]] = {
    "glucose": {
        "dct:title": "Blutzuckermessungen",
        "dct:language": "de",
        "dct:description": "Messwerte von Patienten, täglich.",
        "dcat:keyword": ["Diabetes"],
        "dcat:theme": {"@id": f"{THEME}HEAL"},
        "hanse:columns": [{"name": "glucoseMgDl", "type": "double"}, {"name": "patient_id", "type": "int64"}],
    },
    "patients": {
        "dct:title": "Patients of a trial",
        "dct:description": "Women with breast cancer. Diabetes was not recorded.",
        "dcat:theme": "HEAL",
        "hanse:columns": ["age", "tumor_size"],
    },
    "flights": {
        "dct:title": "Flights and delays",
        "dct:description": "Departures, carriers and the weather.",
        "dcat:keyword": ["aviation"],
        "dcat:theme": "TRAN",
        "hanse:columns": ["tailnum", "dep_delay"],
    },
    "weather": {"dct:title": "Weather", "dct:description": "Hourly.", "dcat:theme": "ENVI"},
}


@pytest.fixture
async def filled(catalogue: Catalogue, north: Provider) -> Catalogue:
    """A catalogue with CORPUS in it, all of it by one member."""
    policies = {"weather": {"permission": [{"action": "use", "constraint": [PURPOSE]}]}, "flights": MEMBERS_ONLY}
    north.datasets = [
        dataset(f"urn:hanse:north:{name}", policy=policies.get(name), **about) for name, about in CORPUS.items()
    ]
    await catalogue.admit(north, "north", title="Kontor of the North", country="DE")
    await catalogue.crawl("north")
    return catalogue


RANKED = {
    "weather": ["weather", "flights"],  # a word of the title counts more than one of the description
    "diabetes": ["glucose", "patients"],  # a keyword too
    "patient": ["patients", "glucose"],  # and the title more than a column
}
SEARCHES = [
    ("delay", ["flights"]),  # by its stem
    ("Blutzucker", ["glucose"]),  # a part of a longer word
    ("blutzuckermessung", ["glucose"]),
    ("taglich", ["glucose"]),  # without its umlaut
    ("wether", ["weather"]),  # a letter too few
    ("glucose", ["glucose"]),  # a column in camel case, by one of its words
    ("breast cancer", ["patients"]),  # all words
    ("breast weather", []),
    ("health", ["glucose", "patients"]),  # a theme's label
    ("kontor delays", ["flights"]),  # the owner
    ("column:tumor_size", ["patients"]),
    ("column:tumor", ["patients"]),
    ("column:GLUCOSEMGDL", ["glucose"]),
    ("column:age column:tumor_size", ["patients"]),
    ("column:age column:tailnum", []),
    ("theme:heal", ["glucose", "patients"]),
    (f"theme:{THEME}TRAN", ["flights"]),
    ("keyword:Aviation", ["flights"]),
    ("owner:NORTH theme:envi", ["weather"]),
    ("owner:south", []),
    ("policy:Members-only state:Active", ["flights"]),
    ("purpose:dpv:Marketing", ["weather"]),
    ('purpose:"https://w3id.org/dpv#Marketing"', ["weather"]),
    ("theme:HEAL theme:TRAN diabetes", ["glucose", "patients"]),  # values of one facet are alternatives
    ("unheard:of", []),
    ("urn:hanse:north:weather", ["weather"]),  # its own id
    ("??? \u2122", []),  # no words are no reason to show everything
    ("weather \u2122", ["flights", "weather"]),
    ("x" * 64, []),
    ("weather " + "x" * 300, []),
    ("weather/" + "x" * 300, []),
    ("weather _", ["flights", "weather"]),
    ("'; DROP TABLE entry; --", []),
    ('"(title:* AND [', []),
]


async def test_every_search_finds_what_it_should_and_nothing_else(filled: Catalogue) -> None:
    found = {text: {hit["name"] for hit in (await filled.search(text))["results"]} for text, _ in SEARCHES}
    assert found == {text: set(names) for text, names in SEARCHES}


async def test_what_fits_better_stands_first(filled: Catalogue) -> None:
    assert {text: [hit["name"] for hit in (await filled.search(text))["results"]] for text in RANKED} == RANKED


async def test_facets_count_what_was_found_and_the_alternatives_of_a_filter(filled: Catalogue) -> None:
    facets = (await filled.search("theme:HEAL"))["facets"]
    themes = {value["value"]: (value["label"], value["count"], value["chosen"]) for value in facets["theme"]["values"]}
    assert themes == {
        "HEAL": ("Health", 2, True),
        "TRAN": ("Transport", 1, False),
        "ENVI": ("Environment", 1, False),
    }
    owners = [(value["value"], value["label"], value["count"]) for value in facets["participant"]["values"]]
    assert owners == [("north", "Kontor of the North", 2)]
    assert [(value["value"], value["count"]) for value in facets["policy"]["values"]] == [("open", 2)]


async def test_a_chosen_value_is_counted_where_it_is_none_of_the_largest(
    catalogue: Catalogue, north: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    north.datasets = [
        dataset(f"urn:hanse:north:d{number}", **{"dcat:keyword": ["rare" if number < 2 else "common"]})
        for number in range(5)
    ]
    monkeypatch.setitem(FACETS, "keyword", replace(FACETS["keyword"], shown=1))
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    found = await catalogue.search("keyword:rare keyword:never")
    values = {one["value"]: (one["count"], one["chosen"]) for one in found["facets"]["keyword"]["values"]}
    assert values == {"common": (3, False), "rare": (2, True), "never": (0, True)}
    assert found["total"] == 2


async def test_the_last_page_that_can_be_asked_for_leads_to_no_other(
    filled: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (question, search):
        monkeypatch.setattr(module, "DEPTH_MAX", 2)
    last = await filled.http.get("/api/v1/search?size=1&page=2", headers=filled.operator)
    assert (last.json()["total"], last.json()["pages"], "next" in last.headers.get("link", "")) == (4, 2, False)
    assert (await filled.http.get("/api/v1/search?size=1&page=3", headers=filled.operator)).status_code == 400


async def test_pages_hold_every_hit_once(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset(f"urn:hanse:north:d{n}", **{"dct:title": "herring"}) for n in range(23)]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    for words in ("", "herring"):
        pages = [await catalogue.search(words, page=page, size=10) for page in (1, 2, 3)]
        assert [len(page["results"]) for page in pages] == [10, 10, 3]
        assert len({hit["id"] for page in pages for hit in page["results"]}) == 23
        assert {(page["total"], page["pages"]) for page in pages} == {(23, 3)}
    first = await catalogue.http.get("/api/v1/search?size=10&q=herring", headers=catalogue.operator)
    assert 'page=2>; rel="next"' in first.headers["link"]
    assert (await catalogue.ids(page=9)) == []
    assert [hit["name"] for hit in (await catalogue.search("north/d7"))["results"]] == ["d7"]


@pytest.mark.parametrize("query", ["page=0", "page=101&size=100", "size=101", "size=0", "page=x", "q=" + "a" * 501])
async def test_a_search_too_long_or_too_deep_is_refused(catalogue: Catalogue, query: str) -> None:
    answer = await catalogue.http.get(f"/api/v1/search?{query}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "expected" in answer.json()["detail"] or "should be" in answer.json()["detail"]


@pytest.mark.parametrize("asked", ["state:aktiv", "policy:members"])
def test_what_no_dataset_can_have_is_refused_with_what_one_can(asked: str) -> None:
    with pytest.raises(BadInput, match=r"expected as (state|policy) one of .*(stale|members-only), .*, came"):
        question.read(asked)


async def test_a_filter_that_is_none_is_refused_and_an_owner_is_a_participant(filled: Catalogue) -> None:
    for name in ("columns", "partcipant", "Owner"):
        answer = await filled.http.get(f"/api/v1/search?{name}=south")
        assert (answer.status_code, answer.json()["code"]) == (400, "parameter_unknown")
        assert f"came '{name}'" in answer.json()["detail"]
    assert [(await filled.search("weather", owner=one))["total"] for one in ("north", "south")] == [2, 0]


def test_many_filters_are_refused() -> None:
    for said in ({"columns": ["a" * 1500, "b" * 501]}, {"filters": {"keyword": ["c" * 2001]}}):
        with pytest.raises(BadInput, match="at most 2000 characters of columns together"):
            question.read("", **said)
    with pytest.raises(BadInput, match="at most 20 filters"):
        question.read(" ".join(f"keyword:k{n}" for n in range(21)))


async def test_what_was_found_is_marked(filled: Catalogue) -> None:
    hit = (await filled.search("delay"))["results"][0]
    assert [part["text"] for part in hit["highlights"]["title"] if part["hit"]] == ["delays"]
    assert hit["matched_columns"] == ["dep_delay"]
    by_column = (await filled.search("column:tumor_size"))["results"][0]
    assert by_column["matched_columns"] == ["tumor_size"]


def test_a_long_text_is_cut_around_the_first_word_found() -> None:
    text = "word " * 200 + "herring " + "word " * 200
    pieces = excerpt(text, lambda word: word == "herring")
    whole = "".join(piece.text for piece in pieces)
    assert len(whole) < 260
    assert (whole[0], whole[-1]) == ("…", "…")
    assert [piece.text for piece in pieces if piece.hit] == ["herring"]


@pytest.mark.parametrize("text", ["", "a", "a b", "<b>a</b>", "ä" * 1000, "a " * 500])
def test_marking_changes_no_character(text: str) -> None:
    assert "".join(piece.text for piece in marked(text, lambda word: word == "a")) == text


def test_columns_are_matched_by_the_words_of_their_names() -> None:
    assert found(["glucoseMgDl", "tumor_size", "x"], lambda word: word in ("glucose", "size")) == [
        "glucoseMgDl",
        "tumor_size",
    ]


async def test_a_lost_or_foreign_index_is_built_anew(filled: Catalogue) -> None:
    index = filled.parts.index
    answer = await filled.http.post("/api/v1/index/rebuild", headers=filled.operator)
    assert answer.json() == {"entries": 4}
    assert len(await filled.ids()) == 4
    for content in ("", "{}", '{"layout": 0, "at": [9, "x"]}'):
        (index._directory / "hanse.json").write_text(content)
        opened = type(index)(index._directory, filled.parts.store)
        assert opened.catch_up() == 4
    index._at = (10**9, "")  # as after the database was restored to an earlier day
    assert index.catch_up() == 4


async def test_an_index_that_lags_never_shows_what_was_closed_since(filled: Catalogue) -> None:
    def close(tx: Any) -> None:
        tx.members.of("north").status = "suspended"

    await filled.parts.store.write(close)
    assert (await filled.search())["results"] == []
