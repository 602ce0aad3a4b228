"""`make bench-questions`: answers per second of one connector as more clients ask it at once.

    python -m benchmarks.bench_questions [--clients 1 8 64] [--seconds 10] [--rounds 3] [--polite]

Three owners and one asker, each a process with its workers; every client asks one question over all three owners after
another, on a connection that it keeps. The client counts take turns, `--rounds` times, so that what else the machine
does is spread over all of them. For each count: answers per second (of all rounds together), the share of requests that
were refused (429), the share that failed otherwise, and the median and the 99th percentile of the time to a whole
answer. A refused client asks again at once, the worst that it can do; with `--polite` it waits for `Retry-After`.

Bars: nothing but answers and refusals, each refusal with `Retry-After`; and with most clients no fewer answers a second
than with the second most (a ratio of at least 0.9: what two runs of the same differ by).
"""

from __future__ import annotations

import argparse
import http.client
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.bench_federated import read
from tests.support.ports import free_range
from tests.support.processes import Client, Failed, Process

SQL = 'SELECT count(*) AS n, sum(value) AS total FROM "all".air'
OWNERS = ("north", "east", "west")
ROWS = 1_000
BAR = 0.9


@dataclass
class Figures:
    """What clients of one count saw, over all rounds."""

    seconds: float = 0.0
    answered: list[float] = field(default_factory=list)  # seconds of each
    refused: int = 0
    without_retry_after: int = 0
    failed: list[str] = field(default_factory=list)

    @property
    def asked(self) -> int:
        return len(self.answered) + self.refused + len(self.failed)

    @property
    def per_second(self) -> float:
        return len(self.answered) / self.seconds if self.seconds else 0.0

    def add(self, other: Figures) -> None:
        self.seconds += other.seconds
        self.answered += other.answered
        self.refused += other.refused
        self.without_retry_after += other.without_retry_after
        self.failed += other.failed

    def quantile(self, share: float) -> float:
        ordered = sorted(self.answered) or [0.0]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def space(directory: Path) -> Iterator[Process]:
    """An asker with an agreement on a small dataset of each of three owners; all are running processes."""
    first = free_range(2 * len(OWNERS) + 2)
    made = [
        Process(name, directory / name, first + 2 * place, first + 2 * place + 1)
        for place, name in enumerate((*OWNERS, "asker"))
    ]
    *owners, asker = made
    try:
        for process in made:
            process.start()
        for owner in owners:
            dataset, offer = owner.publish("air", rows=ROWS)
            asker.agree(owner, dataset, offer)
        yield asker
    finally:
        for process in made:
            process.kill()


def load(asker: Process, clients: int, *, seconds: float, polite: bool) -> Figures:
    """Let so many clients ask for so long. What is under way at the end is waited for, and counted with its time."""
    found = [Figures() for _ in range(clients)]
    begin, ends = threading.Barrier(clients + 1), [0.0]

    def work(figures: Figures) -> None:
        client = Client(asker.management_port, token=asker.token, prefix="/api/v1", timeout=120)
        begin.wait()
        while time.monotonic() < ends[0]:
            _ask(client, figures, polite=polite)
        client.close()

    threads = [threading.Thread(target=work, args=(one,)) for one in found]
    for thread in threads:
        thread.start()
    begun = time.monotonic()
    ends[0] = begun + seconds
    begin.wait()
    for thread in threads:
        thread.join()
    whole = Figures(seconds=time.monotonic() - begun)
    for one in found:
        whole.add(one)
    return whole


def _ask(client: Client, figures: Figures, *, polite: bool) -> None:
    begun = time.monotonic()
    try:
        answer = client.call("POST", "/queries", {"sql": SQL})
    except Failed as failed:
        if failed.status != 429:
            figures.failed.append(str(failed))
            return
        figures.refused += 1
        figures.without_retry_after += not failed.retry_after
        if polite:
            time.sleep(failed.retry_after)
        return
    except (OSError, http.client.HTTPException) as error:
        figures.failed.append(repr(error))
        return
    rows, end = read(answer)
    if end.get("status") != "complete" or rows[0][0] != ROWS * len(OWNERS):
        figures.failed.append(f"{end.get('status')}, rows {rows}")
        return
    figures.answered.append(time.monotonic() - begun)


def report(found: dict[int, Figures]) -> bool:
    """A line for each count of clients, then the bars; whether they were kept."""
    print(f"{'clients':>8} {'answers/s':>10} {'refused':>9} {'failed':>7} {'p50 s':>8} {'p99 s':>8}")
    for clients, one in found.items():
        refused, failed = one.refused / max(1, one.asked), len(one.failed)
        times = f"{one.quantile(0.5):8.3f} {one.quantile(0.99):8.3f}"
        print(f"{clients:8} {one.per_second:10.1f} {refused:9.1%} {failed:7} {times}")
    failures = [failure for one in found.values() for failure in one.failed]
    for failure in dict.fromkeys(failures[:3]):
        print(f"  failed: {failure[:200]}")
    silent = sum(one.without_retry_after for one in found.values())
    print(f"  refusals without Retry-After: {silent} (expected none)")
    kept = not failures and not silent
    if len(found) > 1:
        fewer, more = sorted(found)[-2:]
        ratio = found[more].per_second / max(found[fewer].per_second, 1e-9)
        kept = kept and ratio >= BAR
        missed = "" if ratio >= BAR else ": MISSED"
        print(f"  answers/s with {more} clients to those with {fewer}: {ratio:.2f} (at least {BAR:g}{missed})")
    return kept


def run(asker: Process, counts: Sequence[int], *, seconds: float, rounds: int, polite: bool) -> dict[int, Figures]:
    load(asker, 8, seconds=2.0, polite=True)  # workers start, the planner is loaded
    found = {clients: Figures() for clients in counts}
    for _ in range(rounds):
        for clients in counts:
            found[clients].add(load(asker, clients, seconds=seconds, polite=polite))
    return found


def main() -> int:
    """Run it; the exit status is 0 if the bars were kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--polite", action="store_true", help="a refused client waits for Retry-After")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the connectors end with us
    with tempfile.TemporaryDirectory(prefix="questions-") as directory, space(Path(directory)) as asker:
        found = run(asker, asked.clients, seconds=asked.seconds, rounds=asked.rounds, polite=asked.polite)
    return 0 if report(found) else 1


if __name__ == "__main__":
    sys.exit(main())
