"""Languages as providers say them, as tags and as the EU's IRIs."""

from __future__ import annotations

import pytest

from catalogue.crawl.languages import iri_of, tag_of
from catalogue.search.index import language_of

EU = "http://publications.europa.eu/resource/authority/language/"


@pytest.mark.parametrize(
    ("said", "tag", "iri", "stemmer"),
    [
        ("de", "de", f"{EU}DEU", "de"), ("DE-at", "de-at", f"{EU}DEU", "de"), ("de_AT", "de-AT", f"{EU}DEU", "de"),
        (f"{EU}DEU", "de", f"{EU}DEU", "de"), ("deu", "de", f"{EU}DEU", "de"), ("ger", "de", f"{EU}DEU", "de"),
        (f"{EU}EST", "et", f"{EU}EST", "en"), ("es", "es", f"{EU}SPA", "es"), ("est", "et", f"{EU}EST", "en"),
        (f"{EU}POL", "pl", f"{EU}POL", "en"), ("zh-Hant", "zh-Hant", f"{EU}ZHO", "en"),
        ("nds", "nds", f"{EU}NDS", "en"),
        ("http://lexvo.org/id/iso639-3/fra", "fr", f"{EU}FRA", "fr"), ("ell", "el", f"{EU}ELL", "el"),
        ("http://id.test/languages#sv", "sv", f"{EU}SWE", "sv"),
        ("http://id.test/frisian", "", "http://id.test/frisian", "en"),
        (f"{EU}MUL", "", f"{EU}MUL", "en"), ("und", "", "", "en"), ("German", "", "", "en"), ("xx", "", "", "en"),
        ("", "", "", "en"), ("de\n", "de", f"{EU}DEU", "de"), ("de fr", "", "", "en"),
    ],
)  # fmt: skip
def test_a_language_is_the_whole_code_or_none(said: str, tag: str, iri: str, stemmer: str) -> None:
    assert (tag_of(said), iri_of(said), language_of(said)) == (tag, iri, stemmer)
