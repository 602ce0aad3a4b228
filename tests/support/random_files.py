"""Random datasets of Parquet files: names, types, encodings, pages, row groups and blobs of every kind, from one seed.

Values are drawn from a few for each column, so that conditions meet some of the rows. Two columns tell rows apart: one
of numbers, and blobs.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.images import POOL

NAMES = [
    "id", "age", "country", "image", "größe", "a b", "a.b", "x.image", "it's", 'say "so"', "hanse_end", "hanse.at",
    "r_0", "CamelCase", "UPPER", "select", "per%cent", "a/b", "src", "rowid", "C1", "_1", "*", "1", "naïve", "e\u0301",
]  # fmt: skip
ODD = ["v0", "a,b", " padded ", "C0", "tab\tname"]  # that cannot be asked for by their name, or the engine gives itself
RESERVED = ["file_row_number", "File_Index", "FILENAME", "filename"]
PAIRS = [("image", "IMAGE"), ("Age", "age"), ("größe", "GRÖSSE"), ("straße", "strasse")]

INTEGER, FLOAT, DECIMAL, TEXT = "integer", "float", "decimal", "text"
BOOL, DATE, STAMP, ZONED, OTHER, BLOB = "bool", "date", "stamp", "zoned", "other", "blob"
_START = dt.datetime(2020, 2, 28, 22, 30)
_TEXTS = ["ab", "abc", "b", "Ba", "", "c d", "it's", "ü#1", "0", "10", "null", "%", "a" * 40, "Größe"]


@dataclass(frozen=True, slots=True)
class Column:
    """`lies`: blobs that are large, and written so that they may lie in the file as they are."""

    name: str
    type: pa.DataType
    family: str
    draw: Callable[[random.Random], Any]
    nulls: float
    unique: bool = False
    lies: bool = False


@dataclass(frozen=True, slots=True)
class Files:
    """A dataset in a folder; `paths` in the order of its rows, `columns` as they stand in the first.

    `told`: the rows, where nobody else's reader of such files is to be believed.
    """

    folder: Path
    paths: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: int
    how: str  # they were written
    kind: str = "parquet"
    told: pa.Table | None = None
    options: Mapping[str, Any] = field(default_factory=dict)  # of the source
    made: str = ""  # as one of `random_sources.KINDS_OF_FILES`

    @property
    def refused(self) -> bool:
        """Whether two names differ in nothing but case."""
        return len({one.name.casefold() for one in self.columns}) < len(self.columns)


def write(rng: random.Random, folder: Path, rare: Sequence[Kind], *, wide: int = 0, tiny: bool = False) -> Files:
    """A dataset of one to three files. `rare`: kinds of columns that there may be beside the others; `wide`: so many
    columns more; `tiny`: of many small row groups, also of no rows, and with a file of no rows between others."""
    columns, counts = drawn(rng, [*KINDS, *rare], wide=wide)
    counts = [counts[0], 0, *counts[1:]] if tiny else counts
    how = _how(rng, columns, max(counts))
    paths: list[str] = []
    for number, rows in enumerate(counts):
        mine = rng.sample(columns, len(columns)) if number and rng.random() < 0.2 else columns
        table = pa.table([array_of(rng, one, rows) for one in mine], schema=schema_of(mine))
        paths.append(f"{folder}/{number}.parquet")
        with pq.ParquetWriter(paths[-1], table.schema, **how) as file:
            if tiny:
                _write_tiny(rng, file, table)
                continue
            cut = rng.randint(0, rows) if rng.random() < 0.5 else rows  # row groups of two sizes
            for part in (table.slice(0, cut), table.slice(cut)):
                file.write_table(part, row_group_size=_group(rng, rows))
    return Files(folder, tuple(paths), tuple(columns), sum(counts), repr(how))


def _write_tiny(rng: random.Random, file: pq.ParquetWriter, table: pa.Table) -> None:
    at, most = 0, rng.choice((1, 3, 20))
    while at < len(table):
        rows = rng.randint(0, most)
        file.write_table(table.slice(at, rows))
        at += rows


def drawn(rng: random.Random, kinds: Sequence[Kind], *, wide: int = 0) -> tuple[list[Column], list[int]]:
    """The columns of a dataset, and the rows of its files: fewer where it is wide."""
    large, width = rng.random() < 0.6, 1 + wide // 20
    kinds = PLAIN if rng.random() < 0.4 else kinds
    columns = _columns(rng, large=large, kinds=kinds)
    counts = [_rows(rng, large=large) for _ in range(rng.choice((1, 1, 2, 3)))]
    if not wide:
        return columns, counts
    columns += [_column(rng, f"w{number}", kinds) for number in range(wide)]
    return rng.sample(columns, len(columns)), [-(-rows // width) for rows in counts]


def _rows(rng: random.Random, *, large: bool) -> int:
    few = rng.random() < 0.15
    most = 130 if large else 3000
    return rng.choice((0, 1, 17)) if few else rng.choice((most // 2, rng.randint(2, most), rng.randint(2, most)))


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema(
        [pa.field(one.name, one.type, nullable=one.nulls > 0 or pa.types.is_null(one.type)) for one in columns]
    )


def array_of(rng: random.Random, column: Column, rows: int) -> pa.Array:
    if column.unique:
        values = [column.draw(rng) for _ in range(rows)] if column.family == BLOB else list(range(rows))
    else:
        values = rng.choices([column.draw(rng) for _ in range(8)], k=rows)
    if column.nulls:
        values = [None if rng.random() < column.nulls else value for value in values]
    return pa.array(values, column.type)


def _columns(rng: random.Random, *, large: bool, kinds: Sequence[Kind]) -> list[Column]:
    blobs = rng.choice((1, 1, 2, 3)) if large else rng.choice((0, 0, 1))
    names = _names(rng, blobs + rng.randint(2, 6))
    columns = [_blob(rng, name, large=large) for name in names[:blobs]]
    columns.append(Column(names[blobs], pa.int64(), INTEGER, _whole(0, 99), 0.0, unique=True))
    columns += [_column(rng, name, kinds) for name in names[blobs + 1 :]]
    return rng.sample(columns, len(columns))


def _names(rng: random.Random, count: int) -> list[str]:
    names = rng.sample(NAMES, count)
    for share, chosen in ((0.05, RESERVED[:1]), (0.03, RESERVED[1:]), (0.1, ODD)):
        if rng.random() < share:
            names[rng.randrange(count)] = rng.choice(chosen)
    if rng.random() < 0.02:
        names[:2] = rng.choice(PAIRS)
    if rng.random() < 0.02:
        names[:2] = ["v0", "C0"]  # as the engine calls a first column without a name
    return rng.sample(names, count)


def _blob(rng: random.Random, name: str, *, large: bool) -> Column:
    low, high = rng.choice(((17_000, 30_000), (15_000, 70_000), (0, 70_000), (60_000, 90_000))) if large else (0, 900)

    def draw(rng: random.Random) -> bytes:
        start = rng.randrange(2**18)
        return b"" if rng.random() < 0.05 else POOL[start : start + rng.randint(low, high)]

    lies = large and rng.random() < 0.85
    nulls = rng.choice((0.0, 0.0, 0.0, 0.02, 0.4)) if large else rng.choice((0.0, 0.3))
    return Column(name, pa.binary(), BLOB, draw, nulls, unique=large, lies=lies)


def _column(rng: random.Random, name: str, kinds: Sequence[Kind]) -> Column:
    kind, family, draw = rng.choice(kinds)
    return Column(name, kind, family, draw, rng.choice((0.0, 0.0, 0.15, 0.6, 1.0)))


def _whole(low: int, high: int) -> Callable[[random.Random], int]:
    return lambda rng: rng.randint(low, high)


def _quarters(rng: random.Random) -> float:
    return rng.choice((rng.randint(-20, 20) / 4, rng.randint(-20, 20) / 4, 0.0, -0.0, 1e30, float("nan"), float("inf")))


def _decimals(digits: int, scale: int) -> Callable[[random.Random], Decimal]:
    most = 10**digits - 1
    return lambda rng: Decimal(rng.choice((rng.randint(-500, 500), most, -most))).scaleb(-scale)


def date(rng: random.Random) -> dt.date:
    return dt.date(2020, 1, 1) + dt.timedelta(days=rng.randint(-20_000, 500))


def _stamp(rng: random.Random) -> dt.datetime:
    return _START + dt.timedelta(hours=rng.randint(-9000, 60))


def text(rng: random.Random) -> str:
    return rng.choice(_TEXTS)


def _some(draw: Callable[[random.Random], Any], most: int = 3) -> Callable[[random.Random], list[Any]]:
    return lambda rng: [None if rng.random() < 0.1 else draw(rng) for _ in range(rng.randint(0, most))]


_FAR_DAYS = (0, 18_321, 2_932_896, 2_932_897, 5_000_000, -719_162, -719_163, -1_000_000)  # years 1 and 9999 end there
_FAR_MOMENTS = (0, 1, 253_402_300_800_000_000, -62_135_596_800_000_001, 2**62)
_DAYS = [day for day in _FAR_DAYS if -719_163 < day < 2_932_897]  # what is nested, Python is to read

Kind = tuple[pa.DataType, str, Callable[[random.Random], Any]]
KINDS: list[Kind] = [
    (pa.int8(), INTEGER, _whole(-9, 9)),
    (pa.int16(), INTEGER, _whole(-300, 300)),
    (pa.int32(), INTEGER, _whole(0, 9)),
    (pa.int64(), INTEGER, lambda rng: rng.choice((0, 5, 10**12, -(2**63), 2**63 - 1))),
    (pa.uint8(), INTEGER, _whole(0, 255)),
    (pa.uint32(), INTEGER, _whole(0, 2**32 - 1)),
    (pa.uint64(), INTEGER, lambda rng: rng.choice((0, 7, 2**64 - 1))),
    (pa.float32(), FLOAT, _quarters),
    (pa.float64(), FLOAT, _quarters),
    (pa.bool_(), BOOL, lambda rng: rng.random() < 0.5),
    (pa.string(), TEXT, text),
    (pa.string(), TEXT, text),
    (pa.large_string(), TEXT, text),
    (pa.dictionary(pa.int32(), pa.string()), TEXT, text),
    (pa.date32(), DATE, date),
    (pa.timestamp("us"), STAMP, _stamp),
    (pa.timestamp("ms"), STAMP, _stamp),
    (pa.timestamp("ns"), STAMP, _stamp),
    *[(pa.timestamp("us", tz="UTC"), ZONED, lambda rng: _stamp(rng).replace(tzinfo=dt.UTC))] * 4,
    (pa.time64("us"), OTHER, lambda rng: dt.time(rng.randint(0, 23), 30)),
    (pa.decimal128(4, 1), DECIMAL, _decimals(4, 1)),
    (pa.decimal128(8, 2), DECIMAL, _decimals(8, 2)),
    (pa.decimal128(18, 0), DECIMAL, _decimals(18, 0)),
    (pa.decimal128(38, 10), DECIMAL, _decimals(28, 10)),
    (pa.list_(pa.int32()), OTHER, _some(_whole(0, 3))),
    (pa.list_(pa.string()), OTHER, _some(text)),
    (pa.list_(pa.list_(pa.float32())), OTHER, _some(_some(_whole(0, 3)))),
    (pa.list_(pa.float32(), 3), OTHER, lambda rng: [float(rng.randint(0, 9)) for _ in range(3)]),
    (pa.struct([("a", pa.int32()), ("b", pa.string())]), OTHER, lambda rng: {"a": rng.randint(0, 3), "b": text(rng)}),
    (
        pa.struct([("l", pa.list_(pa.int16())), ("b", pa.binary())]),
        OTHER,
        lambda rng: {"l": [1, None], "b": text(rng).encode()},
    ),
    (pa.map_(pa.string(), pa.int32()), OTHER, lambda rng: [(word, rng.randint(0, 3)) for word in rng.sample("abc", 2)]),
    (pa.binary(), BLOB, lambda rng: rng.choice((b"", b"a", b"\x00\xff", b"ab"))),
    (pa.binary(4), BLOB, lambda rng: rng.randbytes(4)),
]
PLAIN = [one for one in KINDS if one[0] in (pa.int32(), pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.date32())]
"""Whose types in Arrow are those in which the engine gives them."""
RARE: list[Kind] = [
    (pa.string(), TEXT, lambda rng: rng.choice(("", "=1+1", 'a "b",\r\n', "\t", "ü" * rng.randint(0, 9_000)))),
    (pa.string(), OTHER, lambda rng: "ü\n" * rng.randint(0, 40_000)),
    (pa.date32(), OTHER, lambda rng: rng.choice(_FAR_DAYS)),
    (pa.timestamp("us"), OTHER, lambda rng: rng.choice(_FAR_MOMENTS)),
    (pa.timestamp("us", tz="Europe/Berlin"), OTHER, lambda rng: rng.choice(_FAR_MOMENTS)),
    (pa.timestamp("s"), STAMP, _stamp),
    (pa.time64("ns"), OTHER, lambda rng: rng.randrange(86_400 * 10**9)),
    (pa.decimal128(38, 38), OTHER, lambda rng: Decimal(f"{rng.choice((0, 1, -5, 10**38 - 1))}e-38")),
    (pa.list_(pa.float64()), OTHER, _some(_quarters)),
    (pa.list_(pa.timestamp("us", tz="UTC")), OTHER, _some(_stamp)),
    (
        pa.list_(pa.struct([("a b", pa.date32()), ('"', pa.decimal128(5, 2))])),
        OTHER,
        _some(lambda rng: {"a b": rng.choice(_DAYS), '"': Decimal("1.50")}),
    ),
    (
        pa.map_(pa.int16(), pa.list_(pa.string())),
        OTHER,
        lambda rng: [(n, ["", None]) for n in range(rng.randint(0, 2))],
    ),
    (
        pa.list_(pa.struct([("f", pa.list_(pa.float32(), 2))]), 2),
        OTHER,
        lambda rng: [{"f": [0.5, rng.choice((None, float("nan"), -0.0))]}, rng.choice((None, {"f": None}))],
    ),
]
"""Moments far away, numbers within lists, long texts: not among the datasets that the suite has chosen."""


_DELTAS: dict[Callable[[pa.DataType], bool], list[str]] = {
    pa.types.is_integer: ["DELTA_BINARY_PACKED", "BYTE_STREAM_SPLIT", "PLAIN"],
    pa.types.is_floating: ["BYTE_STREAM_SPLIT", "PLAIN"],
    pa.types.is_string: ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY", "PLAIN"],
    pa.types.is_binary: ["DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY", "PLAIN"],
    pa.types.is_boolean: ["RLE", "PLAIN"],
}


def _how(rng: random.Random, columns: list[Column], rows: int) -> dict[str, Any]:
    """How files are written. Blobs that lie as they are: not compressed, in PLAIN encoding, without a dictionary."""
    stored = {one.name for one in columns if one.lies}
    named = [one for one in columns if one.name and "." not in one.name]  # pyarrow takes others for what is nested
    words = [one.name for one in named if one.name not in stored and rng.random() < 0.5]
    codecs = {one.name: "NONE" if one.name in stored else rng.choice(("NONE", "SNAPPY", "ZSTD")) for one in columns}
    if any("." in name for name in codecs):
        codecs = {}
    how: dict[str, Any] = {
        "compression": codecs or rng.choice(("none", "none", "snappy", "zstd")),
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
