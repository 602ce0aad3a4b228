"""What commands print: tables for people, JSON for scripts, progress on standard error, errors as three sentences."""

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
    ApprovalNeeded: "",  # a kind of the next, and says itself what to do
    NegotiationPending: "look again with `hanse negotiate`, or ask its owner to run `hanse pending`",
}

_FIRST, _LAST = -62_135_596_800, 253_402_300_799  # seconds: the calendar has four digits for a year
_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
STANDARD = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_WHOLE = ("id", "agreement", "dataset")  # columns that people copy from: never broken over lines
_LOOK_SECONDS = 0.3
_WIDE = 1000  # columns where nobody looks at it: a line in a pipe is a line
_WIDEST = 1_000_000  # wider than any table
_LONG = 240  # a line that the terminal breaks, where it is no longer anyhow

_STYLES = r"(?:\x1b\[[0-9;]*m)*"  # what a terminal is told at the end of a line

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


class _Console(Console):
    """One whose terminal obeys nobody else."""

    def render_str(self, text: str, **how: Any) -> Text:
        return super().render_str(escape_control(text), **how)


def console(*, err: bool = False) -> Console:
    """A console on today's streams, as wide as its terminal; without one, as wide as it takes."""
    watched = (sys.stderr if err else sys.stdout).isatty()
    return _Console(stderr=err, highlight=False, emoji=False, width=None if watched else _WIDE, soft_wrap=not watched)


def exit_code(error: HanseError) -> int:
    return EXIT[next((name for kind, name in _BY_KIND if isinstance(error, kind)), "failed")]


def complain(error: HanseError) -> None:
    """An error for people: the sentence, its code and rule, what the server added, what to do."""
    out = console(err=True)
    out.print(f"[bold red]error[/]: {escape(str(error))}")
    if error.code and error.code != type(error).__name__:
        out.print(f"  code: {escape(error.code)}")
    if error.rule:
        out.print(f"  rule: {escape(error.rule)}")
    fields = _listed(error.facts.get("fields"))
    problems = [one for one in _listed(error.facts.get("problems")) if not _is_said(one, error)]
    told = problems + (fields if len(fields) > 1 else [])  # one is the sentence
    for line in dict.fromkeys(map(_problem, told)):
        out.print(f"  - {escape(line)}")
    if hint := next((text for kind, text in _HINTS.items() if isinstance(error, kind)), ""):
        out.print(f"  {hint}")


def _is_said(entry: Mapping[str, Any], error: HanseError) -> bool:
    """Whether the error's own sentence has this problem's in it."""
    return bool(entry.get("message")) and str(entry["message"]) in str(error)


def _problem(entry: Mapping[str, Any]) -> str:
    """A problem of a policy, of a field, or of what stands on a dataset (an offer or an agreement, and its rule)."""
    on = [entry[name] for name in ("on", "id", "rule") if entry.get(name)]
    where = entry.get("path") or entry.get("field") or " ".join(map(str, on))
    said = entry.get("message") or entry.get("problem") or ""
    return f"{' '.join(filter(None, map(str, (entry.get('level', ''), where))))}: {said}"


def _listed(value: Any) -> list[Mapping[str, Any]]:
    return [entry for entry in value if isinstance(entry, Mapping)][:20] if isinstance(value, list) else []


def print_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Mapping[str, Any], *, as_json: bool) -> None:
    """A list: as JSON whole, as a table the `columns`: each heading with a key, or a function of the row."""
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
        table.add_row(*(escape(shown(cell)) for cell in cells))
    print_table(table)


def print_table(table: Table) -> None:
    """A table at its own width where the screen has none for its longest words: columns would be cut and left out.

    Whoever looks on sees lines that the terminal breaks, with all that is in them.
    """
    out = console()
    needed = Measurement.get(out, out.options.update(width=_WIDEST), table)
    if needed.minimum > out.width:
        out.width = min(needed.maximum, max(needed.minimum, _LONG))
    with out.capture() as drawn:
        out.print(table)
    # Its last column is as wide as its longest text: no row is padded to that. A run of spaces is looked at once, from
    # its first: from each of them a wide table would take minutes.
    out.file.write(re.sub(rf"(?<! ) ++({_STYLES})$", r"\1", drawn.get(), flags=re.MULTILINE))


def print_one(row: Mapping[str, Any], fields: Mapping[str, Any], *, as_json: bool) -> None:
    """One thing: as JSON whole, for people a line a field; fields without a value are left out."""
    if as_json:
        print_json(row)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for heading, pick in fields.items():
        value = pick(row) if callable(pick) else row.get(pick)
        if value not in (None, "", [], {}):
            table.add_row(heading, escape(shown(value)))
    console().print(table)


def print_sentences(sentences: Iterable[Any]) -> None:
    """A policy in plain words: under each rule its conditions, once for neighbours that have the same."""
    groups: list[tuple[list[str], list[str]]] = []
    for sentence in sentences:
        one = sentence if isinstance(sentence, Mapping) else {"text": sentence}
        if groups and str(one.get("path", "")).count("/") > 2:  # as /permission/0/constraint/1
            groups[-1][1].append(str(one.get("text", "")))
        else:
            groups.append(([str(one.get("text", ""))], []))
    for number, (rules, terms) in enumerate(groups):
        if terms and number + 1 < len(groups) and groups[number + 1][1] == terms:
            groups[number + 1][0][:0] = rules
            continue
        for text in rules:
            console().print(f"  - {escape(text)}")
        for text in terms:
            console().print(f"      {escape(text)}")


@contextmanager
def whole(output: Path) -> Iterator[IO[bytes]]:
    """A file to write, which is there whole or not at all, and on the disk by then; with the permissions of one whose
    place it takes, where a link to that leads. Nothing takes the place of a pipe, a device or standard output: it is
    written to."""
    if str(output) in STANDARD:  # as `>>` has opened it: what is in it stays
        with to_output() as sink:
            yield sink
        return
    if output.exists() and not output.is_file():
        with told_by(str(output)), output.open("wb") as file:
            yield file
        return
    real = Path(os.path.realpath(output))
    draft = real.with_name(f".{real.name}.part")
    try:
        with told_by(str(output)):
            with draft.open("wb") as file:
                if real.exists():
                    os.chmod(draft, stat.S_IMODE(real.stat().st_mode))
                yield file
                file.flush()
                _sync(file.fileno())
            draft.replace(real)
            with suppress(OSError):  # a system that cannot sync the name alone
                folder = os.open(real.parent, os.O_RDONLY)
                try:
                    os.fsync(folder)
                finally:
                    os.close(folder)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def to_output() -> Iterator[IO[bytes]]:
    """Standard output, for bytes."""
    with told_by("standard output"):
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()


@contextmanager
def told_by(name: str) -> Iterator[None]:
    """A disk that takes no more says not which file was written to."""
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
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):  # of a file system that has no such thing
            raise


def place_of(error: OSError) -> str:
    """Where it failed. Of a disk that takes no more, the error has a name but where standard output is on it."""
    if error.filename:
        return str(error.filename)
    return "standard output" if error.errno in _OF_DISKS else "a file"


def say(text: str) -> None:
    """A word to the person, on standard error so that output stays output."""
    console(err=True).print(escape(text))


def shown(value: Any) -> str:
    """A value in a table."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(one) for one in value)
    if isinstance(value, Mapping):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def moment(value: Any) -> str:
    """UTC seconds for people."""
    if not isinstance(value, int | float):
        return ""
    return datetime.fromtimestamp(min(max(value, _FIRST), _LAST), UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def at(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Picks a time out of a row."""
    return lambda row: moment(row.get(key))


def number_of(count: int, what: str) -> str:
    """So many of something: `1 row`, `1,200 rows`."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable: the last unit takes everything")


@contextmanager
def progress(text: str, *, total: float | None = None, of: str = "steps") -> Iterator[Callable[[float], None]]:
    """A progress bar on standard error, where a person looks at it; call what it gives with each advance."""
    counts = DownloadColumn() if of == "bytes" else MofNCompleteColumn()
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), counts, TimeElapsedColumn())
    out = console(err=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.advance(task, done)


@contextmanager
def meanwhile(look: Callable[[], None]) -> Iterator[None]:
    """Look again and again, in a thread, until the block has ended; a look that fails is passed over."""
    done = threading.Event()

    def looking() -> None:
        while not done.wait(_LOOK_SECONDS):
            with suppress(HanseError):  # what is looked at may not be known yet, or not any more
                look()

    thread = threading.Thread(target=looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def counted(text: str, look: Callable[[], tuple[str, int, int]]) -> Iterator[None]:
    """A bar on standard error while the block runs: `look` gives what is done now, how much of it, of how much."""
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

        with meanwhile(update):
            yield


def cell(value: Any) -> str:
    """A value of an answer. Whole numbers stay as they are: they may be years, or what somebody copies."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return f"{value:.6g}" if isinstance(value, float) else shown(value)
