"""Random cases of one family against its second opinion; what is found is printed with its seed.

    python -m tests.oracles names [--count 20000] [--first 0] [--over gate]

A product that refused much would prove nothing, nor would one that never took the way that is to be looked at: what was
met is counted, and the exit status is 0 if nothing was found and few of the cases were refused.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from tests.oracles import federated, name_worlds, secrets, streams, versions
from tests.oracles.outcome import Outcome


@dataclass(frozen=True, slots=True)
class Family:
    """`refused_most`: for each case that is equal; None where refusals are what is looked for."""

    run: Callable[..., None]
    count: int
    refused_most: float | None = None
    options: tuple[str, ...] = ()


FAMILIES = {
    "secrets": Family(secrets.run, 10_000),
    "names": Family(name_worlds.run, 20_000, 0.5, ("over",)),
    "versions": Family(versions.run, 2000),
    "federated": Family(federated.run, 10_000, 0.1),
    "streams": Family(streams.run, 2000, 0.1, ("kind", "files")),
}
_EACH = 1000  # seeds until it is told how far it is


def main(arguments: list[str]) -> int:
    """Run the cases, and say what became of them; the exit status."""
    asked = _parser().parse_args(arguments)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))  # warnings are expected
    family, begun = FAMILIES[asked.family], time.monotonic()
    options: dict[str, Any] = {name: value for name in family.options if (value := getattr(asked, name))}
    outcome = Outcome(tell=lambda what: print(what, flush=True))
    stop = asked.first + (asked.count or family.count)
    for first in range(asked.first, stop, _EACH):
        family.run(range(first, min(first + _EACH, stop)), outcome, **options)
        print(f"to seed {min(first + _EACH, stop)}, {time.monotonic() - begun:.0f} s, {len(outcome.found)} found")
    for word, times in outcome.ended.most_common():
        print(f"  {times:6d}  {word}")
    most = family.refused_most
    return 1 if outcome.found or (most is not None and outcome.refused > most * outcome.ended["equal"]) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=list(FAMILIES))
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--over", choices=sorted(name_worlds.WORLDS), action="append", help="names: asked of this only")
    parser.add_argument("--kind", choices=list(streams.KINDS), help="streams: of this kind only")
    parser.add_argument("--files", choices=streams.FILES, help="streams: datasets of this kind only")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
