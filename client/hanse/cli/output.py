"""Output of commands: tables for people, JSON for scripts, progress on standard error, errors as three sentences."""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from hanse.errors import (
    ApprovalNeeded,
    HanseError,
    NegotiationPending,
    NotFound,
    Refused,
    SignerUnknown,
    Unauthenticated,
    Unreachable,
    Unverified,
    escape_control,
)

EXIT = {
    "ok": 0,
    "failed": 1,
    "usage": 2,
    "refused": 3,
    "not_found": 4,
    "unreachable": 5,
    "unverified": 6,
    "signer_unknown": 7,
}
_BY_KIND: Sequence[tuple[type[HanseError], str]] = (
    (Refused, "refused"),
    (Unauthenticated, "refused"),
    (NotFound, "not_found"),
    (Unreachable, "unreachable"),
    (Unverified, "unverified"),
    (SignerUnknown, "signer_unknown"),
)
_HINTS: Mapping[type[HanseError], str] = {
    ApprovalNeeded: "",  # a kind of the next; its message has the hint
    NegotiationPending: "check again with `hanse negotiate`, or ask the owner to run `hanse pending`",
}

_FIRST, _LAST = -62_135_596_800, 253_402_300_799  # seconds: the calendar has four digits for a year
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
STANDARD = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_WHOLE = ("id", "agreement", "dataset")  # columns that people copy: never wrapped
_LOOK_SECONDS = 0.3
_WIDE = 1000  # columns without a terminal: lines in a pipe are not wrapped
_WIDEST = 1_000_000  # wider than any table
_LONG = 240  # columns of a line that the terminal wraps

_STYLES = r"(?:\x1b\[[0-9;]*m)*"  # escape sequences at the end of a line

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class _Console(Console):
    """A console that prints no control characters of other parties."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(escape_control(text), **how)


def console(*, err: bool = False) -> Console:
    """Return a console on the current streams, as wide as the terminal; without a terminal lines are not wrapped."""
    watched = (sys.stderr if err else sys.stdout).isatty()
    return _Console(stderr=err, highlight=False, emoji=False, width=None if watched else _WIDE, soft_wrap=not watched)


def exit_code(error: HanseError) -> int:
    return EXIT[next((name for kind, name in _BY_KIND if isinstance(error, kind)), "failed")]


def print_error(error: HanseError) -> None:
    """Print an error for people: the sentence, its code and rule, the server's details, a hint."""
    out = console(err=True)
    out.print(f"[bold red]error[/]: {escape(str(error))}")
    if error.code and error.code != type(error).__name__:
        out.print(f"  code: {escape(error.code)}")
    if error.rule:
        out.print(f"  rule: {escape(error.rule)}")
    fields = _list_entries(error.facts.get("fields"))
    problems = [entry for entry in _list_entries(error.facts.get("problems")) if not _is_mentioned(entry, error)]
    entries = problems + (fields if len(fields) > 1 else [])  # a single one is the sentence
    for line in dict.fromkeys(map(_format_problem, entries)):
        out.print(f"  - {escape(line)}")
    if hint := next((text for kind, text in _HINTS.items() if isinstance(error, kind)), ""):
        out.print(f"  {hint}")


def _is_mentioned(entry: Mapping[str, Any], error: HanseError) -> bool:
    """Return whether the error's sentence contains this problem's message."""
    return bool(entry.get("message")) and str(entry["message"]) in str(error)


def _format_problem(entry: Mapping[str, Any]) -> str:
    """Format a problem of a policy, of a field, or of an offer or agreement and its rule."""
    on = [entry[name] for name in ("on", "id", "rule") if entry.get(name)]
    where = entry.get("path") or entry.get("field") or " ".join(map(str, on))
    message = entry.get("message") or entry.get("problem") or ""
    return f"{' '.join(filter(None, map(str, (entry.get('level', ''), where))))}: {message}"


def _list_entries(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)][:20] if isinstance(value, list) else []


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a list: the whole rows as JSON, or a table of `columns`: each heading with a key, or a function of the
    row."""
    rows = list(rows)
    if as_json:
        print_json(rows)
        return
    if not rows:
        console(err=True).print("[dim]nothing there[/]")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in columns:
        table.add_column(heading, overflow="fold", no_wrap=heading in _WHOLE)
    for row in rows:
        cells = (pick(row) if callable(pick) else row.get(pick) for pick in columns.values())
        table.add_row(*(escape(format_value(cell)) for cell in cells))
    print_table(table)


def print_table(table: Table) -> None:
    """Print a table at its own width if the screen is too narrow for its longest words: columns would be cut otherwise.

    The terminal wraps the lines, with everything in them.
    """
    out = console()
    needed = Measurement.get(out, out.options.update(width=_WIDEST), table)
    if needed.minimum > out.width:
        out.width = min(needed.maximum, max(needed.minimum, _LONG))
    with out.capture() as drawn:
        out.print(table)
    # Remove the padding of the last column. The possessive match visits a run of spaces once: otherwise a wide table
    # would take minutes.
    out.file.write(re.sub(rf"(?<! ) ++({_STYLES})$", r"\1", drawn.get(), flags=re.MULTILINE))


def print_one(row: Mapping[str, Any], fields: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one thing: whole as JSON, or for people one line a field, without empty fields."""
    if as_json:
        print_json(row)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for heading, pick in fields.items():
        value = pick(row) if callable(pick) else row.get(pick)
        if value not in (None, "", [], {}):
            table.add_row(heading, escape(format_value(value)))
    console().print(table)


def print_sentences(sentences: Iterable[Any]) -> None:
    """Print a policy in plain words: under each rule its conditions, once for neighbours with the same ones."""
    groups: list[tuple[list[str], list[str]]] = []
    for sentence in sentences:
        entry = sentence if isinstance(sentence, Mapping) else {"text": sentence}
        if groups and str(entry.get("path", "")).count("/") > 2:  # such as /permission/0/constraint/1
            groups[-1][1].append(str(entry.get("text", "")))
        else:
            groups.append(([str(entry.get("text", ""))], []))
    for number, (rules, terms) in enumerate(groups):
        if terms and number + 1 < len(groups) and groups[number + 1][1] == terms:
            groups[number + 1][0][:0] = rules
            continue
        for text in rules:
            console().print(f"  - {escape(text)}")
        for text in terms:
            console().print(f"      {escape(text)}")


@contextmanager
def write_whole(output: Path) -> Iterator[IO[bytes]]:
    """Open a file that appears complete or not at all, synced to disk; it keeps the permissions of the file that it
    replaces, also behind a link. A pipe, a device or standard output is written directly."""
    if str(output) in STANDARD:  # keeps the content of `>>`
        with open_stdout() as sink:
            yield sink
        return
    if output.exists() and not output.is_file():
        with name_output(str(output)), output.open("wb") as file:
            yield file
        return
    real = Path(os.path.realpath(output))
    draft = real.with_name(f".{real.name}.part")
    try:
        with name_output(str(output)):
            with draft.open("wb") as file:
                if real.exists():
                    os.chmod(draft, stat.S_IMODE(real.stat().st_mode))
                yield file
                file.flush()
                _sync(file.fileno())
            draft.replace(real)
            with suppress(OSError):  # a system that cannot sync a directory
                folder = os.open(real.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def open_stdout() -> Iterator[IO[bytes]]:
    """Open standard output for bytes."""
    with name_output("standard output"):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


@contextmanager
def name_output(name: str) -> Iterator[None]:
    """Add the file's name to the error of a full disk, which has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno in _OF_DISKS:
            error.filename = name
        raise


def _sync(descriptor: int) -> None:
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # a file system without sync
            raise


def describe_place(error: OSError) -> str:
    """Return where it failed. A full disk's error has a name, except for standard output."""
    if error.filename:
        return str(error.filename)
    return "standard output" if error.errno in _OF_DISKS else "a file"


def say(text: str) -> None:
    """Print a message to standard error."""
    console(err=True).print(escape(text))


def format_value(value: Any) -> str:
    """Format a value for a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def format_time(value: Any) -> str:
    """Format UTC seconds for people."""
    if not isinstance(value, int | float):
        return ""
    return datetime.fromtimestamp(min(max(value, _FIRST), _LAST), UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def time_column(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Return a function that reads a time from a row."""
    return lambda row: format_time(row.get(key))


def format_size(count: float) -> str:
    """Format a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable: the last unit takes everything")


@contextmanager
def progress(text: str, *, total: float | None = None, of: str = "steps") -> Iterator[Callable[[float], None]]:
    """Show a progress bar on standard error, on a terminal; call the returned function with each advance."""
    counts = DownloadColumn() if of == "bytes" else MofNCompleteColumn()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), counts, TimeElapsedColumn())
    out = console(err=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def poll_during(look: Callable[[], None]) -> Iterator[None]:
    """Call `look` repeatedly in a thread until the block ends; a call that fails is ignored."""
    done = threading.Event()

    def looking() -> None:
        while not done.wait(_LOOK_SECONDS):
            with suppress(HanseError):  # it may not exist yet, or no longer
                look()

    thread = threading.Thread(target=looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def show_progress_of(text: str, look: Callable[[], tuple[str, int, int]]) -> Iterator[None]:
    """Show a bar on standard error while the block runs: `look` returns the stage, the amount done and the total."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    out = console(err=True)
    if not out.is_terminal:
        yield
        return
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(text, total=None)

        def update() -> None:
            stage, done, total = look()
            bar.update(task, description=f"{text}: {stage}", completed=done, total=total or None)

        with poll_during(update):
            yield


def format_cell(value: Any) -> str:
    """Format a value of an answer. Whole numbers have no separators: they may be years or ids."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return f"{value:.6g}" if isinstance(value, float) else format_value(value)
