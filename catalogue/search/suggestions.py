"""Completions of a search while it is typed. Pure.

They come from renderings that the viewer may see, and say nothing of any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from catalogue.search.facets import EntryView
from catalogue.search.substrings import words_of

SHOWN = 8
_TITLES = 5
_TEXT_MAX, _NAMES = 200, 1_000  # characters of a completion, and names of one dataset that are looked through


@dataclass(frozen=True, slots=True)
class Suggestion:
    """What the search box may hold, and what it leads to: dataset, keyword or column."""

    text: str
    kind: str


def split_last(text: str) -> tuple[str, str]:
    """A text before its last word, and that word; empty where the text ends in a space or a typed filter."""
    head, _, last = text.rpartition(" ")
    return (text, "") if ":" in last else (head, last)


def suggest(cards: Sequence[EntryView], head: str, beginning: str) -> list[Suggestion]:
    """Titles of these datasets, then keywords and columns with this beginning, after the words before it."""
    start = beginning.casefold()
    titles = dict.fromkeys(card.entry.title for card in cards if len(card.entry.title) <= _TEXT_MAX)
    found = [Suggestion(title, "dataset") for title in islice(titles, _TITLES)]
    more = chain(_keywords(cards, start), _columns(cards, start))
    before = f"{head} " if head else ""
    unique = dict.fromkeys(Suggestion(f"{before}{one.text}", one.kind) for one in more)
    return [*found, *islice(unique, SHOWN - len(found))]


def _keywords(cards: Iterable[EntryView], start: str) -> Iterator[Suggestion]:
    words = (word for card in cards for word in card.entry.keywords)
    return (Suggestion(word, "keyword") for word in words if word.casefold().startswith(start))


def _columns(cards: Iterable[EntryView], start: str) -> Iterator[Suggestion]:
    names = (column.name for card in cards for column in card.entry.columns[:_NAMES])
    plain = (name for name in names if len(name) <= _TEXT_MAX and not {" ", '"'}.intersection(name))
    fitting = (name for name in plain if any(word.casefold().startswith(start) for word in (name, *words_of(name))))
    return (Suggestion(f"column:{name}", "column") for name in fitting)
