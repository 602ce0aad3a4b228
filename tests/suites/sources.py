"""What every kind of source must pass: one case per kind, run by tests/connector/datasets/sources/test_sources.py."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq

from tests.support import data

ROWS = 3000


@dataclass(frozen=True)
class Case:
    """A kind, how its files are written from the test table, and which columns survive its format."""

    kind: str
    write: Callable[[Path], Path]
    columns: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    damage: int = 100  # a byte of the file that, overwritten, makes it unreadable


def _parquet(folder: Path) -> Path:
    return data.parquet(folder / "t.parquet", ROWS)


def _directory(folder: Path) -> Path:
    top = folder / "many"
    top.mkdir()
    table = data.table(ROWS)
    for number in range(3):
        pq.write_table(table.slice(number * 1000, 1000), top / f"part-{number}.parquet")
    (top / "_SUCCESS").touch()
    return top


def _hive(folder: Path) -> Path:
    top = folder / "by_year"
    table = data.table(ROWS)
    for number in range(3):
        place = top / f"year={2020 + number}"
        place.mkdir(parents=True)
        pq.write_table(table.slice(number * 1000, 1000), place / "part.parquet")
    return top


def _arrow(folder: Path) -> Path:
    pyarrow.feather.write_feather(data.table(ROWS), folder / "t.arrow", compression="zstd", chunksize=700)
    return folder / "t.arrow"


def _csv(folder: Path) -> Path:
    pyarrow.csv.write_csv(data.table(ROWS).drop_columns(["tags"]), folder / "t.csv")
    return folder / "t.csv"


def _jsonl(folder: Path) -> Path:
    rows: list[dict[str, Any]] = data.table(ROWS).to_pylist()
    (folder / "t.jsonl").write_text("".join(json.dumps(row, default=str) + "\n" for row in rows))
    return folder / "t.jsonl"


ALL = ("id", "x", "name", "day", "gap", "tags")
CASES = (
    Case("parquet", _parquet, ALL),
    Case("parquet", _directory, ALL),
    Case("hive", _hive, ALL),
    Case("arrow_ipc", _arrow, ALL),
    Case("csv", _csv, ALL[:-1]),
    Case("jsonl", _jsonl, ALL),
)


def expected(columns: tuple[str, ...]) -> list[dict[str, Any]]:
    """The rows as Python values, in the order of the file."""
    table: pa.Table = data.table(ROWS).select(list(columns))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
