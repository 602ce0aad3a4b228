"""`hanse token`: who may use this connector's management API, and for what."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from hanse.agreement import quote_segment
from hanse.cli.connection import space
from hanse.cli.output import AsJson, console, format_time, print_json, print_rows, say, time_column

commands = typer.Typer(help="Issue, list and end tokens of your connector.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="Who holds it, as the log names its acts.", show_default=False)]


@commands.command()
def issue(
    name: Name,
    scope: Annotated[list[str], typer.Option(help="read, owner, consume, audit, metrics or admin; may be repeated.")],
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
def end(name: Name) -> None:
    """End a token at once."""
    space().api.delete(f"/tokens/{quote_segment(name)}")
    say(f"the token {name} is ended")
