"""Every text of the pages has a translation: texts of templates, texts that Python gives them, and no other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from babel.messages import Catalog
from babel.messages.extract import extract
from babel.messages.pofile import read_po
from jinja2 import Environment, nodes
from jinja2.ext import babel_extract

from catalogue import pages as catalogue_pages
from catalogue.pages import page_text
from connector import console
from connector.console.page import LABELS
from connector.console.view import formatting
from connector.infra.html import languages
from connector.infra.html.languages import DEFAULT, LANGUAGES
from connector.infra.html.wording import AGES
from policies.review import grouped_terms

TEMPLATES = sorted(
    path
    for package in (console, catalogue_pages)
    for path in (Path(package.__file__ or "").parent / "templates").glob("*.html")
)
OTHERS = sorted(set(LANGUAGES) - {DEFAULT})
_KEYWORDS = {"_": None, "gettext": None, "ngettext": (1, 2)}
_COUNTED = re.compile(r"""counted\(["']([^"']+)["'](?:, "([^"]+)")?\)""")
_CODE = re.compile(r"\{%-?\s*trans\b.*?endtrans\s*-?%\}|\{#.*?#\}|\{%.*?%\}|\{\{.*?\}\}", re.DOTALL)
_PLACEHOLDER = re.compile(r"%\(\w+\)s|%d|%%|<[^>]+>|\{\w*\}")
_SHOWN = {"title", "placeholder", "aria-label", "data-label", "alt"}
_SAME_EVERYWHERE = {
    "Hanse", "API", "SQL", "Flight", "patients", "/patients", "/patients.parquet", "skip_bad_lines=10", "HEAL",
    "oncology, survival", "CC-BY-4.0", "dpv:ScientificResearch", "did:web:lab.example", "analyst", "30d, 6 months",
    "-for-research", "= 1 and consent in (broad, narrow)", '"all".""',
    "clinic-a", "did:web:clinic.example", "column:age owner:north", "DE", "DID", "Croissant", "DCAT",
    'SELECT region, count(*) AS n FROM "all".patients GROUP BY region',
}  # fmt: skip
"""Names, and examples of what is typed."""


class Texts(HTMLParser):
    """The texts of a page that a person sees."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self._code = 0
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._code += tag in ("code", "pre")
        for name, value in attrs:
            if name in _SHOWN and value:
                self._keep(value)

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("code", "pre")

    def handle_data(self, data: str) -> None:
        if not self._code:
            self._keep(data)

    def _keep(self, text: str) -> None:
        if re.search(r"[A-Za-z]{2}", text) and text.strip() not in _SAME_EVERYWHERE:
            self.found.append(text.strip())


def outside(page: str) -> list[str]:
    """The texts of a template that gettext does not have."""
    return Texts(_CODE.sub("", page)).found


def in_templates() -> Iterator[str | tuple[str, ...]]:
    for path in TEMPLATES:
        with path.open("rb") as file:
            for _, message, _, _ in extract(babel_extract, file, _KEYWORDS, options={"silent": "false"}):
                yield message
        for one, many in _COUNTED.findall(path.read_text(encoding="utf-8")):
            yield one, many or one + "s"
    yield "result row", "result rows"  # counted by a variable


def in_python() -> Iterator[str]:
    yield from AGES
    yield from page_text.TEXTS
    yield from grouped_terms.texts()
    yield from (state.capitalize() for state in formatting.STATES)
    yield from formatting.STOPPED.values()
    yield from formatting.TRANSPORTS.values()
    for labels in LABELS.values():
        yield from labels.values()


def expected() -> set[str | tuple[str, ...]]:
    return {*in_templates(), *in_python()}


def catalogue(language: str) -> Catalog:
    with (languages.FOLDER / f"{language}.po").open("rb") as file:
        return read_po(file, locale=language, abort_invalid=True)


@pytest.mark.parametrize("language", OTHERS)
def test_every_text_is_translated_and_nothing_else_is(language: str) -> None:
    found = catalogue(language)
    texts = {message.id: message for message in found if message.id}
    assert expected() - set(texts) == set(), "texts without an entry: add them to the catalogue"
    assert set(texts) - expected() == set(), "entries without a text: take them out"
    assert not found.obsolete
    for key, message in texts.items():
        assert not message.fuzzy, key
        assert all([message.string] if isinstance(message.string, str) else message.string), key


@pytest.mark.parametrize("language", OTHERS)
def test_a_translation_has_the_placeholders_and_the_markup_of_its_text(language: str) -> None:
    for message in catalogue(language):
        if not message.id:
            continue
        ours = [message.id] if isinstance(message.id, str) else message.id
        theirs = [message.string] if isinstance(message.string, str) else message.string
        for text, translation in zip(ours, theirs, strict=True):
            assert sorted(_PLACEHOLDER.findall(translation)) == sorted(_PLACEHOLDER.findall(text)), text
            assert '"' not in _PLACEHOLDER.sub("", translation).replace('"', "", text.count('"')), text


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: f"{path.parts[-4]}-{path.name}")
def test_no_text_of_a_template_is_outside_of_gettext(path: Path) -> None:
    assert outside(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: f"{path.parts[-4]}-{path.name}")
def test_no_template_gives_the_name_of_gettext_to_a_value(path: Path) -> None:
    """`{% for _, one in ... %}` would make each `_("...")` in the loop fail."""
    bound = {
        one.name
        for one in Environment(extensions=["jinja2.ext.i18n"]).parse(path.read_text()).find_all(nodes.Name)
        if one.ctx != "load"
    }
    assert not bound & {"_", "gettext", "ngettext"}


def test_the_search_for_texts_finds_them() -> None:
    page = '<p title="A title">Plain {{ x }}{{ _("x") }}{% trans %}y{% endtrans %}<code>code</code></p>'
    assert outside(page) == ["A title", "Plain"]
