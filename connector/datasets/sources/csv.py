"""CSV: converted once to Parquet when it is registered, with a report of what was read how."""

from __future__ import annotations

import codecs
import gzip
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option, texts
from connector.datasets.sources.convert import check_gzip, check_names, may_be_repeated, noted, write_parquet
from connector.datasets.sources.files import FileRef, file_ref, files_under, quote_list, quote_name, quote_text, resolve
from connector.errors import BadInput, SourceUnreadable

TITLE = "CSV file"
SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
ENCODINGS = ("utf-8", "latin-1", "utf-16")
OPTIONS: tuple[Option, ...] = (
    Option("delimiter", str, "", "The character between fields; empty finds out."),
    Option("encoding", str, "", f"How characters are written: {', '.join(ENCODINGS)}; empty is utf-8."),
    Option("header", bool, True, "The first line holds the names of the columns."),
    Option("null_text", str, "", "What stands for a missing value."),
    Option("date_format", str, "", "How dates are written (%d.%m.%Y); empty finds out."),
    Option("timestamp_format", str, "", "How moments are written (%d.%m.%Y %H:%M); empty finds out."),
    Option("decimal", str, "", "What stands before the decimals of a number: `,` for 1,5; empty is a point."),
    Option("thousands", str, "", "What stands between thousands, in threes: `.` for 1.234,5; empty is nothing."),
    Option("all_text", bool, False, "Keep every column as text instead of finding its type."),
    Option(
        "skip_bad_lines", int, 0, "At most this many lines may be unreadable and are left out; more refuse the file."
    ),
)
CONVERTED = True
_DELIMITER_MAX = 4
_TOLD_MAX = 5
_BESIDE = 8  # faults of a line beside one in each column
_LINE_MAX = 16 * 2**20
_TEXTS = {
    "delimiter": "delim",
    "encoding": "encoding",
    "null_text": "nullstr",
    "date_format": "dateformat",
    "timestamp_format": "timestampformat",
    "decimal": "decimal_separator",
    "thousands": "thousands",
}
_MADE = re.compile(r"column\d+(_\d+)?")  # names of the engine's own
_NO_FORM = ("Invalid Input Error: Error when sniffing file", "Invalid Input Error: CSV Error on Line")  # of the engine
_NOT_ENCODED = "Invalid Input Error: File is not "
_NOTHING = (b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARKS = {"decimal": (",", "."), "thousands": (",", ".", "'", " ")}


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """The file, or every CSV file below the directory."""
    if (encoding := options.get("encoding")) and encoding not in ENCODINGS:
        raise BadInput(f"expected encoding to be {', '.join(ENCODINGS)}, came {encoding!r}", code="option_invalid")
    if len(str(options.get("delimiter", "")).encode()) > _DELIMITER_MAX:
        raise BadInput(
            f"expected a delimiter of at most {_DELIMITER_MAX} bytes, came {options['delimiter']!r}",
            code="option_invalid",
        )
    for name, marks in _MARKS.items():
        if (mark := options.get(name)) and mark not in marks:
            raise BadInput(
                f"expected {name} to be one of {' '.join(map(repr, marks))}, came {mark!r}", code="option_invalid"
            )
    if options.get("thousands") and options["thousands"] == (options.get("decimal") or "."):
        raise BadInput("expected decimal and thousands to be different characters", code="option_invalid")
    if resolve(path, roots=roots).is_dir():
        return files_under(path, roots=roots, suffixes=SUFFIXES)
    return (file_ref(path, roots=roots),)


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """Never read in place: text has no types that could be pinned."""
    raise SourceUnreadable("a CSV source is converted when it is registered; read its Parquet file")


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Read all lines (types from those of all files, not a sample) and write Parquet.

    SourceUnreadable that names the file of which the engine finds no form.
    """
    check_gzip(paths)
    try:
        report = _converted(con, paths, options, target)
        return noted(report, _nameless(con, paths, options, report))
    except Exception as error:
        if str(error).startswith(_NOT_ENCODED):
            raise _not_encoded(str(options.get("encoding") or ENCODINGS[0])) from None
        if not str(error).startswith(_NO_FORM):
            raise
        path = max((path for path in paths if path in str(error)), key=len, default=paths[0])
        raise SourceUnreadable(
            f"expected CSV of which all lines end alike, came file {paths.index(path) + 1} of {len(paths)} (in the "
            "order of their names): it has two kinds of line ends, one within quotes in its first line, a line of "
            f"more than {_LINE_MAX >> 20} MB, or is no text; write it again"
        ) from None


def _not_encoded(encoding: str) -> SourceUnreadable:
    as_windows = " (what Windows calls ANSI is windows-1252), as by iconv -f windows-1252 -t utf-8"
    return SourceUnreadable(
        f"expected text in {encoding}, came bytes that are none in it; write the file in utf-8"
        f"{as_windows if encoding == 'latin-1' else ''}"
    )


def _converted(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    given = {
        "header": str(bool(options.get("header", True))),
        "all_varchar": str(bool(options.get("all_text", False))),
        "sample_size": "-1",
        "files_to_sniff": "-1",
        "max_line_size": str(_LINE_MAX),
        "buffer_size": str(2 * _LINE_MAX),
        # Else the engine begins anew every few megabytes, with one thread too, where a line seems to begin: within a
        # text of several lines it finds rows that nobody wrote, and as it stores rejects it does not notice.
        "parallel": "false",
        "store_rejects": "true",
    }
    for option, name in _TEXTS.items():
        if options.get(option):
            given[name] = quote_text(str(options[option]))
    _check_formats(con, options)
    # Files without a line have none with names either, and the engine takes them for files of one column.
    starts = {path: start for path in paths if (start := _start(path)) not in _NOTHING}
    if not (written := list(starts)):
        raise SourceUnreadable("expected a line at least, came nothing but empty files; name files with data")
    _check_marks(starts, paths, given.get("encoding", ""))
    bad_lines_max = int(options.get("skip_bad_lines", 0))
    # The engine counts what is wrong with a line, mostly a column at a time, and stops to tell after so many.
    rejects_max = (bad_lines_max + 1) * (_columns(con, written, paths, given) + _BESIDE)
    given["rejects_limit"] = str(rejects_max)
    given["allow_quoted_nulls"] = str(bool(options.get("null_text") or not options.get("all_text")))
    write = partial(write_parquet, con, bad_lines_max=bad_lines_max, rejects_max=rejects_max, paths=paths)
    report = write(_read(written, given), target)
    if options.get("all_text"):
        return report
    found = {column["name"]: column["type"] for column in report["columns"]}
    kept, empty_texts = _kept(con, written, given, options, found)
    others = {name: one.type for name, one in kept.items() if one.type != found[name]}
    if empty_texts:
        given["allow_quoted_nulls"] = "False"
    if others or empty_texts:
        report = write(_read(written, given | {"types": _typed(found | others)}), target)
    return noted(report, {name: one.note for name, one in kept.items()})


def _start(path: str) -> bytes:
    """Enough to tell a byte order mark, and whether there is anything beside it."""
    with gzip.open(path) if path.endswith(".gz") else Path(path).open("rb") as file:
        return file.read(4)


def _check_marks(starts: Mapping[str, bytes], paths: Sequence[str], encoding: str) -> None:
    """SourceUnreadable where a byte order mark says that a file is in another encoding than it is read in."""
    for path, start in starts.items():
        little = start.startswith(codecs.BOM_UTF16_LE) and encoding != quote_text("utf-16")
        if little or start.startswith(codecs.BOM_UTF16_BE):
            came, do = ("utf-16", "give encoding=utf-16") if little else ("utf-16 big endian", "write it in utf-8")
            raise SourceUnreadable(
                f"expected text in {', '.join(ENCODINGS)} (little endian) as encoding says, came {came} in file "
                f"{paths.index(path) + 1} of {len(paths)} (in the order of their names); {do}"
            )


def _check_formats(con: Any, options: Mapping[str, Any]) -> None:
    for name in filter(options.get, ("date_format", "timestamp_format")):
        try:
            con.execute("SELECT try_strptime('', ?)", [str(options[name])]).fetchall()
        except Exception as error:  # the engine's own, which nobody imports here
            raise BadInput(
                f"expected {name} in the letters of strftime, as %d.%m.%Y %H:%M, came {options[name]!r}",
                code="option_invalid",
            ) from error


def _kept(
    con: Any, paths: Sequence[str], given: Mapping[str, str], options: Mapping[str, Any], found: Mapping[str, str]
) -> tuple[dict[str, texts.Kept], bool]:
    """What becomes of each column by what is written in it, where that is not the usual; and whether there are empty
    texts: in quotes, and none among values that are no text, as else whoever wrote the file writes so what is missing.
    """
    formats = {"date_format": "DATE", "timestamp_format": "TIMESTAMP"}
    written = texts.Written(
        point=options.get("decimal") or ".",
        thousands=options.get("thousands", ""),
        given=frozenset(kind for name, kind in formats.items() if options.get(name)),
    )
    kinds = {name: kind for name, kind in found.items() if kind in texts.KINDS}
    quoted = bool(options.get("null_text"))  # then what is empty is a text anyway
    as_text = {"types": _typed(dict.fromkeys(found, texts.TEXT)), "allow_quoted_nulls": str(quoted)}
    text = _read(paths, {**given, **as_text})
    told = _asked(
        con,
        text,
        [f"bool_or({quote_name(name)} = '')" for name in found]
        + [texts.usual(name, kind, written) for name, kind in kinds.items()],
    )
    empty = {name for name, one in zip(found, told, strict=False) if one}
    strange = [name for name, usual in zip(kinds, told[len(found) :], strict=True) if usual is False]
    facts = _asked(con, text, [texts.question(name, kinds[name], written) for name in strange])
    kept = {name: texts.kept(kinds[name], one) for name, one in zip(strange, facts, strict=True)}
    words = {name for name in found if (kept[name].type if name in kept else found[name]) == texts.TEXT}
    return kept, bool(empty) and empty <= words and not quoted


def _asked(con: Any, text: str, asked: Sequence[str]) -> Sequence[Any]:
    """What each of these expressions has over a table."""
    if not asked:
        return ()
    found: tuple[Any, ...] = con.sql(f"SELECT {', '.join(asked)} FROM {text}").fetchall()[0]  # noqa: S608  quoted
    return found


def _read(paths: Sequence[str], given: Mapping[str, str]) -> str:
    return f"read_csv({quote_list(paths)}, {_named(given)})"


def _typed(kinds: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{quote_text(name)}: {quote_text(kind)}" for name, kind in kinds.items()) + "}"


def _named(options: Mapping[str, str]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in options.items())


def _columns(con: Any, written: Sequence[str], paths: Sequence[str], options: Mapping[str, str]) -> int:
    """How many columns there are. All files in which something is written must have those of the first: what others
    have beside them would be left out without a word. No two names may be the same.
    """
    first: list[str] = []
    few = _named({**options, "sample_size": "20480"})  # lines: names are at the top
    for path in written:
        shown = con.sql(f"SELECT * FROM read_csv({quote_text(path)}, {few}) LIMIT 0").columns  # noqa: S608  quoted
        found = [name.casefold() for name in shown]
        if options["header"] == "True" and may_be_repeated(found):
            check_names(_header(con, path, options))
        first = first or found
        told = [f"{name} is missing" for name in first if name not in found]
        told += [f"{name} is there beside" for name in found if name not in first]
        if told:
            raise SourceUnreadable(
                "expected files of one schema; compared with the first, in file "
                f"{paths.index(path) + 1} of {len(paths)} (in the order of their names) "
                f"{'; '.join(told[:_TOLD_MAX])}; write it again",
                code="schemas_differ",
            )
    return len(first)


def _nameless(con: Any, paths: Sequence[str], options: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, str]:
    """What the owner is told of columns without a name, to which the engine gives one: as it stands in the first line,
    where programs leave out that of row numbers."""
    made = {column["name"]: column.get("note", "") for column in report["columns"] if _MADE.fullmatch(column["name"])}
    if not made or not options.get("header", True):
        return {}
    given = {name: quote_text(str(options[option])) for option, name in _TEXTS.items() if options.get(option)}
    path = next(path for path in paths if _start(path) not in _NOTHING)
    there = _header(con, path, given)
    return {
        name: "; ".join(filter(None, ("named by us, as it has no name", note)))
        for name, note in made.items()
        if name not in there
    }


def _header(con: Any, path: str, options: Mapping[str, str]) -> list[str]:
    """The names as a file has them."""
    plain = _named({**options, "header": "False", "all_varchar": "True", "sample_size": "20480"})
    names = con.sql(f"SELECT * FROM read_csv({quote_text(path)}, {plain}) LIMIT 1").fetchall()[0]  # noqa: S608  quoted
    return [name for name in names if name is not None]
