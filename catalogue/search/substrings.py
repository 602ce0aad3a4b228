"""Pieces of words: names cut at their seams, and the ends of words, by which a part of a word is found. Pure.

A part of a word is the beginning of one of its ends: `zucker` begins `zuckerwert`, an end of `blutzuckerwert`. So a
part is always found in one word, and never put together from several.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

LONGEST = 32  # letters of a part that can be looked for
_SEAM = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_BREAK = re.compile(rf"[\W_]+|{_SEAM.pattern}")
# Scripts without spaces between words, where two characters are a word: Thai and Lao, kana, Han, Hangul.
_DENSE = re.compile("[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\U00020000-\U0003ffff]")


def seams(name: str) -> str:
    """`glucoseMgDl` → `glucose Mg Dl`."""
    return _SEAM.sub(" ", name)


def spread(name: str) -> str:
    """`glucoseMgDl` → its words, and the name as it is."""
    split = seams(name)
    return name if split == name else f"{split} {name}"


def words_of(name: str) -> list[str]:
    """`glucoseMg_dl` → `glucose`, `Mg`, `dl`."""
    return [word for word in _BREAK.split(name) if word]


def is_part(word: str, least: int) -> bool:
    """Whether a word is long enough, and not too long, to be looked for inside others."""
    return _least(word, least) <= len(word) <= LONGEST


def ends(words: Iterable[str], *, least: int, most: int) -> str:
    """The ends of all words that have `least` letters, each once; of many about the first `most` characters."""
    found: dict[str, None] = {}
    length = 0
    for word in dict.fromkeys(words):
        if length > most:
            break
        for start in range(len(word) - _least(word, least) + 1):
            end = word[start : start + LONGEST]
            length += len(end) if end not in found else 0
            found[end] = None
    return " ".join(found)


def are_within(words: Sequence[str], name: Sequence[str]) -> bool:
    """Whether the words stand side by side, in their order, among those of a name, or are its letters otherwise cut."""
    size = len(words)
    beside = any(name[start : start + size] == words for start in range(len(name) - size + 1))
    return bool(words) and (beside or "".join(words) == "".join(name))


def _least(word: str, least: int) -> int:
    return 2 if _DENSE.search(word) else least
