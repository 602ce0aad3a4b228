"""JSON lines (one object a line): converted once to Parquet when it is registered, with a report."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option
from connector.datasets.sources.convert import BAD_LINES_SHOWN, check_gzip, lines_unreadable, write_parquet
from connector.datasets.sources.files import FileRef, file_ref, files_under, quote_list, resolve
from connector.errors import SourceUnreadable

TITLE = "JSON lines file"
SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
OPTIONS: tuple[Option, ...] = (Option("max_depth", int, 4, "Objects nested deeper than this stay JSON text."),)
CONVERTED = True
_LINE_MAX = 16 * 2**20
_KEYS_MAX = 2_000  # of an object; one with as many whose values are alike is a map, and not a column for each


def find(path: str, *, roots: Sequence[Path], options: Mapping[str, Any]) -> tuple[FileRef, ...]:
    """The file, or every JSON lines file below the directory."""
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
    try:
        report = write_parquet(con, table, target, bad_lines_max=0, whole=True)
    except Exception as error:
        if type(error).__name__ == "InvalidInputException":  # the engine's own, which nobody imports here
            _check_lines(paths)
        raise
    if report["columns"] == [{"name": "json", "type": "JSON"}]:  # what the engine makes of lines that are no objects
        _check_lines(paths)
    return report


def _check_lines(paths: Sequence[str]) -> None:
    """SourceUnreadable with the lines that are no objects, if there are any. The engine says the number of a line by
    what it has read so far, and mostly that of the next one."""
    every = chain.from_iterable(_bad_lines(path, number) for number, path in enumerate(paths, 1))
    if bad := list(islice(every, BAD_LINES_SHOWN)):
        raise lines_unreadable(bad, allowed=0, of_many=len(paths) > 1) from None


def _bad_lines(path: str, number: int) -> Iterator[dict[str, Any]]:
    """The lines of a file that are no JSON or too long; a longer one ends it."""
    with gzip.open(path) if path.endswith(".gz") else Path(path).open("rb") as file:
        for line, text in enumerate(iter(lambda: file.readline(_LINE_MAX + 1), b""), 1):
            if problem := _problem(text):
                yield {"file": number, "line": line, "column": None, "problem": problem}
            if len(text) > _LINE_MAX:
                return


def _problem(text: bytes) -> str:
    if len(text) > _LINE_MAX:
        return f"longer than {_LINE_MAX >> 20} MB"
    try:
        # The engine passes over a byte order mark; Python makes no number of more than 4,300 digits.
        shown = text.decode().removeprefix("\ufeff").rstrip() or "null"
        found = json.loads(shown, object_pairs_hook=_once, parse_int=str)
    except UnicodeDecodeError:
        return "not in utf-8"
    except json.JSONDecodeError as error:
        return f"no json at character {error.colno}"
    except _Twice:
        return "a key twice in one object"
    except RecursionError:
        return "nested too deep"
    if b"\\ud" in text.lower() and not _is_text(json.loads(shown, parse_int=str)):
        return "half a letter"
    return "" if found is None or isinstance(found, dict) else "no object"


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
