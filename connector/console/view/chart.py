"""A chart of an answer (SVG): lines where one column is a time, else bars; every other key is a series or in the label.

Which columns are keys is read from the answer: names and times are; numbers are where rows could not be told apart
without them. Attributes and classes only, as the page's Content-Security-Policy allows no inline styles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from connector.console.view import axes

_BARS_MAX, _SERIES_MAX = 30, 6
_WIDTH, _ROW, _HEIGHT = 680, 24, 300
_LETTER = 6.6  # the width of a letter of 12 px, on average
_LABEL_MAX, _CUT_MAX = 40, 60  # letters, and with a letter of each of many keys; the bar's title has all
_TINY, _HUGE = 1e-290, 1e300  # beyond these, the arithmetic of an axis leaves the range of numbers
_TIMES = ("date", "timestamp", "time")


@dataclass(frozen=True, slots=True)
class _Point:
    """One row: its other keys, its time (where there is one), and its value."""

    keys: tuple[str, ...]
    value: float
    time: float = 0.0


def chart(table: Mapping[str, Any]) -> str:
    """The chart of `{"columns": ..., "rows": ...}` as `arrow_preview` returns it; empty where none says anything."""
    columns, rows = table["columns"], table["rows"]
    values = [place for place, column in enumerate(columns) if column["number"]]
    if len(columns) < 2 or not values:
        return ""
    value = values[-1]
    rows = [row for row in rows if _read_number(row[value]) is not None]
    keys = _choose_keys(columns, rows, value)
    largest = max((abs(_read_number(row[value]) or 0.0) for row in rows), default=0.0)
    if len(rows) < 2 or not keys or largest > _HUGE or 0 < largest < _TINY:
        return ""
    name = str(columns[value]["name"])
    time = next((key for key in keys if str(columns[key]["type"]).startswith(_TIMES)), None)
    if time is not None and _is_time_line([row[time] for row in rows]):
        others = [key for key in keys if key != time]
        points = [_point(row, others, value, time) for row in rows]
        zone = " (UTC)" if "tz=" in str(columns[time]["type"]) else ""
        return _draw_lines(points, name, f"{columns[time]['name']}{zone}", _names(columns, others))
    return _draw_bars([_point(row, keys, value) for row in rows], name, _names(columns, keys))


def _choose_keys(columns: Sequence[Mapping[str, Any]], rows: Sequence[Sequence[str | None]], value: int) -> list[int]:
    """The columns that tell rows apart; none where rows cannot be told apart by any."""
    keys = [place for place, column in enumerate(columns) if not column["number"]]
    numbers = [place for place, column in enumerate(columns) if column["number"] and place != value]
    while not keys or len({tuple(row[key] for key in keys) for row in rows}) < len(rows):
        if not numbers:
            return []
        keys = sorted([*keys, numbers.pop(0)])
    return keys


def _is_time_line(texts: Sequence[str | None]) -> bool:
    """Whether all texts are times, and not all the same."""
    times = {None if text is None else axes.read_time(text) for text in texts}
    return None not in times and len(times) > 1


def _names(columns: Sequence[Mapping[str, Any]], places: Sequence[int]) -> str:
    return ", ".join(str(columns[place]["name"]) for place in places)


def _point(row: Sequence[str | None], keys: Sequence[int], value: int, time: int | None = None) -> _Point:
    texts = tuple("null" if (text := row[key]) is None else text for key in keys)
    at = 0.0 if time is None else axes.read_time(row[time] or "") or 0.0
    return _Point(texts, _read_number(row[value]) or 0.0, at)


def _read_number(text: str | None) -> float | None:
    try:
        found = math.nan if text is None else float(text)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _show_number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 or value == int(value) else f"{value:.4g}"


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: max(1, most - 1)]}…"


# bars


def _draw_bars(points: Sequence[_Point], name: str, keys: str) -> str:
    drawn = points[:_BARS_MAX]
    labels = [_label(point.keys) for point in drawn]
    axis = axes.value_axis([point.value for point in drawn], zero=True)
    left = max(len(label) for label in labels) * _LETTER + 20
    negative = min(point.value for point in drawn) < 0
    start, top = left + (60 if negative else 0), 30
    length, bottom = _WIDTH - start - 70, top + len(drawn) * _ROW
    zero = axis.place(0, start, length)
    parts = [_text(4, top - 12, keys, "start", "axis-name")]
    for tick in axis.ticks:
        x = axis.place(tick.at, start, length)
        parts += [_rule(x, top, x, bottom, strong=tick.at == 0), _text(x, bottom + 18, tick.label, "middle", "tick")]
    for number, (point, label) in enumerate(zip(drawn, labels, strict=True)):
        y, end = top + number * _ROW, axis.place(point.value, start, length)
        after = end - 6 if point.value < 0 else end + 6
        parts += [
            f"<g><title>{escape(', '.join(point.keys))}: {_show_number(point.value)}</title>",
            _text(left - 10, y + 16, label, "end", "key"),
            f'<rect class="full" x="{min(zero, end):.1f}" y="{y + 4}" width="{abs(end - zero):.1f}"'
            f' height="{_ROW - 8}"/>',
            _text(after, y + 16, _show_number(point.value), "end" if point.value < 0 else "start", "value"),
            "</g>",
        ]
    parts.append(_text(start + length / 2, bottom + 38, name, "middle", "axis-name"))
    more = f"; the first {len(drawn)} of {len(points)} rows" if len(points) > len(drawn) else ""
    return _figure(f"{name} by {keys}{more}", bottom + 46, parts)


def _label(keys: Sequence[str]) -> str:
    """All keys of a row, each with its share of the room."""
    room = _LABEL_MAX - 3 * (len(keys) - 1)
    whole = " · ".join(keys)
    if len(whole) <= _LABEL_MAX:
        return whole
    return _shorten(" · ".join(_shorten(key, room // len(keys)) for key in keys), _CUT_MAX)


# lines


def _draw_lines(points: Sequence[_Point], name: str, time: str, keys: str) -> str:
    series: dict[tuple[str, ...], list[_Point]] = {}
    for point in points:
        series.setdefault(point.keys, []).append(point)
    drawn = dict(list(series.items())[:_SERIES_MAX])
    shown = [point for line in drawn.values() for point in line]
    across = axes.time_axis([point.time for point in shown])
    up = axes.value_axis([point.value for point in shown], zero=False)
    legend = 22 * len(drawn) + 30 if keys else 0
    left, top = max(len(tick.label) for tick in up.ticks) * _LETTER + 24, 34 + legend
    length, bottom = _WIDTH - left - 40, top + _HEIGHT - 90
    parts = [_text(4, top - 16, name, "start", "axis-name")]
    for tick in up.ticks:
        y = up.place(tick.at, bottom, top - bottom)
        parts += [_rule(left, y, left + length, y, strong=tick.at == up.least),
                  _text(left - 10, y + 4, tick.label, "end", "tick")]  # fmt: skip
    for tick in across.ticks:
        x = across.place(tick.at, left, length)
        parts += [_rule(x, bottom, x, bottom + 5, strong=True), _text(x, bottom + 20, tick.label, "middle", "tick")]
    parts.append(_text(left + length / 2, bottom + 42, time, "middle", "axis-name"))
    for number, (key, line) in enumerate(drawn.items()):
        places = [
            (across.place(one.time, left, length), up.place(one.value, bottom, top - bottom), one)
            for one in sorted(line, key=lambda point: point.time)
        ]
        parts += [*_line(number, places), *(_legend(number, key) if keys else [])]
    if keys:
        parts.append(_text(4, 14, keys, "start", "axis-name"))
    more = f"; the first {len(drawn)} of {len(series)} lines" if len(series) > len(drawn) else ""
    return _figure(f"{name} by {time}{f', {keys}' if keys else ''}{more}", bottom + 50, parts)


def _line(number: int, places: Sequence[tuple[float, float, _Point]]) -> list[str]:
    parts = []
    if len(places) > 1:
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        parts.append(f'<polyline class="drawn series-{number}" points="{line}" fill="none" stroke-width="2"/>')
    if len(places) <= 60:
        parts += [f'<circle class="point series-{number}" cx="{x:.1f}" cy="{y:.1f}" r="3">'
                  f"<title>{_show_number(one.value)}</title></circle>" for x, y, one in places]  # fmt: skip
    return parts


def _legend(number: int, keys: Sequence[str]) -> list[str]:
    y = 36 + 22 * number
    return [
        f'<line class="drawn series-{number}" x1="4" y1="{y - 4}" x2="32" y2="{y - 4}" stroke-width="2"/>',
        _text(40, y, _shorten(" · ".join(keys), 80), "start", "key"),
    ]


# parts


def _text(x: float, y: float, text: str, anchor: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _rule(x1: float, y1: float, x2: float, y2: float, *, strong: bool) -> str:
    kind = "axis" if strong else "grid"
    return f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _figure(about: str, height: float, parts: Sequence[str]) -> str:
    title = escape(about)
    box = f'viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}"'
    svg = f'<svg class="chart" role="img" {box} font-size="12" fill="currentColor"><title>{title}</title>'
    return f'<p class="faint">{title}</p>{svg}{"".join(parts)}</svg>'
