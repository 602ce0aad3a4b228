"""`hanse audit match`: compares what one log records as sent with what the other records as received."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hanse.cli.audit import key_of
from hanse.cli.output import AsJson, print_json, print_rows, say
from hanse.errors import BadInput, SignerUnknown, Unverified
from hanse.notebook.html_view import format_count

File = Annotated[Path, typer.Argument(help="An evidence file of one side.", show_default=False)]
Key = Annotated[list[str], typer.Option(help="A log's verifier key, or a file with it; give both sides'.")]


def register(commands: typer.Typer) -> None:
    """Add the command to those of `hanse audit`."""
    commands.command("match")(match)


def match(
    one: File,
    other: Annotated[Path, typer.Argument(help="And of the other; in either order.", show_default=False)],
    key: Key = [],  # noqa: B006  typer reads it, nobody changes it
    limit: Annotated[int, typer.Option(min=1, help="Reads that are shown, what contradicts first.")] = 100,
    strict: Annotated[
        bool, typer.Option(help="A read without a receipt, or cut off at its owner, is a failure, too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare two evidence files offline: do the reads that an owner recorded agree with what its readers had?

    Both are verified first. Exit 6 where one does not hold, or they contradict each other. Exit 7 where they do not and
    no --key was given: who signed them is not known then.
    """
    from hanse.audit.match import UNPROVEN
    from hanse.audit.match import match as compared

    trusted = {_verify_signer(path, [given for text in key if (given := key_of(text))]) for path in (one, other)}
    if len(trusted) < 2:
        raise BadInput(f"expected the files of two logs, got two of the same: {one} and {other}")
    found = compared(one, other)
    if not found.reads:
        raise BadInput(
            "expected two logs of which one side has read from the other, got two without a read or an agreement in "
            "common: is one of them an extract of something else? An owner's whole log in which there is no trace of a "
            "reader who has receipts of his leaves out what he read"
        )
    if as_json:
        print_json({"counts": dict(found.counts), "reads": [asdict(read) for read in found.reads]})
    else:
        _show(found, limit)
    if found.contradictions:
        raise Unverified(
            f"the two logs contradict each other about {format_count(found.contradictions, 'read')}",
            code="logs_contradict",
        )
    if strict and (unproven := {verdict: found.counts[verdict] for verdict in UNPROVEN if found.counts[verdict]}):
        counts = ", ".join(f"{format_count(number, 'read')}: {verdict}" for verdict, number in unproven.items())
        raise Unverified(
            f"expected a receipt for each read, got reads without proof ({counts})", code="receipts_missing"
        )
    if not key:
        raise SignerUnknown(
            "the two files do not contradict each other, but their signers are unknown: the keys came with the files; "
            "give the keys of both logs with --key, from sources that you trust (exit code 7)",
            code="signer_unknown",
        )


def _verify_signer(path: Path, keys: list[str]) -> str:
    """Return the key of a file's log. Raises: Unverified if it does not hold, or has none of these keys."""
    from hanse.audit import verify

    report = verify.verify(path)
    if not report.ok:
        raise Unverified(f"{path} does not hold: {report.problem}", code="evidence_invalid")
    if keys and report.key not in keys:
        raise Unverified(f"expected {path} to be signed with a given key, got {report.key}", code="evidence_invalid")
    return report.key


def _show(found: Any, limit: int) -> None:
    columns: dict[str, Any] = {
        "verdict": "verdict",
        "reader": lambda row: _name(row["reader"]),
        "owner": lambda row: _name(row["owner"]),
        "dataset": lambda row: row["dataset"].rpartition(":")[2],
        "time": "time",
        "read": "read",
        "came": "came",
        "left": "left",
        "why": "why",
    }
    print_rows([asdict(read) for read in found.reads[:limit]], columns, as_json=False)
    if len(found.reads) > limit:
        say(f"{format_count(len(found.reads) - limit, 'more read')}: --limit shows more, --json all")
    say(", ".join(f"{count:,} {verdict}" for verdict, count in found.counts.items() if count))


def _name(origin: str) -> str:
    """Return the last part of an origin: `north` of `north.example/audit/north`."""
    return str(origin).rpartition("/")[2]
