"""`make resume-trials`: random accidents of training jobs; every row comes once an epoch, in the order of the seed.

    python -m tests.load.resume_trials [--count 1000] [--seed 1] [--first 0] [--kind KIND] [--minutes M]

Two connectors and the readers are real processes. In each trial the readers are killed, connections are cut by a relay,
a connector is killed and started again, or the number of readers is changed from their states in the middle of an
epoch, at random rows; `resume/sequence.py` says what must come, without the product's own code. A trial that fails
is named with what repeats it; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from tests.load.resume.trials import KINDS, Space, Trial, Wrong, seconds

_MEANS = {
    "client": "readers killed, each goes on from its state",
    "workers": "readers killed, another number goes on",
    "connection": "connections cut",
    "connector": "a connector killed and started",
    "everything": "all of these",
    "quiet": "nothing happens",
}


@dataclass
class Sum:
    """What became of the trials of one kind."""

    trials: int = 0
    struck: int = 0
    felt: int = 0
    rows: int = 0
    failed: int = 0
    seconds: float = 0.0

    def add(self, trial: Trial, took: float, *, failed: bool) -> None:
        self.trials, self.failed = self.trials + 1, self.failed + failed
        self.struck, self.felt = self.struck + trial.struck, self.felt + trial.felt
        self.rows, self.seconds = self.rows + trial.rows, self.seconds + took


def run(
    numbers: Iterable[int],
    *,
    seed: int,
    kind: str = "",
    minutes: float = math.inf,
    console: Console | None = None,
    forked: bool = False,
) -> dict[str, Sum]:
    """Carry out these trials, as many as begin within so many minutes, with connectors that are forked or started; what
    became of them, by kind."""
    ends = time.monotonic() + 60 * minutes
    console = console or Console(stderr=True)
    found: dict[str, Sum] = defaultdict(Sum)
    with (
        tempfile.TemporaryDirectory(prefix="hanse-resume-") as folder,
        Space(Path(folder), forked=forked) as space,
        Progress(console=console) as bar,
    ):
        space.start()
        numbers = list(numbers)
        task = bar.add_task("trials", total=len(numbers))
        for number in numbers:
            if time.monotonic() > ends:
                break
            trial, failed = Trial(space, seed, number, kind), False
            try:
                took = seconds(trial.run)
            except Wrong as error:
                took, failed = 0.0, True
                console.print(f"FAILED: {trial}: {error}", markup=False, soft_wrap=True)
            found[trial.kind].add(trial, took, failed=failed)
            rows, failures = (sum(getattr(one, name) for one in found.values()) for name in ("rows", "failed"))
            bar.update(task, advance=1, description=f"{rows:,} rows, {failures} failed")
    return found


def table(found: dict[str, Sum]) -> Table:
    """A line for each kind."""
    shown = Table("kind", box=None)
    shown.add_column("what happens", no_wrap=True)
    for name in ("trials", "struck", "felt", "rows", "s each", "failed"):
        shown.add_column(name, justify="right")
    for kind in (kind for kind in KINDS if kind in found):
        one = found[kind]
        cells = (f"{one.trials:,}", f"{one.struck:,}", f"{one.felt:,}", f"{one.rows:,}")
        shown.add_row(kind, _MEANS[kind], *cells, f"{one.seconds / one.trials:.2f}", str(one.failed))
    return shown


def main() -> int:
    """Run them; 1 if a row was lost, came twice or out of its order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=list(KINDS), default="", help="of this kind only")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no trial later")
    given = parser.parse_args()
    numbers = range(given.first, given.first + given.count)
    found = run(numbers, seed=given.seed, kind=given.kind, minutes=given.minutes)
    Console(width=120).print(table(found))
    failed = sum(one.failed for one in found.values())
    print(f"{sum(one.trials for one in found.values())} trials, seed {given.seed}: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
