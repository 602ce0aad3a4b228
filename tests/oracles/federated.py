"""Random questions over three owners against one DuckDB that has all the data: none may differ.

Rows, their order where the question says one, and types must be the same. Every third question is planned as if
sending keys and aggregating early always paid, so that these rules are met often on small tables; every fourth runs in
the modes for comparison, too; every fifth meets owners that allow no keys, no fragments over two agreements, and of
whose shares nothing is known.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import duckdb
import pyarrow as pa

from connector.errors import ConnectorError
from connector.federation.planner.model import Mode, Partition
from connector.federation.planner.placement import eager_aggregation
from connector.federation.planner.rules import semi_joins
from tests.oracles.grammar import is_ordered
from tests.oracles.outcome import Outcome
from tests.oracles.questions import Questions, Tables
from tests.oracles.values import (
    BLOB,
    BOOL,
    DATE,
    DECIMAL,
    DOUBLE,
    INTEGER,
    LIST,
    STAMP,
    TEXT,
    TIME,
    UUID,
    ZONED,
    value,
)  # fmt: skip
from tests.support.federation import Federation, difference

# Column: its kind, what Arrow calls it, and its type where Arrow has none.
_COLUMNS: dict[str, tuple[str, pa.DataType, str]] = {
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
_KINDS = {name: kind for name, (kind, _, _) in _COLUMNS.items()}
_FIRST = {name: _KINDS[name] for name in ("id", "k", "x", "m", "s", "d", "f")}  # the common types
_OWNED = {"orders": "north", "items": "south", "people": "north", "places": "west"}
_SHARED = ("visits", "cases")
_OWNERS = ("north", "south", "west")
TABLES = Tables(
    {
        **{f'"{owner}".{name}': (_FIRST, 0.16) for name, owner in _OWNED.items()},
        **{f'"all".{name}': (_FIRST, 0.14) for name in _SHARED},
        **{f'"{owner}".words': (_FIRST, 0.027) for owner in _OWNERS},
    },
    {name: kind for name, kind in _KINDS.items() if name not in _FIRST},
    [*(f'"{owner}".{name}' for name, owner in _OWNED.items()), '"south".visits', '"west".cases', '"north".cases'],
)


def federation(seed: int = 7, *, keys: bool = True, across: bool = True, cut: bool = True) -> Federation:
    """Four datasets of one owner each, two that all three owners hold shares of, and one that all have whole.

    `cut`: it is known how the shares were cut and that all have the same words.
    """
    rng, found = random.Random(seed), Federation(*_OWNERS, across=across)
    shown = ", ".join(f"{name}::{to} AS {name}" if to else name for name, (_, _, to) in _COLUMNS.items())
    policy = {"shares_keys": keys, "takes_keys": keys, "shown": shown}
    for name, owner in _OWNED.items():
        found.add(owner, name, _table(rng, 24), **policy)
    for name in _SHARED:
        whole = _table(rng, 60)
        for number, owner in enumerate(found.owners):
            mine = [number == (2 if value is None else value % 3) for value in whole["k"].to_pylist()]
            partition = Partition("k", ("k",)) if cut else None
            found.add(owner, name, whole.filter(pa.array(mine)), partition=partition, **policy)
    words = _table(rng, 12)
    for owner in found.owners:
        found.add(owner, "words", words, content="words" if cut else "", **policy)
    found.unite()
    return found


def _table(rng: random.Random, rows: int) -> pa.Table:
    return pa.table(
        {
            name: pa.array([value(rng, kind, large=name in ("b", "hu")) for _ in range(rows)], arrow)
            for name, (kind, arrow, _) in _COLUMNS.items()
        }
    )


def question(seed: int) -> str:
    return Questions(seed, TABLES).question()


@contextmanager
def daring(on: bool) -> Iterator[None]:
    """Rules that wait for a gain do not."""
    if not on:
        yield
        return
    with (
        mock.patch.object(eager_aggregation, "_pays", return_value=True),
        mock.patch.object(semi_joins, "_MUCH", 1e9),
        mock.patch.object(semi_joins, "_SMALL", -1),
    ):
        yield


def wrong(over: Federation, sql: str, mode: Mode = Mode.FULL, *, bold: bool = False) -> str:
    """What differs between the two answers; empty where nothing does. HanseError where it is refused."""
    types, wanted = over.expected(sql)
    with daring(bold):
        got = over.ask(sql, mode=mode)
    if found := difference(got.rows, wanted, ordered=is_ordered(sql)):
        return found
    return "" if got.types == types else f"types {got.types} for {types}"


def run(seeds: Iterable[int], outcome: Outcome) -> None:
    """Ask the questions of these seeds."""
    much, little = federation(), federation(keys=False, across=False, cut=False)
    for seed in seeds:
        check(little if seed % 5 == 0 else much, seed, outcome)
    much.close()
    little.close()


def check(over: Federation, seed: int, outcome: Outcome) -> None:
    """Ask one question, in each of its modes."""
    sql = question(seed)
    try:
        over.expected(sql)
    except duckdb.Error:
        outcome.count("no question")
        return
    for mode in (Mode.FULL, *((Mode.FILTER, Mode.PULL) if seed % 4 == 0 else ())):
        try:
            found = wrong(over, sql, mode, bold=seed % 3 == 0)
        except ConnectorError as error:
            outcome.count(f"refused ({error.code})")
            continue
        except duckdb.OutOfRangeException:  # computed for rows that one engine may have left out before
            outcome.count("refused (out of range)")
            continue
        except Exception as error:  # noqa: BLE001  an engine's error is a wrong answer, too
            found = f"{type(error).__name__}: {error}"
        if found:
            outcome.find(seed, f"{mode.value}: {found[:300]}\n    {sql}")
        else:
            outcome.count("equal")
