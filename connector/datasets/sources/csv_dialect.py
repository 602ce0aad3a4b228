"""The format of a CSV file (delimiter, quotes, encoding): engine options, and refusals for files in another format.

Knows nothing of the meaning of values.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from connector.datasets.sources import text_inference
from connector.datasets.sources.source_files import quote_list, quote_text
from connector.datasets.sources.to_parquet import bad_lines, describe_file, lines_unreadable, open_file
from connector.errors import Invalid, SourceUnreadable

ENCODINGS = ("utf-8", "latin-1", "utf-16")
UNQUOTED = "none"
LINE_MAX = 16 * 2**20
SAMPLE = "20480"  # lines: names are at the top
TOLD_MAX = 5
NO_FORM = ("Invalid Input Error: Error when sniffing file", "Invalid Input Error: CSV Error on Line")  # of the engine
_DIALECT = ("delimiter", "quote", "escape")
_TEXTS = {
    "delimiter": "delim",
    "quote": "quote",
    "escape": "escape",
    "encoding": "encoding",
    "null_text": "nullstr",
    "date_format": "dateformat",
    "timestamp_format": "timestampformat",
    "decimal": "decimal_separator",
    "thousands": "thousands",
}
_APART = (
    ("quote", "delimiter"), ("escape", "delimiter"), ("null_text", "delimiter"), ("null_text", "quote"),
    ("null_text", "escape"),
)  # fmt: skip
_LINE_END = re.compile(r"[\r\n]")
_DELIMITERS = (",", ";", "\t", "|")
_QUOTE = '"'
_SEPARATOR = re.compile(r"(?i)sep=.?")
_UNFIT = "UNQUOTED VALUE"  # the engine's word for a line whose quotes do not fit
_UNDECODED = "INVALID ENCODING"
_SKIP_LATER = " among the first 2,048 of a file, which say how it is read (skip_bad_lines leaves out later ones)"
_PIECE = 2**20


def engine_options(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the engine's options. Guessing is off where it would use a sample and cut other lines wrongly."""
    given = {
        "header": str(bool(options.get("header", True))),
        "all_varchar": str(bool(options.get("all_text", False))),
        "sample_size": "-1",
        "files_to_sniff": "-1",
        "max_line_size": str(LINE_MAX),
        "buffer_size": str(2 * LINE_MAX),
        # In parallel mode the engine restarts every few megabytes where a line seems to begin, even with one thread.
        # Inside a text of several lines it finds rows that do not exist, and does not notice as it stores rejects.
        "parallel": "false",
        "store_rejects": "true",
        "strict_mode": "true",
        "comment": "''",
    }
    quote = options.get("quote") or _QUOTE
    told = {**options, "quote": quote, "escape": options.get("escape") or quote}
    if quote == UNQUOTED:
        told |= {"quote": "", "escape": ""}
        given |= {"quote": "''", "escape": "''"}
    if options.get("skip_lines"):
        given["skip"] = str(int(options["skip_lines"]))
    return given | {name: quote_text(str(told[option])) for option, name in _TEXTS.items() if told.get(option)}


def check_apart(given: Mapping[str, str]) -> None:
    """Check that the options can be told apart.

    Raises: Invalid where one option contains the sign of another, or a line end.
    """
    marks = {option: _unquote(given.get(_TEXTS[option], "''")) for option in (*_DIALECT, "null_text")}
    for option in _DIALECT:
        if _LINE_END.search(marks[option]):
            raise Invalid(f"expected {option} without a line end, came {marks[option]!r}", code="option_invalid")
    for one, other in _APART:
        mark, beside = marks[one], marks[other]
        if mark and beside and (mark in beside or beside in mark):
            raise Invalid(
                f"expected {one} and {other} to have no sign in common, came {mark!r} and {beside!r}",
                code="option_invalid",
            )


def note_of(given: Mapping[str, str]) -> str:
    """Return the note for the owner on how the files were read."""
    return "read with " + ", ".join(f"{option} {_unquote(given[_TEXTS[option]])!r}" for option in _DIALECT)


def delimiter_of(con: Any, path: str, given: Mapping[str, str]) -> str:
    """Return the delimiter that the engine finds in a file.

    If the quotes of a line do not fit, the engine may find one column of whole lines. A second try with other quotes,
    and then the header line, show the delimiter.
    """
    free = _without_quotes(given)
    delimiter, names = "", [""]
    for options in (given, free):
        delimiter, names = _sniff(con, path, options)
        if len(names) > 1:
            return quote_text(delimiter)
    most = max(_DELIMITERS, key=names[0].count)
    return quote_text(most if most in names[0] else delimiter if delimiter in _DELIMITERS else _DELIMITERS[0])


def _without_quotes(given: Mapping[str, str]) -> dict[str, str]:
    """Return the options without those of quotes, which the engine then finds itself."""
    return {name: value for name, value in given.items() if name not in ("quote", "escape")}


def _sniff(con: Any, path: str, given: Mapping[str, str]) -> tuple[str, list[str]]:
    """Return the delimiter that the engine finds in a file, and the names of its columns."""
    some = engine_arguments({**given, "sample_size": SAMPLE})
    found = con.sql(
        f"SELECT Delimiter, [one.name FOR one IN Columns] FROM sniff_csv({quote_text(path)}, {some})"  # noqa: S608  quoted
    ).fetchall()
    return str(found[0][0]), list(found[0][1])


def header_of(con: Any, path: str, options: Mapping[str, str]) -> list[str]:
    """Return the column names as the file has them."""
    plain = engine_arguments({**options, "header": "False", "all_varchar": "True", "sample_size": SAMPLE})
    names = con.sql(f"SELECT * FROM read_csv({quote_text(path)}, {plain}) LIMIT 1").fetchall()[0]  # noqa: S608  quoted
    return [name.strip() for name in names if name is not None]  # as the engine does


def check_delimiter(con: Any, path: str, paths: Sequence[str], given: Mapping[str, str], first: Sequence[str]) -> None:
    """Check a file that lacks columns.

    Raises: SourceUnreadable where it has these columns, but with another delimiter.
    """
    own = delimiter_of(con, path, {name: value for name, value in given.items() if name != "delim"})
    if {name.casefold() for name in _sniff(con, path, {**given, "delim": own})[1]} == set(first):
        raise SourceUnreadable(
            "expected files of one delimiter, which is that of the first where none is given "
            f"({_unquote(given['delim'])!r}), came {_unquote(own)!r} in {describe_file(path, paths)}; "
            "write it again with that of the others",
            code="schemas_differ",
        )


def check_top(con: Any, path: str, given: Mapping[str, str], names: Sequence[str]) -> None:
    """Check the first line of a file.

    Raises: SourceUnreadable where it is not part of the table: a comment, or Excel's `sep=;`.
    """
    first = names[0]
    comment = len(names) == 1 and first.startswith("#") and "skip" not in given
    below = _sniff(con, path, {**given, "skip": "1"})[1] if comment else ()
    if given["header"] == "True" and (len(below) > 1 or _SEPARATOR.fullmatch(first)):
        raise SourceUnreadable(
            f"expected the names of the columns in the first line, came {first!r}; where it is not part of the table, "
            "give skip_lines=1"
        )


def check_lines(con: Any, paths: Sequence[str], path: str, options: Mapping[str, Any]) -> None:
    """Check the first 2,048 lines of a file whose format the engine did not find.

    The engine reports no line numbers in that case, and also none for quotes that are opened there and never closed.
    Raises: SourceUnreadable with the lines that cannot be read.
    """
    given = engine_options(options)
    free = _without_quotes(given)
    try:
        given.setdefault("delim", quote_text(_sniff(con, path, free)[0]))
        columns = dict.fromkeys(_sniff(con, path, free | {"delim": given["delim"]})[1], text_inference.TEXT)
        plain = given | {"auto_detect": "False", "columns": types_literal(columns), "rejects_limit": str(TOLD_MAX)}
        del plain["sample_size"], plain["files_to_sniff"], plain["all_varchar"]
        con.sql(f"SELECT count(*) FROM {csv_table([path], plain)}").fetchall()  # noqa: S608  quoted
        bad = bad_lines(con, paths)
        if not bad and _unquote(given["quote"]) and _is_open(con, path, plain):
            raise _open_quotes_refusal(con, path, paths, given)
    except Exception as error:
        if not str(error).startswith(NO_FORM):
            raise
        return
    if bad:
        among = _SKIP_LATER if options.get("skip_bad_lines") else ""
        todo = advice(con, given)
        raise lines_unreadable(bad, allowed=0, of_many=len(paths) > 1, among=among, advice=todo) from None


def advice(con: Any, given: Mapping[str, str]) -> str:
    """Return advice for lines whose quotes do not fit; empty if the engine found no such line."""
    quote, escape = _unquote(given["quote"]), _unquote(given["escape"])
    if "encoding" not in given and _has_rejects(con, _UNDECODED):
        return "; where it is written in latin-1, or as ANSI by Windows without its own signs, give encoding=latin-1"
    escaped = con.execute(
        "SELECT bool_or(contains(csv_line, ?)) FROM reject_errors WHERE error_type = ?", [f"\\{quote}", _UNFIT]
    ).fetchall()[0][0]
    if escaped and escape == quote:
        return f"; where \\ stands before a {quote} within a field, give escape=\\"
    return "" if escaped is None else f"; where its quotes are part of the values, give quote={UNQUOTED}"


def _has_rejects(con: Any, kind: str) -> bool:
    found = con.execute("SELECT count(*) FROM reject_errors WHERE error_type = ?", [kind]).fetchall()
    return bool(found[0][0])


def check_ends(con: Any, written: Sequence[str], paths: Sequence[str], given: Mapping[str, str], records: int) -> None:
    """Check that no file ends within quotes: the engine drops the rest silently unless it is in lax mode.

    `records`: the number of records that the engine reported. Raises: SourceUnreadable.
    """
    quote = _unquote(given["quote"]).encode()
    if (
        not (quote and any(_contains(path, quote) for path in written))
        or _count_records(con, written, given, lax=True) == records
    ):
        return
    raise _open_quotes_refusal(
        con, next((path for path in written if _is_open(con, path, given)), written[0]), paths, given
    )


def _is_open(con: Any, path: str, given: Mapping[str, str]) -> bool:
    return _count_records(con, [path], given) != _count_records(con, [path], given, lax=True)


def _open_quotes_refusal(con: Any, path: str, paths: Sequence[str], given: Mapping[str, str]) -> SourceUnreadable:
    """Return the refusal of a file that ends, or may end, within quotes.

    After a line whose quotes do not fit, later lines may be inside quotes. Leaving out only that line would be a guess.
    """
    where = describe_file(path, paths)
    quote = _unquote(given["quote"])
    unfit = con.execute(
        "SELECT line FROM reject_errors JOIN reject_scans USING (scan_id, file_id) "
        "WHERE file_path = ? AND error_type = ? "
        "ORDER BY (length(csv_line) - length(replace(csv_line, ?, ''))) % 2 DESC, line LIMIT 1",
        [path, _UNFIT, quote],
    ).fetchall()
    if unfit:
        return SourceUnreadable(
            f"expected lines whose quotes fit, came line {unfit[0][0]} of {where}, after which quotes may be open: "
            "where the lines below it begin and end cannot be told, so skip_bad_lines cannot leave it out; correct it"
            f"{advice(con, given)}"
        )
    since = f", which open in line {line}" if (line := _find_open_quote(path, given)) else ""
    return SourceUnreadable(
        f"expected quotes that are closed, came {where} that ends within some{since}; "
        f"write it again, or give quote={UNQUOTED} where its quotes are part of the values"
    )


def _find_open_quote(path: str, given: Mapping[str, str]) -> int:
    """Return the number of the line with the quote that is still open at the end of a file; 0 if all are closed."""
    quote, escape = _unquote(given["quote"]), _unquote(given["escape"])
    escaped = re.compile(re.escape(escape) + "." if escape != quote else "(?!)")
    run, last = re.compile(re.escape(quote) + "+"), 0
    encoding = _unquote(given.get("encoding", "")) or ENCODINGS[0]
    with io.TextIOWrapper(open_file(path), encoding=encoding, errors="replace") as file:
        for number, line in enumerate(file, 1):
            if any(len(one) % 2 for one in run.findall(escaped.sub("", line))):
                last = number
    return last


def _contains(path: str, quote: bytes) -> bool:
    with open_file(path) as file:
        return any(quote in piece for piece in iter(lambda: file.read(_PIECE), b""))


def _count_records(con: Any, paths: Sequence[str], given: Mapping[str, str], *, lax: bool = False) -> int:
    """Return the number of rows, including those that the engine cannot read."""
    told = {**given, "all_varchar": "True", "strict_mode": str(not lax), "rejects_limit": "0"}
    told |= {"rejects_table": "'counted'", "rejects_scan": "'counted_scans'"}
    rows = con.sql(f"SELECT count(*) FROM {csv_table(paths, told)}").fetchall()[0][0]  # noqa: S608  quoted
    bad = con.sql("SELECT count(*) FROM (SELECT DISTINCT scan_id, file_id, line FROM counted)").fetchall()[0][0]
    con.execute("DROP TABLE counted")
    con.execute("DROP TABLE counted_scans")
    return int(rows + bad)


def csv_table(paths: Sequence[str], given: Mapping[str, str]) -> str:
    """Return the table expression that reads these files."""
    return f"read_csv({quote_list(paths)}, {engine_arguments(given)})"


def engine_arguments(options: Mapping[str, str]) -> str:
    """Return the engine's options as arguments of its functions."""
    return ", ".join(f"{name} = {value}" for name, value in options.items())


def types_literal(kinds: Mapping[str, str]) -> str:
    """Return column types as the engine's option `types` takes them."""
    return "{" + ", ".join(f"{quote_text(name)}: {quote_text(kind)}" for name, kind in kinds.items()) + "}"


def _unquote(literal: str) -> str:
    """Return the text of a literal from `quote_text`."""
    return literal[1:-1].replace("''", "'")
