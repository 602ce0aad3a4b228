"""From text to Parquet, once, at registration. Runs in a worker process only."""

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
from connector.errors import Busy, SourceUnreadable
from policies.contracts.columns import fold

BAD_LINES_SHOWN = 20
_BAD_LINES_TOLD = 3
_GROUP_ROWS, _GROUP_MB = 122_880, 32  # whichever comes first: the engine holds a group several times to write it
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
    """Write a table expression as one Parquet file; rows, columns with types, and the lines left out, each with the
    number of its file among `paths`, from 1. `rejects_max`: faults of a file after which the engine tells of no more.
    `whole`: there may be whole numbers of 128 bits. `advice`: what an owner may do about bad lines, if more is known.

    SourceUnreadable with the numbers of bad lines (never their content) when there are more than allowed.
    """
    _copy(con, "*", table, target)
    if whole and _may_be_whole(target) and (shown := _shown(con, table)):
        _copy(con, shown, table, target)
    bad = bad_lines(con, paths)
    if len(bad) > bad_lines_max or _cut(con, bad, rejects_max):
        raise lines_unreadable(bad, allowed=bad_lines_max, of_many=len(paths) > 1, advice=advice())
    columns = con.sql(f"DESCRIBE SELECT * FROM read_parquet({quote_text(target)})").fetchall()  # noqa: S608
    rows = con.sql(f"SELECT count(*) FROM read_parquet({quote_text(target)})").fetchall()[0][0]  # noqa: S608
    return {
        "rows": rows,
        "columns": [{"name": row[0], "type": row[1]} for row in columns],
        "left_out": bad[:BAD_LINES_SHOWN],
        "left_out_count": len(bad),
    }


def noted(report: dict[str, Any], notes: Mapping[str, str]) -> dict[str, Any]:
    """The report with what the owner is told of some columns."""
    told = {name: {"note": note} for name, note in notes.items() if note}
    return report | {"columns": [column | told.get(column["name"], {}) for column in report["columns"]]}


def opened(path: str) -> BinaryIO:
    """The bytes of a file, unpacked where it is a `.gz`."""
    return cast(BinaryIO, gzip.open(path) if path.endswith(".gz") else Path(path).open("rb"))


def which(path: str, paths: Sequence[str]) -> str:
    """Which file it is, as its owner can count them."""
    return f"file {paths.index(path) + 1} of {len(paths)} (in the order of their names)"


def check_gzip(paths: Sequence[str]) -> None:
    """SourceUnreadable that names a compressed file which is not whole. The engine looks at no check sum, and says of
    others what its caller may not tell."""
    for path in paths:
        if path.endswith(".gz") and not _whole_gzip(path):
            raise SourceUnreadable(
                f"expected whole gzip files, came {which(path, paths)} that is cut, damaged, not compressed, or has "
                "something after its end; write it again"
            )


def _whole_gzip(path: str) -> bool:
    """Whether a file is gzip to its end, in one member or several, or empty."""
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
    """The refusal of a source with these lines, each as `left_out` of a report has it. `among`: which are allowed so
    few, if not all; `advice`: what to do, beside the usual."""
    told = ", ".join(_told(one, of_many=of_many) for one in bad[:_BAD_LINES_TOLD])
    return SourceUnreadable(
        f"expected at most {allowed} unreadable line{'s' * (allowed != 1)}{among}, came {len(bad)} or more: {told}; "
        f"correct the file or its options{advice}",
        code="lines_unreadable",
        lines=bad[:BAD_LINES_SHOWN],
    )


def _told(bad: dict[str, Any], *, of_many: bool) -> str:
    """A bad line; some are so as a whole, and in no column. Of many files, in the order of their names."""
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


def disk_full() -> Busy:
    """What an owner is told where the connector has no room for what it makes of a source."""
    return Busy(
        "the dataset cannot be written down at its connector; the operator must make room on the disk of its data "
        "directory",
        code="disk_full",
    )


def _may_be_whole(target: str) -> bool:
    """Whether a column of doubles may have been one of whole numbers: to ask text for its types takes another pass."""
    return any(ends is None or (ends[0] % 1, ends[1] % 1) == (0, 0) for ends in ends_of_doubles(target))


def ends_of_doubles(target: str) -> Iterator[tuple[float, float] | None]:
    """The least and the greatest value of each piece of a Parquet file's columns of doubles, nested ones too; None
    where they are not told."""
    import pyarrow.parquet as pq  # the engine would remember this footer

    footer = pq.read_metadata(target)
    groups = map(footer.row_group, range(footer.num_row_groups))
    chunks = (group.column(number) for group in groups for number in range(group.num_columns))
    told = (chunk.statistics for chunk in chunks if chunk.physical_type == "DOUBLE")
    yield from (None if one is None or not one.has_min_max else (one.min, one.max) for one in told)


def _shown(con: Any, table: str) -> str:
    """Every column, where some are of whole numbers of 128 bits: the engine finds those where some are negative, and
    writes them to Parquet as floats. They have the first type of `_WHOLE` that has all of them. Empty where none is."""
    found, shown = con.sql(f"SELECT * FROM {table}"), []  # noqa: S608  ours
    for name, kind in zip(map(quote_name, found.columns), found.types, strict=True):
        if "HUGEINT" not in str(kind):
            continue
        casts = [f"TRY_CAST({name} AS {retyped(kind, partial(_narrowed, whole))})" for whole in _WHOLE]
        same = ", ".join(f"bool_and({name}::VARCHAR IS NOT DISTINCT FROM {cast}::VARCHAR)" for cast in casts)
        (kept,) = con.sql(f"SELECT {same} FROM {table}").fetchall()  # noqa: S608  quoted, ours
        shown += [f"{cast} AS {name}" for cast, every in zip(casts, kept, strict=True) if every is not False][:1]
    return f"* REPLACE ({', '.join(shown)})" if shown else ""


def _narrowed(whole: str, kind: Any, _: Sequence[str]) -> str:
    return whole if str(kind.id) in ("hugeint", "uhugeint") else str(kind)


def retyped(kind: Any, leaf: Callable[[Any, Sequence[str]], str], path: tuple[str, ...] = ()) -> str:
    """The type with others in place of those that have no parts, however deep they lie: `leaf` says which, by the type
    and the names that lead to it."""
    form = str(kind.id)
    if form not in ("list", "struct", "map"):
        return leaf(kind, path)
    parts = [(name, retyped(child, leaf, (*path, name))) for name, child in kind.children]
    if form == "list":
        return f"{parts[0][1]}[]"
    if form == "map":
        return f"MAP({', '.join(part for _, part in parts)})"
    return f"STRUCT({', '.join(f'{quote_name(name)} {part}' for name, part in parts)})"


def may_be_repeated(names: Sequence[str]) -> bool:
    """Whether the engine may have numbered columns because their names are the same, or differ in case only."""
    folded = [name.casefold() for name in names]
    return any(name.rstrip("0123456789").removesuffix("_") in folded for name in folded if name[-1:].isdigit())


def check_names(names: Iterable[str], *, file: str = "", column: str = "") -> None:
    """SourceUnreadable where two names are the same, or differ in case or how accents are stored only. `file`: whose
    they are, if of one; `column`: whose fields they are, if they are not columns.

    Columns of any letters, though the engine tells `Ärzte` from `ärzte`: people take them for one, and so do policies.
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
    """The lines that the engine could not read, in their order, each as `left_out` of a report has it."""
    found = con.sql("SELECT table_name FROM duckdb_tables() WHERE table_name = 'reject_errors'").fetchall()
    if not found:
        return []
    rows = con.sql(
        "SELECT DISTINCT file_path, line, column_name, error_type "
        "FROM reject_errors JOIN reject_scans USING (scan_id, file_id) ORDER BY column_name NULLS FIRST, error_type"
    ).fetchall()
    first: dict[tuple[str, int], tuple[str | None, str]] = {}  # a line counts once, whatever is wrong with it
    for path, line, column, problem in rows:
        first.setdefault((path, line), (column, str(problem).lower()))
    number = {path: number for number, path in enumerate(paths, 1)}
    bad = [
        {"file": number[path], "line": line, "column": column, "problem": problem}
        for (path, line), (column, problem) in first.items()
    ]
    return sorted(bad, key=lambda one: (one["file"], one["line"]))


def _cut(con: Any, bad: Sequence[Any], most: int) -> bool:
    """Whether the engine stopped telling what is wrong with a file: there may be more lines than it told of."""
    if not bad:
        return False
    told = con.sql("SELECT count(*) FROM reject_errors GROUP BY scan_id, file_id").fetchall()
    return any(count >= most for (count,) in told)
