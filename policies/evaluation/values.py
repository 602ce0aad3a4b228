"""Parses values by declared type (decimals, times, durations, places, levels), and holds the hierarchies of regions and
purposes.

A text is parsed by the type of its operand, never guessed. Every parser raises ValueError
with what was expected and what came. Must not know policies, facts or operators.
"""

from __future__ import annotations

import calendar
import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias, TypeGuard

from policies.model import DPV, HANSE, XSD
from policies.vocabulary.terms import ValueType, compact, expand

SECOND = 1_000_000_000  # instants are whole nanoseconds since the epoch: peers send nine digits
DAY = 86_400 * SECOND
LOOSE = 14 * 3_600 * SECOND  # a time without zone is known to 14 hours either way
FOREVER = 10**30
MAX_TEXT = 20_000
_NAME_MAX = 200  # characters of a name that is compared with known names


@dataclass(frozen=True, slots=True)
class Instant:
    """A time (`start` equals `end`), a day (`end` is exclusive), or a time without zone; nanoseconds since the epoch.

    `loose`: the true time is anywhere in [start, end], both included.
    """

    start: int
    end: int
    loose: bool = False


@dataclass(frozen=True, slots=True)
class Duration:
    """Calendar months and exact nanoseconds: `P60M` is sixty months, `PT60M` is an hour."""

    months: int
    nanoseconds: int


Value: TypeAlias = str | int | Decimal | Instant | Duration

_NUMBERS = frozenset((ValueType.DECIMAL, ValueType.INTEGER, ValueType.GRID))
_NUMERIC_DATATYPES = frozenset(  # XSD 1.1 part 2, sections 3.3 and 3.4: decimal, what is derived of it, and floats
    (
        *("decimal", "integer", "long", "int", "short", "byte", "float", "double"),
        *("nonNegativeInteger", "positiveInteger", "nonPositiveInteger", "negativeInteger"),
        *("unsignedLong", "unsignedInt", "unsignedShort", "unsignedByte"),
    )
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_DECIMAL = re.compile(r"[+-]?\d{1,40}(?:\.\d{1,40})?", re.ASCII)
_INSTANT = re.compile(r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:\.(\d{1,20}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)(Z|[+-]\d\d:\d\d)?", re.ASCII)
_DURATION = re.compile(
    r"P(?:(\d{1,6})Y)?(?:(\d{1,6})M)?(?:(\d{1,6})W)?(?:(\d{1,6})D)?"
    r"(T(?:(\d{1,9})H)?(?:(\d{1,9})M)?(?:(\d{1,12})(?:\.(\d{1,9}))?S)?)?",
    re.ASCII,
)
_RANGE = re.compile(r"([+-]?\d{1,40}(?:\.\d{1,40})?)\.\.([+-]?\d{1,40}(?:\.\d{1,40})?)", re.ASCII)


@lru_cache(maxsize=8192)
def parse(type_: ValueType, text: str, datatype: str = "", levels: tuple[str, ...] = ()) -> Value:
    """Return `text` parsed as `type_`.

    Raises: ValueError with what was expected and what came.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"expected at most {MAX_TEXT} characters, got {len(text)}")
    if type_ in (ValueType.TEXT, ValueType.SCALAR):
        return text
    if type_ is ValueType.LEVEL:
        return levels.index(_require_known(text, levels))
    if type_ is ValueType.CHOICE:
        return _require_known(text, levels)
    if type_ is ValueType.INSTANT:
        return instant(text, datatype)
    if type_ in _NUMBERS and datatype.startswith(XSD) and datatype.removeprefix(XSD) not in _NUMERIC_DATATYPES:
        raise ValueError(f"expected a number, got {text!r} as xsd:{datatype.removeprefix(XSD)[:_NAME_MAX]}")
    return _READERS[type_](text)


@lru_cache(maxsize=256)
def make_reader(type_: ValueType, levels: tuple[str, ...] = ()) -> Callable[[str], Value]:
    """Return `parse` for one type, with its own cache, for observed values."""

    @lru_cache(maxsize=1024)
    def read(text: str) -> Value:
        return parse(type_, text, "", levels)

    return read


def is_text(value: object) -> TypeGuard[str]:
    """Return whether the value is a text that can be stored and sent: at most `MAX_TEXT` characters, no lone
    surrogates.
    """
    return isinstance(value, str) and len(value) <= MAX_TEXT and is_whole(value)


def is_whole(text: str) -> bool:
    """Return whether the text has no lone surrogate, which neither databases nor UTF-8 accept."""
    return text.isascii() or not _SURROGATE.search(text)


def _require_known(text: str, names: tuple[str, ...]) -> str:
    if text in names:
        return text
    near = difflib.get_close_matches(text[:_NAME_MAX].lower(), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"expected one of {', '.join(names)}, got {text[:_NAME_MAX]!r}{hint}")


def decimal(text: str) -> Decimal:
    """Parse a plain decimal such as 10 or -2.5: no exponent, at most 40 digits on either side."""
    if not _DECIMAL.fullmatch(text):
        raise ValueError(f"expected a number such as 10 or 2.5, got {text!r}")
    return Decimal(text)


def integer(text: str) -> Decimal:
    """Parse a whole number; `10.0` is ten."""
    number = decimal(text)
    if number != number.to_integral_value():
        raise ValueError(f"expected a whole number, got {text!r}")
    return number


def iri(text: str) -> str:
    """Return an IRI with its prefix expanded; refuse an empty text or spaces."""
    if not text or any(character.isspace() for character in text):
        raise ValueError(f"expected an IRI without spaces, got {text!r}")
    return expand(text)


def place(text: str) -> str:
    """Return a country as two upper-case letters, or the IRI of a known region."""
    if re.fullmatch(r"[A-Za-z]{2}", text) and text.upper() != "EU":
        code = text.upper()
        return _CODES.get(code, code)
    region = expand(text)
    if not region.startswith(REGION):
        region = REGION + text
    if region not in REGIONS:
        raise ValueError(f"expected a country of two letters or one of {', '.join(known_regions())}, got {text!r}")
    return region


def grid(text: str) -> str:
    """Parse `exact` or a bin width above 0."""
    if text == "exact":
        return text
    if not _DECIMAL.fullmatch(text) or decimal(text) <= 0:
        raise ValueError(f"expected exact or a bin width above 0 such as 10, got {text!r}")
    return format_decimal(decimal(text))


def clamp(text: str) -> str:
    """Parse `free` or `low..high`."""
    if text == "free":
        return text
    found = _RANGE.fullmatch(text)
    if not found or decimal(found[1]) > decimal(found[2]):
        raise ValueError(f"expected free or low..high such as 0..3000, got {text!r}")
    return f"{format_decimal(decimal(found[1]))}..{format_decimal(decimal(found[2]))}"


def instant(text: str, datatype: str = "") -> Instant:
    """Parse an xsd:dateTime (with or without zone) or an xsd:date; the datatype decides, otherwise the form."""
    if datatype == XSD + "date" or (datatype != XSD + "dateTime" and _DATE.fullmatch(text)):
        return _parse_day(text)
    found = _INSTANT.fullmatch(text)
    if not found:
        raise ValueError(f"expected a time such as 2027-12-31T23:59:59+01:00, got {text!r}")
    hour, minute, second = int(found[4]), int(found[5]), int(found[6])
    if hour > 24 or minute > 59 or second > 59 or (hour == 24 and (minute or second or int(found[7] or 0))):
        raise ValueError(f"expected a time of day up to 24:00:00, got {text!r}")
    fraction = int(((found[7] or "") + "0" * 9)[:9])
    local = _parse_midnight(found, text) + (hour * 3600 + minute * 60 + second) * SECOND + fraction
    if found[8] is None:
        return Instant(local - LOOSE, local + LOOSE, loose=True)
    moment = local - _parse_offset(found[8], text)
    return Instant(moment, moment)


def _parse_day(text: str) -> Instant:
    found = _DATE.fullmatch(text)
    if not found:
        raise ValueError(f"expected a day such as 2027-12-31, got {text!r}")
    start = _parse_midnight(found, text) - _parse_offset(found[4] or "Z", text)
    return Instant(start, start + DAY)


def _parse_midnight(found: re.Match[str], text: str) -> int:
    try:
        ordinal = date(int(found[1]), int(found[2]), int(found[3])).toordinal()
    except ValueError:
        raise ValueError(f"expected a day that exists, got {text!r}") from None
    return (ordinal - _EPOCH) * DAY


def _parse_offset(zone: str, text: str) -> int:
    if zone == "Z":
        return 0
    hours, minutes = int(zone[1:3]), int(zone[4:6])
    if hours > 14 or minutes > 59 or (hours == 14 and minutes):
        raise ValueError(f"expected a zone between -14:00 and +14:00, got {text!r}")
    seconds = (hours * 3600 + minutes * 60) * SECOND
    return -seconds if zone[0] == "-" else seconds


def duration(text: str) -> Duration:
    """Parse an ISO 8601 duration such as P30D, P2M, PT12H; not negative."""
    found = _DURATION.fullmatch(text)
    if not found or text == "P" or text.endswith("T"):
        raise ValueError(f"expected a duration such as P30D, P2M or PT12H, got {text!r}")
    years, months, weeks, days, _, hours, minutes, seconds, fraction = found.groups()
    whole = (
        (int(weeks or 0) * 7 + int(days or 0)) * 86_400
        + int(hours or 0) * 3_600
        + int(minutes or 0) * 60
        + int(seconds or 0)
    )
    part = int(((fraction or "") + "0" * 9)[:9])
    return Duration(int(years or 0) * 12 + int(months or 0), whole * SECOND + part)


def add_duration(start: int, span: Duration) -> int:
    """Return `start` (nanoseconds) plus a duration; months follow the calendar in UTC (31 January + P1M = end of
    February).
    """
    if not span.months:
        return start + span.nanoseconds
    days, rest = divmod(start, DAY)
    today = date.fromordinal(min(max(days + _EPOCH, 1), date.max.toordinal()))  # an agreement may contain any time
    month = today.year * 12 + today.month - 1 + span.months
    year, month = divmod(month, 12)
    if year > 9999:
        return FOREVER
    day = min(today.day, calendar.monthrange(year, month + 1)[1])
    moved = (date(year, month + 1, day).toordinal() - _EPOCH) * DAY
    return moved + rest + span.nanoseconds


def nanoseconds(now: float) -> int:
    """Return UTC seconds as nanoseconds, exact to the microsecond."""
    return round(now * 1_000_000) * 1_000


def format_time(now: float) -> str:
    """Return UTC seconds as xsd:dateTime to the second; a time beyond the calendar as a number."""
    try:
        return _format_second(int(now))
    except (ValueError, OverflowError):
        return str(now)


@lru_cache(maxsize=16)  # thousands of decisions fall into one second
def _format_second(now: int) -> str:
    days, rest = divmod(now, 86_400)
    day = date.fromordinal(days + _EPOCH).isoformat()
    return f"{day}T{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}Z"


def format_decimal(number: Decimal) -> str:
    """Return the one spelling of a number: no exponent, trailing zeros, plus sign or negative zero."""
    text = format(number, "f")
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    return "0" if text in ("-0", "") else text


def canonical_text(type_: ValueType, text: str, datatype: str = "", levels: tuple[str, ...] = ()) -> str:
    """Return the one spelling of a value, for digests: 10 = 10.0, 23:59+01:00 = 22:59Z, P1Y = P12M."""
    value = parse(type_, text, datatype, levels)
    if isinstance(value, Decimal):
        return format_decimal(value)
    if isinstance(value, Instant):
        return f"{value.start}/{value.end}/{'loose' if value.loose else 'known'}"
    if isinstance(value, Duration):
        return f"{value.months}M{value.nanoseconds}"
    return str(value)


def ancestors(value: str) -> frozenset[str]:
    """Return the value and all broader values in the shipped hierarchies."""
    return _ANCESTORS.get(value) or frozenset((value,))


def is_below(low: str, high: str) -> bool:
    """Return whether `low` equals `high` or is narrower. IRIs are compared as a whole."""
    return high in ancestors(low)


def common_descendants(one: str, other: str) -> tuple[str, ...]:
    """Return the broadest values that are equal to or narrower than both; empty without a common one."""
    if is_below(one, other) or is_below(other, one):
        return (one,) if is_below(one, other) else (other,)
    both = sorted(low for low, above_it in _ANCESTORS.items() if one in above_it and other in above_it)
    return tuple(low for low in both if not any(low != high and is_below(low, high) for high in both))


def known_regions() -> list[str]:
    """Return the short names of the shipped regions."""
    return sorted(region.removeprefix(REGION) for region in REGIONS)


def format_short(text: str) -> str:
    """Return a value as people write it: regions by name, IRIs with their prefix."""
    return text.removeprefix(REGION) if text.startswith(REGION) else compact(text)


_EPOCH = date(1970, 1, 1).toordinal()
REGION = HANSE + "region/"
_CODES = {"UK": "GB", "EL": "GR"}  # what European institutions write for ISO's GB and GR
_MEMBERS: dict[str, str] = {
    "EU": "AT BE BG CY CZ DE DK EE ES FI FR GR HR HU IE IT LT LU LV MT NL PL PT RO SE SI SK BENELUX",
    "EEA": "EU IS LI NO NORDIC",
    "EFTA": "CH IS LI NO",
    "DACH": "DE AT CH",
    "BENELUX": "BE NL LU",
    "NORDIC": "DK FI IS NO SE",
}
REGIONS: frozenset[str] = frozenset(REGION + name for name in _MEMBERS)


def suggest_purpose(text: str) -> str:
    """Return the purpose of the Data Privacy Vocabulary that a misspelt or unprefixed name probably means; empty if
    none.

    A missing or additional word is not a typing error: NonAcademicResearch is not AcademicResearch.
    """
    name = text.removeprefix(DPV)
    if text in _PURPOSES or (":" in name and name == text) or len(name) > _NAME_MAX:
        return ""
    known = sorted(one.removeprefix(DPV) for one in _PURPOSES)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.85)
    return next((one for one in near if _is_spelt_alike(name, one)), "")


def _is_spelt_alike(one: str, other: str) -> bool:
    """Whether two names differ by at most two letters at each place, and not by a word such as `AI`."""
    steps = difflib.SequenceMatcher(None, one, other).get_opcodes()
    parts = [part for tag, a, b, c, d in steps if tag != "equal" for part in (one[a:b], other[c:d])]
    return not any(len(part) > 2 or (len(part) == 2 and part[0].isupper()) for part in parts)


def purpose_hint(purpose: str) -> str:
    """Return the hint that a refusal of a purpose adds, ` (did you mean dpv:ScientificResearch?)`, or an empty text."""
    meant = suggest_purpose(expand(purpose))
    return f" (did you mean dpv:{meant}?)" if meant else ""


def _read_hierarchy(text: str) -> Iterator[tuple[str, str]]:
    """Yield (purpose, broader purpose) pairs from the lines of a shipped hierarchy."""
    for line in text.splitlines():
        broad, colon, narrow = line.partition(":")
        if colon and not line.startswith("#"):
            yield from ((DPV + name, DPV + broad) for name in narrow.split())


def _read_parents() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for region, members in _MEMBERS.items():
        for member in members.split():
            child = REGION + member if member in _MEMBERS else member
            found.setdefault(child, set()).add(REGION + region)
    shipped = Path(__file__).parents[1] / "vocabulary" / "purposes.txt"
    for child, parent in _read_hierarchy(shipped.read_text(encoding="utf-8")):
        found.setdefault(child, set()).add(parent)
    return found


def _close_hierarchy(parents: dict[str, set[str]]) -> dict[str, frozenset[str]]:
    def climb(value: str, seen: frozenset[str]) -> frozenset[str]:
        for parent in parents.get(value, ()):
            if parent not in seen:
                seen = climb(parent, seen | {parent})
        return seen

    return {child: climb(child, frozenset((child,))) for child in parents}


_ANCESTORS = _close_hierarchy(_read_parents())
_PURPOSES = frozenset(name for line in _ANCESTORS.values() for name in line if name.startswith(DPV))
_READERS: dict[ValueType, Callable[[str], Value]] = {
    ValueType.IRI: iri,
    ValueType.DECIMAL: decimal,
    ValueType.INTEGER: integer,
    ValueType.DURATION: duration,
    ValueType.PLACE: place,
    ValueType.GRID: grid,
    ValueType.RANGE: clamp,
}
