"""`hanse transfer`: start one under an agreement, and get at what was pushed to your connector."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from hanse.agreement import FORMAT, expand_purpose, poll_until, quote_segment
from hanse.cli.connection import space
from hanse.cli.output import AsJson, format_size, poll_during, print_one, progress, say, time_column, write_whole
from hanse.errors import BadInput, Refused

if TYPE_CHECKING:
    from hanse.client import Space

commands = typer.Typer(
    help="Start transfers; fetch and remove what was pushed to your connector.", no_args_is_help=True
)

Id = Annotated[str, typer.Argument(help="The transfer's id.", show_default=False)]
_FIELDS: dict[str, Any] = {
    "id": "id", "state": "state", "format": "format", "purpose": "purpose", "why": "reason",
    "rows": lambda row: _received(row).get("rows"),
    "media": lambda row: _received(row).get("media") or "",
    "size": lambda row: format_size(_received(row)["bytes"]) if _received(row) else "",
    "received": lambda row: time_column("received_at")(_received(row)),
}  # fmt: skip


def register(app: typer.Typer) -> None:
    app.command()(fetch)


@commands.command()
def start(
    agreement: Annotated[str, typer.Argument(help="The agreement's id.", show_default=False)],
    form: Annotated[
        str,
        typer.Option("--format", help="HttpData-PULL, ArrowFlight-PULL, or HttpData-PUSH: its owner sends it here."),
    ] = FORMAT,
    purpose: Annotated[str, typer.Option(help="What for, e.g. dpv:ScientificResearch.")] = "",
    wait: Annotated[float, typer.Option(help="Seconds to wait for the start, or for all of a push.", min=0)] = 60.0,
    as_json: AsJson = False,
) -> None:
    """Start a transfer under an agreement. Waits until a push is complete."""
    connected, pushed = space(), form.endswith("-PUSH")
    row = connected.api.post(
        "/transfers", {"agreement_id": agreement, "format": form, "purpose": expand_purpose(purpose)}
    )
    goal, deadline = "COMPLETED" if pushed else "STARTED", time.monotonic() + wait
    with _show_received(connected, row["id"]):
        row = connected.drive(poll_until("/transfers", row, goal, deadline=deadline, now=time.monotonic))
    if row["state"] == "TERMINATED":
        raise Refused(
            f"the transfer ended: {row.get('reason') or 'no reason given'}", code=str(row.get("code") or "ended")
        )
    print_one(row, _FIELDS, as_json=as_json)
    if _received(row) and not as_json:
        say(f"fetch it with `hanse transfer receive {row['id']} -o FILE`")
    elif row["state"] != goal:
        say(f"not {goal} yet; check again with `hanse transfer show {row['id']}`")


@commands.command()
def show(transfer: Id, as_json: AsJson = False) -> None:
    """One transfer, with what was received under it."""
    print_one(space().api.get(f"/transfers/{quote_segment(transfer)}"), _FIELDS, as_json=as_json)


@commands.command()
def receive(
    transfer: Id,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)],
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
    then_remove: Annotated[bool, typer.Option("--remove", help="Remove it from the connector afterwards.")] = False,
) -> None:
    """Fetch what was pushed to your connector: an Arrow stream (`pyarrow.ipc.open_stream` reads it), or the file that
    another kind of connector sent."""
    if output.exists() and not force:
        raise BadInput(f"{output} exists already; choose another name or use --force")
    connected, written = space(), 0
    with write_whole(output) as file, progress(f"fetching {output}", of="bytes") as advance:
        for block, _ in connected.api.blocks(f"/transfers/{quote_segment(transfer)}/received"):
            written += file.write(block)
            advance(len(block))
        _check_received(
            file, whole=bool(_received(connected.api.get(f"/transfers/{quote_segment(transfer)}")).get("whole"))
        )
    if then_remove:
        connected.api.delete(f"/transfers/{quote_segment(transfer)}/received")
    say(f"{output}: {format_size(written)}")


def fetch(
    what: Annotated[
        str,
        typer.Argument(
            help="owner/dataset, or the id of a transfer: started, or pushed to your connector.", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.", show_default=False)],
    purpose: Annotated[str, typer.Option(help="What for, e.g. dpv:ScientificResearch.")] = "",
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Fetch the data of an owner with another kind of connector, such as Eclipse EDC, as it sends or has pushed it."""
    if output.exists() and not force:
        raise BadInput(f"{output} exists already; choose another name or use --force")
    connected, written = space(), 0
    named = "/" in what and not what.startswith("urn:")
    transfer = connected.agree(what, purpose=purpose).transfer_id if named else what
    with write_whole(output) as file, progress(f"fetching {output}", of="bytes") as advance:
        for block in connected.fetch(transfer):
            written += file.write(block)
            advance(len(block))
    say(f"{output}: {format_size(written)}")


def _check_received(file: IO[bytes], *, whole: bool) -> None:
    """Raises: DigestMismatch if a complete stream differs from what its owner sent. A stream without an end record has
    no digest, and a pipe cannot be read again."""
    from hanse.stream import check_file

    file.flush()
    if whole and Path(str(file.name)).is_file():
        with open(file.name, "rb") as again:
            check_file(again)


@commands.command()
def remove(transfer: Id) -> None:
    """Remove what was pushed to your connector; it has to be ordered again."""
    space().api.delete(f"/transfers/{quote_segment(transfer)}/received")
    say(f"what was received under {transfer} is removed")


@contextmanager
def _show_received(connected: Space, transfer: str) -> Iterator[None]:
    """Show the received bytes while the block runs."""
    seen = 0

    def look() -> None:
        nonlocal seen
        now = int(_received(connected.api.get(f"/transfers/{quote_segment(transfer)}")).get("bytes") or 0)
        advance(now - seen)
        seen = now

    with progress("waiting for the owner", of="bytes") as advance, poll_during(look):
        yield


def _received(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return row.get("received") or {}
