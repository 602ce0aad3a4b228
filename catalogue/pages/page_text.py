"""Template filters of the pages: ages, dates, labels of an offer, the Python snippet. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlencode

from markupsafe import Markup, escape

from catalogue.crawl.offer_terms import CatalogueOffer, list_uses
from catalogue.search.facets import FACETS, POLICIES, EntryView
from catalogue.search.search_query import SearchQuery
from connector.infra.html.wording import UNITS, format_age, format_count
from policies.contracts.columns import quote_identifier
from policies.errors import PolicyError
from policies.odrl import reader
from policies.review.grouped_terms import TermGroup, group_terms

_ROWS = ("ds:stream", "ds:train", "odrl:read", "odrl:use")  # actions by which rows leave
_BY_DETAIL = ("purpose-bound", "time-limited")  # said more exactly by the purposes and the date


def until(seconds: float) -> str:
    """`now`, `in 5 minutes`."""
    if seconds < 1:
        return "now"
    for least, size, unit in UNITS:
        if seconds >= least:
            return f"in {int(seconds // size)} {unit}"
    return f"in {int(seconds)} s"


def day(at: float | str) -> str:
    """`31 December 2027`, from a time or an ISO date; what is no date stays as it is."""
    try:
        moment = datetime.fromisoformat(at) if isinstance(at, str) else datetime.fromtimestamp(at, UTC)
    except ValueError:
        return str(at)
    return f"{moment.day} {moment:%B %Y}"


def instant(at: float) -> str:
    """For `<time datetime>`."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")


@dataclass(frozen=True, slots=True)
class Chip:
    """A short label on an offer, and whether it limits what leaves."""

    text: str
    rule: bool = False


def chips(offers: Iterable[CatalogueOffer]) -> list[Chip]:
    """Offers in a few labels: what is allowed, for what, until when."""
    classes, purposes, ends = [], [], []
    for offer in offers:
        classes += [name for name in offer.classes if name not in _BY_DETAIL]
        purposes += [FACETS["purpose"].label(name.rpartition(":")[2]) for name in offer.purposes]
        ends += [offer.until] if offer.until else []
    made = [Chip(POLICIES.get(name, name), name in ("aggregates-only", "minimum-group")) for name in classes]
    made += [Chip(name) for name in purposes]
    made += [Chip(f"Until {day(end)}") for end in ends]
    return list(dict.fromkeys(made))


def grouped(offer: CatalogueOffer) -> list[TermGroup]:
    """An offer's terms in groups (`policies.review.grouped_terms`); none if its policy cannot be read."""
    try:
        return group_terms(reader.read(offer.policy))
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


FILTERS: Mapping[str, Any] = {
    "ago": format_age,
    "until": until,
    "day": day,
    "instant": instant,
    "chips": chips,
    "grouped": grouped,
    "path": path_of,
    "coloured": coloured,
    "licence": licence_name,
    "counted": format_count,
}
