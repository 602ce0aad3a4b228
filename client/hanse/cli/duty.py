"""`hanse duty`: what agreements ask to be done (pay, delete, inform, register), where it stands, and the evidence."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from hanse.agreement import quote_segment
from hanse.cli.connection import space
from hanse.cli.output import AsJson, print_json, print_rows, say, time_column

commands = typer.Typer(help="What is owed under agreements, and evidence that it was done.", no_args_is_help=True)

_COLUMNS: dict[str, Any] = {"path": "path", "state": "state", "duty": "says", "until": time_column("closes")}


@commands.command("list")
def list_(
    agreement: Annotated[str, typer.Argument(help="Only of this agreement, done ones too.")] = "",
    as_json: AsJson = False,
) -> None:
    """What is due or overdue; with an agreement, everything that it asks."""
    if agreement:
        rows = space().api.get(f"/agreements/{quote_segment(agreement)}/duties")
        print_rows(rows, {**_COLUMNS, "evidence": _evidence}, as_json=as_json)
        return
    print_rows(space().api.get("/duties"), {"agreement": "agreement", "as": "role", **_COLUMNS}, as_json=as_json)


@commands.command()
def done(
    agreement: Annotated[str, typer.Argument(show_default=False)],
    path: Annotated[str, typer.Argument(help="Which one: its path in the list.", show_default=False)],
    evidence: Annotated[str, typer.Option("--evidence", "-e", help="What was done, and where that can be seen.")],
    as_json: AsJson = False,
) -> None:
    """Record that a duty was fulfilled. A consumer's record is sent to the provider, whose confirmation unlocks
    data."""
    made = space().api.post(f"/agreements/{quote_segment(agreement)}/duties", {"path": path, "evidence": evidence})
    if as_json:
        print_json(made)
        return
    say(f"{made['path']}: {made['says']}: {made['state']}")
    if not made["told"]:
        say(f"the provider has not received it yet: {made.get('why', '')}")
    elif made["state"] != "fulfilled":
        say("it counts once the provider records it: this duty is due before use")


def _evidence(row: Any) -> str:
    return "; ".join(f"{one['given_by']}: {one['evidence']}" for one in row.get("evidence", []))
