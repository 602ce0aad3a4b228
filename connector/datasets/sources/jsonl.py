"""JSON lines (one object a line): converted once to Parquet when it is registered, with a report."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, chain, islice
from math import isfinite
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option, text_inference
from connector.datasets.sources.source_files import FileRef, file_ref, files_under, quote_list, quote_text, resolve
from connector.datasets.sources.to_parquet import (
    BAD_LINES_SHOWN,
    check_gzip,
    check_names,
    ends_of_doubles,
    lines_unreadable,
    may_be_repeated,
    noted,
    opened,
    retyped,
    write_parquet,
)
from connector.errors import BadInput, SourceUnreadable

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
OPTIONS: tuple[Option, ...] = (
    Option("max_depth", int, 4, "Objects nested deeper than this stay JSON text.", values=range(1, 2**31)),
)
CONVERTED = True
_LINE_MAX = 16 * 2**20
_KEYS_MAX = 2_000  # of an object; one with as many whose values are alike is a map, and not a column for each
_LINES_AT_ONCE = 2_048
_DEPTH_MAX = 127  # of the engine
_SIGNS = re.compile(r"[\[{}\]]")  # what opens and closes
_TEXTS = re.compile(r'"(?:[^"\\]|\\.)*"')  # which may have such signs
_TWICE = re.compile(r'Duplicate name "(.*)" in struct')
_LIST = "a list; write each object as a line of its own"
_WHOLE_MAX = 2**53  # of whole numbers up to it, a double keeps each
_LONG = quote_text(r"\d[\d.]{15,}(?:[eE][-+]?\d+)?")
# Lines that may be JSON to the engine alone, beside those below with NaN and Infinity: it is strict in all else.
_LOOSE = r"regexp_matches(json, ',[ \t\r\n]*[}\]]')"
# Lines that may have a value which a type of the engine does not keep, by the types that may not.
_STRANGE = {
    "DOUBLE|JSON": r"regexp_matches(json, '\d[eE][-+]?\d{3}') OR len(list_filter("
    f"regexp_extract_all(json, {_LONG}), lambda x: (@WHOLE@ OR regexp_matches(x, '[.eE]')) "
    "AND x IS DISTINCT FROM CAST(TRY_CAST(x AS DOUBLE) AS VARCHAR))) > 0 OR "
    r"regexp_matches(json, '[:,\[][ \t\r\n]*-?(?i:nan|inf|infinity)[ \t\r\n]*[,}\]]')",
    "UUID": """regexp_matches(json, '"[-0-9a-f]{0,35}[A-F][-0-9A-Fa-f]{0,35}"')""",
    "DATE|TIME": r"""regexp_matches(json, '"\s*-?(?i:inf|epoch)|"\s*\d{1,3}-\d{1,2}-\d|:\d\d\.\d{7}|["T\s]24:\d|' ||"""
    # blanks around it, or more than one within
    r"""'"(\s+[-+\d]|\\[tnrfu])|[\dA-Za-z)](\s+|\\[tnrf]|\\u00[01][\dA-Fa-f])"|\d(\s{2,}\d|\\[tnrfu])')""",
}


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """The file, or every JSON lines file below the directory."""
    if options.get("max_depth", 1) < 1:
        raise BadInput(f"expected max_depth to be 1 or more, came {options['max_depth']}", code="option_invalid")
    if resolve(path, roots=roots).is_dir():
        return files_under(path, roots=roots, suffixes=SUFFIXES)
    return (file_ref(path, roots=roots),)


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """Never read in place: text has no types that could be pinned."""
    raise SourceUnreadable("a JSON lines source is converted when it is registered; read its Parquet file")


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Read all lines (types from those of all files, not a sample) and write Parquet; one bad line refuses the file.

    SourceUnreadable with the numbers of such lines and of their files, as of CSV.
    """
    check_gzip(paths)
    depth = int(options.get("max_depth", 4))
    table = (
        f"read_json({quote_list(paths)}, format = 'newline_delimited', sample_size = -1, maximum_sample_files = -1, "
        f"maximum_depth = {depth}, maximum_object_size = {_LINE_MAX}, "
        f"map_inference_threshold = {_KEYS_MAX})"
    )
    report = _written(con, table, paths, target)
    _check_keys(con, paths, [column["name"] for column in report["columns"]])
    notes = _notes(con, paths, target)
    return _with_texts(con, paths, target, notes) if notes else report


def _with_texts(con: Any, paths: Sequence[str], target: str, notes: Mapping[tuple[str, ...], str]) -> dict[str, Any]:
    """Write the Parquet file again, as it is but for texts in the places of `notes`."""
    found = con.sql(f"SELECT * FROM read_parquet({quote_text(target)}) LIMIT 0")  # noqa: S608  quoted
    kinds = zip(found.columns, found.types, strict=True)
    types = {name: retyped(kind, partial(_leaf, notes), (name,)) for name, kind in kinds}
    columns = ", ".join(f"{quote_text(name)}: {quote_text(kind)}" for name, kind in types.items())
    table = (
        f"read_json({quote_list(paths)}, format = 'newline_delimited', maximum_object_size = {_LINE_MAX}, "
        f"columns = {{{columns}}})"
    )
    report = write_parquet(con, table, target, bad_lines_max=0)
    return noted(report, {path[0]: note if len(path) == 1 else f"in part {note}" for path, note in notes.items()})


def _leaf(words: Container[Sequence[str]], kind: Any, path: Sequence[str]) -> str:
    return text_inference.TEXT if path in words else str(kind)


def _written(con: Any, table: str, paths: Sequence[str], target: str) -> dict[str, Any]:
    """Write the table as the engine finds it; SourceUnreadable with the lines that it cannot read."""
    try:
        report = write_parquet(con, table, target, bad_lines_max=0, whole=True)
    except Exception as error:
        if type(error).__name__ == "InvalidInputException":  # the engine's own, which nobody imports here
            _check_lines(paths, _problem)
        if twice := _TWICE.search(str(error)):
            raise SourceUnreadable(
                f"expected keys of an object that differ in more than case, came {twice[1]} and another; rename them",
                code="columns_repeated",
            ) from None
        raise
    if [column["name"] for column in report["columns"]] == ["json"]:  # what it makes of lines that are no objects
        _check_lines(paths, _problem)
    return report


def _check_keys(con: Any, paths: Sequence[str], names: Sequence[str]) -> None:
    """SourceUnreadable where the objects cannot have a column for each key, or two keys differ in case only."""
    keys = f"SELECT DISTINCT unnest(json_keys(json)) FROM {_objects(paths)}"  # noqa: S608  quoted
    if names == ["json"] and not con.sql(f"SELECT 1 FROM {_objects(paths)} LIMIT 1").fetchall():  # noqa: S608  quoted
        raise SourceUnreadable("expected a line at least, came nothing but empty files; name files with data")
    if names == ["json"] and not con.sql(f"SELECT 1 FROM ({keys}) AS k(name) WHERE name = 'json'").fetchall():  # noqa: S608
        raise SourceUnreadable(
            f"expected objects of 1 to {_KEYS_MAX} different keys, none of them empty, came others or none; write many "
            "keys as an object within one"
        )
    if may_be_repeated(names):
        check_names(key for (key,) in con.sql(keys).fetchall())


def _objects(paths: Sequence[str]) -> str:
    """The lines as they are written, in the column `json`."""
    return f"read_ndjson_objects({quote_list(paths)}, maximum_object_size = {_LINE_MAX})"


def _notes(con: Any, paths: Sequence[str], target: str) -> dict[tuple[str, ...], str]:
    """Where values are that their types do not keep, by the names that lead there, and what the owner is told of it.
    As text they are kept, but for fractions: of these the engine makes doubles first, so that their lines are refused,
    as are those that are no JSON.
    """
    shown = con.sql(f"SELECT * FROM read_parquet({quote_text(target)}) LIMIT 0")  # noqa: S608  quoted
    columns = zip(shown.columns, shown.types, strict=True)
    kinds = {name: kind for name, kind in columns if re.search("|".join(_STRANGE), str(kind))}
    types = " ".join(map(str, kinds.values()))
    strange = " OR ".join([_LOOSE, *(found for kind, found in _STRANGE.items() if re.search(kind, types))])
    whole = any(ends is None or max(map(abs, ends)) >= _WHOLE_MAX for ends in ends_of_doubles(target))
    strange = strange.replace("@WHOLE@", str(whole))
    lines = f"SELECT json FROM {_objects(paths)} WHERE {strange}"  # noqa: S608  quoted
    notes: dict[tuple[str, ...], str] = {}
    for batch in con.sql(lines).to_arrow_reader(_LINES_AT_ONCE):
        for line in batch.column(0):
            try:
                told = dict(_others(line.as_py(), kinds))
            except (ValueError, RecursionError):
                _check_lines(paths, _problem)
                raise
            if "" in told.values():
                _check_lines(paths, partial(_lost, kinds))
            notes |= told
    return notes


def _others(line: str, kinds: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where in a line are values that their types do not keep, and why they shall be text; empty where no text keeps
    them either."""
    found = _DECODER.decode(line.removeprefix("\ufeff")) or {}
    for name, value in found.items():
        if name in kinds:
            yield from _other(value, kinds[name], (name,))


def _other(value: Any, kind: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    form = str(kind.id)
    if isinstance(value, _Number):
        loose = form == "double" or str(kind) == "JSON"
        if loose and not text_inference.holds(value):
            if not value.lstrip("-").isdecimal() and isfinite(float(value)):
                yield path, ""
            elif form == "double":
                yield path, "text, as no number keeps all digits"
    elif isinstance(value, str):
        if not text_inference.means(value, form):
            yield path, f"text, as some of it is no plain {form.split()[0]}, or would lose digits or capitals"
    elif isinstance(value, list):
        name, child = kind.children[0] if form == "list" else ("", kind)
        for one in value:
            yield from _other(one, child, (*path, name))
    elif isinstance(value, dict):
        parts = dict(kind.children) if form in ("struct", "map") else {}
        for key, one in value.items():
            name = "value" if form == "map" else key
            yield from _other(one, parts.get(name, kind), (*path, name))


class _Number(str):
    """A number of JSON, as it is written."""

    __slots__ = ()


class _Constant(ValueError):
    """NaN or an Infinity, which Python and the engine take for a number."""


def _constant(name: str) -> Any:
    raise _Constant(name)


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_constant)


def _lost(kinds: Mapping[str, Any], text: bytes) -> str:
    try:
        lost = any(not note for _, note in _others(text.decode().strip() or "null", kinds))
    except (ValueError, RecursionError):
        return _problem(text)
    return "a number of more digits than a DOUBLE keeps; write it as text" if lost else ""


def _check_lines(paths: Sequence[str], problem: Callable[[bytes], str]) -> None:
    """SourceUnreadable with the lines that have a problem, if there are any. The engine says the number of a line by
    what it has read so far, and mostly that of the next one."""
    every = chain.from_iterable(_bad_lines(path, number, problem) for number, path in enumerate(paths, 1))
    if bad := list(islice(every, BAD_LINES_SHOWN)):
        raise lines_unreadable(bad, allowed=0, of_many=len(paths) > 1) from None


def _bad_lines(path: str, number: int, problem: Callable[[bytes], str]) -> Iterator[dict[str, Any]]:
    """The lines of a file that have a problem; one that is too long ends it."""
    with opened(path) as file:
        for line, text in enumerate(iter(lambda: file.readline(_LINE_MAX + 1), b""), 1):
            if told := problem(text):
                yield {"file": number, "line": line, "column": None, "problem": told}
            if len(text) > _LINE_MAX:
                return


def _problem(text: bytes) -> str:
    if len(text) > _LINE_MAX:
        return f"longer than {_LINE_MAX >> 20} MB"
    try:
        # The engine passes over a byte order mark; Python makes no number of more than 4,300 digits.
        shown = text.decode().removeprefix("\ufeff").rstrip() or "null"
        found = json.loads(shown, object_pairs_hook=_once, parse_int=str, parse_constant=_constant)
    except UnicodeDecodeError:
        return "not in utf-8"
    except json.JSONDecodeError as error:
        return _LIST if shown.startswith("[") else f"no json at character {error.colno}"
    except _Twice:
        return "a key twice in one object"
    except _Constant as error:
        return f"{error}, which JSON does not have; write null"
    except RecursionError:
        return f"nested deeper than {_DEPTH_MAX}"
    if b"\\ud" in text.lower() and not _is_text(json.loads(shown, parse_int=str)):
        return "half a letter"
    if isinstance(found, list):
        return _LIST
    if _depth(shown) > _DEPTH_MAX:
        return f"nested deeper than {_DEPTH_MAX}"
    return "" if found is None or isinstance(found, dict) else "no object"


def _depth(shown: str) -> int:
    """How deep lists and objects lie in each other, in text that is JSON."""
    return max(accumulate(1 if sign in "[{" else -1 for sign in _SIGNS.findall(_TEXTS.sub("", shown))), default=0)


def _is_text(found: Any) -> bool:
    """Whether it has no half of a pair of surrogates, of which Python makes a letter."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


class _Twice(ValueError):
    """An object with a key twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise _Twice
    return {}
