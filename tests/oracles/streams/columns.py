"""Random columns: names, types and values of every kind, from one seed.

Values are drawn from a few for each column, so that conditions meet some of the rows. Two columns tell rows apart: one
of numbers, and blobs.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa

from tests.support.images import POOL

NAMES = [
    "id", "age", "country", "image", "größe", "a b", "a.b", "x.image", "it's", 'say "so"', "hanse_end", "hanse.at",
    "r_0", "CamelCase", "UPPER", "select", "per%cent", "a/b", "src", "rowid", "C1", "_1", "*", "1", "naïve", "e\u0301",
]  # fmt: skip
PLAIN_NAMES = [one for one in NAMES if one.isidentifier() and (one.isascii() or one == "größe") and one != "id"]
ODD = ["v0", "a,b", " padded ", "C0", "tab\tname"]  # that cannot be asked for by their name, or the engine gives itself
RESERVED = ["file_row_number", "File_Index", "FILENAME", "filename"]
PAIRS = [("image", "IMAGE"), ("Age", "age"), ("größe", "GRÖSSE"), ("straße", "strasse"), ("v0", "C0")]

INTEGER, FLOAT, DECIMAL, TEXT = "integer", "float", "decimal", "text"
BOOL, DATE, STAMP, ZONED, OTHER, BLOB = "bool", "date", "stamp", "zoned", "other", "blob"
_START = dt.datetime(2020, 2, 28, 22, 30)
_TEXTS = ["ab", "abc", "b", "Ba", "", "c d", "it's", "ü#1", "0", "10", "null", "%", "a" * 40, "Größe"]

Draw = Callable[[random.Random], Any]
Kind = tuple[pa.DataType, str, Draw]


@dataclass(frozen=True, slots=True)
class Column:
    """`lies`: blobs that are large, and written so that they may lie in the file as they are."""

    name: str
    type: pa.DataType
    family: str
    draw: Draw
    nulls: float
    unique: bool = False
    lies: bool = False


def drawn(rng: random.Random, kinds: Sequence[Kind], *, wide: int = 0) -> tuple[list[Column], list[int]]:
    """The columns of a dataset, and the rows of its files: fewer where it is wide."""
    large, width = rng.random() < 0.6, 1 + wide // 20
    kinds = PLAIN if rng.random() < 0.4 else kinds
    blobs = rng.choice((1, 1, 2, 3)) if large else rng.choice((0, 0, 1))
    names = _names(rng, blobs + rng.randint(2, 6))
    columns = [_blob(rng, name, large=large) for name in names[:blobs]]
    columns += [identity(names[blobs]), *(column(rng, name, kinds) for name in names[blobs + 1 :])]
    columns += [column(rng, f"w{number}", kinds) for number in range(wide)]
    counts = [-(-_rows(rng, large=large) // width) for _ in range(rng.choice((1, 1, 2, 3)))]
    return rng.sample(columns, len(columns)), counts


def identity(name: str) -> Column:
    """A column that numbers the rows."""
    return Column(name, pa.int64(), INTEGER, whole(0, 99), 0.0, unique=True)


def column(rng: random.Random, name: str, kinds: Sequence[Kind]) -> Column:
    return Column(name, *rng.choice(kinds), rng.choice((0.0, 0.0, 0.15, 0.6, 1.0)))


def _rows(rng: random.Random, *, large: bool) -> int:
    most = 130 if large else 3000
    return rng.choice((0, 1, 17) if rng.random() < 0.15 else (most // 2, rng.randint(2, most), rng.randint(2, most)))


def _names(rng: random.Random, count: int) -> list[str]:
    names = rng.sample(NAMES, count)
    for share, chosen in ((0.05, RESERVED[:1]), (0.03, RESERVED[1:]), (0.1, ODD)):
        if rng.random() < share:
            names[rng.randrange(count)] = rng.choice(chosen)
    if rng.random() < 0.04:
        names[:2] = rng.choice(PAIRS)
    return rng.sample(names, count)


def _blob(rng: random.Random, name: str, *, large: bool) -> Column:
    low, high = rng.choice(((17_000, 30_000), (15_000, 70_000), (0, 70_000), (60_000, 90_000))) if large else (0, 900)

    def draw(rng: random.Random) -> bytes:
        start = rng.randrange(2**18)
        return b"" if rng.random() < 0.05 else POOL[start : start + rng.randint(low, high)]

    lies = large and rng.random() < 0.85
    nulls = rng.choice((0.0, 0.0, 0.0, 0.02, 0.4)) if large else rng.choice((0.0, 0.3))
    return Column(name, pa.binary(), BLOB, draw, nulls, unique=large, lies=lies)


def schema_of(columns: Sequence[Column]) -> pa.Schema:
    return pa.schema(
        [pa.field(one.name, one.type, nullable=one.nulls > 0 or pa.types.is_null(one.type)) for one in columns]
    )


def table_of(rng: random.Random, columns: Sequence[Column], rows: int) -> pa.Table:
    return pa.table([array_of(rng, one, rows) for one in columns], schema=schema_of(columns))


def array_of(rng: random.Random, column: Column, rows: int) -> pa.Array:
    if column.unique:
        values = [column.draw(rng) for _ in range(rows)] if column.family == BLOB else list(range(rows))
    else:
        values = rng.choices([column.draw(rng) for _ in range(8)], k=rows)
    if column.nulls:
        values = [None if rng.random() < column.nulls else value for value in values]
    return pa.array(values, column.type)


# values


def whole(low: int, high: int) -> Draw:
    return lambda rng: rng.randint(low, high)


def one_of(*values: Any) -> Draw:
    return lambda rng: rng.choice(values)


def _quarters(rng: random.Random) -> float:
    return rng.choice((rng.randint(-20, 20) / 4, rng.randint(-20, 20) / 4, 0.0, -0.0, 1e30, float("nan"), float("inf")))


def _decimals(digits: int, scale: int) -> Draw:
    most = 10**digits - 1
    return lambda rng: Decimal(rng.choice((rng.randint(-500, 500), most, -most))).scaleb(-scale)


def date(rng: random.Random) -> dt.date:
    return dt.date(2020, 1, 1) + dt.timedelta(days=rng.randint(-20_000, 500))


def _stamp(rng: random.Random) -> dt.datetime:
    return _START + dt.timedelta(hours=rng.randint(-9000, 60))


def text(rng: random.Random) -> str:
    return rng.choice(_TEXTS)


def _some(draw: Draw, most: int = 3) -> Draw:
    return lambda rng: [None if rng.random() < 0.1 else draw(rng) for _ in range(rng.randint(0, most))]


_FAR_DAYS = (0, 18_321, 2_932_896, 2_932_897, 5_000_000, -719_162, -719_163, -1_000_000)  # years 1 and 9999 end there
_FAR_MOMENTS = (0, 1, 253_402_300_800_000_000, -62_135_596_800_000_001, 2**62)
_DAYS = [day for day in _FAR_DAYS if -719_163 < day < 2_932_897]  # what is nested, Python is to read

PLAIN: list[Kind] = [
    (pa.int32(), INTEGER, whole(0, 9)),
    (pa.int64(), INTEGER, one_of(0, 5, 10**12, -(2**63), 2**63 - 1)),
    (pa.float64(), FLOAT, _quarters),
    (pa.bool_(), BOOL, one_of(True, False)),
    (pa.string(), TEXT, text),
    (pa.string(), TEXT, text),
    (pa.date32(), DATE, date),
]
"""Whose types in Arrow are those in which the engine gives them."""
COMMON: list[Kind] = [
    *PLAIN,
    (pa.int8(), INTEGER, whole(-9, 9)),
    (pa.int16(), INTEGER, whole(-300, 300)),
    (pa.uint8(), INTEGER, whole(0, 255)),
    (pa.uint32(), INTEGER, whole(0, 2**32 - 1)),
    (pa.uint64(), INTEGER, one_of(0, 7, 2**64 - 1)),
    (pa.float32(), FLOAT, _quarters),
    (pa.large_string(), TEXT, text),
    (pa.dictionary(pa.int32(), pa.string()), TEXT, text),
    (pa.timestamp("us"), STAMP, _stamp),
    (pa.timestamp("ms"), STAMP, _stamp),
    (pa.timestamp("ns"), STAMP, _stamp),
    *[(pa.timestamp("us", tz="UTC"), ZONED, lambda rng: _stamp(rng).replace(tzinfo=dt.UTC))] * 4,
    (pa.time64("us"), OTHER, lambda rng: dt.time(rng.randint(0, 23), 30)),
    (pa.decimal128(4, 1), DECIMAL, _decimals(4, 1)),
    (pa.decimal128(8, 2), DECIMAL, _decimals(8, 2)),
    (pa.decimal128(18, 0), DECIMAL, _decimals(18, 0)),
    (pa.decimal128(38, 10), DECIMAL, _decimals(28, 10)),
    (pa.list_(pa.int32()), OTHER, _some(whole(0, 3))),
    (pa.list_(pa.string()), OTHER, _some(text)),
    (pa.list_(pa.list_(pa.float32())), OTHER, _some(_some(whole(0, 3)))),
    (pa.list_(pa.float32(), 3), OTHER, lambda rng: [float(rng.randint(0, 9)) for _ in range(3)]),
    (pa.struct([("a", pa.int32()), ("b", pa.string())]), OTHER, lambda rng: {"a": rng.randint(0, 3), "b": text(rng)}),
    (
        pa.struct([("l", pa.list_(pa.int16())), ("b", pa.binary())]),
        OTHER,
        lambda rng: {"l": [1, None], "b": text(rng).encode()},
    ),
    (pa.map_(pa.string(), pa.int32()), OTHER, lambda rng: [(word, rng.randint(0, 3)) for word in rng.sample("abc", 2)]),
    (pa.binary(), BLOB, one_of(b"", b"a", b"\x00\xff", b"ab")),
    (pa.binary(4), BLOB, lambda rng: rng.randbytes(4)),
]
KINDS: list[Kind] = [  # with moments far away, numbers within lists, long texts
    *COMMON,
    (pa.string(), TEXT, lambda rng: rng.choice(("", "=1+1", 'a "b",\r\n', "\t", "ü" * rng.randint(0, 9_000)))),
    (pa.string(), OTHER, lambda rng: "ü\n" * rng.randint(0, 40_000)),
    (pa.date32(), OTHER, one_of(*_FAR_DAYS)),
    (pa.timestamp("us"), OTHER, one_of(*_FAR_MOMENTS)),
    (pa.timestamp("us", tz="Europe/Berlin"), OTHER, one_of(*_FAR_MOMENTS)),
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
ARROW_KINDS: list[Kind] = [
    *KINDS,
    (pa.string_view(), TEXT, text),
    (pa.string_view(), TEXT, text),
    (pa.large_binary(), BLOB, one_of(b"", b"a", b"\x00" * 20)),
    (pa.binary_view(), BLOB, one_of(b"", b"a", b"\x00" * 20)),
    (pa.dictionary(pa.int8(), pa.large_string()), TEXT, text),
    (pa.dictionary(pa.uint16(), pa.int64()), INTEGER, whole(0, 9)),
    (pa.large_list(pa.int8()), OTHER, lambda rng: [1, None, 2][: rng.randint(0, 3)]),
    (pa.list_(pa.dictionary(pa.int8(), pa.string())), OTHER, lambda rng: ["a", None, "b"][: rng.randint(0, 3)]),
    (pa.struct([("v", pa.string_view()), ("n", pa.bool_())]), OTHER, lambda rng: {"v": "x" * 20, "n": None}),
    (pa.date64(), DATE, date),
    (pa.uint16(), INTEGER, whole(0, 2**16 - 1)),
    (pa.null(), OTHER, one_of(None)),
]
LARGE_KINDS: list[Kind] = [
    (pa.binary(), BLOB, lambda rng: rng.randbytes(rng.randint(600_000, 900_000))),
    (pa.string_view(), OTHER, lambda rng: rng.choice("aü") * rng.randint(400_000, 900_000)),
    (pa.list_(pa.float32()), OTHER, lambda rng: [0.5, None, 2.0] * rng.randint(0, 60_000)),
]
