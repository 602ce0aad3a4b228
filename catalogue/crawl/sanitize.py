"""Foreign text: what of it can be shown and written. Pure."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# What XML, and with it RDF/XML, has no way to write (XML 1.0, section 2.2), and what terminals obey.
_UNWRITABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_ACCENTS_MAX = 30


def clean(text: str, limit: int) -> str:
    """Text without control, zero-width and direction characters, in NFC, of at most `limit` characters."""
    if text.isascii() and text.isprintable():
        return text.strip()[:limit]
    kept = (
        mark for mark in unicodedata.normalize("NFC", _stream_safe(text[: 4 * limit]))
        if mark in "\n\t" or unicodedata.category(mark) not in ("Cc", "Cf", "Cs", "Co", "Cn")
    )  # fmt: skip
    return "".join(kept).strip()[:limit]


def _stream_safe(text: str) -> str:
    """Without the accents beyond 30 on one letter (UAX #15, section 13): sorting a run of them, as NFC does, takes
    time with the square of its length."""
    kept, run = [], 0
    for mark in text:
        run = run + 1 if unicodedata.category(mark).startswith("M") else 0
        if run <= _ACCENTS_MAX:
            kept.append(mark)
    return "".join(kept)


def writable(text: str) -> str:
    """Text with a mark of replacement for each character that no document can hold."""
    return _UNWRITABLE.sub("\ufffd", text)


def is_writable(value: Any) -> bool:
    """Whether every text of a JSON value can be written in every format of the exports."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, str) and _UNWRITABLE.search(one):
            return False
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list):
            waiting += one
    return True
