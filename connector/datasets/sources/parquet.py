"""Parquet: one file, or a directory of files of one schema without partition columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import FILE_BIT, Option, Rows
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
    con.execute(f"CREATE VIEW {quote_name(name)} AS SELECT * FROM {_table(paths)}")  # noqa: S608  quoted


def groups(files: Sequence[Any]) -> list[list[tuple[int, int]]]:
    """By the footers."""
    import pyarrow.parquet as pq

    found = []
    for file in files:
        footer = pq.read_metadata(file)
        shown = (footer.row_group(number) for number in range(footer.num_row_groups))
        found.append([(group.num_rows, group.total_byte_size) for group in shown])
    return found


def attach_rows(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any], rows: Rows) -> None:
    """A view; the engine passes over the row groups that hold none of these rows."""
    view_of_rows(con, name, _table(paths), rows, file=f"file_index = {rows.file:d}", files=len(paths))


def attach_placed(con: Any, name: str, paths: Sequence[str], placed: Sequence[str]) -> None:
    """All rows, in place of what had the name before, with places for the values of these columns."""
    shown = _shown(placed, files=len(paths))
    con.execute(f"CREATE OR REPLACE VIEW {quote_name(name)} AS SELECT {shown} FROM {_table(paths)}")  # noqa: S608  ours


def _table(paths: Sequence[str]) -> str:
    return f"read_parquet({quote_list(paths)}, hive_partitioning = false)"


def _shown(placed: Sequence[str], *, files: int) -> str:
    """Every column; a place as `sources.place_of` reads it."""
    if not placed:
        return "*"
    place = f"(file_index::BIGINT << {FILE_BIT}) + file_row_number" if files > 1 else "file_row_number"
    return f"* REPLACE ({', '.join(f'{place} AS {quote_name(name)}' for name in placed)})"


def view_of_rows(con: Any, name: str, table: str, rows: Rows, *, file: str, files: int) -> None:
    """A view of some rows of a `read_parquet`. All files stay in it, so that types are what they are for the whole.

    `file`: the condition that a row is of the right file.
    """
    number = f", file_row_number AS {quote_name(rows.position)}" if rows.position else ""
    shown = _shown(rows.placed, files=files)
    where = f"file_row_number >= {rows.first:d} AND file_row_number < {rows.stop:d}"
    where += f" AND {file}" if files > 1 else ""
    con.execute(
        f"CREATE OR REPLACE VIEW {quote_name(name)} AS SELECT {shown}{number} FROM {table} WHERE {where}"  # noqa: S608  ours
    )


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Parquet stays as it is."""
    raise SourceUnreadable("a Parquet source is read in place and is never converted")
