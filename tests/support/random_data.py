"""A small federation of every type that owners may show, for random questions.

Nulls, ties and double keys are frequent. DOUBLE and FLOAT values are quarters, so that no order of addition shows.
"""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal

import pyarrow as pa

from connector.federation.planner.model import Partition
from tests.support.federation import Federation

INTEGER, DOUBLE, DECIMAL, TEXT, DATE, BOOL = "int", "double", "decimal", "text", "date", "bool"
STAMP, ZONED, TIME, BLOB, UUID, LIST = "stamp", "zoned", "time", "blob", "uuid", "list"
NUMBERS = (INTEGER, DOUBLE, DECIMAL)
# Column: its kind, what Arrow calls it, and its type where Arrow has none.
COLUMNS: dict[str, tuple[str, pa.DataType, str]] = {
    "id": (INTEGER, pa.int32(), ""),
    "k": (INTEGER, pa.int32(), ""),
    "x": (DOUBLE, pa.float64(), ""),
    "m": (DECIMAL, pa.decimal128(8, 2), ""),
    "s": (TEXT, pa.string(), ""),
    "d": (DATE, pa.date32(), ""),
    "f": (BOOL, pa.bool_(), ""),
    "b": (INTEGER, pa.int64(), ""),
    "w": (INTEGER, pa.int16(), ""),
    "g": (DOUBLE, pa.float32(), ""),
    "v": (DECIMAL, pa.decimal128(24, 3), ""),
    "t": (STAMP, pa.timestamp("us"), ""),
    "z": (ZONED, pa.timestamp("us", tz="UTC"), ""),
    "h": (TIME, pa.time64("us"), ""),
    "y": (BLOB, pa.binary(), ""),
    "q": (UUID, pa.string(), "UUID"),
    "hu": (INTEGER, pa.int64(), "HUGEINT"),
    "ub": (INTEGER, pa.uint8(), ""),
    "li": (LIST, pa.list_(pa.int32()), ""),
}
KINDS = {name: kind for name, (kind, _, _) in COLUMNS.items()}
FIRST = ("id", "k", "x", "m", "s", "d", "f")  # the common types
OWNED = {"orders": "north", "items": "south", "people": "north", "places": "west"}
SHARED = ("visits", "cases")
OWNERS = ("north", "south", "west")


def federation(seed: int = 7, *, keys: bool = True, across: bool = True, cut: bool = True) -> Federation:
    """Four datasets of one owner each, two that all three owners hold shares of, and one that all have whole.

    `cut`: it is known how the shares were cut and that all have the same words.
    """
    rng, more = random.Random(seed), random.Random(seed + 1)
    found = Federation(*OWNERS, across=across)
    policy = {"shares_keys": keys, "takes_keys": keys, "shown": _shown()}
    for name, owner in OWNED.items():
        found.add(owner, name, _table(rng, more, 24), **policy)
    for name in SHARED:
        whole = _table(rng, more, 60)
        for number, owner in enumerate(found.owners):
            mine = [value is not None and value % 3 == number for value in whole["k"].to_pylist()]
            nulls = [value is None and number == 2 for value in whole["k"].to_pylist()]
            share = whole.filter(pa.array([one or other for one, other in zip(mine, nulls, strict=True)]))
            found.add(owner, name, share, partition=Partition("k", ("k",)) if cut else None, **policy)
    words = _table(rng, more, 12)
    for owner in found.owners:
        found.add(owner, "words", words, content="words" if cut else "", **policy)
    found.unite()
    return found


def _shown() -> str:
    return ", ".join(f"{name}::{to} AS {name}" if to else name for name, (_, _, to) in COLUMNS.items())


def _table(rng: random.Random, more: random.Random, rows: int) -> pa.Table:
    return pa.table(
        {
            name: pa.array([value(rng if name in FIRST else more, kind, name) for _ in range(rows)], arrow)
            for name, (kind, arrow, _) in COLUMNS.items()
        }
    )


def value(rng: random.Random, kind: str, name: str = "") -> object:
    """A value or, now and then, None."""
    if rng.random() < 0.15:
        return None
    if kind == INTEGER:
        return (
            rng.choice((0, 5, 10**12, -(10**12))) if name in ("b", "hu") and rng.random() < 0.3 else rng.randint(0, 9)
        )
    if kind == DOUBLE:
        return rng.randint(-20, 20) / 4
    if kind == DECIMAL:
        return Decimal(rng.randint(-500, 500)) / 100
    if kind == TEXT:
        return rng.choice(("ab", "abc", "b", "Ba", "", "c d"))
    if kind == DATE:
        return dt.date(2020, 1, 1) + dt.timedelta(days=rng.randint(0, 500))
    if kind in _MORE:
        return _MORE[kind](rng)
    return rng.random() < 0.5


_START = dt.datetime(2020, 2, 28, 22, 30)
_MORE = {
    STAMP: lambda rng: _START + dt.timedelta(hours=rng.randint(0, 60)),
    ZONED: lambda rng: (_START + dt.timedelta(hours=rng.randint(0, 60))).replace(tzinfo=dt.UTC),
    TIME: lambda rng: dt.time(rng.randint(0, 23), rng.choice((0, 30))),
    BLOB: lambda rng: rng.choice((b"", b"a", b"\x00\xff", b"ab")),
    UUID: lambda rng: f"00000000-0000-4000-8000-00000000000{rng.randint(0, 9)}",
    LIST: lambda rng: [rng.randint(0, 3) for _ in range(rng.randint(0, 2))],
}


def literal(rng: random.Random, kind: str) -> str:
    """A value as SQL writes it."""
    found = None
    while found is None:
        found = value(rng, kind)
    if kind in (TEXT, UUID, TIME, STAMP, ZONED, DATE):
        return f"{_WRITTEN.get(kind, '')}'{found}'"
    if kind in (BLOB, LIST):
        return "NULL"
    return str(found).lower() if kind == BOOL else str(found)


_WRITTEN = {DATE: "DATE ", STAMP: "TIMESTAMP ", ZONED: "TIMESTAMPTZ ", TIME: "TIME "}
