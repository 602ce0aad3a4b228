"""Random datasets of every kind of source: Parquet, Arrow, folders that carry columns, text, tables of PostgreSQL.

Arrow files have all that its format allows and a careful reader may stumble over: batches of no rows and slices of
larger ones, values under nulls, dictionaries, views, run ends, extension types, compression. Text is written as people
and their programs do: what tells a column's type may stand in any of the files.
"""

from __future__ import annotations

import csv
import datetime as dt
import gzip
import io
import json
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.oracles.streams import columns as cols
from tests.oracles.streams.columns import BOOL, DATE, FLOAT, INTEGER, KINDS, OTHER, STAMP, TEXT, ZONED, Column, Kind
from tests.oracles.streams.terms import quoted

_STORED = 0.06  # of files that an object store may hold, in one
_OLD = {"metadata_version": pa.ipc.MetadataVersion.V4}


@dataclass(frozen=True, slots=True)
class Files:
    """A dataset in a folder; `paths` in the order of its rows, `columns` as they stand in the first.

    `told`: the rows, where nothing else reads such files as it must. `server_types`: of a table's columns, None for one
    that is dropped again.
    """

    folder: Path
    paths: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: int
    how: str  # they were written
    kind: str = "parquet"
    told: pa.Table | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of the source
    made: str = ""  # as one of `KINDS_OF_FILES`
    server_types: tuple[tuple[str, str | None], ...] = ()

    @property
    def refused(self) -> bool:
        """Whether two names differ in nothing but case."""
        return len({one.name.casefold() for one in self.columns}) < len(self.columns)


def write(number: int, folder: Path, kind: str = "") -> Files:
    """The dataset of this number, of this kind or a random one."""
    weights = [often for _, often in KINDS_OF_FILES.values()]
    kind = kind or random.Random(f"source {number}").choices(list(KINDS_OF_FILES), weights)[0]
    files = KINDS_OF_FILES[kind][0](random.Random(f"files {number}"), folder)
    stored = files.kind in ("parquet", "hive") and random.Random(f"store {number}").random() < _STORED
    return replace(files, made=kind, kind="s3" if stored else files.kind)


def changed(files: Files, folder: Path, change: str) -> Files:
    """A copy in a folder that is not there yet: the `same` files, `more` or `fewer`, or in another `order`."""
    places = {folder / Path(one).relative_to(files.folder): Path(one) for one in files.paths}
    if files.kind in ("csv", "jsonl", "postgres"):  # converted where they are registered
        places = {folder / one.name: one for one in files.folder.iterdir() if one.suffix != ".parquet"}
    elif change == "more":
        first = next(iter(places))
        places[first.with_name(f"x{first.name}")] = places[first]
    elif change == "fewer" and len(places) > 1:
        del places[next(iter(places))]
    elif change == "order" and files.kind != "hive":
        places = dict(zip(places, reversed(places.values()), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for place, old in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old, place)
    told = files.told
    if told is not None and files.kind == "arrow_ipc":
        counts = [pa.ipc.open_file(one).count_rows() for one in files.paths]
        starts = np.cumsum([0, *counts]).tolist()
        rows = {
            Path(one): told.slice(start, count) for one, start, count in zip(files.paths, starts, counts, strict=False)
        }
        told = pa.concat_tables([rows[places[one]] for one in sorted(places)])
    return replace(files, folder=folder, paths=tuple(map(str, sorted(places))), told=told)


# Parquet


def _parquet(rng: random.Random, folder: Path, *, wide: int = 0, tiny: bool = False) -> Files:
    """`tiny`: of many small row groups, also of no rows, and with a file of no rows between others."""
    columns, counts = cols.drawn(rng, KINDS, wide=wide)
    counts = [counts[0], 0, *counts[1:]] if tiny else counts
    how, paths = _how(rng, columns), []
    for number, rows in enumerate(counts):
        table = cols.table_of(rng, _shuffled(rng, columns, number), rows)
        paths.append(f"{folder}/{number}.parquet")
        with pq.ParquetWriter(paths[-1], table.schema, **how) as file:
            most, group = rng.choice((1, 3, 20)), _group(rng, rows)
            cuts = [rng.randint(0, rows) if rng.random() < 0.5 else rows]  # row groups of two sizes
            if tiny:
                cuts = np.cumsum([rng.randint(0, most) for _ in range(2 * rows // most)]).clip(0, rows).tolist()
            for first, stop in zip((0, *cuts), (*cuts, rows), strict=True):
                file.write_table(table.slice(first, stop - first), row_group_size=group)
    return Files(folder, tuple(paths), tuple(columns), sum(counts), repr(how))


def _shuffled(rng: random.Random, columns: Sequence[Any], number: int) -> list[Any]:
    """The columns as the file of this number has them, now and then in another order than the first."""
    return rng.sample(list(columns), len(columns)) if number and rng.random() < 0.2 else list(columns)


_DELTAS: dict[Callable[[pa.DataType], bool], list[str]] = {
    pa.types.is_integer: ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT", "PLAIN"],
    pa.types.is_floating: ["BYTE_STREAM_SPLIT", "PLAIN"],
    pa.types.is_string: ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY", "PLAIN"],
    pa.types.is_binary: ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY", "PLAIN"],
    pa.types.is_boolean: ["RLE", "PLAIN"],
}


def _how(rng: random.Random, columns: list[Column]) -> dict[str, Any]:
    """How files are written. Blobs that lie as they are: not compressed, in PLAIN encoding, without a dictionary."""
    named = [one for one in columns if one.name and "." not in one.name]  # pyarrow takes others for what is nested
    words = [one.name for one in named if not one.lies and rng.random() < 0.5]
    codecs = {one.name: "NONE" if one.lies else rng.choice(("NONE", "SNAPPY", "ZSTD")) for one in columns}
    how: dict[str, Any] = {
        "compression": codecs if len(named) == len(columns) else rng.choice(("none", "none", "snappy", "zstd")),
        "use_dictionary": words or False,
        "data_page_size": rng.choice((2**10, 2**16, 2**20)),
        "data_page_version": rng.choice(("1.0", "2.0")),
        "write_statistics": rng.random() < 0.8,
        "write_page_index": rng.random() < 0.3,
        "store_schema": rng.random() < 0.8,
        "version": rng.choice(("1.0", "2.4", "2.6")),
    }
    if rng.random() < 0.4:
        found = {one.name: _encoding(rng, one) for one in named if one.name not in words}
        how["column_encoding"] = {name: encoding for name, encoding in found.items() if encoding} or None
    return how


def _encoding(rng: random.Random, column: Column) -> str:
    if column.lies:
        return "PLAIN"
    return next((rng.choice(known) for test, known in _DELTAS.items() if test(column.type)), "")


def _group(rng: random.Random, rows: int) -> int:
    """Rows of a row group."""
    return max(1, rows // 20, rng.choice((1, 7, 30, 60, rows, rows)))


_PLACES = [
    ["year=2023", "year=2024", "year=2025"],
    ["year=2024/part=a b", "year=2024/part=c", "year=2025/part=a b"],
    ["day=2024-01-01", "day=2024-02-29"],
    ["part=1", "part=x", "part=__HIVE_DEFAULT_PARTITION__"],
    ["part=01", "part=1", "part=%41"],
]
_CARRIED: dict[str, tuple[Kind, float]] = {
    "year": ((pa.int64(), INTEGER, cols.whole(2022, 2026)), 0.0),
    "day": ((pa.date32(), DATE, cols.date), 0.0),
    "part": ((pa.string(), TEXT, cols.one_of("a b", "c", "1", "01", "x", "A")), 0.5),
}


def _hive(rng: random.Random, folder: Path) -> Files:
    """As many files as values of a column that is in no file, in one level of folders or two."""
    columns, _ = cols.drawn(rng, KINDS)
    columns = [one for one in columns if one.name.isidentifier()] or [replace(columns[0], name="one")]
    paths, rows = [], 0
    for place in rng.choice(_PLACES):
        count = rng.choice((0, 1, 50, 200))
        (folder / place).mkdir(parents=True)
        paths.append(f"{folder}/{place}/{rng.choice('abc')}.parquet")
        table = cols.table_of(rng, columns, count)
        pq.write_table(table, paths[-1], row_group_size=rng.choice((20, 60, 500)), compression="none")
        rows += count
    names = sorted(part.split("=")[0] for part in Path(paths[0]).relative_to(folder).parts[:-1])  # as the engine does
    carried = [Column(name, *_CARRIED[name][0], _CARRIED[name][1]) for name in names]
    return Files(folder, tuple(paths), (*columns, *carried), rows, f"hive {paths}", "hive")


# Arrow


def _arrow(rng: random.Random, folder: Path, *, wide: int = 0, coded: bool = False) -> Files:
    """`coded`: in forms that few programs write. Of some files their writer made one large batch, cut to be read."""
    columns, counts = cols.drawn(rng, cols.ARROW_KINDS, wide=wide)
    if large := rng.random() < 0.05:
        columns = [Column(rng.choice(("scan", "text")), *rng.choice(cols.LARGE_KINDS), 0.02), *columns]
        counts = [rng.randint(20, 80) for _ in counts]
    schema = cols.schema_of(columns)
    options = rng.choice(({}, {}, {"compression": "lz4"}, {"compression": "zstd"}, _OLD))
    how, tables, paths = pa.ipc.IpcWriteOptions(**options), [], []
    coders = [rng.choice([*_fitting(one.type), _plain]) for one in schema] if coded else []
    for number, rows in enumerate(counts):
        table = pa.table([_over_rubbish(rng, one, rows) for one in columns], schema=schema)
        written = _coded(table, coders) if coders and options is not _OLD else table  # which knows no run ends
        written = written.select(_shuffled(rng, range(len(columns)), number))  # by number: two may have one name
        paths.append(f"{folder}/{number}.arrow")
        with pa.ipc.new_file(paths[-1], written.schema, options=how) as file:
            for batch in [*written.to_batches()] if large else _batches(rng, written):
                file.write_batch(batch)
        tables.append(table)
    told = pa.concat_tables(tables)
    return Files(folder, tuple(paths), tuple(columns), len(told), repr(options), "arrow_ipc", told)


def _batches(rng: random.Random, table: pa.Table) -> Iterator[pa.RecordBatch]:
    """Slices of the table, some of no rows."""
    (whole,) = table.combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], table.schema)]
    cuts = sorted(rng.randint(0, len(table)) for _ in range(rng.choice((0, 0, 1, 3, 9))))
    for first, stop in zip((0, *cuts), (*cuts, len(table)), strict=True):
        yield whole.slice(first, stop - first)


def _over_rubbish(rng: random.Random, column: Column, rows: int) -> pa.Array:
    """Values with others under the nulls, where such an array can be made of buffers."""
    found = cols.array_of(rng, column, rows)
    if not column.nulls or pa.types.is_null(column.type) or not rows:
        return found
    under = cols.array_of(rng, replace(column, nulls=0.0), rows)
    if pa.types.is_dictionary(column.type):
        return under.from_arrays(_hidden(under.indices, rng, column), under.dictionary)
    return _hidden(under, rng, column)


def _hidden(under: pa.Array, rng: random.Random, column: Column) -> pa.Array:
    kind, buffers = under.type, under.buffers()
    bits = np.packbits([rng.random() >= column.nulls for _ in range(len(under))], bitorder="little").tobytes()
    own, children = len(buffers), []
    if pa.types.is_struct(kind):
        own, children = 1, [under.field(number) for number in range(kind.num_fields)]
    elif pa.types.is_map(kind):
        fields = [kind.key_field, kind.item_field]
        own, children = 2, [pa.StructArray.from_arrays([under.keys, under.items], fields=fields)]
    elif pa.types.is_nested(kind):
        own, children = 1 if pa.types.is_fixed_size_list(kind) else 2, [under.values]
    return pa.Array.from_buffers(kind, len(under), [pa.py_buffer(bits), *buffers[1:own]], children=children)


Coder = Callable[[pa.Array], pa.Array]


def _coded(table: pa.Table, coders: Sequence[Coder]) -> pa.Table:
    """The same values in these forms."""
    arrays = [one(column.combine_chunks()) for one, column in zip(coders, table.columns, strict=True)]
    fields = [pa.field(one.name, array.type, one.nullable) for one, array in zip(table.schema, arrays, strict=True)]
    return pa.table(arrays, schema=pa.schema(fields))


def _fitting(kind: pa.DataType) -> list[Coder]:
    """Forms of a column that its files may have and few programs write; each tells the values of a plain array."""
    if pa.types.is_list(kind):
        return [_views(pa.ListViewArray, pa.int32()), _views(pa.LargeListViewArray, pa.int64())]
    if pa.types.is_fixed_size_list(kind):
        return [_extension(pa.fixed_shape_tensor(kind.value_type, [kind.list_size]))]
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind) or pa.types.is_null(kind):
        return []
    runs = [] if kind in (pa.string_view(), pa.binary_view()) else [pa.int16(), pa.int32(), pa.int64()]
    found: list[Coder] = [partial(pc.run_end_encode, run_end_type=one) for one in runs]
    for digits, small in ((18, pa.decimal64), (9, pa.decimal32)):
        if pa.types.is_decimal128(kind) and kind.precision <= digits:
            found += [partial(pc.cast, target_type=small(kind.precision, kind.scale))] * 3
    if pa.types.is_boolean(kind):
        found += [_extension(pa.bool8(), pa.int8())] * 3
    return found + ([_extension(pa.opaque(kind, "word", "test"))] if kind in (pa.string(), pa.binary()) else [])


def _plain(array: pa.Array) -> pa.Array:
    return array


def _views(form: type[pa.Array], whole: pa.DataType) -> Coder:
    def made(array: pa.Array) -> pa.Array:
        starts, sizes = array.offsets[:-1], pc.fill_null(pc.list_value_length(array), 0)
        return form.from_arrays(starts.cast(whole), sizes.cast(whole), array.values, mask=array.is_null())

    return made


def _extension(kind: pa.DataType, storage: pa.DataType | None = None) -> Coder:
    return lambda array: pa.ExtensionArray.from_storage(kind, array.cast(storage) if storage else array)


# text


def _moment(rng: random.Random) -> dt.datetime:
    return dt.datetime(2020, 2, 28, 22, 30) + dt.timedelta(minutes=rng.randint(-(10**7), 10**6))


def _word(rng: random.Random) -> str:
    return cols.text(rng) or rng.choice(('a,b;c|d\te\n "f"', "1.234,5", "NaN"))


_PAIR = pa.struct([("a", pa.int64()), ("b", pa.string())])
_TEXT_KINDS: list[Kind] = [
    (pa.int64(), INTEGER, cols.one_of(0, 5, 1234, -(2**63), 2**63 - 1)),
    (pa.int64(), INTEGER, cols.whole(-(10**6), 10**6)),
    (pa.float64(), FLOAT, lambda rng: rng.randint(-20, 20) * rng.choice((1, 0.125, 12345))),
    (pa.bool_(), BOOL, cols.one_of(True, False)),
    (pa.date32(), DATE, cols.date),
    (pa.timestamp("us"), STAMP, _moment),
    (pa.string(), TEXT, _word),
]
_JSON_KINDS: list[Kind] = [
    *_TEXT_KINDS,
    (pa.list_(pa.int64()), OTHER, lambda rng: [rng.randint(0, 3) for _ in range(rng.randint(0, 3))]),
    (_PAIR, OTHER, lambda rng: {"a": rng.randint(0, 3), "b": _word(rng)}),
]
_TELLING: Mapping[pa.DataType, Any] = {
    pa.float64(): 0.125, pa.string(): "ab", pa.list_(pa.int64()): [1], _PAIR: {"a": 1, "b": "ab"},
}  # fmt: skip


def _text(rng: random.Random, folder: Path, kind: str) -> Files:
    """One to five files of CSV or JSON lines; some hold no rows."""
    rows, count = rng.choice((1, 30, 400, 2500)), rng.choice((1, 2, 3, 5))
    width = rng.choice((2, 5, 5, 12, 60))
    names = [*rng.sample(cols.PLAIN_NAMES, min(width, 6)), *(f"w{n}" for n in range(width - 6))]
    kinds = _TEXT_KINDS if kind == "csv" else _JSON_KINDS
    columns = [cols.identity("id"), *(Column(one, *rng.choice(kinds), rng.choice((0.0, 0.2, 0.9))) for one in names)]
    options = _options(rng, width) if kind == "csv" else {}
    if not options.get("header", True):
        columns = [replace(one, name=f"column{n:0{len(str(len(columns) - 1))}}") for n, one in enumerate(columns)]
    table = pa.table([_telling(rng, one, rows) for one in columns], schema=cols.schema_of(columns))
    cuts = sorted(rng.randint(0, rows) for _ in range(count - 1))
    ending, opened = rng.choice([("", open)] * 3 + [(".gz", gzip.open)])
    for number, (first, stop) in enumerate(zip((0, *cuts), (*cuts, rows), strict=True)):
        text = (_as_csv if kind == "csv" else _as_json)(rng, table.slice(first, stop - first), options)
        with opened(folder / f"{number}.{kind}{ending}", "wb") as file:
            file.write(text)
    if options.get("all_text"):  # every field as it is written
        told = [
            [None if one is None else _field(one, options) for one in column.to_pylist()] for column in table.columns
        ]
        table = pa.table([pa.array(one, pa.string()) for one in told], names=table.column_names)
        columns = [Column(one.name, pa.string(), TEXT, _word, one.nulls) for one in columns]
    how = f"{count} files of {kind}{ending} {options}"
    return Files(folder, (), tuple(columns), rows, how, kind, table, options)


def _telling(rng: random.Random, column: Column, rows: int) -> pa.Array:
    """Values of which one, anywhere, tells the type."""
    values = cols.array_of(rng, column, rows).to_pylist()
    if not column.unique:
        values[rng.randrange(rows)] = _TELLING.get(column.type) or column.draw(rng)
    return pa.array(values, column.type)


def _options(rng: random.Random, columns: int) -> dict[str, Any]:
    found: dict[str, Any] = {"decimal": ","} if rng.random() < 0.4 else {}
    if rng.random() < 0.4:
        found["thousands"] = rng.choice("'. " if found else "', ")
    found["delimiter"] = ";" if "," in found.values() else rng.choice(",;|\t")
    more = (
        (0.5, {"date_format": "%d.%m.%Y", "timestamp_format": "%d.%m.%Y %H:%M"}),
        (0.3, {"null_text": rng.choice(("NA", "-", "\\N"))}),
        (0.3, {"encoding": rng.choice(("utf-8", "latin-1", "utf-16"))}),
        (0.2, {"header": False}),
        (0.1, {"all_text": True}),
        (0.3 * (columns > 2), {"skip_bad_lines": rng.choice((1, 5))}),
    )
    for share, option in more:
        found |= option if rng.random() < share else {}
    return found


def _as_csv(rng: random.Random, table: pa.Table, options: Mapping[str, Any]) -> bytes:
    out, named = io.StringIO(), options.get("header", True)
    # The engine takes the first line's end for all, also one within quotes.
    ending = rng.choice(("\n", "\r\n" if named else "\n"))
    lines = csv.writer(out, delimiter=options["delimiter"], lineterminator=ending)
    rows = [*zip(*([_field(value, options) for value in one.to_pylist()] for one in table.columns), strict=True)]
    if rows and options.get("skip_bad_lines", 0) > 1 and rng.random() < 0.5:
        at = rng.randint(0, len(rows))
        rows.insert(at, (*rows[min(at, len(rows) - 1)], "one", "more"))
    lines.writerows([table.column_names, *rows] if named else rows)
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


def _as_json(rng: random.Random, table: pa.Table, options: Mapping[str, Any]) -> bytes:
    """Keys without a value are left out of some lines."""
    lines = []
    for number, row in enumerate(table.to_pylist()):
        kept = {key: one for key, one in row.items() if one is not None or not number or rng.random() < 0.5}
        lines.append(json.dumps(kept, default=str, ensure_ascii=rng.random() < 0.5) + rng.choice(("\n", "\n", "\r\n")))
    return "".join(lines).encode()


# tables of PostgreSQL

_LONG = ("\\N", '\\N,"', "a\r\nb", "ü😀" * 500, "NULL", "{}", "\x7f", "\\.")
_STAMPS = (dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999), dt.datetime(2020, 2, 29, 0, 0, 0, 1))
_SERVER_TYPES = {
    pa.bool_(): ["boolean"], pa.int16(): ["smallint"], pa.int32(): ["integer"], pa.int64(): ["bigint"],
    pa.float32(): ["real"], pa.float64(): ["double precision"], pa.decimal128(8, 2): ["numeric(8,2)"],
    pa.decimal128(38, 10): ["numeric(38,10)"], pa.string(): ["text", "varchar(9000)"], pa.binary(): ["bytea"],
    pa.date32(): ["date"], pa.time64("us"): ["time"], pa.timestamp("us"): ["timestamp"],
    pa.timestamp("us", tz="UTC"): ["timestamptz"], pa.list_(pa.int32()): ["integer[]"],
    pa.list_(pa.string()): ["text[]"],
}  # fmt: skip


def _server_text(rng: random.Random) -> str:
    return rng.choice((cols.text(rng), rng.choice(_LONG)))


def _several(*draws: cols.Draw) -> cols.Draw:
    return lambda rng: [rng.choice(draws)(rng) for _ in range(rng.randint(0, 3))]


_SERVER_KINDS: list[Kind] = [
    *(one for one in cols.COMMON if one[0] in _SERVER_TYPES),
    (pa.string(), TEXT, _server_text),
    (pa.string(), TEXT, _server_text),
    (pa.list_(pa.string()), OTHER, _several(cols.one_of(None), *[_server_text] * 4)),
    (pa.list_(pa.int32()), OTHER, _several(cols.one_of(None, 0, -(2**31), 2**31 - 1))),
    (pa.time64("us"), OTHER, cols.one_of(dt.time(0), dt.time(23, 59, 59, 999999))),
    (pa.timestamp("us"), STAMP, cols.one_of(*_STAMPS)),
    (pa.timestamp("us", tz="UTC"), ZONED, cols.one_of(*(one.replace(tzinfo=dt.UTC) for one in _STAMPS))),
    (pa.binary(), cols.BLOB, lambda rng: rng.randbytes(rng.choice((0, 3, 20_000)))),
]


def _postgres(rng: random.Random, folder: Path) -> Files:
    """A table, which `fill` makes in a database."""
    columns, counts = cols.drawn(rng, _SERVER_KINDS, wide=rng.choice((0, 0, 0, 40, 300)))
    made: list[tuple[str, str | None]] = [(one.name, rng.choice(_SERVER_TYPES[one.type])) for one in columns]
    if rng.random() < 0.3:
        made.insert(rng.randint(0, len(made)), ("gone", None))
    told = cols.table_of(rng, columns, counts[0])
    return Files(folder, (), tuple(columns), len(told), "a table", "postgres", told, server_types=tuple(made))


def fill(url: str, table: str, files: Files) -> None:
    """Make the table of these files, with their rows."""
    assert files.told is not None
    listed = ", ".join(f"{quoted(name)} {kind or 'integer'}" for name, kind in files.server_types)
    with psycopg.connect(url) as con, con.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} ({listed})".encode())
        for name, kind in files.server_types:
            if kind is None:
                cursor.execute(f"ALTER TABLE {table} DROP COLUMN {quoted(name)}".encode())
        with cursor.copy(f"COPY {table} FROM STDIN (FORMAT binary)".encode()) as copy:
            copy.set_types([kind.partition("(")[0] for _, kind in files.server_types if kind])
            for row in zip(*(column.to_pylist() for column in files.told.columns), strict=True):
                copy.write_row(row)


def _wide(rng: random.Random, folder: Path) -> Files:
    """More columns than one reads at a glance."""
    return rng.choice((_parquet, _arrow))(rng, folder, wide=rng.choice((20, 60, 300)))


KINDS_OF_FILES: Mapping[str, tuple[Callable[[random.Random, Path], Files], int]] = {  # and how often
    "parquet": (_parquet, 60),
    "arrow": (_arrow, 28),
    "hive": (_hive, 6),
    "csv": (partial(_text, kind="csv"), 7),
    "jsonl": (partial(_text, kind="jsonl"), 7),
    "wide": (_wide, 8),
    "coded": (partial(_arrow, coded=True), 8),
    "groups": (partial(_parquet, tiny=True), 4),
    "postgres": (_postgres, 6),
}
