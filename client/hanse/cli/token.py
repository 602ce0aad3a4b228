"""`hanse token`: who may use this connector's management API, and for what."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hanse.agreement import quote_segment
from hanse.cli.connection import space
from hanse.cli.output import AsJson, console, format_time, print_json, print_rows, say, time_column

commands = typer.Typer(help="Issue, list and end tokens of your connector, and personal ones.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Who holds it, as the log names its acts.", show_default=False)]


@commands.command()
def issue(
    name: Name,
    scope: Annotated[
        list[str], typer.Option(help="read, owner, approve, consume, audit, metrics or admin; repeatable.")
    ],
    days: Annotated[float | None, typer.Option(help="Days until it ends; without it, it does not.")] = None,
    as_json: AsJson = False,
) -> None:
    """Issue a token. Its text is printed this once."""
    body = {"name": name, "scopes": scope, **({"days": days} if days is not None else {})}
    made = space().api.post("/tokens", body)
    if as_json:
        print_json(made)
        return
    console().out(made["token"])
    say("this is shown once: keep it where only its holder can read it")


@commands.command("list")
def list_(as_json: AsJson = False) -> None:
    """Tokens, without their text: those that are good, and those that have ended and keep their name."""
    shown = {"name": "name", "scopes": "scopes", "issued": time_column("created_at"), "ends": _ends}
    print_rows(space().api.get("/tokens"), shown, as_json=as_json)


def _ends(row: Mapping[str, Any]) -> str:
    """When it ends, and whether it has."""
    until = row.get("expires_at")
    over = isinstance(until, int | float) and until <= time.time()
    return format_time(until) + (" (has ended)" if over else "")


@commands.command()
def make(
    label: Annotated[str, typer.Argument(help="What it is for, e.g. the name of a program.", show_default=False)],
    scope: Annotated[list[str], typer.Option(help="A scope that you have, except admin; may be repeated.")],
    days: Annotated[float, typer.Option(help="Days until it ends, at most 366.")] = 30.0,
    as_json: AsJson = False,
) -> None:
    """Make a personal access token for a program of yours. Its text is printed this once."""
    made = space().api.post("/personal-tokens", {"label": label, "scopes": scope, "days": days})
    if as_json:
        print_json(made)
        return
    console().out(made["token"])
    say(f"this is shown once; `hanse token drop {made['id']}` ends it")


@commands.command()
def mine(as_json: AsJson = False) -> None:
    """Your personal access tokens, without their text."""
    shown = {
        "id": "id", "for": "label", "scopes": "scopes", "issued": time_column("created_at"),
        "last used": time_column("last_used_at"), "ends": _ends,
    }  # fmt: skip
    print_rows(space().api.get("/personal-tokens"), shown, as_json=as_json)


@commands.command()
def drop(id_: Annotated[str, typer.Argument(metavar="ID", help="Its id, as `hanse token mine` shows it.")]) -> None:
    """End a personal access token of yours at once."""
    space().api.delete(f"/personal-tokens/{quote_segment(id_)}")
    say(f"the token {id_} is ended")


@commands.command()
def key(
    file: Annotated[Path, typer.Argument(help="The new file for the private key.", show_default=False)],
) -> None:
    """Make a key for a service: the private part goes to the file, the public part is printed for the sign-on file."""
    from hanse._transport.workload import make_key

    console().out(json.dumps(make_key(file)))
    say(f"put this as `jwks` of a service into the connector's sign-on file; {file} (mode 0600) stays with the service")


@commands.command()
def end(name: Name) -> None:
    """End a token at once."""
    space().api.delete(f"/tokens/{quote_segment(name)}")
    say(f"the token {name} is ended")
