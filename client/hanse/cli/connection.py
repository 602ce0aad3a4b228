"""The connector of a command: from options before the command, the environment, or the file of `hanse login`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hanse.cli.output import say
from hanse.errors import Unauthenticated

if TYPE_CHECKING:
    from hanse.client import Space
    from hanse.config import Connection


_ROWS_MAX = 10_000

Row = dict[str, Any]


@dataclass(slots=True)
class GlobalOptions:
    """The options before the command. One process runs one command."""

    url: str = ""
    token: str = ""


GLOBAL_OPTIONS = GlobalOptions()


def where() -> Connection:
    from hanse.config import find_connection

    return find_connection(url=GLOBAL_OPTIONS.url, token=GLOBAL_OPTIONS.token)


def space() -> Space:
    """Connect to the connector. Raises: Unauthenticated without a token."""
    from hanse.client import Space

    to = where()
    if not to.token:
        raise Unauthenticated(
            f"no token for {to.url}: give --token, set HANSE_TOKEN, or run `hanse login` once "
            "(the connector printed a token at its first start)",
            code="no_token",
        )
    return Space(to.url, to.token)


def list_all(path: str, *, after: Callable[[Row], Any] | None = None, **query: Any) -> list[Row]:
    """Return all rows of a list of the connector, page by page; at most 10,000, with a message. Older connectors return
    all rows at once.

    `after`: the function of a page's last row that its next page begins after; without it, pages are requested by
    `offset`.
    """
    from hanse._transport.pages import list_pages

    rows = list_pages(space().api, path, most=_ROWS_MAX, after=after, **query)
    if len(rows) == _ROWS_MAX:
        say(f"these are the first {len(rows):,} rows; the management API's {path} has the others")
    return rows
