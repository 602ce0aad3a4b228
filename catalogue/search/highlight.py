"""Showing why a hit fits: the words found, marked in short pieces of the entry. Pure.

Text comes out as segments (text, hit), never as markup: escaping is the page's business.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice

from catalogue.search.substrings import words_of

_WORD = re.compile(r"\w+")
_WINDOW = 240
_LOOKED_THROUGH, _NAMES = 5_000, 1_000  # characters of a text, and names: entries are as long as their owners make them
MOST = 8

Matches = Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of text, and whether it is what was searched for."""

    text: str
    hit: bool


def mark_words(text: str, matches: Matches) -> list[Segment]:
    """The whole text in segments; neighbours that are alike are one."""
    segments: list[Segment] = []
    at = 0
    for word in _WORD.finditer(text):
        if matches(word[0]):
            if word.start() > at:
                segments.append(Segment(text[at : word.start()], False))
            segments.append(Segment(word[0], True))
            at = word.end()
    if at < len(text):
        segments.append(Segment(text[at:], False))
    return segments


def excerpt(text: str, matches: Matches, *, window: int = _WINDOW) -> list[Segment]:
    """A window of the text that begins shortly before the first word found, marked."""
    flat = " ".join(text.split())
    first = next((word.start() for word in _WORD.finditer(flat[:_LOOKED_THROUGH]) if matches(word[0])), 0)
    start = 0 if len(flat) <= window else min(max(0, first - window // 4), len(flat) - window)
    if start:
        start = flat.find(" ", start, start + 40) + 1 or start
    end = min(len(flat), start + window)
    if end < len(flat):
        end = max(flat.rfind(" ", start + 1, end), start + 1)
    cut = ("… " if start else "") + flat[start:end] + (" …" if end < len(flat) else "")
    return mark_words(cut, matches)


def find_names(names: Sequence[str], matches: Matches, *, most: int = MOST) -> list[str]:
    """The first `most` names with a word that was searched for."""
    return filter_names(names, lambda name: any(map(matches, words_of(name))), most=most)


def filter_names(names: Sequence[str], fits: Matches, *, most: int = MOST) -> list[str]:
    """The first `most` names that fit."""
    return list(islice(filter(fits, names[:_NAMES]), most))
