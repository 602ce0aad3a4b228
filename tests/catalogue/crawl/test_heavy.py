"""A member whose descriptions are as heavy as they may be: what it costs the others has an end."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from catalogue.api import export_routes
from catalogue.exports import dcat
from catalogue.search import highlight, index
from catalogue.search.index import _TEXTS_MAX, Index
from tests.catalogue.conftest import Catalogue
from tests.catalogue.provider import Provider, dataset

WORDS = " ".join(f"word{number}" for number in range(2_000))
COLUMNS = [f"column_{number}" for number in range(2_000)]


def offer(number: int, constraint: dict[str, Any]) -> dict[str, Any]:
    permission = {"action": "use", "constraint": [constraint]}
    return {"@id": f"urn:offer:{number}", "@type": "Offer", "permission": [permission]}


def purposes(number: int) -> dict[str, Any]:
    values = [f"https://w3id.org/dpv#Purpose{number}x{index}" for index in range(40)]
    return offer(number, {"leftOperand": "odrl:purpose", "operator": "isAnyOf", "rightOperand": values})


def heavy(name: str, offers: list[dict[str, Any]], *, formats: int = 1) -> dict[str, Any]:
    made = dataset(f"urn:hanse:north:{name}", **{"dct:title": "Herring", "dct:description": WORDS})
    made["hasPolicy"] = offers
    made["hanse:columns"] = COLUMNS
    made["distribution"] = [{**made["distribution"][0], "format": f"F{number}"} for number in range(formats)]
    return made


@pytest.fixture
async def filled(catalogue: Catalogue, north: Provider) -> Catalogue:
    north.datasets = [heavy(f"d{n}", [purposes(number) for number in range(60)], formats=15) for n in range(4)]
    await catalogue.admit(north, "north")
    assert (await catalogue.crawl("north"))["datasets"] == 4
    return catalogue


async def test_a_page_of_an_export_ends_where_it_is_long_and_keeps_nobody_waiting(
    filled: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are answered meanwhile: it is written in another thread than the one that answers."""
    threads, make = set[int](), dcat.catalog
    monkeypatch.setattr(export_routes, "_PAGE_BYTES", 5 * 2**20)
    monkeypatch.setattr(dcat, "catalog", lambda *given: (threads.add(threading.get_ident()), make(*given))[1])
    path, lengths, found = "/catalog.ttl", list[int](), set[str]()
    while path:
        text = (await filled.http.get(path)).text
        lengths.append(len(text))
        found |= {line.split(">")[0] for line in text.split("\n<") if line.split("\n")[1:2] == ["    a dcat:Dataset ;"]}
        _, _, after = text.partition("hydra:next <http://catalogue.test")
        path = after.partition(">")[0]
    assert len(found) == 4
    assert 2 <= len(lengths) <= 4
    assert max(lengths) < 2 * 5 * 2**20
    assert threading.get_ident() not in threads


async def test_a_list_has_of_each_dataset_what_a_line_holds_and_its_address_all(filled: Catalogue) -> None:
    answer = await filled.search("herring")
    assert answer["total"] == 4
    assert len(json.dumps(answer["results"])) < 4 * 80_000
    first = answer["results"][0]
    assert (first["column_count"], first["offer_count"]) == (2_000, 60)
    whole = (await filled.http.get(f"/api/v1/datasets/{first['id']}", headers=filled.operator)).json()
    assert (whole["description"], len(whole["columns"]), len(whole["offers"])) == (WORDS, 2_000, 60)


async def test_an_entry_for_a_hundred_members_is_no_hundred_long_texts_to_the_index(
    catalogue: Catalogue, north: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = [
        offer(n, {"leftOperand": "ds:participant", "operator": "eq", "rightOperand": f"did:web:m{n}"})
        for n in range(100)
    ]
    late = {"dct:description": f"{WORDS} lighthouse"}
    north.datasets = [heavy("named", named) | late, dataset("urn:hanse:north:light", **late)]
    put: dict[str, int] = {}
    make = index._document

    def counted(card: Any, texts: dict[str, str], names: dict[str, list[str]]) -> Any:
        long = [*texts.values(), *(one for some in names.values() for one in some)]
        put[card.entry.name] = put.get(card.entry.name, 0) + sum(map(len, long))
        return make(card, texts, names)

    monkeypatch.setattr(index, "_document", counted)
    await catalogue.admit(north, "north")
    await catalogue.crawl("north")
    assert put["named"] < 5 * _TEXTS_MAX
    assert put["light"] > len(WORDS)
    assert await catalogue.ids("lighthouse") == ["urn:hanse:north:light"]
    assert set(await catalogue.ids("word1")) == {"urn:hanse:north:light", "urn:hanse:north:named"}


async def test_what_is_marked_of_a_page_is_looked_for_beside_the_loop(
    filled: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, mark = set[int](), highlight.excerpt
    monkeypatch.setattr(highlight, "excerpt", lambda *given: (threads.add(threading.get_ident()), mark(*given))[1])
    looked: list[str] = []
    monkeypatch.setattr(Index, "words_in", lambda self, text: (looked.append(text), WORDS_IN(self, text))[1])
    found = await filled.search("herring column:column_1999 column:column_0")
    assert [hit["matched_columns"] for hit in found["results"]] == [["column_0", "column_1999"]] * 4
    assert threads
    assert threading.get_ident() not in threads
    assert len(looked) < 2_000  # each word once for all hits


WORDS_IN = Index.words_in
