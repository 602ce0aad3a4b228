"""`hanse audit`: who read what, under which agreement; and whether the log is what it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hanse.cli.connection import space
from hanse.cli.output import (
    STANDARD,
    AsJson,
    console,
    format_size,
    format_time,
    print_json,
    print_rows,
    progress,
    say,
    write_whole,
)
from hanse.errors import BadInput, Broken, SignerUnknown, Unverified
from hanse.notebook.html_view import format_count

commands = typer.Typer(help="Read, export and verify the audit log.", no_args_is_help=True)

Kind = Annotated[str, typer.Option(help="Only this kind, e.g. ReadStarted, ReadRefused.")]
Actor = Annotated[str, typer.Option(help="Only by this participant or token.")]
Agreement = Annotated[str, typer.Option(help="Only under this agreement.")]
Dataset = Annotated[str, typer.Option(help="Only about this dataset (its id, or a name).")]
Outcome = Annotated[str, typer.Option(help="ok, refused, failed or broken.")]
Since = Annotated[str, typer.Option(help="From this time on, with its zone: 2026-11-24T12:00:00Z.")]
Until = Annotated[str, typer.Option(help="Before this time.")]
Key = Annotated[str, typer.Option(help="The log's verifier key, or a file with it, from a source you trust.")]


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
        "time": lambda row: format_time(row["ts"]),
        "what": "kind",
        "who": lambda row: row["body"].get("actor"),
        "dataset": lambda row: row["body"].get("dataset", "").rpartition(":")[2],
        "state": lambda row: (row["body"].get("detail") or {}).get("state"),
        "purpose": lambda row: row["body"].get("purpose", "").rpartition("#")[2] or row["body"].get("purpose"),
        "outcome": lambda row: row["body"].get("outcome"),
        "rows": _rows,
        "why": lambda row: row["body"].get("reason") or row["body"].get("code"),
    }
    print_rows(found["records"], shown, as_json=as_json)
    if found.get("next") is not None and not as_json:
        say(f"older records may fit as well: --limit has up to 1,000, and --before {found['next']} begins below these")


def _rows(row: dict[str, Any]) -> Any:
    """Return the rows of a record; statistics over groups are named as results."""
    detail = row["body"].get("detail") or {}
    return f"{detail.get('rows')} results" if detail.get("gives") == "results" else detail.get("rows")


@commands.command()
def show(
    idx: Annotated[int, typer.Argument(min=0, help="The record's number.", show_default=False)], key: Key = ""
) -> None:
    """Print one record with its proof (C2SP tlog-proof) as JSON, after checking that the log's key signed this text
    under this number.

    Without --key the connector's own key is used, which only shows that the record is consistent.
    """
    from hanse.audit.verify import Bad, verify_record

    given = key_of(key)
    record = space().api.get(f"/audit/events/{idx}")
    try:
        verify_record(record, idx, given or str(record.get("key", "")))
    except Bad as error:
        raise Unverified(str(error), code="proof_invalid") from None
    print_json(record)
    if given is None:
        say("note: checked with the key that came with the record; --key takes one that you hold")


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
    """Write an evidence file: the whole log, or the records that fit, each with its proof.

    Keep each export of the whole log: `hanse audit verify NEW --after OLD` shows that no history was changed since.
    """
    from hanse.audit.verify import Bad, records_in

    if output.exists() and not force:
        raise BadInput(f"{output} is there already; take another name or --force")
    if output.exists() and (str(output) in STANDARD or not output.is_file()):
        raise BadInput(f"expected the name of a file, which is checked once it is written, got {output}")
    asked = {"kind": kind, "actor": actor, "agreement": agreement, "dataset": dataset, "outcome": outcome}
    written = 0
    try:
        with write_whole(output) as file:
            with progress(f"exporting to {output}", of="bytes") as advance:
                for block, _ in space().api.blocks("/audit/export", **asked, since=since, until=until):
                    file.write(block)
                    written += len(block)
                    advance(len(block))
            file.flush()
            records = records_in(Path(file.name))
    except Bad as error:
        raise Broken(f"expected an evidence file from {space().api.url}, got another form: {error}") from None
    if not records:
        say(f"note: no record fits, and {output} is evidence of none; `hanse audit list` shows what there is")
    summary = f"{format_count(records, 'record')}, {format_size(written)}"
    how = f"`hanse audit verify {output} --key KEY`"
    say(
        f"{output}: {summary}; check it anywhere with {how}, where KEY is a copy of `hanse audit key` that you keep "
        "elsewhere"
    )


@commands.command()
def verify(
    file: Annotated[Path, typer.Argument(help="An evidence file.", show_default=False)],
    key: Key = "",
    after: Annotated[
        Path | None, typer.Option(help="An export of before, whose log this one must continue.", show_default=False)
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            help="A trust policy that you keep (C2SP tlog-policy): logs, witnesses, and the quorum that must vouch.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check an evidence file offline: needs no connector and no network.

    Exit 6 if it does not hold. Exit 7 if it holds and no --key was given: the signer is unknown then, because any
    person can make a valid file with a key of his own and the name of any log.
    """
    from dataclasses import asdict

    from hanse.audit import verify as offline

    report = offline.verify(file, key=key_of(key), after=after, policy=_read_policy(policy))
    if as_json:
        print_json(asdict(report))
    else:
        _show(report)
    if report.problem == offline.EXTRACT_LATER:
        raise typer.BadParameter(report.problem)
    if not report.ok:
        raise Unverified(report.problem, code="evidence_invalid")
    if not report.key_given:
        raise SignerUnknown(
            "the file holds, and who signed it is not known: its key came with it; give the log's key with --key, from "
            "a source that you trust (exit code 7)",
            code="signer_unknown",
        )


@commands.command()
def witnesses(as_json: AsJson = False) -> None:
    """Who vouches for this log: its witnesses, and the newest size that each has cosigned."""
    found = space().api.get("/audit/witnesses")
    shown: dict[str, Any] = {
        "witness": "id",
        "state": "state",
        "records": "size",
        "cosigned": lambda row: format_time(row["cosigned_at"]) if row["cosigned_at"] else "never",
        "problem": "problem",
    }
    print_rows(found["witnesses"], shown, as_json=as_json)


@commands.command("policy")
def write_trust_policy(
    least: Annotated[int, typer.Option(min=0, help="How many members must vouch, besides the catalogue.")] = 2,
) -> None:
    """A trust policy (C2SP tlog-policy) with the keys of this log and its witnesses, for `audit verify --policy`.

    Compare the keys with their owners before you rely on them: they come from the connector whose log they check.
    """
    from hanse.audit.witnesses import write_policy

    found = space().api.get("/audit/witnesses")
    console().out(write_policy(found["log"], found["witnesses"], least=least), end="")


def _read_policy(path: Path | None) -> Any:
    """Read a trust policy from an option."""
    if path is None:
        return None
    from hanse.audit.witnesses import PolicyBad, read_policy

    try:
        return read_policy(path.read_bytes())
    except PolicyBad as error:
        raise BadInput(f"{path}: {error}") from None


def key_of(text: str) -> str | None:
    """Read a verifier key from an option: a file, or the key itself."""
    if not text:
        return None
    if "+" in text and not Path(text).is_file():
        return text
    try:
        return Path(text).read_text("utf-8").strip()
    except UnicodeDecodeError:
        raise BadInput(
            f"{text}: expected a file with a verifier key, as `hanse audit key` prints it, got one that is no text"
        ) from None


def _show(report: Any) -> None:
    out = console()
    for check in report.checks:
        out.print(f"[green]ok[/]  {escape(check)}")
    if report.key and not report.key_given:
        out.print(
            f"[yellow]note[/] the key came with the file: compare it with one that you hold\n      {escape(report.key)}"
        )
    if report.kind == "extract":
        out.print(f"[yellow]note[/] {escape(_extract(report.filter))}")
    if report.ok and not report.records:
        out.print("[yellow]note[/] this file holds no record: it is evidence of none")
    for one in report.witnesses:
        when = f"vouches, cosigned {format_time(one['cosigned_at'])}" if one["cosigned_at"] else one["problem"]
        mark = "[green]ok[/] " if one["cosigned_at"] else "[yellow]no[/] "
        out.print(f"{mark} witness {escape(one['name'])} ({escape(one['key_name'])}): {escape(when)}")
    if report.ok:
        for identity in report.identities:
            out.print(escape(_format_identity(identity)))
        whose = f" of {report.origin}" if report.key_given else ""
        signer = "" if report.key_given else ", signed by a key that came with the file: who signed is not known"
        held = "holds" if report.records == 1 else "hold"
        out.print(escape(f"{format_count(report.records, 'record')}{whose} {held}, under root {report.root}{signer}"))
    elif report.first_bad is not None:
        out.print(f"[red]bad[/] first bad record: {report.first_bad}")


def _format_identity(identity: Mapping[str, Any]) -> str:
    """Say what proved the counterparty's identity as an agreement was concluded, as the log has it."""
    key = f", key {identity['key']}" if identity.get("key") else ""
    lines = [f"record {identity['record']}: {identity['agreement']} was concluded with {identity.get('holder')}{key}"]
    shown = identity.get("credentials")
    for one in shown if isinstance(shown, list) else ():
        if isinstance(one, dict):
            kinds = one.get("types")
            kind = ", ".join(map(str, kinds)) if isinstance(kinds, list) else str(kinds)
            checked = format_time(one.get("status_checked_at"))
            signed = f", signed with {one['key']}" if one.get("key") else ""
            lines.append(f"    {kind} {one.get('id')} of {one.get('issuer')}{signed}, status checked {checked}")
    return "\n".join(lines)


def _extract(terms: Mapping[str, Any]) -> str:
    """Describe an extract by its filter."""
    shown = (
        f"{name} {format_time(term) if name in ('since', 'until') else term}" for name, term in sorted(terms.items())
    )
    return f"an extract of {', '.join(shown)}: it proves that these are in the log, not that they are all"
