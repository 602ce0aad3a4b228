"""A small chart of an answer (SVG): bars by its first column that names something, or a line where that is ordered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_BARS_MAX, _POINTS_MAX = 30, 200
_WIDE, _ROW, _LABEL, _TALL = 640, 22, 170, 200
_ORDERED = ("date", "timestamp", "time")


def chart(table: Mapping[str, Any]) -> str:
    """The chart of `{"columns": ..., "rows": ...}` as `rows.py` gives it; empty where none says anything."""
    columns, rows = table["columns"], table["rows"]
    values = [number for number, one in enumerate(columns) if one["number"]]
    if len(columns) < 2 or not values or len(rows) < 2:
        return ""
    value = values[-1]
    label = next((number for number, one in enumerate(columns) if not one["number"]), 0 if value else 1)
    pairs = [(str(row[label]), found) for row in rows if (found := _number(row[value])) is not None]
    ordered = str(columns[label]["type"]).startswith(_ORDERED)
    title = escape(f"{columns[value]['name']} by {columns[label]['name']}")
    if ordered and 2 <= len(pairs) <= _POINTS_MAX:
        return _drawn(title, _TALL, _points(sorted(pairs)))
    return _drawn(title, len(pairs) * _ROW, _bars(pairs)) if 2 <= len(pairs) <= _BARS_MAX else ""


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def _drawn(title: str, high: float, inside: str) -> str:
    box = f'viewBox="0 0 {_WIDE} {high}" width="{_WIDE}"'
    about = f'class="chart" role="img" {box} font-size="12" fill="currentColor"'
    return f'<p class="faint">{title}</p><svg {about}><title>{title}</title>{inside}</svg>'


def _bars(pairs: Sequence[tuple[str, float]]) -> str:
    least, most = min(0.0, *(value for _, value in pairs)), max(0.0, *(value for _, value in pairs))
    scale = (_WIDE - _LABEL - 90) / ((most - least) or 1.0)
    zero, parts = _LABEL - least * scale, []
    for number, (label, value) in enumerate(pairs):
        y, left, wide = number * _ROW, min(zero, zero + value * scale), max(1.0, abs(value) * scale)
        parts.append(
            f'<text x="{_LABEL - 8}" y="{y + 15}" text-anchor="end">{escape(label[:24])}</text>'
            f'<rect class="full" x="{left:.1f}" y="{y + 4}" width="{wide:.1f}" height="{_ROW - 8}" rx="2"/>'
            f'<text x="{left + wide + 6:.1f}" y="{y + 15}">{_shown(value)}</text>'
        )
    return "".join(parts)


def _points(pairs: Sequence[tuple[str, float]]) -> str:
    least, most = min(value for _, value in pairs), max(value for _, value in pairs)
    across, up = (_WIDE - 100) / (len(pairs) - 1), (_TALL - 50) / ((most - least) or 1.0)
    line = " ".join(f"{80 + n * across:.1f},{20 + (most - value) * up:.1f}" for n, (_, value) in enumerate(pairs))
    return (
        f'<polyline class="drawn" points="{line}" fill="none" stroke-width="2"/>'
        f'<text x="72" y="24" text-anchor="end">{_shown(most)}</text>'
        f'<text x="72" y="{_TALL - 28}" text-anchor="end">{_shown(least)}</text>'
        f'<text x="80" y="{_TALL - 6}">{escape(pairs[0][0][:24])}</text>'
        f'<text x="{_WIDE - 20}" y="{_TALL - 6}" text-anchor="end">{escape(pairs[-1][0][:24])}</text>'
    )
