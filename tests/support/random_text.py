"""Random datasets of several text files: CSV as people and their programs write it, with its options, and JSON lines.

What tells a column's type may stand in any of the files: there are whole numbers before the first with decimals, and
keys that come late.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.support import random_files
from tests.support.random_files import BOOL, DATE, FLOAT, INTEGER, OTHER, STAMP, TEXT, Column, Files, Kind

_NAMES = [one for one in random_files.NAMES if one.isidentifier() and one.isprintable() and one.isascii()] + ["größe"]


def _moment(rng: random.Random) -> dt.datetime:
    return dt.datetime(2020, 2, 28, 22, 30) + dt.timedelta(minutes=rng.randint(-(10**7), 10**6))


def _word(rng: random.Random) -> str:
    return random_files.text(rng) or rng.choice(('a,b;c|d\te\n "f"', "1.234,5", "NaN"))


KINDS: list[Kind] = [
    (pa.int64(), INTEGER, lambda rng: rng.choice((0, 5, 1234, -(2**63), 2**63 - 1))),
    (pa.int64(), INTEGER, lambda rng: rng.randint(-(10**6), 10**6)),
    (pa.float64(), FLOAT, lambda rng: rng.randint(-20, 20) * rng.choice((1, 0.125, 12345))),
    (pa.bool_(), BOOL, lambda rng: rng.random() < 0.5),
    (pa.date32(), DATE, random_files.date),
    (pa.timestamp("us"), STAMP, _moment),
    (pa.string(), TEXT, _word),
]
_JSON_KINDS: list[Kind] = [
    *KINDS,
    (pa.list_(pa.int64()), OTHER, lambda rng: [rng.randint(0, 3) for _ in range(rng.randint(0, 3))]),
    (pa.struct([("a", pa.int64()), ("b", pa.string())]), OTHER, lambda rng: {"a": rng.randint(0, 3), "b": _word(rng)}),
]
_TELLING: Mapping[pa.DataType, Any] = {
    pa.float64(): 0.125,
    pa.string(): "ab",
    pa.list_(pa.int64()): [1],
    pa.struct([("a", pa.int64()), ("b", pa.string())]): {"a": 1, "b": "ab"},
}


def write(rng: random.Random, folder: Path, kind: str) -> Files:
    """One to five files of this kind; some hold no rows."""
    rows, count = rng.choice((1, 30, 400)), rng.choice((1, 2, 3, 5))
    columns = _columns(rng, KINDS if kind == "csv" else _JSON_KINDS, rng.choice((2, 5, 5, 12, 60)))
    options = _options(rng, len(columns)) if kind == "csv" else {}
    if not options.get("header", True):
        columns = [replace(one, name=f"column{n:0{len(str(len(columns) - 1))}}") for n, one in enumerate(columns)]
    table = pa.table([_values(rng, one, rows) for one in columns], schema=random_files.schema_of(columns))
    cuts = sorted(rng.randint(0, rows) for _ in range(count - 1))
    ending, opened = rng.choice([("", open)] * 3 + [(".gz", gzip.open)])
    for number, (first, stop) in enumerate(zip((0, *cuts), (*cuts, rows), strict=True)):
        text = _WRITE[kind](rng, table.slice(first, stop - first), options)
        with opened(folder / f"{number}.{kind}{ending}", "wb") as file:
            file.write(text)
    told = _all_text(table, options) if options.get("all_text") else table
    if options.get("all_text"):
        columns = [Column(one.name, pa.string(), TEXT, _word, one.nulls) for one in columns]
    how = f"{count} files of {kind}{ending} {options}"
    return Files(folder, (), tuple(columns), rows, how, kind, told, options)


def _columns(rng: random.Random, kinds: Sequence[Kind], count: int) -> list[Column]:
    names = [one for one in rng.sample(_NAMES, min(count, 6)) if one != "id"] + [f"w{n}" for n in range(count - 6)]
    found = [Column("id", pa.int64(), INTEGER, lambda rng: rng.randint(0, 99), 0.0, unique=True)]
    for name in names:
        made, family, draw = rng.choice(kinds)
        found.append(Column(name, made, family, draw, rng.choice((0.0, 0.2, 0.9))))
    return found


def _values(rng: random.Random, column: Column, rows: int) -> pa.Array:
    """Values of which one, anywhere, tells the type."""
    values = random_files.array_of(rng, column, rows).to_pylist()
    if not column.unique:
        values[rng.randrange(rows)] = _TELLING.get(column.type) or column.draw(rng)
    return pa.array(values, column.type)


def _options(rng: random.Random, columns: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rng.random() < 0.4:
        found["decimal"] = ","
    if rng.random() < 0.4:
        found["thousands"] = rng.choice("'. " if "decimal" in found else "', ")
    found["delimiter"] = ";" if "," in found.values() else rng.choice(",;|\t")
    if rng.random() < 0.5:
        found |= {"date_format": "%d.%m.%Y", "timestamp_format": "%d.%m.%Y %H:%M"}
    if rng.random() < 0.3:
        found["null_text"] = rng.choice(("NA", "-", "\\N"))
    if rng.random() < 0.3:
        found["encoding"] = rng.choice(("utf-8", "latin-1", "utf-16"))
    if rng.random() < 0.2:
        found["header"] = False
    if rng.random() < 0.1:
        found["all_text"] = True
    if rng.random() < 0.3 and columns > 2:
        found["skip_bad_lines"] = rng.choice((1, 5))
    return found


def _as_csv(rng: random.Random, table: pa.Table, options: Mapping[str, Any]) -> bytes:
    out, bad = io.StringIO(), int(rng.random() < 0.5 and options.get("skip_bad_lines", 0) > 1)
    named = options.get("header", True)  # the engine takes the first line's end for all, also one within quotes
    lines = csv.writer(
        out, delimiter=options["delimiter"], lineterminator=rng.choice(("\n", "\r\n" if named else "\n"))
    )
    if named:
        lines.writerow(table.column_names)
    rows = list(zip(*([_field(value, options) for value in one.to_pylist()] for one in table.columns), strict=True))
    at = rng.randint(0, len(rows)) if bad and rows else None
    for number, row in enumerate(rows):
        if number == at:
            lines.writerow([*row, "one", "more"])
        lines.writerow(row)
    return out.getvalue().encode(options.get("encoding", "utf-8"))


def _field(value: Any, options: Mapping[str, Any]) -> str:
    if value is None:
        return str(options.get("null_text", ""))
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        text = f"{value:,}" if options.get("thousands") else f"{value}"
        marks = {".": options.get("decimal", "."), ",": options.get("thousands", "")}
        text = text.removesuffix(".0")  # as many programs write whole ones
        return "".join(marks.get(one, one) for one in text)
    if isinstance(value, dt.date):
        form = options.get("timestamp_format" if isinstance(value, dt.datetime) else "date_format", "")
        return value.strftime(form) if form else str(value)
    return str(value)


def _all_text(table: pa.Table, options: Mapping[str, Any]) -> pa.Table:
    """Every field as it is written."""
    fields = [[None if one is None else _field(one, options) for one in column.to_pylist()] for column in table.columns]
    return pa.table([pa.array(one, pa.string()) for one in fields], names=table.column_names)


def _as_json(rng: random.Random, table: pa.Table, options: Mapping[str, Any]) -> bytes:
    """Keys without a value are left out of some lines."""
    lines = []
    for number, row in enumerate(table.to_pylist()):
        kept = {key: one for key, one in row.items() if one is not None or not number or rng.random() < 0.5}
        lines.append(json.dumps(kept, default=str, ensure_ascii=rng.random() < 0.5) + rng.choice(("\n", "\n", "\r\n")))
    return "".join(lines).encode()


_WRITE: Mapping[str, Callable[[random.Random, pa.Table, Mapping[str, Any]], bytes]] = {
    "csv": _as_csv,
    "jsonl": _as_json,
}
