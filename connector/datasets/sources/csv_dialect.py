"""How a CSV file is written: what stands between and around its fields, as the engine is told it, and what an owner is
told where some file is written otherwise. Knows nothing of what values mean."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from connector.datasets.sources import text_inference
from connector.datasets.sources.source_files import quote_list, quote_text
from connector.datasets.sources.to_parquet import bad_lines, lines_unreadable, opened, which
from connector.errors import BadInput, SourceUnreadable

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
    """The engine's options. What it may guess, it guesses from some lines, and cuts the values of others by it."""
    given = {
        "header": str(bool(options.get("header", True))),
        "all_varchar": str(bool(options.get("all_text", False))),
        "sample_size": "-1",
        "files_to_sniff": "-1",
        "max_line_size": str(LINE_MAX),
        "buffer_size": str(2 * LINE_MAX),
        # Else the engine begins anew every few megabytes, with one thread too, where a line seems to begin: within a
        # text of several lines it finds rows that nobody wrote, and as it stores rejects it does not notice.
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
    """BadInput for options of which no line could be read: one has another's sign in it, or a line's end."""
    marks = {option: _unquoted(given.get(_TEXTS[option], "''")) for option in (*_DIALECT, "null_text")}
    for option in _DIALECT:
        if _LINE_END.search(marks[option]):
            raise BadInput(f"expected {option} without a line end, came {marks[option]!r}", code="option_invalid")
    for one, other in _APART:
        mark, beside = marks[one], marks[other]
        if mark and beside and (mark in beside or beside in mark):
            raise BadInput(
                f"expected {one} and {other} to have no sign in common, came {mark!r} and {beside!r}",
                code="option_invalid",
            )


def note_of(given: Mapping[str, str]) -> str:
    """What the owner is told of how files were read."""
    return "read with " + ", ".join(f"{option} {_unquoted(given[_TEXTS[option]])!r}" for option in _DIALECT)


def delimiter_of(con: Any, path: str, given: Mapping[str, str]) -> str:
    """What the engine finds between the fields of a file. Where quotes do not fit in some line, it may find one column
    of whole lines, and the same with other quotes shows what is between them; so does the line of names."""
    free = _free(given)
    delimiter, names = "", [""]
    for options in (given, free):
        delimiter, names = _sniffed(con, path, options)
        if len(names) > 1:
            return quote_text(delimiter)
    most = max(_DELIMITERS, key=names[0].count)
    return quote_text(most if most in names[0] else delimiter if delimiter in _DELIMITERS else _DELIMITERS[0])


def _free(given: Mapping[str, str]) -> dict[str, str]:
    """The options without those of quotes, which the engine then finds for itself."""
    return {name: value for name, value in given.items() if name not in ("quote", "escape")}


def _sniffed(con: Any, path: str, given: Mapping[str, str]) -> tuple[str, list[str]]:
    """The delimiter that the engine finds in a file, and the names of its columns."""
    some = named({**given, "sample_size": SAMPLE})
    found = con.sql(
        f"SELECT Delimiter, [one.name FOR one IN Columns] FROM sniff_csv({quote_text(path)}, {some})"  # noqa: S608  quoted
    ).fetchall()
    return str(found[0][0]), list(found[0][1])


def header_of(con: Any, path: str, options: Mapping[str, str]) -> list[str]:
    """The names as a file has them."""
    plain = named({**options, "header": "False", "all_varchar": "True", "sample_size": SAMPLE})
    names = con.sql(f"SELECT * FROM read_csv({quote_text(path)}, {plain}) LIMIT 1").fetchall()[0]  # noqa: S608  quoted
    return [name.strip() for name in names if name is not None]  # as the engine does


def check_delimiter(con: Any, path: str, paths: Sequence[str], given: Mapping[str, str], first: Sequence[str]) -> None:
    """SourceUnreadable where a file has these columns, but with another delimiter."""
    own = delimiter_of(con, path, {name: value for name, value in given.items() if name != "delim"})
    if {name.casefold() for name in _sniffed(con, path, {**given, "delim": own})[1]} == set(first):
        raise SourceUnreadable(
            "expected files of one delimiter, which is that of the first where none is given "
            f"({_unquoted(given['delim'])!r}), came {_unquoted(own)!r} in {which(path, paths)}; "
            "write it again with that of the others",
            code="schemas_differ",
        )


def check_top(con: Any, path: str, given: Mapping[str, str], names: Sequence[str]) -> None:
    """SourceUnreadable where a file begins with a line that is none of its table: a comment, or Excel's `sep=;`."""
    first = names[0]
    comment = len(names) == 1 and first.startswith("#") and "skip" not in given
    below = _sniffed(con, path, {**given, "skip": "1"})[1] if comment else ()
    if given["header"] == "True" and (len(below) > 1 or _SEPARATOR.fullmatch(first)):
        raise SourceUnreadable(
            f"expected the names of the columns in the first line, came {first!r}; where it is none of the table, give "
            "skip_lines=1"
        )


def check_lines(con: Any, paths: Sequence[str], path: str, options: Mapping[str, Any]) -> None:
    """SourceUnreadable with the lines of a file that cannot be read: where there are some among its first 2,048, the
    engine finds no form, and tells of none; nor does it where quotes open there that nothing closes."""
    given = engine_options(options)
    free = _free(given)
    try:
        given.setdefault("delim", quote_text(_sniffed(con, path, free)[0]))
        columns = dict.fromkeys(_sniffed(con, path, free | {"delim": given["delim"]})[1], text_inference.TEXT)
        plain = given | {"auto_detect": "False", "columns": typed(columns), "rejects_limit": str(TOLD_MAX)}
        del plain["sample_size"], plain["files_to_sniff"], plain["all_varchar"]
        con.sql(f"SELECT count(*) FROM {read([path], plain)}").fetchall()  # noqa: S608  quoted
        bad = bad_lines(con, paths)
        if not bad and _unquoted(given["quote"]) and _is_open(con, path, plain):
            raise _open(con, path, paths, given)
    except Exception as error:
        if not str(error).startswith(NO_FORM):
            raise
        return
    if bad:
        among = _SKIP_LATER if options.get("skip_bad_lines") else ""
        todo = advice(con, given)
        raise lines_unreadable(bad, allowed=0, of_many=len(paths) > 1, among=among, advice=todo) from None


def advice(con: Any, given: Mapping[str, str]) -> str:
    """How a file may be read in which the engine found lines whose quotes do not fit; empty where it found none."""
    quote, escape = _unquoted(given["quote"]), _unquoted(given["escape"])
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
    """SourceUnreadable where a file ends within quotes: what comes after them the engine leaves out and tells of it
    only where it is lax. `records`: how many it has told of."""
    quote = _unquoted(given["quote"]).encode()
    if not (quote and any(_has(path, quote) for path in written)) or _records(con, written, given, lax=True) == records:
        return
    raise _open(con, next((path for path in written if _is_open(con, path, given)), written[0]), paths, given)


def _is_open(con: Any, path: str, given: Mapping[str, str]) -> bool:
    return _records(con, [path], given) != _records(con, [path], given, lax=True)


def _open(con: Any, path: str, paths: Sequence[str], given: Mapping[str, str]) -> SourceUnreadable:
    """The refusal of a file that ends within quotes, or may: what comes after a line whose quotes do not fit may be
    within some or not, and to leave out that line alone would be to guess."""
    where = which(path, paths)
    quote = _unquoted(given["quote"])
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
    since = f", which open in line {line}" if (line := _opened(path, given)) else ""
    return SourceUnreadable(
        f"expected quotes that are closed, came {where} that ends within some{since}; "
        f"write it again, or give quote={UNQUOTED} where its quotes are part of the values"
    )


def _opened(path: str, given: Mapping[str, str]) -> int:
    """The line with the quote that is open at the end of a file: none comes after it but those that are doubled."""
    quote, escape = _unquoted(given["quote"]), _unquoted(given["escape"])
    escaped = re.compile(re.escape(escape) + "." if escape != quote else "(?!)")
    run, last = re.compile(re.escape(quote) + "+"), 0
    encoding = _unquoted(given.get("encoding", "")) or ENCODINGS[0]
    with io.TextIOWrapper(opened(path), encoding=encoding, errors="replace") as file:
        for number, line in enumerate(file, 1):
            if any(len(one) % 2 for one in run.findall(escaped.sub("", line))):
                last = number
    return last


def _has(path: str, quote: bytes) -> bool:
    with opened(path) as file:
        return any(quote in piece for piece in iter(lambda: file.read(_PIECE), b""))


def _records(con: Any, paths: Sequence[str], given: Mapping[str, str], *, lax: bool = False) -> int:
    """How many rows there are, with those that the engine cannot read."""
    told = {**given, "all_varchar": "True", "strict_mode": str(not lax), "rejects_limit": "0"}
    told |= {"rejects_table": "'counted'", "rejects_scan": "'counted_scans'"}
    rows = con.sql(f"SELECT count(*) FROM {read(paths, told)}").fetchall()[0][0]  # noqa: S608  quoted
    bad = con.sql("SELECT count(*) FROM (SELECT DISTINCT scan_id, file_id, line FROM counted)").fetchall()[0][0]
    con.execute("DROP TABLE counted")
    con.execute("DROP TABLE counted_scans")
    return int(rows + bad)


def read(paths: Sequence[str], given: Mapping[str, str]) -> str:
    """The table that the engine makes of files."""
    return f"read_csv({quote_list(paths)}, {named(given)})"


def named(options: Mapping[str, str]) -> str:
    """The engine's options as its functions take them."""
    return ", ".join(f"{name} = {value}" for name, value in options.items())


def typed(kinds: Mapping[str, str]) -> str:
    """The types of columns as the engine's option `types` takes them."""
    return "{" + ", ".join(f"{quote_text(name)}: {quote_text(kind)}" for name, kind in kinds.items()) + "}"


def _unquoted(literal: str) -> str:
    """The text of what `quote_text` gave."""
    return literal[1:-1].replace("''", "'")
