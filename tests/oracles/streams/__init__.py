"""Random streams over real connections against plain DuckDB: values, types, order, totals and cursors, none may differ.

Ten seeds in a row share a dataset (`files`); each has a policy and a request of its own (`terms`), and is a case of one
kind: read over HTTP or Arrow Flight, as CSV or Parquet, under a budget that ends in the middle, with breaks, while
something changes, by the loaders of a training job, under several agreements at once, by turns with another reader,
asked in SQL with a dataset under another agreement; some over TLS. Blocks and batches are made small, so that small
files have many.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import uvloop

from tests.oracles.outcome import Outcome
from tests.oracles.streams import session, side_by_side
from tests.oracles.streams.answers import Different
from tests.oracles.streams.files import KINDS_OF_FILES
from tests.oracles.streams.loads import Loaded
from tests.oracles.streams.reader import Reader
from tests.oracles.streams.space import Space, space
from tests.oracles.streams.together import Together
from tests.support import provider

EACH = 10  # seeds that share a dataset
FILES = sorted(KINDS_OF_FILES)
_SECURE = 0.25  # of seeds, over TLS
KINDS: Mapping[str, tuple[type[Reader], int]] = {  # and how often
    "http": (session.Http, 30),
    "formats": (session.Formats, 10),
    "flight": (session.Flight, 20),
    "budget": (session.Budget, 10),
    "broken": (session.Broken, 10),
    "loader": (Loaded, 10),
    "several": (side_by_side.Several, 10),
    "between": (session.Between, 10),
    "woven": (side_by_side.Woven, 10),
    "together": (Together, 10),
}


def kind_of(seed: int) -> str:
    """Which kind of case a seed is."""
    return random.Random(f"kind {seed}").choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]


def run(seeds: Iterable[int], outcome: Outcome, *, kind: str = "", files: str = "") -> None:
    """Carry out these seeds. `kind`: all of this one; `files`: datasets of this kind only."""
    run_kinds([(seed, kind or kind_of(seed)) for seed in seeds], outcome, files=files)


def run_kinds(seeds: Iterable[tuple[int, str]], outcome: Outcome, *, files: str = "") -> None:
    """Carry out these seeds, each with its kind of case."""
    uvloop.run(_run(seeds, outcome, files))


async def _run(seeds: Iterable[tuple[int, str]], outcome: Outcome, files: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with space(Path(folder), files) as over:
            for seed, kind in seeds:
                try:
                    outcome.count(*await _check(over, seed, kind))
                except Exception as error:  # noqa: BLE001  whatever breaks is a wrong answer, too
                    outcome.find(seed, f"{kind}: {type(error).__name__}: {error}")


async def _check(over: Space, seed: int, kind: str) -> list[str]:
    """What became of one seed, and what was met on the way. Different where an answer is not as it must be."""
    world = await over.world(seed // EACH)
    if world is None:
        return ["no dataset"]
    over.door = over.secure if random.Random(f"door {seed}").random() < _SECURE else over.plain
    case = KINDS[kind][0].drawn(over, world, random.Random(f"read {seed}"))
    try:
        became = await case.run()
    except Exception as error:
        await provider.settled(over.running)
        raise Different(f"{type(error).__name__}: {error}\n{case.told}") from error
    secure = ["over TLS"] if over.door is over.secure else []
    return [became, *secure, *sorted({*case.words(), *over.ways.words()})]
