"""`hanse dataset`: datasets that this connector could offer. Others see a dataset only once it has an offer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from operator import itemgetter
from typing import Annotated, Any

import typer

from hanse.agreement import Call, quote_segment
from hanse.cli.connection import list_all, space
from hanse.cli.output import (
    EXIT,
    AsJson,
    format_cell,
    format_size,
    print_json,
    print_one,
    print_rows,
    print_sentences,
    say,
    show_progress_of,
    time_column,
)
from hanse.errors import BadInput, HanseError

commands = typer.Typer(help="Register, list and remove your datasets.", no_args_is_help=True)
_SECONDS = 12 * 3600.0  # that a registration may take
_FILES_SHOWN = 5
_LINES_SHOWN = 5
_FIELDS: dict[str, Any] = {
    "name": "name",
    "id": "id",
    "title": "title",
    "description": "description",
    "kind": "kind",
    "rows": "rows",
    "size": lambda row: format_size(row.get("bytes") or 0),
    "left out": lambda row: _left_out_lines(row.get("report") or {}),
    "note": lambda row: "; ".join(filter(None, [(row.get("report") or {}).get("note"), row.get("note")])),
    "reads": lambda row: (
        "refused: a file is not what was registered, or is gone" if row.get("unchanged") is False else ""
    ),
    "version": "version",
    "license": "license",
    "keywords": "keywords",
    "files": lambda row: _files(row.get("files") or []),
    "registered": time_column("created_at"),
}

Name = Annotated[str, typer.Argument(help="The dataset's name.", show_default=False)]


@commands.command("add")
def add(
    name: Name,
    path: Annotated[
        str,
        typer.Argument(help="File or directory as the connector sees it, s3:// or postgres://.", show_default=False),
    ],
    kind: Annotated[
        str, typer.Option(help="parquet, hive, arrow_ipc, csv, jsonl, s3, postgres; else by the path.")
    ] = "",
    title: Annotated[str, typer.Option(help="A title for people.")] = "",
    description: Annotated[str, typer.Option(help="What is in it.")] = "",
    keyword: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be repeated.")] = None,
    theme: Annotated[str, typer.Option(help="EU data theme, e.g. HEAL, TRAN, ENVI.")] = "",
    license: Annotated[str, typer.Option(help="Licence, e.g. CC-BY-4.0.")] = "",  # the option's name
    option: Annotated[list[str] | None, typer.Option(help="name=value for the source; may be repeated.")] = None,
    accept: Annotated[
        bool, typer.Option("--accept", help="Although a dataset of this name that was removed was asked.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Register a dataset: its schema and statistics are read, its files are pinned by digest.

    Ctrl-C stops it, and nothing of it is kept; so does `hanse dataset stop` in another window.
    """
    about = {"title": title, "description": description, "keywords": keyword or [], "theme": theme, "license": license}
    body = {"name": name, "path": path, "kind": kind, "options": _options(option or []), "accept": accept, **about}
    row = _register(name, "/datasets", {key: value for key, value in body.items() if value})
    print_one(row, _FIELDS, as_json=as_json)
    if not as_json:
        if row.get("report"):
            _print_columns(row)
        say("nobody else sees it yet: attach an offer with `hanse offer add`")


@commands.command()
def stop(name: Name) -> None:
    """Stop a registration that runs; nothing of it is kept."""
    space().api.delete(_registration(name))
    say(f"the registration of {name} is stopped; nothing of it is kept")


@commands.command("list")
def list_(as_json: AsJson = False) -> None:
    """Your datasets."""
    rows = list_all("/datasets", after=itemgetter("id"))
    shown = {
        "name": "name",
        "title": "title",
        "rows": "rows",
        "size": _FIELDS["size"],
        "registered": time_column("created_at"),
    }
    print_rows(rows, shown, as_json=as_json)


@commands.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """One dataset, with its columns."""
    row = space().api.get(f"/datasets/{quote_segment(name)}")
    print_one(row, _FIELDS, as_json=as_json)
    if as_json:
        return
    if all(column.get("statistics") is None for column in row.get("columns", [])):
        _print_columns(row)
        say("figures of columns and files need a token with the scope owner")
    else:
        _print_columns(row, **_FIGURES)


@commands.command()
def update(
    name: Name,
    path: Annotated[str, typer.Argument(help="The new files, as the connector sees them; else where it was.")] = "",
    accept: Annotated[bool, typer.Option("--accept", help="Although it does not fit what stands on it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add a version from new files; agreements go on with it.

    It is held against every offer and agreement first; what does not fit is named, and refused unless accepted.
    """
    row = _register(
        name, f"/datasets/{quote_segment(name)}/versions", {"path": path, **({"accept": True} if accept else {})}
    )
    print_one(row, _FIELDS, as_json=as_json)
    if row.get("report") and not as_json:
        _print_columns(row)
    for one in [] if as_json else row.get("affected", []):
        say(f"{one['level']}: {one['on']} {one['id']} {one['rule']}: {one['message']}")


@commands.command()
def preview(
    name: Name,
    participant: Annotated[str, typer.Option("--as", help="DID of the participant.", show_default=False)],
    offer: Annotated[str, typer.Option(help="Through which offer; else the first that is for it.")] = "",
    purpose: Annotated[str, typer.Option(help="What it would be for, e.g. dpv:ScientificResearch.")] = "",
    action: Annotated[str, typer.Option(help="ds:query or ds:stream.")] = "ds:query",
    as_json: AsJson = False,
) -> None:
    """What a participant would see through an offer: each rule's verdict, the columns, the first rows. Exit 3: nothing.

    The rows pass the same gate as its own reads would, and the look is recorded as a read of yours.
    """
    asked = {"as": participant, "offer": offer, "purpose": purpose, "action": action}
    found = space().api.get(f"/datasets/{quote_segment(name)}/preview", **asked)
    if as_json:
        print_json(found)
    else:
        _print_preview(found)
    if not found["permitted"]:
        raise typer.Exit(EXIT["refused"])


def _print_preview(found: dict[str, Any]) -> None:
    print_sentences(found["explanation"])
    print_rows(found["rules"], {"rule": "path", "stands": "result", "says": "text"}, as_json=False)
    if not found["columns"]:
        return
    print_rows(found["columns"], {"column": "name", "type": "type", "masked": "mask"}, as_json=False)
    if found["hidden"]:
        say(f"hidden: {', '.join(found['hidden'])}")
    if found.get("note"):
        say(found["note"])
        return
    names = found["columns_shown"]
    rows = [dict(zip(names, map(format_cell, row), strict=True)) for row in found["rows"]]
    print_rows(rows, {name: name for name in names}, as_json=False)


@commands.command()
def remove(name: Name) -> None:
    """Remove a dataset that has no offers and no agreements. Your files stay."""
    space().api.delete(f"/datasets/{quote_segment(name)}")
    say(f"{name} is removed; its files were not touched")


def _register(name: str, path: str, body: dict[str, Any]) -> Any:
    """Request a registration and show its progress until it ends. Ctrl-C stops it."""
    api = space().api

    def look() -> tuple[str, int, int]:
        state = api.get(_registration(name))
        return state["state"], state["done"], state["files"]

    try:
        with show_progress_of(name, look):
            return api.do(Call("POST", path, body=body, seconds=_SECONDS))
    except KeyboardInterrupt:
        with suppress(HanseError):  # closing the connection may have stopped it already
            api.delete(_registration(name))
        with suppress(HanseError):
            say(f"the registration of {name} is {api.get(_registration(name))['state']}")
        raise


def _registration(name: str) -> str:
    return f"/registrations/{quote_segment(name)}"


def _files(paths: list[str]) -> list[str]:
    """Return the first of many paths."""
    more = len(paths) - _FILES_SHOWN
    return paths if more <= 0 else [*paths[:_FILES_SHOWN], f"and {more:,} more"]


def _figure(name: str) -> Callable[[Mapping[str, Any]], Any]:
    return lambda column: (column.get("statistics") or {}).get(name)


def _nulls(column: Mapping[str, Any]) -> str:
    share = _figure("null_share")(column)
    return "" if share is None else f"{100 * share:.3g} %"


_FIGURES = {
    "nulls": _nulls,
    "distinct, about": _figure("distinct"),
    "least": _figure("min"),
    "greatest": _figure("max"),
}


def _print_columns(row: dict[str, Any], **more: Any) -> None:
    """Print columns with their types, and for converted ones the original type and notes."""
    report = row.get("report") or {}
    notes = {entry["name"]: {"was": entry.get("was"), "note": entry.get("note")} for entry in report.get("columns", [])}
    columns = [{**column, **notes.get(column["name"], {})} for column in row.get("columns", [])]
    known = {key: key for key in ("was", "note") if any(column.get(key) for column in columns)}
    print_rows(columns, {"column": "name", "type": "type", **known, **more}, as_json=False)


def _left_out_lines(report: dict[str, Any]) -> str:
    """Describe the lines that a conversion could not read: their number, and the first of them."""
    lines, files = report.get("left_out", [])[:_LINES_SHOWN], report.get("files", [])
    parts = [f"{_line(line, files)} ({': '.join(filter(None, (line['column'], line['problem'])))})" for line in lines]
    more = int(report.get("left_out_count", 0)) - len(parts)
    return ", ".join([*parts, f"and {more:,} more"] if more > 0 else parts)


def _line(entry: dict[str, Any], files: list[dict[str, Any]]) -> str:
    """Describe a line; with several files also its file."""
    of_many = len(files) > 1 and "file" in entry  # older connectors omit it
    return f"line {entry['line']}" + (f" of {files[entry['file'] - 1]['name']}" if of_many else "")


def _options(pairs: list[str]) -> dict[str, Any]:
    """Parse `name=value` pairs; a value that is JSON is parsed as JSON."""
    options: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name:
            raise BadInput(f"expected --option name=value, got {pair!r}")
        try:
            options[name] = json.loads(text)
        except ValueError:
            options[name] = text
    return options
