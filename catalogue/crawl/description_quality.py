"""How good an entry's description is: what DCAT-AP demands and recommends, and what helps people. Pure.

Fast checks for the page and the API; the tests hold the exports against the SHACL shapes themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from catalogue.search.facets import THEMES, EntryView, theme_code


@dataclass(frozen=True, slots=True)
class QualityCheck:
    """One thing that a description should have: how much it matters, and what to do where it is missing."""

    name: str
    level: str  # mandatory | recommended | helpful
    weight: int
    fits: Callable[[EntryView], bool]
    advice: str


@dataclass(frozen=True, slots=True)
class QualityFinding:
    """A check that failed."""

    check: str
    level: str
    advice: str


@dataclass(frozen=True, slots=True)
class QualityReport:
    """A score from 0 to 100 and what would raise it, the weightiest first."""

    score: int
    findings: tuple[QualityFinding, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "score": self.score,
            "valid": not any(finding.level == "mandatory" for finding in self.findings),
            "findings": [asdict(finding) for finding in self.findings],
        }


def _described(card: EntryView) -> bool:
    columns = card.entry.columns
    return bool(columns) and all(column.type for column in columns)


CHECKS = (
    QualityCheck("title", "mandatory", 15, lambda card: bool(card.entry.title), "Give it a title."),
    QualityCheck(
        "description",
        "mandatory",
        20,
        lambda card: bool(card.entry.description),
        "Describe what a row is, where the data comes from and what it is good for.",
    ),
    QualityCheck(
        "theme",
        "recommended",
        10,
        lambda card: any(theme_code(theme) in THEMES for theme in card.entry.themes),
        f"Name a theme of the EU's list: {', '.join(THEMES)}.",
    ),
    QualityCheck(
        "keywords", "recommended", 10, lambda card: bool(card.entry.keywords), "Add keywords that people search for."
    ),
    QualityCheck(
        "license", "recommended", 10, lambda card: bool(card.entry.license), "Say the licence, best as an IRI."
    ),
    QualityCheck("schema", "helpful", 15, _described, "List the columns with their types."),
    QualityCheck(
        "policy",
        "helpful",
        10,
        lambda card: bool(card.offers) and not any(offer.problem for offer in card.offers),
        "Use words in the offer that the vocabulary knows.",
    ),
    QualityCheck(
        "long description",
        "helpful",
        5,
        lambda card: len(card.entry.description) >= 80,
        "Say more in the description: 80 characters or more.",
    ),
    QualityCheck("fresh", "helpful", 5, lambda card: card.state == "active", "Keep the connector reachable."),
)


def validate(card: EntryView) -> QualityReport:
    """Hold an entry against every check."""
    failed = sorted((check for check in CHECKS if not check.fits(card)), key=lambda check: -check.weight)
    full = sum(check.weight for check in CHECKS)
    score = round(100 * (full - sum(check.weight for check in failed)) / full)
    return QualityReport(score, tuple(QualityFinding(check.name, check.level, check.advice) for check in failed))
