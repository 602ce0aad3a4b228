"""A directory of Parquet files whose folders carry columns (`year=2024/month=01/part-0.parquet`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option, Rows
from connector.datasets.sources.files import FileRef, files_under, quote_list, quote_name, quote_text
from connector.datasets.sources.parquet import groups, view_of_rows
from connector.errors import SourceUnreadable

__all__ = ["attach", "attach_rows", "convert", "find", "groups"]

TITLE = "Directory of Parquet files with partitions"
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


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """Every Parquet file below the directory, all of them with the same partition columns."""
    files = files_under(path, roots=roots, suffixes=SUFFIXES)
    check_partitions(files, path)
    return files


def check_partitions(files: Sequence[FileRef], path: str) -> None:
    """SourceUnreadable unless all files have the same partition columns."""
    kinds = {partitions(file.name): file.name for file in files}
    if len(kinds) > 1:
        shown = "; ".join(f"{'/'.join(kind) or 'none'} in {name!r}" for kind, name in sorted(kinds.items())[:5])
        raise SourceUnreadable(
            f"expected the same partition columns in every file under {path!r}, came {shown}", code="partitions_differ"
        )


def partitions(name: str) -> tuple[str, ...]:
    """The partition columns in a file's place: `year=2024/month=1/x.parquet` has year and month."""
    return tuple(part.split("=", 1)[0] for part in Path(name).parts[:-1] if "=" in part)


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """A view; a filter on a partition column skips whole files."""
    con.execute(f"CREATE VIEW {quote_name(name)} AS SELECT * FROM {_table(paths, options)}")  # noqa: S608  quoted


def attach_rows(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any], rows: Rows) -> None:
    """A view; files and row groups that hold none of these rows are passed over.

    The file by its name: by its number the engine means one of those that are left once a condition on folders is met.
    """
    file = f"filename = {quote_text(paths[rows.file])}"
    view_of_rows(con, name, _table(paths, options), rows, file=file, files=len(paths))


def _table(paths: Sequence[str], options: Mapping[str, Any]) -> str:
    guess, union = bool(options.get("guess_types", True)), bool(options.get("union_by_name", False))
    return (
        f"read_parquet({quote_list(paths)}, hive_partitioning = true, "
        f"hive_types_autocast = {guess}, union_by_name = {union})"
    )


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Parquet stays as it is."""
    raise SourceUnreadable("a directory of Parquet files is read in place and is never converted")
