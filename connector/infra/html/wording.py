"""Phrases that the console and the catalogue share: ages, counts, how a rule is enforced. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime
from functools import cache

from babel.dates import format_date, format_datetime
from babel.numbers import format_decimal

from connector.infra.html.languages import DEFAULT, translations
from policies.review.phrases import Phrases, Wording

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

DATES = {"en": ("d MMM y, HH:mm:ss 'UTC'", "d MMMM y"), "de": ("d. MMM y, HH:mm:ss 'UTC'", "d. MMMM y")}
"""How a time and a day are written, by language (patterns of Unicode's CLDR)."""

_FIRST, _LAST = -62_135_596_800, 253_402_300_799  # seconds since the epoch: years 1 to 9999

AGES = ("just now", "a minute ago", *(f"%d {unit} ago" for _, _, unit in UNITS))
"""The texts of `format_age`."""

WAITS = ("now", *(f"in %d {unit}" for _, _, unit in UNITS), "in %d s")
"""The texts of `format_wait`."""


def format_age(seconds: float, language: str = DEFAULT) -> str:
    """`just now`, `5 minutes ago`, `3 days ago`."""
    texts = translations(language)
    for least, size, unit in UNITS:
        if seconds >= least:
            return texts.gettext(f"%d {unit} ago") % int(seconds // size)
    return texts.gettext("just now" if seconds < 60 else "a minute ago")


def format_wait(seconds: float, language: str = DEFAULT) -> str:
    """`now`, `in 5 minutes`."""
    texts = translations(language)
    if seconds < 1:
        return texts.gettext("now")
    for least, size, unit in UNITS:
        if seconds >= least:
            return texts.gettext(f"in %d {unit}") % int(seconds // size)
    return texts.gettext("in %d s") % int(seconds)


def format_moment(at: float, language: str = DEFAULT) -> str:
    """`24 Nov 2026, 17:05:09 UTC`."""
    return format_datetime(in_utc(at), DATES[language][0], locale=language)


def format_day(at: float, language: str = DEFAULT) -> str:
    """`24 November 2026`."""
    return format_datetime(in_utc(at), DATES[language][1], locale=language)


def in_utc(at: float) -> datetime:
    """Convert seconds to UTC, clamped to years 1 to 9999: another participant's agreement may name any time."""
    return datetime.fromtimestamp(min(max(at, _FIRST), _LAST), UTC)


def format_count(number: int, one: str, many: str = "", language: str = DEFAULT) -> str:
    """`1 dataset`, `1,204 datasets`."""
    noun = translations(language).ngettext(one, many or one + "s", number)
    return f"{format_number(number, language)} {noun}"


def format_number(number: float, language: str = DEFAULT) -> str:
    """`1,204`, in German `1.204`."""
    return format_decimal(number, format="#,##0.######", locale=language)


@cache
def find_phrases(language: str) -> Phrases:
    """Return the phrases of terms in one of `LANGUAGES`."""

    def number(value: int) -> str:
        return format_number(value, language)

    def day(value: date) -> str:
        return format_date(value, DATES[language][1], locale=language)

    return Phrases(Wording(text=translations(language).gettext, number=number, day=day))
