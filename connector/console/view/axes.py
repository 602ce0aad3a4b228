"""Axes of a chart: a range of values or times, the ticks on it, and their labels. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_TICKS, _TIMES = 5, 7  # parts of an axis, about
_SAME = 1e-9  # values that differ by no more of their size are drawn as the same
_MINUTE, _HOUR, _DAY, _WEEK, _MONTH = 60, 3_600, 86_400, 604_800, 2_592_000  # seconds
_MONDAY = 4 * _DAY  # 5 January 1970
_SECONDS = (
    1,
    2,
    5,
    10,
    30,
    _MINUTE,
    2 * _MINUTE,
    5 * _MINUTE,
    15 * _MINUTE,
    30 * _MINUTE,
    _HOUR,
    3 * _HOUR,
    6 * _HOUR,
    12 * _HOUR,
)
_DAYS = (_DAY, 2 * _DAY, _WEEK, 2 * _WEEK)
_DAYS_MAX = 11 * _DAY  # between two ticks; above it, months are rounder
_MONTHS = (1, 2, 3, 6, 12, 24, 60, 120, 240, 600, 1_200, 2_400, 6_000, 12_000)


@dataclass(frozen=True, slots=True)
class Tick:
    """A place on an axis and what is written there."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Axis:
    """`least` and `most` are the ends of the drawn range, in the units of the data (seconds for times)."""

    least: float
    most: float
    ticks: tuple[Tick, ...]

    def place(self, value: float, start: float, length: float) -> float:
        """Where a value is drawn on a line that begins at `start`."""
        return start + (value - self.least) / (self.most - self.least) * length


def value_axis(values: Iterable[float], *, zero: bool) -> Axis:
    """Round ticks around all values; with `zero`, the axis has 0 on it."""
    found = [*values, 0.0] if zero else [*values]
    least, most = min(found), max(found)
    if most - least <= _SAME * max(abs(least), abs(most)):  # sums of one thing differ in the last digit
        room = max(1.0, abs(least) / 10)
        least, most = least - room, most + room
    elif 0 < least <= most / 2:
        least = 0.0  # an axis that could as well begin at 0 does
    step = _round_step((most - least) / _TICKS)
    if all(value == int(value) for value in found):
        step = max(step, 1.0)
    first, last = math.floor(least / step + 1e-9), math.ceil(most / step - 1e-9)
    places = [number * step for number in range(first, last + 1)]
    return Axis(places[0], places[-1], tuple(Tick(at, _number(at, step)) for at in places))


def _round_step(least: float) -> float:
    """The least of 1, 2, 5, 10, ... (of any size) that is not below `least`."""
    size = 10.0 ** math.floor(math.log10(least))
    return next(part * size for part in (1, 2, 5, 10) if part * size >= least * (1 - 1e-9))


def _number(value: float, step: float) -> str:
    if abs(value) < step / 2:
        return "0"
    if step < 1e-4 or abs(value) >= 1e9:
        return f"{value:.{max(4, _exponent(abs(value)) - _exponent(step) + 1)}g}"
    return f"{value:,.{max(0, -_exponent(step))}f}"


def _exponent(value: float) -> int:
    """The power of ten of the first digit; a value just below 1000 counts as 1000."""
    return math.floor(math.log10(value) + 1e-9)


_EPOCH = datetime(1970, 1, 1)


def read_time(text: str) -> float | None:
    """Seconds since 1970 of a date, a timestamp or a time of day as texts; None for anything else."""
    text = text.strip()
    head, dot, fraction = text.partition(".")
    digits = len(fraction) - len(fraction.lstrip("0123456789"))
    if dot and digits > 6:  # nanoseconds
        text = f"{head}.{fraction[:6]}{fraction[digits:]}"
    try:
        found = datetime.fromisoformat(text if text[2:3] != ":" else f"1970-01-01T{text}")
    except ValueError:
        return None
    if found.tzinfo is not None:
        found = found.astimezone(UTC).replace(tzinfo=None)
    return (found - _EPOCH).total_seconds()


def time_axis(seconds: Sequence[float]) -> Axis:
    """From the first time to the last, with ticks at round times of the calendar."""
    least, most = min(seconds), max(seconds)
    if least == most:
        label = _moment(least).removesuffix("T00:00:00").replace("T", " ")
        return Axis(least - _HOUR, most + _HOUR, (Tick(least, label),))
    marks, end = _marks(least, most)
    shown = [(at, _moment(at)) for at in marks if least <= at <= most]
    if len(shown) < 2:
        end = 26 if most - least < 2 else 19
        shown = [(at, _moment(at, "microseconds")) for at in (least, most)]
    begin = next((same for same in (11, 5) if end > 10 and _moment(least)[:same] == _moment(most)[:same]), 0)
    return Axis(least, most, tuple(Tick(at, text[begin:end].replace("T", " ")) for at, text in shown))


def _marks(least: float, most: float) -> tuple[Iterable[float], int]:
    """Round times from before `least` to `most`, and how many characters of an ISO time tell them apart."""
    wanted = (most - least) / _TIMES
    for step in (*_SECONDS, *_DAYS):
        if wanted <= step and wanted <= _DAYS_MAX:
            begin = _MONDAY if step % _WEEK == 0 else 0
            first = begin + math.floor((least - begin) / step) * step
            end = 19 if step < _MINUTE else 16 if step < _DAY else 10
            return [first + number * step for number in range(int((most - first) // step) + 1)], end
    months = next((one for one in _MONTHS if one * _MONTH >= wanted), _MONTHS[-1])
    return _months(_EPOCH + timedelta(seconds=least), most, months), 4 if months % 12 == 0 else 7


def _months(first: datetime, most: float, step: int) -> Iterator[float]:
    number = max(step, (first.year * 12 + first.month - 1) // step * step)  # there is no year 0
    while number < 120_000:
        at = (datetime(number // 12, number % 12 + 1, 1) - _EPOCH).total_seconds()
        if at > most:
            return
        yield at
        number += step


def _moment(seconds: float, precision: str = "seconds") -> str:
    return (_EPOCH + timedelta(seconds=seconds)).isoformat(timespec=precision)
