"""CSV sources: converted to Parquet once at registration, with a report of how each column was read."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from connector.datasets.sources import BEFORE, Option, text_diagnostics, text_inference
from connector.datasets.sources.csv_dialect import (
    ENCODINGS,
    LINE_MAX,
    NO_FORM,
    SAMPLE,
    TOLD_MAX,
    UNQUOTED,
    advice,
    check_apart,
    check_delimiter,
    check_ends,
    check_lines,
    check_top,
    csv_table,
    delimiter_of,
    engine_arguments,
    engine_options,
    header_of,
    note_of,
    types_literal,
)
from connector.datasets.sources.source_files import FileRef, file_ref, files_under, quote_name, quote_text, resolve
from connector.datasets.sources.to_parquet import (
    add_notes,
    check_gzip,
    check_names,
    describe_file,
    may_be_repeated,
    open_file,
    write_parquet,
)
from connector.errors import Invalid, SourceUnreadable
from connector.infra import jemalloc
from policies.contracts import columns

SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
_COUNT = range(2**31)
OPTIONS: tuple[Option, ...] = (
    Option("delimiter", str, "", "The character between fields; empty finds out."),
    Option(
        "quote", str, "", 'What stands around a field that has delimiters or line ends; empty is ", `none` nothing.'
    ),
    Option("escape", str, "", "What stands before a quote within a field; empty is the quote itself."),
    Option(
        "skip_lines", int, 0, "Lines at the top of each file that are not part of its table, such as a comment.",
        values=_COUNT,
    ),
    Option("encoding", str, "", f"How characters are written: {', '.join(ENCODINGS)}; empty is utf-8."),
    Option("header", bool, True, "The first line holds the names of the columns."),
    Option("null_text", str, "", "What stands for a missing value."),
    Option("date_format", str, "", "How dates are written (%d.%m.%Y); empty finds out."),
    Option("timestamp_format", str, "", "How moments are written (%d.%m.%Y %H:%M); empty finds out."),
    Option("decimal", str, "", "What stands before the decimals of a number: `,` for 1,5; empty is a point."),
    Option("thousands", str, "", "What stands between thousands, in threes: `.` for 1.234,5; empty is nothing."),
    Option("all_text", bool, False, "Keep every column as text instead of finding its type."),
    Option(
        "skip_bad_lines", int, 0, "At most this many lines may be unreadable and are left out; more refuse the file.",
        values=_COUNT,
    ),
)  # fmt: skip
CONVERTED = True
_DELIMITER_MAX = 4
_EXACT = 2**53  # up to there a DOUBLE holds every whole number
# Characters of SQL in one query: the engine uses hundreds of times as much memory, and more for lists of values.
_ASKED_MAX, _QUESTIONS_MAX = 2**16, 2**14
_TOGETHER = 16  # text columns whose first values are read in one query
_BESIDE = 8  # faults of a line in addition to one in each column
_SINGLE = quote_text("'%'")
_MADE = re.compile(r"column\d+(_\d+)?")  # column names that the engine makes
_LETTER = re.compile("%-?(.)")
_YEAR, _NO_ZONE, _NO_DAY = frozenset("YyGcx"), frozenset("Z"), frozenset("HIMSfgnpzZcX")  # of formats
_NOT_ENCODED = "Invalid Input Error: File is not "
_NOTHING = (b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_MARKS = {"decimal": (",", "."), "thousands": (",", ".", "'", " ")}


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """Return the file, or each CSV file below the directory."""
    if (encoding := options.get("encoding")) and encoding not in ENCODINGS:
        raise Invalid(f"expected encoding to be {', '.join(ENCODINGS)}, came {encoding!r}", code="option_invalid")
    if len(str(options.get("delimiter", "")).encode()) > _DELIMITER_MAX:
        raise Invalid(
            f"expected a delimiter of at most {_DELIMITER_MAX} bytes, came {options['delimiter']!r}",
            code="option_invalid",
        )
    for name, marks in _MARKS.items():
        if (mark := options.get(name)) and mark not in marks:
            raise Invalid(
                f"expected {name} to be one of {' '.join(map(repr, marks))}, came {mark!r}", code="option_invalid"
            )
    for name in ("quote", "escape"):
        if (mark := options.get(name)) and len(mark.encode()) > 1 and (name, mark) != ("quote", UNQUOTED):
            raise Invalid(f"expected {name} to be one letter of ASCII, came {mark!r}", code="option_invalid")
    if options.get("skip_lines", 0) < 0:
        raise Invalid(f"expected skip_lines to be 0 or more, came {options['skip_lines']}", code="option_invalid")
    if options.get("thousands") and options["thousands"] == (options.get("decimal") or "."):
        raise Invalid("expected decimal and thousands to be different characters", code="option_invalid")
    check_apart(engine_options(options))
    if resolve(path, roots=roots).is_dir():
        return files_under(path, roots=roots, suffixes=SUFFIXES)
    return (file_ref(path, roots=roots),)


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse to read in place: text has no types that could be pinned."""
    raise SourceUnreadable("a CSV source is converted when it is registered; read its Parquet file")


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Read all lines and write Parquet. Types are found from all lines of all files, not from a sample.

    Raises: SourceUnreadable with the name of the file whose format the engine cannot find.
    """
    check_gzip(paths)
    try:
        return _convert_files(con, paths, options, target)
    except Exception as error:
        if str(error).startswith(_NOT_ENCODED):
            raise _not_encoded(str(options.get("encoding") or ENCODINGS[0])) from None
        if not str(error).startswith(NO_FORM):
            raise
        path = max((path for path in paths if path in str(error)), key=len, default=paths[0])
        check_lines(con, paths, path, options)
        raise SourceUnreadable(
            f"expected CSV of which all lines end alike, came {describe_file(path, paths)}: "
            "it has two kinds of line ends, one within quotes in its first line, a quote that "
            f"nothing closes, a line of more than {LINE_MAX >> 20} MB, or is no text; write it again"
        ) from None


def _not_encoded(encoding: str) -> SourceUnreadable:
    as_windows = " (what Windows calls ANSI is windows-1252), as by iconv -f windows-1252 -t utf-8"
    return SourceUnreadable(
        f"expected text in {encoding}, came bytes that are none in it; write the file in utf-8"
        f"{as_windows if encoding == 'latin-1' else ''}"
    )


def _convert_files(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    _check_formats(con, options)
    # The engine reads an empty file as a file with one column.
    starts = {path: start for path in paths if (start := _read_start(path)) not in _NOTHING}
    if not (written := list(starts)):
        raise SourceUnreadable("expected a line at least, came nothing but empty files; name files with data")
    given = engine_options(options)
    _check_marks(starts, paths, given.get("encoding", ""))
    if "delim" not in given:
        given["delim"] = delimiter_of(con, written[0], given)
        check_apart(given)
    bad_lines_max = int(options.get("skip_bad_lines", 0))
    # The engine counts faults, mostly one per column of a line, and stops reporting at the limit.
    rejects_max = (bad_lines_max + 1) * (_count_columns(con, written, paths, given) + _BESIDE)
    given["rejects_limit"] = str(rejects_max)
    given["allow_quoted_nulls"] = str(bool(options.get("null_text") or not options.get("all_text")))
    todo = partial(advice, con, given)
    write = partial(write_parquet, con, bad_lines_max=bad_lines_max, rejects_max=rejects_max, paths=paths, advice=todo)
    report = write(csv_table(written, given), target)
    check_ends(con, written, paths, given, report["rows"] + report["left_out_count"])
    kept: Mapping[str, text_inference.ChosenType] = {}
    before: Mapping[str, str] = {}
    if not options.get("all_text"):
        found = {column["name"]: column["type"] for column in report["columns"]}
        kept, empty_texts = _choose_types(con, written, given, options, found)
        others = {name: one.type for name, one in kept.items() if one.type != found[name]}
        before = _types_as_before(con, csv_table(written, given), found | others, options.get(BEFORE, {}))
        others |= before
        moments = _cast_moments(found, found | others, str(options.get("timestamp_format", "")))
        if empty_texts:
            given["allow_quoted_nulls"] = "False"
        if others or empty_texts or moments:
            # Values that do not fit the owner's format are read as text first.
            types = found | others | {name: text_inference.TEXT for name in moments if name in others}
            report = write(
                _replace_columns(csv_table(written, given | {"types": types_literal(types)}), moments), target
            )
    told = {name: one.note for name, one in kept.items()}
    told |= dict.fromkeys(before, "whole numbers, kept as in the version before")
    if not options.get("all_text"):
        plain = [
            one["name"] for one in report["columns"] if one["type"] == text_inference.TEXT and not told.get(one["name"])
        ]
        told |= _note_texts(con, target, plain, _number_style(options))
    notes = _note_names(con, written[0], given, [column["name"] for column in report["columns"]])
    notes |= {name: "; ".join(filter(None, (notes.get(name), note))) for name, note in told.items()}
    return add_notes(report, notes) | {"note": note_of(given)}


def _types_as_before(con: Any, table: str, types: Mapping[str, str], before: Mapping[str, str]) -> dict[str, str]:
    """Return the columns that are now whole numbers but had fractions in the previous version, with their previous
    type.

    Each number is the same in that type.
    """
    whole = [name for name, kind in types.items() if kind == "BIGINT" and _holds_exact(before.get(name, ""))]
    fit = _query_values(con, table, [f"bool_and({quote_name(name)} BETWEEN -{_EXACT} AND {_EXACT})" for name in whole])
    return {name: before[name] for name, fits in zip(whole, fit, strict=True) if fits}


def _holds_exact(kind: str) -> bool:
    """Return whether a type of fractions holds each whole number up to `_EXACT`."""
    if columns.family(kind) != columns.DECIMAL:
        return kind == "DOUBLE"
    return columns.decimal_width(kind) - columns.decimal_scale(kind) >= len(str(_EXACT))


def _cast_moments(found: Mapping[str, str], kept: Mapping[str, str], form: str) -> dict[str, str]:
    """Return the expression that casts each timestamp column where the owner gave a format.

    The engine applies that format to all columns and drops the time zone.
    """
    told = {
        name: f"CAST(trim({quote_name(name)}) AS {text_inference.MOMENT})"  # else its reader casts, by the format
        for name, kind in kept.items()
        if kind == text_inference.MOMENT != found[name]
    }
    if "z" in _LETTER.findall(form):
        zoned = (name for name, kind in kept.items() if kind == text_inference.MOMENT == found[name])
        told |= {name: f"timezone('UTC', {quote_name(name)})" for name in zoned}
    return told


def _replace_columns(table: str, values: Mapping[str, str]) -> str:
    if not values:
        return table
    shown = ", ".join(f"{value} AS {quote_name(name)}" for name, value in values.items())
    return f"(SELECT * REPLACE ({shown}) FROM {table})"  # noqa: S608  quoted


def _read_start(path: str) -> bytes:
    """Return the first bytes: enough to recognise a byte order mark and an empty file."""
    with open_file(path) as file:
        return file.read(4)


def _check_marks(starts: Mapping[str, bytes], paths: Sequence[str], encoding: str) -> None:
    """Check the byte order marks of the files.

    Raises: SourceUnreadable where a mark contradicts the encoding.
    """
    for path, start in starts.items():
        little = start.startswith(codecs.BOM_UTF16_LE) and encoding != quote_text("utf-16")
        if little or start.startswith(codecs.BOM_UTF16_BE):
            came, do = ("utf-16", "give encoding=utf-16") if little else ("utf-16 big endian", "write it in utf-8")
            raise SourceUnreadable(
                f"expected text in {', '.join(ENCODINGS)} (little endian) as encoding says, came {came} in "
                f"{describe_file(path, paths)}; {do}"
            )


def _check_formats(con: Any, options: Mapping[str, Any]) -> None:
    for name in filter(options.get, ("date_format", "timestamp_format")):
        try:
            con.execute("SELECT try_strptime('', ?)", [str(options[name])]).fetchall()
        except Exception as error:  # an engine error; its class is not imported here
            raise Invalid(
                f"expected {name} in the letters of strftime, as %d.%m.%Y %H:%M, came {options[name]!r}",
                code="option_invalid",
            ) from error
        letters = set(_LETTER.findall(str(options[name])))
        others = _NO_ZONE if name == "timestamp_format" else _NO_DAY
        if letters & others or not letters & _YEAR:
            raise Invalid(
                f"expected {name} with a year and without {' '.join(f'%{one}' for one in sorted(others))}, came "
                f"{options[name]!r}; leave it out, and such values are text",
                code="option_invalid",
            )


def _choose_types(
    con: Any, paths: Sequence[str], given: Mapping[str, str], options: Mapping[str, Any], found: Mapping[str, str]
) -> tuple[dict[str, text_inference.ChosenType], bool]:
    """Return the type of each column whose text is not in the usual form, and whether to keep quoted empty text as
    text.

    Quoted empty text is kept only if no column of another type has any: otherwise the file uses it for missing values.
    """
    written = _number_style(options)
    kinds = {name: kind for name, kind in found.items() if kind in text_inference.KINDS}
    quoted = bool(options.get("null_text"))  # then what is empty is a text anyway
    as_text = {"types": types_literal(dict.fromkeys(found, text_inference.TEXT)), "allow_quoted_nulls": str(quoted)}
    text = csv_table(paths, {**given, **as_text})
    plain = [name for name, kind in found.items() if kind == text_inference.TEXT]
    told = _query_values(
        con,
        text,
        [f"bool_or({quote_name(name)} = '')" for name in found]
        + [text_inference.usual_values_sql(name, kind, written) for name, kind in kinds.items()]
        + [f"bool_and({quote_name(name)} LIKE {_SINGLE})" for name in plain],
    )
    empty = {name for name, one in zip(found, told, strict=False) if one}
    strange = [name for name, usual in zip(kinds, told[len(found) :], strict=False) if usual is False]
    questions = [text_inference.facts_sql(name, kinds[name], written) for name in strange]
    facts = _query_values(con, text, questions, most=_QUESTIONS_MAX)
    kept = {name: text_inference.choose_type(kinds[name], one) for name, one in zip(strange, facts, strict=True)}
    single = (name for name, one in zip(reversed(plain), reversed(told), strict=False) if one)
    kept |= dict.fromkeys(
        single,
        text_inference.ChosenType(text_inference.TEXT, "each has ' around it; where that is none of it, give quote='"),
    )
    words = {name for name in found if (kept[name].type if name in kept else found[name]) == text_inference.TEXT}
    return kept, bool(empty) and empty <= words and not quoted


def _number_style(options: Mapping[str, Any]) -> text_inference.NumberStyle:
    formats = {"date_format": "DATE", "timestamp_format": text_inference.MOMENT}
    return text_inference.NumberStyle(
        point=options.get("decimal") or ".",
        thousands=options.get("thousands", ""),
        given={kind: text_inference.form_of(str(options[name])) for name, kind in formats.items() if options.get(name)},
    )


def _note_texts(con: Any, target: str, plain: Sequence[str], written: text_inference.NumberStyle) -> dict[str, str]:
    """Return notes on text columns from their first values, read a few columns at a time."""
    notes: dict[str, str] = {}
    for start in range(0, len(plain), _TOGETHER):
        names = plain[start : start + _TOGETHER]
        shown = ", ".join(f"left({quote_name(name)}, {text_diagnostics.CHARACTERS})" for name in names)
        rows = con.sql(f"SELECT {shown} FROM read_parquet({quote_text(target)}) LIMIT {text_diagnostics.ROWS}")  # noqa: S608  quoted
        notes |= {
            name: text_diagnostics.note_of(values, written)
            for name, values in zip(names, zip(*rows.fetchall(), strict=True), strict=False)  # none of no rows
        }
    return notes


def _query_values(con: Any, text: str, asked: Sequence[str], *, most: int = _ASKED_MAX) -> Sequence[Any]:
    """Return the value of each expression over a table. Each pass is limited to `most` characters of SQL."""
    passes = groupby(zip(asked, accumulate(map(len, asked)), strict=True), key=lambda one: one[1] // most)
    found: list[Any] = []
    for _, some in passes:
        jemalloc.purge()  # the next columns need other sizes and could not reuse the memory
        shown = ", ".join(one for one, _ in some)
        found += con.sql(f"SELECT {shown} FROM {text}").fetchall()[0]  # noqa: S608  quoted
    return found


def _count_columns(con: Any, written: Sequence[str], paths: Sequence[str], options: Mapping[str, str]) -> int:
    """Return the number of columns.

    All files that are not empty must have the columns of the first, because additional columns would be dropped
    silently. No two names may be the same. Raises: SourceUnreadable.
    """
    first: list[str] = []
    few = engine_arguments({**options, "sample_size": SAMPLE})
    for path in written:
        shown = con.sql(f"SELECT * FROM read_csv({quote_text(path)}, {few}) LIMIT 0").columns  # noqa: S608  quoted
        found = [name.casefold() for name in shown]
        check_top(con, path, options, shown)
        if options["header"] == "True" and may_be_repeated(found):
            check_names(header_of(con, path, options))
        first = first or found
        told = [f"{name} is missing" for name in first if name not in found]
        told += [f"{name} is there beside" for name in found if name not in first]
        if told:
            check_delimiter(con, path, paths, options, first)
            raise SourceUnreadable(
                "expected files of one schema; compared with the first, in "
                f"{describe_file(path, paths)} "
                f"{'; '.join(told[:TOLD_MAX])}; write it again",
                code="schemas_differ",
            )
    return len(first)


def _note_names(con: Any, path: str, given: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """Return notes on column names: columns without a name, which the engine names, and a first line that may be a
    comment."""
    if given["header"] != "True":
        return {}
    made = [name for name in names if _MADE.fullmatch(name)]
    there = header_of(con, path, given) if made else ()
    notes = {name: "named by us, as it has no name" for name in made if name not in there}
    if names[0].startswith("#"):
        notes[names[0]] = "where the line that begins with # is a comment, give skip_lines=1"
    return notes
