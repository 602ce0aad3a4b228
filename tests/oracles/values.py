"""Random values of every kind that owners may show, and how SQL writes them.

Nulls, ties and double keys are frequent. DOUBLE and FLOAT values are quarters, so that no order of addition shows.
"""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal

INTEGER, DOUBLE, DECIMAL, TEXT, DATE, BOOL = "int", "double", "decimal", "text", "date", "bool"
STAMP, ZONED, TIME, BLOB, UUID, LIST = "stamp", "zoned", "time", "blob", "uuid", "list"
NUMBERS = (INTEGER, DOUBLE, DECIMAL)
_START = dt.datetime(2020, 2, 28, 22, 30)
_DRAWN = {
    INTEGER: lambda rng: rng.randint(0, 9),
    DOUBLE: lambda rng: rng.randint(-20, 20) / 4,
    DECIMAL: lambda rng: Decimal(rng.randint(-500, 500)) / 100,
    TEXT: lambda rng: rng.choice(("ab", "abc", "b", "Ba", "", "c d")),
    DATE: lambda rng: dt.date(2020, 1, 1) + dt.timedelta(days=rng.randint(0, 500)),
    BOOL: lambda rng: rng.random() < 0.5,
    STAMP: lambda rng: _START + dt.timedelta(hours=rng.randint(0, 60)),
    ZONED: lambda rng: (_START + dt.timedelta(hours=rng.randint(0, 60))).replace(tzinfo=dt.UTC),
    TIME: lambda rng: dt.time(rng.randint(0, 23), rng.choice((0, 30))),
    BLOB: lambda rng: rng.choice((b"", b"a", b"\x00\xff", b"ab")),
    UUID: lambda rng: f"00000000-0000-4000-8000-00000000000{rng.randint(0, 9)}",
    LIST: lambda rng: [rng.randint(0, 3) for _ in range(rng.randint(0, 2))],
}
_WRITTEN = {TEXT: "", UUID: "", DATE: "DATE ", STAMP: "TIMESTAMP ", ZONED: "TIMESTAMPTZ ", TIME: "TIME "}


def value(rng: random.Random, kind: str, *, large: bool = False) -> object:
    """A value or, now and then, None. `large`: of whole numbers also some that are."""
    if rng.random() < 0.15:
        return None
    if large and rng.random() < 0.3:
        return rng.choice((0, 5, 10**12, -(10**12)))
    return _DRAWN[kind](rng)


def literal(rng: random.Random, kind: str) -> str:
    """A value as SQL writes it."""
    found = _DRAWN[kind](rng)
    if kind in _WRITTEN:
        return f"{_WRITTEN[kind]}'{found}'"
    return "NULL" if kind in (BLOB, LIST) else str(found).lower()
