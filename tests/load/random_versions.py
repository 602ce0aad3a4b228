"""Random versions of random tables against whoever subtracts: `python -m tests.load.random_versions [count] [first]`.

Prints what the cases came to; exits with 1 if one that tells of few patients was not found.
"""

from __future__ import annotations

import sys
from collections import Counter

from rich.progress import track

from tests.support.random_versions import outcome


def main(arguments: list[str]) -> int:
    """Run them; the exit code."""
    count, first = map(int, (*arguments, *["2000", "0"][len(arguments) :]))
    came: Counter[str] = Counter()
    for seed in track(range(first, first + count), "versions"):
        case = outcome(seed)
        if case.told and not case.found:
            print(f"seed {seed}: {', '.join(case.changes)}; not found: {case.told[0]}")
        told = "tells of few" if case.told else "tells of few nowhere"
        came[f"{told}, {'found' if case.found else 'nothing found'}"] += 1
    for what, times in came.most_common():
        print(f"  {times:6d}  {what}")
    return 1 if came["tells of few, nothing found"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
