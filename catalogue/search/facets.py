"""What search results are grouped and filtered by: one line per facet in FACETS. Pure.

A facet's values come from one rendering of an entry (`Card`), so they hold only what its viewers may see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from catalogue.crawl.entry import CatalogueEntry
from catalogue.crawl.offer_terms import CatalogueOffer
from policies.vocabulary import expand

# The EU's data themes (authority table data-theme), whose codes providers write; the labels are ours to search by.
THEMES = {
    "AGRI": "Agriculture, fisheries, forestry and food",
    "ECON": "Economy and finance",
    "EDUC": "Education, culture and sport",
    "ENER": "Energy",
    "ENVI": "Environment",
    "GOVE": "Government and public sector",
    "HEAL": "Health",
    "INTR": "International issues",
    "JUST": "Justice, legal system and public safety",
    "OP_DATPRO": "Provisional data",
    "REGI": "Regions and cities",
    "SOCI": "Population and society",
    "TECH": "Science and technology",
    "TRAN": "Transport",
}
THEME_BASE = "http://publications.europa.eu/resource/authority/data-theme/"
POLICIES = {
    "aggregates-only": "Aggregates only",
    "differential-privacy": "Differential privacy",
    "fee": "Fee",
    "masked": "Masked columns",
    "members-only": "Members only",
    "minimum-group": "Minimum group size",
    "no-redistribution": "No redistribution",
    "open": "Open",
    "purpose-bound": "Bound to a purpose",
    "region-bound": "Bound to a region",
    "streaming": "Streaming of rows",
    "time-limited": "Time-limited",
    "training": "Training of models",
    "unknown-terms": "Has unknown terms",
    "unreadable": "Not readable",
}
STATES = {"active": "Up to date", "new": "New", "stale": "Stale", "unreachable": "Owner unreachable"}


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryView:
    """One rendering of an entry with its visible offers, for viewers with one of `views` except `hidden_from`."""

    entry: CatalogueEntry
    offers: tuple[CatalogueOffer, ...]
    state: str
    owner: str  # short name of the member
    owner_title: str
    country: str
    first_seen: float
    modified_at: float
    last_seen: float
    views: tuple[str, ...] = ()
    hidden_from: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """How a program asks for the dataset: by its short name where that stands for this id, and for no other of its
        owner's that ends in it, too."""
        entry = self.entry
        short = entry.id in (entry.name, f"urn:hanse:{self.owner}:{entry.name}")
        return f"{self.owner}/{entry.name if short else entry.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """`name` in the API and in typed filters, `title` on the page, values of a card, and words for a value."""

    name: str
    title: str
    values: Callable[[EntryView], Iterable[str]]
    label: Callable[[str], str] = str
    shown: int = 12  # values that are counted
    aliases: tuple[str, ...] = field(default=())


def theme_code(text: str) -> str:
    """A theme's code where it is one of the EU's, else the text as it is."""
    code = text.removeprefix(THEME_BASE)
    return code.upper() if code.upper() in THEMES else text


def purpose_name(text: str) -> str:
    """`dpv:ScientificResearch`, `https://w3id.org/dpv#ScientificResearch` → `ScientificResearch`."""
    return expand(text).rpartition("#")[2].rpartition("/")[2].rpartition(":")[2] if text else ""


_WORD_ENDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def _spaced(text: str) -> str:
    """`ScientificResearch` → `Scientific Research`, `GDPRCompliance` → `GDPR Compliance`."""
    return _WORD_ENDS.sub(" ", text)


_ALL = (
    Facet(
        name="theme",
        title="Theme",
        values=lambda card: map(theme_code, card.entry.themes),
        label=lambda value: THEMES.get(value, value),
    ),
    Facet(
        name="participant",
        title="Owner",
        values=lambda card: [card.owner],
        aliases=("owner", "publisher"),
        shown=20,
    ),
    Facet(
        name="policy",
        title="Policy",
        values=lambda card: (name for offer in card.offers for name in offer.classes),
        label=lambda value: POLICIES.get(value, value),
    ),
    Facet(
        name="purpose",
        title="Purpose",
        values=lambda card: (purpose_name(purpose) for offer in card.offers for purpose in offer.purposes),
        label=_spaced,
    ),
    Facet(name="keyword", title="Keyword", values=lambda card: (word.lower() for word in card.entry.keywords)),
    Facet(name="country", title="Country", values=lambda card: [card.country]),
    Facet(name="license", title="License", values=lambda card: [card.entry.license]),
    Facet(name="format", title="Transfer", values=lambda card: card.entry.formats),
    Facet(name="state", title="State", values=lambda card: [card.state], label=lambda value: STATES.get(value, value)),
)
FACETS: dict[str, Facet] = {facet.name: facet for facet in _ALL}


def facet_named(name: str) -> Facet | None:
    """A facet by its name or one of its aliases."""
    return FACETS.get(name) or next((facet for facet in _ALL if name in facet.aliases), None)
