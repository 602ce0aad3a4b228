"""How a command reaches the connector: options before the command, environment, or what `hanse login` kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hanse.errors import Unauthenticated

if TYPE_CHECKING:
    from hanse.client import Space
    from hanse.config import Where


@dataclass(slots=True)
class Given:
    """What the options before the command said. One process runs one command."""

    url: str = ""
    token: str = ""


GIVEN = Given()


def where() -> Where:
    from hanse.config import found

    return found(url=GIVEN.url, token=GIVEN.token)


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
