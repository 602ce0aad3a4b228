"""JSON lines (one object per line): converted to Parquet once at registration, with a report."""

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
    add_notes,
    check_gzip,
    check_names,
    ends_of_doubles,
    lines_unreadable,
    may_be_repeated,
    open_file,
    replace_types,
    write_parquet,
)
from connector.errors import Invalid, SourceUnreadable

SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
OPTIONS: tuple[Option, ...] = (
    Option("max_depth", int, 4, "Objects nested deeper than this stay JSON text.", values=range(1, 2**31)),
)
CONVERTED = True
_LINE_MAX = 16 * 2**20
_KEYS_MAX = 2_000  # of an object; with as many keys and alike values it becomes a map instead of columns
_LINES_AT_ONCE = 2_048
_DEPTH_MAX = 127  # of the engine
_SIGNS = re.compile(r"[\[{}\]]")  # what opens and closes
_TEXTS = re.compile(r'"(?:[^"\\]|\\.)*"')  # which may have such signs
_TWICE = re.compile(r'Duplicate name "(.*)" in struct')
_LIST = "a list; write each object as a line of its own"
_WHOLE_MAX = 2**53  # of whole numbers up to it, a double keeps each
_LONG = quote_text(r"\d[\d.]{15,}(?:[eE][-+]?\d+)?")
# Lines that only the engine accepts as JSON, apart from those with NaN and Infinity below.
_LOOSE = r"regexp_matches(json, ',[ \t\r\n]*[}\]]')"
# Conditions for lines that may have a value which a type of the engine does not keep, by type.
_STRANGE = {
    "DOUBLE|JSON": r"regexp_matches(json, '\d[eE][-+]?\d{3}') OR len(list_filter("
    f"regexp_extract_all(json, {_LONG}), lambda x: (@WHOLE@ OR regexp_matches(x, '[.eE]')) "
    "AND x IS DISTINCT FROM CAST(TRY_CAST(x AS DOUBLE) AS VARCHAR))) > 0 OR "
    r"regexp_matches(json, '[:,\[][ \t\r\n]*-?(?i:nan|inf|infinity)[ \t\r\n]*[,}\]]')",
    "UUID": """regexp_matches(json, '"[-0-9a-f]{0,35}[A-F][-0-9A-Fa-f]{0,35}"')""",
    "DATE|TIME": r"""regexp_matches(json, '"\s*-?(?i:inf|epoch)|"\s*\d{1,3}-\d{1,2}-\d|:\d\d\.\d{7}|["T\s]24:\d|' ||"""
    # blanks around a value, or several within it
    r"""'"(\s+[-+\d]|\\[tnrfu])|[\dA-Za-z)](\s+|\\[tnrf]|\\u00[01][\dA-Fa-f])"|\d(\s{2,}\d|\\[tnrfu])')""",
}


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """Return the file, or each JSON lines file below the directory."""
    if options.get("max_depth", 1) < 1:
        raise Invalid(f"expected max_depth to be 1 or more, came {options['max_depth']}", code="option_invalid")
    if resolve(path, roots=roots).is_dir():
        return files_under(path, roots=roots, suffixes=SUFFIXES)
    return (file_ref(path, roots=roots),)


def attach(con: Any, name: str, paths: Sequence[str], options: Mapping[str, Any]) -> None:
    """Refuse to read in place: text has no types that could be pinned."""
    raise SourceUnreadable("a JSON lines source is converted when it is registered; read its Parquet file")


def convert(con: Any, paths: Sequence[str], options: Mapping[str, Any], target: str) -> dict[str, Any]:
    """Read all lines and write Parquet. Types are found from all lines of all files; one bad line refuses the source.

    Raises: SourceUnreadable with the numbers of bad lines and of their files, as for CSV.
    """
    check_gzip(paths)
    depth = int(options.get("max_depth", 4))
    table = (
        f"read_json({quote_list(paths)}, format = 'newline_delimited', sample_size = -1, maximum_sample_files = -1, "
        f"maximum_depth = {depth}, maximum_object_size = {_LINE_MAX}, "
        f"map_inference_threshold = {_KEYS_MAX})"
    )
    report = _write_table(con, table, paths, target)
    _check_keys(con, paths, [column["name"] for column in report["columns"]])
    notes = _notes(con, paths, target)
    return _rewrite_with_texts(con, paths, target, notes) if notes else report


def _rewrite_with_texts(
    con: Any, paths: Sequence[str], target: str, notes: Mapping[tuple[str, ...], str]
) -> dict[str, Any]:
    """Write the Parquet file again, with text at the paths in `notes`."""
    found = con.sql(f"SELECT * FROM read_parquet({quote_text(target)}) LIMIT 0")  # noqa: S608  quoted
    kinds = zip(found.columns, found.types, strict=True)
    types = {name: replace_types(kind, partial(_leaf_type, notes), (name,)) for name, kind in kinds}
    columns = ", ".join(f"{quote_text(name)}: {quote_text(kind)}" for name, kind in types.items())
    table = (
        f"read_json({quote_list(paths)}, format = 'newline_delimited', maximum_object_size = {_LINE_MAX}, "
        f"columns = {{{columns}}})"
    )
    report = write_parquet(con, table, target, bad_lines_max=0)
    return add_notes(report, {path[0]: note if len(path) == 1 else f"in part {note}" for path, note in notes.items()})


def _leaf_type(words: Container[Sequence[str]], kind: Any, path: Sequence[str]) -> str:
    return text_inference.TEXT if path in words else str(kind)


def _write_table(con: Any, table: str, paths: Sequence[str], target: str) -> dict[str, Any]:
    """Write the table with the types that the engine finds.

    Raises: SourceUnreadable with the lines that it cannot read.
    """
    try:
        report = write_parquet(con, table, target, bad_lines_max=0, whole=True)
    except Exception as error:
        if type(error).__name__ == "InvalidInputException":  # an engine error; its class is not imported here
            _check_lines(paths, _problem)
        if twice := _TWICE.search(str(error)):
            raise SourceUnreadable(
                f"expected keys of an object that differ in more than case, came {twice[1]} and another; rename them",
                code="columns_repeated",
            ) from None
        raise
    if [column["name"] for column in report["columns"]] == ["json"]:  # lines that are not objects
        _check_lines(paths, _problem)
    return report


def _check_keys(con: Any, paths: Sequence[str], names: Sequence[str]) -> None:
    """Check the keys of the objects.

    Raises: SourceUnreadable where they cannot become one column each, or two keys differ only in case.
    """
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
    """Return the table expression with the lines as written, in the column `json`."""
    return f"read_ndjson_objects({quote_list(paths)}, maximum_object_size = {_LINE_MAX})"


def _notes(con: Any, paths: Sequence[str], target: str) -> dict[tuple[str, ...], str]:
    """Return the paths of values that their types do not keep, each with a note for the owner.

    Such values are kept as text. Fractions cannot be kept, because the engine reads them as doubles first: their lines
    are refused, like lines that are not JSON.
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
                told = dict(_find_lossy_in_line(line.as_py(), kinds))
            except (ValueError, RecursionError):
                _check_lines(paths, _problem)
                raise
            if "" in told.values():
                _check_lines(paths, partial(_lossy_problem, kinds))
            notes |= told
    return notes


def _find_lossy_in_line(line: str, kinds: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield the path of each value of a line that its type does not keep, with a note; empty if text does not keep it
    either."""
    found = _DECODER.decode(line.removeprefix("\ufeff")) or {}
    for name, value in found.items():
        if name in kinds:
            yield from _find_lossy(value, kinds[name], (name,))


def _find_lossy(value: Any, kind: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    form = str(kind.id)
    if isinstance(value, _Number):
        loose = form == "double" or str(kind) == "JSON"
        if loose and not text_inference.double_keeps_digits(value):
            if not value.lstrip("-").isdecimal() and isfinite(float(value)):
                yield path, ""
            elif form == "double":
                yield path, "text, as no number keeps all digits"
    elif isinstance(value, str):
        if not text_inference.is_unambiguous(value, form):
            yield path, f"text, as some of it is no plain {form.split()[0]}, or would lose digits or capitals"
    elif isinstance(value, list):
        name, child = kind.children[0] if form == "list" else ("", kind)
        for one in value:
            yield from _find_lossy(one, child, (*path, name))
    elif isinstance(value, dict):
        parts = dict(kind.children) if form in ("struct", "map") else {}
        for key, one in value.items():
            name = "value" if form == "map" else key
            yield from _find_lossy(one, parts.get(name, kind), (*path, name))


class _Number(str):
    """A number of JSON as text."""

    __slots__ = ()


class _Constant(ValueError):
    """NaN or Infinity, which Python and the engine read as numbers."""


def _refuse_constant(name: str) -> Any:
    raise _Constant(name)


_DECODER = json.JSONDecoder(parse_float=_Number, parse_int=_Number, parse_constant=_refuse_constant)


def _lossy_problem(kinds: Mapping[str, Any], text: bytes) -> str:
    try:
        lost = any(not note for _, note in _find_lossy_in_line(text.decode().strip() or "null", kinds))
    except (ValueError, RecursionError):
        return _problem(text)
    return "a number of more digits than a DOUBLE keeps; write it as text" if lost else ""


def _check_lines(paths: Sequence[str], problem: Callable[[bytes], str]) -> None:
    """Check all lines with `problem`. The engine's own line numbers are mostly one too high.

    Raises: SourceUnreadable with the lines that have a problem.
    """
    every = chain.from_iterable(_bad_lines(path, number, problem) for number, path in enumerate(paths, 1))
    if bad := list(islice(every, BAD_LINES_SHOWN)):
        raise lines_unreadable(bad, allowed=0, of_many=len(paths) > 1) from None


def _bad_lines(path: str, number: int, problem: Callable[[bytes], str]) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file that have a problem. Stops after a line that is too long."""
    with open_file(path) as file:
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
        found = json.loads(
            shown, object_pairs_hook=_refuse_repeated_key, parse_int=str, parse_constant=_refuse_constant
        )
    except UnicodeDecodeError:
        return "not in utf-8"
    except json.JSONDecodeError as error:
        return _LIST if shown.startswith("[") else f"no json at character {error.colno}"
    except _RepeatedKey:
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
    """Return how deep lists and objects are nested in valid JSON text."""
    return max(accumulate(1 if sign in "[{" else -1 for sign in _SIGNS.findall(_TEXTS.sub("", shown))), default=0)


def _is_text(found: Any) -> bool:
    """Return whether the value has no unpaired surrogate, which Python accepts as a character."""
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


class _RepeatedKey(ValueError):
    """An object with the same key twice."""


def _refuse_repeated_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) < len(pairs):
        raise _RepeatedKey
    return {}
