"""Groups of datasets of several owners that have one name and one column schema (decision 95). Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from catalogue.search.facets import EntryView

GROUPED_MAX = 100  # datasets that are looked at for the groups of one page


def group_key(card: EntryView) -> str:
    """A digest of name and columns, which datasets of one group have in common. Empty without columns."""
    entry = card.entry
    if not entry.columns:
        return ""
    columns = sorted((column.name.casefold(), column.type.casefold()) for column in entry.columns)
    schema = [entry.name.casefold(), entry.column_count or len(columns), columns]
    return hashlib.sha256(json.dumps(schema).encode()).hexdigest()


def build_groups(cards: Iterable[EntryView]) -> dict[str, list[EntryView]]:
    """The first dataset of each owner with each key, in their order, where there are several owners."""
    groups: dict[str, dict[str, EntryView]] = {}
    for card in cards:
        if key := group_key(card):
            groups.setdefault(key, {}).setdefault(card.owner, card)
    return {key: list(group.values()) for key, group in groups.items() if len(group) > 1}
