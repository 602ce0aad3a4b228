"""Reading a dataset as leniently as can be, and its offers as what they are."""

from __future__ import annotations

import json
from typing import Any

import pytest

from catalogue.crawl.entry import CatalogueEntry, EntryColumn, hash_content, read_dataset
from connector.errors import MessageInvalid
from tests.catalogue.provider import MEMBERS_ONLY, dataset

DCT, DCAT, OURS = "http://purl.org/dc/terms/", "http://www.w3.org/ns/dcat#", "https://w3id.org/hanse/catalog/1/"


def read(**about: Any) -> CatalogueEntry:
    untitled = {key: value for key, value in dataset("urn:hanse:north:a").items() if key != "dct:title"}
    return read_dataset({**untitled, **about}, participant="did:web:north")


@pytest.mark.parametrize(
    "about",
    [
        {"dct:title": "T", "dcat:keyword": ["k"], "dcat:theme": {"@id": "HEAL"}},
        {f"{DCT}title": [{"@value": "T", "@language": "en"}], f"{DCAT}keyword": "k", f"{DCAT}theme": [{"@id": "HEAL"}]},
        {"title": "T", "keyword": {"@value": "k"}, "theme": "HEAL"},
        {"dcterms:title": "T", "dcat:keyword": {"@set": ["k", "k", ""]}, "dcat:theme": {"@list": ["HEAL"]}},
    ],
)
def test_every_spelling_of_a_term_is_read_alike(about: dict[str, Any]) -> None:
    entry = read(**about)
    assert (entry.title, entry.keywords, entry.themes) == ("T", ("k",), ("HEAL",))


@pytest.mark.parametrize(
    "about",
    [
        {f"{OURS}columns": {"@list": [{f"{OURS}name": "age", f"{OURS}type": "int32"}]}},
        {"https://w3id.org/hanse/columns": [{"name": "age", "type": "int32"}]},
        {"hanse:columns": {"hanse:name": "age", "hanse:type": {"@value": "int32"}}},
        {"columns": [{"name": "age", "type": "int32"}, {"name": ""}, 7, {"type": "x"}]},
    ],
)
def test_columns_are_read_in_every_form(about: dict[str, Any]) -> None:
    assert read(**about).columns == (EntryColumn("age", "int32"),)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ("x", "dataset object"),
        ({}, "@id"),
        ({"@id": "a b"}, "@id"),
        ({"@id": "a\nb"}, "@id"),
        ({"@id": "a" * 1025}, "@id"),
        ({"@id": "ä" * 513}, "@id"),
        ({"@id": "urn:\u200bx"}, "@id"),
        ({"@id": 7}, "@id"),
        ({"@id": "urn:x"}, "hasPolicy"),
        ({"@id": "urn:x", "hasPolicy": [], "distribution": [{}]}, "hasPolicy"),
        ({"@id": "urn:x", "hasPolicy": [{}]}, "distribution"),
    ],
)
def test_what_the_protocol_demands_is_demanded(raw: Any, says: str) -> None:
    with pytest.raises(MessageInvalid, match=says):
        read_dataset(raw, participant="did:web:north")


def test_what_is_too_much_is_cut() -> None:
    entry = read(**{
        "dct:title": "t" * 1_000, "dct:description": "d" * 100_000, "dcat:keyword": [f"k{n}" for n in range(99)],
        "columns": [{"name": f"c{n}"} for n in range(10_050)],
    })  # fmt: skip
    assert (len(entry.title), len(entry.description), len(entry.keywords), len(entry.columns)) == (
        300,
        20_000,
        50,
        10_000,
    )


def test_an_entry_survives_its_json() -> None:
    entry = read(**{"dct:title": "T", "columns": ["a"], "hanse:audience": "public"})
    assert CatalogueEntry.from_json(json.loads(json.dumps(entry.to_json()))) == entry


@pytest.mark.parametrize(
    ("dataset_id", "name"),
    [("urn:a:b", "b"), ("urn:a:b:", "b"), ("https://a.test/b//", "b"), ("urn:a:b:/:", "b"), ("::", "::"), ("a", "a")],
)
def test_every_dataset_has_a_name(dataset_id: str, name: str) -> None:
    entry = read_dataset(dataset(dataset_id, **{"dct:title": ""}), participant="did:web:north.test")
    assert (entry.name, entry.title) == (name, name)


def test_the_digest_changes_with_the_content_only() -> None:
    one, same, other = ({"dct:title": "T"}, {f"{DCT}title": [{"@value": "T"}]}, {"dct:title": "U"})
    digests = [hash_content(read(**about).to_json()) for about in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


def constraint(left: str, right: Any, operator: str = "eq") -> dict[str, Any]:
    return {"leftOperand": left, "operator": operator, "rightOperand": right}


MEMBER = constraint("ds:membership", "active")


def naming(*names: str, country: str = "") -> dict[str, Any]:
    """A permission for the last of these, of those up to each."""
    asked = [
        constraint("ds:participant", [f"did:web:{one}" for one in names[place:]], "isAnyOf")
        for place in range(len(names))
    ]
    return {"action": "use", "constraint": asked + ([constraint("ds:participantCountry", country)] if country else [])}


@pytest.mark.parametrize(
    ("policy", "audience"),
    [
        ({"permission": [{"action": "use"}]}, ("public",)),
        ({"permission": [{"action": "use", "constraint": [constraint("odrl:purpose", "dpv:Marketing")]}]}, ("public",)),
        (MEMBERS_ONLY, ("members",)),
        ({"permission": [*MEMBERS_ONLY["permission"], {"action": "use"}]}, ("public",)),
        ({"permission": [{"action": "use", "constraint": [{"or": [MEMBER, MEMBER]}]}]}, ("members",)),
        ({"permission": [{"action": "use", "constraint": [constraint("ds:role", "research")]}]}, ("some",)),
        (
            {"permission": [{"action": "use", "constraint": [constraint("ds:participant", "did:web:a")]}]},
            ("did:web:a",),
        ),
        ({"permission": [{"action": "use", "constraint": [constraint("odrl:unheard", "x")]}]}, ("members",)),
        ({"permission": [naming("a", "b")]}, ("did:web:b",)),
        ({"permission": [naming(name) for name in "ab" * 30]}, ("did:web:a", "did:web:b")),  # many to ask one by one
        ({"permission": [naming(name, country="DE") for name in "ab" * 30]}, ()),
        ({"prohibition": [{"action": "use"}]}, ("members",)),
        ({"permission": "nonsense"}, ("members",)),
    ],
)
def test_an_offer_is_for_everybody_only_where_a_permission_asks_nothing_of_the_party(
    policy: dict[str, Any], audience: tuple[str, ...]
) -> None:
    entry = read_dataset(dataset("urn:x", policy=policy), participant="did:web:north")
    assert entry.offers[0].audience == audience


def test_an_offer_is_said_in_words_classes_purposes_and_its_end() -> None:
    policy = {
        "permission": [{
            "action": "ds:query",
            "constraint": [
                MEMBER,
                constraint("odrl:purpose", ["https://w3id.org/dpv#ScientificResearch"], "isAnyOf"),
                constraint("ds:resultKind", "aggregate"),
                constraint("ds:minGroupSize", "5", "gteq"),
                constraint("odrl:dateTime", {"@value": "2027-12-31T23:59:59Z", "@type": "xsd:dateTime"}, "lteq"),
            ],
        }],
        "prohibition": [{"action": "odrl:distribute"}],
    }  # fmt: skip
    offer = read_dataset(dataset("urn:x", policy=policy), participant="did:web:north").offers[0]
    assert offer.classes == (
        "aggregates-only", "members-only", "minimum-group", "no-redistribution", "purpose-bound", "time-limited",
    )  # fmt: skip
    assert (offer.purposes, offer.actions, offer.until) == (("dpv:ScientificResearch",), ("ds:query",), "2027-12-31")
    assert offer.sentences[0] == "The party may query the data."
    assert [line.depth for line in offer.lines] == [0, 1, 1, 1, 1, 1, 0]


@pytest.mark.parametrize("where", ["@id", "dct:title", "hanse:columns", "hasPolicy"])
def test_what_is_nested_too_deep_is_refused_or_left_out_wherever_it_stands(where: str) -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    raw = {**dataset("urn:x"), where: deep}
    if where in ("@id", "hasPolicy"):
        with pytest.raises(MessageInvalid):
            read_dataset(raw, participant="did:web:north")
    else:
        assert read_dataset(raw, participant="did:web:north").id == "urn:x"


def test_how_many_columns_there_are_is_known_where_the_first_are_listed() -> None:
    some = {f"{OURS}columns": {"@list": ["a", "b"]}}
    assert [column.name for column in read(**some).columns] == ["a", "b"]
    counts = {5_000: 5_000, 2: 0, -1: 0, "x": 0, 10**400: 0, True: 0}
    assert [read(**some, **{f"{OURS}columnCount": told}).column_count for told in counts] == list(counts.values())
    entry = read(**some, **{f"{OURS}columnCount": 7})
    assert CatalogueEntry.from_json(json.loads(json.dumps(entry.to_json()))) == entry
    before = {name: value for name, value in entry.to_json().items() if name != "column_count"}
    assert CatalogueEntry.from_json(before).column_count == 0  # as an older program has left it


def de(text: str) -> dict[str, str]:
    return {"@value": text, "@language": "de"}


@pytest.mark.parametrize(
    ("said", "language"),
    [
        ({"dct:title": de("Wald"), "dcat:keyword": ["pH"], "dct:language": "de"}, "de"),
        ({"dct:title": de("Wald"), "dcat:keyword": ["pH"], "dct:language": ["de", "en"]}, "de"),
        ({"dct:title": de("Wald"), "dcat:keyword": ["pH"]}, "de"),
        ({"dct:title": de("Wald"), "dcat:keyword": ["pH"], "dct:language": "en"}, ""),
        ({"dct:title": de("Wald"), "dct:description": "", "dct:language": "en"}, "de"),
        ({"dct:title": de("Wald"), "dct:description": {"@value": "x", "@language": None}}, "de"),
        ({"dct:title": de("Wald"), "dct:description": {"@value": "x", "@language": "DE"}}, "de"),
        ({"dct:title": de("Wald"), "dct:description": {"@value": "x", "@language": "de-AT"}}, "de"),
        ({"dct:title": de("Wald"), "dct:description": {"@value": "x", "@language": "en"}, "dct:language": "de"}, ""),
        ({"dct:title": "Wald", "dct:language": ["de", "DEU"]}, "de"),
        ({"dct:title": "Wald", "dct:language": "de-AT"}, "de-AT"),
    ],
)
def test_texts_beside_one_with_a_language_do_not_take_it_away(said: dict[str, Any], language: str) -> None:
    assert read_dataset(dataset("urn:hanse:north:a", **said), participant="did:web:north").language == language
