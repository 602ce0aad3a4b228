"""Parquet sources: one file, or a directory of files with one schema and no partition columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option, RowRange
from connector.datasets.sources.source_files import (
    FileRef,
    file_ref,
    files_under,
    quote_list,
    quote_name,
    quote_text,
    resolve,
)
from connector.errors import SourceUnreadable

SUFFIXES = (".parquet", ".pq")
OPTIONS: tuple[Option, ...] = ()
CONVERTED = False
NUMBER = "file_row_number"  # the engine's name for a column of its own: the number of the row in its file
_ALONE = "hive_partitioning = false"
_GEOMETRY = re.compile(r"\bGEOMETRY(?=[\[(),]|$)")  # the type, in another too; behind a field's name is a blank
_QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a field's name that may be anything
_TOLD_MAX = 5


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """Return the file, or each Parquet file below the directory."""
    if resolve(path, roots=roots).is_dir():
        return files_under(path, roots=roots, suffixes=SUFFIXES)
    return (file_ref(path, roots=roots),)


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """Create a view. Filters and projections are pushed into the scan."""
    con.execute(f"CREATE VIEW {quote_name(name)} AS SELECT * FROM {_table(paths)}")  # noqa: S608  quoted


def check_types(columns: Mapping[str, str]) -> None:
    """Check for columns of the engine's type GEOMETRY, which it rewrites when it processes rows.

    Earlier versions registered such columns. Raises: SourceUnreadable.
    """
    if found := [f"{name} ({kind})" for name, kind in columns.items() if _GEOMETRY.search(_QUOTED.sub("", kind))]:
        raise SourceUnreadable(
            f"expected columns of types that can be given on as they are, came {', '.join(found[:_TOLD_MAX])}; their "
            "owner must write what Parquet itself calls a geometry as plain bytes, as GeoParquet 1 has it, and "
            "register the files under a new name where they are registered",
            code="type_unread",
        )


def groups(files: Sequence[Any]) -> list[list[tuple[int, int]]]:
    """Return the (rows, bytes) of each row group of each file, from the footers."""
    import pyarrow.parquet as pq

    found = []
    for file in files:
        footer = pq.read_metadata(file)
        shown = (footer.row_group(number) for number in range(footer.num_row_groups))
        found.append([(group.num_rows, group.total_byte_size) for group in shown])
    return found


def attach_rows(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any], rows: RowRange) -> None:
    """Create a view. The engine skips files and row groups without any of these rows."""
    view_of_rows(con, name, paths, _ALONE, rows)


def _table(paths: Sequence[str]) -> str:
    return f"read_parquet({quote_list(paths)}, {_ALONE})"


def view_of_rows(con: Any, name: str, paths: Sequence[str], how: str, rows: RowRange) -> None:
    """Create a view of a row range of a `read_parquet` with these options. It covers all files, so that types stay the
    same.

    The file is selected by its path: the engine numbers only the files that are left after a condition on folders. The
    path is in a column with the name of the view, because a file may have a column `filename`.
    """
    number = f", {NUMBER} AS {quote_name(rows.position)}" if rows.position else ""
    where = f"{NUMBER} >= {rows.first:d} AND {NUMBER} < {rows.stop:d}"
    shown = "*"
    if len(paths) > 1:
        shown, how = f"* EXCLUDE ({quote_name(name)})", f"{how}, filename = {quote_text(name)}"
        where += f" AND {quote_name(name)} = {quote_text(paths[rows.file])}"
    con.execute(
        f"CREATE OR REPLACE VIEW {quote_name(name)} AS SELECT {shown}{number} "  # noqa: S608  ours
        f"FROM read_parquet({quote_list(paths)}, {how}) WHERE {where}"
    )


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Refuse the conversion: Parquet is read in place."""
    raise SourceUnreadable("a Parquet source is read in place and is never converted")
