"""Random streams over real connections against plain DuckDB: values, types, order, totals and cursors, none may differ.

    python -m tests.load.random_streams [--count 2000] [--first 0] [--kind KIND] [--files KIND]

Ten seeds in a row share a dataset (`random_files`, `random_sources`); each has a policy and a request of its own
(`random_reads`), and is a case of one kind: read over HTTP or Arrow Flight, as CSV or Parquet, under a budget that ends
in the middle, with breaks or a revocation in the middle, by the loaders of a training job, under several agreements at
once; read again after its agreement, its version or its files are others; gone on with by turns with another reader;
asked in SQL beside a dataset under another agreement; some over TLS. Blocks and batches are made small, so that small
files have many.

A product that refused much would prove nothing, nor would one that never took the way that is to be looked at: what was
met is counted, and the exit status is 0 if no answer differed and fewer than a tenth were refused.
"""

from __future__ import annotations

import argparse
import collections
import logging
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog
import uvloop

from tests.support import provider
from tests.support.random_between import Between
from tests.support.random_breaks import Broken
from tests.support.random_budget import Budget
from tests.support.random_case import Case
from tests.support.random_flight import OverFlight
from tests.support.random_formats import Written
from tests.support.random_http import OverHttp
from tests.support.random_loads import Loaded
from tests.support.random_several import Several
from tests.support.random_sources import KINDS_OF_FILES
from tests.support.random_space import Different, Space, space
from tests.support.random_together import Together
from tests.support.random_woven import Woven

EACH = 10  # seeds that share a dataset
_SECURE = 0.25  # of seeds, over TLS
KINDS: Mapping[str, tuple[type[Case], int]] = {  # and how often
    "http": (OverHttp, 30),
    "formats": (Written, 10),
    "flight": (OverFlight, 20),
    "budget": (Budget, 10),
    "broken": (Broken, 10),
    "loader": (Loaded, 10),
    "several": (Several, 10),
    "between": (Between, 10),
    "woven": (Woven, 10),
    "together": (Together, 10),
}


async def check(over: Space, seed: int, kind: str) -> list[str]:
    """What became of one seed, and what was met on the way. Different where an answer is not as it must be."""
    world = await over.world(seed // EACH)
    if world is None:
        return ["no dataset"]
    over.door = over.secure if random.Random(f"door {seed}").random() < _SECURE else over.plain
    case = KINDS[kind][0].drawn(over, world, random.Random(f"read {seed}"))
    try:
        outcome = await case.run()
    except Exception as error:
        await provider.settled(over.running)
        raise Different(f"{type(error).__name__}: {error}\n{case.told}\n{case.ended}") from error
    secure = ["over TLS"] if over.door is over.secure else []
    return [outcome, *secure, *sorted({*case.words(), *over.ways.words()})]


def kind_of(seed: int) -> str:
    """Which kind of case a seed is."""
    return random.Random(f"kind {seed}").choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]


async def run(seeds: Sequence[tuple[int, str]], files: str = "") -> collections.Counter[str]:
    """Carry out these seeds, each with its kind of case; what became of them, and what was met. `files`: datasets of
    this kind only."""
    counted: collections.Counter[str] = collections.Counter()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        async with space(Path(folder), files) as over:
            for number, (seed, kind) in enumerate(seeds, 1):
                try:
                    counted.update(await check(over, seed, kind))
                except Exception as error:  # noqa: BLE001  whatever breaks is a wrong answer, too
                    counted["different"] += 1
                    print(f"seed {seed} ({kind}): {type(error).__name__}: {error}", flush=True)
                if number % 200 == 0:
                    print(
                        f"{number} reads, {time.monotonic() - begun:.0f} s, {counted['different']} different",
                        flush=True,
                    )
    return counted


def main() -> int:
    """Run them all and show what was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--kind", choices=list(KINDS), default="", help="of this kind only")
    parser.add_argument("--files", choices=list(KINDS_OF_FILES), default="", help="datasets of this kind only")
    asked = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    seeds = range(asked.first, asked.first + asked.count)
    counted = uvloop.run(run([(seed, asked.kind or kind_of(seed)) for seed in seeds], asked.files))
    for word, times in sorted(counted.items(), key=lambda one: -one[1]):
        print(f"  {times:6d}  {word}")
    refused = sum(times for word, times in counted.items() if word.startswith(("refused", "no dataset")))
    return 1 if counted["different"] or refused * 10 > counted["equal"] else 0


if __name__ == "__main__":
    sys.exit(main())
