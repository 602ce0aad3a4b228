"""Notes for the owner on why a CSV column stayed text although most of its first values are numbers or days.

No type, value or row depends on it. Opens no files.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from connector.datasets.sources.text_inference import NumberStyle, number_form

ROWS = 10_000
CHARACTERS = 100  # of each value are looked at
_SHOWN_MAX = 40
_LIKELY = re.compile(r"[-+.,]?\d[-+.,:/ '\deEtTzZ]*", re.ASCII)
_DAY = re.compile(r"(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{4} \d{1,2} \d{1,2})([ T]\d.*)?", re.ASCII)
_ZERO = re.compile(r"[-+]?0\d+", re.ASCII)
_OTHERWISE = (  # options that may make numbers of a column, the fewer first
    ("decimal=,", NumberStyle(point=",")),
    ("decimal=, and thousands=.", NumberStyle(point=",", thousands=".")),
    ("thousands=,", NumberStyle(thousands=",")),
    ("thousands='", NumberStyle(thousands="'")),
    ("thousands=' '", NumberStyle(thousands=" ")),
)


def note_of(values: Sequence[str | None], written: NumberStyle) -> str:
    """Return the note on a text column with these first values; empty if most are neither numbers nor days.

    `written`: the number format that the owner gave.
    """
    texts = [text for value in values if value is not None and (text := value.strip())]
    if not _fits_most(_LIKELY, texts):
        return ""
    number = re.compile(number_form(written), re.ASCII)
    if len(texts) < sum(value is not None for value in values) and (
        _fits_most(number, texts) or _fits_most(_DAY, texts)
    ):
        return "text, as some of it is an empty text"
    gaps = None in values
    if _fits_most(number, texts):
        zeros = [text for text in texts if _ZERO.fullmatch(text)]
        if zeros:
            return f"text, as a number does not keep the zero that {_quote_value(zeros[0])} begins with"
        if signed := [text for text in texts if text.startswith("+") and number.fullmatch(text)]:
            return f"text, as {_quote_value(signed[0])} has a plus sign"
        return _note_exception("number", number, texts, gaps=gaps)
    if _fits_most(_DAY, texts):
        return _note_days(texts) or _note_exception("day", _DAY, texts, gaps=gaps)
    return "" if written.thousands or written.point != "." else _suggest_options(texts)


def _fits_most(form: re.Pattern[str], texts: Sequence[str]) -> bool:
    return 2 * _count(form, texts) > len(texts)


def _count(form: re.Pattern[str], texts: Sequence[str]) -> int:
    return sum(map(bool, map(form.fullmatch, texts)))


def _note_exception(what: str, form: re.Pattern[str], texts: Sequence[str], *, gaps: bool) -> str:
    others = [text for text in texts if not form.fullmatch(text)]
    if not others:
        return f"text, as a value that is not among the first {ROWS:,} is no plain {what}"
    alone = not gaps and len(set(others)) == 1 and len(others[0]) <= _SHOWN_MAX  # with the option gaps are texts
    todo = f"; where that stands for a missing value, give null_text={others[0]}" if alone else ""
    return f"text, as {_quote_value(others[0])} is no plain {what}{todo}"


def _note_days(texts: Sequence[str]) -> str:
    """Return the note on a column of days; empty if it has other values too."""
    days = [found for text in texts if (found := _DAY.fullmatch(text))]
    ways = {re.sub(r"\d+", _part, day[1]): _quote_value(day[0]) for day in reversed(days)}  # the first of each
    if len(ways) > 1:
        one, other, *_ = reversed(ways.values())
        return f"text, as its days are written in several ways, such as {one} and {other}"
    if len(days) < len(texts):
        return ""
    return (
        f"text, as not all of its days are read in one way, such as {_quote_value(texts[0])}; give date_format or "
        "timestamp_format"
    )


def _part(digits: re.Match[str]) -> str:
    return "Y" if len(digits[0]) == 4 else "d"


def _suggest_options(texts: Sequence[str]) -> str:
    """Return the note on values that are numbers with other options."""
    counts = {option: _count(re.compile(number_form(one), re.ASCII), texts) for option, one in _OTHERWISE}
    best = max(counts.values())
    if 2 * best <= len(texts):
        return ""
    options = [option for option, count in counts.items() if count == best]
    fewest = [option for option in options if not any(option.startswith(f"{other} ") for other in options)]
    return f"text; where {_quote_value(texts[0])} is a number, give {' or '.join(fewest)}"


def _quote_value(value: str) -> str:
    return repr(value if len(value) <= _SHOWN_MAX else f"{value[:_SHOWN_MAX]}...")
