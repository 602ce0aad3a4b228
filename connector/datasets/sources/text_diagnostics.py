"""Why a column of CSV stayed text although its first rows are numbers or days for the most part. Tells its owner only:
no type, value or row depends on it. Opens nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from connector.datasets.sources.text_inference import Written, number_form

ROWS = 10_000
CHARACTERS = 100  # of each value are looked at
_SHOWN_MAX = 40
_LIKELY = re.compile(r"[-+.,]?\d[-+.,:/ '\deEtTzZ]*", re.ASCII)
_DAY = re.compile(r"(\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{4} \d{1,2} \d{1,2})([ T]\d.*)?", re.ASCII)
_ZERO = re.compile(r"[-+]?0\d+", re.ASCII)
_OTHERWISE = (  # options that may make numbers of a column, the fewer first
    ("decimal=,", Written(point=",")),
    ("decimal=, and thousands=.", Written(point=",", thousands=".")),
    ("thousands=,", Written(thousands=",")),
    ("thousands='", Written(thousands="'")),
    ("thousands=' '", Written(thousands=" ")),
)


def note_of(values: Sequence[str | None], written: Written) -> str:
    """What the owner is told of a column of text that begins with these values; empty where most are neither numbers
    nor days. `written`: how its owner says that numbers are written."""
    texts = [text for value in values if value is not None and (text := value.strip())]
    if not _most(_LIKELY, texts):
        return ""
    number = re.compile(number_form(written), re.ASCII)
    if len(texts) < sum(value is not None for value in values) and (_most(number, texts) or _most(_DAY, texts)):
        return "text, as some of it is an empty text"
    gaps = None in values
    if _most(number, texts):
        zeros = [text for text in texts if _ZERO.fullmatch(text)]
        if zeros:
            return f"text, as a number does not keep the zero that {_shown(zeros[0])} begins with"
        if signed := [text for text in texts if text.startswith("+") and number.fullmatch(text)]:
            return f"text, as {_shown(signed[0])} has a plus sign"
        return _all_but("number", number, texts, gaps=gaps)
    if _most(_DAY, texts):
        return _days(texts) or _all_but("day", _DAY, texts, gaps=gaps)
    return "" if written.thousands or written.point != "." else _otherwise(texts)


def _most(form: re.Pattern[str], texts: Sequence[str]) -> bool:
    return 2 * _count(form, texts) > len(texts)


def _count(form: re.Pattern[str], texts: Sequence[str]) -> int:
    return sum(map(bool, map(form.fullmatch, texts)))


def _all_but(what: str, form: re.Pattern[str], texts: Sequence[str], *, gaps: bool) -> str:
    others = [text for text in texts if not form.fullmatch(text)]
    if not others:
        return f"text, as a value that is not among the first {ROWS:,} is no plain {what}"
    alone = not gaps and len(set(others)) == 1 and len(others[0]) <= _SHOWN_MAX  # with the option gaps are texts
    todo = f"; where that stands for a missing value, give null_text={others[0]}" if alone else ""
    return f"text, as {_shown(others[0])} is no plain {what}{todo}"


def _days(texts: Sequence[str]) -> str:
    """What is told of days; empty where some other value is among them."""
    days = [found for text in texts if (found := _DAY.fullmatch(text))]
    ways = {re.sub(r"\d+", _part, day[1]): _shown(day[0]) for day in reversed(days)}  # the first of each
    if len(ways) > 1:
        one, other, *_ = reversed(ways.values())
        return f"text, as its days are written in several ways, such as {one} and {other}"
    if len(days) < len(texts):
        return ""
    return (
        f"text, as not all of its days are read in one way, such as {_shown(texts[0])}; give date_format or "
        "timestamp_format"
    )


def _part(digits: re.Match[str]) -> str:
    return "Y" if len(digits[0]) == 4 else "d"


def _otherwise(texts: Sequence[str]) -> str:
    """What is told of numbers that are such with other options."""
    counts = {option: _count(re.compile(number_form(one), re.ASCII), texts) for option, one in _OTHERWISE}
    best = max(counts.values())
    if 2 * best <= len(texts):
        return ""
    options = [option for option, count in counts.items() if count == best]
    fewest = [option for option in options if not any(option.startswith(f"{other} ") for other in options)]
    return f"text; where {_shown(texts[0])} is a number, give {' or '.join(fewest)}"


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHOWN_MAX else f"{value[:_SHOWN_MAX]}...")
