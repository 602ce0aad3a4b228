"""Kinds of source: table SOURCES, from the kind's name to the module that knows it.

Each module is a `Source`: what an owner may set, which files it consists of, and how the engine reads them. The
modules load on first use and import nothing heavy; the engine is handed to `attach` and `convert`, which only run
in a worker process.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from connector.datasets.sources.source_files import FileRef
from connector.errors import BadInput, redact_name

if TYPE_CHECKING:
    from connector.datasets.external import Outside

SOURCES: Mapping[str, str] = {
    "parquet": "connector.datasets.sources.parquet",
    "hive": "connector.datasets.sources.hive",
    "arrow_ipc": "connector.datasets.sources.arrow_ipc",
    "csv": "connector.datasets.sources.csv",
    "jsonl": "connector.datasets.sources.jsonl",
    "s3": "connector.datasets.sources.s3",
    "postgres": "connector.datasets.sources.postgres",
}

BEFORE = "types_before"  # the types of the version before, by column
_OBJECTS = (".json", ".json.gz")


@dataclass(frozen=True, slots=True)
class Option:
    """One thing an owner may set: its name, type, default and a line of help (the form is made of these). `values`:
    what it may be, where that is not all of its type."""

    name: str
    type: type
    default: Any
    help: str
    values: range | None = None


class Source(Protocol):
    """What every kind promises. `CONVERTED` kinds are turned into Parquet once and have no `attach`."""

    SUFFIXES: tuple[str, ...]
    OPTIONS: tuple[Option, ...]
    CONVERTED: bool

    def find(self, path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
        """The files behind `path`, pinned; PathRefused where one is not allowed."""
        ...

    def attach(self, con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
        """Make the files readable in `con` as the relation `name` (worker only)."""
        ...

    def convert(self, con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
        """Write the files as one Parquet file `target`; the report for the owner (worker only). Beside what an owner
        set, `options` has `BEFORE` where they are a new version."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `first` to `stop` of file number `file`; `position` names a further column with each row's number.

    `placed`: columns that have each row's place instead of their values: the file's number and the row's in it, as one
    (`place_of`).
    """

    file: int
    first: int
    stop: int
    position: str = ""
    placed: tuple[str, ...] = ()


FILE_BIT = 40  # rows of a file are fewer


def place_of(value: int) -> tuple[int, int]:
    """The number of a file, and of a row in it."""
    return value >> FILE_BIT, value & (1 << FILE_BIT) - 1


class Divisible(Protocol):
    """A kind whose rows have a fixed place, so that some of them can be read by their number. `NUMBER`: the engine's
    name for it, where it has one."""

    def groups(self, files: Sequence[Any]) -> list[list[tuple[int, int]]]:
        """Rows and bytes of each group of each file: paths, or files that are open (worker only)."""
        ...

    def attach_rows(self, con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any], rows: Rows) -> None:
        """As `attach`, with nothing but these rows, in place of what had the name before (worker only)."""
        ...


def divisible(kind: str) -> Divisible:
    """The module of a kind that can be read by row number; BadInput for the others."""
    found = source(kind)
    if not hasattr(found, "attach_rows"):
        raise BadInput(f"a {kind} dataset has no fixed order of rows; read it as one stream", code="not_divisible")
    return cast(Divisible, found)


def misleading(kind: str, columns: Iterable[Mapping[str, Any]]) -> str:
    """Which of these columns has the engine's name for a row's place, whatever its case; empty where none has.

    The engine takes it for the place: such rows cannot be read by their number.
    """
    number = getattr(source(kind), "NUMBER", None)
    return next((str(one["name"]) for one in columns if one["name"].casefold() == number), "")


class Remote(Protocol):
    """A kind whose data is not on this machine. Its path begins with the kind's name and `://`."""

    async def bring(
        self, path: str, *, options: Mapping[str, Any], from_: Outside
    ) -> tuple[dict[str, Any], tuple[FileRef, ...]]:
        """The options as they are kept, and the files: pinned objects, or a draft that `convert` reads."""
        ...


def remote(kind: str) -> Remote | None:
    """The module of a kind whose data is elsewhere; None for a kind of files."""
    found = source(kind)
    return cast(Remote, found) if hasattr(found, "bring") else None


def source(kind: str) -> Source:
    """The module of a kind; BadInput that names the known ones otherwise."""
    if kind not in SOURCES:
        raise BadInput(
            f"expected a kind of source ({', '.join(SOURCES)}), came {redact_name(kind)!r}", code="source_unknown"
        )
    return cast(Source, importlib.import_module(SOURCES[kind]))


def guess(path: str) -> str:
    """The kind that fits a path by its ending: what a form or command proposes, never a check."""
    scheme, found, _ = path.partition("://")
    if found and scheme in SOURCES:
        return scheme
    if Path(path).is_dir():
        return "hive"
    return next(iter(kinds_of([path])), "parquet")


def kinds_of(names: Iterable[str]) -> list[str]:
    """The kinds that fit files of these names by their endings, each once; an ending that is not known fits none."""
    return list(dict.fromkeys(kind for name in names if (kind := _kind_of(name.lower()))))


def _kind_of(name: str) -> str:
    if name.endswith(_OBJECTS):  # with one a line, as many name them too; a list of them is told as that
        return "jsonl"
    return next((kind for kind in SOURCES if source(kind).SUFFIXES and name.endswith(source(kind).SUFFIXES)), "")


def read_options(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every option of a kind with its value; BadInput for an unknown one or a wrong type."""
    known = {option.name: option for option in source(kind).OPTIONS}
    if unknown := sorted(set(given) - set(known)):
        raise BadInput(
            f"a {kind} source has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}",
            code="option_unknown",
        )
    return {name: _value(option, given.get(name, option.default)) for name, option in known.items()}


def check_options(kind: str, given: Mapping[str, Any]) -> None:
    """BadInput for what no registration may set. A version of before may have it, and is read as it was."""
    asked = read_options(kind, given)
    for option in source(kind).OPTIONS:
        if option.values is not None and (value := asked[option.name]) not in option.values:
            first, last = option.values[0], option.values[-1]
            raise BadInput(
                f"expected {option.name} to be {first} to {last} ({option.help}), came {value}", code="option_invalid"
            )


def _value(option: Option, value: Any) -> Any:
    fits = type(value) is option.type and (not isinstance(value, str) or len(value) <= 256)
    if value != option.default and not fits:
        raise BadInput(
            f"option {option.name} is {option.type.__name__} ({option.help}), came {type(value).__name__}",
            code="option_invalid",
        )
    return value
