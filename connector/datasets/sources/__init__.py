"""Registry of source kinds: `SOURCES` maps the name of a kind to its module.

Each module implements `Source`: the options an owner may set, the files of the source, and how the engine reads them.
Modules load on first use and import nothing heavy. Only `attach` and `convert` use the engine, and they run only in a
worker process.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from connector.datasets.sources.source_files import FileRef
from connector.errors import Invalid, redact_name

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

BEFORE = "types_before"  # option with the column types of the previous version
_OBJECTS = (".json", ".json.gz")


@dataclass(frozen=True, slots=True)
class Option:
    """An option that an owner may set: its name, type, default and help text. `values` limits the allowed numbers."""

    name: str
    type: type
    default: Any
    help: str
    values: range | None = None


class Source(Protocol):
    """Interface of a kind of source. Kinds with `CONVERTED` are turned into Parquet once and have no `attach`."""

    SUFFIXES: tuple[str, ...]
    OPTIONS: tuple[Option, ...]
    CONVERTED: bool

    def find(self, path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
        """Return the files at `path`, pinned.

        Raises: PathRefused where a file is not allowed.
        """
        ...

    def attach(self, con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
        """Make the files readable in `con` as the relation `name`. Runs only in a worker."""
        ...

    def convert(self, con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
        """Write the files as one Parquet file `target` and return the report for the owner. Runs only in a worker.

        `options` holds the owner's options and, for a new version, also `BEFORE`.
        """
        ...


@dataclass(frozen=True, slots=True)
class RowRange:
    """Rows `first` to `stop` of file number `file`. `position` names an added column with the number of each row."""

    file: int
    first: int
    stop: int
    position: str = ""


class DivisibleSource(Protocol):
    """A kind whose rows have a fixed place, so that a part of them can be read by row number.

    `NUMBER`: the engine's column name for the row number, if it has one.
    """

    def groups(self, files: Sequence[Any]) -> list[list[tuple[int, int]]]:
        """Return the (rows, bytes) of each group of each file. Files are paths or open files. Runs only in a worker."""
        ...

    def attach_rows(
        self, con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any], rows: RowRange
    ) -> None:
        """Like `attach`, but with only these rows. Replaces a relation of that name. Runs only in a worker."""
        ...


def divisible_source(kind: str) -> DivisibleSource:
    """Return the module of a kind that can be read by row number.

    Raises: Invalid for other kinds.
    """
    found = source(kind)
    if not hasattr(found, "attach_rows"):
        raise Invalid(f"a {kind} dataset has no fixed order of rows; read it as one stream", code="not_divisible")
    return cast(DivisibleSource, found)


def find_position_clash(kind: str, columns: Iterable[Mapping[str, Any]]) -> str:
    """Return the name of a column that equals the engine's name for the row number, in any case; empty if there is
    none.

    The engine would read such a column as the row number, so these rows cannot be read by number.
    """
    number = getattr(source(kind), "NUMBER", None)
    return next((str(one["name"]) for one in columns if one["name"].casefold() == number), "")


class RemoteSource(Protocol):
    """A kind whose data is on another machine. Its path begins with the name of the kind and `://`."""

    async def bring(
        self, path: str, *, options: Mapping[str, Any], from_: Outside
    ) -> tuple[dict[str, Any], tuple[FileRef, ...]]:
        """Return the options to store and the files: pinned objects, or a draft that `convert` reads."""
        ...


def remote_source(kind: str) -> RemoteSource | None:
    """Return the module of a kind whose data is on another machine; None for a kind of local files."""
    found = source(kind)
    return cast(RemoteSource, found) if hasattr(found, "bring") else None


def source(kind: str) -> Source:
    """Return the module of a kind.

    Raises: Invalid with the known kinds if there is no such kind.
    """
    if kind not in SOURCES:
        raise Invalid(
            f"expected a kind of source ({', '.join(SOURCES)}), came {redact_name(kind)!r}", code="source_unknown"
        )
    return cast(Source, importlib.import_module(SOURCES[kind]))


def guess_kind(path: str) -> str:
    """Return the kind that fits the ending of a path. Forms and commands propose it; it is never a check."""
    scheme, found, _ = path.partition("://")
    if found and scheme in SOURCES:
        return scheme
    if Path(path).is_dir():
        return "hive"
    return next(iter(kinds_of([path])), "parquet")


def kinds_of(names: Iterable[str]) -> list[str]:
    """Return each kind that fits the endings of these names once. Unknown endings are left out."""
    return list(dict.fromkeys(kind for name in names if (kind := _kind_of(name.lower()))))


def _kind_of(name: str) -> str:
    if name.endswith(_OBJECTS):  # many JSON lines files have this ending; a JSON array is refused later
        return "jsonl"
    return next((kind for kind in SOURCES if source(kind).SUFFIXES and name.endswith(source(kind).SUFFIXES)), "")


def read_options(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return each option of a kind with its value.

    Raises: Invalid for an unknown option or a wrong type.
    """
    known = {option.name: option for option in source(kind).OPTIONS}
    if unknown := sorted(set(given) - set(known)):
        raise Invalid(
            f"a {kind} source has no option {', '.join(unknown)}; it has {', '.join(known) or 'none'}",
            code="option_unknown",
        )
    return {name: _value(option, given.get(name, option.default)) for name, option in known.items()}


def check_options(kind: str, given: Mapping[str, Any]) -> None:
    """Check the options of a new registration.

    Versions that were registered earlier may have other values and are still read with them. Raises: Invalid for a
    value that is not allowed.
    """
    asked = read_options(kind, given)
    for option in source(kind).OPTIONS:
        if option.values is not None and (value := asked[option.name]) not in option.values:
            first, last = option.values[0], option.values[-1]
            raise Invalid(
                f"expected {option.name} to be {first} to {last} ({option.help}), came {value}", code="option_invalid"
            )


def _value(option: Option, value: Any) -> Any:
    fits = type(value) is option.type and (not isinstance(value, str) or len(value) <= 256)
    if value != option.default and not fits:
        raise Invalid(
            f"option {option.name} is {option.type.__name__} ({option.help}), came {type(value).__name__}",
            code="option_invalid",
        )
    return value
