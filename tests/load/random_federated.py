"""Random questions over three owners against one DuckDB that has all the data: none may differ.

    python -m tests.load.random_federated [--count 10000] [--first 0]

Rows, their order where the question says one, and types must be the same. Every third question is planned as if
sending keys and aggregating early always paid, so that these rules are met often on small tables; every fourth runs in
the modes for comparison, too; every fifth meets owners that allow no keys, no fragments over two agreements, and of
whose shares nothing is known. A planner that refused much would prove nothing: the exit status is 0 if no answer
differed and fewer than a tenth were refused.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import duckdb

from connector.errors import HanseError
from connector.federation.planner.model import Mode
from connector.federation.planner.placement import eager_aggregation
from connector.federation.planner.rules import semi_joins
from tests.support.federation import Federation, difference
from tests.support.random_data import federation
from tests.support.random_queries import Questions


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


class Owners:
    """The federation whose agreements allow much, and one that allows little."""

    def __init__(self) -> None:
        self.open = federation()
        self.strict = federation(keys=False, across=False, cut=False)

    def of(self, seed: int) -> Federation:
        return self.strict if seed % 5 == 0 else self.open

    def close(self) -> None:
        self.open.close()
        self.strict.close()


def modes(seed: int) -> list[Mode]:
    return [Mode.FULL, *([Mode.FILTER, Mode.PULL] if seed % 4 == 0 else [])]


def wrong(over: Federation, sql: str, mode: Mode = Mode.FULL, *, bold: bool = False) -> str:
    """What differs between the two answers; empty where nothing does. HanseError where it is refused."""
    types, wanted = over.expected(sql)
    with daring(bold):
        got = over.ask(sql, mode=mode)
    if found := difference(got.rows, wanted, ordered=_ordered(sql)):
        return found
    return "" if got.types == types else f"types {got.types} for {types}"


def _ordered(sql: str) -> bool:
    """Whether the whole answer has an order: the last ORDER BY is in no parentheses."""
    _, found, after = sql.rpartition(" ORDER BY ")
    return bool(found) and after.count("(") == after.count(")")


def check(owners: Owners, seed: int) -> Iterator[str]:
    """What became of one question, a word for each mode it ran in."""
    sql, over = Questions(seed).question(), owners.of(seed)
    try:
        over.expected(sql)
    except duckdb.Error:
        yield "no question"
        return
    for mode in modes(seed):
        try:
            found = wrong(over, sql, mode, bold=seed % 3 == 0)
        except HanseError as error:
            yield f"refused ({error.code})"
            continue
        except duckdb.OutOfRangeException:  # computed for rows that one engine may have left out before
            yield "refused (out of range)"
            continue
        except Exception as error:  # noqa: BLE001  an engine's error is a wrong answer, too
            found = f"{type(error).__name__}: {error}"
        yield "different" if found else "equal"
        if found:
            print(f"seed {seed}, {mode.value}: {found[:300]}\n    {sql}", flush=True)


def main() -> int:
    """Run them all and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    counted: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    owners = Owners()
    for number, seed in enumerate(range(asked.first, asked.first + asked.count), 1):
        counted.update(check(owners, seed))
        if number % 500 == 0:
            print(f"{number} questions, {time.monotonic() - begun:.0f} s: {dict(counted)}", flush=True)
    print(f"{asked.count} questions: {dict(counted)}")
    refused = sum(times for word, times in counted.items() if word.startswith("refused"))
    return 1 if counted["different"] or refused * 10 > counted["equal"] else 0


if __name__ == "__main__":
    sys.exit(main())
