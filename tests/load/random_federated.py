"""Random questions over three owners against one DuckDB that has all the data: none may differ.

    python -m tests.load.random_federated [--count 10000] [--first 0]

Every third question is planned as if sending keys and aggregating early always paid, so that these rules are met
often on small tables; every fourth runs in a mode for comparison, too. The exit status is 0 if no answer differed.
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
from connector.query.federation import Mode
from connector.query.rules import eager, semi_joins
from tests.support.federation import Federation, difference
from tests.support.random_queries import Questions, federation


@contextmanager
def daring(on: bool) -> Iterator[None]:
    """Rules that wait for a gain do not."""
    if not on:
        yield
        return
    with mock.patch.object(eager, "_pays", return_value=True), mock.patch.object(semi_joins, "_MUCH", 1e9):
        yield


def check(over: Federation, seed: int) -> list[str]:
    """What became of one question, a word for each mode it ran in."""
    sql = Questions(seed).question()
    try:
        _, wanted = over.expected(sql)
    except duckdb.Error:
        return ["no question"]
    found = []
    for mode in [Mode.FULL, *([Mode.FILTER, Mode.PULL] if seed % 4 == 0 else [])]:
        try:
            with daring(seed % 3 == 0):
                wrong = difference(over.ask(sql, mode=mode).rows, wanted)
        except HanseError:
            found.append("refused")
            continue
        except Exception as error:  # noqa: BLE001  an engine's error is a wrong answer, too
            wrong = f"{type(error).__name__}: {error}"
        found.append("different" if wrong else "equal")
        if wrong:
            print(f"seed {seed}, {mode.value}: {wrong[:300]}\n    {sql}", flush=True)
    return found


def main() -> int:
    """Run them all and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0)
    asked = parser.parse_args()
    counted: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    over = federation()
    for number, seed in enumerate(range(asked.first, asked.first + asked.count), 1):
        counted.update(check(over, seed))
        if number % 1000 == 0:
            print(f"{number} questions, {time.monotonic() - begun:.0f} s: {dict(counted)}", flush=True)
    print(f"{asked.count} questions: {dict(counted)}")
    return 1 if counted["different"] else 0


if __name__ == "__main__":
    sys.exit(main())
