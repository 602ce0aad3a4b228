"""Random datasets of every kind of source whose files are here: Arrow, folders that carry columns, and text.

Arrow files have all that its format allows and a careful reader may stumble over: batches of no rows and slices of
larger ones, values under nulls, dictionaries, views, compression.
"""

from __future__ import annotations

import csv
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.support import random_coded, random_files, random_postgres, random_text
from tests.support.random_files import BLOB, BOOL, DATE, FLOAT, INTEGER, KINDS, OTHER, TEXT, Column, Files, Kind

_ARROW_KINDS: list[Kind] = [
    *KINDS,
    (pa.string_view(), TEXT, random_files.text),
    (pa.string_view(), TEXT, random_files.text),
    (pa.large_binary(), BLOB, lambda rng: rng.choice((b"", b"a", b"\x00" * 20))),
    (pa.binary_view(), BLOB, lambda rng: rng.choice((b"", b"a", b"\x00" * 20))),
    (pa.dictionary(pa.int8(), pa.large_string()), TEXT, random_files.text),
    (pa.dictionary(pa.uint16(), pa.int64()), INTEGER, lambda rng: rng.randint(0, 9)),
    (pa.large_list(pa.int8()), OTHER, lambda rng: [1, None, 2][: rng.randint(0, 3)]),
    (pa.list_(pa.dictionary(pa.int8(), pa.string())), OTHER, lambda rng: ["a", None, "b"][: rng.randint(0, 3)]),
    (pa.struct([("v", pa.string_view()), ("n", pa.bool_())]), OTHER, lambda rng: {"v": "x" * 20, "n": None}),
    (pa.date64(), DATE, random_files.date),
    (pa.uint16(), INTEGER, lambda rng: rng.randint(0, 2**16 - 1)),
    (pa.null(), OTHER, lambda rng: None),
]
_LARGE_KINDS: list[Kind] = [
    (pa.binary(), BLOB, lambda rng: rng.randbytes(rng.randint(600_000, 900_000))),
    (pa.string_view(), OTHER, lambda rng: rng.choice("aü") * rng.randint(400_000, 900_000)),
    (pa.list_(pa.float32()), OTHER, lambda rng: [0.5, None, 2.0] * rng.randint(0, 60_000)),
]
_TEXT_KINDS: list[Kind] = [
    (pa.int64(), INTEGER, lambda rng: rng.choice((0, 5, -(2**63), 2**63 - 1))),
    (pa.float64(), FLOAT, lambda rng: rng.randint(-20, 20) / 8),
    (pa.bool_(), BOOL, lambda rng: rng.random() < 0.5),
    (pa.date32(), DATE, random_files.date),
    (pa.string(), TEXT, lambda rng: random_files.text(rng) or "a,b\n c"),
]

_LARGE = 0.05  # of Arrow files, whose writer made one batch of them that is cut to be read
_KNOWN = 1000  # datasets that stay as they are: the suite has chosen among them by what they show
_STORED = 0.06  # of files that an object store may hold, in one
_OLD = {"metadata_version": pa.ipc.MetadataVersion.V4}


def write(number: int, folder: Path, kind: str = "") -> Files:
    """The dataset of this number, of this kind or a random one."""
    kinds = KINDS_OF_FILES if number >= _KNOWN else _FIRST
    weights = [often for _, often in kinds.values()]
    kind = kind or random.Random(f"source {number}").choices(list(kinds), weights)[0]
    rare = random_files.RARE if number >= _KNOWN else ()
    files = KINDS_OF_FILES[kind][0](random.Random(f"files {number}"), folder, rare)
    stored = files.kind in ("parquet", "hive") and random.Random(f"store {number}").random() < _STORED
    return replace(files, made=kind, kind="s3" if stored else files.kind)


def changed(files: Files, folder: Path, change: str) -> Files:
    """A copy in a folder that is not there yet: the `same` files, `more` or `fewer`, or in another `order`."""
    places = {folder / Path(one).relative_to(files.folder): Path(one) for one in files.paths}
    if files.kind in ("csv", "jsonl", "postgres"):  # converted by whoever registers them
        places = {folder / one.name: one for one in files.folder.iterdir() if one.suffix != ".parquet"}
    elif change == "more":
        first = next(iter(places))
        places[first.with_name(f"x{first.name}")] = places[first]
    elif change == "fewer" and len(places) > 1:
        del places[next(iter(places))]
    elif change == "order" and files.kind != "hive":
        places = dict(zip(places, reversed(places.values()), strict=True))
    for place, old in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old, place)
    told = files.told
    if files.kind == "arrow_ipc":
        told = _retold(files, [places[one] for one in sorted(places)])
    return replace(files, folder=folder, paths=tuple(map(str, sorted(places))), told=told)


def _retold(files: Files, paths: Sequence[Path]) -> pa.Table:
    """The rows of some of the files, each file's as it was written."""
    assert files.told is not None
    counts = [pa.ipc.open_file(one).count_rows() for one in files.paths]
    starts = dict(zip(map(Path, files.paths), np.cumsum([0, *counts]).tolist(), strict=False))
    sizes = dict(zip(map(Path, files.paths), counts, strict=True))
    return pa.concat_tables([files.told.slice(starts[one], sizes[one]) for one in paths])


def _arrow(rng: random.Random, folder: Path, rare: Sequence[Kind], *, wide: int = 0, coded: bool = False) -> Files:
    columns, counts = random_files.drawn(rng, [*_ARROW_KINDS, *rare], wide=wide)
    large = bool(rare) and rng.random() < _LARGE
    if large:
        columns = [Column(rng.choice(("scan", "text")), *rng.choice(_LARGE_KINDS), 0.02), *columns]
        counts = [rng.randint(20, 80) for _ in counts]
    schema = random_files.schema_of(columns)
    options = rng.choice(({}, {}, {"compression": "lz4"}, {"compression": "zstd"}, _OLD))
    how = pa.ipc.IpcWriteOptions(**options)
    tables, paths = [], []
    chosen = random_coded.coders(rng, schema) if coded and options is not _OLD else []  # which knows no run ends
    for number, rows in enumerate(counts):
        table = pa.table([_over_rubbish(rng, one, rows) for one in columns], schema=schema)
        mine = list(range(len(columns)))  # not by name: there may be two of one
        mine = rng.sample(mine, len(mine)) if number and rng.random() < 0.2 else mine
        paths.append(f"{folder}/{number}.arrow")
        written = (random_coded.coded(table, chosen) if chosen else table).select(mine)
        with pa.ipc.new_file(paths[-1], written.schema, options=how) as file:
            for batch in [*written.to_batches()] if large else _batches(rng, written):
                file.write_batch(batch)
        tables.append(table)
    return Files(
        folder, tuple(paths), tuple(columns), sum(counts), repr(options), "arrow_ipc", pa.concat_tables(tables)
    )


def _batches(rng: random.Random, table: pa.Table) -> Iterator[pa.RecordBatch]:
    """Slices of the table, some of no rows."""
    (whole,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    cuts = sorted(rng.randint(0, len(table)) for _ in range(rng.choice((0, 0, 1, 3, 9))))
    for first, stop in zip((0, *cuts), (*cuts, len(table)), strict=True):
        yield whole.slice(first, stop - first)


def _over_rubbish(rng: random.Random, column: Column, rows: int) -> pa.Array:
    """Values with others under the nulls, where such an array can be made of buffers."""
    found = random_files.array_of(rng, column, rows)
    if not column.nulls or pa.types.is_null(column.type) or not rows:
        return found
    under = random_files.array_of(rng, replace(column, nulls=0.0), rows)
    if pa.types.is_dictionary(column.type):
        return under.from_arrays(_hidden(under.indices, rng, column), under.dictionary)
    return _hidden(under, rng, column)


def _hidden(under: pa.Array, rng: random.Random, column: Column) -> pa.Array:
    kind, buffers = under.type, under.buffers()
    bits = np.packbits([rng.random() >= column.nulls for _ in range(len(under))], bitorder="little").tobytes()
    if pa.types.is_struct(kind):
        children, own = [under.field(number) for number in range(kind.num_fields)], 1
    elif pa.types.is_map(kind):
        children, own = [pa.StructArray.from_arrays([under.keys, under.items], fields=_entries(kind))], 2
    elif pa.types.is_fixed_size_list(kind):
        children, own = [under.values], 1
    elif pa.types.is_nested(kind):
        children, own = [under.values], 2
    else:
        children, own = [], len(buffers)
    return pa.Array.from_buffers(kind, len(under), [pa.py_buffer(bits), *buffers[1:own]], children=children)


def _entries(kind: pa.MapType) -> list[pa.Field]:
    return [kind.key_field, kind.item_field]


def _hive(rng: random.Random, folder: Path, rare: Sequence[Kind]) -> Files:
    """As many files as values of a column that is in no file, in one level of folders or two."""
    columns, _ = random_files.drawn(rng, [*KINDS, *rare])
    columns = [one for one in columns if one.name.isidentifier()] or [replace(columns[0], name="one")]
    paths, rows = [], 0
    for place in rng.choice(_PLACES):
        count = rng.choice((0, 1, 50, 200))
        (folder / place).mkdir(parents=True)
        paths.append(f"{folder}/{place}/{rng.choice('abc')}.parquet")
        table = pa.table([random_files.array_of(rng, one, count) for one in columns], random_files.schema_of(columns))
        pq.write_table(table, paths[-1], row_group_size=rng.choice((20, 60, 500)), compression="none")
        rows += count
    carried = [_carried(part) for part in sorted(Path(paths[0]).relative_to(folder).parts[:-1])]  # as the engine does
    return Files(folder, tuple(paths), (*columns, *carried), rows, f"hive {paths}", "hive")


_PLACES = [
    ["year=2023", "year=2024", "year=2025"],
    ["year=2024/part=a b", "year=2024/part=c", "year=2025/part=a b"],
    ["day=2024-01-01", "day=2024-02-29"],
    ["part=1", "part=x", "part=__HIVE_DEFAULT_PARTITION__"],
    ["part=01", "part=1", "part=%41"],
]


def _carried(part: str) -> Column:
    name = part.split("=")[0]
    if name == "year":
        return Column(name, pa.int64(), INTEGER, lambda rng: rng.randint(2022, 2026), 0.0)
    if name == "day":
        return Column(name, pa.date32(), DATE, random_files.date, 0.0)
    return Column(name, pa.string(), TEXT, lambda rng: rng.choice(("a b", "c", "1", "01", "x", "A")), 0.5)


def _text(rng: random.Random, folder: Path, kind: str) -> Files:
    names = rng.sample([one for one in random_files.NAMES if one.isidentifier()], rng.randint(1, 5))
    columns = [Column("id", pa.int64(), INTEGER, lambda rng: rng.randint(0, 99), 0.0, unique=True)]
    for name in names:
        made, family, draw = rng.choice(_TEXT_KINDS)
        columns += [Column(name, made, family, draw, rng.choice((0.0, 0.2)))] if name != "id" else []
    schema, rows = random_files.schema_of(columns), rng.choice((1, 30, 2500))
    table = pa.table([_known(rng, one, rows) for one in columns], schema=schema)
    path = folder / f"rows.{kind}"
    with path.open("w", newline="", encoding="utf-8") as file:
        _WRITE_TEXT[kind](file, table)
    return Files(folder, (str(path),), tuple(columns), rows, kind, kind, table)


def _known(rng: random.Random, column: Column, rows: int) -> pa.Array:
    """Values of which the first tell the type."""
    first = "ab" if column.family == TEXT else column.draw(rng)
    rest = random_files.array_of(rng, column, rows - 1).to_pylist()
    return pa.array([0 if column.unique else first, *rest], column.type)


def _as_csv(file: Any, table: pa.Table) -> None:
    out = csv.writer(file, quoting=csv.QUOTE_MINIMAL)
    out.writerow(table.column_names)
    out.writerows(zip(*(map(_field, column.to_pylist()) for column in table.columns), strict=True))


def _field(value: Any) -> str:
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _as_json(file: Any, table: pa.Table) -> None:
    for row in table.to_pylist():
        file.write(json.dumps(row, default=str, ensure_ascii=False) + "\n")


_WRITE_TEXT: Mapping[str, Callable[[Any, pa.Table], None]] = {"csv": _as_csv, "jsonl": _as_json}


def _wide(rng: random.Random, folder: Path, rare: Sequence[Kind]) -> Files:
    """More columns than one reads at a glance."""
    return rng.choice((random_files.write, _arrow))(rng, folder, rare, wide=rng.choice((20, 60, 300)))


Writer = Callable[[random.Random, Path, Sequence[Kind]], Files]
_FIRST: Mapping[str, tuple[Writer, int]] = {  # and how often
    "parquet": (random_files.write, 60),
    "arrow": (_arrow, 28),
    "hive": (_hive, 6),
    "csv": (lambda rng, folder, _: _text(rng, folder, "csv"), 3),
    "jsonl": (lambda rng, folder, _: _text(rng, folder, "jsonl"), 3),
}
KINDS_OF_FILES: Mapping[str, tuple[Writer, int]] = {
    **_FIRST,
    "wide": (_wide, 8),
    "coded": (partial(_arrow, coded=True), 8),
    "groups": (partial(random_files.write, tiny=True), 4),
    "postgres": (lambda rng, folder, _: random_postgres.write(rng, folder), 6),
    "texts": (lambda rng, folder, _: random_text.write(rng, folder, rng.choice(("csv", "jsonl"))), 8),
}
