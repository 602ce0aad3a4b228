"""`make bench-forged`: what a flood of forged tokens costs a member's negotiations.

Two real connectors negotiate one agreement after the other. In turns, a process of its own sends the provider requests
with forged tokens at a fixed rate: no token at all, a member's token signed with another key, an expired one, and
tokens of participants that do not exist. Each must be refused. The ratio compares both kinds of turns of one run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

from joserfc.jwk import ECKey

from benchmarks.bench_dsp import Bench, Times, databases, ms, timed
from connector.identity.self_issued_token import mint
from tests.support import processes

_MESSAGE = json.dumps(
    {"@context": ["https://w3id.org/dspace/2025/1/context.jsonld"], "@type": "CatalogRequestMessage"}
).encode()
_AIM = 1.10
_MADE = 200  # tokens of each kind


def forged_tokens(member: str, audience: str) -> list[str]:
    """Tokens that prove nothing, of each kind in turn."""
    key, now = ECKey.generate_key("P-256"), time.time() + 60
    found = []
    for number in range(_MADE):
        stranger = f"did:web:stranger{number}.invalid"
        found += [
            "none of these",
            mint(key, did=member, audience=audience, now=now),
            mint(key, did=member, audience=audience, now=now - 86_400),
            mint(key, did=stranger, audience=audience, now=now),
        ]
    return found


def send_flood(port: int, tokens: list[str], per_minute: int, orders: Connection) -> None:
    """Send forged requests while the order is true; answer each pause with the counts of statuses, and end at None."""
    while orders.recv():
        counts = _send_until_order(port, tokens, 60 / per_minute, orders)
        orders.recv()
        orders.send(counts)


def _send_until_order(port: int, tokens: list[str], step: float, orders: Connection) -> Counter[int]:
    line, counts, due = http.client.HTTPConnection("127.0.0.1", port), Counter[int](), time.monotonic()
    number = 0
    while not orders.poll(max(0.0, due - time.monotonic())):
        headers = {"authorization": f"Bearer {tokens[number % len(tokens)]}", "content-type": "application/json"}
        line.request("POST", "/dsp/2025-1/catalog/request", _MESSAGE, headers)
        reply = line.getresponse()
        reply.read()
        counts[reply.status] += 1
        number += 1
        due += step
    line.close()
    return counts


class Flood:
    """The process that sends forged requests."""

    def __init__(self, orders: Connection) -> None:
        self._orders = orders
        self.counts: Counter[int] = Counter()
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        self._orders.send(True)
        began = time.monotonic()
        try:
            yield
        finally:
            self._orders.send(False)
            self.seconds += time.monotonic() - began
            self.counts += self._orders.recv()


@contextmanager
def flooding(port: int, tokens: list[str], per_minute: int) -> Iterator[Flood]:
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=send_flood, args=(port, tokens, per_minute, theirs))
    child.start()
    try:
        yield Flood(ours)
    finally:
        ours.send(None)
        child.join()


def compare(name: str, bench: Bench, *, per_minute: int, turns: int, each: int) -> None:
    tokens = forged_tokens(bench.south.participant, bench.north.participant)
    timed(20, bench.negotiate)
    calm: Times = []
    flooded: Times = []
    ratios = []
    with flooding(bench.north.public_port, tokens, per_minute) as flood:
        for _ in range(turns):
            calm += timed(each, bench.negotiate)
            with flood.running():
                flooded += timed(each, bench.negotiate)
            ratios.append(ms(flooded[-each:]) / ms(calm[-each:]))
    low, middle, high = statistics.quantiles(ratios, n=4)
    rate = flood.counts.total() / flood.seconds * 60
    print(f"\n{name}: {turns} pairs of turns of {each} negotiations")
    print(f"  forged requests: {rate:,.0f} a minute; answers: {_told(flood.counts)}")
    print(f"  negotiation to FINALIZED, median: {ms(calm):.2f} ms calm, {ms(flooded):.2f} ms in the flood")
    print(f"  ratio {middle:.3f} median, {low:.3f} to {high:.3f} the middle half (aim: at most {_AIM:.2f})")


def _told(counts: Counter[int]) -> str:
    if set(counts) - {401, 503}:
        raise RuntimeError(f"expected each forged request to be refused with 401 or 503, came {dict(counts)}")
    return ", ".join(f"{number} x {status}" for status, number in sorted(counts.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--per-minute", type=int, default=10_000)
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--each", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="hanse-bench-") as folder, databases(Path(folder)) as kinds:
        for kind, url in kinds.items():
            urls = (url(f"{kind}-n".lower()), url(f"{kind}-s".lower()))
            with processes.two(Path(folder) / kind, urls=urls) as two:
                compare(kind, Bench(*two), per_minute=given.per_minute, turns=given.turns, each=given.each)


if __name__ == "__main__":
    main()
