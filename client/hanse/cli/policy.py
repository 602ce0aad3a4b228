"""`hanse policy`: write, check, explain and try terms before others see them."""

from __future__ import annotations

import itertools
import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from hanse.cli.connection import space
from hanse.cli.output import (
    EXIT,
    AsJson,
    console,
    format_time,
    name_output,
    print_json,
    print_rows,
    print_sentences,
    say,
)
from hanse.errors import BadInput, NotFound

commands = typer.Typer(help="Write, check, explain and try policies.", no_args_is_help=True)
_FILE_MAX = 256 * 1024

File = Annotated[Path, typer.Argument(help="Short YAML form, or ODRL as JSON.", show_default=False)]
ForDataset = Annotated[str, typer.Option(help="Hold it against this dataset's columns.")]


@commands.command("new")
def new(
    template: Annotated[str, typer.Argument(help="Which one; without it they are listed.")] = "",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write it to this new file.")] = None,
) -> None:
    """Start an offer from a template."""
    if output is None:
        print_template(template, as_json=False)
        return
    text = _template(template)
    try:
        with name_output(str(output)), output.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise BadInput(f"{output} is there already; take another name") from None
    say(f"{output} is written: edit it, then `hanse policy lint {output}` and `hanse offer add {output}`")


@commands.command()
def lint(file: File, dataset: ForDataset = "", as_json: AsJson = False) -> None:
    """Problems of a policy, and what it says in plain words. Exit 1 where one of them is an error."""
    found = space().api.post("/policies/lint", {**document(file), **({"dataset": dataset} if dataset else {})})
    if as_json:
        print_json(found)
    else:
        print_problems(found["problems"])
        print_sentences(found.get("sentences", []))
        if not found["problems"]:
            say("no problems")
    if any(problem.get("level") == "error" for problem in found["problems"]):
        raise typer.Exit(EXIT["failed"])


@commands.command()
def explain(file: File, as_json: AsJson = False) -> None:
    """A policy in plain words, and who enforces each part of it."""
    found = space().api.post("/policies/explain", document(file))
    if as_json:
        print_json(found)
        return
    print_sentences(found["sentences"])
    print_rows(
        found.get("report", []), {"rule": "path", "says": "text", "enforced": "tier", "by": "enforcedBy"}, as_json=False
    )


@commands.command("test")
def try_(
    participant: Annotated[str, typer.Option("--as", help="DID of the party that would ask.", show_default=False)],
    file: Annotated[Path | None, typer.Argument(help="Short YAML form, or ODRL as JSON.")] = None,
    offer: Annotated[str, typer.Option(help="A published offer instead of a file.")] = "",
    purpose: Annotated[str, typer.Option(help="What it would be for, e.g. dpv:ScientificResearch.")] = "",
    action: Annotated[str, typer.Option(help="ds:query, ds:stream, ds:train, ...")] = "ds:query",
    application: Annotated[str, typer.Option(help="What would ask, by its IRI.")] = "",
    at: Annotated[str, typer.Option(help="When, with its zone: 2027-12-31T00:00:00Z; else now.")] = "",
    as_json: AsJson = False,
) -> None:
    """What would be decided for this party, and by which rule. Exit 3 where it is refused."""
    if (file is None) == (not offer):
        raise BadInput("expected either a file or --offer")
    case: dict[str, Any] = {"participant": participant, "action": action, "purpose": purpose}
    case |= {"application": application} if application else {}
    case |= {"at": _seconds(at)} if at else {}
    what = {"offer": offer} if file is None else document(file)
    found = space().api.post("/policies/test", {**what, **case})
    if as_json:
        print_json(found)
    else:
        for line in found["explanation"]:
            console().print(escape(line))
    if not _permits(found.get("decision", {})):
        raise typer.Exit(EXIT["refused"])


@commands.command()
def diff(before: File, after: File, as_json: AsJson = False) -> None:
    """What changes from one policy to another: sentences that come and go, requests that change outcome.

    Either may be a file or the id of a published offer. Exit 0 where they mean the same, 1 where they differ.
    """
    found = space().api.post("/policies/diff", {**_side("before", before), **_side("after", after)})
    if as_json:
        print_json(found)
    elif found["same"]:
        say("both say the same")
    else:
        _print_difference(found)
    if not found["same"]:
        raise typer.Exit(EXIT["failed"])


def _seconds(text: str) -> float:
    """A time with its zone in UTC seconds."""
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is not None:
            return when.timestamp()
    except ValueError:
        pass
    raise BadInput(f"expected a time with its zone such as 2027-12-31T00:00:00Z, got {text!r}")


def _side(which: str, given: Path) -> dict[str, Any]:
    return {which: document(given)} if given.exists() else {f"{which}_offer": str(given)}


def _print_difference(found: dict[str, Any]) -> None:
    for sign, colour, texts in (("-", "red", found["removed"]), ("+", "green", found["added"])):
        for text in texts:
            console().print(f"[{colour}]{sign} {escape(str(text))}[/]")
    rows = [
        {
            "request": change["action"],
            "facts": ", ".join(f"{name} {value}" for name, value in change["facts"].items()),
            "at": format_time(change["now"]),
            "before": change["before"],
            "after": change["after"],
        }
        for change in found["requests"]
    ]
    print_rows(rows, {name: name for name in ("request", "facts", "at", "before", "after")}, as_json=False)


@commands.command()
def simulate(
    file: Annotated[Path | None, typer.Argument(help="Short YAML form, or ODRL as JSON.")] = None,
    sql: Annotated[str, typer.Option("--sql", help="The query that a partner would send.", show_default=False)] = "",
    offer: Annotated[str, typer.Option(help="A published offer instead of a file.")] = "",
    dataset: ForDataset = "",
    purpose: Annotated[str, typer.Option(help="What it would be for, e.g. dpv:ScientificResearch.")] = "",
    action: Annotated[str, typer.Option(help="ds:query or ds:stream.")] = "ds:query",
    as_json: AsJson = False,
) -> None:
    """What the gate makes of a query under an offer, without running it. Exit 3 where it is refused, with its rule."""
    if (file is None) == (not offer) or not sql:
        raise BadInput("expected either a file or --offer, and a query by --sql")
    what = {"offer": offer} if file is None else {**document(file), **({"dataset": dataset} if dataset else {})}
    found = space().api.post("/policies/simulate", {**what, "sql": sql, "purpose": purpose, "action": action})
    if as_json:
        print_json(found)
    elif found["passes"]:
        say(f"passes under {found['permission']}: {', '.join(found['columns'])}")
        for line in found["applied"]:
            console().print(f"  - {escape(line)}")
        console().print(escape(found["sql"]))
    else:
        say(f"refused ({found['code']}) by {found['rule'] or 'the gate'}: {found['reason']}")
    if not found["passes"]:
        raise typer.Exit(EXIT["refused"])


def document(file: Path) -> dict[str, Any]:
    """A policy file as the API takes it: JSON is ODRL, anything else the YAML form."""
    if file.stat().st_size > _FILE_MAX:
        raise BadInput(f"expected a policy of at most {_FILE_MAX} bytes, {file} is larger")
    try:
        text = file.read_text()
    except UnicodeDecodeError:
        raise BadInput(f"expected a text file with a policy, {file} is binary") from None
    if not text.strip():
        raise BadInput(f"expected a policy, {file} is empty; start from a template of `hanse policy new`")
    if not text.lstrip().startswith("{"):
        return {"form": text}
    try:
        return {"policy": json.loads(text, object_pairs_hook=_once)}
    except ValueError as error:
        raise BadInput(f"{file} starts like JSON, but is not: {error}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Of a member that is given twice only the last would be sent."""
    node = dict(pairs)
    if len(node) != len(pairs):
        raise ValueError(f"a member of {', '.join(node)} is given twice in one object; keep one")
    return node


def print_template(name: str, *, as_json: bool) -> None:
    """One template's text, or the names of all."""
    if name:
        console().out(_template(name), end="")
        return
    known = space().api.get("/policies/templates")
    rows = [{"template": key, "about": _about(text)} for key, text in known.items()]
    print_rows(rows, {"template": "template", "about": "about"}, as_json=as_json)


def _about(text: str) -> str:
    """The first sentence of the comment that a template begins with."""
    head = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in head).partition(". ")[0].rstrip(".") + "."


def print_withheld(found: list[dict[str, Any]]) -> None:
    """What the groups of aggregate-only answers leave out: in all, and what each dimension costs."""
    for one in found:
        console().print(escape(f"{one['permission']}: {one['says']}"))
        rows = [
            {"dimension": d["column"], "by itself": _lost(d["alone"]), "without it": _lost(d["without"])}
            for d in one["dimensions"]
        ]
        if rows:
            print_rows(rows, {name: name for name in rows[0]}, as_json=False)


def _lost(figures: dict[str, int]) -> str:
    return (
        f"{figures['groups_lost']} of {figures['groups']} groups, {figures['rows_lost']} of {figures['rows']} rows lost"
    )


def print_problems(problems: list[dict[str, Any]]) -> None:
    colours = {"error": "red", "warning": "yellow"}
    for problem in problems:
        level, path = str(problem.get("level", "")), str(problem.get("path", ""))
        said = str(problem.get("message", "")).removeprefix(f"{path}: ")  # a line of a form is told by both
        console().print(f"[{colours.get(level, 'cyan')}]{escape(level)}[/] {escape(path)}: {escape(said)}")


def _template(name: str) -> str:
    known = space().api.get("/policies/templates")
    if name not in known:
        raise NotFound(f"expected one of {', '.join(known)}, got {name!r}")
    return str(known[name])


def _permits(decision: dict[str, Any]) -> bool:
    return decision.get("permitted") is True
