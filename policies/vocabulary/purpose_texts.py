"""Titles and meanings of the purposes of the Data Privacy Vocabulary, for people who choose one. Data only."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from policies.vocabulary.terms import compact

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z][a-z]*")


@dataclass(frozen=True, slots=True)
class PurposeText:
    """A purpose: its compact name (`dpv:ScientificResearch`), a title (`Scientific research`) and what it means."""

    name: str
    title: str
    meaning: str


@cache
def purpose_texts() -> dict[str, PurposeText]:
    """Return the purposes by compact name, in the order of their titles."""
    shipped = Path(__file__).parent / "purpose_texts.txt"
    lines = (line.partition(": ") for line in shipped.read_text(encoding="utf-8").splitlines() if line[:1].isalpha())
    found = [PurposeText(f"dpv:{name}", title_of(name), meaning) for name, _, meaning in lines]
    return {one.name: one for one in sorted(found, key=lambda one: one.title)}


def title_of(name: str) -> str:
    """Return the words of a purpose's name: `Scientific research` for `dpv:ScientificResearch` or its IRI.

    A name that is not written in that way is returned in its compact form.
    """
    local = compact(name).partition(":")[2] or name
    words = _WORDS.findall(local)
    if "".join(words) != local or "//" in compact(name):
        return compact(name)
    first, *rest = words
    return " ".join([first, *(word if word.isupper() else word.lower() for word in rest)])
