"""Random questions about names against plain DuckDB: no answer may differ, and no column decide that is not recorded.

    python -m tests.load.random_names [--count 20000] [--first 0] [--over gate]

Through the gate of one owner, under a policy that hides nothing and one that hides columns, rows and values, and
through the planner, with two owners. What is found is shrunk, and printed with its seed. Most that is generated is no
question at all; the exit status is 0 if nothing was found, and fewer than a third of the questions were refused.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.support import named


def main() -> int:
    """Run them all and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--over", choices=sorted(named.WORLDS), action="append")
    asked = parser.parse_args()
    worlds = [named.WORLDS[name]() for name in asked.over or named.WORLDS]
    counted: Counter[str] = Counter()
    found, begun = 0, time.monotonic()
    for first in range(asked.first, asked.first + asked.count, _TOLD):
        outcome = named.run(worlds, range(first, min(first + _TOLD, asked.first + asked.count)))
        counted += outcome.ended
        found += len(outcome.found)
        print(
            *outcome.found,
            f"to seed {first + _TOLD}, {time.monotonic() - begun:.0f} s: {dict(counted)}",
            sep="\n",
            flush=True,
        )
    refused = sum(times for word, times in counted.items() if word.startswith("refused"))
    return 1 if found or refused * 2 > counted["equal"] else 0


_TOLD = 1000


if __name__ == "__main__":
    sys.exit(main())
