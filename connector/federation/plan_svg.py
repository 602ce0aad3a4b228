"""Plan as SVG: what each owner answers, what is sent, what runs here. Pure; no script, no style sheet.

    svg(plan, actual=report["owners"]) -> "<svg ...>"

Line widths scale with the bytes received, or expected if it did not run. Used by the console and by notebooks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from connector.federation.planner.model import FederatedPlan, Fragment

_BOX, _HERE, _GAP, _WIDE, _HIGH, _EDGE = 330, 250, 18, 760, 66, 40
_TEXT_MAX = 46
_KINDS = {"whole": "the whole answer", "join": "joined rows", "scan": "rows", "partial": "partial sums"}


def svg(plan: FederatedPlan, *, actual: Sequence[Mapping[str, Any]] = ()) -> str:
    """Return the SVG. `actual`: the owners' figures of a run."""
    figures = {str(one["fragment"]): one for one in actual}
    tables = plan.tables
    high = max(1, len(tables)) * (_HIGH + _GAP) - _GAP
    tops = {table: number * (_HIGH + _GAP) for number, table in enumerate(tables)}
    parts = [_here(plan, high)]
    for table, fragments in tables.items():
        came = [figures[one.id] for one in fragments if one.id in figures]
        parts += [_line(tops[table], high, _bytes(fragments, came)), _box(table, fragments, tops[table], came)]
    parts += [_keys(tops[source], tops[target]) for source, target in _narrowed(plan)]
    title = escape(f"Plan over {', '.join(plan.owners())}: {len(plan.fragments)} fragments")
    box = f'viewBox="-2 -2 {_WIDE + 4} {high + 4}" width="{_WIDE}"'
    style = 'font-family="sans-serif" font-size="12" fill="currentColor"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" class="plan-picture" role="img" {box} {style}>'
    return f"{head}<title>{title}</title>{''.join(parts)}</svg>"


def _box(table: str, fragments: Sequence[Fragment], top: float, came: Sequence[Mapping[str, Any]]) -> str:
    owners = ", ".join(dict.fromkeys(one.owner for one in fragments))
    first = fragments[0]
    lines = [
        f"{owners} · {', '.join(dict.fromkeys(name for one in fragments for name in one.datasets))}",
        f"{table}: {_KINDS.get(first.kind, first.kind)}, {_columns(len(first.outputs))}"
        + (", large groups only" if first.aggregate_only else ""),
        _amount(fragments, came),
    ]
    shown = "".join(
        f'<text x="{_EDGE + 12}" y="{top + 20 + 18 * number}"{_WEIGHT if number == 0 else ""}>{_short(line)}</text>'
        for number, line in enumerate(lines)
    )
    return f"{_frame(_EDGE, top, _BOX, _HIGH)}<g>{shown}</g>"


_WEIGHT = ' font-weight="bold"'


def _here(plan: FederatedPlan, high: float) -> str:
    left, top = _WIDE - _HERE, max(0.0, high / 2 - 50)
    lines = [
        "here: one answer",
        _columns(len(plan.columns)),
        *[f"{one.what}: {one.reason.replace('_', ' ')}" for one in plan.notes[:3]],
    ]
    shown = "".join(
        f'<text x="{left + 12}" y="{top + 20 + 17 * number}"{_WEIGHT if number == 0 else ""}>{_short(line, 36)}</text>'
        for number, line in enumerate(lines)
    )
    return f"{_frame(left, top, _HERE, 20 + 17 * len(lines))}<g>{shown}</g>"


def _frame(left: float, top: float, width: float, high: float) -> str:
    return (
        f'<rect x="{left}" y="{top}" width="{width}" height="{high}" rx="6" fill="currentColor" fill-opacity="0.05" '
        'stroke="currentColor" stroke-opacity="0.35"/>'
    )


def _line(top: float, high: float, nbytes: float | None) -> str:
    """From a box to the answer."""
    x, y, to_x, to_y = _EDGE + _BOX, top + _HIGH / 2, _WIDE - _HERE, high / 2
    wide = 1.5 if not nbytes else min(9.0, 1 + math.log10(max(1.0, nbytes / 100)))
    bend = (x + to_x) / 2
    return (
        f'<path d="M{x} {y} C{bend} {y} {bend} {to_y} {to_x} {to_y}" fill="none" stroke="currentColor" '
        f'stroke-opacity="0.45" stroke-width="{wide:.1f}"/>'
    )


def _keys(source: float, target: float) -> str:
    """Keys of one fragment that narrow another, on the left."""
    y, to_y = source + _HIGH / 2, target + _HIGH / 2
    return (
        f'<path d="M{_EDGE} {y} C4 {y} 4 {to_y} {_EDGE} {to_y}" fill="none" stroke="currentColor" '
        'stroke-opacity="0.6" stroke-dasharray="4 3"/>'
        f'<circle cx="{_EDGE}" cy="{to_y}" r="3.5"/><text x="0" y="{(y + to_y) / 2 - 3}" font-size="10">keys</text>'
    )


def _narrowed(plan: FederatedPlan) -> list[tuple[str, str]]:
    return list(dict.fromkeys((key.source, one.table) for one in plan.fragments for key in one.keys))


def _bytes(fragments: Sequence[Fragment], came: Sequence[Mapping[str, Any]]) -> float | None:
    if came:
        return float(sum(one["bytes"] for one in came))
    known = [one.nbytes for one in fragments]
    return None if None in known else float(sum(one or 0 for one in known))


def _amount(fragments: Sequence[Fragment], came: Sequence[Mapping[str, Any]]) -> str:
    if came:
        rows, ms = sum(one["rows"] for one in came), max(one["ms"] for one in came)
        return f"came {_rows(rows, fragments)}, {size(sum(one['bytes'] for one in came))}, {ms} ms"
    expected = _bytes(fragments, came)
    if expected is None or any(one.rows is None for one in fragments):
        return "the owner does not say how much it is"
    return f"about {_rows(sum(one.rows or 0 for one in fragments), fragments)}, {size(expected)} expected"


def _rows(count: int, fragments: Sequence[Fragment]) -> str:
    """How many rows, and whether they are results."""
    return f"{count:,} {'result row' if all(one.results for one in fragments) else 'row'}{'s' * (count != 1)}"


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"


def size(nbytes: float) -> str:
    """Bytes in words."""
    for unit in ("bytes", "kB", "MB"):
        if nbytes < 1000:
            return f"{nbytes:.0f} {unit}"
        nbytes /= 1000
    return f"{nbytes:.1f} GB"


def _short(text: str, most: int = _TEXT_MAX) -> str:
    return escape(text if len(text) <= most else f"{text[: most - 1]}…")
