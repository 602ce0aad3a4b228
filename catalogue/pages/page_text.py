"""Template filters and labels of the pages: dates, labels of an offer and of filters, the Python snippet. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment
from markupsafe import Markup, escape

from catalogue.crawl.description_quality import CHECKS
from catalogue.crawl.offer_terms import CatalogueOffer, list_uses
from catalogue.pages.member_lines import OUTCOMES, WHY
from catalogue.search.facets import FACETS, POLICIES, STATES, THEMES, EntryView
from catalogue.search.search_query import SORTS, SearchQuery
from connector.infra.html.languages import DEFAULT, translations
from connector.infra.html.wording import (
    CONSUMERS_GROUPS,
    TIERS,
    WAITS,
    find_phrases,
    format_age,
    format_count,
    format_day,
    format_number,
    format_wait,
)
from policies.contracts.columns import quote_identifier
from policies.errors import PolicyError
from policies.odrl import reader
from policies.review.grouped_terms import TermGroup, group_terms

_ROWS = ("ds:stream", "ds:train", "odrl:read", "odrl:use")  # actions by which rows leave
_BY_DETAIL = ("purpose-bound", "time-limited")  # said more exactly by the purposes and the date


def day(at: float | str, language: str = DEFAULT) -> str:
    """`31 December 2027`, from a time or an ISO date as it is written; what is no date stays as it is."""
    try:
        moment = datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp() if isinstance(at, str) else at
    except ValueError:
        return str(at)
    return format_day(moment, language)


def instant(at: float) -> str:
    """For `<time datetime>`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Chip:
    """A short label on an offer, and whether it limits what leaves."""

    text: str
    rule: bool = False


def chips(offers: Iterable[CatalogueOffer], language: str = DEFAULT) -> list[Chip]:
    """Offers in a few labels: what is allowed, for what, until when."""
    classes, purposes, ends = [], [], []
    for offer in offers:
        classes += [name for name in offer.classes if name not in _BY_DETAIL]
        purposes += [value_label(name.rpartition(":")[2], "purpose", language) for name in offer.purposes]
        ends += [offer.until] if offer.until else []
    limiting = ("aggregates-only", "minimum-group")
    made = [Chip(value_label(name, "policy", language), name in limiting) for name in classes]
    made += [Chip(name) for name in purposes]
    made += [Chip(translations(language).gettext("Until %s") % day(end, language)) for end in ends]
    return list(dict.fromkeys(made))


def value_label(value: str, facet: str, language: str = DEFAULT) -> str:
    """What a value of a facet is called: translated if it is of a vocabulary, else as its owner writes it."""
    label = FACETS[facet].label(value)
    return translations(language).gettext(label) if value in _VOCABULARIES.get(facet, ()) else label


def translated(text: str, language: str = DEFAULT) -> str:
    """A text of TEXTS in the language of the page."""
    return translations(language).gettext(text)


def grouped(offer: CatalogueOffer, language: str = DEFAULT) -> list[TermGroup]:
    """An offer's terms in groups (`policies.review.grouped_terms`); none if its policy cannot be read."""
    try:
        return group_terms(reader.read(offer.policy), find_phrases(language))
    except PolicyError:
        return []


def path_of(dataset_id: str) -> str:
    """The page of a dataset."""
    return f"/datasets/{quote(dataset_id, safe=':')}"


def search_url(question: SearchQuery, **changes: Any) -> str:
    """The search page for a changed question; a facet or column that is given is put in where it is not, else out."""
    filters = {name: list(values) for name, values in question.filters.items()}
    columns = list(question.columns)
    words = changes.pop("words", question.words)
    page = changes.pop("page", 1)
    sort = changes.pop("sort", question.sort)
    for name, value in changes.items():
        chosen = columns if name == "column" else filters.setdefault(name, [])
        chosen.remove(value) if value in chosen else chosen.append(value)
    pairs = [("q", words)] if words else []
    pairs += [("column", column) for column in columns]
    pairs += [(name, value) for name, values in filters.items() for value in values]
    pairs += [("sort", sort)] if sort != "relevance" else []
    pairs += [("page", str(page))] if page > 1 else []
    return "/?" + urlencode(pairs) if pairs else "/"


def snippet(card: EntryView) -> str:
    """A Python example for the dataset: it streams rows if an offer allows that, else it asks for an aggregate."""
    allowed = [use for offer in card.offers for use in list_uses(offer)]
    rows = [use for use in allowed if use[0] in _ROWS]
    purpose = _literal(next((purpose for _, purpose in rows or allowed), ""))
    lines = [
        "import hanse",
        "",
        "# your own connector negotiates",
        "space = hanse.connect(url, token)",
        "data = space.agree(",
        f"    {_literal(card.path)},",
        f"    purpose={purpose},",
        ")",
    ]
    if rows:
        return "\n".join([*lines, "for batch in data.stream():", "    print(batch.num_rows)"])
    table = ".".join(map(quote_identifier, (card.owner, card.entry.name)))
    lines += [
        "answer = space.query(",
        f"    {f'SELECT count(*) FROM {table}'!r},",  # noqa: S608  # shown, not run
        f"    purpose={purpose},",
        ")",
        "print(answer.to_pandas())",
    ]
    return "\n".join(lines)


def _literal(text: str) -> str:
    """A text as Python writes it in double quotes: whatever a member chose as a name stays one text, and in sight."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(mark if mark.isprintable() else mark.encode("unicode_escape").decode() for mark in quoted)


_TEXT = r"'(?:[^'\\\n]|\\.)*'" + r'|"(?:[^"\\\n]|\\.)*"'
_TOKENS = re.compile(rf"(?P<c>\#[^\n]*)|(?P<s>{_TEXT})|(?P<k>\b(?:import|for|in)\b)")


def coloured(code: str) -> Markup:
    """The snippet with comments, texts and keywords marked for the stylesheet."""
    pieces, at = [], 0
    for token in _TOKENS.finditer(code):
        pieces.append(str(escape(code[at : token.start()])))
        pieces.append(f'<span class="{token.lastgroup}">{escape(token[0])}</span>')
        at = token.end()
    return Markup("".join([*pieces, str(escape(code[at:]))]))  # noqa: S704  # every piece was escaped


def licence_name(text: str) -> str:
    """A licence's IRI as people say it: `CC BY 4.0`, else its last part."""
    if not text.startswith(("https://", "http://")):
        return text
    parts = [part for part in text.split("/") if part]
    if len(parts) >= 5 and "creativecommons.org" in parts[1]:
        return f"CC {parts[3].upper()} {parts[4]}"
    return parts[-1] if len(parts) > 2 else text


_VOCABULARIES = {"theme": THEMES, "policy": POLICIES, "state": STATES}
LABELS: Mapping[str, Mapping[str, str]] = {
    "CREDENTIAL_STATES": {"active": "Active", "suspended": "Suspended", "revoked": "Revoked", "expired": "Expired"},
    "OUTCOMES": OUTCOMES,
    "TERM_GROUPS": CONSUMERS_GROUPS,
    "TIERS": TIERS,
    "WHY": WHY,
}
"""Texts of words that the templates have by name."""

TEXTS = (
    *(label for labels in (*LABELS.values(), *_VOCABULARIES.values(), SORTS) for label in labels.values()),
    *(facet.title for facet in FACETS.values()),
    *(check.advice for check in CHECKS),
    *WAITS,
    "Until %s",
    "Logged in",
    "Logged out here",
)
"""Texts of the pages that stand outside of the templates."""

_IN_LANGUAGES: Mapping[str, Any] = {
    "ago": format_age,
    "until": format_wait,
    "day": day,
    "grouped": grouped,
    "chips": chips,
    "counted": format_count,
    "number": format_number,
    "translated": translated,
    "value_label": value_label,
}
_IN_NONE: Mapping[str, Any] = {
    "instant": instant,
    "path": path_of,
    "coloured": coloured,
    "licence": licence_name,
}


def prepare(pages: Environment, language: str) -> None:
    """Add filters and labels in a language to the environment of the templates."""
    pages.filters.update(
        {**_IN_NONE, **{name: partial(each, language=language) for name, each in _IN_LANGUAGES.items()}}
    )
    for name, labels in LABELS.items():
        pages.globals[name] = {word: translated(text, language) for word, text in labels.items()}
