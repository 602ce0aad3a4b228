"""What notebooks and prompts show of a value: one line, or a small HTML table. Everything is escaped and bounded.

Knows no class of the client, makes no request, and reads no rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from itertools import islice
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from hanse.errors import escape_control

ROWS_MAX = 20  # in one table
NAMES_MAX = 10  # columns of a dataset that are named
_COLUMNS_MAX = 20
CELL_MAX = 320  # characters
_TEXT_MAX = 80


def clip(value: Any, most: int = _TEXT_MAX) -> str:
    """Return a value as one line of at most `most` characters, without control characters."""
    text = value if isinstance(value, str) else str(value)
    cut = text if len(text) <= most else text[: most - 1] + "…"
    return escape_control(" ".join(cut.split()))


def list_names(names: Sequence[str], most: int = NAMES_MAX) -> str:
    """Return the first names in one line, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(clip(name) for name in names[:most]) + more


def format_count(count: int, what: str) -> str:
    """Format a count with its noun: `1 row`, `1,200 rows`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def hide_login(url: str) -> str:
    """Return an address without the name and password that it may have before `@`."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def facts_table(title: str, facts: Iterable[tuple[str, Any]]) -> str:
    """Return an HTML table with one fact a row; facts without a value are left out."""
    shown = [(name, value) for name, value in facts if value not in ("", None)]
    rows = "".join(f"<tr>{_head(name)}{_data(value)}</tr>" for name, value in shown)
    return f"<div><b>{_cell(title)}</b><table><tbody>{rows}</tbody></table></div>"


def rows_table(title: str, head: Sequence[str], rows: Iterable[Sequence[Any]], *, total: int) -> str:
    """Return an HTML table of the first rows and columns, and how many rows there are in all."""
    names = "".join(map(_head, head[:_COLUMNS_MAX]))
    lines = [f"<tr>{''.join(_data(value) for value in row[:_COLUMNS_MAX])}</tr>" for row in islice(rows, ROWS_MAX)]
    left = [f"{total - len(lines):,} more rows"] * (total > len(lines))
    left += [f"{len(head) - _COLUMNS_MAX:,} more columns"] * (len(head) > _COLUMNS_MAX)
    table = f"<table><thead><tr>{names}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<div><b>{_cell(title)}</b>{table}{'<p>' + ', '.join(left) + '</p>' if left else ''}</div>"


def _head(value: Any) -> str:
    return f"<th style='text-align:left'>{_cell(value)}</th>"


def _data(value: Any) -> str:
    return f"<td style='text-align:left'>{_cell('' if value is None else value)}</td>"


def _cell(value: Any) -> str:
    return escape(clip(value, CELL_MAX))
