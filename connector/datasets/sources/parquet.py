"""Parquet: one file, or a directory of files of one schema without partition columns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import FILE_BIT, Option, Rows
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
NUMBER = "file_row_number"  # the engine's names for columns of its own: of the row in its file,
_FILE = "file_index"  # and of the file among all
PLACES = (NUMBER, _FILE)
_ALONE = "hive_partitioning = false"
_GEOMETRY = re.compile(r"\bGEOMETRY(?=[\[(),]|$)")  # the type, in another too; behind a field's name is a blank
_QUOTED = re.compile(r'"(?:[^"]|"")*"')  # a field's name that may be anything
_TOLD_MAX = 5


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """The file, or every Parquet file below the directory."""
    if resolve(path, roots=roots).is_dir():
        return files_under(path, roots=roots, suffixes=SUFFIXES)
    return (file_ref(path, roots=roots),)


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """A view; filters and projections reach into the scan through it."""
    con.execute(f"CREATE VIEW {quote_name(name)} AS SELECT * FROM {_table(paths)}")  # noqa: S608  quoted


def check_types(columns: Mapping[str, str]) -> None:
    """SourceUnreadable for columns of the engine's type GEOMETRY: it writes such values anew where it does anything to
    their rows. Connectors of before registered them."""
    if found := [f"{name} ({kind})" for name, kind in columns.items() if _GEOMETRY.search(_QUOTED.sub("", kind))]:
        raise SourceUnreadable(
            f"expected columns of types that can be given on as they are, came {', '.join(found[:_TOLD_MAX])}; their "
            "owner must write what Parquet itself calls a geometry as plain bytes, as GeoParquet 1 has it, and "
            "register the files under a new name where they are registered",
            code="type_unread",
        )


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
    """A view; the engine passes over files and row groups that hold none of these rows."""
    view_of_rows(con, name, paths, _ALONE, rows)


def attach_placed(con: Any, name: str, paths: Sequence[str], placed: Sequence[str]) -> None:
    """All rows, in place of what had the name before, with places for the values of these columns."""
    shown = "*" + _places(placed, file=f"{_FILE}::BIGINT" if len(paths) > 1 else "0::BIGINT")
    con.execute(f"CREATE OR REPLACE VIEW {quote_name(name)} AS SELECT {shown} FROM {_table(paths)}")  # noqa: S608  ours


def _table(paths: Sequence[str]) -> str:
    return f"read_parquet({quote_list(paths)}, {_ALONE})"


def _places(placed: Sequence[str], *, file: str) -> str:
    """What puts places into these columns, as `sources.place_of` reads them."""
    place = f"({file} << {FILE_BIT}) + {NUMBER}"
    return f" REPLACE ({', '.join(f'{place} AS {quote_name(name)}' for name in placed)})" if placed else ""


def view_of_rows(con: Any, name: str, paths: Sequence[str], how: str, rows: Rows) -> None:
    """A view of some rows of a `read_parquet` with these options. All files stay in it, so that types are what they are
    for the whole.

    The file by its path: by its number the engine means one of those that are left once a condition on folders is met.
    The path is in a column with the name of the view, which no column of the files has: one may be `filename`.
    """
    places = _places(rows.placed, file=f"{rows.file:d}::BIGINT")
    number = f", {NUMBER} AS {quote_name(rows.position)}" if rows.position else ""
    where = f"{NUMBER} >= {rows.first:d} AND {NUMBER} < {rows.stop:d}"
    shown = "*"
    if len(paths) > 1:
        shown, how = f"* EXCLUDE ({quote_name(name)})", f"{how}, filename = {quote_text(name)}"
        where += f" AND {quote_name(name)} = {quote_text(paths[rows.file])}"
    con.execute(
        f"CREATE OR REPLACE VIEW {quote_name(name)} AS SELECT {shown}{places}{number} "  # noqa: S608  ours
        f"FROM read_parquet({quote_list(paths)}, {how}) WHERE {where}"
    )


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Parquet stays as it is."""
    raise SourceUnreadable("a Parquet source is read in place and is never converted")
