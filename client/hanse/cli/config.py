"""`hanse login`, `hanse logout`, `hanse config`: where the connector is, and the token for it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hanse.cli import connection
from hanse.cli.output import AsJson, print_one, say
from hanse.errors import NotFound


def register(app: typer.Typer) -> None:
    app.command()(login)
    app.command()(logout)
    app.command()(config)


def login(
    url: Annotated[str, typer.Argument(help="The management listener, e.g. http://127.0.0.1:8081.")] = "",
    token: Annotated[str, typer.Option(help="The token; without it you are asked, or it is read from a pipe.")] = "",
) -> None:
    """Keep an address and a token for it, after trying them."""
    from hanse.client import Space
    from hanse.config import find_connection, keep

    to = find_connection(url=url or connection.GLOBAL_OPTIONS.url, token="")
    given = token or connection.GLOBAL_OPTIONS.token
    if not given:
        given = typer.prompt("Token", hide_input=True) if sys.stdin.isatty() else sys.stdin.readline().strip()
    try:
        me = Space(to.url, given).me()
    except NotFound:
        raise NotFound(
            f"{to.url} is no management listener: that answers at a port of its own (HANSE_MANAGEMENT_PORT, 8081 where "
            "it is not set), not at the one for other participants, nor at the catalogue's"
        ) from None
    file = keep(to.url, given)
    say(
        f"logged in at {to.url} as {me.get('caller', '?')} for {me.get('name', '?')}; "
        f"this token may: {', '.join(me.get('scopes', []))}"
    )
    say(f"kept in {file}")


def logout() -> None:
    """Forget what `hanse login` kept."""
    from hanse.config import forget, login_file

    say(f"removed {login_file()}" if forget() else "nothing was kept")


def config(as_json: AsJson = False) -> None:
    """Where commands go, and where that was said. Never shows the token."""
    from hanse.config import login_file

    to = connection.where()
    row = {"url": to.url, "token": "set" if to.token else "missing", "token_from": to.source, "file": str(login_file())}
    print_one(row, {name: name for name in row}, as_json=as_json)
