"""Random tables of a PostgreSQL database: a statement that makes one, and the rows that it is to have."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Sequence
from pathlib import Path

import psycopg
import pyarrow as pa

from tests.support import random_files
from tests.support.random_files import BLOB, BOOL, DATE, DECIMAL, FLOAT, INTEGER, OTHER, STAMP, TEXT, ZONED, Files, Kind
from tests.support.random_reads import quoted

DATABASE = "registry"
_MADE = "table.sql"
_GONE = '"gone"'
_LONG = ("\\N", '\\N,"', "a\r\nb", "ü😀" * 500, "NULL", "{}", "\x7f", "\\.")


def _text(rng: random.Random) -> str:
    return rng.choice((random_files.text(rng), rng.choice(_LONG)))


def _texts(rng: random.Random) -> list[str | None]:
    return [None if rng.random() < 0.2 else _text(rng) for _ in range(rng.randint(0, 3))]


def _numbers(rng: random.Random) -> list[int | None]:
    return [rng.choice((None, 0, -(2**31), 2**31 - 1)) for _ in range(rng.randint(0, 3))]


_STAMPS = [dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31, 23, 59, 59, 999999), dt.datetime(2020, 2, 29, 0, 0, 0, 1)]
_TYPES = {  # what Arrow calls it, and the server
    pa.bool_(): ["boolean"],
    pa.int16(): ["smallint"],
    pa.int32(): ["integer"],
    pa.int64(): ["bigint"],
    pa.float32(): ["real"],
    pa.float64(): ["double precision"],
    pa.decimal128(8, 2): ["numeric(8,2)"],
    pa.decimal128(38, 10): ["numeric(38,10)"],
    pa.string(): ["text", "varchar(9000)"],
    pa.binary(): ["bytea"],
    pa.date32(): ["date"],
    pa.time64("us"): ["time"],
    pa.timestamp("us"): ["timestamp"],
    pa.timestamp("us", tz="UTC"): ["timestamptz"],
    pa.list_(pa.int32()): ["integer[]"],
    pa.list_(pa.string()): ["text[]"],
}
_MORE: list[Kind] = [
    (pa.string(), TEXT, _text),
    (pa.string(), TEXT, _text),
    (pa.list_(pa.string()), OTHER, _texts),
    (pa.list_(pa.int32()), OTHER, _numbers),
    (pa.time64("us"), OTHER, lambda rng: rng.choice((dt.time(0), dt.time(23, 59, 59, 999999)))),
    (pa.timestamp("us"), STAMP, lambda rng: rng.choice(_STAMPS)),
    (pa.timestamp("us", tz="UTC"), ZONED, lambda rng: rng.choice(_STAMPS).replace(tzinfo=dt.UTC)),
    (pa.binary(), BLOB, lambda rng: rng.randbytes(rng.choice((0, 3, 20_000)))),
]
_FAMILIES = (BLOB, BOOL, DATE, DECIMAL, FLOAT, INTEGER, OTHER, STAMP, TEXT, ZONED)
_KINDS = [one for one in random_files.KINDS if one[0] in _TYPES and one[1] in _FAMILIES] + _MORE


def write(rng: random.Random, folder: Path) -> Files:
    """A table, which `fill` makes in a database."""
    drawn, counts = random_files.drawn(rng, _KINDS, wide=rng.choice((0, 0, 0, 40, 300)))
    columns = [one for one in drawn if one.name]
    made = [f"{quoted(one.name)} {rng.choice(_TYPES[one.type])}" for one in columns]
    if rng.random() < 0.3:  # dropped again
        made.insert(rng.randint(0, len(made)), f"{_GONE} integer")
    (folder / _MADE).write_text(",\n".join(made), encoding="utf-8")
    schema = random_files.schema_of(columns)
    told = pa.table([random_files.array_of(rng, one, counts[0]) for one in columns], schema=schema)
    return Files(folder, (), tuple(columns), len(told), "a table", "postgres", told)


def fill(url: str, table: str, files: Files) -> None:
    """Make the table of these files, with their rows."""
    assert files.told is not None
    types = (files.folder / _MADE).read_text(encoding="utf-8").split(",\n")
    with psycopg.connect(url) as con, con.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table} ({', '.join(types)})".encode())
        if any(line.startswith(_GONE) for line in types):
            cursor.execute(f"ALTER TABLE {table} DROP COLUMN {_GONE}".encode())
        into = f"COPY {table} FROM STDIN (FORMAT binary)".encode()
        names = _types_of(types)
        with cursor.copy(into) as copy:
            copy.set_types(names)
            for row in zip(*(column.to_pylist() for column in files.told.columns), strict=True):
                copy.write_row(row)


def _types_of(made: Sequence[str]) -> list[str]:
    """The names of the types of the columns that stay, as psycopg has them."""
    kinds = [line.rsplit('" ', 1)[1] for line in made if not line.startswith(_GONE)]
    return [kind.partition("(")[0] for kind in kinds]
