"""`hanse audit`: who read what, under which agreement; and whether the log is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hanse.cli.access import space
from hanse.cli.out import AsJson, console, moment, number_of, print_json, print_rows, progress, say, size
from hanse.errors import BadInput, Broken, Unverified

commands = typer.Typer(help="Read, export and verify the audit log.", no_args_is_help=True)

Kind = Annotated[str, typer.Option(help="Only this kind, e.g. ReadStarted, ReadRefused.")]
Actor = Annotated[str, typer.Option(help="Only by this participant or token.")]
Agreement = Annotated[str, typer.Option(help="Only under this agreement.")]
Dataset = Annotated[str, typer.Option(help="Only about this dataset (its id, or a name).")]
Outcome = Annotated[str, typer.Option(help="ok, refused, failed or broken.")]
Since = Annotated[str, typer.Option(help="From this time on, with its zone: 2026-11-24T12:00:00Z.")]
Until = Annotated[str, typer.Option(help="Before this time.")]


@commands.command("list")
def list_(
    kind: Kind = "",
    actor: Actor = "",
    agreement: Agreement = "",
    dataset: Dataset = "",
    outcome: Outcome = "",
    since: Since = "",
    until: Until = "",
    before: Annotated[int | None, typer.Option(min=0, help="Only records below this number.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 50,
    as_json: AsJson = False,
) -> None:
    """The newest records that fit, newest first. That you looked is a record too."""
    asked = {"kind": kind, "actor": actor, "agreement": agreement, "dataset": dataset, "outcome": outcome}
    found = space().api.get("/audit/events", **asked, since=since, until=until, before=before, limit=limit)
    shown: dict[str, Any] = {
        "#": "idx",
        "time": lambda row: moment(row["ts"]),
        "what": "kind",
        "who": lambda row: row["body"].get("actor"),
        "dataset": lambda row: row["body"].get("dataset", "").rpartition(":")[2],
        "state": lambda row: (row["body"].get("detail") or {}).get("state"),
        "purpose": lambda row: row["body"].get("purpose", "").rpartition("#")[2] or row["body"].get("purpose"),
        "outcome": lambda row: row["body"].get("outcome"),
        "rows": lambda row: (row["body"].get("detail") or {}).get("rows"),
        "why": lambda row: row["body"].get("reason") or row["body"].get("code"),
    }
    print_rows(found["records"], shown, as_json=as_json)
    if found.get("next") is not None and not as_json:
        say(f"older records may fit as well: --limit has up to 1,000, and --before {found['next']} begins below these")


@commands.command()
def show(idx: Annotated[int, typer.Argument(min=0, help="The record's number.", show_default=False)]) -> None:
    """One record with its proof (C2SP tlog-proof), checked against the log's key. Prints JSON."""
    from hanse.verify import Bad, verify_proof

    record = space().api.get(f"/audit/events/{idx}")
    try:
        verify_proof(record["proof"], record["leaf"].encode(), record["key"])
    except Bad as error:
        raise Unverified(str(error), code="proof_invalid") from None
    print_json(record)


@commands.command()
def key() -> None:
    """The log's verifier key. Keep it somewhere that the operator of the log cannot reach."""
    console().out(space().api.text("/audit/key").strip())


@commands.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", help="The evidence file to write (zip).")] = Path(
        "evidence.zip"
    ),
    kind: Kind = "",
    actor: Actor = "",
    agreement: Agreement = "",
    dataset: Dataset = "",
    outcome: Outcome = "",
    since: Since = "",
    until: Until = "",
    force: Annotated[bool, typer.Option(help="Replace a file that is there.")] = False,
) -> None:
    """Write an evidence file: the whole log, or the records that fit, each with its proof."""
    from hanse.verify import Bad, records_in

    if output.exists() and not force:
        raise BadInput(f"{output} is there already; take another name or --force")
    asked = {"kind": kind, "actor": actor, "agreement": agreement, "dataset": dataset, "outcome": outcome}
    draft = output.with_name(f".{output.name}.part")
    written = 0
    try:
        with draft.open("wb") as file, progress(f"exporting to {output}", of="bytes") as advance:
            for block, _ in space().api.blocks("/audit/export", **asked, since=since, until=until):
                file.write(block)
                written += len(block)
                advance(len(block))
        records = records_in(draft)
        draft.replace(output)
    except Bad as error:
        raise Broken(f"{space().api.url} sent no evidence file: {error}") from None
    finally:
        draft.unlink(missing_ok=True)
    if not records:
        say(f"note: no record fits, and {output} is evidence of none; `hanse audit list` shows what there is")
    told = f"{number_of(records, 'record')}, {size(written)}"
    say(f"{output}: {told}; check it anywhere with `hanse audit verify {output}`")


@commands.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An evidence file.", show_default=False)],
    key: Annotated[str, typer.Option(help="The log's verifier key, or a file with it, from a source you trust.")] = "",
    as_json: AsJson = False,
) -> None:
    """Check an evidence file offline: needs no connector and no network. Exit 6 where it does not hold."""
    from dataclasses import asdict

    from hanse import verify as offline

    report = offline.verify(file, key=_key(key))
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)
    if not report.ok:
        raise Unverified(report.problem, code="evidence_invalid")


def _key(text: str) -> str | None:
    """A verifier key from an option: itself, or a file that holds it."""
    if not text:
        return None
    return text if "+" in text else Path(text).read_text().strip()


def _show(report: Any) -> None:
    out = console()
    for check in report.checks:
        out.print(f"[green]ok[/]  {escape(check)}")
    if report.key and not report.key_given:
        out.print(
            f"[yellow]note[/] the key came with the file: compare it with one that you hold\n      {escape(report.key)}"
        )
    if report.ok and not report.records:
        out.print(f"[yellow]note[/] this file holds no record of {escape(report.origin)}: it is evidence of none")
    if report.ok:
        out.print(f"{report.records:,} records of {escape(report.origin)} hold, under root {escape(report.root)}")
    elif report.first_bad is not None:
        out.print(f"[red]bad[/] first bad record: {report.first_bad}")
