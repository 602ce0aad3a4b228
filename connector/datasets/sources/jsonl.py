"""JSON lines (one object a line): converted once to Parquet when it is registered, with a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.datasets.sources import Option
from connector.datasets.sources.convert import write_parquet
from connector.datasets.sources.files import FileRef, file_ref, files_under, quote_list, resolve
from connector.errors import SourceUnreadable

TITLE = "JSON lines file"
SUFFIXES = (".jsonl", ".ndjson", ".jsonl.gz")
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
    """Read all lines (types from those of all files, not a sample) and write Parquet; one bad line refuses the file."""
    depth = int(options.get("max_depth", 4))
    table = (
        f"read_json({quote_list(paths)}, format = 'newline_delimited', sample_size = -1, maximum_sample_files = -1, "
        f"maximum_depth = {depth}, maximum_object_size = {_LINE_MAX}, "
        f"map_inference_threshold = {_KEYS_MAX})"
    )
    return write_parquet(con, table, target, bad_lines_max=0)
