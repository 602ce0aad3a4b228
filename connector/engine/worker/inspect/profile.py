"""The profile of a dataset version at registration: schema, figures per column, digests. Runs in a worker.

Every row is read once, so a corrupt page is found here and not by a consumer. Minimum and maximum values are for the
owner: publishers of the profile leave them out.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from connector.datasets.sources import hive, parquet
from connector.datasets.sources.source_files import alike, quote_name, quote_text
from connector.datasets.sources.to_parquet import check_names
from connector.engine.worker.inspect import file_schemas
from connector.engine.worker.read.duckdb_engine import Files
from connector.errors import SourceUnreadable

_COLUMNS_AT_ONCE, _COLUMNS_MAX = 16, 256  # of a pass, and where they are small: each pass binds all columns of a file
_TEXT_MAX = 128
_NO_TEXT = ("Invalid Input Error: Invalid string encoding", "Invalid Input Error: Invalid JSON")  # the engine's words
_STRANGE = {  # values that a type of the engine may have, as it is written: what they should be and are, and what to do
    r"\bTIME\b(?! ZONE)": ("times before 24:00, came 24:00", "write another time, or text"),
    "TIMESTAMP": (
        "timestamps of milliseconds within 64 bits of microseconds, came others",
        "write them as whole numbers, or leave them out",
    ),
    "DECIMAL": ("decimals of no more digits than their type has, came others", "write them as a wider type, or text"),
}
_OF_FOLDERS = ("text", "integer", "date32[day]", "timestamp")  # what folders' values may become, as families
Reached = Callable[[str, int], None]
"""Called with the stage and how many files are done in it. Raises where the job was cancelled."""
Ask = Callable[[str, Callable[[float], None]], Sequence[Any]]
"""Returns the only row of an answer, and reports progress from 0 to 1 meanwhile."""
_ORDERED = ("INT", "DECIMAL", "FLOAT", "DOUBLE", "DATE", "TIME", "VARCHAR", "BOOLEAN")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of top-level columns where known: average bytes of a value, and the most that a pass over one holds."""

    widths: Mapping[str, float] = field(default_factory=dict)
    held: Mapping[str, int] = field(default_factory=dict)
    behind: Mapping[str, pa.DataType] = field(default_factory=dict)
    """Types of the files' own columns that a partition folder replaces, by `alike`."""
    coarse: frozenset[str] = frozenset()
    """Columns with timestamps of milliseconds, by `alike`."""


def profile(
    con: Any, name: str, files: Files, *, sizes: Sizes, room: int, reached: Reached, ask: Ask, guessed: bool = False
) -> dict[str, Any]:
    """Return columns with types and figures, row count, bytes, and the digest of each file.

    `room`: bytes for a pass. `guessed`: folders' texts may have become numbers and dates.
    Raises: SourceUnreadable for data that readers could not take unchanged.
    """
    described = con.sql(f"DESCRIBE SELECT * FROM {quote_name(name)}").fetchall()  # noqa: S608  quoted
    columns = [(str(row[0]), str(row[1])) for row in described]
    check_names(column for column, _ in columns)  # of all files and their folders: the engine joins what is alike to it
    parquet.check_types(dict(columns))
    if guessed:
        hive.check_guesses([ref.name for ref in files.refs], dict(columns))
    there = con.sql(f"SELECT * FROM {quote_name(name)}")  # noqa: S608  quoted
    if sizes.behind:
        _check_behind(there.limit(0).to_arrow_table().schema, sizes.behind)
    strange = {
        column: _Strange(coarse=alike(column) in sizes.coarse).sql(quote_name(column), kind)
        for column, kind in zip(there.columns, there.types, strict=True)
    }
    rows, refused = 0, dict[str, str]()
    figures: list[dict[str, Any]] = []
    for some in _passes(columns, sizes.held, room):
        counted = partial(
            _report_counting, reached, len(files.refs), len(figures) / len(columns), len(some) / len(columns)
        )
        counted(0.0)
        try:
            *answer, rows = ask(_question(name, some, strange), counted)
        except Exception as error:
            if str(error).startswith(_NO_TEXT):
                files.check_unchanged()  # where one did change, that is why
                _check_text(ask, name, some)
            raise
        figures += _figures(some, answer, rows)
        refused |= dict(column for column, told in zip(some, answer[4::5], strict=True) if told)
    _check_strange(refused)
    for figure in figures:
        figure["bytes"] = round(sizes.widths.get(figure["name"], 0.0) * rows) or None
    found = digests(files, reached=reached)
    files.check_unchanged()
    return {"rows": rows, "columns": figures, "files": found, "bytes": sum(file["size"] for file in found)}


def _check_text(ask: Ask, name: str, columns: Sequence[tuple[str, str]]) -> None:
    """Raises: SourceUnreadable naming the columns with invalid text."""
    if found := [column for column, _ in columns if not _is_text(ask, name, column)]:
        told = ", ".join(found[: file_schemas.TOLD_MAX])
        raise SourceUnreadable(
            f"expected text in utf-8 (and JSON where a type says so), came others in {told}; "
            "write them so, or as binary",
            code="value_unmappable",
            columns=found,
        )


def _is_text(ask: Ask, name: str, column: str) -> bool:
    """Whether the engine accepts all text of a column."""
    try:
        ask(f"SELECT count({quote_name(column)}) FROM {quote_name(name)}", lambda _: None)  # noqa: S608  quoted
    except Exception as error:
        if not str(error).startswith(_NO_TEXT):
            raise
        return False
    return True


def _check_behind(schema: pa.Schema, behind: Mapping[str, pa.DataType]) -> None:
    """Raises: SourceUnreadable where a folder's text has another type than that column has in the files."""
    for column in schema:
        kind = behind.get(alike(column.name), column.type)
        if file_schemas.family(kind) != file_schemas.family(column.type):
            raise SourceUnreadable(
                f"expected folders whose values are of the type that the files' own column has, came {column.name} of "
                f"{column.type} in folders and {kind} in files; {_in_folders(kind)}rename the folders",
                code="columns_repeated",
                columns=[column.name],
            )


def _in_folders(kind: pa.DataType) -> str:
    """Return the advice for giving folders' values the type of a column; empty if there is no such option."""
    if file_schemas.family(kind) in _OF_FOLDERS:
        return (
            "set the option guess_types (false keeps folders' values texts, true makes whole numbers, dates and "
            "moments of them), or "
        )
    return ""


def _passes(
    columns: Sequence[tuple[str, str]], held: Mapping[str, int], room: int
) -> Iterator[Sequence[tuple[str, str]]]:
    """Yield the columns of each pass: a few, or as many as there is room for."""
    start = 0
    while start < len(columns):
        stop, left = start, room
        while stop < len(columns) and stop - start < _COLUMNS_MAX:
            left -= held.get(columns[stop][0], room)
            if left < 0 and stop - start >= _COLUMNS_AT_ONCE:
                break
            stop += 1
        yield columns[start:stop]
        start = stop


def _check_strange(refused: Mapping[str, str]) -> None:
    """Raises: SourceUnreadable for columns with values outside their type's range. `refused`: types by column."""
    for kind, told in _STRANGE.items():
        if columns := [column for column, of in refused.items() if re.search(kind, of)]:
            expected, todo = told
            raise SourceUnreadable(
                f"expected {expected} in {', '.join(columns[: file_schemas.TOLD_MAX])}; {todo}",
                code="value_unmappable",
                columns=columns,
            )


@dataclass(frozen=True, slots=True)
class _Strange:
    """Builds SQL that finds values which Arrow's readers refuse or the engine changes.

    `coarse`: timestamps are in milliseconds; the engine reads the largest and the smallest as infinite.
    """

    coarse: bool

    def sql(self, value: str, kind: Any, depth: int = 0) -> str:
        """Return the SQL for a value of an engine's type; empty where no value of the type is affected."""
        if kind.id in ("list", "array"):
            return self._within(value, kind.children[0][1], depth)
        if kind.id == "map":
            (_, key), (_, held) = kind.children
            parts = [self._within(f"map_{of}({value})", part, depth) for of, part in (("keys", key), ("values", held))]
        elif kind.id == "struct":
            fields = [(f"struct_extract({value}, {quote_text(name)})", part) for name, part in kind.children]
            parts = [self.sql(field, part, depth) for field, part in fields]
        else:
            return self._leaf(value, kind)
        return " OR ".join(filter(None, parts)) and f"({' OR '.join(filter(None, parts))})"

    def _leaf(self, value: str, kind: Any) -> str:
        if kind.id == "decimal":
            (_, digits), (_, scale) = kind.children
            most = f"CAST('{'9' * (digits - scale)}.{'9' * scale}' AS {kind})"
            return f"({value} NOT BETWEEN -{most} AND {most})"
        if kind.id.startswith("timestamp"):
            return f"isinf({value})" if self.coarse else ""
        return f"({value} >= CAST('24:00:00' AS {kind}))" if kind.id.startswith("time") else ""

    def _within(self, values: str, kind: Any, depth: int) -> str:
        one = f"v{depth}"
        inner = self.sql(one, kind, depth + 1)
        return inner and f"coalesce(list_bool_or(list_transform({values}, lambda {one}: {inner})), false)"


def _report_counting(reached: Reached, files: int, before: float, share: float, part: float) -> None:
    """Report `part` of a pass, which is `share` of all passes, as a number of files."""
    reached("counting", min(files - 1, int(files * (before + share * part))))  # the stage is not over


def digests(files: Files, *, reached: Reached) -> list[dict[str, Any]]:
    """Return every file with its SHA-256, in order."""
    found = []
    for number, ref in enumerate(files.refs):
        reached("digesting", number)
        found.append(ref.to_json() | {"sha256": files.digest(number)})
    return found


def _question(name: str, columns: Sequence[tuple[str, str]], strange: Mapping[str, str]) -> str:
    """Return the query for four figures of each column, whether it has a strange value, and the row count.

    One pass for all, because each pass opens every file.
    """
    asked = []
    for column, kind in columns:
        quoted = quote_name(column)
        asked += [f"count({quoted})", f"approx_count_distinct({quoted})" if _distinct(kind) else "NULL"]
        ends = ("min", "max") if _ordered(kind) else ()
        asked += [f"left(CAST({end}({quoted}) AS VARCHAR), {_TEXT_MAX})" for end in ends] or ["NULL", "NULL"]
        asked.append(f"bool_or({strange[column]})" if strange[column] else "NULL")
    return f"SELECT {', '.join(asked)}, count(*) FROM {quote_name(name)}"  # noqa: S608  quoted


def _figures(columns: Sequence[tuple[str, str]], answer: Sequence[Any], rows: int) -> list[dict[str, Any]]:
    figures = []
    for number, (column, kind) in enumerate(columns):
        count, distinct, least, greatest = answer[5 * number : 5 * number + 4]
        figures.append(
            {
                "name": column,
                "type": kind,
                "null_share": round(1 - count / rows, 6) if rows else 0.0,
                "distinct": None if distinct is None else min(distinct, count),  # estimated: never more than values
                "min": least,
                "max": greatest,
            }
        )
    return figures


def _ordered(kind: str) -> bool:
    return "[" not in kind and kind.removeprefix("U").startswith((*_ORDERED, "BIG", "SMALL", "TINY", "HUGE"))


def _distinct(kind: str) -> bool:
    return "[" not in kind and not kind.startswith(("STRUCT", "MAP", "UNION", "INTERVAL"))
