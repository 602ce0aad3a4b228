"""A directory of Parquet files whose folders are partition columns (`year=2024/month=01/part-0.parquet`)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from connector.datasets.sources import Option, RowRange
from connector.datasets.sources.parquet import NUMBER, groups, view_of_rows
from connector.datasets.sources.source_files import PATTERN, FileRef, alike, files_under, quote_list, quote_name
from connector.errors import SourceUnreadable

__all__ = ["NUMBER", "attach", "attach_rows", "convert", "find", "groups"]

SUFFIXES = (".parquet", ".pq")
OPTIONS: tuple[Option, ...] = (
    Option("guess_types", bool, True, "Read numbers and dates in folder names as such; false keeps them text."),
    Option(
        "union_by_name", bool, False,
        "Files may lack columns that others have; a missing one is null. Those of one name are of one type, or of such "
        "as become one without altering a value.",
    ),
)  # fmt: skip
CONVERTED = False
_GUESSED = {  # how the values of a folder look that the engine takes for a number or a date, and nothing else does
    "BIGINT": re.compile(r"-?\d+"),
    "DATE": re.compile(r"\d{4,}-\d{1,2}-\d{1,2}"),
    "TIMESTAMP": re.compile(r"\d{4,}-\d{1,2}-\d{1,2}[ T]([01]?\d|2[0-3]):\d{2}(:\d{2}(\.\d{1,6}0*)?)?"),
}
_NULL = ("", "__HIVE_DEFAULT_PARTITION__")


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """Return each Parquet file below the directory; all have the same partition columns."""
    files = files_under(path, roots=roots, suffixes=SUFFIXES)
    check_partitions(files, path)
    return files


def check_partitions(files: Sequence[FileRef], path: str) -> None:
    """Check the folders of the files.

    Raises: SourceUnreadable unless all files have the same partition columns, with different names.
    """
    kinds = {tuple(column for column, _ in _folders(file.name)): file.name for file in files}
    if len(kinds) > 1:
        shown = "; ".join(f"{'/'.join(kind) or 'none'} in {name!r}" for kind, name in sorted(kinds.items())[:5])
        raise SourceUnreadable(
            f"expected the same partition columns in every file under {path!r}, came {shown}", code="partitions_differ"
        )
    for file in files:
        _check_text(file.name)
    for name in kinds.values():
        columns = [alike(column) for column, _ in _folders(name)]
        if twice := sorted({column for column in columns if columns.count(column) > 1}):
            raise SourceUnreadable(
                f"expected folders of other columns one below the other, came {', '.join(twice)} twice in {name!r}; "
                "rename one of them",
                code="columns_repeated",
            )
        if strange := [column for column, _ in _folders(name) if not column or PATTERN.search(column)]:
            raise SourceUnreadable(
                "expected folders whose columns have names, without * ? [ ] { } \\ and line ends, came "
                f"{', '.join(map(repr, strange))} in {name!r}; rename the folder",
                code="partition_unnamed",
            )


def _check_text(name: str) -> None:
    """Check the percent-encoded text of partition folders.

    Raises: SourceUnreadable where it is not UTF-8.
    """
    for column, value in _folders(name):
        try:
            unquote(f"{column}{value}", errors="strict")
        except UnicodeDecodeError as error:
            raise SourceUnreadable(
                f"expected folders with utf-8 behind their signs of %, came {column}={value} in {name!r}; rename it",
                code="value_unmappable",
                columns=[column],
            ) from error


def check_guesses(names: Sequence[str], types: Mapping[str, str]) -> None:
    """Check the values of typed partition columns. `types`: the type of each column.

    Raises: SourceUnreadable for a word that the engine reads as a number or a date, such as `infinity`, `epoch` or
    `0x10`.
    """
    for name in names:
        for column, value in partitions(name).items():
            form = _GUESSED.get(types.get(column, ""))
            if form is not None and value not in _NULL and not form.fullmatch(value):
                raise SourceUnreadable(
                    f"expected folders of {column} with numbers and dates that are written as such, to the "
                    f"microsecond, or with other texts, came {column}={value} in {name!r}; register with the option "
                    "guess_types=false, which keeps them texts, or rename it",
                    code="value_unmappable",
                    columns=[column],
                )


def partitions(name: str) -> dict[str, str]:
    """Return the partition columns of a file with their text: `year=2024/month=1/x.parquet` has year and month."""
    return dict(_folders(name))


def _folders(name: str) -> Iterator[tuple[str, str]]:
    for part in Path(name).parts[:-1]:
        column, found, value = part.partition("=")
        if found:
            yield column, value


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """Create a view. A filter on a partition column skips whole files."""
    table = f"read_parquet({quote_list(paths)}, {_how(options)})"
    con.execute(f"CREATE VIEW {quote_name(name)} AS SELECT * FROM {table}")  # noqa: S608  quoted


def attach_rows(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any], rows: RowRange) -> None:
    """Create a view. Files and row groups without any of these rows are skipped."""
    view_of_rows(con, name, paths, _how(options), rows)


def _how(options: Mapping[str, Any]) -> str:
    guess, union = bool(options.get("guess_types", True)), bool(options.get("union_by_name", False))
    return f"hive_partitioning = true, hive_types_autocast = {guess}, union_by_name = {union}"


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Refuse the conversion: Parquet is read in place."""
    raise SourceUnreadable("a directory of Parquet files is read in place and is never converted")
