"""Phrases that the console and the catalogue share: ages, counts, how a rule is enforced. Pure."""

from __future__ import annotations

from babel.numbers import format_decimal

from connector.infra.html.languages import DEFAULT, translations

UNITS = ((86_400 * 2, 86_400, "days"), (7_200, 3_600, "hours"), (120, 60, "minutes"))
TIERS = {
    "technical": "enforced by the owner",
    "attested": "rests on a verified claim",
    "declared": "rests on what the party declares",
    "contractual": "rests on the contract",
    "refused": "not understood",
}
OWNERS_GROUPS = {
    "may": "They may",
    "only_if": "Only if",
    "limits": "Within these limits",
    "never": "Never",
    "must": "They must",
}
CONSUMERS_GROUPS = OWNERS_GROUPS | {"may": "You may", "must": "You must"}


AGES = ("just now", "a minute ago", *(f"%d {unit} ago" for _, _, unit in UNITS))
"""The texts of `format_age`."""


def format_age(seconds: float, language: str = DEFAULT) -> str:
    """`just now`, `5 minutes ago`, `3 days ago`."""
    texts = translations(language)
    for least, size, unit in UNITS:
        if seconds >= least:
            return texts.gettext(f"%d {unit} ago") % int(seconds // size)
    return texts.gettext("just now" if seconds < 60 else "a minute ago")


def format_count(number: int, one: str, many: str = "", language: str = DEFAULT) -> str:
    """`1 dataset`, `1,204 datasets`."""
    noun = translations(language).ngettext(one, many or one + "s", number)
    return f"{format_number(number, language)} {noun}"


def format_number(number: float, language: str = DEFAULT) -> str:
    """`1,204`, in German `1.204`."""
    return format_decimal(number, format="#,##0.######", locale=language)
