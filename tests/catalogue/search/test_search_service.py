"""What is found, in which order, with which counts; pages of results; marks on what was found."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from catalogue.api.access import Viewer
from catalogue.search import hit_counts, index, search_query, search_service
from catalogue.search.facets import FACETS
from catalogue.search.highlight import excerpt, find_names, mark_words
from catalogue.search.index import Index
from connector.errors import Invalid
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
    find_names = {text: {hit["name"] for hit in (await filled.search(text))["results"]} for text, _ in SEARCHES}
    assert find_names == {text: set(names) for text, names in SEARCHES}


PIECES: dict[str, dict[str, Any]] = {
    "stays": {"hanse:columns": ["stage", "state", "annotation_source", "patient_name", "order_id", "bloodSugar"]},
    "sales": {"dct:title": "Großhandelsumsätze, Verschleißdaten", "hanse:columns": ["blood_pressure"]},
    "register": {"dct:description": "Enthält Patientendaten und Wetter, Nr. 10000001."},
    "cases": {"dct:title": "中国糖尿病患者数据"},
}
PARTS = [
    ("notation", ["stays"]),
    ("station", []),  # its pieces stand in several words
    ("sourcepatient", []),
    ("Großhandel", ["sales"]),
    ("grosshandel", ["sales"]),
    ("Verschleiß", ["sales"]),
    ("verschleiss", ["sales"]),
    ("tientendaten", ["register"]),  # in a description
    ("patientendatem", ["register"]),  # and with a letter wrong in a long word of it
    ("watter", []),  # but not in a short one
    ("10000002", []),  # nor a digit
    ("klinik", ["cases", "register", "sales", "stays"]),  # the owner
    ("糖尿", ["cases"]),
    ("者数", ["cases"]),
    ("者", []),
    ("column:patient_id", []),  # of two columns
    ("column:name_order", []),
    ("column:id", ["stays"]),
    ("column:orderId", ["stays"]),
    ("column:bloodPressure", ["sales"]),
    ("column:bloodpressure", ["sales"]),
    ("column:blood_sugar", ["stays"]),
    ("column:sugarBlood", []),
]


async def test_a_part_of_a_word_is_found_in_one_word_and_a_column_in_one_name(
    catalogue: Catalogue, north: Provider
) -> None:
    north.datasets = [dataset(f"urn:hanse:north:{name}", **about) for name, about in PIECES.items()]
    await catalogue.admit(north, "north", title="Klinikum")
    await catalogue.crawl("north")
    find_names = {text: sorted(hit["name"] for hit in (await catalogue.search(text))["results"]) for text, _ in PARTS}
    assert find_names == dict(PARTS)
    shown = await catalogue.search("column:order_id column:bloodSugar")
    assert shown["results"][0]["matched_columns"] == ["order_id", "bloodSugar"]
    assert (await catalogue.search("column:orderId"))["results"][0]["matched_columns"] == ["order_id"]


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
    find_names = await catalogue.search("keyword:rare keyword:never")
    values = {one["value"]: (one["count"], one["chosen"]) for one in find_names["facets"]["keyword"]["values"]}
    assert values == {"common": (3, False), "rare": (2, True), "never": (0, True)}
    assert find_names["total"] == 2


@pytest.mark.parametrize("more", [4, 9])  # the rest of the index may change which is the largest, or not
async def test_counts_of_values_are_exact_over_all_segments_of_the_index(
    catalogue: Catalogue, north: Provider, south: Provider, monkeypatch: pytest.MonkeyPatch, more: int
) -> None:
    monkeypatch.setitem(FACETS, "keyword", replace(FACETS["keyword"], shown=1))
    monkeypatch.setattr(hit_counts, "_FEW", 1)
    many = [f"word{number:02}" for number in range(20)]
    kept = [many, many, many, ["registry"], ["registry"]]
    north.datasets = [dataset(f"urn:hanse:north:d{n}", **{"dcat:keyword": words}) for n, words in enumerate(kept)]
    south.datasets = [dataset(f"urn:hanse:south:d{n}", **{"dcat:keyword": ["registry"]}) for n in range(more)]
    for member, name in ((north, "north"), (south, "south")):
        await catalogue.admit(member, name)
        await catalogue.crawl(name)
    values = (await catalogue.search())["facets"]["keyword"]["values"]
    assert [(one["value"], one["count"]) for one in values] == [("registry", 2 + more)]


async def test_however_many_values_there_are_few_are_read_and_what_is_shown_is_counted_exactly(
    catalogue: Catalogue, north: Provider, south: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FACETS, "keyword", replace(FACETS["keyword"], shown=1))
    monkeypatch.setattr(hit_counts, "_FEW", 1)
    monkeypatch.setattr(hit_counts, "_MOST", 3)
    for member, name in ((north, "north"), (south, "south")):
        own = [f"{name}{number:02}" for number in range(40)]
        member.datasets = [
            dataset(f"urn:hanse:{name}:d{n}", **{"dcat:keyword": ["both", *own] if n else own}) for n in range(4)
        ]
        await catalogue.admit(member, name)
        await catalogue.crawl(name)
    (shown,) = (await catalogue.search())["facets"]["keyword"]["values"]
    assert (shown["value"][:5], shown["count"]) == (
        "north",
        4,
    )  # `both` has six, and is nowhere among the largest three


async def test_the_last_page_that_can_be_asked_for_leads_to_no_other(
    filled: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (search_query, search_service):
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
    elsewhere = {**catalogue.operator, "host": "elsewhere.test"}
    first = await catalogue.http.get("/api/v1/search?size=10&q=herring", headers=elsewhere)
    assert first.headers["link"] == '<http://catalogue.test/api/v1/search?size=10&q=herring&page=2>; rel="next"'
    assert (await catalogue.ids(page=9)) == []
    assert [hit["name"] for hit in (await catalogue.search("north/d7"))["results"]] == ["d7"]


@pytest.mark.parametrize("words", ["", "herring"])
async def test_pages_leave_none_out_where_one_changes_between_them(
    catalogue: Catalogue, north: Provider, south: Provider, words: str
) -> None:
    for member, name in ((north, "north"), (south, "south")):
        member.datasets = [dataset(f"urn:hanse:{name}:d{n}", **{"dct:title": "herring"}) for n in range(30)]
        await catalogue.admit(member, name)
        await catalogue.crawl(name)
    met = [await catalogue.ids(words, size=10, page=page) for page in (1, 2)]
    changed = next(one for one in north.datasets if one["@id"] in met[0])
    changed["dct:description"] = "Fresh."
    await catalogue.crawl("north")
    met += [await catalogue.ids(words, size=10, page=page) for page in (3, 4, 5, 6)]
    assert len({one for page in met for one in page}) == 60


async def test_a_dataset_with_a_long_id_is_found_by_it(catalogue: Catalogue, north: Provider) -> None:
    north.datasets = [dataset("urn:hanse:north:" + "x:" * 400 + end) for end in "ab"]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    assert await catalogue.ids(north.datasets[1]["@id"]) == [north.datasets[1]["@id"]]


@pytest.mark.parametrize("query", ["page=0", "page=101&size=100", "size=101", "size=0", "page=x", "q=" + "a" * 501])
async def test_a_search_too_long_or_too_deep_is_refused(catalogue: Catalogue, query: str) -> None:
    answer = await catalogue.http.get(f"/api/v1/search?{query}")
    assert answer.status_code == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert "expected" in answer.json()["detail"] or "should be" in answer.json()["detail"]


@pytest.mark.parametrize("asked", ["state:aktiv", "policy:members"])
def test_what_no_dataset_can_have_is_refused_with_what_one_can(asked: str) -> None:
    with pytest.raises(Invalid, match=r"expected as (state|policy) one of .*(stale|members-only), .*, came"):
        search_query.parse_query(asked)


async def test_a_filter_that_is_none_is_refused_and_an_owner_is_a_participant(filled: Catalogue) -> None:
    for name in ("columns", "partcipant", "Owner"):
        answer = await filled.http.get(f"/api/v1/search?{name}=south")
        assert (answer.status_code, answer.json()["code"]) == (400, "parameter_unknown")
        assert f"came '{name}'" in answer.json()["detail"]
    assert [(await filled.search("weather", owner=one))["total"] for one in ("north", "south")] == [2, 0]


def test_many_filters_are_refused() -> None:
    for said in ({"columns": ["a" * 1500, "b" * 501]}, {"filters": {"keyword": ["c" * 2001]}}):
        with pytest.raises(Invalid, match="at most 2000 characters of columns together"):
            search_query.parse_query("", **said)
    with pytest.raises(Invalid, match="at most 20 filters"):
        search_query.parse_query(" ".join(f"keyword:k{n}" for n in range(21)))


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
    assert "".join(piece.text for piece in mark_words(text, lambda word: word == "a")) == text


def test_columns_are_matched_by_the_words_of_their_names() -> None:
    assert find_names(["glucoseMgDl", "tumor_size", "x"], lambda word: word in ("glucose", "size")) == [
        "glucoseMgDl",
        "tumor_size",
    ]


async def test_a_lost_or_foreign_index_is_built_anew(filled: Catalogue) -> None:
    kept = filled.parts.index
    answer = await filled.http.post("/api/v1/index/rebuild", headers=filled.operator)
    assert answer.json() == {"entries": 4}
    assert len(await filled.ids()) == 4
    for content in ("", "{}", '{"layout": 0, "at": [9, "x"]}'):
        (kept._directory / "hanse.json").write_text(content)
        opened = Index(kept._directory, filled.parts.store)
        assert opened.catch_up() == 4
    opened._live.at = (10**9, "")  # as after the database was restored to an earlier day
    assert opened.catch_up() == 4


async def test_an_index_that_is_deleted_while_it_is_used_is_built_anew(
    filled: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ready() -> tuple[int, str]:
        answer = await filled.http.get("/health/ready")
        return answer.status_code, answer.json().get("reason", "")

    kept = filled.parts.index
    shutil.rmtree(kept._directory)
    with monkeypatch.context() as full:
        full.setattr(Index, "_create", lambda self: Path("/dev/null/no").mkdir())
        changed = {"status": "suspended"}
        answer = await filled.http.patch("/api/v1/members/north", json=changed, headers=filled.operator)
        assert answer.status_code == 200  # it is changed, whatever becomes of the index
        assert await ready() == (503, "the files of the search index are gone; it is being rebuilt")
        assert (await filled.search())["results"] == []
    assert kept.catch_up() == 4
    assert await ready() == (200, "")
    assert (await filled.search())["total"] == 0
    assert type(kept)(kept._directory, filled.parts.store).catch_up() == 0


async def test_an_index_that_takes_no_changes_is_built_anew(filled: Catalogue) -> None:
    kept = filled.parts.index
    for path in kept._live.folder.iterdir():
        if path.name != "meta.json":
            path.unlink()
    (kept._live.folder / "meta.json").write_text("{")
    await filled.parts.store.write(lambda tx: tx.entries.touch_all(tx.members.of("north").id))
    for _ in range(3):
        with pytest.raises((OSError, ValueError)):
            kept.catch_up()
        assert "did not take the last changes" in kept.problem
    assert (kept.catch_up(), kept.problem) == (4, "")


async def test_an_index_that_is_built_anew_answers_when_it_is_whole(
    filled: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, totals, apply = filled.parts.index, list[int](), Index._apply

    def applied(self: Index, *given: Any) -> None:
        apply(self, *given)
        totals.append(kept.search(search_query.SearchQuery(), Viewer()).total)
        if len(totals) == 2:  # what changes meanwhile is in it
            filled.parts.store.write_now(lambda tx: tx.members.of("north").__setattr__("title", "Renamed"))
            filled.parts.store.write_now(lambda tx: tx.entries.touch_all(tx.members.of("north").id))
            shutil.rmtree(kept._live.folder)
            assert kept.catch_up() == 0  # who comes now need not wait

    monkeypatch.setattr(index, "_BATCH", 1)
    monkeypatch.setattr(Index, "_apply", applied)
    assert kept.rebuild() >= 4
    assert set(totals) == {3}
    assert len(await filled.ids("renamed")) == 4


async def test_an_index_that_lags_never_shows_what_was_closed_since(filled: Catalogue) -> None:
    def close(tx: Any) -> None:
        tx.members.of("north").status = "suspended"

    await filled.parts.store.write(close)
    assert (await filled.search())["results"] == []


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("title", ["Alpha 2", "beta", "Čeština", "Delta", "Zeta"]),
        ("owner", ["beta", "Čeština", "Alpha 2", "Delta", "Zeta"]),
    ],
)
async def test_hits_are_sorted_over_all_pages(
    catalogue: Catalogue, north: Provider, south: Provider, sort: str, first: list[str]
) -> None:
    north.datasets = [
        dataset(f"urn:hanse:north:{n}", **{"dct:title": t}) for n, t in enumerate(("Zeta", "Alpha 2", "Delta"))
    ]
    south.datasets = [dataset(f"urn:hanse:south:{n}", **{"dct:title": t}) for n, t in enumerate(("Čeština", "beta"))]
    await catalogue.admit(north, "north", title="Zenith of the North")
    await catalogue.admit(south, "south", title="ärzte of the South")
    for name in ("north", "south"):
        await catalogue.crawl(name)
    pages = [await catalogue.search("", sort=sort, size=2, page=page) for page in (1, 2, 3)]
    assert [hit["title"] for page in pages for hit in page["results"]] == first


async def test_an_unknown_order_is_refused(catalogue: Catalogue) -> None:
    answer = await catalogue.http.get("/api/v1/search", params={"sort": "price"})
    assert answer.status_code == 400
    assert "relevance, title, newest, owner" in answer.text


async def suggested(catalogue: Catalogue, q: str, *, operator: bool = True, **params: str) -> list[tuple[str, str]]:
    headers = catalogue.operator if operator else {}
    answer = await catalogue.http.get("/api/v1/search/suggestions", params={"q": q, **params}, headers=headers)
    assert answer.status_code == 200, answer.text
    return [(one["text"], one["kind"]) for one in answer.json()["suggestions"]]


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("Blutz", [("Blutzuckermessungen", "dataset")]),
        ("diab", [("Blutzuckermessungen", "dataset"), ("Diabetes", "keyword")]),
        ("women tum", [("Patients of a trial", "dataset"), ("women column:tumor_size", "column")]),
        ("taglich gluc", [("Blutzuckermessungen", "dataset"), ("taglich column:glucoseMgDl", "column")]),
        ("aviation theme:HEAL", []),
        ("w", []),
        ("weather ", []),
        ("--", []),
        ("", []),
    ],
)
async def test_what_is_typed_is_completed(filled: Catalogue, typed: str, found: list[tuple[str, str]]) -> None:
    assert await suggested(filled, typed) == found


async def test_what_a_viewer_may_not_see_is_never_suggested(filled: Catalogue) -> None:
    assert await suggested(filled, "fligh") == [("Flights and delays", "dataset")]
    for typed in ("fligh", "avi", "tail"):
        assert await suggested(filled, typed, operator=False) == []
    assert await suggested(filled, "fligh", theme="HEAL") == []


async def test_suggestions_are_few_and_of_limited_length(catalogue: Catalogue, north: Provider) -> None:
    words = [f"herring{number}" for number in range(50)]
    about = {"dcat:keyword": words, "hanse:columns": [f"herring_{number}{'x' * 300}" for number in range(50)]}
    north.datasets = [dataset(f"urn:hanse:north:{n}", **{"dct:title": f"Herring {n}", **about}) for n in range(30)]
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    found = await suggested(catalogue, "herr")
    assert [kind for _, kind in found] == ["dataset"] * 5 + ["keyword"] * 3
