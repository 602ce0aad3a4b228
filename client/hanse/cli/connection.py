"""How a command reaches the connector: options before the command, environment, or what `hanse login` kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hanse.cli.output import say
from hanse.errors import Unauthenticated

if TYPE_CHECKING:
    from hanse.client import Space
    from hanse.config import Connection


_PAGE, _ROWS_MAX = 100, 10_000

Row = dict[str, Any]


@dataclass(slots=True)
class Given:
    """What the options before the command said. One process runs one command."""

    url: str = ""
    token: str = ""


GIVEN = Given()


def where() -> Connection:
    from hanse.config import find_connection

    return find_connection(url=GIVEN.url, token=GIVEN.token)


def space() -> Space:
    """The connector to talk to. Unauthenticated where nobody said which token to show."""
    from hanse.client import Space

    to = where()
    if not to.token:
        raise Unauthenticated(
            f"no token for {to.url}: give --token, set HANSE_TOKEN, or run `hanse login` once "
            "(the connector printed a token at its first start)",
            code="no_token",
        )
    return Space(to.url, to.token)


def listed(path: str, *, after: Callable[[Row], Any] | None = None, **asked: Any) -> list[Row]:
    """All rows of a list of the connector's, page by page; at most 10,000, which is said. One of before gives all of
    them, whatever was asked for.

    `after`: what its next page begins behind, of the last row of one; without it, lists are asked by `offset`.
    """
    api, rows, more = space().api, dict[Any, Row](), dict[str, Any]()
    for seen in range(_PAGE, _ROWS_MAX + 1, _PAGE):
        page, known = api.get(path, **asked, **more, limit=_PAGE), len(rows)
        rows |= {(after or _own)(row): row for row in page}  # what was new meanwhile has moved the others on
        if len(page) != _PAGE or len(rows) == known:
            break
        more = {"after": after(page[-1])} if after else {"offset": seen}
    else:
        say(f"these are the first {len(rows):,}; the management API's {path} goes on behind them")
    return list(rows.values())


def _own(row: Row) -> tuple[Any, ...]:
    """What a row is told by: of an agreement we may have both sides."""
    return row["id"], row.get("role")
