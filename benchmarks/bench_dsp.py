"""`make bench-dsp`: what the protocol costs between two connectors on this machine, on SQLite and on PostgreSQL.

Real processes, real sockets, signed tokens, durable commits. Everything is compared with the median round trip of an
empty request to the same server in the same run, and with the least that the protocol asks for: its exchanges, one
after the other, and its commits. What open negotiations cost is measured in pairs: two providers in one run, one with a
thousand open and one with none, take turns. Catalogue pages are measured in process, on databases seeded to size. At
the end stands the timeline of one conversation.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import trace
from connector.dsp.catalog import encode_cursor
from connector.store import Store, Transaction
from connector.store.migrate import upgrade
from tests.support import pair, postgres, processes
from tests.support.processes import Client, Process

PAGES = (100, 1_000, 10_000, 100_000)
POLICIES = 100
Times = list[float]


def ms(values: Times, quantile: float = 0.5) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(quantile * len(ordered)))] * 1e3


def timed(repeat: int, act: Callable[[], Any]) -> Times:
    found = []
    for _ in range(repeat):
        start = time.perf_counter()
        act()
        found.append(time.perf_counter() - start)
    return found


class Bench:
    """Two running connectors and what is done with them."""

    def __init__(self, north: Process, south: Process, *, rows: int = 1_000) -> None:
        self.north, self.south = north, south
        self.dataset, self.offer = north.publish("air", rows=rows)
        self.queue, self.manual = north.publish("queue", decide="manual")
        self.connect()

    def connect(self) -> None:
        """New connections: a server closes those that nobody used for a while."""
        self.api = self.south.api()
        self.public = Client(self.north.public_port)

    def empty(self) -> None:
        self.public.call("GET", "/health/live")

    def negotiate(self, api: Client | None = None) -> str:
        """One negotiation to FINALIZED, as seen by its consumer; the agreement."""
        api = api or self.api
        begun = api.post("/negotiations", self._asked(self.dataset, self.offer))
        done = api.get(f"/negotiations/{begun['id']}?wait=60&until=FINALIZED")
        if done["state"] != "FINALIZED":
            raise RuntimeError(f"expected FINALIZED, came {done['state']}: {done['reason']}")
        return str(done["agreement_id"])

    def first_byte(self) -> float:
        """Seconds for negotiation, transfer start, and the first byte of the data; the rest is read afterwards."""
        start = time.perf_counter()
        begun = self.api.post("/transfers", {"agreement_id": self.negotiate()})
        self.api.get(f"/transfers/{begun['id']}?wait=60&until=STARTED")
        address = self.api.get(f"/transfers/{begun['id']}/address")
        reply = self.public.start(
            "GET", "/data/v1/datasets/air/rows", headers={"Authorization": f"Bearer {address['ticket']}"}
        )
        reply.read(1)
        took = time.perf_counter() - start
        reply.read()
        return took

    def open_one(self) -> None:
        """A negotiation that stays open: its provider's offer waits for a person."""
        self.api.post("/negotiations", self._asked(self.queue, self.manual))

    def _asked(self, dataset: str, offer: str) -> dict[str, Any]:
        return {
            "counter_party_id": self.north.participant,
            "counter_party_address": self.north.base,
            "dataset": dataset,
            "offer_id": offer,
            "policy": processes.POLICY,
        }

    def at_once(self, width: int, each: int) -> tuple[Times, float]:
        """`width` consumers at once, `each` negotiations one after the other: latencies, and the whole time."""
        found: Times = []
        clients = [self.south.api() for _ in range(width)]

        def work(client: Client) -> None:
            found.extend(timed(each, lambda: self.negotiate(client)))

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return found, time.perf_counter() - start


# The least that a conversation needs, one after the other; see docs/protocol.md. Exchanges: the two orders, request,
# agreement, verification, FINALIZED, request and start of the transfer, the address, the first byte. Commits: the two
# orders, what each of the six messages says, and the record of the read.
EXCHANGES, COMMITS = 10, 9


async def commit(url: str) -> float:
    """The median of one durable commit of one row through our store, in milliseconds."""
    upgrade(url)
    store, found = Store(url, pool_size=1), []
    for number in range(100):
        start = time.perf_counter()
        await store.write(
            lambda tx, at=number: tx.outbox.record_received(sender="s", message_id=f"{at}", digest="", now=0.0)  # type: ignore[misc]  # bound by default
        )
        found.append(time.perf_counter() - start)
    store.close()
    return ms(found)


def conversations(name: str, bench: Bench, *, repeat: int, durable: float) -> None:
    for _ in range(10):
        bench.first_byte()
    timed(200, bench.empty)
    empty = ms(timed(500, bench.empty))
    alone = timed(repeat, bench.negotiate)
    whole = [bench.first_byte() for _ in range(repeat)]
    crowd, seconds = bench.at_once(50, max(1, repeat // 20))
    print(f"\n{name}")
    print(f"  empty request, median                      {empty:8.2f} ms")
    print(f"  negotiation to FINALIZED, one by one       {ms(alone):8.2f} ms median {ms(alone, 0.95):8.2f} ms p95"
          f" {1 / statistics.mean(alone):8.1f} /s")  # fmt: skip
    print(f"  the same, 50 at once                       {ms(crowd):8.2f} ms median {ms(crowd, 0.95):8.2f} ms p95"
          f" {len(crowd) / seconds:8.1f} /s")  # fmt: skip
    print(f"  negotiation + transfer start + first byte  {ms(whole):8.2f} ms median {ms(whole, 0.95):8.2f} ms p95"
          f" = {ms(whole) / empty:5.1f} empty requests (aim: 15)")  # fmt: skip
    least = EXCHANGES * empty + COMMITS * durable
    print(f"  least: {EXCHANGES} empty requests + {COMMITS} commits of {durable:.2f} ms  {least:8.2f} ms"
          f"              = {least / empty:5.1f} empty requests")  # fmt: skip


def beside_open(name: str, plain: Bench, crowded: Bench, *, repeat: int, opened: int) -> None:
    """What `opened` open negotiations do to a new one: both providers take turns, and each pair gives one ratio."""
    for _ in range(opened):
        crowded.open_one()
    plain.connect()
    for bench in (plain, crowded) * 10:
        bench.negotiate()
    ratios, alone, beside = [], [], []
    for number in range(repeat):
        pair_of = [(plain, alone), (crowded, beside)]
        for bench, found in pair_of if number % 2 else pair_of[::-1]:
            found.extend(timed(1, bench.negotiate))
        ratios.append(beside[-1] / alone[-1])
    low, middle, high = statistics.quantiles(ratios, n=4)
    print(f"\n{name}: a negotiation beside {opened} open ones, {repeat} pairs in turns")
    print(f"  {ms(alone):8.2f} ms without, {ms(beside):8.2f} ms beside them; ratio {middle:.3f} median, "
          f"{low:.3f} to {high:.3f} the middle half (aim: at most 1.20)")  # fmt: skip


def timeline(name: str, sides: tuple[Process, Process]) -> None:
    """One conversation of median length among forty, as both connectors saw it."""
    bench, runs = Bench(*sides), []
    for _ in range(60):
        began = time.monotonic()
        runs.append((bench.first_byte(), began))
    took, began = sorted(runs[20:])[20]
    time.sleep(0.2)
    found = trace.spans(sides, began=began, ended=began + took)
    print(
        f"\n{name}: one conversation of {took * 1e3:.1f} ms (ms since its begin, ms it took; traced, which costs some)"
    )
    for line in trace.told(found, began=began, steps=[(began, "ordered"), (began + took, "first byte")]):
        print(f"  {line}")
    print(f"  {trace.summary(found)}")


async def catalogue(kinds: dict[str, Callable[[str], str]], sizes: tuple[int, ...]) -> None:
    """Pages of 100 at every size on every database, in one table, right after the datasets came."""
    print(f"\na page of 100 of the catalogue, {POLICIES} distinct policies, median ms")
    print("  datasets" + "".join(f"{f'{kind} first':>20}{'in the middle':>16}" for kind in kinds))
    for size in sizes:
        cells = [await _measured(url(f"{kind}-{size}".lower()), size) for kind, url in kinds.items()]
        print(f"  {size:>8}" + "".join(f"{first:>20.2f}{middle:>16.2f}" for first, middle in cells), flush=True)


async def _measured(url: str, size: int) -> tuple[float, float]:
    upgrade(url)
    north = pair.side("north", "203.0.113.1", pair.Cable(), url)
    await north.store.write(lambda tx: _seed(tx, size))
    first = await _pages(north, "", 100)
    middle = await _pages(north, f"?after={encode_cursor(_dataset(size // 2))}", min(100, size - size // 2 - 1))
    north.store.close()
    return ms(first), ms(middle)


def _dataset(i: int) -> str:
    return f"urn:hanse:north:d{i:06d}"


def _seed(tx: Transaction, size: int) -> None:
    for i in range(size):
        pair.add_dataset(tx, _dataset(i))
        atom = {"leftOperand": "https://w3id.org/hanse/policy/1/participant", "operator": "neq",
                "rightOperand": f"did:web:excluded{i % POLICIES}.example"}  # fmt: skip
        policy = {"permission": [{"action": "use", "constraint": [atom]}]}
        tx.datasets.add(pair.offer_row(f"offer:{i}", _dataset(i), policy, decide="auto", now=tx.now))
        if i % 2_000 == 1_999:
            tx.session.flush()
            tx.session.expunge_all()


async def _pages(north: pair.Side, query: str, count: int) -> Times:
    found = []
    headers = {"authorization": f"Bearer did:web:asker.example>{north.participant}"}
    body = b'{"@context": ["https://w3id.org/dspace/2025/1/context.jsonld"], "@type": "CatalogRequestMessage"}'
    for _ in range(20):
        start = time.perf_counter()
        reply = await pair.exchange(
            north.app, "POST", f"{north.base}/catalog/request{query}", headers, body, check=False
        )
        found.append(time.perf_counter() - start)
        if reply.status != 200 or reply.body.count(b'"Dataset"') != count:
            raise RuntimeError(f"expected a page of {count}, came {reply.status} {reply.body[:200]!r}")
    return found[5:]


@contextmanager
def databases(directory: Path) -> Iterator[dict[str, Callable[[str], str]]]:
    """A maker of database URLs for each kind that this machine has."""
    sqlite = {"SQLite": lambda name: f"sqlite:///{directory / name}.db"}
    if postgres.binaries() is None:
        print("PostgreSQL is not installed here: LEFT OUT")
        yield sqlite
        return
    with postgres.cluster(fsync=True) as cluster:
        yield {**sqlite, "PostgreSQL": lambda name: cluster.create(name)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=100)
    parser.add_argument("--open", type=int, default=1_000)
    parser.add_argument("--sizes", type=int, nargs="*", default=PAGES)
    given = parser.parse_args()
    print(f"on {os.cpu_count()} cores; both connectors and the client share them")
    with tempfile.TemporaryDirectory(prefix="hanse-bench-") as folder, databases(Path(folder)) as kinds:
        for kind, url in kinds.items():
            pairs = [(Path(folder) / kind / name, (url(f"{kind}-n-{name}".lower()), url(f"{kind}-s-{name}".lower())))
                     for name in ("plain", "crowded", "traced")]  # fmt: skip
            durable = asyncio.run(commit(url(f"{kind}-commits".lower())))
            with processes.two(pairs[0][0], urls=pairs[0][1]) as two:
                plain = Bench(*two)
                conversations(kind, plain, repeat=given.repeat, durable=durable)
                with processes.two(pairs[1][0], urls=pairs[1][1]) as others:
                    beside_open(kind, plain, Bench(*others), repeat=given.repeat, opened=given.open)
            with trace.traced(pairs[2][0], urls=pairs[2][1]) as two:
                timeline(kind, two)
        if given.sizes:
            asyncio.run(catalogue(kinds, given.sizes))


if __name__ == "__main__":
    main()
