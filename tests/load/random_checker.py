"""Ten thousand random queries against planted secrets: `python -m tests.load.random_checker [count] [seed]`.

Prints how the queries ended; exits with 1 if a secret was seen or an answer differs from the oracle's.
"""

from __future__ import annotations

import sys
import time

from tests.support import checker


def main(arguments: list[str]) -> int:
    """Run the checker; the exit code."""
    count = int(arguments[0]) if arguments else 10_000
    seed = int(arguments[1]) if len(arguments) > 1 else 1
    before = time.perf_counter()
    outcome = checker.run(count, seed=seed)
    print(f"{count} queries of seed {seed} in {time.perf_counter() - before:.0f} s")
    for ended, times in outcome.ended.most_common():
        print(f"  {times:6d}  {ended}")
    print(f"secrets seen: {len(outcome.leaks)}; answers unlike the oracle's: {len(outcome.differences)}")
    for line in (outcome.leaks + outcome.differences)[:10]:
        print(f"  {line}")
    return 1 if outcome.leaks or outcome.differences else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
