"""Parquet: one file, or a directory of files of one schema without partition columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option
from connector.datasets.sources.files import FileRef, file_ref, files_under, quote_list, quote_name, resolve
from connector.errors import SourceUnreadable

TITLE = "Parquet file"
SUFFIXES = (".parquet", ".pq")
OPTIONS: tuple[Option, ...] = ()
CONVERTED = False


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """The file, or every Parquet file below the directory."""
    if resolve(path, roots=roots).is_dir():
        return files_under(path, roots=roots, suffixes=SUFFIXES)
    return (file_ref(path, roots=roots),)


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """A view; filters and projections reach into the scan through it."""
    con.execute(
        f"CREATE VIEW {quote_name(name)} AS SELECT * FROM "  # noqa: S608  names and paths are quoted, ours
        f"read_parquet({quote_list(paths)}, hive_partitioning = false)"
    )


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Parquet stays as it is."""
    raise SourceUnreadable("a Parquet source is read in place and is never converted")
