"""`hanse offer`: terms under which others may use a dataset."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from hanse.agreement import quote_segment
from hanse.cli.connection import list_all, space
from hanse.cli.output import (
    EXIT,
    AsJson,
    format_time,
    print_json,
    print_one,
    print_rows,
    print_sentences,
    say,
    time_column,
)
from hanse.cli.policy import document, print_problems, print_withheld

commands = typer.Typer(help="Publish, list and withdraw your offers.", no_args_is_help=True)

_FIELDS: dict[str, Any] = {
    "id": "id",
    "dataset": "dataset",
    "decide": "decide",
    "published": time_column("created_at"),
    "withdrawn": time_column("withdrawn_at"),
}

_SEEN = (
    "the catalogue's search follows in seconds where the connector is set to tell it (HANSE_CATALOGUE_URL), else in "
    "up to a quarter of an hour"
)

OfferId = Annotated[str, typer.Argument(metavar="OFFER", help="The offer's id.", show_default=False)]


@commands.command("add")
def add(
    file: Annotated[Path, typer.Argument(help="The offer: short YAML form, or ODRL as JSON.", show_default=False)],
    dataset: Annotated[str, typer.Option(help="The dataset, where the file does not say it.")] = "",
    decide: Annotated[str, typer.Option(help="Who answers a request: auto, manual, rules or four_eyes.")] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask where groups are left out.")] = False,
    accept: Annotated[
        bool, typer.Option("--accept", help="Also with a purpose that is nearly one of the vocabulary, and none.")
    ] = False,
    left_out: Annotated[
        bool,
        typer.Option("--publish-left-out", help="Tell those who agree which share its groups leave out, rounded."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Publish an offer. From then on others may find the dataset and ask for it.

    Of an offer of figures about groups it first says what its groups leave out.
    """
    text = {key: value for key, value in {**document(file), "dataset": dataset}.items() if value}
    if not as_json:
        lost = space().api.post("/policies/withheld", text)
        print_withheld(lost)
        watched = sys.stdin.isatty() and not yes
        if watched and any(one["rows_lost"] for one in lost) and not typer.confirm("Publish it all the same?"):
            raise typer.Exit(EXIT["failed"])
    body = {**text, "decide": decide, "accept": accept, "publish_left_out": left_out}
    row = space().api.post("/offers", {key: value for key, value in body.items() if value})
    if as_json:
        print_json(row)
        return
    print_one(row, _FIELDS, as_json=False)
    print_sentences(row.get("sentences", []))
    print_problems(row.get("problems", []))
    say(_SEEN)


@commands.command("list")
def list_(
    dataset: Annotated[str, typer.Option(help="Only of this dataset.")] = "",
    everything: Annotated[bool, typer.Option("--all", help="Withdrawn ones too.")] = False,
    as_json: AsJson = False,
) -> None:
    """Your offers."""
    rows = list_all("/offers", dataset=dataset, withdrawn="true" if everything else "false")
    state = {
        "state": lambda row: (
            f"withdrawn {format_time(row['withdrawn_at'])}" if row.get("withdrawn_at") else _in_force(row)
        )
    }
    print_rows(rows, {"id": "id", "dataset": "dataset", "decide": "decide", **state}, as_json=as_json)


def _in_force(row: Mapping[str, Any]) -> str:
    """Return `open`, or why the offer is not shown to others."""
    return ", ".join(problem["code"] for problem in row.get("problems", ())) or "open"


@commands.command()
def show(offer: OfferId, as_json: AsJson = False) -> None:
    """One offer in plain words, and who enforces what."""
    row = space().api.get(f"/offers/{quote_segment(offer)}")
    if as_json:
        print_json(row)
        return
    print_one(row, _FIELDS, as_json=False)
    print_sentences(row.get("sentences", []))
    print_problems(row.get("problems", []))


@commands.command()
def withdraw(offer: OfferId) -> None:
    """Take an offer back. Agreements that were made under it stay."""
    space().api.delete(f"/offers/{quote_segment(offer)}")
    say(f"{offer} is withdrawn; agreements made under it stay until you revoke them (`hanse agreements`)")
    say(_SEEN)


@commands.command()
def templates(
    name: Annotated[str, typer.Argument(help="Print this one, to be edited.")] = "", as_json: AsJson = False
) -> None:
    """Ready-made offers to start from."""
    from hanse.cli.policy import print_template

    print_template(name, as_json=as_json)
