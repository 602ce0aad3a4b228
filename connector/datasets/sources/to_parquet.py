"""Conversion of text files to Parquet, once at registration. Runs only in a worker process."""

from __future__ import annotations

import errno
import gzip
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, cast

from connector.datasets.sources.source_files import alike, quote_name, quote_text
from connector.errors import SourceUnreadable, Unavailable
from policies.contracts.columns import fold

BAD_LINES_SHOWN = 20
_BAD_LINES_TOLD = 3
# Rows and MB; the first limit applies: the engine holds a group several times.
_GROUP_ROWS, _GROUP_MB = (122_880, 32)
_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))
_GZIP = 16 + zlib.MAX_WBITS
_PIECE = 2**16
_WHOLE = ("BIGINT", "DECIMAL(38, 0)")


def write_parquet(
    con: Any,
    table: str,
    target: str,
    *,
    bad_lines_max: int,
    rejects_max: int = 1,
    paths: Sequence[str] = (),
    whole: bool = False,
    advice: Callable[[], str] = str,
) -> dict[str, Any]:
    """Write a table expression as one Parquet file. Returns rows, columns with types, and the lines left out.

    Each line has the number of its file among `paths`, from 1. `rejects_max`: number of faults of a file after which
    the engine reports no more. `whole`: there may be whole numbers of 128 bits. `advice`: further advice on bad lines.
    Raises: SourceUnreadable with the numbers of bad lines (never their content) when there are more than allowed.
    """
    _copy(con, "*", table, target)
    if whole and _may_be_whole(target) and (shown := _narrow_columns(con, table)):
        _copy(con, shown, table, target)
    bad = bad_lines(con, paths)
    if len(bad) > bad_lines_max or _is_cut_off(con, bad, rejects_max):
        raise lines_unreadable(bad, allowed=bad_lines_max, of_many=len(paths) > 1, advice=advice())
    columns = con.sql(f"DESCRIBE SELECT * FROM read_parquet({quote_text(target)})").fetchall()  # noqa: S608
    rows = con.sql(f"SELECT count(*) FROM read_parquet({quote_text(target)})").fetchall()[0][0]  # noqa: S608
    return {
        "rows": rows,
        "columns": [{"name": row[0], "type": row[1]} for row in columns],
        "left_out": bad[:BAD_LINES_SHOWN],
        "left_out_count": len(bad),
    }


def add_notes(report: dict[str, Any], notes: Mapping[str, str]) -> dict[str, Any]:
    """Return the report with notes on some columns."""
    told = {name: {"note": note} for name, note in notes.items() if note}
    return report | {"columns": [column | told.get(column["name"], {}) for column in report["columns"]]}


def open_file(path: str) -> BinaryIO:
    """Open a file for reading, unpacked if it is a `.gz`."""
    return cast(BinaryIO, gzip.open(path) if path.endswith(".gz") else Path(path).open("rb"))


def describe_file(path: str, paths: Sequence[str]) -> str:
    """Return the position of a file among the source's files, for the owner."""
    return f"file {paths.index(path) + 1} of {len(paths)} (in the order of their names)"


def check_gzip(paths: Sequence[str]) -> None:
    """Check that compressed files are whole: the engine ignores check sums, and its other messages may not be shown.

    Raises: SourceUnreadable with the position of a damaged file.
    """
    for path in paths:
        if path.endswith(".gz") and not _whole_gzip(path):
            raise SourceUnreadable(
                f"expected whole gzip files, came {describe_file(path, paths)} that is cut, damaged, not compressed, "
                "or has something after its end; write it again"
            )


def _whole_gzip(path: str) -> bool:
    """Return whether a file is gzip to its end, with one or several members, or empty."""
    member = None
    with Path(path).open("rb") as file:
        try:
            while piece := file.read(_PIECE):
                while piece:
                    member = zlib.decompressobj(_GZIP) if member is None or member.eof else member
                    member.decompress(piece)
                    piece = member.unused_data
        except zlib.error:
            return False
    return member is None or member.eof


def lines_unreadable(
    bad: Sequence[dict[str, Any]], *, allowed: int, of_many: bool, among: str = "", advice: str = ""
) -> SourceUnreadable:
    """Return the refusal of a source with these lines, each in the form of `left_out` in the report.

    `among`: the lines to which the limit applies, if not all. `advice`: further advice.
    """
    told = ", ".join(_format_bad_line(one, of_many=of_many) for one in bad[:_BAD_LINES_TOLD])
    return SourceUnreadable(
        f"expected at most {allowed} unreadable line{'s' * (allowed != 1)}{among}, came {len(bad)} or more: {told}; "
        f"correct the file or its options{advice}",
        code="lines_unreadable",
        lines=bad[:BAD_LINES_SHOWN],
    )


def _format_bad_line(bad: dict[str, Any], *, of_many: bool) -> str:
    """Return the text on a bad line. The column is empty where the whole line is bad; files are ordered by name."""
    where = f" of file {bad['file']}" if of_many else ""
    return f"line {bad['line']}{where} ({': '.join(filter(None, (bad['column'], bad['problem'])))})"


def _copy(con: Any, shown: str, table: str, target: str) -> None:
    try:
        con.execute(
            f"COPY (SELECT {shown} FROM {table}) TO {quote_text(target)} "  # noqa: S608  quoted, ours
            f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_GROUP_ROWS}, "
            f"ROW_GROUP_SIZE_BYTES '{_GROUP_MB}MB', USE_TMP_FILE false)"
        )
    except Exception as error:
        if str(error).startswith("IO Error:") and any(words in str(error) for words in _FULL):
            raise disk_full() from None
        raise


def disk_full() -> Unavailable:
    """Return the error for a full disk of the connector."""
    return Unavailable(
        "the dataset cannot be written down at its connector; the operator must make room on the disk of its data "
        "directory",
        code="disk_full",
    )


def _may_be_whole(target: str) -> bool:
    """Return whether a column of doubles may hold only whole numbers. Checking the text for its types costs another
    pass."""
    return any(ends is None or (ends[0] % 1, ends[1] % 1) == (0, 0) for ends in ends_of_doubles(target))


def ends_of_doubles(target: str) -> Iterator[tuple[float, float] | None]:
    """Yield minimum and maximum of each chunk of a Parquet file's double columns, also nested ones; None without
    statistics."""
    import pyarrow.parquet as pq  # the engine would cache this footer

    footer = pq.read_metadata(target)
    groups = map(footer.row_group, range(footer.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    told = (chunk.statistics for chunk in chunks if chunk.physical_type == "DOUBLE")
    yield from (None if one is None or not one.has_min_max else (one.min, one.max) for one in told)


def _narrow_columns(con: Any, table: str) -> str:
    """Return the SELECT list that narrows whole numbers of 128 bits; empty without such columns.

    The engine chooses that type where some numbers are negative, and would write floats to Parquet. Each column gets
    the first type of `_WHOLE` that holds all its values.
    """
    found, shown = con.sql(f"SELECT * FROM {table}"), []  # noqa: S608  ours
    for name, kind in zip(map(quote_name, found.columns), found.types, strict=True):
        if "HUGEINT" not in str(kind):
            continue
        casts = [f"TRY_CAST({name} AS {replace_types(kind, partial(_narrow_type, whole))})" for whole in _WHOLE]
        same = ", ".join(f"bool_and({name}::VARCHAR IS NOT DISTINCT FROM {cast}::VARCHAR)" for cast in casts)
        (kept,) = con.sql(f"SELECT {same} FROM {table}").fetchall()  # noqa: S608  quoted, ours
        shown += [f"{cast} AS {name}" for cast, every in zip(casts, kept, strict=True) if every is not False][:1]
    return f"* REPLACE ({', '.join(shown)})" if shown else ""


def _narrow_type(whole: str, kind: Any, _: Sequence[str]) -> str:
    return whole if str(kind.id) in ("hugeint", "uhugeint") else str(kind)


def replace_types(kind: Any, leaf: Callable[[Any, Sequence[str]], str], path: tuple[str, ...] = ()) -> str:
    """Return the type with each leaf type replaced by `leaf(type, path)`, at any depth. `path`: the names that lead to
    it."""
    form = str(kind.id)
    if form not in ("list", "struct", "map"):
        return leaf(kind, path)
    parts = [(name, replace_types(child, leaf, (*path, name))) for name, child in kind.children]
    if form == "list":
        return f"{parts[0][1]}[]"
    if form == "map":
        return f"MAP({', '.join(part for _, part in parts)})"
    return f"STRUCT({', '.join(f'{quote_name(name)} {part}' for name, part in parts)})"


def may_be_repeated(names: Sequence[str]) -> bool:
    """Return whether the engine may have numbered columns because names are equal, or differ only in case."""
    folded = [name.casefold() for name in names]
    return any(name.rstrip("0123456789").removesuffix("_") in folded for name in folded if name[-1:].isdigit())


def check_names(names: Iterable[str], *, file: str = "", column: str = "") -> None:
    """Check that names differ in more than case and the form of accents. `file`: the file of the names, if it is one.
    `column`: the column of these fields, if they are not columns.

    The engine distinguishes `Ärzte` from `ärzte`, but people and policies do not. Raises: SourceUnreadable.
    """
    known, same = Counter(names), fold if column else alike
    folded = Counter(map(same, known.elements()))
    if twice := sorted(name for name in known if folded[same(name)] > 1):
        told = ", ".join(f"{name} {known[name]} times" if known[name] > 1 else name for name in twice)
        where = " in " + " of ".join(filter(None, (column, repr(file)))) if file else ""
        raise SourceUnreadable(
            f"expected {'fields' if column else 'columns'} whose names differ in more than case, came {told}{where}; "
            "rename them",
            code="columns_repeated",
            **({"file": file} if file else {}),
        )


def bad_lines(con: Any, paths: Sequence[str]) -> list[dict[str, Any]]:
    """Return the lines that the engine could not read, in order, each in the form of `left_out` in the report."""
    found = con.sql("SELECT table_name FROM duckdb_tables() WHERE table_name = 'reject_errors'").fetchall()
    if not found:
        return []
    rows = con.sql(
        "SELECT DISTINCT file_path, line, column_name, error_type "
        "FROM reject_errors JOIN reject_scans USING (scan_id, file_id) ORDER BY column_name NULLS FIRST, error_type"
    ).fetchall()
    first: dict[tuple[str, int], tuple[str | None, str]] = {}  # a line counts once, with its first fault
    for path, line, column, problem in rows:
        first.setdefault((path, line), (column, str(problem).lower()))
    number = {path: number for number, path in enumerate(paths, 1)}
    bad = [
        {"file": number[path], "line": line, "column": column, "problem": problem}
        for (path, line), (column, problem) in first.items()
    ]
    return sorted(bad, key=lambda one: (one["file"], one["line"]))


def _is_cut_off(con: Any, bad: Sequence[Any], most: int) -> bool:
    """Return whether the engine stopped reporting faults of a file: there may be more bad lines."""
    if not bad:
        return False
    told = con.sql("SELECT count(*) FROM reject_errors GROUP BY scan_id, file_id").fetchall()
    return any(count >= most for (count,) in told)
