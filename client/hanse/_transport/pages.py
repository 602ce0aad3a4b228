"""Lists of the management API, page by page."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hanse._transport.api import Api

PAGE = 100

Row = dict[str, Any]


def list_pages(api: Api, path: str, *, most: int, after: Callable[[Row], Any] | None = None, **query: Any) -> list[Row]:
    """Return the first rows of a list, at most `most`. Older connectors return all rows at once.

    `after`: the function of a page's last row that its next page begins after; without it, pages are requested by
    `offset`.
    """
    rows, more = dict[Any, Row](), dict[str, Any]()
    for seen in range(PAGE, most + PAGE, PAGE):
        page, known = api.get(path, **query, **more, limit=PAGE), len(rows)
        rows |= {(after or _row_key)(row): row for row in page}  # new rows shift the pages
        if len(page) != PAGE or len(rows) == known:
            break
        more = {"after": after(page[-1])} if after else {"offset": seen}
    return list(rows.values())[:most]


def _row_key(row: Row) -> tuple[Any, ...]:
    """Return a row's key: a connector may hold both sides of an agreement."""
    return row["id"], row.get("role")
