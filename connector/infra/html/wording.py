"""Phrases that the console and the catalogue share: ages, counts, how a rule is enforced. Pure."""

from __future__ import annotations

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


def format_age(seconds: float) -> str:
    """`just now`, `5 minutes ago`, `3 days ago`."""
    for least, size, unit in UNITS:
        if seconds >= least:
            return f"{int(seconds // size)} {unit} ago"
    return "just now" if seconds < 60 else "a minute ago"


def format_count(number: int, one: str, many: str = "") -> str:
    """`1 dataset`, `1,204 datasets`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
